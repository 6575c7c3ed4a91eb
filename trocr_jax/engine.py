"""Batch after batch: threads open images ahead of the device, the device works ahead of the host, results in order.

While the device reads one batch, the next waits on it already, images of the one after that are opened by threads, and
the host makes results of the one before. Nothing else is taken from the input, which may have no end.

A batch goes on until its longest text ends. So that its texts are of like length, the items of several batches are
opened and sorted before they are divided into batches; results still come in the items' order.

In:  likeness 3 1 2 | 1 2 3, batch_size 2, windows of 3 items (0 to 2, 3 to 5)
Out: batches (1, 2) (0) | (3, 4) (5), results 0 1 2 3 4 5
"""

from __future__ import annotations

import collections
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import jax

Item = TypeVar("Item")
Opened = TypeVar("Opened")
Result = TypeVar("Result")

MAX_THREADS = 8
# Batches that wait on the device: one that it works on, one to go on with.
LAUNCHED = 2


class Engine(Generic[Item, Opened, Result]):
    """Reads items in batches of `batch_size`, taking at most `read_ahead` batches beyond the one being waited for.

    `take` gets an item as soon as it is taken, in the caller's thread, and gives what a thread is to do to open it.
    `launch` starts the device on some opened items and gives a function that waits for their results; an exception
    among those is raised when its turn comes. Where the device has no memory for that, `batch_size` is halved with a
    warning until it has. Opened items of close `likeness` share a batch; half of what is taken is sorted by it while
    the other half is opened.
    """

    def __init__(
        self,
        take: Callable[[Item], Callable[[], Opened]],
        launch: Callable[[Sequence[Opened]], Callable[[], Sequence[Result | Exception]]],
        *,
        batch_size: int,
        read_ahead: int,
        likeness: Callable[[Opened], float] = lambda _: 0.0,
    ) -> None:
        self._take = take
        self._launch = launch
        self.batch_size = batch_size
        self._read_ahead = read_ahead
        self._window = max(1, (read_ahead + 1) // 2)  # batches that are sorted together
        self._likeness = likeness
        self._num_taken = self._num_given = 0
        # Items by their numbers, on their way.
        self._opening: collections.deque[dict[int, Future[Opened]]] = collections.deque()
        self._batches: collections.deque[dict[int, Opened]] = collections.deque()
        self._launched: collections.deque[tuple[list[int], Callable[[], Sequence[Result | Exception]]]]
        self._launched = collections.deque()
        self._done: dict[int, Result | Exception] = {}

    def run(self, items: Iterable[Item]) -> Iterator[Result]:
        """One result an item, in order. An error, also of the items' own iterator, comes behind the results before it.

        When it ends, is closed or fails, no thread of it is left.
        """
        left = iter(items)
        pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "trocr_jax")
        try:
            while True:
                try:
                    self._fill(left, pool)
                except Exception as error:
                    left, self._done[self._num_taken] = iter(()), error
                while (self._batches or self._opening) and len(self._launched) < LAUNCHED:
                    self._launch_next()
                if self._launched:
                    self._wait()
                elif self._num_given not in self._done:
                    return
                while self._num_given in self._done:
                    result = self._done.pop(self._num_given)
                    if isinstance(result, Exception):
                        raise result
                    self._num_given += 1
                    yield result
        finally:
            pool.shutdown(cancel_futures=True)

    def _fill(self, left: Iterator[Item], pool: ThreadPoolExecutor) -> None:
        def held() -> int:
            return self._num_taken - self._num_given

        while held() + (size := self._window * self.batch_size) <= (self._read_ahead + 1) * self.batch_size:
            window: dict[int, Future[Opened]] = {}
            try:
                for item in itertools.islice(left, size):
                    window[self._num_taken] = pool.submit(self._take(item))
                    self._num_taken += 1
            finally:
                if window:  # some may be there before an error
                    self._opening.append(window)
            if not window:
                return

    def _launch_next(self) -> None:
        """Starts the device on the batch that holds the next result."""
        if not self._batches:
            opened: dict[int, Opened] = {}
            for number, item in self._opening.popleft().items():
                try:
                    opened[number] = item.result()
                except Exception as error:
                    self._done[number] = error
                    break
            order = iter(sorted(opened, key=lambda number: self._likeness(opened[number])))
            groups = [group for _ in opened if (group := list(itertools.islice(order, self.batch_size)))]
            self._batches.extend({i: opened[i] for i in group} for group in sorted(groups, key=min))
            if not self._batches:
                return
        batch = self._batches.popleft()
        try:
            self._launched.append((list(batch), self._started(list(batch.values()))))
        except Exception as error:
            self._done[min(batch)] = error

    def _wait(self) -> None:
        numbers, wait = self._launched.popleft()
        try:
            self._done |= zip(numbers, wait(), strict=True)
        except Exception as error:
            self._done[min(numbers)] = error

    def _started(self, batch: list[Opened]) -> Callable[[], Sequence[Result | Exception]]:
        """What waits for the batch's results, the device being at work on it meanwhile unless it has no room."""
        try:
            wait = self._launch(batch)
        except jax.errors.JaxRuntimeError as error:
            self._halve(len(batch), error)
            return lambda: self._in_parts(batch)

        def results() -> Sequence[Result | Exception]:
            try:
                return wait()
            except jax.errors.JaxRuntimeError as error:
                self._halve(len(batch), error)
            return self._in_parts(batch)

        return results

    def _in_parts(self, batch: list[Opened]) -> Sequence[Result | Exception]:
        results: list[Result | Exception] = []
        while batch:
            part, batch = batch[: self.batch_size], batch[self.batch_size :]
            results += self._started(part)()
        return results

    def _halve(self, size: int, error: jax.errors.JaxRuntimeError) -> None:
        """Makes batches smaller than `size` if the error is one of memory; raises it, or MemoryError at one image."""
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise error
        if size == 1:
            raise MemoryError(
                "the device has no memory for a single image: lower num_beams or max_new_tokens, load the model with "
                'dtype="bfloat16", or end what else uses the device'
            ) from error
        if size > self.batch_size:
            return  # launched before the size was halved
        self.batch_size = size // 2
        warnings.warn(
            f"the device has no memory for {size} images at a time: going on with batch_size={size // 2}", stacklevel=2
        )
