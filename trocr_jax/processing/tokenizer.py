"""Text to ids and back, from a checkpoint's files: tokenizer.json, vocab.json + merges.txt, or a SentencePiece model.

Ids and text are transformers' (5.x). Decoding is raw: spaces before punctuation stay, as in transformers since 4.45.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from trocr_jax.config import read_json, write_json
from trocr_jax.processing.sentencepiece import CONTROL, UNIGRAM, USER_DEFINED, read_sentencepiece
from trocr_jax.replacing import replacing

CONFIG_NAME = "tokenizer_config.json"
TOKENIZER_NAME = "tokenizer.json"
VOCAB_NAME, MERGES_NAME = "vocab.json", "merges.txt"
SENTENCEPIECE_NAME = "sentencepiece.bpe.model"
SPECIAL_MAP_NAME, ADDED_NAME = "special_tokens_map.json", "added_tokens.json"
# Everything a tokenizer may be read from.
FILE_NAMES = (
    TOKENIZER_NAME, VOCAB_NAME, MERGES_NAME, SENTENCEPIECE_NAME, CONFIG_NAME, SPECIAL_MAP_NAME, ADDED_NAME
)  # fmt: skip

_SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}

# The reference's class that takes a tokenizer.json as it is; those of a kind make theirs of its vocabulary alone.
ANY_CLASS = "PreTrainedTokenizerFast"

_TOKEN_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


class Encoding(dict[str, Any]):
    """What a tokenizer or processor returns: a dict whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class TrOCRTokenizer:
    """A checkpoint's tokenizer. Use `from_pretrained`; the constructor takes a ready `tokenizers.Tokenizer`."""

    def __init__(
        self, backend: Tokenizer, special_tokens: Mapping[str, str], config: Mapping[str, Any] | None = None
    ) -> None:
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.config = dict(config or {})
        self._truncating_copies: dict[int, Tokenizer] = {}
        backend.no_padding()
        backend.no_truncation()

    def __repr__(self) -> str:
        kind = self.config.get("tokenizer_class", type(self.backend.model).__name__)
        return f"<TrOCRTokenizer: {kind} of {self.backend.get_vocab_size()} tokens>"

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> TrOCRTokenizer:
        """The tokenizer of a checkpoint folder. Raises FileNotFoundError naming the files that would do."""
        path = pathlib.Path(folder)
        config = read_json(path / CONFIG_NAME) if (path / CONFIG_NAME).is_file() else {}
        tokens, extra = _special_tokens(path, config)
        special = {name: token.content for name, token in tokens.items()}
        if (path / TOKENIZER_NAME).is_file():
            backend = _from_tokenizer_json(path / TOKENIZER_NAME)
        elif (path / VOCAB_NAME).is_file() and (path / MERGES_NAME).is_file():
            backend = _byte_level_bpe(path, special, config)
            config = {"tokenizer_class": "RobertaTokenizer", **config}
        elif (path / SENTENCEPIECE_NAME).is_file():
            backend = _unigram(path / SENTENCEPIECE_NAME, special)
            config = {"tokenizer_class": "XLMRobertaTokenizer", **config}
        else:
            raise FileNotFoundError(
                f"{path} holds no tokenizer: {TOKENIZER_NAME}, {VOCAB_NAME} with {MERGES_NAME}, or {SENTENCEPIECE_NAME}"
                " is needed; copy them from the model that the checkpoint was made from"
            )
        _add_tokens(backend, path, [*tokens.values(), *extra], config)
        return cls(backend, special, config)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes tokenizer.json, which holds everything, and tokenizer_config.json."""
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / TOKENIZER_NAME) as partial:
            self.backend.save(str(partial))
        # Of the old configuration only what still holds: ids and classes of added tokens are in tokenizer.json.
        lasting = ("tokenizer_class", "model_max_length", "add_prefix_space")
        kept: dict[str, Any] = {name: self.config[name] for name in lasting if name in self.config}
        # One that there is not is written as null, or it would be taken to have its usual name.
        special = {**dict.fromkeys(_SPECIAL_TOKENS), **self.special_tokens}
        write_json(path / CONFIG_NAME, {"tokenizer_class": ANY_CLASS, **kept, **special})

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Ids of the base vocabulary, tokens added later not counted."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return self.backend.get_vocab(with_added_tokens=True)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
    ) -> Encoding:
        """Ids of one text or several: `input_ids` and `attention_mask`, lists or (return_tensors="np" | "jax") arrays.

        Special tokens, `<s> text </s>` in TrOCR's, are added unless told otherwise. `padding` is True for the longest
        text's length or "max_length"; `truncation` cuts to `max_length`, special tokens kept.
        """
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise ValueError(f'padding is {padding!r}; choose True ("longest"), "max_length" or False ("do_not_pad")')
        is_single = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        if (truncation or padding == "max_length") and max_length is None:
            max_length = self.config.get("model_max_length")
            if not isinstance(max_length, int) or max_length > 1_000_000:
                raise ValueError("truncation and padding to max_length need max_length=")
        backend = self.backend
        if truncation and max_length is not None:
            backend = self._truncating(max_length)
        ids: list[list[Any]] = [
            encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        ]
        mask = [[1] * len(row) for row in ids]
        if padding not in (False, "do_not_pad"):
            width = max_length or 0 if padding == "max_length" else max(map(len, ids), default=0)
            mask = [row + [0] * (width - len(row)) for row in mask]
            ids = [row + [self.pad_token_id] * (width - len(row)) for row in ids]
        content = {"input_ids": ids, "attention_mask": mask}
        if return_tensors is not None:
            return Encoding({name: as_array(rows, return_tensors) for name, rows in content.items()})
        return Encoding({name: rows[0] if is_single else rows for name, rows in content.items()})

    def _truncating(self, max_length: int) -> Tokenizer:
        # A copy, made once, since the setting is the backend's own and calls may come from several threads.
        if max_length not in self._truncating_copies:
            copy = Tokenizer.from_str(self.backend.to_str())
            copy.enable_truncation(max_length)
            self._truncating_copies[max_length] = copy
        return self._truncating_copies[max_length]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """The text of one row of ids as it is, or a list of texts for several; ids that no token has are left out."""
        array = np.asarray(token_ids, dtype=np.int64) if not _is_ragged(token_ids) else None
        if array is None or array.ndim > 1:
            return self.batch_decode(token_ids, skip_special_tokens=skip_special_tokens)
        ids = [int(i) for i in array.reshape(-1)]
        return self.backend.decode([i for i in ids if i >= 0], skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False) -> list[str]:
        """The texts of rows of ids."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str | None]:
        """The token of each id; None where there is none."""
        return [self.backend.id_to_token(int(i)) for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or of each of several; the unknown token's where there is none."""
        if isinstance(tokens, str):
            found = self.backend.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def _id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token before a text."""
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token behind a text."""
        return self._id("eos_token")

    @property
    def cls_token_id(self) -> int | None:
        """The same as `bos_token_id` in TrOCR's tokenizers."""
        return self._id("cls_token")

    @property
    def sep_token_id(self) -> int | None:
        """The same as `eos_token_id` in TrOCR's tokenizers."""
        return self._id("sep_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id that fills short rows up."""
        return self._id("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        """Id of what the vocabulary cannot spell."""
        return self._id("unk_token")

    @property
    def mask_token_id(self) -> int | None:
        """Id of the mask token, which TrOCR does not use."""
        return self._id("mask_token")


def _is_ragged(token_ids: Any) -> bool:
    return isinstance(token_ids, list | tuple) and any(isinstance(row, list | tuple | np.ndarray) for row in token_ids)


def as_array(rows: Any, kind: str) -> Any:
    """Rows of equal length as a numpy ("np") or JAX ("jax") array."""
    if kind not in ("np", "jax"):
        raise ValueError(f'return_tensors is {kind!r}; choose "np" or "jax"')
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise ValueError("rows differ in length; pass padding=True") from error
    if kind == "np":
        return array
    import jax.numpy as jnp

    return jnp.asarray(array)


def _added_token(token: str | Mapping[str, Any], **flags: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, **flags)
    stored = {flag: token[flag] for flag in _TOKEN_FLAGS if flag in token}
    return AddedToken(token["content"], **{**stored, **flags})


def _special_tokens(path: pathlib.Path, config: Mapping[str, Any]) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """(the seven by name, further ones).

    As in the reference, the old special_tokens_map.json counts before the configuration, but not beside an
    `added_tokens_decoder`.
    """
    stored = {**_SPECIAL_TOKENS, **config}
    if "added_tokens_decoder" not in config and (path / SPECIAL_MAP_NAME).is_file():
        stored |= read_json(path / SPECIAL_MAP_NAME)
    named = {name: _added_token(stored[name], special=True) for name in _SPECIAL_TOKENS if stored[name] is not None}
    return named, [_added_token(token, special=True) for token in config.get("additional_special_tokens") or ()]


def _from_tokenizer_json(path: pathlib.Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises bare Exception
        raise ValueError(f"{path} cannot be read ({error}); download or export it again") from error


def _byte_level_bpe(path: pathlib.Path, special: Mapping[str, str], config: Mapping[str, Any]) -> Tokenizer:
    add_prefix_space = bool(config.get("add_prefix_space", False))
    vocab = read_json(path / VOCAB_NAME)
    lines = (path / MERGES_NAME).read_text(encoding="utf-8").split("\n")
    merges: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if broken := [merge for merge in merges if len(merge) != 2]:
        raise ValueError(f"{path / MERGES_NAME}: {' '.join(broken[0])!r} is not a pair; download the file again")
    try:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False))
    except Exception as error:  # the tokenizers package raises bare Exception
        raise ValueError(f"{path / VOCAB_NAME} and {MERGES_NAME} do not belong together ({error})") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    ends: list[Any] = [(special[name], vocab.get(special[name])) for name in ("sep_token", "cls_token")]
    for token, number in ends:
        if number is None:
            raise ValueError(f"{path / VOCAB_NAME} has no {token!r}, which stands at one end of every text")
    backend.post_processor = processors.RobertaProcessing(ends[0], ends[1], True, add_prefix_space)
    return backend


def _unigram(path: pathlib.Path, special: Mapping[str, str]) -> Tokenizer:
    """XLM-R's numbering, trocr-small's: four special tokens, then the pieces from the fourth on; id = piece + 1."""
    model = read_sentencepiece(path)
    if model.model_type != UNIGRAM:
        raise ValueError(f"{path} is a SentencePiece model of type {model.model_type}; TrOCR uses unigram models (1)")
    first = [special[name] for name in ("bos_token", "pad_token", "eos_token", "unk_token")]
    vocab = [(token, 0.0) for token in first]
    vocab += [(piece.text, piece.score) for piece in model.pieces[3:]]
    vocab.append((special["mask_token"], 0.0))
    try:
        backend = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
        if model.charsmap:
            backend.normalizer = normalizers.Precompiled(model.charsmap)
    except Exception as error:  # the tokenizers package raises bare Exception
        raise ValueError(f"{path} is damaged ({error}); download it again") from error
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    bos, eos = first[0], first[2]
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos], pair=[bos, "$A", eos, eos, "$B", eos], special_tokens=[(bos, 0), (eos, 2)]
    )
    own = [piece for piece in model.pieces if piece.kind in (CONTROL, USER_DEFINED)]
    backend.add_tokens([AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL) for piece in own])
    return backend


def _add_tokens(
    backend: Tokenizer, path: pathlib.Path, special: Sequence[AddedToken], config: Mapping[str, Any]
) -> None:
    """Special tokens, and tokens that a fine-tune added, at the ids its files give them."""
    added: dict[int, AddedToken] = {}
    names = {token.content for token in special}
    if (path / ADDED_NAME).is_file():
        for content, number in read_json(path / ADDED_NAME).items():
            added[number] = _added_token(content, special=content in names, normalized=content not in names)
    added |= {int(number): _added_token(token) for number, token in (config.get("added_tokens_decoder") or {}).items()}
    for number, token in sorted(added.items()):
        if token.special:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != number:
            raise ValueError(
                f"{path} adds the token {token.content!r} as {number}, but the vocabulary has "
                f"{backend.token_to_id(token.content)} for it; the tokenizer files do not belong together"
            )
    # Those that are there already, by a tokenizer.json for one, have flags of their own.
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in special:
        if token.content not in known:
            known.add(token.content)
            backend.add_special_tokens([token])
