"""The reference's classes: forward passes against transformers, arguments of 4.34 by hand, and its two examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import SAMPLES
from tests.twins import config_dict, default_twin, make_twin, switched
from trocr_jax import (
    DeiTConfig,
    DeiTModel,
    TrOCRConfig,
    TrOCRForCausalLM,
    TrOCRProcessor,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)
from trocr_jax.recognizer import EMBEDDED

IDS = np.array([[2, 5, 6, 7, 8], [2, 9, 3, 4, 11]])
TINY_ENCODER = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_DECODER = {"vocab_size": 30, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2}


@pytest.fixture
def pair(x64):
    """(our decoder, the oracle's, encoder states) in float64."""
    twin = make_twin(switched(0.15, cross="cross"))
    oracle = twin.oracle.double().decoder
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), twin.params["decoder"])
    states = np.random.default_rng(0).normal(size=(2, 6, 24))
    return TrOCRForCausalLM(twin.config.decoder, params, dtype="float64"), oracle, states


@pytest.fixture
def sample():
    """An image that ships with the notebooks."""
    with Image.open(SAMPLES / "date.png") as image:
        return image.convert("RGB")


def close(ours, theirs, atol=1e-10):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("with_encoder", [True, False])
def test_decoder_alone_equals_the_oracle(pair, with_encoder):
    ours, oracle, states = pair
    attention_mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]])
    given = {"input_ids": IDS, "attention_mask": attention_mask, "labels": np.where(IDS == 8, -100, IDS)}
    if with_encoder:
        given |= {"encoder_hidden_states": states, "encoder_attention_mask": np.array([[1] * 6, [1, 1, 1, 1, 0, 0]])}
    flags = {"output_attentions": True, "output_hidden_states": True}
    found = ours(**given, **flags)
    expected = oracle(**{name: torch.from_numpy(value) for name, value in given.items()}, **flags)
    close(found.logits, expected.logits)
    close(found.loss, expected.loss)
    for name in ("hidden_states", "attentions"):
        for mine, reference in zip(getattr(found, name), getattr(expected, name), strict=True):
            close(mine, reference)
    if with_encoder:
        for mine, reference in zip(found.cross_attentions, expected.cross_attentions, strict=True):
            close(mine, reference)
    else:
        assert found.cross_attentions is None


def test_past_key_values_continue_where_they_stopped(pair):
    ours, _, states = pair
    given = {"encoder_hidden_states": states}
    whole = ours(IDS, **given).logits
    first = ours(IDS[:, :2], use_cache=True, **given)
    second = ours(IDS[:, 2:4], past_key_values=first.past_key_values, **given)
    third = ours(IDS[:, 4:], past_key_values=second.past_key_values)  # the encoder's keys are in the cache
    stepwise = np.concatenate([first.logits, second.logits, third.logits], axis=1)
    np.testing.assert_allclose(stepwise, whole, rtol=0, atol=1e-12)
    assert int(third.past_key_values.length) == 5
    assert ours(IDS, **given).past_key_values is None
    mask = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1]])
    masked = ours(IDS, attention_mask=mask, **given).logits
    head = ours(IDS[:, :3], attention_mask=mask[:, :3], use_cache=True, **given)
    tail = ours(IDS[:, 3:], attention_mask=mask, past_key_values=head.past_key_values, **given)
    np.testing.assert_allclose(np.concatenate([head.logits, tail.logits], axis=1), masked, rtol=0, atol=1e-12)


def test_inputs_embeds_replace_ids(pair):
    ours, oracle, states = pair
    embeds = np.asarray(ours.params["embed_tokens"]["embedding"])[IDS]
    found = ours(inputs_embeds=embeds, encoder_hidden_states=states).logits
    np.testing.assert_allclose(found, ours(IDS, encoder_hidden_states=states).logits, rtol=0, atol=1e-12)
    expected = oracle(inputs_embeds=torch.from_numpy(embeds), encoder_hidden_states=torch.from_numpy(states))
    close(found, expected.logits)


def test_head_masks_silence_heads(pair):
    # transformers 5 has dropped both arguments: silencing every head must equal zeroing the values it would mix.
    ours, _, states = pair
    layers, heads = 2, 4
    given = {"encoder_hidden_states": states}
    plain = ours(IDS, **given).logits
    ones = np.ones((layers, heads))
    np.testing.assert_allclose(ours(IDS, head_mask=ones, cross_attn_head_mask=ones, **given).logits, plain, atol=1e-12)
    for argument, attention in (("head_mask", "self_attn"), ("cross_attn_head_mask", "encoder_attn")):
        mask = ones.copy()
        mask[1, 2] = 0
        params = jax.tree.map(np.array, ours.params)
        out = params["layers_1"][attention]["out_proj"]["kernel"]
        out[2 * 8 : 3 * 8] = 0  # the third head's rows of the output projection
        silenced = TrOCRForCausalLM(ours.config, params, dtype="float64")(IDS, **given).logits
        found = ours(IDS, **{argument: mask}, **given).logits
        np.testing.assert_allclose(found, silenced, rtol=0, atol=1e-12)
        assert np.abs(found - plain).max() > 1e-3


def test_labels_of_the_decoder_are_not_shifted(pair):
    ours, _, states = pair
    labels = np.roll(IDS, -1, axis=1)
    labels[:, -1] = -100
    found = ours(IDS, encoder_hidden_states=states, labels=labels)
    log_probs = jax.nn.log_softmax(found.logits)
    by_hand = -np.mean([log_probs[b, t, labels[b, t]] for b in range(2) for t in range(4)])
    np.testing.assert_allclose(found.loss, by_hand, rtol=1e-12)


@pytest.mark.parametrize("cross", ["cross", "bridge"])
def test_whole_model_equals_the_oracle_with_labels(cross, x64):
    twin = make_twin(switched(0.15, cross=cross))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), twin.params)
    ours = VisionEncoderDecoderModel(twin.config, params=params, dtype="float64")
    pixels = twin.pixels(2, dtype="float64")
    labels = np.array([[5, 6, 7, 2], [9, 2, -100, -100]])
    flags = {"output_attentions": True, "output_hidden_states": True}
    found = ours(pixels, labels=labels, **flags)
    expected = twin.oracle.double()(torch.from_numpy(pixels), labels=torch.from_numpy(labels), **flags)
    close(found.logits, expected.logits)
    close(found.loss, expected.loss)
    close(found["encoder_last_hidden_state"], expected.encoder_last_hidden_state)
    for name in ("decoder_hidden_states", "decoder_attentions", "cross_attentions", "encoder_hidden_states"):
        for mine, reference in zip(getattr(found, name), getattr(expected, name), strict=True):
            close(mine, reference)
    for mine in found.encoder_attentions:
        np.testing.assert_allclose(mine.sum(-1), 1, atol=1e-12)
    # By hand: start token, then the labels; -100 neither read nor counted.
    inputs = np.array([[2, 5, 6, 7], [2, 9, 2, 1]])
    log_probs = jax.nn.log_softmax(ours(pixels, inputs).logits)
    counted = [log_probs[b, t, labels[b, t]] for b in range(2) for t in range(4) if labels[b, t] >= 0]
    np.testing.assert_allclose(found.loss, -np.mean(counted), rtol=1e-12)
    # Encoder outputs may be passed on.
    encoded = ViTModel(twin.config.encoder, params["encoder"], dtype="float64")(pixels)
    for outputs in (encoded, encoded.to_tuple(), encoded.last_hidden_state):
        np.testing.assert_array_equal(ours(encoder_outputs=outputs, labels=labels).loss, found.loss)


def test_return_dict_false_gives_a_tuple():
    twin = default_twin()
    model = VisionEncoderDecoderModel(twin.config, params=twin.params)
    pixels = twin.pixels(2)
    output = model(pixels, labels=IDS)
    values = model(pixels, labels=IDS, return_dict=False)
    assert isinstance(values, tuple)
    assert len(values) == 3
    np.testing.assert_array_equal(values[0], output.loss)
    np.testing.assert_array_equal(values[1], output.logits)
    np.testing.assert_array_equal(values[2], output[2])
    assert output.keys() == ("loss", "logits", "encoder_last_hidden_state")
    assert "logits" in output
    assert tuple(output) == output.keys()
    assert "encoder_attentions" not in output
    assert output["encoder_attentions"] is None
    with pytest.raises(KeyError, match="logit'"):
        output["logit"]
    found = model.generate(inputs=pixels, max_new_tokens=3, return_dict_in_generate=True)
    assert found.keys()[0] == "sequences"
    assert found[0] is found["sequences"]
    assert isinstance(ViTModel(twin.config.encoder, twin.params["encoder"])(pixels, return_dict=False), tuple)


def test_outputs_are_pytrees_and_calls_may_be_jitted():
    twin = default_twin()
    decoder = TrOCRForCausalLM(twin.config.decoder, twin.params["decoder"])
    states = jnp.zeros((2, 3, 24))
    output = jax.jit(lambda ids: decoder(ids, encoder_hidden_states=states, use_cache=True))(IDS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(output))
    assert output.logits.shape == (2, 5, 41)


def test_wrong_arguments_are_named():
    decoder = TrOCRForCausalLM(TrOCRConfig(**TINY_DECODER))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        decoder()
    with pytest.raises(ValueError, match="either pixel_values or encoder_outputs"):
        VisionEncoderDecoderModel(default_twin().config, params=default_twin().params)(labels=IDS)
    with pytest.raises(ValueError, match="both encoder= and decoder="):
        VisionEncoderDecoderModel(encoder=ViTModel(ViTConfig(**TINY_ENCODER, image_size=32)))


def test_what_jax_would_clamp_is_refused():
    decoder = TrOCRForCausalLM(TrOCRConfig(**TINY_DECODER, max_position_embeddings=8))
    ids = [[2, 5, 6]]
    for arguments, message in (
        ({"input_ids": [[2, 30]]}, "input_ids are int32 from 2 to 30"),
        ({"input_ids": [[2, -100]]}, "0 to 29"),
        ({"input_ids": ids, "labels": [[5, 6, 30]]}, "labels"),
        ({"input_ids": ids, "labels": [[5, -5, 2]]}, "labels"),
        ({"input_ids": [[2] * 9]}, "9 tokens are more than the 8"),
        ({"input_ids": ids, "head_mask": np.ones((2, 2))}, "head_mask has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder(**arguments)
    past = decoder([[2] * 6], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="9 tokens"):
        decoder(ids, past_key_values=past)
    with pytest.raises(ValueError, match="decoder_input_ids"):
        VisionEncoderDecoderModel(default_twin().config, params=default_twin().params)(default_twin().pixels(1))


def test_a_random_model_may_be_made_inside_jit():
    decoder = TrOCRForCausalLM(TrOCRConfig(**TINY_DECODER))
    inside = jax.jit(lambda ids: decoder(ids, return_dict=None).logits)(np.array([[2, 5]]))
    np.testing.assert_allclose(decoder([[2, 5]]).logits, inside, atol=1e-6)


def test_models_save_and_load(tmp_path):
    encoder = DeiTModel(DeiTConfig(**TINY_ENCODER, image_size=32), seed=1)
    decoder = TrOCRForCausalLM(TrOCRConfig(**TINY_DECODER, cross_attention_hidden_size=12), seed=2)
    whole = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    for name, model in (("encoder", encoder), ("decoder", decoder), ("whole", whole)):
        model.save_pretrained(tmp_path / name)
        loaded = type(model).from_pretrained(tmp_path / name)
        assert loaded.config == model.config
        assert jax.tree.all(jax.tree.map(lambda a, b: (np.asarray(a) == b).all(), model.params, loaded.params))
    # Parts come out of a whole model too.
    for part in (DeiTModel, TrOCRForCausalLM):
        assert jax.tree.leaves(part.from_pretrained(tmp_path / "whole").params)
    pixels = np.zeros((1, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(encoder(pixels)[0], whole(pixels, [[2, 3]]).encoder_last_hidden_state)


def test_oracles_own_decoder_files_load(tmp_path):
    twin = make_twin(config_dict())
    twin.oracle.decoder.save_pretrained(tmp_path / "decoder")
    twin.oracle.encoder.save_pretrained(tmp_path / "encoder")
    decoder = TrOCRForCausalLM.from_pretrained(tmp_path / "decoder")
    states = np.random.default_rng(0).normal(size=(2, 6, 24)).astype("float32")
    expected = twin.oracle.decoder(torch.from_numpy(IDS), encoder_hidden_states=torch.from_numpy(states)).logits
    close(decoder(IDS, encoder_hidden_states=states).logits, expected, atol=1e-4)
    encoder = ViTModel.from_pretrained(tmp_path / "encoder")
    pixels = twin.pixels(1)
    close(encoder(pixels)[0], twin.oracle.encoder(torch.from_numpy(pixels)).last_hidden_state, atol=1e-4)


def test_documentation_example_step_by_step_ocr(sample):
    # The first example of the 4.34 documentation page, with the embedded model in the hub id's place.
    processor = TrOCRProcessor.from_pretrained(EMBEDDED)
    model = VisionEncoderDecoderModel.from_pretrained(EMBEDDED)

    pixel_values = processor(sample, return_tensors="jax").pixel_values
    generated_ids = model.generate(pixel_values)

    generated_text = processor.batch_decode(generated_ids, skip_special_tokens=True)[0]
    assert generated_text == "Date: 09.10.93 07:53:40"


def test_documentation_example_loss_and_generate(sample):
    # The second example: a random model is initialised, then the pretrained one trained and read with.
    encoder = ViTModel(ViTConfig(**TINY_ENCODER, image_size=32))
    decoder = TrOCRForCausalLM(TrOCRConfig(**TINY_DECODER, cross_attention_hidden_size=12))
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    assert model.config.decoder.is_decoder

    processor = TrOCRProcessor.from_pretrained(EMBEDDED)
    model = VisionEncoderDecoderModel.from_pretrained(EMBEDDED)
    pixel_values = processor(sample, return_tensors="np").pixel_values
    text = "Date: 09.10.93 07:53:40"

    # training: configurations are frozen, so that one line replaces three assignments
    model.config = model.config.replace(
        decoder_start_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        vocab_size=model.config.decoder.vocab_size,
    )
    labels = processor.tokenizer(text, return_tensors="np").input_ids
    outputs = model(pixel_values, labels=labels)
    loss = outputs.loss
    # The labels begin with <s>, which this model, like the official ones, has never seen: the first token is a
    # surprise and the others are not.
    without_start = model(pixel_values, labels=labels[:, 1:]).loss
    assert float(loss) > 5 * float(without_start)
    assert float(without_start) < 0.1

    # inference
    generated_ids = model.generate(pixel_values)
    generated_text = processor.batch_decode(generated_ids, skip_special_tokens=True)[0]
    assert generated_text == text
