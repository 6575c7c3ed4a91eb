"""Words for drawn lines that running text lacks: of receipts and forms, cut off, short, and with straight quotes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECEIPT_WORDS, CUT_WORDS = 0.2, 0.06  # shares of the words to draw
STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
SHORT = 4  # characters, of a line that is enlarged the more, the shorter it is


def with_receipts(words: Sequence[str], random: np.random.Generator) -> list[str]:
    """The words and, behind them, such as stand on receipts and forms: dates, times, amounts and codes."""
    found: list[str] = []
    while len(found) < RECEIPT_WORDS * len(words):
        found += _receipt_line(random).split()
    return [*words, *found]


def _receipt_line(random: np.random.Generator) -> str:
    a, b, c, d = (f"{number:02}" for number in random.integers(0, 100, 4))
    day, month, year = int(a) % 28 + 1, int(b) % 12 + 1, f"{19 + int(c) % 2}{d}"
    mark = random.choice(list("/.-: "))
    date = mark.join((f"{day:02}", f"{month:02}", random.choice([year, d])))
    time = random.choice([":", ":", ".", "/"]).join((f"{int(a) % 24:02}", f"{int(b) % 60:02}", f"{int(c) % 60:02}"))
    letters = "".join(random.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), int(random.integers(1, 5))))
    amount = f"{int(random.integers(0, 2000)):,}{random.choice(['.', ',', '.'])}{d}"
    kind = random.choice(["Date", "DATE", "Time", "Total", "TOTAL", "No", "Tel", "Invoice", "Qty", "Cash", "GST", "RM"])
    choices = (
        f"{kind}: {date} {time}",
        f"{date} {time} {random.choice(['AM', 'PM', 'Uhr', 'h'])}",
        f"{kind} {amount}",
        f"{random.choice(['RM', '$', 'EUR ', '-'])}{amount} {letters}",
        f"{kind}. {a}{b}{letters}{random.choice(list('-/ '))}{c}",
        f"{letters}{a}{b}{c}{d} {letters.lower()}({a}-{b})",
        f"{a}{random.choice(list('%x#*@&='))}{amount} {time}",
    )
    return str(random.choice(choices))


def with_cut_words(words: Sequence[str], random: np.random.Generator) -> list[str]:
    """The words, some with a part of their letters alone, as where a line is cut: letters count, not what is likely."""
    found = list(words)
    for place in np.flatnonzero(random.random(len(words)) < CUT_WORDS):
        word = found[place]
        length = int(random.integers(1, len(word) + 1))
        found[place] = word[:length] if random.random() < 0.5 else word[-length:]
    return found


def with_straight_quotes(words: Sequence[str], random: np.random.Generator) -> list[str]:
    """The words, half of those in books' quotation marks in typewriters' instead."""
    is_straight = random.random(len(words)) < 0.5
    return [word.translate(STRAIGHT) if flag else word for word, flag in zip(words, is_straight, strict=True)]


def short_words(words: Sequence[str], random: np.random.Generator) -> list[str]:
    """Those of at most SHORT characters, half as many numbers, and a quarter as many signs and single capitals."""
    short = [word for word in words if len(word) <= SHORT]
    numbers = [str(random.integers(10 ** int(random.integers(1, SHORT)))) for _ in short[::2]]
    signs = [str(sign) for sign in random.choice(list("ABDEFGHKLMNQRTY&#$%-.,:*()/"), len(short) // 4)]
    return [*short, *numbers, *signs]
