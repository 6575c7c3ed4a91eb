"""Models in another runtime's own format, kept beside those that they were made from."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any


def exported(folder: str, format_name: str, export: Callable[[], Any]) -> str:
    """The folder of a model in a format, made by `export` and saved if there is none yet."""
    target = pathlib.Path(f"{folder}-{format_name}")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            whole = os.path.join(scratch, "model")
            export().save_pretrained(whole)
            os.replace(whole, target)
    return str(target)
