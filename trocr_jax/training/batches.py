"""Batches without end, in an order that depends on a seed alone, their images opened by threads ahead of time.

A training is a walk through places 0, 1, 2, ...: place p holds example permutation[p % N] of epoch p // N, whose order
and augmentation are drawn from (seed, epoch). Step s takes places s*B to s*B + B - 1, whatever came before, so that to
resume nothing but the number of the step has to be known, and N need not be a multiple of B.

N examples, B images of a batch, T target tokens.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from trocr_jax.datasets.augmentation import Augmentation
from trocr_jax.datasets.example import Example
from trocr_jax.engine import MAX_THREADS
from trocr_jax.modeling.loss import IGNORED_LABEL
from trocr_jax.processing.image import ImageError, ImageProcessor, load_rgb

# Batches that are opened beyond the one that is being waited for.
READ_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Batch:
    """Levels uint8 [R, height, width, 3] at the model's size, labels int32 [R, T], and why images could not be read.

    R are the rows of the batch that this process trains on, all B where it is alone. The row of an unread image is
    black, and none of its labels count.
    """

    levels: np.ndarray
    labels: np.ndarray
    unread: tuple[ImageError, ...] = ()


@dataclasses.dataclass(frozen=True)
class Batches:
    """All batches of a training; `labels` int32 [N, T] go with the examples."""

    examples: Sequence[Example]
    labels: np.ndarray
    image_processor: ImageProcessor
    batch_size: int
    seed: int
    augment: Augmentation | None = None
    rows: Sequence[int] | None = None  # those of a batch that are opened here; None for all

    def of_step(self, step: int) -> list[tuple[int, int]]:
        """(epoch, example's index) of each image of a step that is opened here."""
        rows = range(self.batch_size) if self.rows is None else self.rows
        return [self._at(step * self.batch_size + row) for row in rows]

    def stream(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of steps `first_step` up to but not `last_step`; no thread is left when it ends or is closed.

        Raises ImageError where as many images as there are examples, one after the other, cannot be read.
        """
        num_unread = 0
        opening: collections.deque[list[tuple[int, Future[np.ndarray]]]] = collections.deque()
        pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "trocr_jax")
        try:
            for step in range(first_step, last_step + READ_AHEAD):
                if step < last_step:
                    opening.append([(i, pool.submit(self._open, epoch, i)) for epoch, i in self.of_step(step)])
                if step >= first_step + READ_AHEAD or step >= last_step:
                    if not opening:
                        return
                    batch = self._batch(opening.popleft())
                    num_unread = num_unread + len(batch.unread) if len(batch.unread) == len(batch.labels) else 0
                    if num_unread >= len(self.examples):
                        raise batch.unread[0]
                    yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _at(self, place: int) -> tuple[int, int]:
        epoch, offset = divmod(place, len(self.examples))
        return epoch, int(_permutation(len(self.examples), self.seed, epoch)[offset])

    def _open(self, epoch: int, index: int) -> np.ndarray:
        example = self.examples[index]
        image = example.open()
        if image.mode != "RGB":  # as when it is read
            image = load_rgb(image, name=example.name)
        if self.augment is not None:
            image = self.augment(image, np.random.default_rng([self.seed, epoch, index]))
        return self.image_processor.levels(image)

    def _batch(self, opening: Sequence[tuple[int, Future[np.ndarray]]]) -> Batch:
        labels = self.labels[[index for index, _ in opening]]
        levels: list[np.ndarray | None] = []
        unread = []
        for row, (_, future) in enumerate(opening):
            try:
                levels.append(future.result())
            except ImageError as error:
                levels.append(None)
                unread.append(error)
                labels[row] = IGNORED_LABEL
        processor = self.image_processor
        black = np.zeros((*(processor.crop_size if processor.do_center_crop else processor.size), 3), np.uint8)
        return Batch(np.stack([black if level is None else level for level in levels]), labels, tuple(unread))


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
