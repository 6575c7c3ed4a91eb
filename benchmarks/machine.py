"""What a benchmark ran on."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

INSTRUCTION_SETS = (
    "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip


def processor() -> tuple[str, list[str]]:
    """(the processor's name, those of INSTRUCTION_SETS that it has)."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", platform.machine()), [name for name in INSTRUCTION_SETS if name in flags]


def commit() -> str | None:
    """The commit of this checkout, with + behind it if files differ; None outside of one."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--abbrev=9", "--dirty=+"]
    done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def describe(module: str) -> dict[str, Any]:
    """Machine, cores, memory, load, Python, commit, and the command that runs a module as it was run."""
    name, flags = processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": name,
        "instruction sets": flags,
        "cores": cores,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load average": os.getloadavg()[0],
        "python": platform.python_version(),
        "commit": commit(),
        "environment": {name: os.environ[name] for name in ("XLA_FLAGS", "GLIBC_TUNABLES") if name in os.environ},
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    }
