"""glibc's allocator: memory that a program has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

SWITCH = "TROCR_JAX_MALLOPT"  # 0: the allocator stays as it is
# mallopt's parameters, from glibc's malloc.h, and what they are set to.
SETTINGS = {
    # First, since versions before 2.35 may refuse it, and the others are then of no use.
    -3: 2**30,  # M_MMAP_THRESHOLD, bytes from which on a block is taken from the system, and given back, for itself
    -8: 1,  # M_ARENA_MAX
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD, bytes of freed memory that are kept at the heap's end
}


@functools.cache
def keep_freed_memory() -> bool:
    """Has glibc keep freed memory, up to 2 GiB, in this process; whether it does so. Later calls do nothing.

    XLA's CPU client takes a program's working memory anew for each run. malloc gives so large a block back to the
    system when it is freed, and the next run waits for the system to clear each page: a quarter of the processor time
    of a training step of the embedded model. Blocks of 1 GiB and more are given back as before. Reading, whose blocks
    are smaller, gains nothing measurably.

    To be called at a program's start: threads that have arenas of their own, as those of a CPU client that is there,
    find no room for blocks of more than 64 MiB in them. Threads that come later share the main one. Does nothing where
    glibc is not there or refuses it, where TROCR_JAX_MALLOPT is 0, or where the environment has settings for malloc
    already.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    is_set = is_set or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if is_set or os.environ.get(SWITCH) == "0" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in SETTINGS.items())
