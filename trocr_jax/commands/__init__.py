"""The command line's commands, one or two a module: its arguments and what it runs."""

from __future__ import annotations

import signal


class Uninterrupted:
    """A context that holds SIGINT back until its end, where a system can do that; for imports.

    Raised inside of one, a KeyboardInterrupt may be swallowed, or end native code with a crash. It holds for the
    calling thread and those that are started inside: in a program with others a signal may still come through.
    """

    def __enter__(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            self._before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            try:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            except KeyboardInterrupt:  # of just before
                self.__exit__()
                raise

    def __exit__(self, *_: object) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)  # raises what came meanwhile
