"""Searches in progress: the one implementation behind the scalar and the vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from graphopt_gym.envs.architecture.features import (
    TABLE,
    block_features,
    blocks_of,
    edge_features,
    legal,
    mutation_names,
)
from graphopt_gym.envs.architecture.instances import ArchitectureRoster, Instance
from graphopt_gym.envs.architecture.moves import mutate_block
from graphopt_gym.envs.architecture.problem import MOST_SHARE
from graphopt_gym.envs.core.episodes import Episodes, Result
from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice, whole

if TYPE_CHECKING:
    from graphopt_gym.envs.architecture.program import Architecture

REWARDS = ("cost", "hypervolume")
STARTS = ("seed", "random")


class ArchitectureEpisodes(Episodes[Instance]):
    """``count`` episodes on instances of a roster; see the environment for what is asked and told."""

    roster: ArchitectureRoster
    table = TABLE

    def __init__(
        self,
        roster: ArchitectureRoster,
        count: int,
        info: str = "full",
        max_steps: int = 16,
        reward: str = "cost",
        start: str = "seed",
    ) -> None:
        self.max_steps = self.longest = whole("max_steps", max_steps, 1)
        self.reward, self.start = choice("reward", reward, REWARDS), choice("start", start, STARTS)
        super().__init__(roster, count, info)
        self.action_space = spaces.Discrete(roster.sizes["A"])
        self.network: list[Any] = [None] * count  # where each stands
        self.best: list[Any] = [None] * count  # its best valid network, or, before there is one, the first
        self.now = [(0.0, 0.0, "")] * count  # (price, quality, why it is invalid) of the network
        self.best_cost, self.best_valid = np.zeros(count), np.zeros(count, np.bool_)
        self.steps, self.failed = np.zeros(count, np.int64), np.zeros(count, np.bool_)
        self.met: list[list[tuple[float, float]]] = [[] for _ in range(count)]  # (objective's share, quality)
        self.covered = np.zeros(count)

    # -- episodes --------------------------------------------------------------------------------------------------

    def _begin(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            problem = self.instance(row).problem
            network = problem.seed_decision if self.start == "seed" else problem.sample(self.generators[row])
            self.steps[row], self.failed[row], self.met[row], self.covered[row] = 0, False, [], 0.0
            self.best[row], self.best_cost[row], self.best_valid[row] = network, np.inf, False
            self._look(row, network, problem.judged([network])[0])

    def _look(self, row: int, network: Any, judged: tuple[float, float, str]) -> None:
        """The episode goes on from a network of this worth."""
        price, quality, reason = judged
        self.network[row], self.now[row] = network, judged
        better = price < self.best_cost[row] if self.best_valid[row] == (not reason) else not reason
        if better:
            self.best[row], self.best_cost[row], self.best_valid[row] = network, price, not reason
        if self.reward == "hypervolume" and quality > 0:
            self.met[row].append((self._share(row), quality))
            self.covered[row] = hypervolume(self.met[row])

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards, done, illegal = np.zeros(len(rows)), np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        masks = self.masks(rows)
        before = [self._worth(row) for row in rows.tolist()]
        children: dict[int, Any] = {}  # by the place in ``rows``
        for at, (row, action) in enumerate(zip(rows.tolist(), actions.tolist(), strict=True)):
            self.steps[row] += 1
            illegal[at] = not (0 <= action < masks.shape[1] and masks[at, action])
            child = None if illegal[at] or action == 0 else self._child(row, action - 1)
            self.failed[row] = child is None and action != 0
            if child is not None:
                children[at] = child
            done[at] = action == 0 or self.steps[row] >= self.max_steps
        for at, judged in zip(children, self._judged(rows, children), strict=True):
            self._look(int(rows[at]), children[at], judged)
        for at, row in enumerate(rows.tolist()):
            rewards[at] = self._worth(row) - before[at]
        return rewards, done, illegal

    def _judged(self, rows: np.ndarray, children: dict[int, Any]) -> Sequence[tuple[float, float, str]]:
        """What children are worth, those of one problem all together, so that workers train them side by side."""
        of_problem: dict[int, list[int]] = {}
        for at in children:
            of_problem.setdefault(int(self.instance_of[rows[at]]), []).append(at)
        found: dict[int, tuple[float, float, str]] = {}
        for index, places in of_problem.items():
            judged = self.instances[index].problem.judged([children[at] for at in places])
            found.update(zip(places, judged, strict=True))
        return [found[at] for at in children]

    def _worth(self, row: int) -> float:
        """What rewards are the gains of: minus the least cost of a valid network, or the hypervolume."""
        if self.reward == "hypervolume":
            return float(self.covered[row])
        return -float(self.best_cost[row])

    def _child(self, row: int, choice_: int) -> Any:
        """The network after a mutation of a block; None where it fails, or is too large."""
        problem, network = self.instance(row).problem, self.network[row]
        block, mutation = divmod(choice_, self.roster.mutations)
        if problem.track == "table":
            child = network.copy()
            child[block] = mutation
            return child
        name = blocks_of(problem, network)[block]
        child = mutate_block(network, name, mutation_names(problem)[mutation], self.generators[row])
        if child is None or child == network or len(child.blocks) > self.roster.max_blocks or problem.too_large(child):
            return None
        return child

    # -- what is seen ----------------------------------------------------------------------------------------------

    def masks(self, rows: np.ndarray) -> np.ndarray:
        most, kinds = self.roster.max_blocks, self.roster.mutations
        out = np.zeros((len(rows), 1 + most * kinds), np.bool_)
        out[:, 0] = True
        for at, row in enumerate(rows.tolist()):
            network = self.network[row]
            fits = np.zeros((most, kinds), np.bool_)
            if isinstance(network, np.ndarray):
                fits[: len(network), : self.instance(row).num_mutations] = True
                fits[np.arange(len(network)), network] = False  # what an edge has already
            else:
                found = legal(network, most)
                fits[: len(found), : found.shape[1]] = found
            out[at, 1:] = fits.ravel()
        return out

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        blocks = np.zeros((len(rows), *self.observation_shapes["blocks"]), np.float32)
        progress = np.zeros((len(rows), *self.observation_shapes["progress"]), np.float32)
        for at, row in enumerate(rows.tolist()):
            network = self.network[row]
            found = (
                edge_features(tuple(network.tolist())) if isinstance(network, np.ndarray) else block_features(network)
            )
            blocks[at, : len(found)] = found
            progress[at] = self._progress(row)
        mask = self.masks(rows).astype(np.int8)
        return {"blocks": blocks.reshape(len(rows), -1), "progress": progress, "action_mask": mask}

    def _progress(self, row: int) -> tuple[float, ...]:
        problem, (price, quality, reason) = self.instance(row).problem, self.now[row]
        share = price if not reason else self._share(row)
        best = float(self.best_cost[row])
        spare = quality - (problem.seed_quality - problem.tolerance)
        return (
            share / (1 + share), quality, 0.5 + 0.5 * spare, float(not reason),
            best / (1 + best), float(self.failed[row]),
            1 - self.steps[row] / self.max_steps,
        )  # fmt: skip

    def _share(self, row: int) -> float:
        """The objective of the network to the seed's; the most where it has none."""
        try:
            return self.instance(row).problem.objective_share(self.network[row])
        except InputError:
            return MOST_SHARE

    # -- what is told ----------------------------------------------------------------------------------------------

    def decision(self, row: int) -> Any:
        """The best valid network so far; before there is one, the best."""
        best: Any = self.best[row]
        return best.copy() if isinstance(best, np.ndarray) else best

    def current(self, row: int) -> Architecture:
        """The network that the next action changes."""
        return self.instance(row).problem.architecture(self.network[row])

    def begun(self, row: int) -> dict[str, Any]:
        problem = self.instance(row).problem
        parameters, flops = problem.seed_sizes
        return {"parameters": parameters, "flops": flops, "seed_quality": problem.seed_quality}

    def result(self, row: int) -> Result:
        problem = self.instance(row).problem
        valid = bool(self.best_valid[row])
        reasons = () if valid or self.light else self.outcome(row).reasons
        return Result(problem.encode_padded(self.best[row]), float(self.best_cost[row]), valid, reasons)

    def ended(self, row: int) -> dict[str, Any]:
        parameters, flops = self.instance(row).problem.sizes(self.best[row])
        return {"steps": int(self.steps[row]), "parameters": parameters, "flops": flops,
                "quality": self.instance(row).problem.quality(self.best[row]).value}  # fmt: skip


def hypervolume(points: Sequence[tuple[float, float]], most: float = MOST_SHARE) -> float:
    """The share of the rectangle from cost 0 to ``most`` and quality 0 to 1 that (cost, quality) points dominate."""
    total, reached = 0.0, 0.0
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if cost < most and quality > reached:
            total += (most - cost) * (quality - reached)
            reached = quality
    return total / most
