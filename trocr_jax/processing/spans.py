"""Which characters of a decoded text each token holds: for confidences of words and for boxes.

Characters are Unicode code points, counted as Python counts them in a str.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders

from trocr_jax.processing.tokenizer import TrOCRTokenizer

Span = tuple[int, int]
REPLACEMENT = "\ufffd"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for those from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def decode_with_spans(tokenizer: TrOCRTokenizer, token_ids: Iterable[int]) -> tuple[str, list[Span]]:
    """(the text as `decode` gives it without special tokens, the span (start, end) of it that each token holds).

    A token of several characters holds them all, and a character that several tokens spell, as bytes of one letter, is
    held by each of them: neighbouring spans then overlap in that character. What adds nothing to the text, such as a
    special token or an id without a token, holds an empty span at its place. The spans cover the text.
    """
    ids = [int(i) for i in token_ids]
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    backend = tokenizer.backend
    tokens = _shown_tokens(backend, ids)
    if isinstance(backend.decoder, decoders.ByteLevel):
        pieces = [b"" if token is None else spelt_bytes(token) for token in tokens]
        if b"".join(pieces).decode("utf-8", "replace") == text:
            return text, _byte_spans(pieces, text)
    return text, _prefix_spans(backend, ids, tokens, text)


def _shown_tokens(backend: Tokenizer, ids: Sequence[int]) -> list[str | None]:
    """The token of each id, None for those that a text is decoded without."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    tokens = [backend.id_to_token(i) if i >= 0 else None for i in ids]
    return [None if token in special else token for token in tokens]


def spelt_bytes(token: str) -> bytes:
    """What a token of a byte-level tokenizer adds to a text."""
    # As the decoder does: a token with any character outside the alphabet, by an added one, stands for itself.
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode("utf-8")


def _byte_spans(pieces: Sequence[bytes], text: str) -> list[Span]:
    r"""Spans of tokens given as bytes, which together decode to `text` with U+FFFD for what is no UTF-8.

    In: pieces [b"a\xc3", b"\xa9", b""], text "aé"
    Out: [(0, 2), (1, 2), (2, 2)]
    """
    owners = _characters_of_bytes(b"".join(pieces), text)  # one a byte, and the text's length behind the last
    spans, at = [], 0
    for piece in pieces:
        start, at = at, at + len(piece)
        spans.append((owners[start], owners[at - 1] + 1) if piece else (owners[at], owners[at]))
    return _ordered(spans)


def _characters_of_bytes(raw: bytes, text: str) -> list[int]:
    owners: list[int] = []
    for i, character in enumerate(text):
        at = len(owners)
        size = len(character.encode("utf-8"))
        if character == REPLACEMENT:
            try:
                raw[at : at + 3].decode("utf-8")  # U+FFFD itself, spelt out
            except UnicodeDecodeError as error:
                size = error.end  # as much as could have begun a character, by Unicode's advice for decoders
        owners += [i] * size
    return [*owners, len(text)]


def _prefix_spans(backend: Tokenizer, ids: Sequence[int], tokens: Sequence[str | None], text: str) -> list[Span]:
    """Spans under any decoder, by what each further token adds to the text of those before it.

    A prefix whose text ends differently from the whole's has begun a character that later tokens complete.
    """
    spans, begun, settled = [], [], 0
    for i, token in zip(ids, tokens, strict=True):
        if token is None:
            spans.append((settled, settled))
            continue
        begun.append(i)
        prefix = backend.decode(begun, skip_special_tokens=True)
        differing = (j for j, pair in enumerate(zip(prefix, text, strict=False)) if pair[0] != pair[1])
        common = next(differing, min(len(prefix), len(text)))
        start, settled = settled, max(settled, common)
        spans.append((start, min(len(text), settled + (len(prefix) > common))))
    return spans


def _ordered(spans: Sequence[Span]) -> list[Span]:
    """Empty spans in the middle of a character move behind it."""
    ordered, end = [], 0
    for span in spans:
        end = max(end, span[1])
        ordered.append((end, end) if span[0] == span[1] else span)
    return ordered
