"""Named settings that reproduce another program's search.

`fairseq` is the search of the original TrOCR, `TextRecognitionGenerator` of microsoft/unilm (trocr/generator.py, over
fairseq's SequenceGenerator): 10 beams that end when 10 texts are collected, scores over the length, at most 200 tokens
and the end token, which then comes at its own probability instead of the text being cut, at least one token before the
end, never a pad. What is found first is the same text at the same score. They differ
- in the further texts of num_return_sequences, where more beams end in the collecting step than places are left:
  fairseq keeps what it has and fills up in the order of the candidates, transformers and we keep the best;
- where the vocabulary has no more tokens than twice the beams;
- for scores that are nan, which fairseq rules out.
Its images are resized with Pillow's bicubic filter for every model, where the reference's preprocessor_config.json of
the base and large ones says bilinear. `TrOCR` does that half as well; a call of `generate` gets pixels as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Pillow's number of the filter that images are resized with.
RESAMPLE: Mapping[str, int] = {"fairseq": 3}


def preset_settings(name: str, pad_token_id: int | None) -> dict[str, Any]:
    """The settings of a preset that differ from the defaults. Raises ValueError for an unknown name."""
    if name != "fairseq":
        raise ValueError(f"preset is {name!r}; it must be 'fairseq'")
    return {
        "num_beams": 10,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": 202,  # start token, 200 tokens and the end token
        "min_length": 2,
        "end_at_max_length": True,
        "suppress_tokens": None if pad_token_id is None else (pad_token_id,),
    }
