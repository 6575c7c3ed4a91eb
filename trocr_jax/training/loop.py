"""`fit`: fine-tunes a recogniser on lines with known texts, and goes on where it was interrupted.

B images of a batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from trocr_jax.datasets.augmentation import Augmentation, AugmentationName, augmentation_of
from trocr_jax.datasets.given import Lines, examples_of
from trocr_jax.opening import pixel_values
from trocr_jax.processing.tokenizer import TrOCRTokenizer
from trocr_jax.recognizer import TrOCR
from trocr_jax.sharding import fetch, shard_rows
from trocr_jax.training.checkpoints import Checkpoints, Progress
from trocr_jax.training.history import History, draw_curves
from trocr_jax.training.lora import save_adapters
from trocr_jax.training.plan import ADAPTERS_NAME, CHECKPOINTS, Plan
from trocr_jax.training.settings import TrainingSettings
from trocr_jax.training.step import StepMetrics, TrainState
from trocr_jax.training.validation import tell_of_lines_in_both, validate

LOG_NAME, CURVES_NAME = "log.csv", "curves.png"
LOG_EVERY = 10


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a training gave: the recogniser with the best weights, and CERs of the validation lines.

    `first_cer` is the CER before training; the best weights were those behind step `best_step`, 0 if none was better.
    Of `num_steps` steps, at most `max_steps`, `num_skipped` changed nothing: they were not finite, or without a label.
    """

    ocr: TrOCR
    first_cer: float
    best_cer: float
    best_step: int
    num_steps: int
    num_skipped: int
    max_steps: int

    @classmethod
    def of(cls, ocr: TrOCR, progress: Progress, num_skipped: int, *, max_steps: int) -> FitResult:
        """The result of a training that ended there."""
        assert progress.first_cer is not None
        assert progress.best_cer is not None
        cers = progress.first_cer, progress.best_cer
        return cls(ocr, *cers, progress.best_step, progress.step, num_skipped, max_steps)

    @property
    def is_early(self) -> bool:
        """Whether patience ended it."""
        return self.num_steps < self.max_steps


def fit(
    ocr: TrOCR,
    train: Lines,
    validation: Lines,
    output: str | os.PathLike[str],
    *,
    augment: Augmentation | AugmentationName | None = None,
    resume: bool = False,
    tokenizer: TrOCRTokenizer | str | os.PathLike[str] | None = None,
    add_characters: str | None = None,
    tell: Callable[[str], None] | None = None,
    **options: Any,
) -> FitResult:
    """Trains a copy of the recogniser's weights; `output` then loads with `TrOCR.from_pretrained`.

    `train` and `validation` are paths as `open_dataset` takes them, or iterables of Examples or of (image, text) pairs,
    an image being whatever a recogniser reads; those in memory are known by their numbers.

    At any moment `output` holds the weights with the lowest CER on `validation` (read by generation) so far, those of
    the start among them, and in `training/` a log (CSV), the settings, checkpoints, and at the end the curves (PNG). Of
    adapters (see `lora.py`) it holds the merged weights, and themselves in `training/adapters.safetensors`. `options`
    are those of TrainingSettings. Which example comes when, and what `augment` ("da2", "randaugment", or a function of
    an RGB image and a numpy Generator that returns one) makes of it, depend on the seed alone. With `resume` a training
    that was interrupted, or killed, goes on from its last checkpoint, on CPU to the bit as if it had not been. Batches
    are divided over the recogniser's devices, each of which holds the whole weights and the optimizer's state, or with
    `fsdp` its part of them.

    `tokenizer`, ready or its folder, takes the place of the recogniser's, and `add_characters` get a token each: the
    characters themselves, or "auto" for those of the training lines that the tokenizer cannot spell, or spells in
    several tokens and meets 10 times or more (see `vocabulary.py`). What it makes of the lines, before and after, is
    written to `training/coverage.json`, and each line of a report on it is given to `tell`, as is one on validation
    lines that are trained on.

    Several processes train together where the recogniser's mesh has all devices of all of them: call
    `jax.distributed.initialize` first, load the recogniser with `mesh=make_mesh(jax.devices())`, and make the same call
    in each, with an `output` that all see. See `processes.py`.

    Training lines with texts over the model's length, and lines whose images cannot be read, are left out with a
    warning. Raises TypeError for unknown options and for what are no lines, ValueError for settings that do not fit or,
    on resuming, data or settings other than before, and FileExistsError where `output` holds a model, or a training
    with a checkpoint and `resume` is not asked for. MemoryError says what takes less.
    """
    settings = _settings(options)
    augmentation = augmentation_of(augment, ocr.processor.image_processor.size)
    lines = list(examples_of(train, "training")), list(examples_of(validation, "validation"))
    vocabulary: dict[str, Any] = {"tokenizer": tokenizer, "add_characters": add_characters}
    plan = Plan.of(ocr, *lines, output, settings, augment=augmentation, **vocabulary)
    with _memory_told():
        step, state = plan.step(), plan.first_state()
    plan.claim(resume=resume)
    if tell is not None and plan.team.leads:
        for line in (*plan.vocabulary.lines(), *tell_of_lines_in_both(*lines)):
            tell(line)
    with Checkpoints(plan.folder / CHECKPOINTS, keep=plan.settings.keep) as checkpoints, _memory_told():
        state, progress = checkpoints.latest(state) or (state, Progress())
        history = History(plan.folder / LOG_NAME, last_step=progress.step or -1, is_written=plan.team.leads)
        state, progress = _Loop(plan, step, history, checkpoints).run(state, progress)
    if plan.team.leads:
        draw_curves(history.rows, plan.folder / CURVES_NAME)
    plan.team.meet("trained")
    best = TrOCR.from_pretrained(plan.output, dtype=ocr.model.policy.name, mesh=ocr.mesh)
    return FitResult.of(best, progress, int(state.num_skipped), max_steps=plan.settings.max_steps or 0)


@contextlib.contextmanager
def _memory_told() -> Iterator[None]:
    """Where the device has no room, a MemoryError says what takes less."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(
            "the device has no memory for this training: lower batch_size, raise accumulate, or (not on CPU) set remat"
        ) from error


def _settings(options: Mapping[str, Any]) -> TrainingSettings:
    """The settings that `fit` was called with. Raises TypeError for names that are none of its own or theirs."""
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    if unknown := sorted(options.keys() - names):
        keywords = inspect.signature(fit).parameters.values()
        supported = sorted(names | {option.name for option in keywords if option.kind is option.KEYWORD_ONLY})
        near = difflib.get_close_matches(unknown[0], supported, n=1)
        meant = f"; is {near[0]!r} meant?" if near else "."
        raise TypeError(f"unknown options of fit {unknown}{meant} There are {supported}")
    return TrainingSettings(**options)


class _Loop:
    """The steps of a training, and what happens between them."""

    def __init__(self, plan: Plan, step: Any, history: History, checkpoints: Checkpoints) -> None:
        self._plan, self._step, self._history, self._checkpoints = plan, step, history, checkpoints
        self._schedule = jax.jit(plan.schedule())  # or each of its operations would be a program of its own
        self._last_step = plan.settings.max_steps or 0
        # Of several processes each reads its part of the validation lines, on its own devices.
        self._reader = plan.ocr if plan.team.size == 1 else plan.ocr.on(None)
        self._restart()

    def _restart(self) -> None:
        """The clock starts anew, and there is nothing to log."""
        self._pending: list[StepMetrics] = []
        self._start = time.perf_counter()

    def run(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Trains to the end; what it returns has a checkpoint, or is being written to one."""
        batches = self._plan.batches
        if progress.first_cer is None:
            progress = self._evaluated(state, progress, {"step": 0})
        if self._is_over(progress):
            return state, progress
        with self._bar(progress) as bar:
            self._restart()
            for batch in batches.stream(progress.step, self._last_step):
                for error in batch.unread:
                    warnings.warn(f"trained without a line: {error}", stacklevel=2)
                found = batch.levels, batch.labels
                levels, labels = shard_rows(found, self._plan.ocr.mesh, batches.batch_size)
                state, metrics = self._step(state, pixel_values(levels, batches.image_processor), labels)
                self._pending.append(metrics)
                bar.update()
                progress = dataclasses.replace(progress, step=progress.step + 1)
                progress = self._between_steps(state, progress, bar)
                if self._is_over(progress):
                    break
        return state, progress

    def _bar(self, progress: Progress) -> tqdm:
        is_hidden = not (sys.stderr.isatty() and self._plan.team.leads)
        return tqdm(total=self._last_step, initial=progress.step, unit="step", file=sys.stderr, disable=is_hidden)

    def _is_over(self, progress: Progress) -> bool:
        patience = self._plan.settings.patience
        return progress.step >= self._last_step or 0 < patience <= progress.num_worse

    def _between_steps(self, state: TrainState, progress: Progress, bar: tqdm) -> Progress:
        """Logs, evaluates and saves, as far as that is due behind this step."""
        settings, number = self._plan.settings, progress.step
        is_evaluated = number == self._last_step or number % (settings.eval_every or 1) == 0
        is_saved = number % (settings.checkpoint_every or 1) == 0
        if not (is_evaluated or is_saved or number % LOG_EVERY == 0):
            return progress
        *rows, last = self._rows(number)
        for row in rows:
            self._history.add(row)
        if is_evaluated:
            progress = self._evaluated(state, progress, last)
        else:
            self._history.add(last)
        # Weights that are the model by now have one too: training that goes on from before would replace them.
        if is_saved or progress.best_step == number or self._is_over(progress):
            self._checkpoints.save(state, progress)
        loss = float(np.mean([row["loss"] for row in (*rows, last)]))
        bar.set_postfix(loss=f"{loss:.3f}", cer=progress.last_cer, images=f"{last['images_per_second']}/s")
        self._restart()
        return progress

    def _rows(self, number: int) -> list[dict[str, float]]:
        """What the log says of the steps since it was last written, up to this one, behind waiting for the device."""
        pending: list[StepMetrics] = jax.device_get(self._pending)
        seconds, batches = time.perf_counter() - self._start, self._plan.batches
        rows: list[dict[str, float]] = []
        for step, metrics in enumerate(pending, number - len(pending) + 1):
            updates = step - int(metrics.num_skipped) - (1 if metrics.is_updated else 0)
            rows.append(
                {
                    "step": step,
                    "epoch": round(step * batches.batch_size / len(batches.examples), 4),
                    "loss": float(metrics.loss),
                    "learning_rate": float(self._schedule(updates)),
                    "grad_norm": float(metrics.grad_norm),
                    "skipped_steps": int(metrics.num_skipped),
                }
            )
        rows[-1]["images_per_second"] = round(len(rows) * batches.batch_size / seconds, 2)
        return rows

    def _evaluated(self, state: TrainState, progress: Progress, row: Mapping[str, float]) -> Progress:
        """Reads the validation lines; weights that read better than all before are saved as the model."""
        plan = self._plan
        # Copies: the next step overwrites the buffers, which on CPU numpy would look at.
        params = jax.tree.map(np.array, fetch(state.averaged_params))
        adapters = None if plan.settings.lora is None else fetch(state.trainable if state.ema is None else state.ema)
        reader = self._reader.with_params(params, generation_config=plan.generation_config)
        cer = validate(reader, plan.validation, num_beams=plan.settings.num_beams, team=plan.team)
        progress = progress.evaluated(cer)
        if progress.best_step == progress.step and plan.team.leads:
            reader.save_pretrained(plan.output)
            if adapters is not None:
                save_adapters(adapters, state.lora_scale, plan.folder / ADAPTERS_NAME)
        self._history.add({**row, "cer": cer})
        return progress
