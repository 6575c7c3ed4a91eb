"""What greedy and beam search share: the step function they drive, their options and their result.

B images, K beams or samples, N = B*K decoder rows, P prompt tokens, L cache length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from trocr_jax.decoding.logits_processors import LogitsProcessor
from trocr_jax.decoding.sampling import Randomness

Array = jax.Array
Cache = Any

# (tokens [B, K], position, ancestors [B, K, L], cache) -> (logits [B, K, V], cache)
StepFunction = Callable[[Array, Array, Array, Cache], tuple[Array, Cache]]

NEG_INF = -1.0e9  # the reference's "impossible": finite, so that it can be added to

# early_stopping as a traced number
EARLY_STOPPING: dict[Any, int] = {False: 0, True: 1, "never": 2}


@flax.struct.dataclass
class SearchOptions:
    """Settings of a search, numpy's on their way in and traced under jit: changing one does not recompile."""

    max_length: Any  # tokens, start included; at most the buffer's length
    end_tokens: Any  # [number of end tokens]
    fill_token: Any  # stands behind the end of a sequence
    length_penalty: Any
    early_stopping: Any  # see EARLY_STOPPING
    is_image: Any  # [B]; False for rows that only fill the batch up to its bucket
    processors: tuple[LogitsProcessor, ...]
    randomness: Randomness | None = None  # where tokens are drawn instead of the best taken
    # What to keep of every step; static, since a buffer is allocated for it.
    output_scores: bool = flax.struct.field(pytree_node=False, default=False)
    output_logits: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class Record:
    """What was asked to be kept of every step, each [N, L, V] with a step at its new token's place; else None."""

    scores: Array | None  # processed
    logits: Array | None  # the model's own

    @classmethod
    def allocate(cls, options: SearchOptions, num_rows: int, length: int, vocab_size: int, dtype: Any) -> Record:
        """An empty one."""
        shape = (num_rows, length, vocab_size)
        scores = jnp.zeros(shape, dtype) if options.output_scores else None
        return cls(scores, jnp.zeros(shape, dtype) if options.output_logits else None)

    def write(self, length: Array, scores: Array, logits: Array) -> Record:
        """This one with another step's scores and logits, each [N, V]."""

        def write(buffer: Array | None, values: Array) -> Array | None:
            if buffer is None:
                return None
            return lax.dynamic_update_slice_in_dim(buffer, values[:, None], length, axis=1)

        return Record(write(self.scores, scores), write(self.logits, logits))


@flax.struct.dataclass
class Hypotheses:
    """What a search found: R hypotheses of each image, best first."""

    sequences: Array  # [B, R, L] int32, prompt first, filled up behind the end
    num_tokens: Array  # [B, R] new tokens, the end token included; 0 for a slot that no hypothesis filled
    token_log_probs: Array  # [B, R, L] at each new token's place, 0 elsewhere
    scores: Array  # [B, R]: log-probability divided by length ** length_penalty; the plain sum without beams
    # [] tokens that the search went on to, the prompt included: at least the longest hypothesis's; or [parts], one of
    # each part of a mesh.
    length: Array
    record: Record
    beam_indices: Array | None = None  # [B, R, L] the beam each new token was drawn from, where steps are kept


def is_end(tokens: Array, options: SearchOptions) -> Array:
    """Whether each token ends a sequence; the shape of `tokens`."""
    return jnp.any(tokens[..., None] == options.end_tokens, axis=-1)


def own_slots(batch: int, beams: int, length: int) -> Array:
    """Ancestors [B, K, L] of beams that have a past of their own: beam k's slots are all k."""
    return jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[None, :, None], (batch, beams, length))


def read_prompt(step: StepFunction, prompt: Array, ancestors: Array, cache: Cache) -> Cache:
    """The cache with all prompt tokens but the last in it; prompt [B, P], every beam reads the same."""
    batch, beams, _ = ancestors.shape

    def read(position: Array, cache: Cache) -> Cache:
        tokens = lax.dynamic_slice_in_dim(prompt, position, 1, axis=1)
        return step(jnp.broadcast_to(tokens, (batch, beams)), position, ancestors, cache)[1]

    # A prompt of the start token alone, the usual case, leaves nothing to read: no loop is compiled.
    return lax.fori_loop(0, prompt.shape[1] - 1, read, cache) if prompt.shape[1] > 1 else cache
