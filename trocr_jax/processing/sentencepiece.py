"""Reads a SentencePiece model file without the sentencepiece package: just the fields a tokenizer is built from.

The file is a protocol buffer (google/sentencepiece, sentencepiece_model.proto): pieces in field 1 (text 1, score 2,
kind 3), trainer settings in field 2 (model type 3, unknown id 40), normalizer settings in field 3 (charsmap 2).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct
from collections.abc import Iterator

UNIGRAM = 1
CONTROL, USER_DEFINED = 3, 4


@dataclasses.dataclass(frozen=True)
class Piece:
    """One vocabulary entry; `kind` is SentencePiece's (1 normal, 2 unknown, 3 control, 4 user defined)."""

    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """What a tokenizer needs of the file."""

    pieces: tuple[Piece, ...]
    model_type: int
    charsmap: bytes


def read_sentencepiece(path: str | os.PathLike[str]) -> SentencePieceModel:
    """The model in a file; ValueError names a file that is not one."""
    try:
        fields = list(_fields(pathlib.Path(path).read_bytes()))
        pieces = tuple(_piece(value) for number, value in fields if number == 1 and isinstance(value, bytes))
        trainer = {n: v for number, value in fields if number == 2 for n, v in _fields(_bytes(value))}
        normalizer = {n: v for number, value in fields if number == 3 for n, v in _fields(_bytes(value))}
        model_type, charsmap = int(trainer.get(3, UNIGRAM)), _bytes(normalizer.get(2, b""))
    except (IndexError, UnicodeDecodeError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is not a SentencePiece model ({error}); download it again") from error
    if not pieces:
        raise ValueError(f"{path} is not a SentencePiece model: it holds no pieces; download it again")
    return SentencePieceModel(pieces, model_type, charsmap)


def _piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    score = struct.unpack("<f", _bytes(fields[2]))[0] if 2 in fields else 0.0
    return Piece(_bytes(fields.get(1, b"")).decode("utf-8"), score, int(fields.get(3, 1)))


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where text was expected")
    return value


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer message: ints for varints, bytes for all else."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(content, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(content):
            raise ValueError(f"it ends at byte {len(content)}, in the middle of a field")
        yield tag >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"an endless number at byte {at}")
