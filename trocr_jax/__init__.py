"""TrOCR in JAX/Flax: reads images of text lines on CPU, GPU and TPU, token for token as the PyTorch reference."""

from typing import TYPE_CHECKING, Any

from trocr_jax.version import __version__

if TYPE_CHECKING:
    from trocr_jax.calibration import Calibration
    from trocr_jax.config import DeiTConfig, TrOCRConfig, VisionEncoderDecoderConfig, ViTConfig
    from trocr_jax.constraints import AllowedCharacters, Lexicon, Pattern
    from trocr_jax.decoding.generate import GenerationOutput
    from trocr_jax.generation_config import GenerationConfig
    from trocr_jax.models import DeiTModel, TrOCRForCausalLM, VisionEncoderDecoderModel, ViTModel
    from trocr_jax.processing.image import ImageError
    from trocr_jax.processing.processor import TrOCRProcessor
    from trocr_jax.recognizer import TrOCR
    from trocr_jax.results import Recognition, Word
    from trocr_jax.sharding import make_mesh

# Names are imported when they are first used: `trocr-jax --help` must not wait for JAX.
_HOMES = {
    "AllowedCharacters": "constraints",
    "Calibration": "calibration",
    "DeiTConfig": "config",
    "DeiTModel": "models",
    "GenerationConfig": "generation_config",
    "GenerationOutput": "decoding.generate",
    "ImageError": "processing.image",
    "Lexicon": "constraints",
    "Pattern": "constraints",
    "Recognition": "results",
    "TrOCR": "recognizer",
    "TrOCRConfig": "config",
    "TrOCRForCausalLM": "models",
    "TrOCRProcessor": "processing.processor",
    "ViTConfig": "config",
    "ViTModel": "models",
    "VisionEncoderDecoderConfig": "config",
    "VisionEncoderDecoderModel": "models",
    "Word": "results",
    "make_mesh": "sharding",
}

# Those with public names of their own, which `import trocr_jax` alone is to reach as well.
_MODULES = ("calibration", "compilation_cache", "constraints", "datasets", "evaluation", "training")

__all__ = [
    "AllowedCharacters",
    "Calibration",
    "DeiTConfig",
    "DeiTModel",
    "GenerationConfig",
    "GenerationOutput",
    "ImageError",
    "Lexicon",
    "Pattern",
    "Recognition",
    "TrOCR",
    "TrOCRConfig",
    "TrOCRForCausalLM",
    "TrOCRProcessor",
    "ViTConfig",
    "ViTModel",
    "VisionEncoderDecoderConfig",
    "VisionEncoderDecoderModel",
    "Word",
    "__version__",
    "make_mesh",
]


if not TYPE_CHECKING:  # to which a name that is not there would be one of any type

    def __getattr__(name: str) -> Any:
        import importlib

        if name in _MODULES:
            return importlib.import_module(f"trocr_jax.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'trocr_jax' has no attribute {name!r}")
        return getattr(importlib.import_module(f"trocr_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
