"""Error rates against values worked out by hand, and what holds for any texts."""

from __future__ import annotations

import collections
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from trocr_jax.evaluation import Normalization
from trocr_jax.evaluation.metrics import (
    METRICS,
    character_error_rate,
    confusions,
    estimate,
    sroie_scores,
    str_accuracy,
    word_error_rate,
)

repeatable = settings(deadline=None, derandomize=True)
texts = st.lists(st.text(st.sampled_from("ab .é1"), max_size=12), min_size=1, max_size=8)
pairs = st.lists(st.tuples(*[st.text(st.sampled_from("ab .é1A"), max_size=10)] * 2), min_size=1, max_size=8)


def test_character_error_rate_is_over_all_characters():
    # One substitution, one deletion and two insertions over 4 + 5 + 1 characters: not the mean of the lines' rates.
    assert character_error_rate(["kitt", "hell", "abc"], ["mitt", "hello", "a"]) == pytest.approx(4 / 10)
    assert character_error_rate(["abc"], ["a"]) == 2
    assert character_error_rate(["cafe"], ["café"]) == 1 / 4  # characters, not bytes
    with pytest.raises(ValueError, match="undefined"):
        character_error_rate(["a"], [""])
    with pytest.raises(ValueError, match="undefined"):
        character_error_rate([], [])
    with pytest.raises(ValueError):
        character_error_rate(["a"], ["a", "b"])


def test_word_error_rate_is_over_all_words():
    # A substitution and an insertion in one line, two deletions in the other, over 3 + 2 words; spaces count nothing.
    assert word_error_rate(["the  bat sat down", ""], ["the cat sat", " a b "]) == pytest.approx(4 / 5)
    with pytest.raises(ValueError, match="no word"):
        word_error_rate(["a"], [" "])


def test_sroie_words_are_found_once_each_and_over_all_lines():
    # Line 1: "1.00" is read twice and stands there once: 2 of 3 read, 2 of 3 there. Line 2: nothing is read of 2 words.
    precision, recall, f1 = sroie_scores(["TOTAL 1.00 1.00", ""], ["1.00 TOTAL RM", "THANK YOU"])
    assert (precision, recall) == (pytest.approx(2 / 3), pytest.approx(2 / 5))
    assert f1 == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))
    assert sroie_scores(["total"], ["TOTAL"]) == (0, 0, 0)
    assert sroie_scores([""], ["A"]) == (0, 0, 0)


def test_scene_text_counts_letters_and_digits_alone():
    # Right: case and marks differ; an accent is no ASCII letter and is left out. Wrong: a letter, a missing digit.
    assert str_accuracy(["joe's", "CAFÉ", "bat", "10"], ["JOES!", "caf", "cat", "101"]) == 2 / 4
    assert str_accuracy(["!"], ["..."]) == 1


def reference_sroie(read, wanted):
    """unilm's SROIEScorer, as its algorithm goes."""
    matched = detected = there = 0
    for text, reference in zip(read, wanted, strict=True):
        words = reference.split()
        there += len(words)
        detected += len(text.split())
        for word in text.split():
            if word in words:
                matched += 1
                words.remove(word)
    if not matched:
        return 0, 0, 0
    precision, recall = matched / detected, matched / there
    return precision, recall, 2 * precision * recall / (precision + recall)


@given(pairs)
@repeatable
def test_sroie_scores_are_those_of_unilms_algorithm(found):
    read, wanted = zip(*found, strict=True)
    assert sroie_scores(read, wanted) == pytest.approx(reference_sroie(read, wanted))


@given(texts)
@repeatable
def test_texts_that_are_right_have_no_error(lines):
    for name, metric in METRICS.items():
        value = float(metric.statistic(metric.count(lines, lines).sum(axis=0)))
        has_words = any(line.split() for line in lines)
        assert value == (1 if "accuracy" in name or ("word_" in name and has_words) else 0)
    assert not confusions(lines, lines)


@given(pairs)
@repeatable
def test_edits_are_symmetric_and_bounded_and_confusions_are_all_of_them(found):
    read, wanted = zip(*found, strict=True)
    for name in ("cer", "wer"):
        forth, back = METRICS[name].count(read, wanted), METRICS[name].count(wanted, read)
        assert (forth[:, 0] == back[:, 0]).all()
        assert (forth[:, 0] <= np.maximum(forth[:, 1], back[:, 1])).all()
        assert (forth[:, 0] >= abs(forth[:, 1] - back[:, 1])).all()
    assert confusions(read, wanted).total() == METRICS["cer"].count(read, wanted)[:, 0].sum()


@given(pairs, st.randoms(use_true_random=False))
@repeatable
def test_the_order_of_lines_changes_no_rate(found, random):
    shuffled = random.sample(found, len(found))
    for metric in METRICS.values():
        sums = [metric.count(*zip(*lines, strict=True)).sum(axis=0) for lines in (found, shuffled)]
        assert np.array_equal(*map(metric.statistic, sums), equal_nan=True)


def test_confusions_say_what_stands_there_and_what_was_read():
    assert confusions(["c0de", "ab", "xab"], ["code", "abc", "ab"]) == collections.Counter(
        {("o", "0"): 1, ("c", ""): 1, ("", "x"): 1}
    )


def test_intervals_are_those_of_the_binomial_distribution():
    # 30 of 100 lines are right: the 95 % interval of the mean of 100 draws is 0.3 +- 1.96 sqrt(0.3 * 0.7 / 100).
    read = ["a"] * 30 + ["b"] * 70
    found = estimate("line_accuracy", read, ["a"] * 100, samples=4000)
    assert found.value == pytest.approx(0.3)
    assert [found.low, found.high] == pytest.approx([0.3 - 0.0898, 0.3 + 0.0898], abs=0.015)
    assert found == estimate("line_accuracy", read, ["a"] * 100, samples=4000)
    varied = [["a" * i for i in range(1, 60)], ["a" * (i * i) for i in range(1, 60)]]
    assert estimate("cer", *varied).high != estimate("cer", *varied, seed=1).high
    same = estimate("cer", ["ab"] * 9, ["ac"] * 9)
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)


def test_what_is_undefined_has_no_estimate():
    assert estimate("cer", ["a"], [""]) is None
    assert estimate("cer", [], []) is None
    # One reference of two is empty: draws of that alone have no rate.
    found = estimate("cer", ["a", "b"], ["", "b"], samples=200)
    assert (found.value, found.low) == (1, 0)


def test_normalization_is_of_what_it_says():
    text = "Don 't cafe\u0301 , OK ."
    assert Normalization()(text) == text
    assert Normalization(compose=True)(text) == "Don 't café , OK ."
    assert Normalization(clean_up=True)("Do n't , he 's \" fine \" !") == "Don't, he's \" fine \"!"
    everything = Normalization(compose=True, clean_up=True, ignore_case=True)
    assert everything(text) == "don 't café, ok."
    assert str(Normalization()) == "both texts as they are"
    assert str(everything) == "both texts: NFC, no spaces before punctuation marks, lower case"


@given(st.text(max_size=20))
@repeatable
def test_cleaning_up_is_transformers(text):
    clean = functools.partial(PreTrainedTokenizerBase.clean_up_tokenization, None)
    for spaced in (text, text.replace("a", " ."), f"he 's {text} ' x n't ! ?"):
        assert Normalization(clean_up=True)(spaced) == clean(spaced)
