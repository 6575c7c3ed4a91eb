"""All of inference, and a step of training, compiled for what is not there: TPU with libtpu, CUDA by jax.export."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from benchmarks.compile_ahead import host_transfers, loop_lines
from tests.twins import config_dict
from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.decoding import generate
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params, prepare
from trocr_jax.modeling.policy import get_policy

ROOT = pathlib.Path(__file__).parents[1]
# The Python of an environment with libtpu, which is too large for the test environment; .ci/run makes one.
TPU_PYTHON = os.environ.get(
    "TROCR_JAX_TPU_PYTHON", sys.executable if importlib.util.find_spec("libtpu") is not None else None
)
needs_libtpu = pytest.mark.skipif(TPU_PYTHON is None, reason="set TROCR_JAX_TPU_PYTHON to a Python with libtpu")


@pytest.mark.parametrize(("num_beams", "dtype"), [(1, "bfloat16"), (4, "float32"), (4, "int8")])
def test_inference_lowers_for_cuda(num_beams, dtype):
    config = VisionEncoderDecoderConfig.from_dict(config_dict({"num_hidden_layers": 1}, {"decoder_layers": 1}))
    model = VisionEncoderDecoder(config, get_policy(dtype))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(leaf.dtype), abstract_params(model))
    model, params = prepare(params, model, platform="cuda")
    settings = GenerationConfig.from_model_config(config.to_dict())
    pixels = random.uniform(-1, 1, (2, 3, *config.encoder.image_shape)).astype(np.float32)
    with unittest.mock.patch.object(generate, "run", wraps=generate.run) as run:
        expected = generate.generate(
            model, params, settings, pixel_values=pixels, options={"num_beams": num_beams, "max_new_tokens": 8}
        )
    arguments, static = run.call_args
    leaves, tree = jax.tree.flatten(arguments)
    program = jax.jit(lambda *leaves: run(*jax.tree.unflatten(tree, leaves), **static).sequences)
    exported = jax.export.export(program, platforms=["cuda", "cpu"])(*leaves)
    assert exported.platforms == ("cuda", "cpu")
    text = exported.mlir_module()
    assert "stablehlo.while" in text
    # All that is not plain StableHLO: no kernel that a machine might lack, nothing that calls Python.
    assert set(re.findall(r"custom_call @([\w.$]+)", text)) <= {"mhlo.topk", "mhlo.erf"}
    ids = np.asarray(exported.call(*leaves))[:, 0, : expected.sequences.shape[1]]
    np.testing.assert_array_equal(ids, expected.sequences)


def test_host_transfers_inside_loops_are_found():
    def loop(x, body):
        return jax.jit(lambda x: jax.lax.fori_loop(0, 9, lambda _, x: body(x), x)).lower(x).compile().as_text()

    def ask(x):
        return io_callback(lambda x: x, jax.ShapeDtypeStruct((8,), jnp.float32), x)

    x = jnp.zeros(8)
    assert loop_lines(loop(x, jnp.sin))
    assert not host_transfers(loop(x, jnp.sin))
    assert host_transfers(loop(x, ask))
    outside = jax.jit(lambda x: ask(jax.lax.fori_loop(0, 9, lambda _, x: jnp.sin(x), x))).lower(x).compile()
    assert not host_transfers(outside.as_text())


def run_with_libtpu(module: str, *options: str) -> str:
    """What a benchmark prints, run by the Python that has libtpu."""
    command = [TPU_PYTHON, "-m", f"benchmarks.{module}", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    print(done.stdout)
    return done.stdout


def bytes_a_chip(printed: str) -> int:
    return int(re.search(r"bytes a chip: ([\d,]+)", printed)[1].replace(",", ""))


def inference_bytes(*options: str) -> int:
    printed = run_with_libtpu("compile_ahead", *options)
    assert "host transfers inside loops: 0 of " in printed
    return bytes_a_chip(printed)


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_embedded_model_compiles_for(topology):
    # The float16 weights alone are 7.5 MB.
    assert 7e6 < inference_bytes("--model", "embedded", "--batch", "8", "--topology", topology) < 1e8


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("model", ["trocr-base-handwritten", "trocr-large-handwritten"])
def test_official_models_compile_for(model, topology):
    # A v5e chip has 16 GB: 64 images and four beams leave more than half of it.
    assert inference_bytes("--model", model, "--topology", topology) < 8e9


def training_bytes(*options: str) -> int:
    return bytes_a_chip(run_with_libtpu("compile_ahead_training", *options))


@needs_libtpu
def test_a_training_step_of_the_embedded_model_compiles_and_divided_it_takes_less_of_a_chip():
    # Weights, Adam's two moments and gradients in float32 are 16 bytes a weight, of 3.7 million; a chip of four keeps a
    # quarter of the first three.
    whole, divided = (training_bytes("--model", "embedded", *more) for more in ((), ("--fsdp",)))
    assert 59e6 < whole < 200e6
    assert divided < whole - 20e6


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("model", ["trocr-base-handwritten", "trocr-large-handwritten"])
def test_training_steps_of_official_models_fit_into(model, topology):
    # A v5e chip has 16 GB.
    assert training_bytes("--model", model, "--topology", topology, "--fsdp") < 15e9
