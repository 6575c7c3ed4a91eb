"""The whole network: encoder, optional bridge, decoder; and the run-time tree that `prepare` derives for it.

B images, K beams, T target tokens, L cache length, S encoder tokens, E width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.modeling.cache import CrossKV, SelfKV, allocate
from trocr_jax.modeling.decoder import Decoder, DecoderOutput, beam_mask, causal_mask
from trocr_jax.modeling.encoder import Encoder, EncoderOutput
from trocr_jax.modeling.layers import Array, Dense
from trocr_jax.modeling.policy import FLOAT32, INT8, Layout, Policy, prepared
from trocr_jax.modeling.products import arrange, assemble, pays_in_panels, quantized
from trocr_jax.sharding import MODEL, axis_size, platform_of, shard_params

Params = Mapping[str, Any]


@flax.struct.dataclass
class BeamCache:
    """What decoding remembers of a batch: constant cross-attention, and self-attention shared by the beams."""

    cross_kv: tuple[CrossKV, ...]
    self_kv: tuple[SelfKV, ...]
    encoder_mask: Array | None  # [B, 1, 1, S], True where an encoder token may be looked at


class VisionEncoderDecoder(nn.Module):
    """TrOCR. All methods are pure: call them through `apply(model, params, ..., method="encode")`."""

    config: VisionEncoderDecoderConfig
    policy: Policy = FLOAT32

    def setup(self) -> None:
        encoder, decoder = self.config.encoder, self.config.decoder
        # A decoder inside this model always has cross-attention, whatever its file says of is_decoder.
        self.encoder = Encoder(encoder, self.policy)
        self.decoder = Decoder(decoder.replace(is_decoder=True), self.policy)
        if self.config.has_bridge:
            width, std, layout = decoder.d_model, decoder.init_std, self.policy.encoder_layout
            self.enc_to_dec_proj = Dense(encoder.hidden_size, width, True, self.policy, layout, std)

    def encode(self, pixel_values: Array, **outputs: bool) -> EncoderOutput:
        """pixel_values [B, 3, height, width] -> EncoderOutput with last_hidden_state [B, S, E], before any bridge."""
        return self.encoder(pixel_values, **outputs)

    def project_encoder(self, encoder_hidden_states: Array) -> tuple[CrossKV, ...]:
        """[B, S, E] -> cross-attention keys and values of every decoder layer, through the bridge if there is one."""
        return self.decoder.project_encoder(self.bridge(encoder_hidden_states))

    def bridge(self, encoder_hidden_states: Array) -> Array:
        """[B, S, E] as the decoder's cross-attention takes it: projected if the model has a bridge, else unchanged."""
        return self.enc_to_dec_proj(encoder_hidden_states) if self.config.has_bridge else encoder_hidden_states

    def start(
        self, encoder_hidden_states: Array, encoder_attention_mask: Array | None, num_beams: int, cache_length: int
    ) -> BeamCache:
        """The cache before the first token: cross-attention projected once an image, self-attention empty."""
        decoder, batch = self.config.decoder, encoder_hidden_states.shape[0]
        heads = decoder.decoder_attention_heads
        mask = None if encoder_attention_mask is None else encoder_attention_mask.astype(bool)[:, None, None, :]
        dtype = jnp.dtype(self.policy.operand) if self.policy.rounds_cache else self.policy.result
        slots, depth = cache_length * num_beams, decoder.d_model // heads
        return BeamCache(
            cross_kv=self.project_encoder(encoder_hidden_states),
            self_kv=allocate(decoder.decoder_layers, batch, heads, slots, depth, dtype),
            encoder_mask=mask,
        )

    def step(self, tokens: Array, position: Array, ancestors: Array, cache: BeamCache) -> tuple[Array, BeamCache]:
        """(logits [B, K, V] of the next token, the cache with these tokens in it).

        tokens [B, K] stand at `position`; ancestors [B, K, L] say whose slots each beam looks at.
        """
        output = self.decoder(
            tokens,
            cache.cross_kv,
            beam_mask(ancestors, position),
            position,
            self_kv=cache.self_kv,
            slot=position * tokens.shape[1],
            is_one_position=True,
            cross_mask=cache.encoder_mask,
        )
        assert output.self_kv is not None
        return output.logits, dataclasses.replace(cache, self_kv=output.self_kv)

    def decode(
        self, decoder_input_ids: Array, encoder_hidden_states: Array, *, deterministic: bool = True
    ) -> DecoderOutput:
        """Teacher forcing: decoder_input_ids [B, T] and [B, S, E] -> logits [B, T, V]."""
        mask = causal_mask(decoder_input_ids.shape[1], decoder_input_ids.shape[1])
        cross_kv = self.project_encoder(encoder_hidden_states)
        return self.decoder(decoder_input_ids, cross_kv, mask, deterministic=deterministic)

    def __call__(self, pixel_values: Array, decoder_input_ids: Array, *, deterministic: bool = True) -> Array:
        """pixel_values [B, 3, height, width] and decoder_input_ids [B, T] -> logits [B, T, V].

        Unless `deterministic`, values are dropped at random as the configuration says: pass rngs={"dropout": key}.
        """
        states = self.encode(pixel_values, deterministic=deterministic).last_hidden_state
        return self.decode(decoder_input_ids, states, deterministic=deterministic).logits


def apply(module: nn.Module, params: Params, *arguments: Any, **options: Any) -> Any:
    """What the module computes with these parameters; `method=` names one of its methods."""
    return module.apply({"params": params}, *arguments, **options)


def encode_images(module: nn.Module, params: Params, pixel_values: Array, **options: Any) -> EncoderOutput:
    """As `apply`, for what encodes images [B, 3, height, width].

    Where the policy says so, one after the other, unless they are small enough for several to stay in the caches.
    """
    config = getattr(module.config, "encoder", module.config)
    scores = 4 * config.num_attention_heads * config.num_tokens**2  # bytes, float32
    if not module.policy.by_image or pixel_values.shape[0] == 1 or scores < 1 << 20:
        return apply(module, params, pixel_values, **options)
    output = lax.map(lambda image: apply(module, params, image[None], **options), pixel_values)
    return jax.tree.map(lambda leaf: leaf.squeeze(1), output)  # [B, 1, ...] -> [B, ...]


def init_params(model: VisionEncoderDecoder, key: Array) -> Params:
    """A random parameter tree of the model, in its policy's `param_dtype`."""
    config = model.config.encoder
    pixel_values = jnp.zeros((1, config.num_channels, *config.image_shape), model.policy.result)
    return jax.jit(model.init)(key, pixel_values, jnp.zeros((1, 1), jnp.int32))["params"]


def abstract_params(model: VisionEncoderDecoder) -> Params:
    """The tree of names, shapes and dtypes that the model's parameters must have; nothing is computed."""
    return jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))


def prepare(
    params: Params, model: VisionEncoderDecoder, mesh: Mesh | None = None, *, platform: str | None = None
) -> tuple[VisionEncoderDecoder, Params]:
    """The model and tree to run: the canonical parameters as a platform (default: JAX's) computes fastest with them.

    Queries, keys and values lie in one kernel, kernels in the layout of `Policy`, matrices in the operand dtype and
    all else in the result dtype; a tied head is the embedding table itself, not a copy, where their dtypes and
    layouts agree.
    On CPU the tree may share memory with numpy arrays given: do not write into those afterwards. On a mesh the tree
    lies as `trocr_jax.sharding` has it; where devices share the weights, it keeps the canonical names and layout.
    """
    if axis_size(mesh, MODEL) > 1:
        if model.policy.has_int8_decoder:
            raise ValueError('dtype "int8" needs whole weights on each device: make the mesh with model=1')
        return model, _shared(params, model.policy, mesh)
    policy = prepared(model.policy, platform or platform_of(mesh))
    # Arrays on the host are rearranged there: hundreds of small programs would have to be compiled first.
    is_on_host = all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    layout = _Layout(policy, np if is_on_host else jnp)
    tree: dict[str, Any] = {"encoder": layout.encoder(params["encoder"]), "decoder": layout.decoder(params["decoder"])}
    if "enc_to_dec_proj" in params:
        tree["enc_to_dec_proj"] = layout.dense(params["enc_to_dec_proj"], policy.encoder_layout)
    if mesh is not None:
        tree = shard_params(tree, mesh)
    elif is_on_host:
        tree = jax.device_put(tree)
    if "output_projection" not in tree["decoder"]:
        embedding = tree["decoder"]["embed_tokens"]["embedding"]  # astype copies nothing where the dtypes agree
        tree["decoder"]["output_projection"] = {"kernel": embedding.astype(policy.operand)}
    return model.clone(policy=policy), tree


def for_rows(model: VisionEncoderDecoder, params: Params, rows: int) -> tuple[VisionEncoderDecoder, Params]:
    """The prepared model and tree for a loop whose steps have so many rows.

    Panels that do not pay there are put together before the loop, which XLA would do in each step.
    """
    if not model.policy.decoder_layout.endswith("panels") or pays_in_panels(rows, model.policy.decoder_layout):
        return model, params

    def assembled(branch: Params) -> Params:
        if isinstance(branch.get("kernel"), tuple):
            features = branch["bias"].shape[0] if "bias" in branch else model.config.decoder.vocab_size
            return {**branch, "kernel": assemble(branch["kernel"], features)}
        return {name: assembled(part) if isinstance(part, Mapping) else part for name, part in branch.items()}

    layout: Layout = "int8_in_out" if model.policy.has_int8_decoder else "in_out"
    policy = dataclasses.replace(model.policy, decoder_layout=layout, head_layout=layout)
    return model.clone(policy=policy), {**params, "decoder": assembled(params["decoder"])}


def _shared(params: Params, policy: Policy, mesh: Any) -> Params:
    # Joined kernels would have to be divided within each of their parts.
    def cast(path: tuple[Any, ...], leaf: Any) -> Any:
        dtype = policy.operand if path[-1].key == "kernel" else policy.result
        return leaf.astype(jnp.dtype(dtype), copy=False)

    return shard_params(jax.tree_util.tree_map_with_path(cast, params), mesh)


class _Layout:
    """The parts of `prepare`, over numpy's or JAX's arrays."""

    def __init__(self, policy: Policy, xp: Any) -> None:
        self.policy, self.xp = policy, xp

    def encoder(self, params: Params) -> Params:
        kind = self.policy.encoder_layout
        tree = {name: self.plain(branch) for name, branch in params.items() if not name.startswith("layers_")}
        patches = params["embeddings"]["patch_embeddings"]
        flat = {**patches, "kernel": patches["kernel"].reshape(-1, patches["kernel"].shape[-1])}
        tree["embeddings"] = {**tree["embeddings"], "patch_embeddings": self.dense(flat, kind)}
        for name in params.keys() - tree.keys():
            layer = params[name]
            tree[name] = {
                "layernorm_before": self.plain(layer["layernorm_before"]),
                "attention": self.attention(layer["attention"], kind, is_cross=False),
                "layernorm_after": self.plain(layer["layernorm_after"]),
                "mlp": {name: self.dense(branch, kind) for name, branch in layer["mlp"].items()},
            }
        return tree

    def decoder(self, params: Params) -> Params:
        kind = self.policy.decoder_layout
        tree = {name: self.plain(branch) for name, branch in params.items() if not name.startswith("layers_")}
        if "output_projection" in params:
            tree["output_projection"] = self.dense(params["output_projection"], self.policy.head_layout)
        elif self.policy.head_layout != "out_in":
            tied = {"kernel": params["embed_tokens"]["embedding"].T}
            tree["output_projection"] = self.dense(tied, self.policy.head_layout)
        for name in params.keys() - tree.keys():
            layer = dict(params[name])
            tree[name] = {
                "self_attn": self.attention(layer.pop("self_attn"), kind, is_cross=False),
                "encoder_attn": self.attention(layer.pop("encoder_attn"), kind, is_cross=True),
                "mlp": {name: self.dense(branch, kind) for name, branch in layer.pop("mlp").items()},
                **{name: self.plain(branch) for name, branch in layer.items()},
            }
        return tree

    def attention(self, branch: Params, kind: Layout, *, is_cross: bool) -> Params:
        joined = ("k_proj", "v_proj") if is_cross else ("q_proj", "k_proj", "v_proj")
        parts = [branch[name] for name in joined]
        whole = {leaf: self.xp.concatenate([part[leaf] for part in parts], axis=-1) for leaf in parts[0]}
        tree = {"out_proj": self.dense(branch["out_proj"], kind)}
        if not is_cross:
            return {**tree, "qkv_proj": self.dense(whole, kind)}
        return {
            **tree,
            "q_proj": self.dense(branch["q_proj"], kind),
            "kv_proj": self.dense(whole, self.policy.encoder_layout),
        }

    def dense(self, branch: Params, kind: Layout) -> Params:
        if kind.startswith(INT8):
            kernel, scale = quantized(self.cast(branch["kernel"], self.policy.result), 0, self.xp)
            tree = {"kernel": arrange(kernel, self.policy, kind, self.xp), "scale": scale[0]}
        else:
            tree = {"kernel": arrange(self.cast(branch["kernel"], self.policy.operand), self.policy, kind, self.xp)}
        return {**tree, "bias": self.cast(branch["bias"], self.policy.result)} if "bias" in branch else tree

    def plain(self, branch: Params) -> Params:
        return jax.tree.map(lambda leaf: self.cast(leaf, self.policy.result), dict(branch))

    def cast(self, leaf: Any, dtype: Any) -> Any:
        return leaf.astype(jnp.dtype(dtype), copy=False)
