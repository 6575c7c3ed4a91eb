"""The oracle's own list of processors, and random settings that each of them is tried with."""

from __future__ import annotations

import numpy as np
import torch

VOCAB_SIZE = 41
END = 2


def oracle_processors(oracle, options, *, prompt_length=1):
    """What transformers' generate would apply to the scores behind a prompt, in its order."""
    settings, _ = oracle._prepare_generation_config(None, **options)
    oracle._prepare_special_tokens(settings, kwargs_has_attention_mask=True, device="cpu")
    if settings.max_new_tokens is not None:
        settings.max_length = prompt_length + settings.max_new_tokens
    if settings.min_new_tokens is not None:
        settings.min_length = prompt_length + settings.min_new_tokens
    return oracle._get_logits_processor(settings, input_ids_seq_length=prompt_length, device="cpu")


def oracle_scores(processors, sequences, scores):
    """Scores [N, V] behind sequences [N, length], as the oracle's processors leave them."""
    with torch.inference_mode():
        return processors(torch.from_numpy(sequences), torch.from_numpy(scores.copy())).numpy()


class RandomOptions:
    """Values for each setting, drawn so that they meet given texts: n-grams come out of these."""

    def __init__(self, rng, texts):
        self.rng, self.texts = rng, texts

    def tokens(self, count):
        """Tokens that are not special, without repetition, taken from the texts as a rule."""
        often = sorted({token for text in self.texts for token in text if token > END})
        pool = often if len(often) >= count else range(3, VOCAB_SIZE)
        return self.rng.sample(list(pool), count)

    def ngram(self, longest):
        """A few tokens that stand side by side in a text."""
        text = self.rng.choice(self.texts)
        size = self.rng.randint(1, min(longest, len(text)))
        start = self.rng.randrange(len(text) - size + 1)
        return [int(token) for token in text[start : start + size]]

    def ngrams(self):
        return [self.ngram(4) for _ in range(self.rng.randint(1, 6))]

    def draw(self, name):
        """A value that the reference accepts."""
        rng = self.rng
        if name == "sequence_bias":
            return [[tokens, rng.choice([-6.0, -2.5, 0.75, 3.0])] for tokens in self.ngrams()]
        if name == "bad_words_ids":
            return [*self.ngrams(), *([[END]] if rng.random() < 0.3 else []), [rng.randrange(3, VOCAB_SIZE)]]
        return {
            "repetition_penalty": lambda: rng.choice([0.6, 1.2, 1.7]),
            "no_repeat_ngram_size": lambda: rng.choice([1, 2, 3]),
            "min_length": lambda: rng.randint(2, 9),
            "min_new_tokens": lambda: rng.randint(1, 8),
            "forced_bos_token_id": lambda: rng.choice([0, *self.tokens(2)]),
            "forced_eos_token_id": lambda: rng.choice([END, [END, self.tokens(1)[0]], self.tokens(1)[0]]),
            "remove_invalid_values": lambda: True,
            "exponential_decay_length_penalty": lambda: (rng.randint(0, 8), rng.choice([0.9, 1.02, 1.3, 2.0])),
            "suppress_tokens": lambda: self.tokens(rng.randint(1, 4)),
            "begin_suppress_tokens": lambda: [*self.tokens(2), *([END] if rng.random() < 0.5 else [])],
            "renormalize_logits": lambda: True,
            "temperature": lambda: rng.choice([0.4, 0.9, 2.0]),
            "top_k": lambda: rng.choice([0, 1, 3, 20, 100]),
            "top_p": lambda: rng.choice([0.0, 0.3, 0.8, 0.95]),
            "min_p": lambda: rng.choice([0.0, 0.05, 0.3, 1.0]),
            "typical_p": lambda: rng.choice([0.2, 0.6, 0.95]),
        }[name]()

    def combination(self, names):
        """Values for all these settings, but such as leave something to choose."""
        if {"remove_invalid_values", "exponential_decay_length_penalty"} <= set(names):
            # A forbidden end made finite, then raised by its own size, is as good as infinite in every beam: all tie.
            names = [name for name in names if name not in ("min_length", "min_new_tokens")]
        options = {name: self.draw(name) for name in names}
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = options.get(name, ())
            forced = {forced} if isinstance(forced, int) else set(forced)
            if "suppress_tokens" in options:
                options["suppress_tokens"] = [t for t in options["suppress_tokens"] if t not in forced]
        return options


NAMES = (
    "sequence_bias",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "renormalize_logits",
)
WARPERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")


def random_scores(seed, rows, *, damaged=False):
    """Scores [rows, V] float32, some of them infinite or not a number if `damaged`."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, VOCAB_SIZE)).astype(np.float32) * 3
    if damaged:
        wrong = rng.random(scores.shape)
        scores[wrong < 0.05] = -np.inf
        scores[(wrong > 0.05) & (wrong < 0.07)] = np.inf
        scores[wrong > 0.98] = np.nan
    return scores
