"""The tokenizer files of an original fairseq TrOCR -> the files that transformers and this library read."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from trocr_jax.config import read_json, write_json
from trocr_jax.processing import tokenizer
from trocr_jax.processing.sentencepiece import read_sentencepiece

# The files of a fairseq tokenizer, by the names that they are published under.
ENCODER_NAME, BPE_NAME = "encoder.json", "vocab.bpe"
DICTIONARY_NAMES = ("gpt2_with_mask.dict.txt", "gpt2.dict.txt", "dict.txt")
_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
_MASK = "<mask>"


def write_tokenizer(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    vocab_size: int,
) -> str:
    """Writes a checkpoint's tokenizer files and returns the class that tokenizer_config.json names.

    `source` is a folder or the files themselves: encoder.json, vocab.bpe and dict.txt (base and large; written as
    vocab.json and merges.txt), or a SentencePiece model (small; written as it is). `vocab_size` is the model's. Raises
    FileNotFoundError naming what is missing, ValueError if files are damaged or do not fit the model.
    """
    files = _tokenizer_files(source)
    models = [path for name, path in files.items() if name.endswith(".model")]
    is_byte_level = ENCODER_NAME in files or BPE_NAME in files
    if is_byte_level + len(models) > 1:
        raise ValueError(f"{sorted(files)} hold more than one tokenizer; pass the files of the model's own")
    dictionaries = [files[name] for name in DICTIONARY_NAMES if name in files]
    missing = [name for name in (ENCODER_NAME, BPE_NAME) if name not in files]
    missing += [] if dictionaries else [" or ".join(DICTIONARY_NAMES)]
    if missing and not models:
        also = "" if is_byte_level or dictionaries else ", or instead a SentencePiece model such as unilm3-cased.model"
        raise FileNotFoundError(f"the tokenizer's {', '.join(missing)} not found{also}; {sorted(files)} were given")
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    if models:
        name, settings = "XLMRobertaTokenizer", _write_sentencepiece(target, models[0], vocab_size)
    else:
        name, settings = "RobertaTokenizer", _write_byte_level(target, files, dictionaries[0], vocab_size)
    # 512 is RoBERTa's, and how many positions the learned tables have.
    write_json(target / tokenizer.CONFIG_NAME, {"tokenizer_class": name, "model_max_length": 512, **settings})
    return name


def _tokenizer_files(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> dict[str, pathlib.Path]:
    if isinstance(source, str | os.PathLike):
        folder = pathlib.Path(source)
        paths = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else [folder]
    else:
        paths = [pathlib.Path(path) for path in source]
    if lost := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{', '.join(lost)}: no such file")
    return {path.name: path for path in paths}


def _write_sentencepiece(folder: pathlib.Path, path: pathlib.Path, vocab_size: int) -> dict[str, Any]:
    # fairseq's numbering is the model's plus one for <pad>, and <mask> comes last.
    size = len(read_sentencepiece(path).pieces) + 2
    if size > vocab_size:
        raise ValueError(f"{path} makes {size} tokens, but the model has {vocab_size}; it is another model's tokenizer")
    shutil.copyfile(path, folder / tokenizer.SENTENCEPIECE_NAME)
    return {}


def _write_byte_level(
    folder: pathlib.Path, files: Mapping[str, pathlib.Path], dictionary: pathlib.Path, vocab_size: int
) -> dict[str, Any]:
    vocab = byte_level_vocab(read_json(files[ENCODER_NAME]), dictionary)
    # Here a smaller one is wrong, too: fairseq makes the embeddings from this very dictionary.
    if len(vocab) != vocab_size:
        raise ValueError(f"{dictionary} makes {len(vocab)} tokens, the model has {vocab_size}; it is another model's")
    write_json(folder / tokenizer.VOCAB_NAME, vocab)
    shutil.copyfile(files[BPE_NAME], folder / tokenizer.MERGES_NAME)
    return {"add_prefix_space": False}


def byte_level_vocab(encoder: Mapping[str, int], dictionary: str | os.PathLike[str]) -> dict[str, int]:
    """RoBERTa's token -> id from GPT-2's token -> number and the lines "number count" of a fairseq dictionary.

    Ids are <s>, <pad>, </s>, <unk>, then the dictionary's lines in order, then <mask> unless it was among them. A line
    that is no number, such as madeupword0000, is the token itself.
    """
    token_of = {str(number): token for token, number in encoder.items()}
    tokens = list(_SPECIAL_TOKENS)
    for i, line in enumerate(pathlib.Path(dictionary).read_text(encoding="utf-8").splitlines(), start=1):
        word, _, count = line.rstrip().rpartition(" ")
        if not word or not count.isdecimal():
            raise ValueError(f"{dictionary}, line {i}: {line[:80]!r} is not a token and its count; download it again")
        if word.isdecimal() and word not in token_of:
            raise ValueError(f"{dictionary}, line {i}: {ENCODER_NAME} has no token {word}; the two belong apart")
        tokens.append(token_of.get(word, word))
    tokens += [] if _MASK in tokens else [_MASK]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = sorted({token for i, token in enumerate(tokens) if vocab[token] != i})
        raise ValueError(f"{dictionary} lists {twice[:5]} more than once; download it again")
    return vocab
