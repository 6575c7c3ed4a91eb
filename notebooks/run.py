"""Executes the notebooks from top to bottom and stores their outputs: `python notebooks/run.py [NOTEBOOK ...]`.

Each runs in an empty folder with a copy of samples/, offline, with the library of this checkout. Stored are the outputs
without what differs from run to run for no reason: folders, addresses in memory, times of execution, warnings. What is
measured differs still, such as speeds and the last digits of losses.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import pathlib
import re
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT = 600  # seconds for a cell


def execute(path: pathlib.Path, *, with_samples: bool = True) -> NotebookNode:
    """The notebook with its outputs as they came; raises nbclient's CellExecutionError where a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        if with_samples:
            shutil.copytree(HERE / "samples", pathlib.Path(folder, "samples"))
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--Application.log_level=40"],  # its sockets being of this machine alone
            resources={"metadata": {"path": folder}},
        )
        client.execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [cleaned(output, folder) for output in cell.outputs]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def cleaned(node: Any, folder: str) -> Any:
    """An output with the folder that it was made in as ".", and addresses in memory without digits."""
    if isinstance(node, dict):
        node.pop("image/jpeg", None)  # Pillow's second form of a picture
        for name, value in node.items():
            node[name] = smaller(value) if name == "image/png" else cleaned(value, folder)
        return node
    if isinstance(node, list):
        return [cleaned(item, folder) for item in node]
    if not isinstance(node, str):
        return node
    text = node.replace(str(pathlib.Path(folder).resolve()), ".").replace(folder, ".").replace(str(HERE.parent), "..")
    return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", text)


def smaller(png: str) -> str:
    """A picture (base64) with its 128 most useful colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128)
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def set_environment(folder: str) -> None:
    """What the kernel inherits: this checkout's library, no network, and nothing written to the user's folders."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    # This Python's kernel, whatever the user has set up.
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        os.environ[name] = str(pathlib.Path(folder, name.lower()))


def main() -> None:
    """Executes the notebooks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=pathlib.Path, metavar="NOTEBOOK", help="default: all")
    parser.add_argument("--output", type=pathlib.Path, metavar="FOLDER", help="where to store (default: in place)")
    parser.add_argument("--without-samples", action="store_true", help="as for one who has the package alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        set_environment(folder)
        import nbformat

        for path in options.notebooks or sorted(HERE.glob("*.ipynb")):
            print(path.name, file=sys.stderr)
            notebook = execute(path, with_samples=not options.without_samples)
            if options.output is None:  # a warning is no part of a lesson
                for cell in notebook.cells:
                    if cell.cell_type == "code":
                        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            target = path if options.output is None else options.output / path.name
            target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
