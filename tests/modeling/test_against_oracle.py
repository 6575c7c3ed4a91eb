"""Encoder, each decoder block and logits against transformers, over every switch of the architecture."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.twins import SWITCHES, Twin, config_dict, default_twin, make_twin, switched
from trocr_jax.decoding.generate import generate
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, apply, encode_images, prepare
from trocr_jax.modeling.policy import get_policy
from trocr_jax.models import VisionEncoderDecoderModel

# Weights of this size keep activations near 1, where the tolerances mean what they say.
STD = 0.15
ATOL = {"float64": 1e-10, "float32": 2e-5}


def pairwise(switches):
    """Few combinations in which every two values of different switches meet: greedy, first come first served."""
    names = list(switches)
    missing = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in switches[a] for y in switches[b]}
    combinations = []
    while missing:
        chosen = dict(min(missing, key=str))
        for name in names:
            if name not in chosen:
                counts = {
                    value: sum(
                        tuple(sorted([(name, value), pair], key=lambda item: names.index(item[0]))) in missing
                        for pair in chosen.items()
                    )
                    for value in switches[name]
                }
                chosen[name] = max(switches[name], key=lambda value: counts[value])
        ordered = [(name, chosen[name]) for name in names]
        missing -= set(itertools.combinations(ordered, 2))
        combinations.append(chosen)
    return combinations


PAIRWISE = pairwise(SWITCHES)


def compare(twin: Twin, dtype: str, atol: float) -> None:
    """Every encoder block, every decoder block and the logits of both sides."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), twin.params)
    ours = VisionEncoderDecoderModel(twin.config, params=params, dtype=dtype)
    oracle = twin.oracle.double() if dtype == "float64" else twin.oracle.float()
    pixels = twin.pixels(2, seed=3, dtype=dtype)
    ids = np.random.default_rng(4).integers(3, twin.config.decoder.vocab_size, (2, 9))
    ids[:, 0] = 2
    with torch.inference_mode():
        theirs = oracle(torch.from_numpy(pixels), torch.from_numpy(ids), output_hidden_states=True)
    found = ours(pixels, ids, output_hidden_states=True)
    assert len(found.decoder_hidden_states) == twin.config.decoder.decoder_layers + 1
    pairs = {
        "encoder": (found.encoder_last_hidden_state, theirs.encoder_last_hidden_state),
        "logits": (found.logits, theirs.logits),
    }
    for side in ("encoder", "decoder"):
        blocks = (getattr(found, f"{side}_hidden_states"), getattr(theirs, f"{side}_hidden_states"))
        for i, pair in enumerate(zip(*blocks, strict=True)):
            pairs[f"{side} block {i}"] = pair
    for name, (mine, reference) in pairs.items():
        assert mine.dtype == dtype
        np.testing.assert_allclose(np.asarray(mine), reference.numpy(), rtol=0, atol=atol, err_msg=name)


def test_pairwise_array_covers_every_pair():
    assert len(PAIRWISE) <= 24
    for a, b in itertools.combinations(SWITCHES, 2):
        met = {(combination[a], combination[b]) for combination in PAIRWISE}
        assert met == set(itertools.product(SWITCHES[a], SWITCHES[b]))


@pytest.mark.parametrize("switches", PAIRWISE, ids=lambda switches: "-".join(map(str, switches.values())))
def test_twin_equals_the_oracle_block_by_block(switches, x64):
    twin = make_twin(switched(STD, **switches), seed=1)
    compare(twin, "float32", ATOL["float32"])
    compare(twin, "float64", ATOL["float64"])


@pytest.mark.slow
@pytest.mark.parametrize("encoder", SWITCHES["encoder"])
@pytest.mark.parametrize("cross", SWITCHES["cross"])
@pytest.mark.parametrize("positions", SWITCHES["positions"])
def test_every_combination_of_switches_equals_the_oracle(encoder, cross, positions, x64):
    # All 384 combinations of the switches that choose code; image shapes and epsilons, which are numbers only, take
    # turns among them.
    fixed = {"encoder": encoder, "cross": cross, "positions": positions}
    turns = {name: itertools.cycle(SWITCHES[name]) for name in ("shape", "eps")}
    free = {name: values for name, values in SWITCHES.items() if name not in fixed | turns}
    for values in itertools.product(*free.values()):
        numbers = {name: next(turn) for name, turn in turns.items()}
        content = switched(STD, **fixed, **numbers, **dict(zip(free, values, strict=True)))
        content["encoder"]["num_hidden_layers"] = content["decoder"]["decoder_layers"] = 1
        compare(make_twin(content, seed=2), "float64", ATOL["float64"])


@pytest.mark.parametrize(
    "switches", [{}, {"positions": "sinusoidal", "cross": "bridge", "tied": False, "encoder": "deit"}]
)
def test_compiled_and_prepared_models_compute_the_same(switches, x64):
    twin = make_twin(switched(**switches))
    pixels, ids = twin.pixels(3, dtype="float64"), np.array([[2, 5, 6, 7]] * 3)
    model, params = twin.ours("float64")
    runtime, prepared = twin.prepared("float64")
    forward = jax.jit(lambda model, params, *inputs: apply(model, params, *inputs), static_argnums=0)
    expected = forward(model, params, pixels, ids)
    np.testing.assert_allclose(forward(runtime, prepared, pixels, ids), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", SWITCHES["positions"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_stepwise_decoding_equals_teacher_forcing(positions, num_beams, x64):
    twin = make_twin(switched(positions=positions))
    model, params = twin.prepared("float64")
    pixels = twin.pixels(2, dtype="float64")
    length = 7
    texts = np.random.default_rng(0).integers(3, 41, (2, num_beams, length))
    states = apply(model, params, pixels, method="encode").last_hidden_state
    cache = apply(model, params, states, None, num_beams, length, method="start")
    ancestors = np.broadcast_to(np.arange(num_beams)[None, :, None], (2, num_beams, length))
    step = jax.jit(lambda *inputs: apply(model, params, *inputs, method="step"))
    for position in range(length):
        logits, cache = step(texts[:, :, position], position, ancestors, cache)
        for beam in range(num_beams):
            whole = apply(model, params, pixels, texts[:, beam])
            np.testing.assert_allclose(logits[:, beam], whole[:, position], rtol=0, atol=1e-12)


def test_bfloat16_policy_rounds_operands_only():
    twin = default_twin()
    model, params = twin.prepared("bfloat16")
    exact, exact_params = twin.prepared("float32")
    pixels, ids = twin.pixels(4), np.array([[2, 5, 6, 7]] * 4)
    logits, expected = apply(model, params, pixels, ids), apply(exact, exact_params, pixels, ids)
    kernels = [leaf.dtype for path, leaf in jax.tree.leaves_with_path(params) if "kernel" in str(path[-1])]
    others = [leaf.dtype for path, leaf in jax.tree.leaves_with_path(params) if "kernel" not in str(path[-1])]
    assert set(kernels) == {jnp.dtype("bfloat16")}
    assert set(others) == {jnp.dtype("float32")}
    assert logits.dtype == np.float32
    error = np.abs(np.asarray(logits - expected)).max()
    assert 1e-4 < error < 0.2


@pytest.mark.parametrize("num_beams", [1, 3])
def test_keys_and_values_may_be_remembered_as_they_are_multiplied(num_beams):
    twin = default_twin()
    model, params = twin.prepared("bfloat16")
    rounded = model.clone(policy=dataclasses.replace(model.policy, rounds_cache=True))
    cache = apply(rounded, params, jnp.zeros((1, 4, 24)), None, num_beams, 8, method="start")
    assert {leaf.dtype for leaf in jax.tree.leaves(cache.self_kv)} == {jnp.dtype("bfloat16")}
    settings = GenerationConfig(decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=2)
    options = {"max_length": 24, "num_beams": num_beams}
    expected, found = (
        generate(one, params, settings, pixel_values=twin.pixels(4), options=options) for one in (model, rounded)
    )
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    np.testing.assert_array_equal(found.token_log_probs, expected.token_log_probs)
    assert prepare(twin.params, twin.ours("bfloat16")[0], platform="cuda")[0].policy.rounds_cache


def test_tied_head_shares_the_embedding_in_memory():
    twin = default_twin()
    _, params = prepare(twin.params, VisionEncoderDecoder(twin.config, get_policy("float32")), platform="cuda")
    decoder = params["decoder"]
    assert decoder["output_projection"]["kernel"] is decoder["embed_tokens"]["embedding"]


def test_large_images_are_encoded_one_after_the_other_as_together():
    twin = make_twin(config_dict(encoder={"image_size": [160, 128], "initializer_range": 0.1}), 0)  # 321 tokens
    model, params = prepare(twin.params, VisionEncoderDecoder(twin.config, get_policy("float32")), platform="cpu")
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, 160, 128)).astype(np.float32)
    together = apply(model, params, pixels, method="encode", output_hidden_states=True, output_attentions=True)

    def one_by_one(params, pixels):
        return encode_images(model, params, pixels, method="encode", output_hidden_states=True, output_attentions=True)

    assert "scan[" in str(jax.make_jaxpr(one_by_one)(params, pixels))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), one_by_one(params, pixels), together)
