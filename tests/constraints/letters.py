"""A byte-level tokenizer of a few letters, small enough to try every row of tokens."""

from __future__ import annotations

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trocr_jax.constraints.vocabulary import Vocabulary
from trocr_jax.processing.tokenizer import TrOCRTokenizer

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
# é and è in bytes: Ã (C3) and © (A9) or ¨ (A8). Ġ is the space.
LETTERS = ["a", "b", "c", "1", "2", "Ġ", "Ã", "©", "¨"]
MERGES = [("a", "b"), ("b", "c"), ("ab", "c"), ("1", "2"), ("Ġ", "a"), ("a", "Ã"), ("Ġa", "b"), ("Ã", "©"), ("b", "b")]
END = 2


@functools.cache
def make_tokenizer(add_prefix_space: bool = False) -> TrOCRTokenizer:
    """22 tokens: four special ones, the letters, the merges."""
    names = [*SPECIAL.values(), *LETTERS, *("".join(pair) for pair in MERGES)]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL.values()])
    return TrOCRTokenizer(backend, SPECIAL)


def make_vocabulary(size: int | None = None, add_prefix_space: bool = False) -> Vocabulary:
    """That tokenizer's vocabulary, for a model of `size` tokens."""
    tokenizer = make_tokenizer(add_prefix_space)
    return Vocabulary.of(tokenizer, size or len(tokenizer), (END,))
