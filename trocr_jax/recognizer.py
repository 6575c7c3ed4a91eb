"""TrOCR: the one door. Images in, text out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from trocr_jax.checkpoints.hub import local_folder
from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.decoding.generate import GenerationOutput, bucket
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, apply
from trocr_jax.models import VisionEncoderDecoderModel
from trocr_jax.processing.image import ImageError, as_list, describe, is_single
from trocr_jax.processing.processor import TrOCRProcessor
from trocr_jax.results import Recognition

EMBEDDED = pathlib.Path(__file__).parent / "assets" / "trocr-nano-printed"

OnError = Literal["return", "raise"]


class TrOCR:
    """A text-line recogniser: a checkpoint's network, processor and generation settings.

    >>> ocr = TrOCR.from_pretrained()                       # the small embedded model
    >>> ocr(["a.png", "b.png"], num_beams=4)                # a Recognition each, in order
    """

    def __init__(self, network: VisionEncoderDecoderModel, processor: TrOCRProcessor) -> None:
        self._network = network
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str] | None = None, *, dtype: str = "auto", **hub_options: Any
    ) -> TrOCR:
        """The recogniser of a folder or hub id ("org/name"); without one, of the small model inside this package.

        `dtype` is "float32" (strict), "bfloat16", "float64" (where x64 is on) or "auto": float32 on CPU, bfloat16
        elsewhere. `hub_options` are revision, token, cache_dir, local_files_only and force_download. Raises ValueError
        for a model that is not supported or does not fit its configuration, FileNotFoundError or OSError where there
        is nothing to load. A folder without tokenizer files loads; only text then fails.
        """
        folder = local_folder(EMBEDDED if source is None else source, **hub_options)
        network = VisionEncoderDecoderModel.from_pretrained(folder, dtype=dtype)
        return cls(network, TrOCRProcessor.from_pretrained(folder))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes weights, configurations, preprocessing and tokenizer; `from_pretrained` reads the same bits back."""
        self._network.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @property
    def config(self) -> VisionEncoderDecoderConfig:
        """The architecture."""
        return self._network.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The checkpoint's generation settings, which a call's options go on top of."""
        return self._network.generation_config

    @property
    def params(self) -> Mapping[str, Any]:
        """The canonical parameter tree, in the dtype of the file."""
        return self._network.params

    @property
    def model(self) -> VisionEncoderDecoder:
        """The linen module that goes with `params`: `ocr.model.apply({"params": ocr.params}, pixel_values, ids)`."""
        return self._network.module

    def __call__(
        self, images: Any, *, batch_size: int | None = None, on_error: OnError = "return", **options: Any
    ) -> Any:
        """What is written in the images: a list of Recognition in order, or one for a single image.

        An image is a path, a PIL image or an array ([h, w], [h, w, C] or [C, h, w]; uint8, 16-bit, bool, or floats in
        [0, 1]). `options` are fields of GenerationConfig, such as num_beams=4 or max_new_tokens=64. An image that
        cannot be read gives a Recognition with `error`, or raises ImageError with on_error="raise".
        """
        found = list(self.stream(as_list(images), batch_size=batch_size, on_error=on_error, **options))
        return found[0] if is_single(images) else found

    def stream(
        self, images: Iterable[Any], *, batch_size: int | None = None, on_error: OnError = "return", **options: Any
    ) -> Iterator[Recognition]:
        """Recognitions in the images' order, each batch as soon as it is read; arguments as in a call."""
        if on_error not in ("return", "raise"):
            raise ValueError(f'on_error is {on_error!r}; choose "return" or "raise"')
        tokenizer, size = self.processor.tokenizer, batch_size or default_batch_size()
        if size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        del tokenizer  # asked for only so that a missing one is known before the first batch is read
        return itertools.chain.from_iterable(self._read(batch, on_error, options) for batch in _batches(images, size))

    def _read(self, images: Sequence[Any], on_error: OnError, options: Mapping[str, Any]) -> list[Recognition]:
        results: list[Recognition | None] = []
        pixels = []
        for image in images:
            try:
                pixels.append(self.processor.image_processor.pixels(image))
                results.append(None)
            except ImageError as error:
                if on_error == "raise":
                    raise
                results.append(Recognition("", finish_reason="error", error=str(error), source=_source(image)))
        if pixels:
            read = iter(self._recognitions(self.generate(np.stack(pixels), **options), len(pixels)))
            results = [next(read) if result is None else result for result in results]
        return [
            _with_source(result, _source(image))
            for result, image in zip(results, images, strict=True)
            if result is not None
        ]

    def _recognitions(self, output: GenerationOutput, batch: int) -> list[Recognition]:
        """One an image, further hypotheses as its alternatives."""
        first = output.sequences.shape[1] - output.token_log_probs.shape[1]
        rows = []
        for row, count in enumerate(output.num_tokens):
            ids = output.sequences[row, first : first + count]
            score = None if output.sequences_scores is None else float(output.sequences_scores[row])
            rows.append(
                Recognition(
                    text=self.processor.decode(ids, skip_special_tokens=True),
                    token_ids=tuple(int(i) for i in ids),
                    token_log_probs=tuple(float(p) for p in output.token_log_probs[row, :count]),
                    sequence_score=score,
                    finish_reason="length" if output.is_truncated[row] else "eos",
                )
            )
        per_image = len(rows) // batch
        groups = [rows[i : i + per_image] for i in range(0, len(rows), per_image)]
        return [_with_alternatives(group) for group in groups]

    def generate(
        self,
        pixel_values: Any = None,
        *,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        decoder_input_ids: Any = None,
        **options: Any,
    ) -> GenerationOutput:
        """Token ids and scores for a batch: `sequences` [B*R, length] int32, start token and padding as transformers'.

        pixel_values [B, 3, height, width], or encoder_hidden_states [B, S, E] from `encode` with an optional
        encoder_attention_mask [B, S]; decoder_input_ids [B, P] are a prompt to continue. `options` are
        fields of GenerationConfig; R is num_return_sequences. Raises ValueError before anything is compiled.
        """
        output = self._network.generate(
            pixel_values,
            return_dict_in_generate=True,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            decoder_input_ids=decoder_input_ids,
            **options,
        )
        assert isinstance(output, GenerationOutput)
        return output

    def encode(self, pixel_values: Any) -> jax.Array:
        """Encoder states [B, S, E] of pixel_values [B, 3, height, width], before any bridge projection."""
        model, params = self._network.runtime
        return _encode(params, pixel_values, model=model)

    def logits(self, pixel_values: Any, decoder_input_ids: Any) -> jax.Array:
        """Logits [B, T, V] of the token behind each of decoder_input_ids [B, T]; pads are tokens like any other."""
        model, params = self._network.runtime
        ids = np.asarray(decoder_input_ids)
        decoder = self.config.decoder
        if ids.min() < 0 or ids.max() >= decoder.vocab_size or ids.shape[1] > decoder.max_position_embeddings:
            raise ValueError(
                f"decoder_input_ids of shape {list(ids.shape)} range from {ids.min()} to {ids.max()}; this model takes "
                f"up to {decoder.max_position_embeddings} ids from 0 to {decoder.vocab_size - 1}"
            )
        return _logits(params, pixel_values, ids, model=model)

    def warmup(self, *, batch_sizes: Iterable[int] = (1,), **options: Any) -> None:
        """Compiles (or loads from the compilation cache) what calls with these batch sizes and options will run."""
        encoder = self.config.encoder
        for size in sorted({bucket(size) for size in batch_sizes}):
            shape = (size, encoder.num_channels, *encoder.image_shape)
            self.generate(np.zeros(shape, np.float32), **options)


def default_batch_size() -> int:
    """Images a batch where none is asked for: 8 on CPU, 64 on GPU and TPU."""
    return 8 if jax.default_backend() == "cpu" else 64


@functools.partial(jax.jit, static_argnames=("model",))
def _encode(params: Mapping[str, Any], pixel_values: jax.Array, *, model: VisionEncoderDecoder) -> jax.Array:
    return apply(model, params, pixel_values, method="encode").last_hidden_state


@functools.partial(jax.jit, static_argnames=("model",))
def _logits(
    params: Mapping[str, Any], pixel_values: jax.Array, ids: jax.Array, *, model: VisionEncoderDecoder
) -> jax.Array:
    return apply(model, params, pixel_values, ids)


def _batches(images: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(images)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _source(image: Any) -> str | None:
    return describe(image) if isinstance(image, str | os.PathLike) else None


def _with_source(result: Recognition, source: str | None) -> Recognition:
    alternatives = tuple(_with_source(alternative, source) for alternative in result.alternatives)
    return dataclasses.replace(result, source=source, alternatives=alternatives)


def _with_alternatives(hypotheses: Sequence[Recognition]) -> Recognition:
    # A slot without tokens was filled by no hypothesis.
    return dataclasses.replace(hypotheses[0], alternatives=tuple(h for h in hypotheses[1:] if h.token_ids))
