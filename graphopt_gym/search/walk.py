"""The state of a Metropolis walk over neighbours: what a problem's own compiled walk goes on from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Walk:
    """The state of a walk. Every step looks at one neighbour, which counts as one evaluation.

    The temperature at step s is ``exp(log_temperature + slope * s)``; at one of 0 (the log is ``-inf``) what is as good
    or better is accepted. The random numbers of a step depend on the seed and its number alone.

    Attributes:
        decision, cost: where it stands.
        seed: uint64.
        step: steps taken.
        least, idle: least cost that it stood at, and steps since.
        best, best_cost, best_valid: the best decision of all, a valid one always before an invalid one.
        valid: valid decisions among those looked at.
        improvements: (step, cost) of each new best that was valid, since they were last taken away.
        looked: an array [S, *decision_shape] that the next S decisions looked at are written to, or None.
    """

    decision: Any
    cost: float
    seed: int
    best: Any
    best_cost: float
    best_valid: bool
    log_temperature: float = -math.inf
    slope: float = 0.0
    step: int = 0
    least: float = math.inf
    idle: int = 0
    valid: int = 0
    improvements: list[tuple[int, float]] = field(default_factory=list)
    looked: Any = None
