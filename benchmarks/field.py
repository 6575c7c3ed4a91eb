"""The contenders of one model, each a running process."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks import floor
from benchmarks.contenders import REFERENCE, Contender, interpreter, ours
from benchmarks.contenders.process import ContenderError, Process
from benchmarks.rounds import Patience, measure, note, share_equal
from trocr_jax.modeling import policy

POLICIES = [name for name in policy.POLICIES if name != "float64"]


def policies(names: Sequence[str] = POLICIES) -> list[Contender]:
    """This library under each of the precision policies, by default all that it has but float64."""
    return [ours(name, policy.get_policy(name).operand) for name in names]


class Field:
    """The contenders of one model, running; `problems` are the reasons of those that could not start."""

    def __init__(
        self, contenders: list[Contender], folder: pathlib.Path, device: str, patience: Patience | None = None
    ) -> None:
        self.contenders: dict[str, Contender] = {}
        self.processes: dict[str, Process] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.problems: dict[str, str] = {}
        self._patience = patience or Patience()
        for contender in contenders:
            note(f"{contender.name} loads")
            try:
                contender = self._start(contender, folder, device)
            except (ContenderError, FileNotFoundError) as error:
                self.problems[contender.name] = str(error)
            self.contenders[contender.name] = contender

    def _start(self, contender: Contender, folder: pathlib.Path, device: str) -> Contender:
        command = [str(interpreter(contender)), "-W", "ignore", "-m", "benchmarks.contenders", contender.side]
        environment = {"JAX_PLATFORMS": "cpu"} if device == "cpu" else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        process = Process(command, environment)
        given = {"folder": str(folder), "device": device, "dtype": contender.dtype, "options": dict(contender.options)}
        try:
            versions = process.ask(self._patience.limit, do="load", **given)["versions"]
        except ContenderError:
            process.close()
            raise
        if versions.get("in") == "bf16":  # its own choice
            name = f"{contender.name} bfloat16"
            contender = dataclasses.replace(contender, name=name, dtype="bfloat16", weight_bytes=2)
        self.processes[contender.name], self.versions[contender.name] = process, versions
        return contender

    def ask_in_turn(self, request: dict[str, Any], runs: int) -> dict[str, dict[str, Any]]:
        """Results of all contenders in order; see `benchmarks.rounds.measure`."""
        found = measure(self.processes, request, runs, self._patience)
        return {name: found.get(name, {"error": self.problems.get(name)}) for name in self.contenders}

    def measure(self, pixels: pathlib.Path, batch: int, options: dict[str, Any], runs: int) -> dict[str, Any]:
        """The same for images in an .npy file, and the share of rows whose ids are the reference's."""
        request = {"do": "generate", "pixels": str(pixels), "batch": batch, "options": options}
        results = self.ask_in_turn(request, runs)
        if reference := results.get(REFERENCE, {}).get("ids"):
            for result in results.values():
                if "ids" in result:
                    result["share_equal"] = share_equal(result["ids"], reference)
        return results

    def rates(self) -> floor.Rates:
        """The best rates that any contender reaches."""
        replies = []
        for name in self.processes:
            note(f"{name}: rates")
            with contextlib.suppress(ContenderError):
                dtypes = ["float32", "bfloat16"]
                replies.append(self.processes[name].ask(self._patience.limit, do="rates", dtypes=dtypes))
        if not replies:
            raise RuntimeError(f"no contender could start: {self.problems}")
        matmul = {name: max(reply["matmul"][name] for reply in replies) for name in replies[0]["matmul"]}
        return floor.Rates(matmul, max(reply["bandwidth"] for reply in replies))

    def peaks(self) -> dict[str, int]:
        """The highest resident sizes so far, in bytes."""
        found = {}
        for name, process in self.processes.items():
            with contextlib.suppress(ContenderError):
                found[name] = process.ask(self._patience.limit, do="memory")["peak"]
        return found

    def close(self) -> None:
        """Ends all processes."""
        for process in self.processes.values():
            process.close()
        note("")
