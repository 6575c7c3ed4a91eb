"""What a checkpoint is, also one that cannot be converted."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from trocr_jax import registry
from trocr_jax.checkpoints import fairseq
from trocr_jax.checkpoints.conversion import interpret, read_weights


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a checkpoint is; `problem` says why it cannot be converted, None if it can."""

    path: pathlib.Path
    kind: str
    num_tensors: int
    num_parameters: int
    dtypes: Mapping[str, int]  # tensors of each dtype
    problem: str | None = None
    official: tuple[str, ...] = ()
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    decisions: tuple[fairseq.Decision, ...] = ()

    def __str__(self) -> str:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in sorted(self.dtypes.items()))
        lines = [
            f"{self.path}: {self.kind}",
            f"  {self.num_tensors} tensors ({dtypes}), {self.num_parameters:,} numbers",
        ]
        if self.problem is not None:
            lines += ["  cannot be converted:", *(f"    {line}" for line in self.problem.splitlines())]
        if self.architecture:
            lines += [f"  architecture of {', '.join(self.official) or 'no official model'}"]
            lines += [f"    {name}: {value}" for name, value in self.architecture.items()]
        if self.decisions:
            lines += ["  decided:", *(f"    {d.field} = {d.value!r}: {d.source}" for d in self.decisions)]
        if self.ignored:
            lines += ["  not read:", *(f"    {name}: {reason}" for name, reason in self.ignored.items())]
        return "\n".join(lines)


def inspect(source: str | os.PathLike[str], **hub_options: Any) -> Inspection:
    """What a checkpoint is, also one that is refused. Raises OSError or CheckpointError for one that is unreadable."""
    weights = read_weights(source, **hub_options)
    found = Inspection(
        path=weights.path,
        kind=weights.kind,
        num_tensors=len(weights.tensors),
        num_parameters=sum(tensor.size for tensor in weights.tensors.values()),
        dtypes=collections.Counter(str(tensor.dtype) for tensor in weights.tensors.values()),
    )
    try:
        checkpoint = interpret(weights)
    except (ValueError, FileNotFoundError) as error:
        return dataclasses.replace(found, problem=str(error))
    return dataclasses.replace(
        found,
        official=tuple(registry.matching_models(checkpoint.config)),
        architecture=registry.architecture(checkpoint.config),
        ignored=checkpoint.ignored,
        decisions=checkpoint.decisions,
    )
