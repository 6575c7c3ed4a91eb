"""What is wrong with a dataset before a model is trained or judged on it."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from trocr_jax.datasets.coverage import Speller, find_characters, tell_characters
from trocr_jax.datasets.example import Example
from trocr_jax.processing.image import ImageError
from trocr_jax.processing.tokenizer import TrOCRTokenizer

# A text of this many characters whose image is this much higher than wide is taken to be turned by 90 degrees.
ROTATED_CHARACTERS = 4
ROTATED_HEIGHT = 1.5
THREADS = 8


@dataclasses.dataclass(frozen=True)
class LineFacts:
    """What a check knows of a line.

    `size` is its image's width and height in pixels and `digest` tells its pixels from others; `error` says why it has
    neither. `tokens` counts the tokens that a model is to write, special ones included. `lost` are the characters that
    the tokenizer cannot spell, and `comes_back` says whether ids lead to just this text again.
    """

    name: str
    text: str
    size: tuple[int, int] | None
    digest: bytes | None
    error: str | None
    tokens: int
    lost: str
    comes_back: bool


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something found: what, on which lines, and whether it is wrong or only worth knowing."""

    what: str
    lines: Sequence[str]
    is_wrong: bool = True


def examine(examples: Iterable[Example], tokenizer: TrOCRTokenizer, *, num_special: int = 1) -> Iterator[LineFacts]:
    """The facts of each line in order; threads open the images.

    `num_special` is how many tokens labels have beside the text's: the end, and in the format "hf" the one in front.
    """
    spell = Speller(tokenizer)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "trocr_jax") as pool:
        waiting: collections.deque = collections.deque()
        for example in examples:
            waiting.append(pool.submit(_facts, example, spell, num_special))
            if len(waiting) > 4 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _facts(example: Example, spell: Speller, num_special: int) -> LineFacts:
    size = digest = error = None
    try:
        image = example.open()
        size, digest = image.size, hashlib.blake2b(image.tobytes(), digest_size=16, key=b"%dx%d" % image.size).digest()
    except ImageError as problem:
        error = str(problem)
    found = spell(example.text)
    tokens = found.num_tokens + num_special
    return LineFacts(example.name, example.text, size, digest, error, tokens, found.lost, found.comes_back)


def find_in_split(facts: Sequence[LineFacts], most_tokens: int) -> list[Finding]:
    """What is found in the lines of one split; `most_tokens` is the longest text that the model has positions for."""
    lost = find_characters((line.name, line.lost) for line in facts)
    spelled = tell_characters(lost, most=len(lost))
    findings = [
        Finding("images cannot be read", [line.error for line in facts if line.error is not None]),
        Finding("images look rotated: much higher than wide", [line.name for line in facts if _is_rotated(line)]),
        Finding(f"texts have characters that the tokenizer cannot spell: {spelled}", _named(facts, _has_lost)),
        Finding(
            "texts are not what the tokenizer makes of them, though it can spell their characters",
            _named(facts, lambda line: not line.comes_back and not line.lost),
        ),
        Finding(
            f"texts are longer than the model can write, {most_tokens} tokens with special ones",
            [f"{line.name}: {line.tokens} tokens" for line in facts if line.tokens > most_tokens],
        ),
        *_duplicates(facts),
        Finding("texts are empty", [line.name for line in facts if not line.text.strip()], is_wrong=False),
        Finding(
            "texts are not in Unicode's NFC, so that equal letters may differ",
            _named(facts, lambda line: not unicodedata.is_normalized("NFC", line.text)),
            is_wrong=False,
        ),
    ]
    return [finding for finding in findings if finding.lines]


def find_between_splits(splits: Mapping[str, Sequence[LineFacts]]) -> list[Finding]:
    """What the splits share and should not: images; and texts, which only make results look better than they are."""
    findings = []
    names = list(splits)
    for i, first in enumerate(names):
        images = {line.digest: line.name for line in splits[first] if line.digest is not None}
        texts = {line.text for line in splits[first]}
        for second in names[i + 1 :]:
            shared = [f"{line.name} is {images[line.digest]}" for line in splits[second] if line.digest in images]
            findings.append(Finding(f"images of {second} are in {first} too", shared))
            repeated = [_quoted(line) for line in splits[second] if line.text in texts]
            findings.append(Finding(f"texts of {second} are in {first} too", repeated, is_wrong=False))
    return [finding for finding in findings if finding.lines]


def _duplicates(facts: Sequence[LineFacts]) -> list[Finding]:
    """Images that come more than once: with the same text, and with different ones."""
    seen: dict[bytes, LineFacts] = {}
    same, different = [], []
    for line in facts:
        if line.digest is None:
            continue
        first = seen.setdefault(line.digest, line)
        if first is line:
            continue
        if first.text == line.text:
            same.append(f"{line.name} is {first.name}")
        else:
            different.append(f"{line.name} is {first.name}: {line.text!r}, {first.text!r}")
    return [
        Finding("images come again with the same text", same),
        Finding("images come again with another text", different),
    ]


def _is_rotated(line: LineFacts) -> bool:
    return (
        line.size is not None
        and len(line.text.strip()) >= ROTATED_CHARACTERS
        and line.size[1] > ROTATED_HEIGHT * line.size[0]
    )


def _has_lost(line: LineFacts) -> bool:
    return bool(line.lost)


def _named(facts: Sequence[LineFacts], is_one: Callable[[LineFacts], bool]) -> list[str]:
    return [_quoted(line) for line in facts if is_one(line)]


def _quoted(line: LineFacts) -> str:
    return f"{line.name}: {line.text!r}"
