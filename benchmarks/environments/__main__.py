"""Sets up the environment of a library to compare with.

usage: python -m benchmarks.environments {onnxruntime,openvino,transformers} ...
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.environments import REQUIREMENTS, cache_folder

# What is asked for but not needed: PyPI's torchvision cannot be imported beside a torch that was built for CPU.
REMOVED = {"openvino": ["torchvision"]}


def main() -> None:
    """Makes each environment anew and says where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(REQUIREMENTS), metavar="NAME")
    for name in parser.parse_args().names:
        folder = cache_folder() / "environments" / name
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS[name])], check=True)
        for package in REMOVED.get(name, ()):
            subprocess.run([*pip[:-2], "uninstall", "--quiet", "--yes", package], check=True)
        (folder / "complete").touch()  # what an interrupted installation leaves is not taken for an environment
        print(folder)


if __name__ == "__main__":
    main()
