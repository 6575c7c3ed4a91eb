"""Labels of both formats, and the loss over them, against what is computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trocr_jax import TrOCR
from trocr_jax.modeling.loss import cross_entropy, shift_tokens_right, summed_cross_entropy
from trocr_jax.training import TextEncoder, pad_labels


@pytest.fixture(scope="module")
def ocr():
    return TrOCR.from_pretrained()


def encoder(ocr, start=2, **options):
    settings = ocr.generation_config.replace(decoder_start_token_id=start)
    return TextEncoder.of(ocr.with_params(ocr.params, generation_config=settings), **options)


def test_fairseq_labels_are_the_text_and_its_end(ocr):
    found = encoder(ocr)
    [row] = found.encode(["Date: 09"])
    assert found.prefix == ()
    assert row[-1] == 2
    assert row.count(0) == 0
    assert ocr.processor.decode(row, skip_special_tokens=True) == "Date: 09"
    inputs = shift_tokens_right(found.labels(["Date: 09"]), found.pad_token_id, found.start_token_id)
    assert inputs[0, : len(row)].tolist() == [2, *row[:-1]]


def test_hf_labels_begin_with_the_token_before_a_text(ocr):
    found, plain = encoder(ocr, start=0), encoder(ocr)
    assert found.prefix == (0,)
    assert found.encode(["A", "bc"]) == [[0, *row] for row in plain.encode(["A", "bc"])]
    # A model trained on `text </s>` behind <s> says so.
    assert encoder(ocr, start=0, label_format="fairseq").encode(["A"]) == plain.encode(["A"])
    # The reference's own recipe.
    assert found.encode(["A"]) == ocr.processor.tokenizer(["A"])["input_ids"]


def test_labels_are_padded_to_a_length_of_few(ocr):
    found = encoder(ocr)
    labels = found.labels(["A", "A longer line"])
    assert labels.dtype == np.int32
    assert labels.shape == (2, 16)
    assert labels[0].tolist() == [*found.encode(["A"])[0], *[-100] * 14]
    longer = "0-" * 12
    assert 16 < len(found.encode([longer])[0]) <= 32
    assert found.labels([longer]).shape == (1, 32)


def test_texts_over_length_are_named(ocr):
    with pytest.raises(ValueError, match=r"1 of 2 texts .* 64 tokens .* b.png with .*'0101"):
        encoder(ocr).labels(["A", "01" * 100], names=["a.png", "b.png"])


def test_what_cannot_be_is_refused(ocr):
    with pytest.raises(ValueError, match='choose "fairseq"'):
        encoder(ocr, label_format="unilm")
    endless = ocr.with_params(ocr.params, generation_config=ocr.generation_config.replace(eos_token_id=None))
    with pytest.raises(ValueError, match="could never end"):
        TextEncoder.of(endless)


def test_the_loss_is_torchs_and_is_not_shifted_twice():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 7)).astype(np.float32)
    labels = pad_labels([[5, 6, 2], [3, 2]], 4)
    by_hand = [
        np.log(np.exp(logits[i, j]).sum()) - logits[i, j, labels[i, j]]
        for i, j in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    ]
    np.testing.assert_allclose(cross_entropy(logits, labels), np.mean(by_hand), rtol=1e-6)
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(logits).flatten(0, 1),
            torch.tensor(labels).long().flatten(),
            reduction="sum",
            label_smoothing=smoothing,
        )
        np.testing.assert_allclose(summed_cross_entropy(logits, labels, smoothing), expected, rtol=1e-6)
    # Logits that are certain of each label have no loss; shifted once more they would be certainly wrong.
    certain = 50 * np.eye(7, dtype=np.float32)[np.where(labels < 0, 0, labels)]
    assert float(cross_entropy(certain, labels)) < 1e-6
    assert float(cross_entropy(certain[:, :-1], labels[:, 1:])) > 10
