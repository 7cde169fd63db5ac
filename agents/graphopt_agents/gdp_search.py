"""GDP, and local search after it: annealing from the best placement found, with moves that the policy proposes.

Four in five moves are the problem's own (a group or a run of groups to another device). The others take a block of
groups together, a stretch of the graph or a whole module, to a device drawn from the policy's mean probabilities over
the block, mixed half and half with the uniform distribution: what ``gdp`` mutates placements by, at the price of
a few additions a move. Ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from graphopt_agents.blocks import Blocks
from graphopt_agents.gdp import Trainer
from graphopt_gym import fields
from graphopt_gym.search.evaluator import Evaluator
from graphopt_gym.search.methods import annealing_from

OWN_MOVES = 0.8  # share of the problem's own moves


class PolicyMoves:
    """A problem as a local search sees it, with the policy's moves among its own.

    Args:
        problem: what is searched.
        probs: float64 [G, D], the policy's probabilities.
        blocks: what blocks are drawn from. From its orders stretches are taken, their length log-uniform from 1 to G.
    """

    def __init__(self, problem: Any, probs: np.ndarray, blocks: Blocks) -> None:
        self.problem = problem
        self.decision_shape = problem.decision_shape
        self.orders = [order.numpy() for order in blocks.orders]
        self.sums = [np.concatenate([np.zeros((1, probs.shape[1])), np.cumsum(probs[one], 0)]) for one in self.orders]
        self.partitions = [part.numpy() for part in blocks.partitions]
        self.members = [
            np.split(np.argsort(part, kind="stable"), np.cumsum(np.bincount(part))[:-1]) for part in self.partitions
        ]
        self.means = [[probs[rows].mean(axis=0) for rows in members] for members in self.members]

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A changed copy of a decision int32 [G]."""
        if rng.random() < OWN_MOVES:
            return self.problem.neighbour(decision, rng)
        modules, which, length, at, draw = rng.random(5).tolist()
        groups = len(decision)
        if self.partitions and modules < 0.5:
            index = int(which * len(self.partitions))
            part = self.partitions[index][int(at * groups)]
            block, weights = self.members[index][part], self.means[index][part]
        else:
            index = int(which * len(self.orders))
            count = int((groups + 1) ** length)
            first = int(at * (groups + count - 1)) - count + 1  # every group is as likely to be in it
            first, last = max(0, first), min(groups, first + count)
            block = self.orders[index][first:last]
            weights = (self.sums[index][last] - self.sums[index][first]) / (last - first)
        chances = np.cumsum(weights + 1 / len(weights))
        changed, device = decision.copy(), int(np.searchsorted(chances, draw * chances[-1]))
        allowed = self.problem.allowed
        changed[block if allowed is None else block[allowed[block, device]]] = device
        return changed


class _Guided:
    """The whole evaluator, with the policy's moves."""

    def __init__(self, evaluator: Evaluator, moves: PolicyMoves) -> None:
        self._evaluator, self.problem = evaluator, moves

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)


def method_run(
    share: float = 0.25, start_from: Any = None, **arguments: Any
) -> Callable[[Evaluator, np.random.Generator], None]:
    """GDP followed by annealing, as a method of ``solve``: ``run(evaluator, rng)``.

    Args:
        share: of the budget (calls or seconds, what is spent first) for GDP; the rest is for annealing.
        start_from: a checkpoint to begin with; None: from scratch.
        arguments: fields of ``gdp.Args``.
    """
    fields.share("share", share)

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        trainer = Trainer.method_trainer(evaluator, rng, start_from, arguments)
        task = trainer.tasks[0]
        while evaluator.share_spent < share:
            trainer.update()
        with torch.no_grad():
            probs = trainer.network(task.graph).softmax(-1).double().numpy()
        moves = PolicyMoves(evaluator.problem, probs, task.blocks)

        def start(evaluator: Evaluator, rng: np.random.Generator) -> tuple[np.ndarray, float]:
            assert evaluator.best is not None
            return evaluator.best, evaluator.best_cost

        annealing_from(start)(_Guided(evaluator, moves), rng)  # type: ignore[arg-type]

    return run
