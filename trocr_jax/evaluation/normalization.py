"""What is done to texts before they are compared: to what was read and to what stands there alike."""

from __future__ import annotations

import dataclasses
import unicodedata

# transformers' clean_up_tokenization, in its order.
_CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Nothing by default. Calling it gives a text as it is compared.

    `compose` brings letters and their accents to one form (Unicode's NFC). `clean_up` removes spaces before punctuation
    marks as transformers' decoders did until 4.45, and so in CERs published with them. `ignore_case` compares in lower
    case.
    """

    compose: bool = False
    clean_up: bool = False
    ignore_case: bool = False

    def __call__(self, text: str) -> str:
        if self.compose:
            text = unicodedata.normalize("NFC", text)
        if self.clean_up:
            for spaced, joined in _CLEANED:
                text = text.replace(spaced, joined)
        return text.lower() if self.ignore_case else text

    def __str__(self) -> str:
        steps = {
            "NFC": self.compose,
            "no spaces before punctuation marks": self.clean_up,
            "lower case": self.ignore_case,
        }
        done = [step for step, is_done in steps.items() if is_done]
        return f"both texts: {', '.join(done)}" if done else "both texts as they are"
