"""What test_sharding.py runs in processes of their own, as the number of CPU devices is fixed when JAX starts.

usage: python -m tests.many_devices FOLDER OUT [PORT PROCESS]

Reads with the model in FOLDER on several devices and writes what it found to OUT, an .npz file. With PORT and PROCESS
it is one of two hosts.
"""

from __future__ import annotations

import contextlib
import re
import sys
import unittest.mock

import jax
import numpy as np

from benchmarks.compile_ahead import loop_lines
from tests.conftest import SAMPLES
from trocr_jax import AllowedCharacters, Pattern, TrOCR, VisionEncoderDecoderModel, make_mesh, memory, reading
from trocr_jax.decoding import generate

# name -> (images, options); neither number of images is a multiple of the devices.
READINGS = {
    "greedy": (11, {"output_logits": True}),
    "beam": (11, {"num_beams": 4, "num_return_sequences": 2, "no_repeat_ngram_size": 4}),
    "sample": (3, {"do_sample": True, "key": 3, "num_return_sequences": 2}),
}
COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


def pixels(batch: int, shape: tuple[int, ...]) -> np.ndarray:
    """The images that both sides read."""
    return np.random.default_rng(7).uniform(-1, 1, (batch, *shape)).astype(np.float32)


def read(model: VisionEncoderDecoderModel, name: str) -> dict[str, np.ndarray]:
    """Arrays of one reading, by name."""
    batch, options = READINGS[name]
    images = pixels(batch, (3, *model.config.encoder.image_shape))
    output = model.generate(images, return_dict_in_generate=True, max_new_tokens=24, **options)
    found = {"sequences": output.sequences, "num_tokens": output.num_tokens, "log_probs": output.token_log_probs}
    return found if output.logits is None else {**found, "logits": output.logits}


def readings(folder: str, **meshes: tuple) -> dict[str, np.ndarray]:
    """Arrays of the readings named with each mesh, by "mesh/reading/array"; the collectives in each one's loop, too."""
    found = {}
    for mesh_name, (mesh, names) in meshes.items():
        model = VisionEncoderDecoderModel.from_pretrained(folder, mesh=mesh)
        for name in names:
            with compiled_programs() as programs:
                arrays = read(model, name)
            lines = loop_lines(programs[0])
            assert len(lines) > 100
            arrays["collectives"] = np.asarray(sum(bool(COLLECTIVE.search(line)) for line in lines))
            found |= {f"{mesh_name}/{name}/{key}": array for key, array in arrays.items()}
    return found


@contextlib.contextmanager
def compiled_programs():
    """A list that fills with the text of every program that searches meanwhile."""
    texts, run = [], generate.run

    def compile_and_run(*arguments, mesh, **static):
        compiled = run.lower(*arguments, mesh=mesh, **static).compile()
        texts.append(compiled.as_text())
        return compiled(*arguments)

    with unittest.mock.patch.object(generate, "run", compile_and_run):
        yield texts


def constrained(ocr: TrOCR) -> list[str]:
    """Texts of three samples under constraints of their own."""
    paths = [str(SAMPLES / name) for name in ("date.png", "number.png", "price.png")]
    lines = ocr(paths, constraint=[Pattern("[0-9 ]+"), None, AllowedCharacters("RM.01")], num_beams=2)
    return [line.text for line in lines]


def batch_size_of(ocr: TrOCR) -> int:
    """How many images the model is given at once where no batch size is named."""
    sizes = []

    class Stop(Exception):  # noqa: N818
        pass

    def launch(*model, num_images, **inputs):
        sizes.append(num_images)
        raise Stop

    with unittest.mock.patch.object(reading, "launch", launch), contextlib.suppress(Stop):
        ocr([np.zeros((8, 80), np.uint8)] * 1000)
    return sizes[0]


def one_host(folder: str) -> dict[str, np.ndarray]:
    """Eight devices in one process."""
    assert jax.device_count() == 8
    found = readings(folder, whole=(None, READINGS), shared=(make_mesh(model=2), ("beam",)))
    for name, mesh in (("whole", None), ("shared", make_mesh(model=2))):
        _, params = VisionEncoderDecoderModel.from_pretrained(folder, mesh=mesh).runtime
        kernel = jax.tree.leaves(params["decoder"]["layers_0"]["mlp"]["fc2"]["kernel"])[0]
        found[f"{name}/kernel"] = np.asarray(kernel.shape)
        found[f"{name}/share"] = np.asarray(kernel.sharding.shard_shape(kernel.shape))
    ocr = TrOCR.from_pretrained()
    lines = ocr(sorted(SAMPLES.glob("*.png")), boxes=True)
    found["texts"] = np.asarray([line.text for line in lines])
    found["boxes"] = np.asarray([word.box is not None for line in lines for word in line.words])
    found["constrained"] = np.asarray(constrained(ocr))
    found["batch size"] = np.asarray(batch_size_of(ocr))
    return found


def two_hosts(folder: str, port: str, process: str) -> dict[str, np.ndarray]:
    """Two devices in each of two processes: each half of the images on both hosts, which share the weights."""
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
    assert (jax.device_count(), jax.local_device_count()) == (4, 2)
    first, second, third, fourth = jax.devices()
    mesh = make_mesh([first, third, second, fourth], model=2)
    assert all({device.process_index for device in devices} == {0, 1} for devices in mesh.devices)
    found = readings(folder, shared=(mesh, ("beam",)))
    ocr = TrOCR.from_pretrained(mesh=mesh)
    found["texts"] = np.asarray([line.text for line in ocr(sorted(SAMPLES.glob("*.png")))])
    with unittest.mock.patch.object(memory, "CPU_BATCH", 6 - 2 * int(process)):  # the second has less room
        found["batch size"] = np.asarray(batch_size_of(ocr))
    jax.distributed.shutdown()
    return found


if __name__ == "__main__":
    folder, out, *host = sys.argv[1:]
    np.savez(out, **(two_hosts(folder, *host) if host else one_host(folder)))
