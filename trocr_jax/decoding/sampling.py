"""Drawing tokens at random: noise that makes the best score a draw, and the warpers that shape what is drawn from.

A draw is the best of scores with Gumbel noise added, so that greedy search and beam search sample without a line of
their own: the best is distributed as softmax(scores), and the best C as C draws without replacement, in the order
drawn. Source of that: Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them", 2019.
Source of the warpers: transformers 5.23, generation/logits_process.py. Among tokens of equal score at a threshold the
reference keeps some by the order of its sort; here all of them stay.

B images, K samples or beams of each, N = B*K decoder rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from trocr_jax.decoding.logits_processors import Array, State, Stateless


@flax.struct.dataclass
class Randomness:
    """What every draw of a search derives from: an image's draws depend on the key and on its number alone."""

    key: Any  # a jax.random key
    image_numbers: Any  # [B] int32

    def perturb(self, scores: Array, length: Array) -> Array:
        """Scores [B, K, V] with Gumbel noise that differs with image, sample or beam, and length."""
        _, samples, vocab_size = scores.shape

        def noise(image: Array, sample: Array) -> Array:
            # Folded in one by one instead of drawn in one shape: other images or more samples change no draw.
            key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(self.key, image), sample), length)
            return jax.random.gumbel(key, (vocab_size,), scores.dtype)

        of_samples = jax.vmap(noise, in_axes=(None, 0))
        return scores + jax.vmap(of_samples, in_axes=(0, None))(self.image_numbers, jnp.arange(samples))


@flax.struct.dataclass
class Temperature(Stateless):
    """Divides scores: below 1 likely tokens become likelier, above 1 less so."""

    temperature: Any

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Scores [N, V] divided."""
        return state, scores / self.temperature.astype(scores.dtype)


@flax.struct.dataclass
class TopK(Stateless):
    """Keeps the k best tokens."""

    k: Any  # at most V
    most: int = flax.struct.field(pytree_node=False)  # k rounded up: as many are looked at, so that k can be traced

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets all scores below the k-th best to -inf."""
        scores = _computed_once(scores)
        best = lax.top_k(scores, self.most)[0]
        return state, _keep(scores, lax.dynamic_index_in_dim(best, self.k - 1, axis=1))


@flax.struct.dataclass
class TopP(Stateless):
    """Keeps the fewest best tokens whose probabilities add up to more than `top_p`."""

    top_p: Any
    min_tokens_to_keep: int = flax.struct.field(pytree_node=False)

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets all other scores to -inf."""
        scores = _computed_once(scores)
        ascending = jnp.sort(scores, axis=1)
        cumulative = jnp.cumsum(jax.nn.softmax(ascending, axis=1), axis=1)
        num_removed = jnp.sum(cumulative <= 1 - self.top_p.astype(scores.dtype), axis=1, keepdims=True)
        first_kept = jnp.minimum(num_removed, scores.shape[1] - self.min_tokens_to_keep)
        return state, _keep(scores, jnp.take_along_axis(ascending, first_kept, axis=1))


@flax.struct.dataclass
class MinP(Stateless):
    """Keeps tokens at least `min_p` times as likely as the likeliest."""

    min_p: Any
    min_tokens_to_keep: int = flax.struct.field(pytree_node=False)

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets all other scores to -inf."""
        scores = _computed_once(scores)
        best = lax.top_k(scores, self.min_tokens_to_keep)[0]
        least = best[:, :1] + jnp.log(self.min_p.astype(scores.dtype))
        return state, _keep(scores, jnp.minimum(least, best[:, -1:]))


@flax.struct.dataclass
class TypicalP(Stateless):
    """Keeps the tokens whose surprise is closest to the expected one, until they add up to `typical_p`.

    Method: Meister et al., "Locally Typical Sampling", 2022.
    """

    typical_p: Any
    min_tokens_to_keep: int = flax.struct.field(pytree_node=False)

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets all other scores to -inf."""
        log_probs = jax.nn.log_softmax(scores, axis=1)
        probs = jnp.exp(log_probs)
        # A token ruled out already has probability 0 and no share in the entropy, not 0 * -inf.
        entropy = -jnp.sum(jnp.where(probs > 0, probs * log_probs, 0), axis=1, keepdims=True)
        distance = _computed_once(jnp.abs(-log_probs - entropy))
        ascending, probs = lax.sort((distance, probs), dimension=1, num_keys=1)
        last = jnp.sum(jnp.cumsum(probs, axis=1) < self.typical_p.astype(scores.dtype), axis=1, keepdims=True)
        last = jnp.clip(last, self.min_tokens_to_keep - 1, scores.shape[1] - 1)
        is_kept = distance <= jnp.take_along_axis(ascending, last, axis=1)
        return state, jnp.where(is_kept, scores, -jnp.inf)


def _computed_once(scores: Array) -> Array:
    """The same. Scores that a compiler sorts, and computes anew to compare with what was sorted, may be rounded
    otherwise the second time, and no token be left.

    XLA heeds this on GPU and TPU. On CPU it does not, but only jax 0.10's older emitters, which it does not use unless
    asked to, were seen to round otherwise.
    """
    return lax.optimization_barrier(scores)


def _keep(scores: Array, least: Array) -> Array:
    return jnp.where(scores >= least, scores, -jnp.inf)
