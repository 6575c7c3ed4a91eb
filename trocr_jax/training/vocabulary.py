"""Other vocabularies for a trained model: characters added to its tokenizer's, or another tokenizer.

A token that the model had keeps its row of the embedding, and its column of the head where that is not the embedding
itself; a new one starts from the mean of the rows of the old tokens that spell it (Gee et al., "Fast Vocabulary
Transfer for Language Model Compression", EMNLP 2022). Where there is none, it is the mean of all rows and a little
noise, so that no two are alike.

E width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import decoders

from trocr_jax.datasets.coverage import Coverage, tell_characters
from trocr_jax.datasets.example import Example
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.processing.added_characters import has_token, with_characters
from trocr_jax.processing.spans import spelt_bytes
from trocr_jax.processing.tokenizer import TrOCRTokenizer
from trocr_jax.recognizer import TrOCR

EMBEDDING, HEAD = "decoder/embed_tokens/embedding", "decoder/output_projection/kernel"
AUTO = "auto"
# A character that bytes can spell is worth a token of its own where it comes as often: its row must be learned.
FEWEST_OCCURRENCES = 10
# Of the deviation of all rows.
NOISE = 0.1
# In the order in which a token's role is looked up: <s> is "bos" before it is "cls".
ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
_IDS = ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id")
# Generation settings that name tokens of one vocabulary.
_OF_TOKENS = ("sequence_bias", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens")

HELP = 'add_characters="auto" (--add-characters auto) gives them tokens'

Sources = Sequence[Sequence[int]]


def missing_characters(lines: Sequence[Example], tokenizer: TrOCRTokenizer) -> str:
    """What `add_characters="auto"` adds: the characters of lines' texts that deserve a token, the most frequent first.

    Those are all that the tokenizer cannot spell though it could, and those that it spells in several tokens, as
    byte-level tokenizers do, if they come 10 times or more.
    """
    coverage = Coverage.of(lines, tokenizer)
    often = {c for c, where in coverage.several.items() if where.count >= FEWEST_OCCURRENCES}
    lost = {c for c in coverage.lost if not c.isspace() and _can_be_added(c, tokenizer)}
    found = {**coverage.lost, **coverage.several}
    return "".join(sorted(often | lost, key=lambda c: (-found[c].count, c)))


def _can_be_added(character: str, tokenizer: TrOCRTokenizer) -> bool:
    """Whether the tokenizer finds the character in a text as it is, and does not make another of it beforehand."""
    normalizer = tokenizer.backend.normalizer
    return normalizer is None or normalizer.normalize_str(character) == character


def extend_vocabulary(ocr: TrOCR, characters: str, *, seed: int = 0) -> TrOCR:
    """A recogniser whose tokenizer has a token for each of the characters, with rows to start training from.

    Old ids stay. Characters that have a token are left alone; where all do, the recogniser comes back as it is. `seed`
    draws the noise of rows that the old tokens say nothing of. Raises ValueError as `with_characters` does.
    """
    old = ocr.processor.tokenizer
    new = with_characters(old, characters)
    if new is old:
        return ocr
    known = set(old.get_vocab().values())
    added = {number: token for token, number in new.get_vocab().items() if number not in known}
    sources: list[Sequence[int]] = [[i] for i in range(max([*added, ocr.config.decoder.vocab_size - 1]) + 1)]
    for number, token in added.items():
        # By the model inside, since the token may be a part of a character.
        pieces = [piece.id for piece in old.backend.model.tokenize(token)]
        sources[number] = [piece for piece in pieces if piece != old.unk_token_id]
    return _with_rows(ocr, new, sources, seed)


def replace_tokenizer(ocr: TrOCR, tokenizer: TrOCRTokenizer | str | os.PathLike[str], *, seed: int = 0) -> TrOCR:
    """A recogniser with another tokenizer, or the one in a folder, and rows to start training from.

    Tokens that spell the same text keep their rows, special tokens those of their role, and the configuration and the
    generation settings get their ids; settings that name other tokens are dropped with a warning. Raises ValueError
    where the new tokenizer lacks a special token that is needed.
    """
    old = ocr.processor.tokenizer
    new = tokenizer if isinstance(tokenizer, TrOCRTokenizer) else TrOCRTokenizer.from_pretrained(tokenizer)
    if new.eos_token_id is None or new.pad_token_id is None:
        raise ValueError("the new tokenizer needs a token behind a text (eos_token) and one that fills up (pad_token)")
    known = {spelling: number for number, spelling in reversed(_spellings(old).items())}
    sources: list[Sequence[int]] = [[] for _ in range(max(new.get_vocab().values()) + 1)]
    for number, spelling in _spellings(new).items():
        sources[number] = [known[spelling]] if spelling in known else _pieces(old, spelling)
    for role in reversed(ROLES):
        before, after = (getattr(one, f"{role}_token_id") for one in (old, new))
        if before is not None and after is not None:
            sources[after] = [before]
    translate = _Translation(old, new)
    config, settings = ocr.config, ocr.generation_config
    decoder = config.decoder.replace(**translate.ids(config.decoder, _IDS))
    if not decoder.use_learned_position_embeddings and decoder.pad_token_id != config.decoder.pad_token_id:
        warnings.warn(
            f"this model counts positions from its padding token, which was {config.decoder.pad_token_id} and is "
            f"{decoder.pad_token_id} now: it has to learn them anew",
            stacklevel=2,
        )
    renamed = ocr.with_params(
        ocr.params,
        config=config.replace(decoder=decoder, **translate.ids(config, _IDS)),
        generation_config=translate.settings(settings),
    )
    return _with_rows(renamed, new, sources, seed)


def _spellings(tokenizer: TrOCRTokenizer) -> dict[int, bytes]:
    """What each token that is not special adds to a text, in UTF-8; a byte-level one may add half a character."""
    decoder = tokenizer.backend.decoder
    special = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special}
    tokens = sorted((number, token) for token, number in tokenizer.get_vocab().items() if token not in special)
    if isinstance(decoder, decoders.ByteLevel):
        return {number: spelt_bytes(token) for number, token in tokens}
    if isinstance(decoder, decoders.Metaspace):
        return {number: token.replace("▁", " ").encode() for number, token in tokens}
    return {number: tokenizer.backend.decode([number]).encode() for number, token in tokens}


def _pieces(tokenizer: TrOCRTokenizer, spelling: bytes) -> list[int]:
    """The tokens that spell a text, unknown ones left out; none for what is no text."""
    try:
        text = spelling.decode()
    except UnicodeDecodeError:
        return []
    ids = tokenizer(text, add_special_tokens=False).input_ids
    # The mark of a space that stands in front of every text, where this one has none.
    if not text.startswith(" ") and len(ids) > 1 and tokenizer.convert_ids_to_tokens(ids[:1]) == ["▁"]:
        ids = ids[1:]
    return [number for number in ids if number != tokenizer.unk_token_id]


def _with_rows(ocr: TrOCR, tokenizer: TrOCRTokenizer, sources: Sources, seed: int) -> TrOCR:
    """The recogniser with a tokenizer and, for each of `sources`, the mean of the old rows that are named there."""
    flat, num_known = flatten_dict(dict(ocr.params), sep="/"), len(ocr.processor.tokenizer)
    flat[EMBEDDING] = _rows(flat[EMBEDDING], sources, num_known, seed)
    if HEAD in flat:
        # [E, V] -> [V, E] and back
        flat[HEAD] = np.ascontiguousarray(_rows(np.asarray(flat[HEAD]).T, sources, num_known, seed + 1).T)
    config, sizes = ocr.config, {"vocab_size": len(sources)}
    # Some files have the size at the top as well.
    config = config.replace(decoder=config.decoder.replace(**sizes), **(sizes if "vocab_size" in config.extra else {}))
    return ocr.with_params(unflatten_dict(flat, sep="/"), config=config, tokenizer=tokenizer)


def _rows(table: Any, sources: Sources, num_known: int, seed: int) -> np.ndarray:
    """New rows [len(sources), E] out of a table [V, E], of which the first `num_known` belong to tokens."""
    old = np.asarray(jax.device_get(table)).astype(np.float32)
    known, noise = old[:num_known], np.random.default_rng(seed)
    mean, deviation = known.mean(axis=0), known.std()
    rows = np.empty((len(sources), old.shape[1]), np.float32)
    for row, source in zip(rows, sources, strict=True):
        row[:] = (
            old[list(source)].mean(axis=0)
            if source
            else mean + noise.normal(scale=NOISE * deviation, size=mean.shape).astype(np.float32)
        )
    return rows.astype(table.dtype)


@dataclasses.dataclass(frozen=True)
class _Translation:
    """Ids of one tokenizer's special tokens as another's, by role."""

    old: TrOCRTokenizer
    new: TrOCRTokenizer

    def __call__(self, number: int, name: str) -> int:
        roles = [role for role in ROLES if getattr(self.old, f"{role}_token_id") == number]
        found = [getattr(self.new, f"{role}_token_id") for role in roles]
        found = [other for other in found if other is not None]
        if not found:
            raise ValueError(
                f"{name} is {number}, {self.old.convert_ids_to_tokens([number])[0]!r}, for which the new tokenizer has "
                f"no token: name one in its tokenizer_config.json, such as {(roles or ['bos'])[0]}_token"
            )
        return int(found[0])

    def ids(self, owner: Any, names: Iterable[str]) -> dict[str, Any]:
        """Those of a configuration's fields that are set, translated."""
        changes: dict[str, Any] = {}
        for name in names:
            value = getattr(owner, name)
            if isinstance(value, tuple):
                changes[name] = tuple(dict.fromkeys(self(number, name) for number in value))
            elif value is not None:
                changes[name] = self(value, name)
        return changes

    def settings(self, settings: GenerationConfig) -> GenerationConfig:
        """Generation settings, without those that name other tokens than special ones."""
        if dropped := [name for name in _OF_TOKENS if getattr(settings, name) is not None]:
            warnings.warn(f"left out of the generation settings, as they name the old tokens: {dropped}", stacklevel=3)
        ids = self.ids(settings, (*_IDS, "forced_bos_token_id", "forced_eos_token_id"))
        return settings.replace(**ids, **dict.fromkeys(dropped))


@dataclasses.dataclass(frozen=True)
class VocabularyReport:
    """What a tokenizer makes of the lines of a training: `before` and `after` the vocabulary was changed, by set.

    `added` are the characters that got tokens, `num_tokens` what the tokenizer has now.
    """

    before: Mapping[str, Coverage]
    after: Mapping[str, Coverage]
    added: str
    num_tokens: int
    is_replaced: bool

    @property
    def is_changed(self) -> bool:
        """Whether it is another vocabulary than the model had."""
        return self.is_replaced or bool(self.added)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        before, after = ({name: one.to_dict() for name, one in of.items()} for of in (self.before, self.after))
        return {"before": before, "after": after, "added": self.added, "num_tokens": self.num_tokens}

    def lines(self) -> list[str]:
        """What there is to tell, a line each: nothing where every character has a token and nothing was changed."""
        if not self.is_changed and not any(coverage.lost or coverage.several for coverage in self.before.values()):
            return []
        told = [f"{name}: {coverage}" for name, coverage in self.before.items()]
        if self.is_changed:
            what = ["another tokenizer"] if self.is_replaced else []
            what += [f"tokens for {len(self.added)} characters, {self.added!r}"] if self.added else []
            told.append(f"with {' and '.join(what)}, {self.num_tokens} tokens in all:")
            told += [f"{name}: {coverage}" for name, coverage in self.after.items()]
        return told


def change_vocabulary(
    ocr: TrOCR,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    tokenizer: TrOCRTokenizer | str | os.PathLike[str] | None = None,
    add_characters: str | None = None,
    seed: int = 0,
) -> tuple[TrOCR, VocabularyReport]:
    """The recogniser as `fit` trains it, with another tokenizer and more characters as asked for, and what that gives.

    `add_characters` are the characters themselves, or "auto" for those of the training lines that deserve a token. A
    warning tells of characters of the training lines that still cannot be spelled.
    """

    def cover(ocr: TrOCR) -> dict[str, Coverage]:
        sets = {"training lines": train, "validation lines": validation}
        return {name: Coverage.of(lines, ocr.processor.tokenizer) for name, lines in sets.items()}

    before = cover(ocr)
    changed = ocr if tokenizer is None else replace_tokenizer(ocr, tokenizer, seed=seed)
    known = changed.processor.tokenizer
    wanted = missing_characters(train, known) if add_characters == AUTO else add_characters or ""
    added = "".join(c for c in dict.fromkeys(wanted) if not (c.isspace() or has_token(known, c)))
    changed = extend_vocabulary(changed, added, seed=seed)
    after = before if changed is ocr else cover(changed)
    spells = changed.processor.tokenizer
    if lost := after["training lines"].lost:
        warnings.warn(
            f"the tokenizer cannot spell characters of the training lines, which the model can never write then: "
            f"{tell_characters(lost)}; " + (HELP if missing_characters(train, spells) else "replace them in the texts"),
            stacklevel=3,
        )
    report = VocabularyReport(before, after, added, len(spells), tokenizer is not None)
    return changed, report
