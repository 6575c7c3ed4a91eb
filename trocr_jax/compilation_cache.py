"""JAX's persistent compilation cache in the user's cache folder: a second run starts without compiling."""

from __future__ import annotations

import os
import pathlib

import jax
import jaxlib


def cache_folder() -> pathlib.Path:
    """Where compiled programs are kept: $XDG_CACHE_HOME/trocr_jax (else ~/.cache/trocr_jax), a folder each version.

    Programs of another jaxlib must not be loaded, and those of another machine only after JAX's own check.
    """
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "trocr_jax" / f"jax-{jax.__version__}-jaxlib-{jaxlib.__version__}"


def enable_compilation_cache(folder: str | os.PathLike[str] | None = None) -> None:
    """Keeps every compiled program, in `cache_folder()` unless told otherwise.

    Does nothing where JAX_COMPILATION_CACHE_DIR or jax.config has set a folder already. A cache holds executable code:
    use none that others can write to.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder or cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
