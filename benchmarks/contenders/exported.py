"""Models in another runtime's own format, kept beside those that they were made from."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile


def exported(folder: str, side: str) -> str:
    """The folder of a model in a side's format. If there is none yet, `python -m SIDE FOLDER TARGET` makes it.

    That is a process of its own, since exporting takes several times the memory of the model.
    """
    target = pathlib.Path(f"{folder}-{side.rsplit('.', 1)[-1].removesuffix('_side')}")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            whole = os.path.join(scratch, "model")
            subprocess.run([sys.executable, "-m", side, folder, whole], check=True)
            os.replace(whole, target)
    return str(target)
