"""A contender's process as its parent sees it: requests and replies are lines of JSON over a pipe.

Threads that wait for work are asked not to spin (see DEFAULTS), so that they take no time from the contender whose turn
it is. Stopping the processes instead (SIGSTOP, SIGCONT) was tried: threads that prepare images then hang for minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.environments import ROOT

# OpenMP's threads spin at barriers by default: with other work on the machine, PyTorch is ten times slower for it.
DEFAULTS = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "TRANSFORMERS_VERBOSITY": "error"}


class ContenderError(Exception):
    """A contender cannot do what it is asked; the message says why."""


class Process:
    """A process that serves requests, from `command`; `close` ends it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env={**DEFAULTS, **os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """The reply to a request. Raises ContenderError if there is none within `limit` seconds, or an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(limit, self._process.kill)
        try:
            timer.start()
            with contextlib.suppress(BrokenPipeError):  # why it ended is told below
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise ContenderError(self._reason(limit))
        reply = json.loads(line)
        if "error" in reply:
            raise ContenderError(reply["error"])
        return reply

    def _reason(self, limit: float) -> str:
        """Why a process has ended without a reply."""
        status = self._process.wait()
        self._log.seek(0)
        said = [line for line in self._log.read().splitlines() if line.strip()]
        if status == -signal.SIGKILL:
            return f"ended by SIGKILL: no answer within {limit:.0f} s, or no memory left"
        return f"ended with status {status}: {said[-1] if said else 'nothing said'}"

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]
