"""Small random changes of levels: the moves of local searches over what is fused and in which order it runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEAR = 8.0  # how many entries a stretch has on average that a move changes
ONE, STRETCH = 0.6, 0.3  # chances of the kinds of moves; the rest goes to all of one kind
EXTREME = 0.5  # the share of moves to the lowest or the highest level


@dataclass(frozen=True)
class LevelMoves:
    """Moves of the levels of some entries of a decision, which stand in the order of the step.

    Args:
        entries: int64 [M], those that may be changed, ascending.
        kinds: int64 [M]: entries of one kind are changed together now and then.
        levels: how many there are.
    """

    entries: np.ndarray
    kinds: np.ndarray
    levels: int

    def choose(self, rng: np.random.Generator) -> np.ndarray:
        """int64: one entry, a stretch of them, or all of one kind; none where there are none."""
        entries = self.entries
        if not len(entries):
            return entries
        kind = rng.random()
        at = int(rng.integers(len(entries)))
        if kind < ONE:
            return entries[at : at + 1]
        if kind < ONE + STRETCH:
            return entries[at : at + 1 + int(rng.exponential(NEAR))]
        return entries[self.kinds == self.kinds[at]]

    def change(self, row: np.ndarray, rng: np.random.Generator) -> None:
        """What is chosen gets another level, in place, in ``row`` int32 [K].

        Half of the new levels are the lowest or the highest: whether an entry is among the first matters most.
        """
        chosen = self.choose(rng)
        extreme = 0 if rng.random() < 0.5 else self.levels - 1
        row[chosen] = extreme if rng.random() < EXTREME else int(rng.integers(self.levels))
