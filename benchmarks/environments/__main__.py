"""Sets up the environment of a library to compare with, or of this one on another Python.

usage: python -m benchmarks.environments [--python PYTHON] {newest-jax,onnxruntime,openvino,transformers} ...
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.environments import REQUIREMENTS, ROOT, cache_folder

# What is asked for but not needed: PyPI's torchvision cannot be imported beside a torch that was built for CPU.
REMOVED = {"openvino": ["torchvision"]}


def main() -> None:
    """Makes each environment anew and says where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(REQUIREMENTS), metavar="NAME")
    parser.add_argument("--python", default=sys.executable, help="that environments are made with (default: this one)")
    options = parser.parse_args()
    for name in options.names:
        folder = cache_folder() / "environments" / name
        subprocess.run([options.python, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS[name])], check=True, cwd=ROOT)
        for package in REMOVED.get(name, ()):
            subprocess.run([*pip[:-2], "uninstall", "--quiet", "--yes", package], check=True)
        (folder / "complete").touch()  # what an interrupted installation leaves is not taken for an environment
        print(folder)


if __name__ == "__main__":
    main()
