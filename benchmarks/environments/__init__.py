"""Environments of the libraries that benchmarks compare with, each with versions of its own."""

from __future__ import annotations

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
REQUIREMENTS = {path.stem: path for path in sorted(pathlib.Path(__file__).parent.glob("*.txt"))}


def cache_folder() -> pathlib.Path:
    """Where environments and random models are kept: $XDG_CACHE_HOME/trocr_jax/benchmarks, else under ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "trocr_jax" / "benchmarks"


def python_of(name: str) -> pathlib.Path | None:
    """The interpreter of an environment, or None if it has not been set up."""
    folder = cache_folder() / "environments" / name
    return folder / "bin" / "python" if (folder / "complete").exists() else None
