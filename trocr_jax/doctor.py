"""What this machine is like for reading text lines, finding by finding, and what to do about each.

Every check stands alone: one that fails is a finding, and the others go on. JAX is imported by the checks that need it,
so that versions are told even where it cannot be imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from trocr_jax.findings import Finding
from trocr_jax.version import __version__

if TYPE_CHECKING:
    from trocr_jax.recognizer import TrOCR

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers", "huggingface_hub")
# They change what JAX computes, or where.
VARIABLES = ("JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES")
# Accelerators that the system shows without JAX's help, and the extra of this package that uses them.
ACCELERATORS = {"/dev/nvidia0": "cuda", "/dev/accel0": "tpu"}
# The first jax whose XLA has mended what issue 46110 of openxla/xla says.
SOUND_ON_GPU = (0, 11, 1)

SELF_CHECK = pathlib.Path(__file__).parent / "assets" / "self-check"
# Largest difference of a logit from the stored one that is still rounding. On a CPU it is 6e-5, and 0.1 in bfloat16 and
# int8 (`trocr-jax doctor --dtype bfloat16`).
TOLERANCES = {"float32": 2e-3, "bfloat16": 0.6, "int8": 0.6}
TIMED_READS, TIMED_SECONDS = 20, 2.0
HUB_MODEL, HUB_SECONDS = "microsoft/trocr-base-printed", 3.0
LARGE_WEIGHTS = 2.43e9  # bytes of trocr-large's weights in float32, the largest official model


def diagnose(model: str | None = None, *, dtype: str = "auto") -> Iterator[Finding]:
    """The findings, each as soon as it is there; with `model` (a folder or hub id), that one is loaded and checked.

    `dtype` is the precision to check: "float32", "bfloat16", "int8" or "auto". Two programs are compiled, and one more
    for a model.
    """
    from trocr_jax import official_check

    recogniser: list[TrOCR] = []  # what the arithmetic's check leaves for the timing
    checks: dict[str, Callable[[], Finding]] = {
        "versions": check_versions,
        "devices": check_devices,
        "precision": lambda: check_precision(dtype),
        "compile cache": check_cache,
        "memory": check_memory,
        "arithmetic": lambda: check_arithmetic(dtype, recogniser.append),
        "timing": lambda: check_timing(recogniser),
        "hub": lambda: check_hub(model),
    }
    if model is not None:
        checks["model"] = lambda: official_check.check_model(model)
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # whatever it is, it is a finding
            advice = "the other findings may say why; if they do not, report this message with them"
            yield Finding(name, "broken", f"{type(error).__name__}: {error}", advice)


def check_versions() -> Finding:
    """The versions of Python and of what this package computes with."""
    versions = {"trocr_jax": __version__, "python": platform.python_version()}
    missing = []
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    system = platform.platform()
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    details = {**versions, "platform": system}
    if missing:
        advice = "install this package again: pip install --force-reinstall trocr-jax"
        return Finding("versions", "broken", f"{told}; {', '.join(missing)} missing", advice, details)
    return Finding("versions", "ok", f"{told}; {system}", details=details)


def check_devices() -> Finding:
    """The devices that JAX computes on, and accelerators of this machine that it does not see."""
    import jax

    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        advice = "mend the driver or the JAX_PLATFORMS variable; JAX_PLATFORMS=cpu computes without accelerators"
        return Finding("devices", "broken", f"JAX finds none: {error}", advice)
    backend = jax.default_backend()
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    kinds = sorted({device.device_kind for device in devices})
    told = f"{len(devices)} x {', '.join(kinds)} ({backend}), {os.cpu_count()} CPU cores"
    told += "".join(f"; {name}={value}" for name, value in variables.items())
    details = {"backend": backend, "count": len(devices), "kinds": kinds, "variables": variables}
    if backend == "gpu" and jax.__version_info__ < SOUND_ON_GPU:
        advice = (
            "to train with dropout on an NVIDIA GPU update to jax 0.11.1 or later (Python 3.12): before, XLA may scale "
            "what a layer gives without its bias (openxla/xla issue 46110)"
        )
        return Finding("devices", "note", told, advice, details)
    extras = [extra for path, extra in ACCELERATORS.items() if os.path.exists(path)]
    if backend != "cpu" or not extras:
        return Finding("devices", "ok", told, details=details)
    advice = f'pip install "trocr-jax[{extras[0]}]" for the accelerator that this machine has'
    if "JAX_PLATFORMS" in variables:
        advice = f"unset JAX_PLATFORMS to use the accelerator that this machine has, and if need be {advice}"
    return Finding("devices", "note", told, advice, details)


def check_precision(dtype: str) -> Finding:
    """The policy that models are loaded with, and why."""
    import jax

    from trocr_jax.modeling.policy import get_policy

    policy, backend = get_policy(dtype), jax.default_backend()
    details = {"policy": policy.name, "asked": dtype, "backend": backend}
    if dtype != "auto":
        return Finding("precision", "ok", f"{policy.name}, as asked for", details=details)
    why = {
        "float32": "most CPUs have no fast bfloat16",
        "bfloat16": "accelerators are fastest in it; --dtype float32 is closer to PyTorch's texts",
    }[policy.name]
    return Finding("precision", "ok", f"{policy.name}, the default on {backend}: {why}", details=details)


def check_cache() -> Finding:
    """The folder of compiled programs, and whether programs can be kept there; it is made if it is not there."""
    import jax

    from trocr_jax.compilation_cache import cache_folder, enable_compilation_cache

    name = str(jax.config.jax_compilation_cache_dir or cache_folder())  # type: ignore[attr-defined]
    if "://" in name:
        return Finding("compile cache", "ok", f"{name}, not looked at", details={"folder": name})
    folder = pathlib.Path(name)
    advice = "without it every run compiles anew; set XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR to a folder of yours"
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        details = {"folder": str(folder), "is_writable": False}
        return Finding("compile cache", "note", f"{folder} cannot be written: {error}", advice, details)
    enable_compilation_cache()
    sizes = [path.stat().st_size for path in folder.glob("*-cache")]
    details = {"folder": str(folder), "is_writable": True, "bytes": sum(sizes), "programs": len(sizes)}
    told = f"{folder}, writable, {len(sizes)} programs, {sum(sizes) / 1e6:.1f} MB"
    if folder.stat().st_mode & 0o002:
        advice = f"it holds executable code: chmod o-w {folder}"
        return Finding("compile cache", "note", f"{told}; other users can write to it", advice, details)
    return Finding("compile cache", "ok", told, details=details)


def check_memory() -> Finding:
    """What is free of the machine's memory and of the devices'."""
    import jax

    free = free_memory()
    details: dict[str, Any] = {"free_bytes": free, "devices": []}
    told = "the machine's is not known here" if free is None else f"{free / 1e9:.1f} GB free"
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            left = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
            details["devices"].append({"id": device.id, "free_bytes": left})
            told += f"; device {device.id}: {left / 1e9:.1f} GB free"
    known = [device["free_bytes"] for device in details["devices"]] + ([] if free is None else [free])
    least = min(known, default=None)
    if least is not None and least < LARGE_WEIGHTS:
        advice = f"trocr-large's weights alone take {LARGE_WEIGHTS / 1e9:.1f} GB in float32: use a base or small model"
        return Finding("memory", "note", told, advice, details)
    return Finding("memory", "ok", told, details=details)


def free_memory() -> int | None:
    """Bytes that a new process may take, by Linux's count and a container's limit; None where neither is there."""
    found = []
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = pathlib.Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        # What is kept of files only, and would be given up, counts as used there.
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found += [int(limit) - int(used) + int(counts.get("inactive_file", 0))] if limit.isdecimal() else []
    except OSError:
        pass  # another system, or no container
    return max(0, min(found)) if found else None


def stored_logits() -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """(decoder_input_ids [T], columns [C], logits [T, C] of those of the vocabulary, the text) of the self-check.

    They are transformers', in float64, with the embedded model's weights; `tests/test_doctor.py` computes them again.
    """
    content = json.loads((SELF_CHECK / "logits.json").read_text(encoding="utf-8"))
    ids, columns = np.asarray(content["decoder_input_ids"]), np.asarray(content["columns"])
    return ids, columns, np.asarray(content["logits"]), content["text"]


def check_arithmetic(dtype: str, keep: Callable[[TrOCR], None]) -> Finding:
    """Every device's logits of the embedded model on one line, against the stored ones; `keep` gets the model."""
    import jax

    from trocr_jax.recognizer import TrOCR

    ocr = TrOCR.from_pretrained(dtype=dtype)
    keep(ocr)
    ids, columns, expected, _ = stored_logits()
    rows = jax.local_device_count()  # a row on each
    pixels = np.repeat(ocr.processor(SELF_CHECK / "line.png")["pixel_values"], rows, axis=0)
    found = np.asarray(ocr.logits(pixels, np.tile(ids, (rows, 1))))[:, :, columns]  # [rows, T, C]
    differences = np.abs(found - expected).max(axis=(1, 2))
    name = ocr.model.policy.name
    wrong = [row for row in range(rows) if not differences[row] <= TOLERANCES[name]]  # NaN is wrong, too
    details = {"policy": name, "largest_difference": _finite(differences.max()), "tolerance": TOLERANCES[name]}
    told = f"logits within {differences.max():.1g} of the stored ones ({TOLERANCES[name]:g} is allowed in {name})"
    if not wrong:
        return Finding("arithmetic", "ok", told, details=details)
    advice = (
        "texts read here would be wrong. Unset XLA_FLAGS and JAX_DEFAULT_MATMUL_PRECISION, try --dtype float32, then "
        "JAX_PLATFORMS=cpu; install another version of jax; then report this output"
    )
    told = f"logits are off by {differences.max():.3g}, {TOLERANCES[name]:g} is allowed in {name}"
    if rows > 1:
        told += f" (rows {', '.join(map(str, wrong))} of {rows}, one a device)"
    return Finding("arithmetic", "broken", told, advice, details)


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None  # JSON has no other numbers


def check_timing(recogniser: list[TrOCR]) -> Finding:
    """Seconds for one line, image to text, once everything is compiled; and that the text is right."""
    if not recogniser:
        return Finding("timing", "note", "not measured: the embedded model could not be loaded")
    ocr, image = recogniser[0], SELF_CHECK / "line.png"
    start = time.perf_counter()
    text = ocr(image).text
    first = time.perf_counter() - start
    times: list[float] = []
    while len(times) < TIMED_READS and sum(times) < TIMED_SECONDS:
        start = time.perf_counter()
        ocr(image)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    details = {"first_seconds": first, "seconds": seconds, "images_per_second": 1 / seconds, "reads": len(times)}
    told = f"{1000 * seconds:.0f} ms a line, {1 / seconds:.0f} images/s (embedded model, one image at a time, median of"
    told += f" {len(times)}); the first took {first:.1f} s"
    if text != stored_logits()[-1]:
        advice = "the search goes wrong on this machine: install another version of jax, and report this output"
        return Finding("timing", "broken", f"the text read is {text!r}, not {stored_logits()[-1]!r}", advice, details)
    return Finding("timing", "ok", told, details=details)


def check_hub(model: str | None = None) -> Finding:
    """Whether models can be downloaded. If not, that is a note: folders, as `model` may be, and cached models load."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers

    details: dict[str, Any] = {"endpoint": constants.ENDPOINT, "is_offline": constants.HF_HUB_OFFLINE}
    otherwise = "; models that were downloaded before load from the cache"
    if model is None or not os.path.isdir(model):
        otherwise = f", or pass --model a folder{otherwise}"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", "not asked: HF_HUB_OFFLINE is set", f"unset it to download{otherwise}", details)
    try:
        address = f"{constants.ENDPOINT}/api/models/{HUB_MODEL}"
        status = get_session().get(address, timeout=HUB_SECONDS, headers=build_hf_headers()).status_code
    except Exception as error:  # of whichever HTTP library
        told = f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error})"
        advice = f"check the connection, proxies and HF_ENDPOINT{otherwise}"
        return Finding("hub", "note", told, advice, details)
    details["status"] = status
    if status >= 400:
        told = f"{constants.ENDPOINT} answers {status} when asked for {HUB_MODEL}"
        return Finding("hub", "note", told, f"check HF_ENDPOINT and your token (`hf auth whoami`){otherwise}", details)
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers", details=details)
