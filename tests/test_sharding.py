"""Several devices: what they read is what one device reads."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.conftest import SAMPLES, free_port
from tests.many_devices import READINGS, constrained, read
from tests.test_recognizer import TEXTS
from tests.twins import config_dict, make_reader
from trocr_jax import TrOCR, VisionEncoderDecoderModel, make_mesh
from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.decoding.shapes import bucket
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params
from trocr_jax.sharding import param_shardings, platform_of

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model whose texts end at different steps."""
    twin = make_reader(config_dict({"num_hidden_layers": 1}, {"decoder_layers": 1}))
    path = tmp_path_factory.mktemp("reader")
    VisionEncoderDecoderModel(twin.config, params=twin.params).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(folder):
    """What one device reads."""
    model = VisionEncoderDecoderModel.from_pretrained(folder)
    assert model.mesh is None
    return {name: read(model, name) for name in READINGS}


def start(num_devices: int, *arguments: object) -> subprocess.Popen:
    """A process with that many CPU devices."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {
        # Compiled in a hurry: these programs run once.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.many_devices", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: subprocess.Popen) -> None:
    """Waits for all of them; what they printed is shown where one failed."""
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(printed)


def assert_alike(found, expected, mesh: str, names) -> None:
    for name in names:
        own = expected[name]
        assert len(set(own["num_tokens"].tolist())) > 2  # texts end at different steps
        np.testing.assert_array_equal(found[f"{mesh}/{name}/sequences"], own["sequences"])
        np.testing.assert_array_equal(found[f"{mesh}/{name}/num_tokens"], own["num_tokens"])
        np.testing.assert_allclose(found[f"{mesh}/{name}/log_probs"], own["log_probs"], atol=1e-4)


def test_eight_devices_read_as_one(folder, expected, tmp_path):
    finish(start(8, folder, tmp_path / "found.npz"))
    found = np.load(tmp_path / "found.npz")
    assert_alike(found, expected, "whole", READINGS)
    assert_alike(found, expected, "shared", ("beam",))
    logits, own = found["whole/greedy/logits"], expected["greedy"]["logits"]
    assert logits.shape == own.shape
    for row, count in enumerate(expected["greedy"]["num_tokens"]):
        np.testing.assert_allclose(logits[row, :count], own[row, :count], atol=1e-4)
    # Devices with weights of their own do not wait for each other between tokens; others add up at least.
    assert [int(found[f"whole/{name}/collectives"]) for name in READINGS] == [0, 0, 0]
    assert found["shared/beam/collectives"] > 0
    assert found["whole/share"].tolist() == found["whole/kernel"].tolist()
    assert found["shared/share"].tolist() == [found["shared/kernel"][0] // 2, found["shared/kernel"][1]]
    assert found["texts"].tolist() == list(TEXTS.values())
    assert found["boxes"].all()
    assert found["constrained"].tolist() == constrained(TrOCR.from_pretrained())
    assert found["batch size"] == 64


def test_two_hosts_share_a_model_and_read_as_one_device(folder, expected, tmp_path):
    port = free_port()
    outs = [tmp_path / f"{process}.npz" for process in range(2)]
    finish(*[start(2, folder, out, port, process) for process, out in enumerate(outs)])
    for out in outs:
        found = np.load(out)
        assert_alike(found, expected, "shared", ("beam",))
        assert found["texts"].tolist() == [TEXTS[path.name] for path in sorted(SAMPLES.glob("*.png"))]
        assert found["batch size"] == 2 * 4  # as many on both hosts, for two parts


def test_what_computes_is_the_meshs_or_jaxs_own_choice(folder, monkeypatch):
    mesh = make_mesh(jax.devices("cpu")[:1])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert platform_of(None) == "gpu"
    assert platform_of(mesh) == "cpu"
    with jax.default_device(jax.devices("cpu")[0]):
        assert platform_of(None) == "cpu"
    for given, policy in ((None, "bfloat16"), (mesh, "float32")):
        assert VisionEncoderDecoderModel.from_pretrained(folder, dtype="auto", mesh=given).policy.name == policy
    model, _ = VisionEncoderDecoderModel.from_pretrained(folder, dtype="auto", mesh=mesh).runtime
    assert model.policy.decoder_layout == "panels"


def test_the_table_divides_what_it_names():
    # An untied head; three devices divide all sizes but the encoder's feed-forward of 40.
    decoder = {"d_model": 24, "decoder_attention_heads": 3, "tie_word_embeddings": False, "vocab_size": 42}
    params = abstract_params(VisionEncoderDecoder(VisionEncoderDecoderConfig.from_dict(config_dict(decoder=decoder))))
    mesh = jax.sharding.AbstractMesh((1, 3), ("data", "model"))
    leaves = jax.tree_util.tree_leaves_with_path(param_shardings(params, mesh))
    specs = {jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec for path, sharding in leaves}
    for name, spec in {
        "encoder/layers_0/attention/q_proj/kernel": P(None, "model"),
        "encoder/layers_0/attention/v_proj/bias": P("model"),
        "encoder/layers_0/attention/out_proj/kernel": P("model", None),
        "encoder/layers_0/mlp/fc1/kernel": P(),
        "encoder/embeddings/patch_embeddings/kernel": P(),
        "decoder/layers_1/self_attn/k_proj/kernel": P(None, "model"),
        "decoder/layers_1/encoder_attn/out_proj/kernel": P("model", None),
        "decoder/layers_1/encoder_attn/out_proj/bias": P(),
        "decoder/layers_1/mlp/fc1/bias": P("model"),
        "decoder/layers_1/mlp/fc2/kernel": P("model", None),
        "decoder/embed_tokens/embedding": P("model", None),
        "decoder/output_projection/kernel": P(None, "model"),
    }.items():
        assert specs[name] == spec, name


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="model is 2"):
        make_mesh(model=2)
    with pytest.raises(ValueError, match="make_mesh"):
        TrOCR.from_pretrained(mesh=jax.make_mesh((1,), ("x",)))


def test_buckets_are_multiples_of_the_parts():
    assert [bucket(size, 8) for size in (1, 8, 9, 17, 64)] == [8, 8, 16, 24, 64]
    assert [bucket(size, 1) for size in (1, 5, 9)] == [bucket(size) for size in (1, 5, 9)] == [1, 6, 12]
