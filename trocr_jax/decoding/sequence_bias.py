"""Biases on whole token sequences: `sequence_bias`, and `bad_words_ids` as a bias of -inf.

Source: transformers 5.23, SequenceBiasLogitsProcessor. Its lists become padded arrays whose shapes are bucketed: other
words of about as many tokens do not recompile.

N decoder rows, L cache length, V vocabulary, M sequences of several tokens, W tokens in front of a sequence's last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from trocr_jax.decoding.logits_processors import Array, State, Stateless
from trocr_jax.decoding.shapes import bucket

ANY_TOKEN = -1
# The least M and W, so that short lists share one program.
_LEAST_SEQUENCES, _LEAST_PREFIX = 8, 4


@flax.struct.dataclass
class SequenceBias(Stateless):
    """Adds each sequence's bias to the score of its last token in rows that end in all its others.

    In:  sequences [5, 6, 7] with bias -1 and [9] with bias 2, row [2, 5, 6], length 3
    Out: token 7 scores 1 less, and token 9 scores 2 more, as it does behind every row
    """

    alone: Any  # [V] the biases of single tokens
    prefixes: Any  # [M, W] the others' tokens but the last, at the right; ANY_TOKEN in front
    last_tokens: Any  # [M]; V in rows that only fill up
    biases: Any  # [M]

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Adds up the biases that apply."""
        places = length - self.prefixes.shape[1] + jnp.arange(self.prefixes.shape[1])
        ends = jnp.take(sequences, jnp.maximum(places, 0), axis=1)
        ends = jnp.where(places < 0, ANY_TOKEN, ends)  # [N, W]; nothing stands in front of a row
        is_match = jnp.all((self.prefixes == ANY_TOKEN) | (ends[:, None] == self.prefixes), axis=-1)  # [N, M]
        # Adding 0 where nothing matches, rather than multiplying: a bias may be -inf.
        biases = jnp.where(is_match, self.biases, 0).astype(scores.dtype)
        total = jnp.broadcast_to(self.alone.astype(scores.dtype), scores.shape)
        rows = jnp.arange(scores.shape[0])[:, None]
        total = total.at[rows, self.last_tokens[None]].add(biases, mode="drop")
        return state, scores + total


def make_sequence_bias(biases: Mapping[tuple[int, ...], float], vocab_size: int) -> SequenceBias:
    """The processor of sequences of tokens in the vocabulary, none empty, and their biases."""
    longer = {tokens: bias for tokens, bias in biases.items() if len(tokens) > 1}
    alone = np.zeros(vocab_size, np.float32)
    for tokens, bias in biases.items():
        if len(tokens) == 1:
            alone[tokens[0]] = bias
    count = bucket(max(_LEAST_SEQUENCES, len(longer)))
    width = bucket(max(_LEAST_PREFIX, *(len(tokens) - 1 for tokens in longer), 1))
    prefixes = np.full((count, width), ANY_TOKEN, np.int32)
    last_tokens, values = np.full(count, vocab_size, np.int32), np.zeros(count, np.float32)
    for i, (tokens, bias) in enumerate(longer.items()):
        prefixes[i, width - len(tokens) + 1 :] = tokens[:-1]
        last_tokens[i], values[i] = tokens[-1], bias
    return SequenceBias(alone, prefixes, last_tokens, values)
