"""GDP, and local search after it: annealing from the best placement found, with moves that the policy proposes.

Four in five moves are the problem's own. The others take one of its blocks of groups together, a stretch of the graph
or a whole module, to a device drawn from the policy's mean probabilities over the block, mixed half and half with the
uniform distribution: what ``gdp`` mutates placements by. Ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt_agents.core.guided import train_then_anneal
from graphopt_agents.gdp import Trainer
from graphopt_gym.envs.placement.moves import draw_block
from graphopt_gym.search.evaluator import Evaluator

OWN_MOVES = 0.8  # share of the problem's own moves


class PolicyMoves:
    """A problem as a local search sees it, with the policy's moves among its own.

    Args:
        problem: what is searched; its modules and the stretches of its orders are the blocks.
        probs: float64 [G, D], the policy's probabilities.
        own: the share of the problem's own moves; :data:`OWN_MOVES` where left out.
    """

    has_walk = False  # none has the policy's moves
    slow_moves = 0.0

    def __init__(self, problem: Any, probs: np.ndarray, own: float | None = None) -> None:
        self.problem, self.probs = problem, probs
        self.own = OWN_MOVES if own is None else own
        self.decision_shape = problem.decision_shape

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A changed copy of a decision int32 [G]."""
        if rng.random() < self.own:
            return self.problem.neighbour(decision, rng)
        block = draw_block(self.problem.move_tables, rng)
        weights = self.probs[block].mean(axis=0)
        chances = np.cumsum(weights + 1 / len(weights))
        changed, device = decision.copy(), int(np.searchsorted(chances, float(rng.random()) * chances[-1]))
        allowed = self.problem.allowed
        changed[block if allowed is None else block[allowed[block, device]]] = device
        return changed


def method_run(
    share: float = 0.25, start_from: Any = None, **arguments: Any
) -> Callable[[Evaluator, np.random.Generator], None]:
    """GDP followed by annealing, as a method of ``solve``: ``run(evaluator, rng)``; see :func:`train_then_anneal`."""
    return train_then_anneal(Trainer, lambda problem, task, probs: PolicyMoves(problem, probs), share, start_from,
                             arguments)  # fmt: skip
