"""The official shapes at full size in every format: read bitwise, compared with transformers, written back bitwise."""

from __future__ import annotations

import shutil

import pytest
import safetensors

from convert.verify import verify
from tests.checkpoints.test_conversion import FORMATS, write
from tests.checkpoints.test_store import assert_same
from tests.test_full_size import SHAPES
from tests.twins import make_oracle, torch_tensors
from trocr_jax.checkpoints import names, store
from trocr_jax.checkpoints.conversion import convert, load_checkpoint
from trocr_jax.checkpoints.inspection import inspect
from trocr_jax.registry import OFFICIAL

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["small", "base learned", "base sinusoidal"])
def test_official_shapes_at_full_size(shape, tmp_path):
    name = SHAPES[shape]
    # Wider weights than at the start of a training, so that the best tokens are clearly the best.
    config = OFFICIAL[name].replace(decoder=OFFICIAL[name].decoder.replace(init_std=0.05))
    state = {key: tensor.numpy() for key, tensor in make_oracle(config.to_dict(), seed=5).state_dict().items()}
    params = store.from_torch(state, names.table(config), name)
    tensors = torch_tensors(params, config)
    for form in FORMATS:
        source = write(tmp_path / form, form, tensors, config)
        assert_same(load_checkpoint(source).params, params)
        assert name in inspect(source).official
        if form != "fairseq":
            shutil.rmtree(tmp_path / form)
    convert(source, tmp_path / "flax")
    convert(tmp_path / "flax", tmp_path / "torch", to="torch")
    with safetensors.safe_open(tmp_path / "torch" / "model.safetensors", framework="np") as written:
        assert set(written.keys()) == set(tensors)
        for key in written.keys():  # noqa: SIM118 the file is no dict
            assert written.get_tensor(key).tobytes() == tensors[key].tobytes(), key
    del state, params, tensors
    report = verify(source, max_new_tokens=8)
    assert report.is_equal, str(report)
    assert max(report.differences.values()) < 1e-10
