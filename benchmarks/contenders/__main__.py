"""A contender's own process: answers requests on stdin, one line of JSON each, on stdout.

usage: python -m benchmarks.contenders SIDE

- {"do": "load", "folder", "device", "dtype", "options"} -> {"seconds", "versions"}
- {"do": "generate", "pixels", "batch", "options"} -> {"seconds", "processor_seconds", "ids"}: the images of an .npy
  file in batches of `batch`; ids are cut behind the end
- {"do": "read", "paths", "batch", "options"} -> {"seconds", "processor_seconds", "texts"}: image files to texts
- {"do": "rates", "dtypes"} -> {"matmul": flop/s of a large product by dtype, "bandwidth": bytes/s}
- {"do": "memory"} -> {"peak"}: bytes, the highest resident size so far

What goes wrong is answered as {"error"}. `processor_seconds` are those of all threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

import numpy as np

PAD = 1
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """What the block took, filled in at its end."""
    times: dict[str, float] = {}
    wall, processor = time.perf_counter(), time.process_time()
    yield times
    times["seconds"] = time.perf_counter() - wall
    times["processor_seconds"] = time.process_time() - processor


class Server:
    """Answers requests with a side's Reader, which the first request loads."""

    def __init__(self, reader_class: Callable[..., Any]) -> None:
        self._reader_class = reader_class
        self._reader: Any = None

    def load(self, **arguments: Any) -> dict[str, Any]:
        start = time.perf_counter()
        self._reader = self._reader_class(**arguments)
        return {"seconds": time.perf_counter() - start, "versions": self._reader.versions()}

    def generate(self, pixels: str, batch: int, options: dict[str, Any]) -> dict[str, Any]:
        images, rows = np.load(pixels), []
        with timed() as times:
            for start in range(0, len(images), batch):
                rows.extend(self._reader.generate(images[start : start + batch], **options))
        ids = [np.trim_zeros(np.asarray(row) - PAD, "b") + PAD for row in rows]
        return times | {"ids": [row.tolist() for row in ids]}

    def read(self, paths: list[str], batch: int, options: dict[str, Any]) -> dict[str, Any]:
        with timed() as times:
            texts = self._reader.read(paths, batch, **options)
        return times | {"texts": texts}

    def rates(self, dtypes: list[str]) -> dict[str, Any]:
        return {
            "matmul": {dtype: self._reader.matmul_rate(dtype) for dtype in dtypes},
            "bandwidth": self._reader.bandwidth(),
        }

    def memory(self) -> dict[str, Any]:
        # Not getrusage's ru_maxrss, which a new process inherits from its parent.
        lines = pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return {"peak": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))}


def serve(server: Any, requests: Iterable[str], replies: TextIO) -> None:
    """Answers each request by the server's method of that name, until there are no more."""
    for line in requests:
        request = json.loads(line)
        try:
            reply = getattr(server, request.pop("do"))(**request)
        except Exception as error:  # whatever a library raises is a row of the table
            text = str(error).strip().splitlines() or [""]
            reply = {"error": f"{type(error).__name__}: {text[0]}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def end_with_parent() -> None:
    """Lets Linux end this process when its parent ends: a request may take minutes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serves a side. What libraries print goes to stderr, so that stdout holds replies alone."""
    end_with_parent()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    side = importlib.import_module(f"benchmarks.contenders.{sys.argv[1]}")
    with contextlib.suppress(KeyboardInterrupt):
        serve(Server(side.Reader), sys.stdin, replies)


if __name__ == "__main__":
    main()
