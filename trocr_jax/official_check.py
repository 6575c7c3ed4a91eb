"""A model of the registry against its published logits: the proof that real weights compute here as they should."""

from __future__ import annotations

import os
import pathlib
import re
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trocr_jax import registry
from trocr_jax.checkpoints.hub import dataset_file
from trocr_jax.findings import Finding

if TYPE_CHECKING:
    from trocr_jax.recognizer import TrOCR

FIXTURES = "hf-internal-testing/fixtures_ocr"


def official_name(source: str) -> str | None:
    """The registry's name of an official model's id, of a folder of that name, or of its place in the hub's cache."""
    path = pathlib.Path(source)
    if not path.is_dir():
        owner, _, name = source.partition("/")
        return name if owner == "microsoft" and name in registry.OFFICIAL else None
    parts = path.resolve().parts
    cached = (match[1] for part in parts if (match := re.fullmatch(r"models--microsoft--(.+)", part)))
    name = next(cached, parts[-1] if parts else "")
    return name if name in registry.OFFICIAL else None


def check_model(source: str) -> Finding:
    """Loads a model in float32 and, if logits of it were published, computes those of the documented image."""
    from trocr_jax.recognizer import TrOCR

    details = {"source": source}
    try:
        ocr = TrOCR.from_pretrained(source, dtype="float32")
    except (ValueError, OSError) as error:
        advice = f"see what there is with `trocr-jax inspect {source}`"
        if isinstance(error, FileNotFoundError) and not os.path.exists(source):
            advice = "pass --model a folder that is there, or the id of a model on the hub (org/name)"
        return Finding("model", "broken", f"{source} cannot be loaded: {error}", advice, details)
    name = official_name(source)
    golden = registry.GOLDEN_LOGITS.get(name or "")
    told = f"{source} loads; it has {registry.summary(ocr.config)}"
    if golden is None:
        known = ", ".join(registry.GOLDEN_LOGITS)
        advice = f"nothing to compare its numbers with; there are published logits of {known}"
        return Finding("model", "note", f"{told}; no logits of it were published", advice, details)
    try:
        image = dataset_file(FIXTURES, golden.image)
    except OSError as error:
        advice = f"connect to the hub once: the comparison needs {golden.image} of its dataset {FIXTURES}"
        return Finding("model", "note", f"{told}; its logits were not compared: {error}", advice, details)
    return _compared(told, ocr, golden, image)


def _compared(told: str, ocr: TrOCR, golden: registry.GoldenLogits, path: pathlib.Path) -> Finding:
    with Image.open(path) as image:
        pixels = ocr.processor(image.convert("RGB"))["pixel_values"]
    logits = np.asarray(ocr.logits(pixels, [[ocr.generation_config.start_token_id]]))[0, 0]
    difference = float(np.abs(logits[: len(golden.logits)] - np.asarray(golden.logits)).max())
    details = {"source": ocr.source, "largest_difference": difference, "tolerance": golden.tolerance}
    if difference <= golden.tolerance:
        told += f"; its logits of {golden.image} are within {difference:.1g} of the published ones"
        return Finding("model", "ok", f"{told} ({golden.tolerance:g} is allowed)", details=details)
    told += f"; its logits of {golden.image} are off by {difference:.3g}, {golden.tolerance:g} is allowed"
    advice = (
        "if the arithmetic above is ok, these are other weights (a fine-tune, a damaged or changed file): download the "
        "model again, with force_download=True"
    )
    return Finding("model", "broken", told, advice, details)
