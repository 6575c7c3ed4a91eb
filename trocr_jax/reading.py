"""From opened images to results: one call's settings, and what it does with each batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from trocr_jax.alignment import attention_of_best, locate_characters
from trocr_jax.calibration import Calibration
from trocr_jax.decoding.generate import GenerationOutput, launch
from trocr_jax.decoding.shapes import bucket
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.models import VisionEncoderDecoderModel
from trocr_jax.opening import OpenedImage, to_device
from trocr_jax.processing.image import ImageProcessor
from trocr_jax.processing.processor import TrOCRProcessor
from trocr_jax.processing.spans import decode_with_spans
from trocr_jax.results import Recognition, find_words

OnError = Literal["return", "raise"]
Boxes = Literal[False, True, "word", "char"]


def check_choices(
    on_error: Any, batch_size: int | None, read_ahead: int | None, boxes: Any, reject_below: float | None
) -> None:
    """Raises ValueError for an argument of `stream` that is none of its choices."""
    if on_error not in ("return", "raise"):
        raise ValueError(f'on_error is {on_error!r}; choose "return" or "raise"')
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size!r}; it must be an int of at least 1")
    if read_ahead is not None and (not isinstance(read_ahead, int) or read_ahead < 0):
        raise ValueError(f"read_ahead is {read_ahead!r}; it is a number of batches, 0 or more")
    if boxes not in (False, True, "word", "char"):
        raise ValueError(f'boxes is {boxes!r}; choose True ("word"), "char" or False')
    if reject_below is not None and not 0 <= reject_below <= 1:
        raise ValueError(f"reject_below is {reject_below!r}; a confidence is a probability, from 0 to 1")


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one call reads with: a model, and how.

    `settings` are generation's and `options` what the call has set otherwise, `key` is what sampling draws from.
    """

    network: VisionEncoderDecoderModel
    processor: TrOCRProcessor
    image_processor: ImageProcessor
    calibration: Calibration | None
    on_error: OnError
    boxes: Boxes
    key: Any
    settings: GenerationConfig
    options: Mapping[str, Any]

    def launch(self, images: Sequence[OpenedImage]) -> Callable[[], list[Recognition | Exception]]:
        """Starts the device on those that can be read -> what waits for one result an image, in order.

        With on_error="raise" the result of an image that cannot be read is its error.
        """
        opened = [image for image in images if image.levels is not None]
        wait = self._start(opened) if opened else list

        def results() -> list[Recognition | Exception]:
            read = iter(wait())
            found: list[Recognition | Exception] = []
            for image in images:
                error = image.error if self.on_error == "raise" else None
                found.append(error or image.unread or next(read))
            return found

        return results

    def _start(self, images: Sequence[OpenedImage]) -> Callable[[], list[Recognition]]:
        """As `launch`; with boxes, the search and they share the encoder's states."""
        levels = [image.levels for image in images if image.levels is not None]
        rows = bucket(len(images), self.network.num_parts)
        pixels = to_device(levels, rows, self.image_processor, self.network.mesh)
        states = self.network.encode(pixels) if self.boxes else None
        wait = launch(
            *self.network.runtime,
            self.settings,
            pixel_values=pixels if states is None else None,
            encoder_hidden_states=states,
            key=self.key,
            image_numbers=[image.number for image in images],
            constraints=[image.automaton for image in images],
            num_images=len(images),
            options=self.options,
        )

        def results() -> list[Recognition]:
            output = wait()
            lines = self._recognitions(output, [image.source for image in images])
            return lines if states is None else self._with_boxes(lines, images, states, output)

        return results

    def _with_boxes(
        self, lines: list[Recognition], images: Sequence[OpenedImage], states: jax.Array, output: GenerationOutput
    ) -> list[Recognition]:
        """The results with boxes for the best text of each image."""
        attentions = attention_of_best(*self.network.runtime, states, output, len(lines))
        patch_width = self.network.config.encoder.patch_shape[1]
        for i, (attention, image) in enumerate(zip(attentions, images, strict=True)):
            assert image.ink is not None
            middles = (np.arange(attention.shape[1]) + 0.5) * patch_width
            places = self.image_processor.to_original(middles, image.ink.shape[1])
            text, spans = decode_with_spans(self.processor.tokenizer, lines[i].token_ids)
            boxes = locate_characters(text, spans, attention, places, image.ink)
            lines[i] = lines[i].with_boxes(boxes, of_characters=self.boxes == "char")
        return lines

    def _recognitions(self, output: GenerationOutput, sources: Sequence[str | None]) -> list[Recognition]:
        """One an image, further hypotheses as its alternatives."""
        per_image = len(output.num_tokens) // len(sources)
        results = []
        for i, source in enumerate(sources):
            rows = [self._recognition(output, row, source) for row in range(i * per_image, (i + 1) * per_image)]
            # A hypothesis without tokens is a slot that the search could not fill.
            others = tuple(row for row in rows[1:] if row.token_ids)
            results.append(dataclasses.replace(rows[0], alternatives=others))
        return results

    def _recognition(self, output: GenerationOutput, row: int, source: str | None) -> Recognition:
        count = int(output.num_tokens[row])
        if count == 0:
            image = "" if source is None else f"{source}: "
            error = (
                f"{image}no text was left: the options, or they and the constraint together, close every way that the "
                "search took (more beams take more), or the weights are damaged"
            )
            return Recognition("", finish_reason="error", error=error, source=source)
        start = output.sequences.shape[1] - output.token_log_probs.shape[1]
        ids = output.sequences[row, start : start + count]
        text, spans = decode_with_spans(self.processor.tokenizer, ids)
        log_probs = tuple(float(p) for p in output.token_log_probs[row, :count])
        line = Recognition(
            text=text,
            token_ids=tuple(int(i) for i in ids),
            token_log_probs=log_probs,
            words=find_words(text, spans, log_probs),
            sequence_score=None if output.sequences_scores is None else float(output.sequences_scores[row]),
            finish_reason="length" if output.is_truncated[row] else "eos",
            source=source,
        )
        return line if self.calibration is None else line.calibrated(self.calibration)
