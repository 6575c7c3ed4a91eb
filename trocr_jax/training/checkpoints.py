"""Where a training stands, on the disk: written in the background, whole or not at all."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from trocr_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a training knows beside its state: error rates so far, and evaluations since the lowest."""

    step: int = 0
    first_cer: float | None = None
    last_cer: float | None = None
    best_cer: float | None = None
    best_step: int = 0
    num_worse: int = 0

    def evaluated(self, cer: float) -> Progress:
        """Behind an evaluation at this step."""
        seen = dataclasses.replace(self, first_cer=cer if self.first_cer is None else self.first_cer, last_cer=cer)
        if self.best_cer is None or cer < self.best_cer:
            return dataclasses.replace(seen, best_cer=cer, best_step=self.step, num_worse=0)
        return dataclasses.replace(seen, num_worse=self.num_worse + 1)


class Checkpoints:
    """The last `keep` checkpoints of a training, in a folder of their own; a context manager.

    On leaving it waits for what is being written. What a process that was killed left half written is removed.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, state: TrainState, progress: Progress) -> None:
        """Starts to write; the state's buffers may be given away at once."""
        if next(iter(jax.tree.leaves(state)[0].devices())).platform == "cpu":
            # There orbax looks at the buffers themselves, which the next step overwrites.
            state = jax.tree.map(jnp.copy, state)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(_plain(state)),
            progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
        )
        self._manager.save(progress.step, args=arguments)

    def latest(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """The last whole checkpoint, laid out on devices as `like` is; None where there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            progress=ocp.args.JsonRestore(),
        )
        found = self._manager.restore(step, args=arguments)
        leaves, structure = jax.tree.leaves(found["state"]), jax.tree.structure(like.replace(key=0))  # type: ignore[attr-defined]
        state = jax.tree.unflatten(structure, leaves)
        return state.replace(key=jax.random.wrap_key_data(state.key)), Progress(**found["progress"])


def _plain(state: TrainState) -> Any:
    """The state's leaves by number, a key as its words: nothing but arrays in a dict."""
    leaves = jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))  # type: ignore[attr-defined]
    return {f"{number:05}": leaf for number, leaf in enumerate(leaves)}
