"""Patterns against Python's own `re.fullmatch`, by trying every text."""

from __future__ import annotations

import itertools
import random
import re

import numpy as np
import pytest

from trocr_jax.constraints.automaton import intersection
from trocr_jax.constraints.pattern import compile_characters, compile_pattern
from trocr_jax.constraints.utf8 import byte_ranges

LETTERS = "ab1 é"
TEXTS = ["".join(text) for size in range(6) for text in itertools.product(LETTERS, repeat=size)]
PATTERNS = [
    r"", r"a", r"ab|b1*", r"(a|b)*1?", r"[^a]{2,3}", r"a{2}b{0,2}", r"(?:ab){1,}", r"\d+\s?\w", r"\w+(?: \w+)*",
    r".*b.*", r"(?i)A[É]?B", r"(?i:É)+a", r"(?i:[A-C])\S*", r"(?-i:a)b", r"(?a)\w+", r"(?a:\W)a", r"[^\W\d]+", r"\D*",
    r"^ab?$", r"\Aa\Z", r"(a*)*b", r"(a|)*", r"(?P<name>a)b", r"(?x) a  b # spaces do not count", r"(?s).",
    r"a??b*?", r"[]a]+", r"\x61\u00e9", r"(a|b)*a(a|b){3}", r"(|a)(|b)(|1)", r"(ab|a)(b1|1)",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_are_those_that_re_matches(pattern):
    automaton, expected = compile_pattern(pattern), re.compile(pattern)
    for text in TEXTS:
        assert automaton.accepts(text.encode()) == bool(expected.fullmatch(text)), text


def random_pattern(rng, depth=3):
    kind = rng.randrange(8 if depth else 4)
    if kind < 4:
        return rng.choice(["a", "b", "é", "[ab]", "[^b]", ".", r"\w", r"\d", "", r"\s"])
    inner = random_pattern(rng, depth - 1)
    if kind == 4:
        return f"(?:{inner})" + rng.choice(["*", "+", "?", "{2}", "{1,2}", "*?", "{0}"])
    return f"(?:{inner}{'|' if kind == 5 else ''}{random_pattern(rng, depth - 1)})"


def test_random_patterns_are_those_of_re():
    rng = random.Random(3)
    matches = 0
    for _ in range(150):
        pattern = random_pattern(rng)
        automaton, expected = compile_pattern(pattern), re.compile(pattern)
        for text in rng.sample(TEXTS, 150) + TEXTS[:30]:
            is_match = bool(expected.fullmatch(text))
            matches += is_match
            assert automaton.accepts(text.encode()) == is_match, (pattern, text)
    assert matches > 500


def test_sets_of_characters_are_pythons_over_all_of_unicode():
    points = [*range(0x3000), *range(0x10000, 0x10500), *range(0x3000, 0x10FFFF, 7), 0xD7FF, 0xE000, 0xFFFF, 0x10FFFF]
    characters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    for pattern in (r"\w", r"[^\s\d]", r"[ß-翿]", r"(?i)[k]", "."):
        automaton, expected = compile_pattern(pattern), re.compile(pattern)
        wrong = [c for c in characters if automaton.accepts(c.encode()) != bool(expected.fullmatch(c))]
        assert not wrong, pattern


def test_byte_ranges_spell_each_code_point_once():
    rng = np.random.default_rng(0)
    for _ in range(30):
        low, high = sorted(rng.integers(0, 0x110000 if rng.random() < 0.5 else 0x1000, 2).tolist())
        high = min(high, low + 3000)
        found = []
        for spelling in byte_ranges(((low, high),)):
            found += [bytes(b) for b in itertools.product(*(range(a, b + 1) for a, b in spelling))]
        expected = [chr(point).encode() for point in range(low, high + 1) if not 0xD800 <= point < 0xE000]
        assert sorted(found) == sorted(expected)


def test_bytes_that_are_no_utf8_are_no_text():
    automaton = compile_pattern(r".*")
    for raw in (b"\xc3", b"\xa9", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\x80"):
        assert not automaton.accepts(raw)


def test_allowed_characters():
    automaton = compile_characters("aé-]^")
    assert all(automaton.accepts(text.encode()) for text in ("", "é", "a-]^é"))
    assert not any(automaton.accepts(text.encode()) for text in ("b", "aè", "[", "a b"))


def test_an_intersection_is_of_both():
    both = intersection(compile_pattern(r"a.*"), compile_pattern(r".*b|a"))
    for text in TEXTS:
        assert both.accepts(text.encode()) == bool(re.fullmatch(r"a.*", text) and re.fullmatch(r".*b|a", text))


def test_large_patterns_take_no_longer_than_a_moment():
    assert len(compile_pattern(r"a{15000}b?").table) == 15_002
    assert len(compile_pattern(r"(?:){4000000000}a").table) == 2


def test_automata_are_minimal():
    assert len(compile_pattern(r"(a|b)*a(a|b){3}").table) == 16
    assert len(compile_pattern(r"aa|ab|ba|bb").table) == len(compile_pattern(r"[ab][ab]").table) == 3


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(a", "no regular expression.*unterminated"),
        (r"(a)\1", "backreference"),
        (r"a(?=b)", "lookaround"),
        (r"(?<!a)b", "lookaround"),
        (r"a\bb", r"\\b or"),
        (r"\bab\b", r"\\b or"),
        (r"(?:a?){4000}", "more than 20000 states"),
        (r"(?:){0,4000000000}", "more than 20000 states"),
        (r"a^b", "anchor in its midst"),
        (r"(?>a|b)c", "atomic group"),
        (r"a*+b", "possessive"),
        (r"(a)?(?(1)b|c)", "conditional"),
        (r"(?m)a$", "MULTILINE"),
        (r"(a{200}){200}", "more than 20000 states"),
        (r"(a|b)*a(a|b){20}", "more than 20000 states"),
        ("(" * 3000 + ")" * 3000, "nested|no regular expression"),
    ],
)
def test_what_is_not_regular_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        compile_pattern(pattern)
