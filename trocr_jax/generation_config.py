"""Generation settings: the reference's names and defaults, where they come from, and how a call resolves them.

Precedence: the call's options > generation_config.json where it exists, else config.json (top level, then its
decoder) > our defaults. Ours differ from the reference's in one place: the default length fits a line of text, where
the reference stops after 20 tokens.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trocr_jax.config import CONFIG_NAME, GENERATION_CONFIG_NAME, TrOCRConfig, _Config, read_json

# With the start token 128, a length that caches are allocated for without a rest.
DEFAULT_MAX_NEW_TOKENS = 127

# The reference writes max_length 20 into every full config.json; it means "not set".
_REFERENCE_DEFAULT_MAX_LENGTH = 20

# Settings of the reference that would change its output and that are not built here, with the value that has no effect.
_NEUTRAL: Mapping[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "dola_layers": None,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
    "max_time": None,
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "prompt_lookup_num_tokens": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "sequence_bias": None,
    "stop_strings": None,
    "watermarking_config": None,
}


_LISTS = ("eos_token_id", "suppress_tokens")
# Settings that are whole numbers, and their least values.
_INTEGERS: Mapping[str, int] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
}


@dataclasses.dataclass(frozen=True)
class GenerationConfig(_Config):
    """How to decode; the reference's `GenerationConfig`, the fields that matter for TrOCR.

    Lengths are in tokens; `max_length` and `min_length` count the start token, `max_new_tokens` and `min_new_tokens`
    do not and win over them. `early_stopping` is False, True or "never". Settings of a file that are not built here
    are kept in `extra`, and using them is an error rather than silence.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    suppress_tokens: tuple[int, ...] | None = None
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, hash=False, repr=False)

    def __post_init__(self) -> None:
        for name in _LISTS:
            value = getattr(self, name)
            if isinstance(value, list | tuple | np.ndarray):
                object.__setattr__(self, name, tuple(map(int, value)))
            elif value is not None:
                number = operator.index(value)
                object.__setattr__(self, name, number if name == "eos_token_id" else (number,))

    def replace(self, **changes: Any) -> GenerationConfig:
        """A copy with the given settings changed; None means the default. Raises ValueError for an unknown one."""
        fields = {field.name: field for field in dataclasses.fields(self)}
        unknown = sorted(name for name in changes if name not in fields and name not in _NEUTRAL)
        if unknown:
            raise ValueError(f"unknown generation options {unknown}; supported are {sorted(set(fields) - {'extra'})}")
        known = {name: value for name, value in changes.items() if name in fields}
        known = {name: fields[name].default if value is None else value for name, value in known.items()}
        others = {name: value for name, value in changes.items() if name not in fields}
        return dataclasses.replace(self, **{"extra": {**self.extra, **others}, **known})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> GenerationConfig:
        """The settings in a file's JSON object; null means the default, and so does a max_length of 20."""
        content = {key: value for key, value in content.items() if value is not None}
        if content.get("max_length") == _REFERENCE_DEFAULT_MAX_LENGTH:
            del content["max_length"]
        return super().from_dict(content)

    @classmethod
    def from_model_config(cls, content: Mapping[str, Any]) -> GenerationConfig:
        """The generation settings inside a config.json: its top level, and its decoder's where the top has none."""
        names = {field.name for field in dataclasses.fields(cls)} - {"extra"} | set(_NEUTRAL)
        defaults = {**_NEUTRAL, **dataclasses.asdict(cls())}
        settings: dict[str, Any] = {}
        # The decoder's ids have defaults of their own, which a diff-only file leaves out.
        decoder = dataclasses.asdict(TrOCRConfig()) | dict(content.get("decoder") or {})
        for level in (decoder, content):
            settings |= {
                name: level[name]
                for name in names & level.keys()
                if level[name] is not None and level[name] != defaults[name]
            }
        return cls.from_dict(settings)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> GenerationConfig:
        """The settings of a checkpoint folder: generation_config.json alone where it exists, else config.json's."""
        path = pathlib.Path(folder)
        if (path / GENERATION_CONFIG_NAME).is_file():
            return cls.from_dict(read_json(path / GENERATION_CONFIG_NAME))
        return cls.from_model_config(read_json(path / CONFIG_NAME))

    def to_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults, and the extra keys."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        content = {name: value for name, value in super().to_dict().items() if value != defaults.get(name, ...)}
        if content.get("max_length") == _REFERENCE_DEFAULT_MAX_LENGTH:
            # A file's max_length of 20 would be read as not set.
            content |= {"max_new_tokens": content.pop("max_length") - 1}
        return content

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a sequence; empty where none does."""
        eos = self.eos_token_id
        return () if eos is None else (eos,) if isinstance(eos, int) else eos

    @property
    def start_token_id(self) -> int:
        """The id that decoding starts from: `decoder_start_token_id`, else `bos_token_id`, as in the reference."""
        start = self.decoder_start_token_id if self.decoder_start_token_id is not None else self.bos_token_id
        if start is None:
            raise ValueError("neither decoder_start_token_id nor bos_token_id is set; pass decoder_start_token_id=")
        return start

    @property
    def fill_token_id(self) -> int:
        """The id behind the end of a sequence: `pad_token_id`, else the first end token."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        if self.eos_token_ids:
            return self.eos_token_ids[0]
        raise ValueError("neither pad_token_id nor eos_token_id is set; pass pad_token_id=")

    def resolve(self, options: Mapping[str, Any], *, prompt_length: int, max_positions: int) -> GenerationConfig:
        """These settings with a call's options on top, checked, and with `max_length` and `min_length` filled in.

        `prompt_length` counts the tokens given, `max_positions` the rows of the position table. Raises ValueError
        for an unknown option, a value out of range, or a length that the call asks for and the table cannot hold.
        """
        settings = self.replace(**options)
        # A call's total length wins over a file's number of new tokens.
        for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if options.get(total) is not None and options.get(new) is None:
                settings = settings.replace(**{new: None})
        refused = {k: v for k, v in settings.extra.items() if k in _NEUTRAL and v is not None and v != _NEUTRAL[k]}
        if refused:
            neutral = ", ".join(f"{name}={_NEUTRAL[name]!r}" for name in sorted(refused))
            raise ValueError(f"generation settings {refused} are not supported; switch them off with {neutral}")
        settings._check()
        is_asked = any(options.get(name) is not None for name in ("max_length", "max_new_tokens"))
        return settings._with_lengths(prompt_length, max_positions + 1, is_asked=is_asked)

    def _with_lengths(self, prompt_length: int, limit: int, *, is_asked: bool) -> GenerationConfig:
        # The last token is never fed back, so a table of P rows serves sequences of P + 1 tokens. A file's or our own
        # default is clipped to that; a length that the caller asked for is refused, since JAX would clamp the
        # position and answer wrongly where the reference raises an IndexError.
        if self.max_new_tokens is not None:
            max_length = prompt_length + self.max_new_tokens
        elif self.max_length is not None:
            max_length = self.max_length
        else:
            max_length = prompt_length + DEFAULT_MAX_NEW_TOKENS
        if max_length > limit:
            if is_asked:
                raise ValueError(
                    f"a length of {max_length} tokens was asked for (start included), but this model's position "
                    f"table ends at {limit}; ask for at most max_new_tokens={limit - prompt_length}"
                )
            max_length = limit
        if max_length <= prompt_length:
            raise ValueError(f"max_length {max_length} leaves no room behind {prompt_length} given tokens; raise it")
        min_length = self.min_length
        if self.min_new_tokens is not None:
            min_length = prompt_length + self.min_new_tokens
        return dataclasses.replace(self, max_length=max_length, max_new_tokens=None, min_length=min_length)

    def _check(self) -> None:
        problems = []
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if value is not None and (not is_integer or value < least):
                problems.append(f"{name} is {value!r}; it must be an int of at least {least}")
        for name, bound in (("length_penalty", -math.inf), ("repetition_penalty", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or not math.isfinite(value) or not value > bound:
                problems.append(f"{name} is {value!r}; it must be a finite number{' above 0' if bound == 0 else ''}")
        if self.early_stopping not in (False, True, "never"):
            problems.append(f"early_stopping is {self.early_stopping!r}; it must be False, True or 'never'")
        if not problems and self.num_return_sequences > self.num_beams:
            problems.append(f"num_return_sequences {self.num_return_sequences} exceeds num_beams {self.num_beams}")
        if problems:
            raise ValueError("; ".join(problems))
