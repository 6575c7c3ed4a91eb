"""What is compared: this library in each precision, and what a user would pick instead. Imports none of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.environments import python_of

OURS = "trocr_jax"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to read images. `side` is the module beside this file that runs in the contender's own process.

    `dtype` is that of the operands of matrix products; `weight_bytes` the size of one decoder weight in memory.
    `environment` is that of benchmarks/environments, None for this interpreter; `options` are the side's own.
    """

    name: str
    side: str
    dtype: str = "float32"
    weight_bytes: int = 4
    environment: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu", "gpu")

    @property
    def is_ours(self) -> bool:
        """Whether this is the library that the benchmark is of."""
        return self.name.startswith(OURS)


def ours(policy: str, operand: str = "float32") -> Contender:
    """This library under a precision policy with operands of that dtype."""
    size = 1 if "int8" in policy else 2 if operand == "bfloat16" else 4
    return Contender(f"{OURS} {policy}", "library", operand, size, options={"policy": policy})


def _newest_jax(policy: str, operand: str = "float32") -> Contender:
    contender = ours(policy, operand)
    name = f"{OURS}-newest-jax-{policy}"
    return dataclasses.replace(contender, name=name, environment="newest-jax", devices=("cpu",))


def _transformers(name: str, dtype: str = "float32", devices: tuple[str, ...] = ("cpu", "gpu"), **options: Any):
    size = 2 if dtype == "bfloat16" else 4
    return Contender(f"transformers-{name}", "transformers_side", dtype, size, "transformers", options, devices)


PEERS = {
    peer.name: peer
    for peer in (
        _transformers("float32", use_cache=True),
        _transformers("bfloat16", "bfloat16", use_cache=True),
        _transformers("shipped", use_cache=False),  # the official checkpoints' own setting
        _transformers("compiled", "bfloat16", ("gpu",), cache_implementation="static"),
        _transformers("compiled-patched", "bfloat16", ("gpu",), cache_implementation="static", is_patched=True),
        Contender("onnxruntime", "onnxruntime_side", environment="onnxruntime"),
        Contender("openvino", "openvino_side", environment="openvino", devices=("cpu",)),
        _newest_jax("float32"),
        _newest_jax("bfloat16", "bfloat16"),
    )
}
REFERENCE = "transformers-float32"  # whose ids the others' are compared with


def interpreter(contender: Contender) -> pathlib.Path:
    """The Python that a contender runs on. Raises FileNotFoundError saying what to set up."""
    if contender.environment is None:
        return pathlib.Path(sys.executable)
    found = python_of(contender.environment)
    if found is not None:
        return found
    if contender.environment == "transformers" and all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return pathlib.Path(sys.executable)
    raise FileNotFoundError(f"not set up: python -m benchmarks.environments {contender.environment}")


def chosen(device: str, policies: Iterable[Contender], peers: Iterable[str] | None) -> list[Contender]:
    """Ours and the peers asked for (by default all others' libraries) that a device is for.

    Raises ValueError for unknown peers.
    """
    if unknown := sorted(set(peers or ()) - PEERS.keys()):
        raise ValueError(f"peers {unknown} are not known; choose from {list(PEERS)}")
    others = [peer for peer in PEERS.values() if not peer.is_ours]
    wanted = others if peers is None else [PEERS[name] for name in peers]
    return [*policies, *(peer for peer in wanted if device in peer.devices)]
