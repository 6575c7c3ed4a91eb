"""Pictures of results in a folder: one PNG file for each image that was read."""

from __future__ import annotations

import os
import pathlib

from trocr_jax.replacing import make_folder, replacing
from trocr_jax.results import Recognition


class Overlays:
    """A folder, made if it is not there, that pictures of results are saved in; raises OSError if it cannot be."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = pathlib.Path(folder)
        make_folder(self.folder, "--save-overlay")
        self._taken: set[str] = set()

    def save(self, result: Recognition) -> None:
        """Writes NAME.overlay.png for an image NAME.*, or NAME-2.overlay.png for the second of that name, and so on.

        Nothing for an image that could not be read. Raises ValueError or OSError for one that cannot be drawn.
        """
        if result.error is not None or result.source is None:
            return
        name = self._name(result.source)
        picture = result.draw()
        with replacing(self.folder / name) as partial:
            picture.save(partial, format="PNG")

    def _name(self, source: str) -> str:
        stem, number = pathlib.Path(source).stem, 1
        name = f"{stem}.overlay.png"
        while name.lower() in self._taken:  # some file systems do not tell case apart
            number += 1
            name = f"{stem}-{number}.overlay.png"
        self._taken.add(name.lower())
        return name
