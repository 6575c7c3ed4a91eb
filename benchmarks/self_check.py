"""Writes the logits that `trocr-jax doctor` compares with: transformers', in float64, with the embedded weights.

usage: python -m benchmarks.self_check [--output FILE]

Stored are the ids of the text read greedily from trocr_jax/assets/self-check/line.png, and at each of their places the
logits of these ids and of COLUMNS.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.plots import write_text
from trocr_jax import TrOCR
from trocr_jax.checkpoints.conversion import convert
from trocr_jax.doctor import SELF_CHECK
from trocr_jax.recognizer import EMBEDDED

COLUMNS = (0, 64, 128, 192)  # of the vocabulary, whatever was read


def answers() -> dict[str, Any]:
    """What is stored: text, decoder_input_ids [T], columns [C] and logits [T, C]."""
    ocr = TrOCR.from_pretrained(dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        convert(EMBEDDED, f"{folder}/torch", to="torch", dtype="float32")
        oracle = transformers.VisionEncoderDecoderModel.from_pretrained(f"{folder}/torch", dtype=torch.float64).eval()
    pixels = torch.tensor(np.asarray(ocr.processor(SELF_CHECK / "line.png")["pixel_values"], np.float64))
    with torch.no_grad():
        ids = oracle.generate(pixel_values=pixels, num_beams=1, do_sample=False)
        if ids[0, -1] != oracle.generation_config.eos_token_id:
            raise ValueError("the text has no end: the model does not read the self-check's line")
        ids = ids[:, :-1]
        logits = oracle(pixel_values=pixels, decoder_input_ids=ids).logits[0].numpy()
    found = ids[0].tolist()
    columns = sorted({*COLUMNS, *found})
    return {
        "text": ocr.processor.decode(found, skip_special_tokens=True),
        "decoder_input_ids": found,
        "columns": columns,
        "logits": logits[:, columns].tolist(),
    }


def to_json(content: dict[str, Any]) -> str:
    """The answers as JSON, a row of logits, rounded, on a line."""
    rows = ",\n    ".join(json.dumps([round(logit, 4) for logit in row]) for row in content["logits"])
    head = "".join(f'  "{name}": {json.dumps(content[name])},\n' for name in ("text", "decoder_input_ids", "columns"))
    return f'{{\n{head}  "logits": [\n    {rows}\n  ]\n}}\n'


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=SELF_CHECK / "logits.json")
    options = parser.parse_args()
    content = answers()
    write_text(options.output, to_json(content))
    print(f"{options.output}: {content['text']!r}")


if __name__ == "__main__":
    main()
