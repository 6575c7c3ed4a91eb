"""What a check found, in one form for the terminal and for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Status = Literal["ok", "note", "broken"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `text` says how it is, `advice` what to do, empty where there is nothing to do.

    "note" is worth knowing and nothing is wrong; "broken" means wrong texts, or none. `details` are the facts, for
    JSON.
    """

    name: str
    status: Status
    text: str
    advice: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """This finding as a JSON object."""
        return dataclasses.asdict(self)
