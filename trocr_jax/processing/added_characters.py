"""Tokenizers with tokens for characters that they lack: one token a character, wherever it stands.

The characters become part of the model inside the tokenizer, not "added tokens" beside it: those cut a text into parts
that are tokenized alone, and a byte-level decoder takes some of them, such as "é", for bytes. Two kinds can be
extended, which are those of TrOCR's checkpoints:

- byte-level BPE (RoBERTa) spells any character, rare ones in up to four tokens. A character gets merges of its bytes,
  before all others, so that nothing else can take one of its bytes away: " ж" is then " " and "ж", where the space had
  been joined with the first byte of many Cyrillic letters. BPE joins two tokens at a time, so characters of three and
  four bytes have their first bytes as tokens too, which others share: one of those may lose the token that it had.
- Unigram (SentencePiece) gets a piece of the lowest score, which is preferred to the unknown token alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trocr_jax.processing.tokenizer import TrOCRTokenizer


def with_characters(tokenizer: TrOCRTokenizer, characters: Iterable[str]) -> TrOCRTokenizer:
    """A tokenizer whose vocabulary has each of the characters as a token; ids that there were stay as they are.

    Characters with a token already, and white space, are left alone. Raises ValueError for a kind of tokenizer that
    cannot be extended, and for characters that would still not be spelled in it, since it changes them before it looks
    for tokens.
    """
    backend = tokenizer.backend
    wanted = [c for c in dict.fromkeys(characters) if not (c.isspace() or has_token(tokenizer, c))]
    if not wanted:
        return tokenizer
    content = json.loads(backend.to_str())
    _keep_added_tokens(content)
    if isinstance(backend.model, models.BPE) and isinstance(backend.decoder, decoders.ByteLevel):
        _add_to_bpe(content["model"], wanted)
    elif isinstance(backend.model, models.Unigram):
        _add_to_unigram(content["model"], wanted)
    else:
        raise ValueError(
            f"a tokenizer with a {content['model']['type']} model cannot be extended, byte-level BPE and Unigram can: "
            "replace the tokenizer by one that has the characters"
        )
    extended = TrOCRTokenizer(Tokenizer.from_str(json.dumps(content)), tokenizer.special_tokens, tokenizer.config)
    if lost := [character for character in wanted if not has_token(extended, character)]:
        raise ValueError(
            f"the tokenizer changes {', '.join(f'{c!r} U+{ord(c):04X}' for c in lost)} before it looks for tokens, "
            f"to {extended.decode(extended(''.join(lost)).input_ids, skip_special_tokens=True)!r}: write that in the "
            "texts, or replace the tokenizer"
        )
    return extended


def has_token(tokenizer: TrOCRTokenizer, character: str) -> bool:
    """Whether one token, beside a mark for a space in front of the text, spells the character."""
    ids = tokenizer(character, add_special_tokens=False).input_ids
    is_one = len(ids) == 1 or (len(ids) == 2 and tokenizer.convert_ids_to_tokens(ids)[0] in ("▁", "Ġ"))
    # Byte-level tokenizers with `add_prefix_space` leave the space that they put in front.
    return is_one and tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ") == character


def byte_spelling(character: str) -> str:
    """A character's bytes in the alphabet of byte-level tokenizers.

    In:  "ж", whose UTF-8 is D0 B6
    Out: "Ð¶"
    """
    [(spelling, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)
    return spelling


def _keep_added_tokens(content: dict[str, Any]) -> None:
    """Added tokens behind the vocabulary become entries of it, or new entries would be given their ids."""
    vocab = content["model"]["vocab"]
    for token in sorted(content["added_tokens"], key=lambda token: int(token["id"])):
        if isinstance(vocab, dict):
            vocab.setdefault(token["content"], token["id"])
        elif token["id"] >= len(vocab):
            if token["id"] > len(vocab):
                raise ValueError(f"the tokenizer has no token {len(vocab)} but a later one, {token['content']!r}")
            vocab.append([token["content"], 0.0])


def _add_to_bpe(model: dict[str, Any], characters: Iterable[str]) -> None:
    vocab: dict[str, int] = model["vocab"]
    next_id = max(vocab.values()) + 1
    merges: dict[tuple[str, str], None] = {}
    for spelling in map(byte_spelling, characters):
        for end in range(1, len(spelling)):
            merges[spelling[:end], spelling[end]] = None
            if spelling[: end + 1] not in vocab:
                vocab[spelling[: end + 1]] = next_id
                next_id += 1
    # Old files have merges as "a b".
    known = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    model["merges"] = [*merges, *(merge for merge in known if merge not in merges)]


def _add_to_unigram(model: dict[str, Any], characters: Iterable[str]) -> None:
    vocab: list[list[Any]] = model["vocab"]
    pieces, lowest = {piece for piece, _ in vocab}, min(score for _, score in vocab)
    vocab += [[character, lowest] for character in characters if character not in pieces]
