"""What the model classes return: pytrees with the reference's field names.

B images, T target tokens, S encoder tokens, H heads, D head size, E width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax

from trocr_jax.modeling.cache import CrossKV, SelfKV

Array = jax.Array


class _Output:
    """What the reference's outputs offer beside their fields."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in order."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@flax.struct.dataclass
class PastKeyValues:
    """A preallocated cache of everything read so far; pass it back with the next tokens."""

    self_kv: tuple[SelfKV, ...]  # a layer each, [B, H, max_position_embeddings, D]
    cross_kv: tuple[CrossKV, ...] | None
    length: Array  # [] positions filled


@flax.struct.dataclass
class BaseModelOutput(_Output):
    """An encoder's output; there is no pooler, since no TrOCR uses one."""

    last_hidden_state: Array  # [B, S, E]
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@flax.struct.dataclass
class CausalLMOutputWithCrossAttentions(_Output):
    """A decoder's output."""

    loss: Array | None = None
    logits: Array | None = None  # [B, T, V]
    past_key_values: PastKeyValues | None = None
    hidden_states: tuple[Array, ...] | None = None  # layers + 1 of [B, T, E]
    attentions: tuple[Array, ...] | None = None  # a layer each, [B, H, T, T] or [B, H, T, cache length]
    cross_attentions: tuple[Array, ...] | None = None  # a layer each, [B, H, T, S]


@flax.struct.dataclass
class Seq2SeqLMOutput(_Output):
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
