"""What a constraint costs a step of decoding.

usage: python benchmarks/constraints.py [--batch N] [--num-beams N] [--runs N]

A decoder of trocr-base's shape with random weights (float32, 50,265 tokens: the bytes, and random words of two to six
letters) writes 24 tokens for random encoder states, without a constraint and with each of several, in turn. Printed are
the medians of milliseconds a step with their ranges, the ratios to none of medians and of least times, and what making
the automaton took.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import string
import time

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trocr_jax.constraints import AllowedCharacters, Lexicon, Pattern
from trocr_jax.constraints.constraint import compile_constraint
from trocr_jax.decoding.constrained import make_tables
from trocr_jax.models import VisionEncoderDecoderModel
from trocr_jax.processing.tokenizer import TrOCRTokenizer
from trocr_jax.registry import OFFICIAL

SIZE, STEPS = 50265, 24
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def make_tokenizer() -> TrOCRTokenizer:
    """The bytes and as many words as the vocabulary has room for; without merges, a text is spelt in bytes."""
    rng = random.Random(0)
    tokens = dict.fromkeys([*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())])
    while len(tokens) < SIZE:
        letters = rng.choices(string.ascii_letters + string.digits, k=rng.randint(2, 6))
        tokens["Ġ" * rng.randrange(2) + "".join(letters)] = None
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL.values()])
    return TrOCRTokenizer(backend, SPECIAL)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    tokenizer = make_tokenizer()
    rng = random.Random(1)
    # Of as many letters as there are steps: spelt in bytes, they last to the end.
    entries = ["".join(rng.choices(string.ascii_lowercase, k=STEPS - 1)) for _ in range(100_000)]
    constraints = {
        "none": None,
        "allowed characters": AllowedCharacters(string.ascii_letters + " .,"),
        "pattern [a-z ]{1,200}": Pattern("[a-z ]{1,200}"),
        "pattern .{0,200}": Pattern(".{0,200}"),
        "lexicon of 100,000": Lexicon(entries),
    }
    model = VisionEncoderDecoderModel(OFFICIAL["trocr-base-handwritten"])
    states = np.random.default_rng(0).normal(size=(options.batch, 577, 768)).astype(np.float32)
    automata, times = {}, {name: [] for name in constraints}
    for name, constraint in constraints.items():
        start = time.perf_counter()
        automata[name] = constraint and compile_constraint(constraint, tokenizer, SIZE, (2,), 2)
        making = time.perf_counter() - start
        if automata[name]:
            tables = make_tables(automata[name], SIZE)
            size = sum(np.asarray(leaf).nbytes for leaf in vars(tables).values() if isinstance(leaf, np.ndarray)) / 1e6
            print(f"{name}: made in {making:.1f} s, {automata[name].num_states} states, "
                  f"{len(automata[name].tokens)} edges, {size:.0f} MB on the device", flush=True)  # fmt: skip
    for run, name in itertools.product(range(options.runs + 1), constraints):
        start = time.perf_counter()
        output = model.generate(
            encoder_hidden_states=states,
            constraints=automata[name],
            num_beams=options.num_beams,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS - 1,
            return_dict_in_generate=True,
        )
        steps = output.token_log_probs.shape[1]
        if run:  # the first compiles
            times[name].append(1000 * (time.perf_counter() - start) / steps)
    base = statistics.median(times["none"])
    print(f"batch {options.batch}, {options.num_beams} beams, milliseconds a step")
    for name, found in times.items():
        median = statistics.median(found)
        least = min(found) / min(times["none"])
        print(f"{name:24} {median:7.1f} ({min(found):.1f} to {max(found):.1f})  {median / base:.2f}  {least:.2f}")


if __name__ == "__main__":
    main()
