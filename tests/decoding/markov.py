"""Random Markov chains as models, and the reference's beam search over them in plain Python.

The plain search follows transformers' rules with lists and loops, one image at a time, so that it shares neither code
nor structure with the compiled one.
"""

from __future__ import annotations

import dataclasses

import numpy as np

NEG_INF = -1.0e9


def chain(vocab_size: int, order_weight: float, seed: int) -> np.ndarray:
    """Log-probabilities [position, last token, next token] of a chain that changes with the position."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(64, vocab_size, vocab_size)) * order_weight
    logits[:, :, 2] += 0.8  # the end token
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@dataclasses.dataclass
class Text:
    """One hypothesis."""

    tokens: list[int]
    score: float
    is_filled: bool = True


def best(texts: list[Text], count: int) -> list[Text]:
    """The first `count` by score; of equals the earlier one."""
    return sorted(texts, key=lambda text: -text.score)[:count]


def beam_search(
    table: np.ndarray,
    *,
    num_beams: int,
    max_length: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    start: int = 2,
    end: int = 2,
) -> list[Text]:
    """The finished texts of one image, best first, the start token in front."""
    running = [Text([start], 0.0)] + [Text([start], NEG_INF) for _ in range(num_beams - 1)]
    finished = [Text([start], NEG_INF, is_filled=False) for _ in range(num_beams)]
    can_improve = True
    while True:
        length = len(running[0].tokens)
        candidates = [
            Text([*text.tokens, token], text.score + log_prob)
            for text in running
            for token, log_prob in enumerate(table[length - 1, text.tokens[-1]])
        ]
        candidates = best(candidates, 2 * num_beams)
        hits = [text.tokens[-1] == end or length + 1 >= max_length for text in candidates]
        is_closed = early_stopping is True and all(text.is_filled for text in finished)
        entering = [
            Text(text.tokens, text.score / length**length_penalty)
            for text, hit in zip(candidates[:num_beams], hits, strict=False)
            if hit and can_improve and not is_closed
        ]
        finished = best(finished + entering, num_beams)
        open_texts = [
            Text(text.tokens, text.score + (NEG_INF if hit else 0.0))
            for text, hit in zip(candidates, hits, strict=True)
        ]
        running = best(open_texts, num_beams)
        hoped = max_length - 1 if early_stopping == "never" and length_penalty > 0 else length
        worst = min(text.score for text in finished) if all(text.is_filled for text in finished) else NEG_INF
        can_improve = can_improve and running[0].score / hoped**length_penalty > worst
        is_full = early_stopping is True and all(text.is_filled for text in finished)
        if not can_improve or is_full or all(hits):
            return finished


def fairseq_search(
    table: np.ndarray, *, num_beams: int, max_len: int, pad: int = 1, end: int = 2
) -> tuple[list[Text], bool]:
    """The texts that unilm's TextRecognitionGenerator collects for one image, best first, the start token in front.

    Also whether more texts ended in the last step than places were left. An end counts where it ranks among the best
    `num_beams` candidates; the search stops when as many texts are collected, or behind max_len tokens, where only the
    end is left.
    """
    running, collected = [Text([end], 0.0)], []
    is_overfull = False
    for step in range(max_len + 1):
        candidates = [
            Text([*text.tokens, token], text.score + log_prob)
            for text in running
            for token, log_prob in enumerate(table[step, text.tokens[-1]])
            if token != pad and (token == end or step < max_len) and (token != end or step >= 1)
        ]
        candidates = best(candidates, 2 * num_beams)
        ended = [text for text in candidates[:num_beams] if text.tokens[-1] == end]
        is_overfull = len(collected) + len(ended) > num_beams
        collected += [Text(text.tokens, text.score / (step + 1)) for text in ended][: num_beams - len(collected)]
        if len(collected) == num_beams:
            break
        running = [text for text in candidates if text.tokens[-1] != end][:num_beams]
    return best(collected, num_beams), is_overfull
