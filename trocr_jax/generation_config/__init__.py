"""Generation settings: `GenerationConfig`."""

from trocr_jax.generation_config.config import DEFAULT_MAX_NEW_TOKENS, GenerationConfig, checked_settings

__all__ = ["DEFAULT_MAX_NEW_TOKENS", "GenerationConfig", "checked_settings"]
