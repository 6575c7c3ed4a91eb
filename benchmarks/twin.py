"""Random models of the official architectures, which both sides load, and the images that they are given."""

from __future__ import annotations

import hashlib
import inspect
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

from benchmarks.environments import cache_folder
from trocr_jax import VisionEncoderDecoderModel
from trocr_jax.checkpoints.conversion import convert
from trocr_jax.checkpoints.hub import NATIVE_NAME
from trocr_jax.recognizer import EMBEDDED
from trocr_jax.registry import OFFICIAL

MODELS = {"small": "trocr-small-printed", "base": "trocr-base-handwritten", "large": "trocr-large-handwritten"}


def draw_leaf(path: tuple, leaf: jax.ShapeDtypeStruct, draw: np.random.Generator) -> np.ndarray:
    """A random array.

    Scales are about 1; the image and the position weigh more than the last token, so that texts differ and do not
    repeat one token for ever.
    """
    names = [str(key.key) for key in path]
    values = draw.standard_normal(leaf.shape, np.float32)
    if names[-1] == "scale":
        return 1 + np.float32(0.1) * values
    if leaf.ndim == 1:
        return np.float32(0.05) * values
    parts = set(names)
    std = 0.02
    if "embed_positions" in parts:
        std = 0.06
    elif "encoder_attn" in parts:
        std = 0.08 if "out_proj" in parts else 0.04
    return np.float32(std) * values


def _folder(name: str, key: bytes) -> pathlib.Path:
    return cache_folder() / "models" / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}"


def make_twin(name: str) -> pathlib.Path:
    """The folder of a random model ("small", "base", "large") in transformers' format, float32; made once."""
    config = OFFICIAL[MODELS[name]]
    # Another configuration or other code that draws is another folder.
    key = json.dumps(config.to_dict(), sort_keys=True) + inspect.getsource(draw_leaf)
    folder = _folder(name, key.encode())
    if not folder.exists():
        # In a process of its own, which gives its memory back.
        subprocess.run([sys.executable, "-m", "benchmarks.twin", name, str(folder)], check=True)
    return folder


def write_twin(name: str, folder: pathlib.Path) -> None:
    """Draws the weights of such a model and writes its folder."""
    config = OFFICIAL[MODELS[name]]
    draw = np.random.default_rng(0)
    model = VisionEncoderDecoderModel(config)
    model.params = jax.tree_util.tree_map_with_path(lambda path, leaf: draw_leaf(path, leaf, draw), model._abstract())
    with tempfile.TemporaryDirectory() as native:
        model.save_pretrained(native)
        convert(native, folder, to="torch")


def embedded_in_torch() -> pathlib.Path:
    """The embedded model's folder in transformers' format, made once."""
    folder = _folder("nano", (EMBEDDED / NATIVE_NAME).read_bytes())
    if not folder.exists():
        convert(EMBEDDED, folder, to="torch", dtype="float32")
    return folder


def random_pixels(name: str, batch: int, path: pathlib.Path) -> pathlib.Path:
    """An .npy file of random images [batch, 3, height, width] in [-1, 1]."""
    encoder = OFFICIAL[MODELS[name]].encoder
    # Noise of large patches: of single pixels, all images are alike to a network.
    coarse = np.random.default_rng(1).uniform(-1, 1, (batch, 3, 12, 12)).astype(np.float32)
    height, width = encoder.image_shape
    np.save(path, coarse.repeat(-(-height // 12), 2).repeat(-(-width // 12), 3)[:, :, :height, :width])
    return path


if __name__ == "__main__":
    write_twin(sys.argv[1], pathlib.Path(sys.argv[2]))
