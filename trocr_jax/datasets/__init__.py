"""Lines with known texts, as files hold them."""

from trocr_jax.datasets.example import Example
from trocr_jax.datasets.formats import FORMATS, open_dataset
from trocr_jax.datasets.synthetic import synthetic_lines

__all__ = ["FORMATS", "Example", "open_dataset", "synthetic_lines"]
