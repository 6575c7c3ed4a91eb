"""Constraints inside the search: against transformers' prefix_allowed_tokens_fn, and against trying every text."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
import torch

from tests.constraints.letters import END, make_tokenizer
from tests.decoding.test_options import SETTINGS, make_prompt, reader
from tests.twins import oracle_generate
from trocr_jax.constraints import AllowedCharacters, Lexicon, Pattern
from trocr_jax.constraints.constraint import compile_constraint
from trocr_jax.decoding import constrained
from trocr_jax.decoding.generate import generate, run
from trocr_jax.decoding.token_automaton import NEVER, free_automaton, join

TOKENIZER = make_tokenizer()
SIZE = 41  # the twin's vocabulary; tokens from 22 on spell nothing
LEXICON = Lexicon(["abc", "ab c", "a", "é1", "12 a", "bb"])
CONSTRAINTS = [Pattern(r"(a|b1?){4,}"), LEXICON, AllowedCharacters("abc 12"), Pattern(r"\w+( \w+)+é") & Pattern(".{6}")]


def compiled(constraint):
    return compile_constraint(constraint, TOKENIZER, SIZE, (END,), TOKENIZER.bos_token_id)


def text_of(row):
    return TOKENIZER.decode(row.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("window", [2, 64])
def test_tables_say_what_the_automaton_says(window, monkeypatch):
    monkeypatch.setattr(constrained, "_LEAST_WINDOW", window)
    monkeypatch.setattr(constrained, "_MOST_WINDOW", window)
    automaton = join([*map(compiled, CONSTRAINTS), free_automaton(SIZE)])
    tables = jax.device_put(constrained.make_tables(automaton, SIZE))
    assert (np.max(tables.row) > 0) == (window == 2)
    states = np.arange(automaton.num_states)
    needed = np.asarray(jax.jit(type(tables).tokens_to_go)(tables, states))
    following = jax.jit(type(tables).next_state)
    expected, reached = np.full((len(states), SIZE), NEVER), np.full((len(states), SIZE), -1)
    for state, token in itertools.product(states.tolist(), range(SIZE)):
        target = automaton.advance(state, [token])
        if target is not None:
            expected[state, token], reached[state, token] = 1 + automaton.to_go[target], target
    np.testing.assert_array_equal(needed, expected)
    for token in range(SIZE):
        found = np.asarray(following(tables, states, np.full(len(states), token)))
        gone = found == len(tables.first_edge) - 1
        np.testing.assert_array_equal(np.where(gone, -1, found), reached[:, token])
    assert (np.asarray(tables.tokens_to_go(np.array([len(tables.first_edge) - 1]))) == NEVER).all()


def allowed_tokens(automata, max_length):
    """transformers' prefix_allowed_tokens_fn for one automaton an image."""

    def allowed(image, ids):
        automaton = automata[int(image)]
        # Finished rows are asked as well, and may not be left without a token.
        state = automaton.advance(0, ids[1:].tolist())
        if state is None:
            return [END]
        edges = slice(automaton.offsets[state], automaton.offsets[state + 1])
        fits = 1 + automaton.to_go[automaton.targets[edges]] <= max_length - len(ids)
        return automaton.tokens[edges][fits].tolist() or [END]

    return allowed


@pytest.mark.parametrize("num_beams", [1, 3])
def test_ids_equal_with_a_constraint_for_each_image(num_beams):
    twin, model, params, _ = reader()
    automata = [*map(compiled, CONSTRAINTS), free_automaton(SIZE)]
    for i, extra in enumerate(({}, {"no_repeat_ngram_size": 3, "repetition_penalty": 1.3}, {"min_length": 9})):
        options = {"num_beams": num_beams, "max_length": 20, **extra}
        pixels = twin.pixels(5, i)
        expected, _ = oracle_generate(
            twin.oracle, pixels, **options, prefix_allowed_tokens_fn=allowed_tokens(automata, 20)
        )
        found = generate(model, params, SETTINGS, pixel_values=pixels, options=options, constraints=automata)
        read = np.flatnonzero(found.num_tokens)  # where other options leave nothing, the reference goes on at random
        assert len(read) >= (3 if extra else 5)
        for row in read:
            count = found.num_tokens[row]
            assert found.sequences[row, : 1 + count].tolist() == expected[row, : 1 + count].tolist(), (extra, row)
            if not found.is_truncated[row]:
                assert automata[row].advance(0, found.sequences[row, 1 : 1 + count]) is not None


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_prompt_is_the_beginning_of_the_text(num_beams):
    twin, model, params, _ = reader()
    automata = [compiled(Pattern(r"[abc]{3}(1|2){2,}")), compiled(Lexicon(["abcab", "abca", "abc12"]))]
    spelt = [2, *TOKENIZER("abc", add_special_tokens=False)["input_ids"]]
    letters = [2, *TOKENIZER.convert_tokens_to_ids(["a", "b", "c"])]
    options = {"num_beams": num_beams, "max_length": 12}
    for prompt, used in (([letters, letters], automata[:1] * 2), ([spelt, spelt], automata)):
        prompt = np.array(prompt)
        function = allowed_tokens(used, 12)
        expected, _ = oracle_generate(
            twin.oracle,
            twin.pixels(2),
            **options,
            decoder_input_ids=torch.from_numpy(prompt),
            prefix_allowed_tokens_fn=function,
        )
        found = generate(
            model,
            params,
            SETTINGS,
            pixel_values=twin.pixels(2),
            options=options,
            decoder_input_ids=prompt,
            constraints=used,
        )
        np.testing.assert_array_equal(found.sequences, expected[:, : found.sequences.shape[1]])
        assert all(text_of(row).startswith("abc") for row in found.sequences)
    with pytest.raises(ValueError, match="image 0: the constraint allows no text that begins with its decoder_input"):
        generate(
            model,
            params,
            SETTINGS,
            pixel_values=twin.pixels(2),
            decoder_input_ids=make_prompt(2),
            constraints=automata,
        )


def rows_of(automaton, longest):
    """All rows of tokens that an automaton allows, end included."""
    rows, waiting = [], [((), 0)]
    while waiting:
        tokens, state = waiting.pop()
        edges = slice(automaton.offsets[state], automaton.offsets[state + 1])
        for token, target in zip(automaton.tokens[edges].tolist(), automaton.targets[edges].tolist(), strict=True):
            if automaton.to_go[target] == 0:
                rows.append((*tokens, token))
            elif len(tokens) + 1 + automaton.to_go[target] <= longest:
                waiting.append(((*tokens, token), target))
    return rows


def log_prob(twin, pixels, tokens):
    """The oracle's log-probability of a row of tokens for each image."""
    ids = torch.tensor([[2, *tokens]] * len(pixels))
    with torch.no_grad():
        logits = twin.oracle(pixel_values=torch.from_numpy(pixels), decoder_input_ids=ids[:, :-1]).logits
    return torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0].sum(1).numpy()


def test_all_texts_of_a_small_language_are_found_in_their_order():
    twin, model, params, _ = reader()
    automata = [compiled(LEXICON), compiled(Pattern("a[b2]|c1?"))]
    pixels = twin.pixels(2)
    options = {"num_beams": 16, "num_return_sequences": 16, "length_penalty": 0.0, "max_length": 8}
    found = generate(model, params, SETTINGS, pixel_values=pixels, options=options, constraints=automata)
    for image, automaton in enumerate(automata):
        rows = rows_of(automaton, 7)
        assert 8 <= len(rows) <= 16
        scores = {tokens: log_prob(twin, pixels, tokens)[image] for tokens in rows}
        best = sorted(rows, key=scores.get, reverse=True)
        ours = found.sequences[image * 16 : image * 16 + 16]
        counts = found.num_tokens[image * 16 : image * 16 + 16]
        assert [tuple(row[1 : 1 + n].tolist()) for row, n in zip(ours, counts, strict=True) if n] == best
        assert np.all(counts[len(rows) :] == 0)
        theirs = [scores[tokens] for tokens in best]
        np.testing.assert_allclose(found.sequences_scores[image * 16 :][: len(rows)], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 4}, {"do_sample": True, "num_return_sequences": 3}, {"renormalize_logits": True}]
)
def test_texts_are_complete_however_little_room_there_is(options):
    twin, model, params, _ = reader()
    automaton = compiled(Pattern(r"(a|b){5,}é"))
    for max_length in (6, 7, 9):
        found = generate(
            model,
            params,
            SETTINGS,
            pixel_values=twin.pixels(4),
            options={"max_length": max_length, **options},
            constraints=automaton,
        )
        assert not found.is_truncated.any()
        for row, count in zip(found.sequences, found.num_tokens, strict=True):
            assert automaton.advance(0, row[1 : 1 + count]) is not None
    with pytest.raises(ValueError, match=r"shortest text .* has 5 tokens, its end included, but only 4 are allowed"):
        generate(model, params, SETTINGS, pixel_values=twin.pixels(1), options={"max_length": 5}, constraints=automaton)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_where_other_options_leave_nothing_there_is_no_text(num_beams):
    twin, model, params, _ = reader()
    automata = [compiled(Pattern("(ab)+")), None, compiled(Pattern("c+"))]
    options = {"num_beams": num_beams, "max_length": 12, "suppress_tokens": [4, 13, 15], "renormalize_logits": True}
    found = generate(model, params, SETTINGS, pixel_values=twin.pixels(3), options=options, constraints=automata)
    alone = generate(model, params, SETTINGS, pixel_values=twin.pixels(3)[1:2], options=options)
    assert found.num_tokens[0] == 0
    assert found.is_truncated[0]
    assert np.isfinite(found.token_log_probs).all()
    count = alone.num_tokens[0]
    assert found.sequences[1, : 1 + count].tolist() == alone.sequences[0, : 1 + count].tolist()
    assert set(text_of(found.sequences[2, 1 : 1 + found.num_tokens[2]])) == {"c"}


def test_other_constraints_of_about_the_same_size_do_not_recompile():
    twin, model, params, _ = reader()
    options = {"max_length": 19}

    def programs(constraints):
        before = run._cache_size()
        generate(model, params, SETTINGS, pixel_values=twin.pixels(2), options=options, constraints=constraints)
        return run._cache_size() - before

    assert programs([compiled(Pattern("[ab]+")), None]) == 1
    assert programs(compiled(LEXICON)) == 0
    assert programs([compiled(Pattern(r"(a|bb){3}")), compiled(AllowedCharacters("12"))]) == 0
    assert programs(None) == 1


def test_the_number_of_constraints_is_that_of_the_images():
    twin, model, params, _ = reader()
    for constraints in ([None] * 3, []):
        with pytest.raises(ValueError, match=f"{len(constraints)} constraints for 2 images"):
            generate(model, params, SETTINGS, pixel_values=twin.pixels(2), constraints=constraints)


def test_a_forced_beginning_that_a_constraint_forbids_is_an_error():
    twin, model, params, _ = reader()
    automata = [None, compiled(Pattern("[ab]+"))]
    options = {"forced_bos_token_id": 6}
    with pytest.raises(ValueError, match="image 1: the constraint does not allow the text to begin with forced_bos"):
        generate(model, params, SETTINGS, pixel_values=twin.pixels(2), options=options, constraints=automata)
