"""Several processes that train together, each with its devices: who writes, and what they tell each other.

Every process runs the same program on the same lines, behind `jax.distributed.initialize`, with a recogniser on the
mesh of all devices. It opens the images of its own rows of a batch, and of its own part of the validation lines;
gradients are added up over all devices by the step. The output folder is one that all of them see. Each waits for
the others: where one ends by an error in the middle of a training, JAX's coordinator ends the rest, minutes later.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes that train, which are all that there are; one alone does all of it, and waits for nobody."""

    mesh: Mesh | None

    def __post_init__(self) -> None:
        processes = {device.process_index for device in self.mesh.devices.flat} if self.mesh is not None else {0}
        # Checkpoints are written by all processes together, whatever the mesh.
        if len(processes) != jax.process_count():
            raise ValueError(
                f"the model is on devices of {len(processes)} of {jax.process_count()} processes: load it with "
                "mesh=trocr_jax.make_mesh(jax.devices()), or train without jax.distributed"
            )

    @property
    def size(self) -> int:
        """How many processes they are."""
        return jax.process_count() if self.mesh is not None and self.mesh.is_multi_process else 1

    @property
    def number(self) -> int:
        """This one's, from 0."""
        return jax.process_index() if self.size > 1 else 0

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files."""
        return self.number == 0

    def meet(self, name: str) -> None:
        """Waits until all have come here."""
        if self.size > 1:
            multihost_utils.sync_global_devices(name)

    @contextlib.contextmanager
    def led(self, complaint: str) -> Iterator[None]:
        """Waits at the end for all, and raises in all where one has failed meanwhile: there ValueError(complaint)."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        failed = int(self.total(np.array([error is not None]))[0])
        if error is not None:
            raise error
        if failed:
            raise ValueError(complaint)

    def total(self, counts: np.ndarray) -> np.ndarray:
        """The sum over processes of each one's numbers, below 2^31."""
        if self.size == 1:
            return counts
        gathered: np.ndarray = multihost_utils.process_allgather(np.asarray(counts, np.int32))
        return gathered.sum(axis=0)

    def agree(self, digest: bytes, what: str) -> None:
        """Raises ValueError, in all of them, where they come with different digests of what should be the same."""
        if self.size > 1:
            found = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
            if others := [number for number, row in enumerate(found) if bytes(row) != bytes(found[0])]:
                raise ValueError(f"processes {others} train with other {what} than process 0; start all with the same")
