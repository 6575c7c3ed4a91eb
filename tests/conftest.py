"""What every test shares."""

from __future__ import annotations

import gc
import os
import pathlib
import socket
import tempfile

# Nothing here may reach a network, and several workers that each use all cores slow each other down.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most programs here run a few times: what LLVM's optimisations cost, two fifths of compiling, they do not save. XLA's
# own passes stay as they are. For the very programs that users run there is the fixture `optimized`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from jax._src import compiler
from jax.experimental.compilation_cache import compilation_cache

# Tracing makes many small objects and little of it is garbage: at Python's own threshold of 700 the collector goes
# through all that torch and transformers have made so often that a tenth of a test's time is its.
gc.set_threshold(100_000, 20, 100)

SHARED = pathlib.Path(__file__).parents[2] / "shared"
SAMPLES = pathlib.Path(__file__).parents[1] / "notebooks" / "samples"


COMPILE_OPTIONS = compiler.get_compile_options


def get_compile_options(*arguments, **options):
    """JAX's own, but that programs which need not be `optimized` have their fusions by XLA's older emitters.

    In jax 0.10 those take half the time to compile. Later ones have the new emitters alone.
    """
    found = COMPILE_OPTIONS(*arguments, **options)
    if jax.__version__.startswith("0.10.") and jax.config.read("jax_disable_most_optimizations"):
        found.env_option_overrides = [*found.env_option_overrides, ("xla_cpu_use_fusion_emitters", False)]
    return found


compiler.get_compile_options = get_compile_options

CACHE_OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
MAPS = pathlib.Path("/proc/self/maps")  # of Linux


def pytest_configure(config):
    """The user's cache folder stays untouched: all workers of a run have one of the run's own."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="trocr_jax-tests-", ignore_cleanup_errors=True)
        os.environ["XDG_CACHE_HOME"] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.fixture(autouse=True)
def room_for_programs():
    """Drops compiled programs before the process runs out of memory maps.

    XLA's CPU backend maps some 220 regions a program, and Linux grants a process 65,530 (vm.max_map_count): the
    compiler dies of one too many.
    """
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """A command that a test ran switches it on for its process: the tests behind it would depend on their order."""
    before = compilation_options()
    yield
    if compilation_options() != before:
        set_compilation_options(before)


def compilation_options():
    return {name: getattr(jax.config, name) for name in CACHE_OPTIONS}


def set_compilation_options(options):
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def optimized():
    """Programs are compiled as users' are, for a file whose tests are about the numbers that those find."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def x64():
    """64-bit numbers for the length of a test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def shared():
    """The folder of data beside the checkout; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared")
    return SHARED


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
    """A cache folder of the test's own, and no compilation cache yet."""
    before = compilation_options()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    set_compilation_options({**before, "jax_compilation_cache_dir": None})
    yield tmp_path / "cache"
    set_compilation_options(before)
