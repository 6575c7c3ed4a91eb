"""The same pixels through transformers and this library: the largest error of each block, then ids and texts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from trocr_jax import TrOCR, VisionEncoderDecoderModel
from trocr_jax.checkpoints.conversion import convert
from trocr_jax.modeling.decoder import sinusoidal_table

# Rounding in float64 is about 1e-14; a wrong activation is 1e-4.
TOLERANCE = 1e-10


@dataclasses.dataclass(frozen=True)
class Report:
    """What was compared: the largest absolute difference of each block in float64, and whether ids and texts agree."""

    differences: dict[str, float]
    ids: dict[str, bool]
    texts: list[tuple[str, str]]  # (ours, transformers'), where there is a tokenizer

    @property
    def is_equal(self) -> bool:
        """Whether every block is within 1e-10 and all ids and texts are the same."""
        is_close = all(difference <= TOLERANCE for difference in self.differences.values())
        return is_close and all(self.ids.values()) and all(ours == theirs for ours, theirs in self.texts)

    def __str__(self) -> str:
        width = max(map(len, self.differences))
        lines = [f"{'block':{width}}  largest difference, float64"]
        lines += [
            f"{name:{width}}  {value:.1e}{'' if value <= TOLERANCE else '  differs'}"
            for name, value in self.differences.items()
        ]
        lines += [f"ids, {name}: {'equal' if same else 'DIFFERENT'}" for name, same in self.ids.items()]
        lines += [
            f"text: {ours!r}" if ours == theirs else f"text: {ours!r}, transformers {theirs!r}"
            for ours, theirs in self.texts
        ]
        return "\n".join([*lines, "equal" if self.is_equal else "NOT EQUAL"])


def verify(
    source: str | os.PathLike[str],
    images: Sequence[Any] = (),
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    max_new_tokens: int = 24,
) -> Report:
    """Compares a checkpoint in both frameworks, on CPU; the images are read, or two random ones without any.

    transformers gets the checkpoint as `convert(..., to="torch")` writes it. Raises what `convert` raises.
    """
    with tempfile.TemporaryDirectory() as folder, jax.default_device(jax.devices("cpu")[0]):
        convert(source, folder, to="torch", dtype="float32", tokenizer=tokenizer)
        oracle = load_oracle(pathlib.Path(folder))
        ocr = TrOCR.from_pretrained(folder, dtype="float32")
        if images:
            pixels = ocr.processor(list(images)).pixel_values
        else:
            encoder = ocr.config.encoder
            shape = (2, encoder.num_channels, *encoder.image_shape)
            pixels = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        ids, texts = _compare_ids(ocr, oracle, pixels, max_new_tokens, has_text=bool(images))
        return Report(_compare_blocks(pathlib.Path(folder), oracle, pixels, max_new_tokens), ids, texts)


def load_oracle(folder: pathlib.Path) -> Any:
    """Transformers' model of a folder, with its sinusoidal table, which loading leaves empty, filled in."""
    import transformers

    with _quiet(transformers.utils.logging):
        model = transformers.VisionEncoderDecoderModel.from_pretrained(folder).eval()
    positions = model.decoder.model.decoder.embed_positions
    if not model.config.decoder.use_learned_position_embeddings:
        import torch

        # Ours, so that what is compared is the network: numpy and torch round sines differently in float32.
        positions.weights = torch.from_numpy(sinusoidal_table(*positions.weights.shape, positions.padding_idx))
    return model


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without transformers' bar and its report that the pooler, which no TrOCR has, is missing."""
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def _compare_ids(
    ocr: TrOCR, oracle: Any, pixels: np.ndarray, max_new_tokens: int, *, has_text: bool
) -> tuple[dict[str, bool], list[tuple[str, str]]]:
    import torch

    ids, texts = {}, []
    for name, beams in (("greedy", 1), ("4 beams", 4)):
        options = {"num_beams": beams, "max_new_tokens": max_new_tokens}
        ours = ocr.generate(pixels, **options).sequences
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about max_length and max_new_tokens both being set
            theirs = oracle.generate(torch.from_numpy(pixels), **options).numpy()
        ids[name] = np.array_equal(ours, theirs)
        if has_text:
            texts += zip(
                *(ocr.processor.batch_decode(rows, skip_special_tokens=True) for rows in (ours, theirs)), strict=True
            )
    return ids, texts


def _compare_blocks(folder: pathlib.Path, oracle: Any, pixels: np.ndarray, num_tokens: int) -> dict[str, float]:
    import torch

    was_on = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", True)
    try:
        model = VisionEncoderDecoderModel.from_pretrained(folder, dtype="float64")
        model.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
        vocab_size, positions = model.config.decoder.vocab_size, model.config.decoder.max_position_embeddings
        # Any ids but pads: transformers counts sinusoidal positions of pads differently with a cache and without.
        ids = np.random.default_rng(1).integers(3, vocab_size, (len(pixels), min(num_tokens, positions)))
        ours = model(pixels.astype(np.float64), ids, output_hidden_states=True)
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels.astype(np.float64)), torch.from_numpy(ids)
            theirs = oracle.double()(*inputs, output_hidden_states=True)
        return {
            name: float(np.abs(np.asarray(mine) - reference.numpy()).max())
            for name, mine, reference in _blocks(ours, theirs)
        }
    finally:
        jax.config.update("jax_enable_x64", was_on)


def _blocks(ours: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
    for side in ("encoder", "decoder"):
        pairs = zip(getattr(ours, f"{side}_hidden_states"), getattr(theirs, f"{side}_hidden_states"), strict=True)
        for i, (mine, reference) in enumerate(pairs):
            yield f"{side} {'embeddings' if i == 0 else f'block {i}'}", mine, reference
        if side == "encoder":
            yield "encoder output", ours.encoder_last_hidden_state, theirs.encoder_last_hidden_state
    yield "logits", ours.logits, theirs.logits
