"""Types as a user meets them: a small strict program passes, and its mistakes are found."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("typed_user.py")
ROOT = PROGRAM.parents[1]

pytest.importorskip("mypy", reason="the extra [dev] has it")


CONFIG = """
[mypy]
strict = True
cache_dir = cache
# The library's own imports are not the user's business; its types are.
[mypy-trocr_jax.*]
ignore_errors = True
"""


def errors(folder, programs):
    """{program: {line number: kind of error}} as `mypy --strict` finds them, outside of the checkout as for a user."""
    for name, source in programs.items():
        (folder / name).write_text(source)
    (folder / "mypy.ini").write_text(CONFIG)
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", *programs],
        cwd=folder,
        env={**os.environ, "MYPYPATH": "", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert f"checked {len(programs)} source files" in told, told
    found = {name: {} for name in programs}
    for name, number, kind in re.findall(r"^(\w+\.py):(\d+): error: .*\[([a-z-]+)\]$", told, re.MULTILINE):
        found[name][int(number)] = kind
    return found


@pytest.mark.slow  # mypy looks at jax, flax and numpy as well
def test_a_strict_user_program(tmp_path):
    right = PROGRAM.read_text()
    wrong = re.sub(r"^    # (.*  # [a-z-]+)$", r"    \1", right, flags=re.MULTILINE)
    expected = {
        number: line.rsplit("# ")[-1]
        for number, (line, before) in enumerate(zip(wrong.splitlines(), right.splitlines(), strict=True), 1)
        if line != before
    }
    assert len(expected) == 13
    assert errors(tmp_path, {"right.py": right, "wrong.py": wrong}) == {"right.py": {}, "wrong.py": expected}
