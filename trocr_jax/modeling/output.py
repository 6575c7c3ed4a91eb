"""What the reference's outputs offer beside their fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any


class Output:
    """A dataclass whose fields are also items: by name, or by place among those that are not None.

    Iteration gives names, as the reference's does.
    """

    def _present(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in order."""
        return tuple(self._present().values())

    def keys(self) -> tuple[str, ...]:
        """The names of the fields that are there, in order."""
        return tuple(self._present())

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __contains__(self, name: object) -> bool:
        return name in self._present()

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str) and key not in {field.name for field in dataclasses.fields(self)}:  # type: ignore[arg-type]
            raise KeyError(key)
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]
