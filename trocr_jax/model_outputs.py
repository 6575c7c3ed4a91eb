"""What the model classes return: pytrees with the reference's field names.

B images, T target tokens, S encoder tokens, H heads, D head size, E width, V vocabulary.
"""

from __future__ import annotations

import flax.struct
import jax

from trocr_jax.modeling.cache import CrossKV, SelfKV
from trocr_jax.modeling.output import Output

Array = jax.Array


@flax.struct.dataclass
class PastKeyValues:
    """A preallocated cache of everything read so far; pass it back with the next tokens."""

    self_kv: tuple[SelfKV, ...]  # a layer each, [B, H, max_position_embeddings, D]
    cross_kv: tuple[CrossKV, ...] | None
    length: Array  # [] positions filled


@flax.struct.dataclass
class BaseModelOutput(Output):
    """An encoder's output; there is no pooler, since no TrOCR uses one."""

    last_hidden_state: Array  # [B, S, E]
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@flax.struct.dataclass
class CausalLMOutputWithCrossAttentions(Output):
    """A decoder's output."""

    loss: Array | None = None
    logits: Array | None = None  # [B, T, V]
    past_key_values: PastKeyValues | None = None
    hidden_states: tuple[Array, ...] | None = None  # layers + 1 of [B, T, E]
    attentions: tuple[Array, ...] | None = None  # a layer each, [B, H, T, T] or [B, H, T, cache length]
    cross_attentions: tuple[Array, ...] | None = None  # a layer each, [B, H, T, S]


@flax.struct.dataclass
class Seq2SeqLMOutput(Output):
    """The whole model's output."""

    loss: Array | None = None
    logits: Array | None = None  # [B, T, V]
    past_key_values: PastKeyValues | None = None
    decoder_hidden_states: tuple[Array, ...] | None = None
    decoder_attentions: tuple[Array, ...] | None = None
    cross_attentions: tuple[Array, ...] | None = None
    encoder_last_hidden_state: Array | None = None  # [B, S, E]
    encoder_hidden_states: tuple[Array, ...] | None = None
    encoder_attentions: tuple[Array, ...] | None = None
