"""A program of a user who checks types strictly: `mypy --strict` passes it, and finds each mistake marked below.

tests/test_typing.py checks it, without the marked lines and with each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import trocr_jax
from trocr_jax.checkpoints.conversion import convert
from trocr_jax.datasets import Example, open_dataset
from trocr_jax.evaluation import Report, evaluate
from trocr_jax.training import FitResult, TrainingSettings, fit


def read(paths: list[Path]) -> Iterator[tuple[str, float]]:
    """Texts and confidences of images."""
    ocr = trocr_jax.TrOCR.from_pretrained("folder", dtype="float32", mesh=trocr_jax.make_mesh(model=1))
    constraint = trocr_jax.AllowedCharacters("0123456789") & trocr_jax.Pattern("[0-9]+")
    for line in ocr.stream(paths, batch_size=8, constraint=constraint, boxes="word", on_error="raise"):
        confidence: float | None = line.confidence
        yield line.text, 0.0 if confidence is None else confidence


def texts(ocr: trocr_jax.TrOCR, paths: list[str]) -> list[str]:
    """One image gives one result, several a list."""
    return [ocr(paths[0]).text, ocr(Path(paths[0]), num_beams=4).text, *(line.text for line in ocr(paths, boxes=True))]


def words(line: trocr_jax.Recognition) -> list[tuple[str, float, tuple[float, float, float, float] | None]]:
    """A result's words with their confidences and boxes."""
    return [(word.text, word.confidence, word.box) for word in line.words]


def train(folder: str) -> tuple[FitResult, Report]:
    """A model trained on a folder, and how well it reads."""
    lines: list[Example] = list(open_dataset(folder))
    settings = TrainingSettings(max_steps=10, schedule="cosine")
    result = fit(trocr_jax.TrOCR.from_pretrained(), lines, lines, "out", max_steps=settings.max_steps)
    return result, evaluate(result.ocr, lines, num_beams=4)


def reference(folder: Path) -> int:
    """The reference's classes."""
    model = trocr_jax.VisionEncoderDecoderModel.from_pretrained(folder, dtype="bfloat16")
    model.generation_config = model.generation_config.replace(num_beams=4)
    processor = trocr_jax.TrOCRProcessor.from_pretrained(folder)
    texts: list[str] = processor.batch_decode([[2, 5, 2]], skip_special_tokens=True)
    convert(folder, folder / "torch", to="torch")
    decoder: trocr_jax.TrOCRConfig = model.config.decoder
    return len(texts) + decoder.d_model


def mistakes(ocr: trocr_jax.TrOCR, line: trocr_jax.Recognition) -> None:
    """What is wrong: each of these lines alone is an error of the kind that stands behind it."""
    # ocr.stream(["a.png"], batch_size="8")  # arg-type
    # ocr.stream(["a.png"], on_error="ignore")  # arg-type
    # ocr.stream(["a.png"], boxes="line")  # arg-type
    # trocr_jax.Pattern(5)  # arg-type
    # ocr("a.png").texts  # attr-defined
    # ocr(["a.png"]).text  # attr-defined
    # line.text = "other"  # misc
    # round(line.confidence)  # arg-type
    # line.confidences  # attr-defined
    # trocr_jax.TrOCR.from_pretrained(3)  # arg-type
    # TrainingSettings(schedule="step")  # arg-type
    # trocr_jax.NoSuchClass  # attr-defined
    # convert("a", "b", to="onnx")  # arg-type
