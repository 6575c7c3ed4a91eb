"""Which characters a token holds: exact for both kinds of tokenizers, whatever the ids."""

from __future__ import annotations

import random

import pytest

from tests.processing.test_tokenizer import ORACLES, TEXTS, trained  # noqa: F401 a fixture
from trocr_jax.processing.spans import decode_with_spans
from trocr_jax.processing.tokenizer import TrOCRTokenizer


@pytest.fixture(params=ORACLES)
def tokenizer(trained, request):  # noqa: F811
    return TrOCRTokenizer.from_pretrained(trained / request.param)


def check(tokenizer, ids):
    """The text is the decoder's own; spans are in order and cover it. Returns both."""
    text, spans = decode_with_spans(tokenizer, ids)
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(spans) == len(ids)
    covered, last = set(), 0
    for start, end in spans:
        assert 0 <= start <= end <= len(text)
        assert start >= last - 1  # at most one character is shared with the token before
        covered |= set(range(start, end))
        last = max(last, end)
    assert covered == set(range(len(text))), (ids, text, spans)
    return text, spans


def test_spans_cover_every_text(tokenizer):
    for text in TEXTS:
        check(tokenizer, tokenizer(text).input_ids)


def test_spans_cover_what_random_ids_spell(tokenizer):
    # Bytes that are no UTF-8, halves of letters, special tokens and ids without a token among them.
    draw = random.Random(0)
    for _ in range(500):
        check(tokenizer, [draw.randrange(-1, len(tokenizer) + 5) for _ in range(draw.randrange(12))])


def test_a_token_holds_what_it_spells(tokenizer):
    for text in TEXTS[:300]:
        ids = tokenizer(text).input_ids
        found, spans = check(tokenizer, ids)
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
        for token, (start, end) in zip(ids, spans, strict=True):
            if token in special:
                assert start == end
                continue
            alone = tokenizer.decode([token], skip_special_tokens=True)
            if "\ufffd" not in alone and "\ufffd" not in found[start:end]:
                assert found[start:end].strip() == alone.strip()


def test_letters_of_several_bytes_are_held_by_each_of_their_tokens(trained):  # noqa: F811
    tokenizer = TrOCRTokenizer.from_pretrained(trained / "bpe")
    ids = tokenizer("a \U0001f9ff b").input_ids[1:-1]  # a bead that the tokenizer has only bytes for
    text, spans = check(tokenizer, ids)
    assert text == "a \U0001f9ff b"
    sharing = [span for span in spans if span[0] <= 2 < span[1]]
    assert len(sharing) >= 2
    assert spans[-1][1] == len(text)
