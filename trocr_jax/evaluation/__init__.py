"""How well lines are read: error rates, as published, and reports."""

from trocr_jax.evaluation.normalization import Normalization
from trocr_jax.evaluation.report import Report, evaluate

__all__ = ["Normalization", "Report", "evaluate"]
