"""A task's observation as one table: the spaces, the shapes and the documentation come from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

Size = int | str  # a number, a symbol such as "G", or a symbol and a number: "G + 1"
Kind = Literal["share", "mask", "index"]
_DTYPES: Mapping[Kind, Any] = {"share": np.float32, "mask": np.int8, "index": np.int32}


@dataclass(frozen=True)
class Part:
    """One array of an observation.

    Attributes:
        name: its key.
        shape: before flattening; sizes that the roster sets are symbols.
        kind: ``share``: float32 in 0 to 1; ``mask``: int8, 0 or 1; ``index``: int32, ``least`` to ``below`` - 1.
        meaning: for people.
        padding: what stands beyond the episode's own sizes, for people.
    """

    name: str
    shape: tuple[Size, ...]
    kind: Kind
    meaning: str
    padding: str = "0"
    below: Size = 2
    least: int = -1

    @property
    def dtype(self) -> Any:
        return _DTYPES[self.kind]


class ObservationTable(tuple[Part, ...]):
    """The parts of an observation, in order."""

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The shape of each part before flattening."""
        return {part.name: tuple(number(size, sizes) for size in part.shape) for part in self}

    def space(self, sizes: Mapping[str, int]) -> spaces.Dict:
        """One-dimensional boxes by name."""
        boxes: dict[str, spaces.Space[Any]] = {}
        for part in self:
            shape = (int(np.prod([number(size, sizes) for size in part.shape])),)
            low, high = (part.least, number(part.below, sizes) - 1) if part.kind == "index" else (0, 1)
            boxes[part.name] = spaces.Box(low, high, shape, part.dtype)
        return spaces.Dict(boxes)

    def markdown(self, indent: str = "    ") -> str:
        """The table for the documentation."""
        lines = ["| Key | Shape | Type | Meaning | Padding |", "|---|---|---|---|---|"]
        for part in self:
            shape = ", ".join(map(str, part.shape))
            lines.append(
                f"| `{part.name}` | [{shape}] | {np.dtype(part.dtype).name} | {part.meaning} | {part.padding} |"
            )
        return f"\n{indent}".join(lines)


def number(size: Size, sizes: Mapping[str, int]) -> int:
    """What a size stands for, with the symbols' values."""
    if isinstance(size, int):
        return size
    symbol, _, more = size.partition(" + ")
    return sizes[symbol] + int(more or 0)
