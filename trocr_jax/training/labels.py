"""Texts to labels: the ids that a model is to answer, behind the start token that it is read with.

A model reads `start`, then its own answer token by token; the training target is that answer, aligned with it:

    format      decoder input            labels                   start token
    fairseq     </s> H  i                H   i  </s>              2, as the original models
    hf          <s> <s> H  i             <s> H  i  </s>           0, as transformers' recipes

Labels are aligned with the logits: the input is made of them by `shift_tokens_right`, the loss shifts nothing again.
(transformers 4.50 to 4.57.6 did, and trained models to answer the token behind the next.)

N texts, T target tokens.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from trocr_jax.datasets.example import Example
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.modeling.loss import IGNORED_LABEL
from trocr_jax.processing.tokenizer import TrOCRTokenizer
from trocr_jax.recognizer import TrOCR

LabelFormat = Literal["fairseq", "hf"]
# Lengths are rounded up to a multiple of this, so that like sets of lines share a compiled program.
LENGTH_STEP = 16


def detect_label_format(settings: GenerationConfig, tokenizer: TrOCRTokenizer) -> LabelFormat:
    """What a checkpoint was trained with: "hf" if it is read from the token before a text, `<s>`, else "fairseq"."""
    return "hf" if settings.start_token_id in (tokenizer.bos_token_id, tokenizer.cls_token_id) else "fairseq"


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Texts to labels for one checkpoint; `max_length` is the most tokens of one, the end token counted."""

    tokenizer: TrOCRTokenizer
    prefix: tuple[int, ...]  # what labels begin with: <s> in the format "hf"
    start_token_id: int
    eos_token_id: int
    pad_token_id: int
    max_length: int

    @classmethod
    def of(cls, ocr: TrOCR, *, label_format: LabelFormat | None = None) -> TextEncoder:
        """The encoder that goes with a recogniser; its format is detected unless it is given.

        Raises ValueError where its files do not say how a text starts or ends, or for an unknown format.
        """
        config, settings, tokenizer = ocr.config, ocr.generation_config, ocr.processor.tokenizer
        if label_format not in (None, "fairseq", "hf"):
            raise ValueError(f'label_format is {label_format!r}; choose "fairseq" (text </s>) or "hf" (<s> text </s>)')
        ends = settings.eos_token_ids
        if not ends:
            raise ValueError("eos_token_id is not set in the generation settings: a text could never end; set it")
        chosen = label_format or detect_label_format(settings, tokenizer)
        bos = tokenizer.bos_token_id
        if chosen == "hf" and bos is None:
            raise ValueError("the tokenizer has no token before a text (<s>), which label_format='hf' needs")
        return cls(
            tokenizer,
            (bos,) if chosen == "hf" and bos is not None else (),
            settings.start_token_id,
            tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0],
            config.label_pad_token_id,
            config.decoder.max_position_embeddings,
        )

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """The labels of each text, whatever their length."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[*self.prefix, *row, self.eos_token_id] for row in rows]

    def labels(self, texts: Sequence[str], *, names: Sequence[str] | None = None) -> np.ndarray:
        """Labels int32 [N, T] of texts, all that fit; -100 behind the end token, which no loss counts.

        T is the longest's length, rounded up. Raises ValueError naming the texts (by `names` if given) that are longer
        than the model has positions for.
        """
        rows = self.encode(texts)
        if too_long := [i for i, row in enumerate(rows) if len(row) > self.max_length]:
            first = too_long[0]
            raise ValueError(
                f"{len(too_long)} of {len(texts)} texts are longer than the {self.max_length} tokens that this model "
                f"has positions for, the first of them {names[first] if names else f'text {first}'} with "
                f"{len(rows[first])}: {texts[first][:60]!r}; leave them out or divide the lines"
            )
        return pad_labels(rows, self.padded_length(rows))

    def padded_length(self, rows: Iterable[Sequence[int]]) -> int:
        """The longest row's length rounded up to what a program is compiled for."""
        longest = max(map(len, rows), default=1)
        return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.max_length)


def pad_labels(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Rows of at most `length` ids as int32 [N, length], filled up with -100.

    In:  [[5, 6, 2], [7, 2]], length 4
    Out: [[5, 6, 2, -100], [7, 2, -100, -100]]
    """
    labels = np.full((len(rows), length), IGNORED_LABEL, np.int32)
    for row, ids in zip(labels, rows, strict=True):
        row[: len(ids)] = ids
    return labels


def within_length(train: Sequence[Example], encoder: TextEncoder) -> tuple[Sequence[Example], list[list[int]]]:
    """The examples whose labels fit, and those labels; a warning tells of others."""
    if not train:
        raise ValueError("there are no training lines: pass at least one")
    rows = encoder.encode(example.text for example in train)
    over = [i for i, row in enumerate(rows) if len(row) > encoder.max_length]
    if not over:
        return train, rows
    told = (
        f"{len(over)} of {len(train)} training lines have texts of more than the {encoder.max_length} tokens that this "
        f"model has positions for, the first {train[over[0]].name}"
    )
    if len(over) == len(train):
        raise ValueError(f"{told}: none is left")
    warnings.warn(f"{told}: trained without them", stacklevel=4)
    dropped = set(over)
    kept = [i for i in range(len(train)) if i not in dropped]
    return [train[i] for i in kept], [rows[i] for i in kept]
