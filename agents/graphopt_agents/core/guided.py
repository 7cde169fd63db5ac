"""Local search after learning: annealing from the best decision found, with moves that the policy proposes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from graphopt_gym import fields
from graphopt_gym.search.evaluator import Evaluator
from graphopt_gym.search.methods import annealing_from


class Guided:
    """The whole evaluator, with other moves in the problem's place."""

    def __init__(self, evaluator: Evaluator, moves: Any) -> None:
        self._evaluator, self.problem = evaluator, moves

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)


def train_then_anneal(
    trainer_class: Any,
    make_moves: Callable[[Any, Any, np.ndarray], Any],
    share: float,
    start_from: Any,
    arguments: Mapping[str, Any],
) -> Callable[[Evaluator, np.random.Generator], None]:
    """A method of ``solve``: ``run(evaluator, rng)``.

    Args:
        trainer_class: of a one-shot agent.
        make_moves: the problem with the policy's moves, of (problem, task, probabilities float64 [N, C]).
        share: of the budget (calls or seconds, what is spent first) for learning; the rest is for annealing.
        start_from: a checkpoint to begin with; None: from scratch.
        arguments: of the trainer.

    Raises:
        InputError: ``share`` is none.
    """
    fields.share("share", share)

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        trainer = trainer_class.method_trainer(evaluator, rng, start_from, arguments)
        task = trainer.tasks[0]
        while evaluator.share_spent < share:
            trainer.update()
        with torch.no_grad():
            probs = trainer.network(task.graph).softmax(-1).double().numpy()
        moves = make_moves(evaluator.problem, task, probs)

        def start(evaluator: Evaluator, rng: np.random.Generator) -> tuple[np.ndarray, float]:
            assert evaluator.best is not None
            return evaluator.best, evaluator.best_cost

        annealing_from(start)(Guided(evaluator, moves), rng)  # type: ignore[arg-type]

    return run
