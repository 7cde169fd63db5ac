"""Small random changes of an order that levels state: the moves of local searches over schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NEAR = 8.0  # how far apart two tasks are on average, in captured order, of which one takes the level of the other
FAR = 0.3  # the share of such pairs that are any two of a device
CHANCES = {"place": 0.2, "swap": 0.1, "stretch": 0.5, "kind": 0.2}


@dataclass(frozen=True)
class OrderMoves:
    """Moves of the levels of tasks, each towards that of another task of its device, as devices compare no others.

    - *place*: a task goes to the level of another, or the one above or below.
    - *swap*: two tasks exchange their levels.
    - *stretch*: tasks of a device that follow each other in captured order are raised or lowered together.
    - *kind*: the same for all tasks of one module and phase on a device.

    Args:
        on_device: int64, the tasks of each device that compute, in captured order; of devices with two or more.
        kind: int64 [K]: the module and phase of each task, as a number.
        levels: how many there are.
    """

    on_device: tuple[np.ndarray, ...]
    kind: np.ndarray
    levels: int

    def change(self, row: np.ndarray, rng: np.random.Generator) -> None:
        """One move, in place, in ``row`` int32 [K]."""
        if not self.on_device:
            return
        sizes = np.array([len(one) for one in self.on_device])
        on = self.on_device[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        at = int(rng.integers(len(on)))
        other = self._other(at, len(on), rng)
        moves: tuple[Callable[..., None], ...] = (self._place, self._swap, self._stretch, self._of_kind)
        moves[int(rng.choice(len(moves), p=list(CHANCES.values())))](row, on, at, other, rng)

    def _other(self, at: int, size: int, rng: np.random.Generator) -> int:
        """Where another task of the device stands: near, or anywhere."""
        if rng.random() < FAR:
            return (at + 1 + int(rng.integers(size - 1))) % size
        away = 1 + int(rng.exponential(NEAR))
        return int(np.clip(at + away if rng.random() < 0.5 else at - away, 0, size - 1))

    def _place(self, row: np.ndarray, on: np.ndarray, at: int, other: int, rng: np.random.Generator) -> None:
        row[on[at]] = np.clip(row[on[other]] + rng.integers(-1, 2), 0, self.levels - 1)

    def _swap(self, row: np.ndarray, on: np.ndarray, at: int, other: int, rng: np.random.Generator) -> None:
        row[on[[at, other]]] = row[on[[other, at]]]

    def _stretch(self, row: np.ndarray, on: np.ndarray, at: int, other: int, rng: np.random.Generator) -> None:
        self._shift(row, on[at : at + 2 + int(rng.exponential(NEAR))], row[on[other]] - row[on[at]], rng)

    def _of_kind(self, row: np.ndarray, on: np.ndarray, at: int, other: int, rng: np.random.Generator) -> None:
        self._shift(row, on[self.kind[on] == self.kind[on[at]]], row[on[other]] - row[on[at]], rng)

    def _shift(self, row: np.ndarray, tasks: np.ndarray, by: int, rng: np.random.Generator) -> None:
        row[tasks] = np.clip(row[tasks] + by + rng.integers(-1, 2), 0, self.levels - 1)
