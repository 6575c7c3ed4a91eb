"""The reference's model classes under its names: stateless wrappers over the linen modules and a parameter tree.

A wrapper holds a configuration, a precision policy and a tree; a call is a pure function of those and its arguments.
Outputs are pytrees with the reference's field names.

B images, T target tokens, S encoder tokens, H heads, E width, V vocabulary.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trocr_jax import registry
from trocr_jax.checkpoints import store
from trocr_jax.checkpoints.folder import USAGE, USAGE_OF_PART, Saved, Source, write_card
from trocr_jax.checkpoints.hub import local_folder
from trocr_jax.checkpoints.safetensors_writer import DEFAULT_MAX_SHARD_SIZE, save_weights
from trocr_jax.config import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    ViTConfig,
    encoder_config_from_dict,
    read_json,
    write_json,
)
from trocr_jax.decoding.generate import GenerationOutput, check_ids, check_images, generate
from trocr_jax.generation_config import GenerationConfig, checked_settings
from trocr_jax.model_outputs import (
    BaseModelOutput,
    CausalLMOutputWithCrossAttentions,
    PastKeyValues,
    Seq2SeqLMOutput,
)
from trocr_jax.modeling.cache import allocate
from trocr_jax.modeling.decoder import Decoder, DecoderOutput, HeadMasks, causal_mask
from trocr_jax.modeling.encoder import Encoder, EncoderOutput
from trocr_jax.modeling.loss import IGNORED_LABEL, cross_entropy, shift_tokens_right
from trocr_jax.modeling.model import (
    VisionEncoderDecoder,
    abstract_params,
    apply,
    encode_images,
    init_params,
    prepare,
)
from trocr_jax.modeling.policy import get_policy
from trocr_jax.sharding import DATA, axis_size, checked_mesh, default_mesh, shard_batch

Array = jax.Array
Params = Mapping[str, Any]


# What `generate` takes besides pixels and options.
_GENERATE_INPUTS = (
    "encoder_hidden_states", "encoder_attention_mask", "decoder_input_ids", "key", "image_numbers", "constraints"
)  # fmt: skip


class _Model(Saved):
    """What all wrappers share: a tree that is made at random when first needed, unless one is given."""

    config: Any
    module: Any

    def __init__(self, params: Params | None, dtype: str, seed: int, mesh: Mesh | None = None) -> None:
        self.policy = get_policy(dtype, mesh)
        self._params = params
        self._seed = seed
        self.source: Source | None = None  # what the parameters were read from

    @property
    def params(self) -> Params:
        """The canonical parameter tree; assign another to change the weights."""
        if self._params is None:
            with jax.ensure_compile_time_eval():  # the first use may be inside a jitted function
                self._params = self._init(jax.random.key(self._seed))
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = params
        for name in ("runtime", "_device_params"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def _device_params(self) -> Params:
        """`params` on the device, moved there once."""
        params = self.params
        with jax.ensure_compile_time_eval():
            return jax.device_put(params)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._description()[0]}; {self.policy.name}>"

    def _init(self, key: Array) -> Params:
        raise AssertionError("every wrapper has its own")

    def _abstract(self) -> Params:
        return jax.eval_shape(self._init, jax.random.key(0))

    def write_files(self, folder: pathlib.Path, *, max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE) -> None:
        """Writes what belongs to this model into a folder that exists, one file after another."""
        # What would not be read again must not take the place of what would.
        store.check_tree(self.params, self._abstract(), f"the parameters of this {type(self).__name__}")
        write_json(folder / CONFIG_NAME, self.config.to_dict())
        tensors = store.to_native(self.params)
        hashes = save_weights(tensors, folder, store.NATIVE_NAME, format_name="flax", max_shard_size=max_shard_size)
        summary, usage = self._description()
        write_card(folder, summary, hashes, self.source, usage=usage)

    def _description(self) -> tuple[str, str]:
        """What a card says of the model, and how it is loaded."""
        return f"its {self.config.model_type} part alone", USAGE_OF_PART.format(name=type(self).__name__)


class ViTModel(_Model):
    """The image encoder alone."""

    def __init__(
        self, config: ViTConfig, params: Params | None = None, *, dtype: str = "float32", seed: int = 0
    ) -> None:
        super().__init__(params, dtype, seed)
        self.config = config
        self.module = Encoder(config, self.policy)

    def _init(self, key: Array) -> Params:
        shape = (1, self.config.num_channels, *self.config.image_shape)
        return jax.jit(self.module.init)(key, jnp.zeros(shape, self.policy.result))["params"]

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, dtype: str = "float32", **hub_options: Any) -> Self:
        """The encoder of a folder or hub id: of a checkpoint of its own, or out of a whole TrOCR."""
        folder = local_folder(source, **hub_options)
        content = read_json(folder / CONFIG_NAME)
        if content.get("model_type") == VisionEncoderDecoderConfig.model_type:
            whole = VisionEncoderDecoderModel.from_pretrained(folder, dtype=dtype)
            model = cls(whole.config.encoder, whole.params["encoder"], dtype=dtype)
        else:
            config = encoder_config_from_dict(content)
            model = cls(config, store.load_encoder(folder, config), dtype=dtype)
            store.check_tree(model.params, model._abstract(), folder)
        model.source = Source.of(source, folder)
        return model

    def __call__(
        self,
        pixel_values: Any,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """pixel_values [B, 3, height, width] -> last_hidden_state [B, S, E] and what else was asked for."""
        found = encode(
            self._device_params,
            jnp.asarray(pixel_values),
            module=self.module,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        output = BaseModelOutput(found.last_hidden_state, found.hidden_states, found.attentions)
        return output.to_tuple() if return_dict is False else output


class DeiTModel(ViTModel):
    """The image encoder with a distillation token alone."""


class TrOCRForCausalLM(_Model):
    """The text decoder with its language-model head, with or without an encoder's states."""

    def __init__(
        self, config: TrOCRConfig, params: Params | None = None, *, dtype: str = "float32", seed: int = 0
    ) -> None:
        super().__init__(params, dtype, seed)
        self.config = config.replace(is_decoder=True)
        self.module = Decoder(self.config, self.policy)

    def _init(self, key: Array) -> Params:
        width = self.config.cross_attention_hidden_size or self.config.d_model
        states, ids = jnp.zeros((1, 1, width), self.policy.result), jnp.zeros((1, 1), jnp.int32)

        def initialise(module: Decoder) -> DecoderOutput:
            return module(ids, module.project_encoder(states), causal_mask(1, 1))

        return jax.jit(functools.partial(self.module.init, method=initialise))(key)["params"]

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, dtype: str = "float32", **hub_options: Any) -> Self:
        """The decoder of a folder or hub id: of a checkpoint of its own, or out of a whole TrOCR."""
        folder = local_folder(source, **hub_options)
        content = read_json(folder / CONFIG_NAME)
        if content.get("model_type") == VisionEncoderDecoderConfig.model_type:
            whole = VisionEncoderDecoderModel.from_pretrained(folder, dtype=dtype)
            model = cls(whole.config.decoder, whole.params["decoder"], dtype=dtype)
        else:
            config = TrOCRConfig.from_dict(content).replace(is_decoder=True)
            model = cls(*store.load_decoder(folder, config), dtype=dtype)
            store.check_tree(model.params, model._abstract(), folder)
        model.source = Source.of(source, folder)
        return model

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        head_mask: Any = None,
        cross_attn_head_mask: Any = None,
        past_key_values: PastKeyValues | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Logits of the next token at every position, and what else was asked for.

        input_ids [B, T] (or inputs_embeds [B, T, E]); attention_mask [B, past + T], 0 for tokens not to look at;
        encoder_hidden_states [B, S, E'] with encoder_attention_mask [B, S]; head_mask and cross_attn_head_mask
        [layers, H]; labels [B, T] are not shifted, -100 is not counted. With `use_cache`, which here is off unless it
        is asked for, `past_key_values` holds everything read so far: pass it back with the tokens that follow.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        arrays = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "head_mask": head_mask,
            "cross_attn_head_mask": cross_attn_head_mask,
            "labels": labels,
        }
        given = {name: None if value is None else jnp.asarray(value) for name, value in arrays.items()}
        self._check(given, past_key_values)
        output = _decode(
            self._device_params,
            given,
            past_key_values,
            module=self.module,
            use_cache=bool(use_cache) or past_key_values is not None,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return output.to_tuple() if return_dict is False else output

    def _check(self, given: Mapping[str, Array | None], past: PastKeyValues | None) -> None:
        # JAX clamps what is out of range, silently, where torch raises an IndexError.
        config = self.config
        ids, labels = given["input_ids"], given["labels"]
        if ids is not None:
            check_ids("input_ids", ids, config.vocab_size)
        if labels is not None:
            check_ids("labels", labels, config.vocab_size, also=IGNORED_LABEL)
        tokens = ids if ids is not None else given["inputs_embeds"]
        assert tokens is not None
        before = 0 if past is None or isinstance(past.length, jax.core.Tracer) else int(past.length)
        if before + tokens.shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"{before + tokens.shape[1]} tokens are more than the {config.max_position_embeddings} positions "
                "that this model knows"
            )
        for name in ("head_mask", "cross_attn_head_mask"):
            mask, shape = given[name], (config.decoder_layers, config.decoder_attention_heads)
            if mask is not None and mask.shape != shape:
                raise ValueError(f"{name} has shape {list(mask.shape)}; [layers, heads] = {list(shape)} was expected")


class VisionEncoderDecoderModel(_Model):
    """The whole of TrOCR: images in, text out."""

    def __init__(
        self,
        config: VisionEncoderDecoderConfig | None = None,
        encoder: ViTModel | None = None,
        decoder: TrOCRForCausalLM | None = None,
        params: Params | None = None,
        *,
        generation_config: GenerationConfig | None = None,
        dtype: str = "float32",
        seed: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(params, dtype, seed, mesh)
        self._mesh = None if mesh is None else checked_mesh(mesh)
        if config is None:
            if encoder is None or decoder is None:
                raise ValueError("pass either config= or both encoder= and decoder=")
            config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        self.config = config
        self.module = VisionEncoderDecoder(config, self.policy)
        self._encoder, self._decoder = encoder, decoder
        self._generation_config = None if generation_config is None else checked_settings(generation_config)

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings that `generate` starts from: those given, else what the configuration says."""
        if self._generation_config is not None:
            return self._generation_config
        return GenerationConfig.from_model_config(self.config.to_dict())

    @generation_config.setter
    def generation_config(self, settings: GenerationConfig) -> None:
        self._generation_config = checked_settings(settings)

    def settings_with(self, given: GenerationConfig | None) -> GenerationConfig:
        """The settings that a call was given, with this model's special tokens where they name none, or its own."""
        if given is None:
            return self.generation_config
        return checked_settings(given).with_tokens_of(self.generation_config)

    def _init(self, key: Array) -> Params:
        params = dict(init_params(self.module, key))
        for name, part in (("encoder", self._encoder), ("decoder", self._decoder)):
            if part is not None:
                params[name] = part.params
        return params

    def _abstract(self) -> Params:
        return abstract_params(self.module)

    @property
    def num_parts(self) -> int:
        """How many parts a batch is divided into."""
        return axis_size(self.mesh, DATA)

    def encode(self, pixel_values: Any) -> Array:
        """Encoder states [B, S, E] of pixel_values [B, 3, height, width], before any bridge projection."""
        model, params = self.runtime
        images = shard_batch(check_images(model, pixel_values), self.mesh)
        return encode(params["encoder"], images, module=Encoder(model.config.encoder, model.policy)).last_hidden_state

    @property
    def mesh(self) -> Mesh | None:
        """The devices that inference runs on, all local ones unless others were given; None for one device."""
        return default_mesh() if self._mesh is None else self._mesh

    @functools.cached_property
    def runtime(self) -> tuple[VisionEncoderDecoder, Params]:
        """The module and tree that inference runs, made from `params` once; see `modeling.model.prepare`."""
        return prepare(self.params, self.module, self.mesh)

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, dtype: str = "float32", mesh: Mesh | None = None, **hub_options: Any
    ) -> Self:
        """The model of a folder or hub id. `mesh` and `hub_options`: see `trocr_jax.TrOCR.from_pretrained`.

        Raises ValueError for a configuration that is not supported or weights that do not fit it, FileNotFoundError
        or OSError where there is nothing to load.
        """
        folder = local_folder(source, **hub_options)
        config, params = store.load_params(folder, VisionEncoderDecoderConfig.from_pretrained(folder))
        settings = GenerationConfig.from_pretrained(folder)
        model = cls(config, params=params, generation_config=settings, dtype=dtype, mesh=mesh)
        store.check_tree(params, model._abstract(), folder)
        model.source = Source.of(source, folder)
        return model

    def write_files(self, folder: pathlib.Path, *, max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE) -> None:
        """Writes what belongs to this model, generation_config.json included, into a folder that exists."""
        super().write_files(folder, max_shard_size=max_shard_size)
        write_json(folder / GENERATION_CONFIG_NAME, self.generation_config.to_dict())

    def _description(self) -> tuple[str, str]:
        return registry.summary(self.config), USAGE

    def __call__(
        self,
        pixel_values: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        encoder_outputs: Any = None,
        past_key_values: PastKeyValues | None = None,
        decoder_inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Logits for given target tokens, and the loss where labels are given.

        pixel_values [B, 3, height, width], or encoder_outputs from an earlier call (an output, a tuple, or [B, S, E]
        itself). labels [B, T], end token included and start token not: they are shifted right from
        `decoder_start_token_id` to become the decoder's input, unless decoder_input_ids are given, and -100 is not
        counted. Other arguments as in `TrOCRForCausalLM`.
        """
        params = self._device_params
        encoded = self._encoded(pixel_values, encoder_outputs, output_attentions, output_hidden_states)
        if labels is None and decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("pass decoder_input_ids, decoder_inputs_embeds or labels: there is nothing to decode")
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            start, pad = self.config.label_start_token_id, self.config.label_pad_token_id
            decoder_input_ids = shift_tokens_right(labels, pad, start)
        states = encoded.last_hidden_state
        if self.config.has_bridge:
            states = _bridge(params["enc_to_dec_proj"], states, module=self.module)
        decoder = TrOCRForCausalLM(self.config.decoder, params["decoder"], dtype=self.policy.name)
        decoded = decoder(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=states,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        assert isinstance(decoded, CausalLMOutputWithCrossAttentions)
        output = Seq2SeqLMOutput(
            loss=decoded.loss,
            logits=decoded.logits,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )
        return output.to_tuple() if return_dict is False else output

    def _encoded(
        self, pixel_values: Any, encoder_outputs: Any, output_attentions: bool, output_hidden_states: bool
    ) -> BaseModelOutput:
        if isinstance(encoder_outputs, BaseModelOutput):
            return encoder_outputs
        if encoder_outputs is not None:
            parts = encoder_outputs if isinstance(encoder_outputs, tuple) else (encoder_outputs,)
            return BaseModelOutput(*parts)
        if pixel_values is None:
            raise ValueError("pass either pixel_values or encoder_outputs")
        encoder = ViTModel(self.config.encoder, self._device_params["encoder"], dtype=self.policy.name)
        output = encoder(pixel_values, output_attentions=output_attentions, output_hidden_states=output_hidden_states)
        assert isinstance(output, BaseModelOutput)
        return output

    def generate(
        self,
        pixel_values: Any = None,
        *,
        generation_config: GenerationConfig | None = None,
        return_dict_in_generate: bool = False,
        **arguments: Any,
    ) -> np.ndarray | GenerationOutput:
        """Token ids [B*R, length] for images, or the whole GenerationOutput with `return_dict_in_generate`.

        `generation_config` takes the place of the model's own settings, special tokens apart that it does not name;
        `arguments` are encoder_hidden_states, encoder_attention_mask, decoder_input_ids and constraints, for sampling a
        key and image_numbers (see `trocr_jax.decoding.generate`), a preset, and any field of GenerationConfig. The
        default length fits a line of text, where the reference stops after 20 tokens.
        """
        inputs = {name: arguments.pop(name, None) for name in _GENERATE_INPUTS}
        if pixel_values is None:
            pixel_values = arguments.pop("inputs", None)  # the reference's name
        model, params = self.runtime
        settings = self.settings_with(generation_config)
        output = generate(model, params, settings, pixel_values=pixel_values, options=arguments, **inputs)
        return output if return_dict_in_generate else output.sequences


@functools.partial(jax.jit, static_argnames=("module", "output_attentions", "output_hidden_states"))
def encode(params: Params, pixel_values: Array, *, module: Encoder, **outputs: bool) -> EncoderOutput:
    """What an encoder module computes with these parameters, compiled."""
    return encode_images(module, params, pixel_values, **outputs)


@functools.partial(jax.jit, static_argnames=("module",))
def _bridge(params: Params, states: Array, *, module: VisionEncoderDecoder) -> Array:
    return apply(module, {"enc_to_dec_proj": params}, states, method="bridge")


@functools.partial(jax.jit, static_argnames=("module", "use_cache", "output_attentions", "output_hidden_states"))
def _decode(
    params: Params,
    given: Mapping[str, Array | None],
    past: PastKeyValues | None,
    *,
    module: Decoder,
    use_cache: bool,
    output_attentions: bool,
    output_hidden_states: bool,
) -> CausalLMOutputWithCrossAttentions:
    config = module.config
    ids, embeds, labels = given["input_ids"], given["inputs_embeds"], given["labels"]
    tokens = ids if ids is not None else embeds
    assert tokens is not None
    batch, num_tokens = tokens.shape[:2]
    states = given["encoder_hidden_states"]
    cross_kv = None if past is None else past.cross_kv
    if cross_kv is None and states is not None:
        cross_kv = apply(module, params, states, method="project_encoder")
    if use_cache and past is None:
        heads, length = config.decoder_attention_heads, config.max_position_embeddings
        depth = config.d_model // heads
        caches = allocate(config.decoder_layers, batch, heads, length, depth, module.policy.result)
        past = PastKeyValues(caches, cross_kv, jnp.int32(0))
    position = jnp.int32(0) if past is None else past.length
    slots = num_tokens if past is None else past.self_kv[0].key.shape[2]
    encoder_mask = given["encoder_attention_mask"]
    found = apply(
        module,
        params,
        ids,
        cross_kv,
        _with_padding(causal_mask(num_tokens, slots, position), given["attention_mask"], slots),
        position,
        self_kv=None if past is None else past.self_kv,
        slot=position,
        inputs_embeds=embeds,
        cross_mask=None if encoder_mask is None else encoder_mask.astype(bool)[:, None, None, :],
        head_masks=HeadMasks(given["head_mask"], given["cross_attn_head_mask"]),
        output_attentions=output_attentions,
        output_hidden_states=output_hidden_states,
    )
    return CausalLMOutputWithCrossAttentions(
        loss=None if labels is None else cross_entropy(found.logits, labels),
        logits=found.logits,
        past_key_values=PastKeyValues(found.self_kv, cross_kv, position + num_tokens) if past is not None else None,
        hidden_states=found.hidden_states,
        attentions=found.attentions,
        cross_attentions=found.cross_attentions,
    )


def _with_padding(mask: Array, attention_mask: Array | None, slots: int) -> Array:
    """Mask [1, 1, T, slots] and attention_mask [B, tokens so far] -> [B, 1, T, slots]."""
    if attention_mask is None:
        return mask
    is_token = attention_mask.astype(bool)
    is_token = jnp.pad(is_token, ((0, 0), (0, slots - is_token.shape[1])))
    return mask & is_token[:, None, None, :]
