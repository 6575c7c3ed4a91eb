"""How `fit` trains: what can be set, and what is chosen where it is not."""

from __future__ import annotations

import dataclasses
from typing import Any

from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.training.labels import LabelFormat
from trocr_jax.training.lora import LoRA
from trocr_jax.training.optimizer import NOT_DECAYED, ScheduleKind

# Images of a step, or the next number that devices and parts divide evenly.
BATCH_SIZE = 16
# Trained this many times on each line unless the bounds on steps say otherwise.
EPOCHS = 30
FEWEST_STEPS, MOST_STEPS = 400, 20_000
EVALUATIONS = 20
# The original's on SROIE (unilm's README), with its decoder of width 1024; narrower ones learn at higher rates.
LEARNING_RATE, WIDTH = 5e-5, 1024


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train. None is chosen by `resolved` from the number of lines, the model's size and the devices.

    `max_steps`, `warmup_steps`, `eval_every` and `checkpoint_every` count steps of `batch_size` images. `patience` is
    after how many evaluations without a lower error rate training ends; 0 is never. `max_grad_norm` 0 is no clipping.
    `frozen` and `not_decayed` are patterns searched for in parameters' paths. `keep` is how many checkpoints are kept
    to resume from. `num_beams` is what validation reads with. With `lora_rank` adapters are trained in place of
    weights, their alpha twice the rank unless it is given. `fsdp` divides weights and optimizer state among the devices
    (see `layout.py`), which each hold them whole otherwise. Others: see `make_optimizer` and `make_train_step`.
    """

    max_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    schedule: ScheduleKind = "cosine"
    warmup_steps: int | None = None
    weight_decay: float = 1e-4
    not_decayed: str = NOT_DECAYED
    max_grad_norm: float | None = 1.0
    label_format: LabelFormat | None = None
    label_smoothing: float = 0.0
    frozen: str | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_pattern: str | None = None
    ema_decay: float | None = None
    accumulate: int = 1
    remat: bool = False
    fsdp: bool = False
    seed: int = 0
    eval_every: int | None = None
    patience: int = 8
    num_beams: int = 1
    checkpoint_every: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        counts = (
            "max_steps",
            "batch_size",
            "eval_every",
            "checkpoint_every",
            "keep",
            "accumulate",
            "num_beams",
            "lora_rank",
        )
        for name, least in (
            *((name, 1) for name in counts),
            *((name, 0) for name in ("warmup_steps", "patience", "seed")),
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} is {value!r}; it must be an int of at least {least}")
        if self.batch_size is not None and self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided into accumulate={self.accumulate} parts")

        if self.lora_rank is None and (self.lora_alpha, self.lora_pattern) != (None, None):
            raise ValueError("lora_alpha and lora_pattern go with a lora_rank")

    @property
    def lora(self) -> LoRA | None:
        """The adapters to train, if so asked."""
        if self.lora_rank is None:
            return None
        alpha = 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return LoRA(self.lora_rank, alpha, self.lora_pattern or LoRA.pattern)

    def resolved(self, num_lines: int, config: VisionEncoderDecoderConfig, num_devices: int = 1) -> TrainingSettings:
        """These settings with a value for each None that is chosen by the size of the data, the model or the machine.

        Raises ValueError where their batches cannot be divided over devices and parts.
        """
        unit = self.accumulate * num_devices
        batch_size = -(-BATCH_SIZE // unit) * unit if self.batch_size is None else self.batch_size
        if batch_size % unit:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of {unit}, accumulate={self.accumulate} times "
                f"{num_devices} devices"
            )
        steps = self.max_steps
        if steps is None:
            steps = min(max(EPOCHS * num_lines // batch_size, FEWEST_STEPS), MOST_STEPS)
        chosen: dict[str, Any] = {
            "max_steps": steps,
            "batch_size": batch_size,
            "learning_rate": LEARNING_RATE * max(WIDTH / config.decoder.d_model, 1.0),
            "warmup_steps": min(500, steps // 10),
            "eval_every": min(max(steps // EVALUATIONS, 20), 1000),
        }
        chosen = {name: value if getattr(self, name) is None else getattr(self, name) for name, value in chosen.items()}
        if self.checkpoint_every is None:
            chosen["checkpoint_every"] = chosen["eval_every"]
        return dataclasses.replace(self, **chosen)
