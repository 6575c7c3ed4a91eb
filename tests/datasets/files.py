"""Files for tests of datasets."""

from __future__ import annotations

import zipfile

from PIL import Image


def write(folder, contents):
    """Files of these names: text, bytes, or an image."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pack(folder, archive):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    return archive


def grey(level, size=(30, 12)):
    return Image.new("L", size, level)
