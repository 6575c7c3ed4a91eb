"""Time of reading one image as a whole new process: `trocr-jax read`, and the same job with transformers and torch.

usage: python benchmarks/cold_start.py [IMAGE] [--runs N]

Both sides read the same image with the same weights (the embedded model; the other side gets them as a transformers
folder) on CPU in float32, greedily, asked in turn. The first run of each side is not counted: it fills our compilation
cache and the system's file cache. Ours also takes part with an empty cache folder in every run, so that it compiles.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from trocr_jax.checkpoints.conversion import convert
from trocr_jax.recognizer import EMBEDDED

OURS, ANEW, THEIRS = "trocr_jax", "trocr_jax, cache empty", "transformers"
SAMPLE = pathlib.Path(__file__).parents[1] / "notebooks" / "samples" / "date.png"

TRANSFORMERS = """
import sys
from PIL import Image
from transformers import AutoTokenizer, VisionEncoderDecoderModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
folder, path = sys.argv[1:]
processor, tokenizer = ViTImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
model = VisionEncoderDecoderModel.from_pretrained(folder).eval()
pixels = processor(Image.open(path).convert("RGB"), return_tensors="pt").pixel_values
print(tokenizer.decode(model.generate(pixels)[0], skip_special_tokens=True))
"""


def seconds(command: list[str], cache: str) -> tuple[float, str]:
    """(wall time, what was read) of one process with its caches in a folder."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # programs would be kept there instead
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout.strip()


def seconds_anew(command: list[str]) -> tuple[float, str]:
    """The same with an empty folder."""
    with tempfile.TemporaryDirectory() as cache:
        return seconds(command, cache)


def main() -> None:
    """Runs the sides in turn and prints the ratios of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", default=str(SAMPLE))
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        convert(EMBEDDED, folder, to="torch", dtype="float32")
        ours = [sys.executable, "-m", "trocr_jax", "read", options.image]
        theirs = [sys.executable, "-W", "ignore", "-c", TRANSFORMERS, folder, options.image]
        sides = {
            OURS: functools.partial(seconds, ours, folder),
            ANEW: functools.partial(seconds_anew, ours),
            THEIRS: functools.partial(seconds, theirs, folder),
        }
        texts = {name: run()[1] for name, run in sides.items()}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.runs):
            for name, run in sides.items():
                times[name].append(run()[0])
    if len(set(texts.values())) != 1:
        raise SystemExit(f"the sides read differently: {texts}")
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(
            f"{name}: median {medians[name]:.2f} s, range {min(values):.2f} to {max(values):.2f} s, {options.runs} runs"
        )
    for name in (OURS, ANEW):
        print(f"{THEIRS} over {name}: {medians[THEIRS] / medians[name]:.2f}")


if __name__ == "__main__":
    main()
