"""What is trained, on what, how and where: everything about a training that does not change while it runs.

N examples, T target tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from trocr_jax.checkpoints.folder import check_output, remove_unfinished
from trocr_jax.config import read_json, write_json
from trocr_jax.datasets.augmentation import Augmentation
from trocr_jax.datasets.example import Example
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.modeling.model import VisionEncoderDecoder
from trocr_jax.recognizer import TrOCR
from trocr_jax.sharding import DATA, axis_size, local_rows
from trocr_jax.training.batches import Batches
from trocr_jax.training.labels import TextEncoder, pad_labels, within_length
from trocr_jax.training.layout import StateLayout
from trocr_jax.training.optimizer import NOT_DECAYED, Schedule, compile_pattern, make_optimizer, make_schedule
from trocr_jax.training.processes import Team
from trocr_jax.training.settings import TrainingSettings
from trocr_jax.training.step import TrainState, create_state, make_train_step
from trocr_jax.training.vocabulary import EMBEDDING, HEAD, VocabularyReport, change_vocabulary

# Below the output folder, beside the model.
FOLDER, SETTINGS_NAME, CHECKPOINTS = "training", "settings.json", "checkpoints"
COVERAGE_NAME, ADAPTERS_NAME = "coverage.json", "adapters.safetensors"
MODEL_AND_LABELS = "model and labels"  # in the settings' file, where they are a hash
STARTED_FROM = "started from"  # a name alone: folders move, and the weights are in the checkpoints


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training before it starts; `settings` are resolved, `generation_config` is the trained model's."""

    ocr: TrOCR
    vocabulary: VocabularyReport
    generation_config: GenerationConfig
    batches: Batches
    validation: Sequence[Example]
    output: pathlib.Path
    settings: TrainingSettings
    start_token_id: int

    @classmethod
    def of(
        cls,
        ocr: TrOCR,
        train: Sequence[Example],
        validation: Sequence[Example],
        output: str | os.PathLike[str],
        settings: TrainingSettings,
        *,
        augment: Augmentation | None,
        **vocabulary: Any,
    ) -> Plan:
        """All that can be wrong is found here, before anything is compiled or written; errors as `fit` raises them.

        `vocabulary` are `fit`'s options tokenizer and add_characters.
        """
        if not any(example.text for example in validation):
            raise ValueError("the validation lines hold no text: each wants the text that stands in its image")
        ocr, report = change_vocabulary(ocr, train, validation, **vocabulary, seed=settings.seed)
        if report.is_changed:
            _check_rows_are_trained(settings, flatten_dict(dict(ocr.params), sep="/"))
        encoder = TextEncoder.of(ocr, label_format=settings.label_format)
        kept, rows = within_length(train, encoder)
        _tell_of_long_texts(rows, encoder)
        settings = settings.resolved(len(kept), ocr.config, axis_size(ocr.mesh, DATA))
        labels = pad_labels(rows, encoder.padded_length(rows))
        plan = cls(
            ocr,
            report,
            _long_enough(ocr, _longest([*rows, *encoder.encode(line.text for line in validation)], encoder) + 1),
            _batches(kept, labels, ocr, settings, augment),
            validation,
            check_output(output),
            settings,
            encoder.start_token_id,
        )
        plan.schedule()
        _check_not_decayed(settings, plan.ocr.params)
        return plan

    @property
    def folder(self) -> pathlib.Path:
        """Where what is not the model itself is kept."""
        return self.output / FOLDER

    @property
    def team(self) -> Team:
        """The processes that train together."""
        return Team(self.ocr.mesh)

    def claim(self, *, resume: bool) -> None:
        """Writes down what is about to be trained, or finds that it is what was; errors as `fit` raises them.

        A training without a checkpoint has nothing to lose: it may be started anew, with other settings. Of several
        processes the first does that, and the others come with the same training.
        """
        identity = self._identity()
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).digest()
        self.team.agree(digest, "lines, settings or model")
        with self.team.led("process 0 could not start the training, and says why"):
            if self.team.leads:
                self._write_or_compare(identity, resume=resume)
                remove_unfinished(self.output)

    def _identity(self) -> dict[str, Any]:
        """What makes it this training and no other, as JSON has it."""
        augment = self.batches.augment
        settings = dataclasses.asdict(self.settings)
        del settings["fsdp"]  # where things lie changes nothing about them
        images = self.batches.image_processor.to_dict()
        return {
            **settings,
            **{f"image processor's {name}": value for name, value in images.items()},
            MODEL_AND_LABELS: self._fingerprint(),
            "training lines": _fingerprint(self.batches.examples),
            "validation lines": _fingerprint(self.validation),
            "augmentation": None if augment is None else _name_of(augment),
            "added characters": self.vocabulary.added,
        }

    def _write_or_compare(self, identity: Mapping[str, Any], *, resume: bool) -> None:
        path = self.folder / SETTINGS_NAME
        if not path.exists() and (self.output / "config.json").exists():
            raise FileExistsError(f"{self.output} holds a model, which training would replace: name another folder")
        if not path.exists() or not any(step.name.isdigit() for step in (self.folder / CHECKPOINTS).glob("*")):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Of a training that was here before: one without adapters would leave them beside its weights.
            (self.folder / ADAPTERS_NAME).unlink(missing_ok=True)
            write_json(path, {**identity, STARTED_FROM: self.ocr.source})
            write_json(self.folder / COVERAGE_NAME, self.vocabulary.to_dict())
            return
        if not resume:
            raise FileExistsError(
                f"{self.output} holds a training: go on with it (resume=True, --resume), or name another folder"
            )
        before = read_json(path)
        source = before.pop(STARTED_FROM, None)
        differing = sorted(name for name in before.keys() | identity.keys() if before.get(name) != identity.get(name))
        if differing:
            told = ", ".join(f"{name} (was {before.get(name)!r}, is {identity.get(name)!r})" for name in differing)
            if MODEL_AND_LABELS in differing:
                told += ", that is in architecture, size of images, precision, start token or texts"
            raise ValueError(
                f"{self.output} holds a training that differs in {told}; resume with what it was started with, or "
                "train its model further in another folder"
            )
        if None not in (source, self.ocr.source) and source != self.ocr.source:
            warnings.warn(
                f"the training in {self.output} was started from {source} and goes on with its own weights, none of "
                f"{self.ocr.source}",
                stacklevel=4,
            )

    def _fingerprint(self) -> str:
        """A hash of what the weights belong to and how they are trained: architecture, precision, start and labels."""
        model = self.ocr.config.to_dict(), self.ocr.model.policy.name, self.start_token_id
        digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode())
        digest.update(self.batches.labels.tobytes())
        return digest.hexdigest()[:16]

    def schedule(self) -> Schedule:
        """The learning rate of each update."""
        settings = self.settings
        assert settings.learning_rate is not None
        assert settings.warmup_steps is not None
        return make_schedule(
            settings.schedule, settings.learning_rate, warmup_steps=settings.warmup_steps, max_steps=settings.max_steps
        )

    @property
    def layout(self) -> StateLayout | None:
        """How the state lies on devices; None for one device."""
        return None if self.ocr.mesh is None else StateLayout(self.ocr.mesh, is_divided=self.settings.fsdp)

    def first_state(self) -> TrainState:
        """The state before the first step, on the devices."""
        settings, layout = self.settings, self.layout
        # Each device gets its part of the weights before anything is made of them, so that none needs to hold all.
        params = self.ocr.params if layout is None else layout.put(dict(self.ocr.params))
        state = create_state(
            params,
            self._optimizer(),
            seed=settings.seed,
            frozen=settings.frozen,
            lora=settings.lora,
            with_ema=settings.ema_decay is not None,
        )
        return state if layout is None else layout.put(state)

    def step(self) -> Any:
        """The compiled step; see `make_train_step`."""
        settings = self.settings
        policy = dataclasses.replace(self.ocr.model.policy, remat=settings.remat)
        return make_train_step(
            VisionEncoderDecoder(self.ocr.config, policy),
            self._optimizer(),
            start_token_id=self.start_token_id,
            label_smoothing=settings.label_smoothing,
            accumulate=settings.accumulate,
            ema_decay=settings.ema_decay,
            layout=self.layout,
        )

    def _optimizer(self) -> Any:
        settings = self.settings
        return make_optimizer(
            self.schedule(),
            weight_decay=settings.weight_decay,
            not_decayed=settings.not_decayed,
            max_grad_norm=settings.max_grad_norm,
        )


def _batches(
    examples: Sequence[Example],
    labels: np.ndarray,
    ocr: TrOCR,
    settings: TrainingSettings,
    augment: Augmentation | None,
) -> Batches:
    """The batches, or this process's rows of them."""
    assert settings.batch_size is not None
    rows = local_rows(ocr.mesh, settings.batch_size)
    image_processor = ocr.processor.image_processor
    return Batches(examples, labels, image_processor, settings.batch_size, settings.seed, augment, rows)


def _check_not_decayed(settings: TrainingSettings, params: Mapping[str, Any]) -> None:
    """Raises ValueError for a pattern of one's own that no weight's path has, which is a misspelling."""
    pattern = compile_pattern(settings.not_decayed, "not_decayed")
    if settings.not_decayed == NOT_DECAYED or settings.lora is not None:  # adapters have paths of their own
        return
    names = flatten_dict(dict(params), sep="/")
    if not any(map(pattern.search, names)):
        raise ValueError(
            f"not_decayed is {settings.not_decayed!r}, which is found in none of {len(names)} parameters; paths are as "
            f"{', '.join(sorted(names)[:3])}"
        )


def _check_rows_are_trained(settings: TrainingSettings, names: Container[str]) -> None:
    """Raises ValueError where new tokens' rows of the embedding or the head would stay what they start as."""
    lora, frozen = settings.lora, settings.frozen
    for name in (EMBEDDING, HEAD):
        if name not in names:  # a tied head
            continue
        is_adapted = lora is None or re.search(lora.pattern, name)
        if not is_adapted or (frozen is not None and re.search(frozen, name)):
            option = f"lora_pattern={lora.pattern!r}" if lora else f"frozen={frozen!r}"
            raise ValueError(
                f"{option} leaves {name} as it is, and new tokens would never be learned: let it be trained as well"
            )


def _tell_of_long_texts(rows: Sequence[Sequence[int]], encoder: TextEncoder) -> None:
    """Warns where a few texts, by their length, double what every step costs."""
    usual = np.quantile([len(row) for row in rows], 0.99, method="higher")
    longest = encoder.padded_length(rows)
    if longest >= 2 * encoder.padded_length([range(usual)]):
        warnings.warn(
            f"99 of 100 training lines have at most {usual} tokens, the longest {max(map(len, rows))}: every step "
            f"computes {longest} for each line; leaving the longest out takes less time and memory",
            stacklevel=4,
        )


def _longest(rows: Sequence[Sequence[int]], encoder: TextEncoder) -> int:
    return min(max(map(len, rows)), encoder.max_length)


def _long_enough(ocr: TrOCR, length: int) -> GenerationConfig:
    """The model's generation settings, under which texts of `length` tokens, start included, are not cut."""
    settings, positions = ocr.generation_config, ocr.config.decoder.max_position_embeddings
    resolved = settings.resolve({}, prompt_length=1, max_positions=positions)
    assert resolved.max_length is not None
    return settings if resolved.max_length >= length else settings.replace(max_length=length, max_new_tokens=None)


def _fingerprint(examples: Sequence[Example]) -> str:
    """The number of lines and a hash of their texts and names, wherever their folder lies."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{os.path.basename(example.name)}\0{example.text}\0".encode(errors="surrogatepass"))
    return f"{len(examples)} lines, {digest.hexdigest()[:16]}"


def _name_of(augment: Any) -> str:
    """What a function is known by, and what it was given beforehand."""
    if isinstance(augment, functools.partial):
        return f"{_name_of(augment.func)} {augment.keywords}"
    return getattr(augment, "__name__", type(augment).__name__)
