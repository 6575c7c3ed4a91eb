"""Batch after batch: threads open images ahead of the device, the device works ahead of the host, results in order.

While the device reads one batch, the next waits on it already, images of the one after that are opened by threads, and
the host makes results of the one before. Nothing else is taken from the input, which may have no end.
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
    `launch` starts the device on some opened items and gives a function that waits for their results. Where the device
    has no memory for that, `batch_size` is halved with a warning until it has.
    """

    def __init__(
        self,
        take: Callable[[Item], Callable[[], Opened]],
        launch: Callable[[Sequence[Opened]], Callable[[], list[Result]]],
        *,
        batch_size: int,
        read_ahead: int,
    ) -> None:
        self._take = take
        self._launch = launch
        self.batch_size = batch_size
        self._read_ahead = read_ahead
        self._opening: collections.deque[list[Future[Opened]]] = collections.deque()
        self._launched: collections.deque[Callable[[], list[Result]]] = collections.deque()

    def run(self, items: Iterable[Item]) -> Iterator[Result]:
        """One result an item, in order. An error, also of the items' own iterator, comes behind the results before it.

        When it ends, is closed or fails, no thread of it is left.
        """
        left, failure = iter(items), None
        pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "trocr_jax")
        try:
            while True:
                # Errors are raised below, behind the results of what came before.
                try:
                    self._fill(left, pool)
                except Exception as error:
                    left, failure = iter(()), error
                try:
                    while self._opening and len(self._launched) < LAUNCHED:
                        self._launched.append(self._started([image.result() for image in self._opening.popleft()]))
                except Exception as error:
                    left, failure = iter(()), error
                    self._opening.clear()
                if self._launched:
                    yield from self._launched.popleft()()
                elif failure is not None:
                    raise failure
                else:
                    return
        finally:
            pool.shutdown(cancel_futures=True)

    def _fill(self, left: Iterator[Item], pool: ThreadPoolExecutor) -> None:
        while len(self._opening) + len(self._launched) <= self._read_ahead:
            batch: list[Future[Opened]] = []
            try:
                for item in itertools.islice(left, self.batch_size):
                    batch.append(pool.submit(self._take(item)))  # noqa: PERF401 - some may be there before an error
            finally:
                if batch:
                    self._opening.append(batch)
            if not batch:
                return

    def _started(self, batch: list[Opened]) -> Callable[[], list[Result]]:
        """What waits for the batch's results, the device being at work on it meanwhile unless it has no room."""
        try:
            wait = self._launch(batch)
        except jax.errors.JaxRuntimeError as error:
            self._halve(len(batch), error)
            return lambda: self._in_parts(batch)

        def results() -> list[Result]:
            try:
                return wait()
            except jax.errors.JaxRuntimeError as error:
                self._halve(len(batch), error)
            return self._in_parts(batch)

        return results

    def _in_parts(self, batch: list[Opened]) -> list[Result]:
        results: list[Result] = []
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
