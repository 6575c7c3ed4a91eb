"""Training: labels, loss, optimizer and step for a loop of one's own, and `fit`, the loop that is there."""

from trocr_jax.modeling.loss import cross_entropy, shift_tokens_right, summed_cross_entropy
from trocr_jax.training.batches import Batch, Batches
from trocr_jax.training.images import with_image_size
from trocr_jax.training.labels import LabelFormat, TextEncoder, detect_label_format, pad_labels
from trocr_jax.training.layout import StateLayout
from trocr_jax.training.loop import FitResult, fit
from trocr_jax.training.lora import LoRA, merge_adapters, save_adapters
from trocr_jax.training.optimizer import make_optimizer, make_schedule
from trocr_jax.training.settings import TrainingSettings
from trocr_jax.training.step import StepMetrics, TrainState, create_state, make_loss, make_train_step
from trocr_jax.training.vocabulary import extend_vocabulary, replace_tokenizer

__all__ = [
    "Batch",
    "Batches",
    "FitResult",
    "LabelFormat",
    "LoRA",
    "StateLayout",
    "StepMetrics",
    "TextEncoder",
    "TrainState",
    "TrainingSettings",
    "create_state",
    "cross_entropy",
    "detect_label_format",
    "extend_vocabulary",
    "fit",
    "make_loss",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "merge_adapters",
    "pad_labels",
    "replace_tokenizer",
    "save_adapters",
    "shift_tokens_right",
    "summed_cross_entropy",
    "with_image_size",
]
