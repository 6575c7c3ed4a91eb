"""What the allocator keeps, counted in pages that the system had to clear, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from trocr_jax import cli
from trocr_jax.commands import finetune

# A program with 75 MB of working memory, many times.
PROGRAM = """
import resource
from trocr_jax.allocator import keep_freed_memory
asked = keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def run(a, b):
    return jnp.sum(jax.lax.fori_loop(0, 2, lambda i, y: y.T * 1.5, jnp.outer(a, b)))

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

x = jnp.ones(3072), jnp.ones(3072)
new = 0
for _ in range(20):
    before = faults()
    run(*x).block_until_ready()
    new += faults() - before > 10000  # 75 MB in pages of 4 KiB are 18,432
print(asked, new)
"""


def measured(**environment):
    """(whether it was asked of the allocator, how many of 20 runs had new memory)."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "TROCR_JAX_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | environment, capture_output=True, text=True, check=True
    )
    asked, runs = done.stdout.split()
    return asked == "True", int(runs)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has these settings")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    for environment in ({"TROCR_JAX_MALLOPT": "0"}, {"MALLOC_TOP_PAD_": "131072"}):
        asked, runs = measured(**environment)
        assert not asked
        if runs < 18:
            pytest.skip("this system's pages are larger than 4 KiB")
    asked, runs = measured()
    assert asked
    assert runs < 15  # the first few, until there is a free block of the size


def test_fine_tuning_asks_for_it_before_anything_else(monkeypatch, capsys):
    def asked():
        raise ValueError("asked")

    monkeypatch.setattr(finetune, "keep_freed_memory", asked)
    command = ["finetune", "--train", "nowhere", "--val", "nowhere", "--output", "nowhere"]
    assert cli.main(command) == 2
    assert capsys.readouterr().err.strip().endswith("asked")
