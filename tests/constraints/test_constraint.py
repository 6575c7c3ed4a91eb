"""Constraints over tokens: every row of tokens of a small vocabulary is tried."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from tests.constraints.letters import END, make_tokenizer, make_vocabulary
from tests.processing.test_tokenizer import WORDS, trained  # noqa: F401
from trocr_jax.constraints import AllowedCharacters, Lexicon, Pattern
from trocr_jax.constraints.constraint import compile_constraint
from trocr_jax.constraints.for_images import check_constraints, compile_constraints, with_automata
from trocr_jax.constraints.vocabulary import Vocabulary
from trocr_jax.decoding.token_automaton import NEVER, free_automaton, join
from trocr_jax.processing.tokenizer import TrOCRTokenizer

TOKENIZER = make_tokenizer()
SIZE = len(TOKENIZER)
OTHERS = [token for token in range(SIZE) if token > 3]
BEGIN = TOKENIZER.bos_token_id


def compiled(constraint, tokenizer=TOKENIZER, start=BEGIN):
    return compile_constraint(constraint, tokenizer, len(tokenizer), (END,), start)


def accepts(automaton, tokens):
    state = automaton.advance(int(automaton.starts[0]), [*tokens, END])
    assert state is None or automaton.to_go[state] == 0
    return state is not None


def text_of(tokens):
    """The text that tokens spell, None where they break a character apart."""
    text = TOKENIZER.decode(list(tokens))
    return None if "\ufffd" in text else text


@pytest.mark.parametrize("pattern", [r"a*", r"[ab]c|12?", r"\w+( \w+)?", r".{0,2}", r"(ab|é)+", r"[^a]*", r"a?é1?"])
def test_rows_of_tokens_are_those_whose_text_matches(pattern):
    automaton = compiled(Pattern(pattern))
    found = 0
    for size in range(5 if len(pattern) < 5 else 4):
        for tokens in itertools.product(OTHERS, repeat=size):
            text = text_of(tokens)
            expected = text is not None and re.fullmatch(pattern, text) is not None
            found += expected
            assert accepts(automaton, tokens) == expected, (tokens, text)
    assert found > 2


def test_the_shortest_way_to_an_end_is_known_everywhere():
    automaton = compiled(Pattern(r"(a|bb)(é|12){2}"))
    used = TOKENIZER.convert_tokens_to_ids(["a", "b", "1", "2", "Ã", "©", "12", "aÃ", "Ã©", "bb"])
    complete = [tokens for n in range(1, 6) for tokens in itertools.product(used, repeat=n)]
    complete = [tokens for tokens in complete if accepts(automaton, tokens)]
    assert automaton.shortest() == 1 + min(map(len, complete)) == 4
    for tokens in complete:
        for place in range(len(tokens) + 1):
            state = automaton.advance(0, tokens[:place])
            longer = [len(other) for other in complete if other[:place] == tokens[:place]]
            assert automaton.to_go[state] == 1 + min(longer) - place


def test_only_what_leads_to_an_end_is_allowed():
    # Behind Ã comes only what completes é, and nothing allows è.
    automaton = compiled(Pattern("é*"))
    half = TOKENIZER.convert_tokens_to_ids("Ã")
    state = automaton.advance(0, [half])
    edges = slice(automaton.offsets[state], automaton.offsets[state + 1])
    assert [TOKENIZER.convert_ids_to_tokens([t])[0] for t in automaton.tokens[edges]] == ["©"]


def test_special_tokens_spell_nothing_but_may_begin_a_text():
    automaton = compiled(Pattern("a*"))
    assert accepts(automaton, [BEGIN, 4, 4])
    assert not accepts(automaton, [BEGIN, BEGIN, 4])
    assert not accepts(automaton, [4, BEGIN])
    assert not any(accepts(automaton, [4, special, 4]) for special in (0, 1, 2, 3))
    # Nor may it in models that start with another token: official ones never write it.
    assert not accepts(compiled(Pattern("a*"), start=END), [BEGIN, 4, 4])
    assert automaton.advance(0, [END, END]) is None


def test_a_lexicon_is_its_texts_as_the_tokenizer_spells_them():
    texts = ["abc", "ab", "a", "12 a", "é", "abca", "", "bb"]
    automaton = compiled(Lexicon(texts))
    spelt = {tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"]) for text in texts}
    assert len(spelt) == len(texts)
    for size in range(4):
        for tokens in itertools.product(OTHERS, repeat=size):
            assert accepts(automaton, tokens) == (tokens in spelt), tokens
    assert all(accepts(automaton, tokens) for tokens in spelt)
    assert automaton.shortest() == 1


def test_constraints_combine():
    words = Lexicon(["ab", "a1", "c", "12"])
    assert automaton_texts(words & AllowedCharacters("abc")) == {"ab", "c"}
    assert automaton_texts(words & Pattern("a.|..") & AllowedCharacters("12a")) == {"a1", "12"}
    assert automaton_texts(words & Lexicon(["c", "12", "x"])) == {"c", "12"}
    assert automaton_texts(Pattern("[ab]{1,2}") & Pattern(".b|b")) == {"b", "ab", "bb"}


def automaton_texts(constraint):
    automaton = compiled(constraint)
    rows = (tokens for n in range(4) for tokens in itertools.product(OTHERS, repeat=n))
    return {text_of(tokens) for tokens in rows if accepts(automaton, tokens)}


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Pattern("a") & Pattern("b"), "no text satisfies"),
        (Pattern("[xyz]+"), "no text satisfies Pattern"),
        (Lexicon(["ab"]) & Pattern("c"), "no text satisfies Lexicon of 1 texts"),
        (Lexicon(["ab", "xyz"]), "1 texts of the lexicon cannot be spelt.*'xyz'"),
        (Pattern("(a|b)*a(a|b){13}") & Pattern("(a|b)*b(a|b){13}"), "is too large"),
    ],
)
def test_what_cannot_be_is_an_error(constraint, message):
    with pytest.raises(ValueError, match=message):
        compiled(constraint)


def test_arguments_are_checked(tmp_path):
    for make, value in [(AllowedCharacters, ""), (AllowedCharacters, ["a"]), (Pattern, None), (Lexicon, "ab")]:
        with pytest.raises(ValueError, match="pass a"):
            make(value)
    with pytest.raises(ValueError, match="at least one text"):
        Lexicon([])
    for make in (AllowedCharacters, lambda text: Lexicon([text])):
        with pytest.raises(ValueError, match="half of a character"):
            make("a\ud800")
    for other in ("b", None):
        with pytest.raises(ValueError, match="is no constraint; make one with"):
            Pattern("a") & other
    for other in ("[0-9]", {"a": 1}, [Pattern("a"), 3]):
        with pytest.raises(ValueError, match="make one with AllowedCharacters"):
            compile_constraints(other, TOKENIZER, SIZE, (END,), END)
    with pytest.raises(ValueError, match="2 constraints for 1 images"):
        check_constraints(compile_constraints([None, Pattern("a")], TOKENIZER, SIZE, (END,), END), ["x"], 9)
    (tmp_path / "words").write_text("\ufeffab\n\nc\u2028d\r\n", encoding="utf-8")
    assert Lexicon.from_file(tmp_path / "words") == Lexicon(["ab", "c\u2028d"])
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for name, message in (("empty", "holds no texts"), ("latin", "is not UTF-8")):
        with pytest.raises(ValueError, match=message):
            Lexicon.from_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        Lexicon.from_file(tmp_path / "absent")
    with pytest.raises(ValueError, match="a token that ends a text"):
        compile_constraint(Pattern("a"), TOKENIZER, SIZE, (), END)


def test_each_image_has_its_own():
    automata = [compiled(Pattern("a")), None, compiled(Pattern("b"))]
    assert list(with_automata("xyz", automata)) == list(zip("xyz", automata, strict=True))
    assert list(with_automata("xy", automata[0])) == [("x", automata[0]), ("y", automata[0])]
    paired = with_automata("wxyz", automata)
    assert [next(paired)[0] for _ in range(3)] == ["w", "x", "y"]
    with pytest.raises(ValueError, match="3 constraints, but more images"):
        next(paired)


def test_joined_automata_are_each_as_before():
    automata = [compiled(Pattern("a|bc")), free_automaton(SIZE), compiled(Lexicon(["12", "abc"]))]
    joined = join(automata)
    for start, automaton in zip(joined.starts, automata, strict=True):
        for tokens in itertools.product(range(SIZE), repeat=2):
            state, alone = joined.advance(int(start), tokens), automaton.advance(0, tokens)
            assert (state is None) == (alone is None)
            assert state is None or joined.to_go[state] == automaton.to_go[alone]


def test_a_space_that_the_tokenizer_adds_does_not_count():
    tokenizer = make_tokenizer(add_prefix_space=True)
    automaton = compiled(Pattern("ab"), tokenizer)
    spaced = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(spaced) == " ab"
    assert accepts(automaton, spaced)
    assert accepts(compiled(Lexicon(["ab"]), tokenizer), spaced)
    assert not accepts(automaton, [tokenizer.convert_tokens_to_ids("Ġ"), *spaced])


@pytest.fixture(params=["bpe", "unigram"])
def tokenizer(trained, request):  # noqa: F811
    return TrOCRTokenizer.from_pretrained(trained / request.param)


def test_spellings_are_what_the_tokenizer_decodes(tokenizer):
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary.of(tokenizer, len(tokenizer) + 5, (tokenizer.eos_token_id,))
    first, later = bytes_of(vocabulary.first), bytes_of(vocabulary.later)
    for _ in range(500):
        tokens = rng.choice(sorted(later), rng.integers(1, 6)).tolist()
        spelt = first[tokens[0]] + b"".join(later[token] for token in tokens[1:])
        assert spelt.decode("utf-8", "replace") == tokenizer.decode(tokens)


def bytes_of(spellings):
    rows = zip(spellings.tokens.tolist(), spellings.letters, spellings.lengths, strict=True)
    return {token: bytes(letters[:length]) for token, letters, length in rows}


def test_texts_of_every_kind_of_tokenizer_can_be_followed(tokenizer):
    text = tokenizer.decode(tokenizer(WORDS[0] + " " + WORDS[1], add_special_tokens=False)["input_ids"])
    tokens = tokenizer(text)["input_ids"]  # <s> text </s>
    size, end = len(tokenizer), tokenizer.eos_token_id
    for constraint in (Pattern(re.escape(text)), Lexicon([text, "a"]), AllowedCharacters(text)):
        automaton = compile_constraint(constraint, tokenizer, size, (end,), tokenizer.bos_token_id)
        assert automaton.advance(0, tokens) is not None
        assert automaton.advance(0, tokens[1:]) is not None
        assert automaton.advance(0, tokens[:-2] + tokens[-1:]) is None or isinstance(constraint, AllowedCharacters)


def test_a_large_lexicon():
    texts = ["".join(letters) for letters in itertools.product("abc12 é", repeat=6)][:100_000]
    automaton = compiled(Lexicon(texts))
    rng = np.random.default_rng(0)
    for i in rng.integers(0, len(texts), 200):
        assert accepts(automaton, TOKENIZER(texts[i], add_special_tokens=False)["input_ids"])
    assert not accepts(automaton, TOKENIZER("abc", add_special_tokens=False)["input_ids"])
    assert automaton.shortest() < NEVER
    assert make_vocabulary(SIZE + 3).size == SIZE + 3
