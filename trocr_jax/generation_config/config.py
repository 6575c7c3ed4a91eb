"""Generation settings: the reference's names and defaults, where they come from, and how a call resolves them.

Precedence: the call's options > generation_config.json where it exists, else config.json (top level, then its
decoder) > our defaults. Ours differ from the reference's in one place: the default length fits a line of text, where
the reference stops after 20 tokens.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from trocr_jax.config import CONFIG_NAME, GENERATION_CONFIG_NAME, TrOCRConfig, _Config, read_json
from trocr_jax.generation_config.presets import preset_settings
from trocr_jax.generation_config.values import SAMPLING, check, normalised

# With the start token 128, a length that caches are allocated for without a rest.
DEFAULT_MAX_NEW_TOKENS = 127

# The reference writes max_length 20 into every full config.json; it means "not set".
_REFERENCE_DEFAULT_MAX_LENGTH = 20

_TOKENS = ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id")

# Settings of the reference that would change its output and that are not built here, with the value that has no effect.
_NEUTRAL: Mapping[str, Any] = {
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "force_words_ids": None,
    "guidance_scale": None,
    "max_time": None,
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "prompt_lookup_num_tokens": None,
    "stop_strings": None,
    "watermarking_config": None,
}
# The same of settings that only sampling looks at.
_NEUTRAL_IN_SAMPLING: Mapping[str, Any] = {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None}


@dataclasses.dataclass(frozen=True)
class GenerationConfig(_Config):
    """How to decode; the reference's `GenerationConfig`, the fields that matter for TrOCR.

    Lengths are in tokens; `max_length` and `min_length` count the start token, `max_new_tokens` and `min_new_tokens`
    do not and win over them. `early_stopping` is False, True or "never". `end_at_max_length` is not the reference's:
    the last token that fits is an end token, at its own score. Lists are kept as tuples, `sequence_bias` as pairs
    (tokens, bias), whether a file or a call gives them. Settings of a file that are not built here are kept in `extra`,
    and using them is an error rather than silence.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    end_at_max_length: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    output_scores: bool = False
    output_logits: bool = False
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, hash=False, repr=False)

    def __post_init__(self) -> None:
        for name, value in normalised(self):
            object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> GenerationConfig:
        """A copy with the given settings changed; None means the default. Raises ValueError for an unknown one."""
        fields = {field.name: field for field in dataclasses.fields(self)}
        unknown = sorted(changes.keys() - fields.keys() - _NEUTRAL.keys() - _NEUTRAL_IN_SAMPLING.keys())
        if unknown:
            supported = sorted(set(fields) - {"extra"})
            near = difflib.get_close_matches(unknown[0], supported, n=1)
            meant = f"; is {near[0]!r} meant?" if near else "."
            raise ValueError(f"unknown generation options {unknown}{meant} Supported are {supported}")
        known = {name: value for name, value in changes.items() if name in fields}
        known = {name: fields[name].default if value is None else value for name, value in known.items()}
        others = {name: value for name, value in changes.items() if name not in fields}
        return dataclasses.replace(self, **{"extra": {**self.extra, **others}, **known})

    def with_preset(self, name: str) -> GenerationConfig:
        """A preset's settings with this one's special tokens; the preset there is, "fairseq": see `presets.py`."""
        kept = {token: getattr(self, token) for token in _TOKENS}
        extra = {k: v for k, v in self.extra.items() if k not in {**_NEUTRAL, **_NEUTRAL_IN_SAMPLING}}
        return GenerationConfig(**preset_settings(name, self.pad_token_id), **kept, extra=extra)

    def with_tokens_of(self, other: GenerationConfig) -> GenerationConfig:
        """These settings with another's special tokens where they have none of their own."""
        return self.replace(**{name: getattr(other, name) for name in _TOKENS if getattr(self, name) is None})

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
        neutral = {**_NEUTRAL, **_NEUTRAL_IN_SAMPLING}
        names = {field.name for field in dataclasses.fields(cls)} - {"extra"} | neutral.keys()
        defaults = {**neutral, **dataclasses.asdict(cls())}
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
        return {name: _listed(value) for name, value in content.items()}

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

        `prompt_length` counts the tokens given, `max_positions` the rows of the position table. The option `preset`
        puts a preset's settings in the place of these. Raises ValueError for an unknown option, a value out of range,
        or a length that the call asks for and the table cannot hold.
        """
        preset = options.get("preset")
        options = {name: value for name, value in options.items() if name != "preset"}
        settings = self.replace(**options)
        if preset is not None:
            settings = settings.with_preset(preset).replace(**options)
        # A call's total length wins over a file's number of new tokens.
        for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if options.get(total) is not None and options.get(new) is None:
                settings = settings.replace(**{new: None})
        if "top_k" in options and options["top_k"] is None:
            settings = settings.replace(top_k=0)  # In a call the reference takes None for none, in a file for 50.
        check(settings)
        settings._check_support(options)
        is_asked = any(options.get(name) is not None for name in ("max_length", "max_new_tokens"))
        return settings._with_lengths(prompt_length, max_positions + 1, is_asked=is_asked)

    def _check_support(self, options: Mapping[str, Any]) -> None:
        known = {**_NEUTRAL, **(_NEUTRAL_IN_SAMPLING if self.do_sample else {})}
        refused = {k: v for k, v in self.extra.items() if k in known and v is not None and v != known[k]}
        if refused:
            neutral = ", ".join(f"{name}={known[name]!r}" for name in sorted(refused))
            raise ValueError(f"generation settings {refused} are not supported; switch them off with {neutral}")
        # A file may hold settings of sampling beside do_sample=False, as the reference's do; a call means them.
        idle = {k: v for k, v in options.items() if k in SAMPLING and v is not None and v != SAMPLING[k]}
        if idle and not self.do_sample:
            raise ValueError(
                f"{idle} count only where tokens are drawn: pass do_sample=True as well, or leave them out"
            )

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


def checked_settings(settings: Any) -> GenerationConfig:
    """Raises TypeError for what are no generation settings."""
    if not isinstance(settings, GenerationConfig):
        kind = type(settings).__name__
        raise TypeError(f"generation settings are given as {kind}; pass a trocr_jax.GenerationConfig")
    return settings


def _listed(value: Any) -> Any:
    """Tuples, nested ones as well, as the lists that JSON makes of them."""
    return [_listed(part) for part in value] if isinstance(value, tuple | list) else value
