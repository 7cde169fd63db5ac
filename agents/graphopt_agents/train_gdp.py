"""Train GDP's policy on one or several graphs: one file, top to bottom.

    python -m graphopt_agents.train_gdp --graphs bert_base --clusters v100x4 --out runs/bert
    python -m graphopt_agents.train_gdp --graphs rnnlm_2layer,gpt2_small --clusters v100x2,v100x4 --out runs/two

An update takes a few (graph, cluster) pairs; for each it draws a batch of placements from the policy, has the
simulator price them in one call (on all cores), and takes a few steps of PPO with the ratio clipped for each group by
itself (``gdp`` says why). Everything is seeded: the same arguments give the same numbers, and a run that was stopped
goes on exactly as if it had not been.

What GDP does [recalled]: reward ``-sqrt(step time)``, -10 for a placement that does not fit in memory; the mean reward
of the graph's earlier trials as baseline; PPO. All of it is here as ``paper_arguments()``. What learns better, and is
the default (ours): the rank of a reward in its batch as the advantage, placements without room priced by
``PlacementProblem.costs`` (so that less overflow is better; under ranks the scale of the price does not matter),
placements drawn in blocks (``gdp.draw_placements``), and the best few placements of a graph so far among each batch,
together with placements that change one block of them (``gdp.mutate_placements``). The policy learns from those as if
it had drawn them, with the same clipped ratio: a mix of PPO with self-imitation. Each is one evaluation like any other.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphopt_agents import checkpoints
from graphopt_agents.gdp import Blocks, check_share, draw_placements, mutate_placements
from graphopt_agents.networks import GraphInput, NetworkConfig, PlacementNetwork
from graphopt_gym.envs.placement.instances import Instance, load_instance
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.files import write_text
from graphopt_gym.graphs.zoo.registry import ZOO, graphs_in, own_cluster
from graphopt_gym.problem import Solution
from graphopt_gym.search.methods import good_start
from graphopt_gym.search.solve import Evaluator

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.instances import ClusterLike, GraphLike

AGENT = "gdp"
REWARDS, ADVANTAGES = ("priced", "papers"), ("rank", "baseline")
INVALID_REWARD = -10.0
MAX_DEVICES = 16  # places of devices are told apart by waves that are too slow for more
MOVED_TOGETHER = 8  # placements changed by the problem's moves that are priced together
MEMORY_ROUNDS = 50  # of within_memory, at most
PLACE_BATCH = 4  # changed placements that are priced together when a graph is placed
SCALARS = ("mean_reward", "entropy", "best_cost_s", "mean_cost_s", "valid_share", "divergence", "evaluations")
FREE_ARGUMENTS = ("updates", "checkpoint_every")  # may differ when a run goes on

Costs = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # decisions [B, G] -> (cost [B], valid [B])


@dataclass(frozen=True)
class Args(NetworkConfig):
    """What a run depends on, beside the fields of :class:`NetworkConfig`; stored with the checkpoint."""

    graphs: tuple[str, ...] = ("bert_base",)  # names, paths, and splits of the zoo, which become their graphs' names
    clusters: tuple[str, ...] = ()  # one for all graphs, or one for each; none: each graph's own, see own_cluster
    grouping: str = "colocation"  # or "op"
    seed: int = 0
    updates: int = 200
    samples: int = 64  # placements of a graph in an update, each one simulator evaluation
    graphs_per_update: int = 4  # at most; each graph in turn
    epochs: int = 2  # PPO steps an update
    learning_rate: float = 5e-4
    clip: float = 0.2
    entropy: float = 0.01  # bonus for the mean entropy of a group
    max_grad_norm: float = 1.0
    reward: str = "priced"  # or "papers": -10 where a placement does not fit
    advantage: str = "rank"  # in the batch; or "baseline": reward minus the mean of the graph's earlier trials
    independent: float = 0.3  # share of placements drawn group by group, the others in blocks
    canonical: bool = True  # like devices are named in the order of their groups, see Task.canonical
    starts: bool = True  # the first of a graph's elites are the placements of cheap heuristics, one evaluation each
    mutants: float = 0.75  # share of placements that change a block of one of the best
    moved: float = 0.5  # share of those that change by the problem's own moves, as a local search does
    imitation: float = 0.0  # weight of the log-likelihood of a graph's best placement so far, besides PPO's gain
    elites: int = 8  # the best placements of a graph so far, learned from in each of its updates
    checkpoint_every: int = 20  # updates

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("graphs", "clusters"):
            given = getattr(self, name)
            if not isinstance(given, str | list | tuple):
                raise InputError(f"{name} is {given!r}; give names with commas between them")
            listed = [str(one).strip() for one in (given.split(",") if isinstance(given, str) else given)]
            object.__setattr__(self, name, tuple(one for one in listed if one))
        if not self.graphs:
            raise InputError("graphs is an empty list; name at least one graph")
        object.__setattr__(self, "graphs", graphs_in(self.graphs))
        if not self.clusters:
            object.__setattr__(self, "clusters", tuple(map(own_cluster, self.graphs)))
        if len(self.clusters) not in (1, len(self.graphs)):
            raise InputError(
                f"clusters has {len(self.clusters)} entries for {len(self.graphs)} graphs; give one, or one for each"
            )
        least = {"seed": 0, "updates": 1, "samples": 2, "graphs_per_update": 1, "epochs": 1, "elites": 0}
        for name, low in {**least, "checkpoint_every": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(f"{name} is {value!r}; give a whole number, at least {low}")
        for name in ("learning_rate", "clip", "max_grad_norm"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value!r}; give a number above 0")
        for one in dataclasses.fields(self):
            if one.type == "bool" and not isinstance(getattr(self, one.name), bool):
                raise InputError(f"{one.name} is {getattr(self, one.name)!r}; give true or false")
        for name in ("entropy", "imitation"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value!r}; give a number, at least 0")
        check_share("independent", self.independent)
        check_share("mutants", self.mutants)
        check_share("moved", self.moved)
        if self.elites and round(self.samples * self.mutants) == self.samples:
            raise InputError(
                f"mutants is {self.mutants}, which leaves none of {self.samples} samples to the policy; give a smaller "
                "share, or more samples"
            )
        if self.reward not in REWARDS:
            raise unknown_name("reward", self.reward, REWARDS)
        if self.advantage not in ADVANTAGES:
            raise unknown_name("advantage", self.advantage, ADVANTAGES)

    def each_cluster(self) -> tuple[str, ...]:
        """The cluster of each graph."""
        return self.clusters * len(self.graphs) if len(self.clusters) == 1 else self.clusters

    def network(self) -> NetworkConfig:
        return NetworkConfig(**{name.name: getattr(self, name.name) for name in dataclasses.fields(NetworkConfig)})

    def json(self) -> dict[str, Any]:
        """As JSON has it: lists in place of tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def paper_arguments() -> dict[str, Any]:
    """The arguments that follow GDP where its choices are known [recalled]."""
    return {
        "reward": "papers",
        "advantage": "baseline",
        "independent": 1.0,
        "canonical": False,
        "starts": False,
        "mutants": 0.0,
        "elites": 0,
        "use_times": False,
        "waves": 0,
    }


def args_from(given: dict[str, Any]) -> Args:
    """Arguments from a dictionary. Raises InputError for an unknown name, with the nearest known one."""
    known = [one.name for one in dataclasses.fields(Args)]
    for name in given:
        if name not in known:
            raise unknown_name("argument of gdp", name, known)
    return Args(**given)


@dataclass
class Task:
    """One graph on one cluster, and what the run knows of it."""

    instance: Instance
    graph: GraphInput
    price: Costs
    blocks: Blocks
    modules: torch.Tensor  # int64 [G], see Instance.module_of_group
    trials: int = 0
    reward_mean: float = 0.0  # of the trials
    best: np.ndarray | None = None  # int32 [G]
    best_cost: float = math.inf
    best_valid: bool = False
    improved: list[tuple[int, float, float]] = field(default_factory=list)  # (evaluations, seconds, cost) of valid ones
    elites: list[tuple[float, float, np.ndarray]] = field(default_factory=list)  # (cost, reward, decision), best first

    @property
    def name(self) -> str:
        problem = self.instance.problem
        return f"{problem.graph.name}@{problem.cluster.name}"

    def evaluate(self, decisions: np.ndarray, wall_s: float, before: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(costs, valid) of decisions int32 [B, G]; remembers the best. ``before``: trials not counted yet."""
        costs, valid = self.price(decisions)
        for row in np.lexsort((costs, ~valid))[:1].tolist():
            better = costs[row] < self.best_cost if valid[row] == self.best_valid else bool(valid[row])
            if better:
                self.best, self.best_cost, self.best_valid = decisions[row].copy(), float(costs[row]), bool(valid[row])
                if self.best_valid:
                    self.improved.append((self.trials + before + row + 1, wall_s, self.best_cost))
        return costs, valid

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [G] each: the time of each group, and that times its place in the last of the blocks' orders."""
        weight = np.maximum(self.instance.tables.duration_s[:, :-1].min(axis=0), 1e-15)
        place = np.argsort(self.blocks.orders[-1].numpy()) / self.instance.num_groups
        return weight, weight * place

    def canonical(self, decisions: np.ndarray) -> np.ndarray:
        """int32 [B, G]: the same placements with interchangeable devices named in the order of their groups.

        A placement and the one with two like devices exchanged cost the same; to a policy they are opposites, and what
        it learns from one it unlearns from the other. The first of them is now the one whose groups come first on
        average, weighed by their time.
        """
        devices, kinds = self.instance.num_devices, self.instance.problem.cluster.interchangeable
        rows = len(decisions)
        flat = (decisions + devices * np.arange(rows)[:, None]).ravel()
        weight, weighted = (
            np.bincount(flat, np.tile(one, rows), rows * devices).reshape(rows, devices) for one in self._weights
        )
        place = np.divide(weighted, weight, out=np.full_like(weight, np.inf), where=weight > 0)
        names = np.tile(np.arange(devices, dtype=np.int32), (rows, 1))
        for kind in range(int(kinds.max()) + 1):
            members = np.flatnonzero(kinds == kind).astype(np.int32)
            order = members[np.argsort(place[:, members], axis=1, kind="stable")]
            np.put_along_axis(names, order, members[None], axis=1)
        return np.take_along_axis(names, decisions.astype(np.int64), axis=1)

    def keep_elites(self, decisions: np.ndarray, costs: np.ndarray, rewards: np.ndarray, count: int) -> None:
        """Take decisions int32 [B, G] into the best ``count`` different ones so far."""
        if not count:
            return
        kept: list[tuple[float, float, np.ndarray]] = []
        rows = [(float(costs[row]), float(rewards[row]), decisions[row]) for row in range(len(costs))]
        for one in sorted(self.elites + rows, key=lambda one: one[0]):  # stable: earlier ones first
            if all(one[0] != other[0] or not np.array_equal(one[2], other[2]) for other in kept):
                kept.append(one)
            if len(kept) == count:
                break
        self.elites = kept

    def count(self, rewards: np.ndarray) -> None:
        """Take trials into the mean reward."""
        total = self.trials + len(rewards)
        self.reward_mean = (self.reward_mean * self.trials + float(rewards.sum())) / total
        self.trials = total


def make_task(graph: GraphLike, cluster: ClusterLike, grouping: str = "colocation", price: Costs | None = None) -> Task:
    """A task to train on or to place.

    Raises:
        InputError: unknown names, or a cluster that the network cannot serve.
    """
    return task_of(load_instance(graph, cluster, grouping, None), price)


def task_of(instance: Instance, price: Costs | None = None) -> Task:
    """A task of an instance; ``price`` in place of its problem's ``costs``."""
    cluster = instance.problem.cluster
    if not 1 <= instance.num_devices <= MAX_DEVICES:
        raise InputError(
            f"cluster {cluster.name!r} has {instance.num_devices} devices, the network serves 1 to {MAX_DEVICES}; "
            "give a smaller one"
        )
    graph, price = GraphInput.from_instance(instance), price or instance.problem.costs
    return Task(instance, graph, price, Blocks.of(instance), torch.from_numpy(instance.module_of_group))


class Trainer:
    """The state of a run, and one update of it. Give tasks with different names."""

    def __init__(self, args: Args, tasks: Sequence[Task], network: PlacementNetwork | None = None) -> None:
        if not tasks:
            raise InputError("graphs is an empty list; name at least one graph")
        self.args = args
        self.tasks = list(tasks)
        names = [task.name for task in self.tasks]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two tasks are {name!r}; name each graph on a cluster once")
        if network is None:
            with torch.random.fork_rng(devices=[]):  # a caller's own random numbers stay as they are
                torch.manual_seed(args.seed)
                network = PlacementNetwork(args.network())
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.rng = np.random.default_rng(args.seed)
        self.queue: list[int] = []  # tasks not yet taken in this round
        self.updates = 0
        self.wall_before_s = 0.0
        self.started = time.perf_counter()
        self.curve: list[dict[str, Any]] = []

    @property
    def wall_s(self) -> float:
        return self.wall_before_s + time.perf_counter() - self.started

    @property
    def evaluations(self) -> int:
        return sum(task.trials for task in self.tasks)

    def _next_tasks(self) -> list[Task]:
        chosen: list[int] = []
        while len(chosen) < min(self.args.graphs_per_update, len(self.tasks)):
            if not self.queue:
                self.queue = self.rng.permutation(len(self.tasks)).tolist()
            chosen.append(self.queue.pop())
        return [self.tasks[index] for index in dict.fromkeys(chosen)]

    def update(self) -> list[dict[str, Any]]:
        """One update on the next few tasks; returns a row of the learning curve for each."""
        args = self.args
        batches, rows = [], []
        for task in self._next_tasks():
            if args.starts and args.elites and not task.trials:
                self._start(task)
            with torch.no_grad():
                old = self.network(task.graph).log_softmax(-1)
            actions, costs, valid = self._try(task, old)
            rewards = self._rewards(costs, valid)
            task.keep_elites(actions, costs, rewards, args.elites)
            actions, advantages = self._with_elites(task, actions, rewards)
            task.count(rewards)
            tensor = torch.from_numpy(actions).long()
            chosen = old.gather(1, tensor.t())  # [G, samples]
            batches.append((task, tensor.t().contiguous(), torch.from_numpy(advantages).float(), chosen))
            rows.append(
                {
                    "update": self.updates + 1,
                    "graph": task.instance.problem.graph.name,
                    "cluster": task.instance.problem.cluster.name,
                    "evaluations": task.trials,
                    "mean_cost_s": float(costs.mean()),
                    "mean_reward": float(rewards.mean()),
                    "valid_share": float(valid.mean()),
                    "best_cost_s": task.best_cost if task.best_valid else None,
                }
            )
        for _ in range(args.epochs):
            self.optimizer.zero_grad()
            for (task, actions_t, advantages_t, before), row in zip(batches, rows, strict=True):
                logits = self.network(task.graph)
                loss, measures = ppo_loss(logits, actions_t, advantages_t, before, args.clip, args.entropy)
                if args.imitation and task.elites:
                    best = torch.from_numpy(task.elites[0][2]).long()
                    loss = loss + args.imitation * torch.nn.functional.cross_entropy(logits, best)
                (loss / len(batches)).backward()
                row |= measures
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), args.max_grad_norm)
            self.optimizer.step()
        self.updates += 1
        for row in rows:
            row["wall_s"] = self.wall_s
        self.curve += rows
        return rows

    def _start(self, task: Task) -> None:
        """Have the heuristics that local searches start from place the graph."""
        evaluator = _Starts(task, self.wall_s)
        good_start(evaluator, self.rng)
        costs, valid = (np.concatenate(part) for part in zip(*evaluator.prices, strict=True))
        rewards = self._rewards(costs, valid)
        decisions = self._named(task, np.concatenate(evaluator.tried))
        task.keep_elites(decisions, costs, rewards, self.args.elites)
        task.count(rewards)

    def _rewards(self, costs: np.ndarray, valid: np.ndarray) -> np.ndarray:
        rewards = -np.sqrt(costs)
        return np.where(valid, rewards, INVALID_REWARD) if self.args.reward == "papers" else rewards

    def _try(self, task: Task, log_probs: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(int32 [samples, G], costs, valid): placements from the policy, and changed ones of the best so far."""
        args = self.args
        mutants = round(args.samples * args.mutants) if task.elites else 0
        moved = round(mutants * args.moved)
        drawn = draw_placements(log_probs, args.samples - mutants, self.generator, task.blocks, args.independent)
        if moved < mutants:
            best = torch.from_numpy(np.stack([one[2] for one in task.elites])).long()
            changed = mutate_placements(best, log_probs, mutants - moved, self.generator, task.blocks)
            drawn = torch.cat([drawn, changed])
        tried = [self._named(task, drawn.numpy().astype(np.int32))]
        prices = [task.evaluate(tried[0], self.wall_s)]
        while moved > 0:  # a few at a time, so that one can build on another
            task.keep_elites(tried[-1], prices[-1][0], self._rewards(*prices[-1]), args.elites)
            tried.append(self._moved(task, min(moved, MOVED_TOGETHER)))
            prices.append(task.evaluate(tried[-1], self.wall_s, sum(map(len, tried[:-1]))))
            moved -= len(tried[-1])
        costs, valid = (np.concatenate(part) for part in zip(*prices, strict=True))
        return np.concatenate(tried), costs, valid

    def _moved(self, task: Task, count: int) -> np.ndarray:
        """int32 [count, G]: one of the task's best each, better ones more often, after one to three moves of its own
        problem."""
        rows = []
        for _ in range(count):
            row = task.elites[int(len(task.elites) * self.rng.random() ** 2)][2]
            for _ in range(int(self.rng.integers(1, 4))):
                row = task.instance.problem.neighbour(row, self.rng)
            rows.append(row)
        return self._named(task, np.stack(rows))

    def _named(self, task: Task, decisions: np.ndarray) -> np.ndarray:
        return task.canonical(decisions) if self.args.canonical else decisions

    def _with_elites(self, task: Task, actions: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The batch with the task's best placements so far, and an advantage for each row."""
        if task.elites:
            actions = np.concatenate([actions, [one[2] for one in task.elites]])
            rewards = np.concatenate([rewards, [one[1] for one in task.elites]])
        if self.args.advantage == "rank":
            return actions, rank_advantages(rewards)
        baseline = task.reward_mean if task.trials else float(rewards.mean())
        return actions, (rewards - baseline) / (rewards.std() + 1e-8)

    def state(self) -> dict[str, Any]:
        """All that the next update depends on, as plain containers and tensors."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": json.dumps(self.rng.bit_generator.state),  # holds 128-bit integers
            "queue": list(self.queue),
            "updates": self.updates,
            "wall_s": self.wall_s,
            "curve": json.dumps(self.curve),
            "tasks": {
                task.name: {
                    "trials": task.trials,
                    "reward_mean": task.reward_mean,
                    "best": None if task.best is None else torch.from_numpy(task.best),
                    "best_cost": task.best_cost,
                    "best_valid": task.best_valid,
                    "improved": [list(row) for row in task.improved],
                    "elites": [(cost, reward, torch.from_numpy(one)) for cost, reward, one in task.elites],
                }
                for task in self.tasks
            },
        }

    def restore(self, state: dict[str, Any], where: str) -> None:
        """Go on from :meth:`state`.

        Raises:
            InputError: it is incomplete or of other graphs.
        """
        checkpoints.load_weights(self.network, state.get("network", {}), where)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            self.rng.bit_generator.state = json.loads(state["rng"])
            self.queue, self.updates = [int(index) for index in state["queue"]], int(state["updates"])
            self.curve = list(json.loads(state["curve"]))
            self.wall_before_s, self.started = float(state["wall_s"]), time.perf_counter()
            for task in self.tasks:
                kept = state["tasks"][task.name]
                task.trials, task.reward_mean = int(kept["trials"]), float(kept["reward_mean"])
                task.best = None if kept["best"] is None else task.instance.problem.check(kept["best"].numpy())
                task.best_cost, task.best_valid = float(kept["best_cost"]), bool(kept["best_valid"])
                task.improved = [(int(row[0]), float(row[1]), float(row[2])) for row in kept["improved"]]
                task.elites = [
                    (float(cost), float(reward), task.instance.problem.check(one.numpy()))
                    for cost, reward, one in kept["elites"]
                ]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise InputError(f"{where!r} is damaged, or of other graphs ({error}); train into another folder") from None


class _Starts(Evaluator):
    """What heuristics propose to: prices as trials of a task."""

    def __init__(self, task: Task, wall_s: float) -> None:
        super().__init__(task.instance.problem, budget=10**9)
        self.task, self.at = task, wall_s
        self.tried: list[np.ndarray] = []
        self.prices: list[tuple[np.ndarray, np.ndarray]] = []

    def price(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.prices.append(self.task.evaluate(decisions, self.at, self.evaluations))
        self.tried.append(decisions)
        return self.prices[-1]


def ppo_loss(
    logits: torch.Tensor,
    actions: torch.Tensor,
    advantages: torch.Tensor,
    before: torch.Tensor,
    clip: float,
    entropy: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO's clipped loss with one ratio for each group of each placement, and the entropy bonus.

    Args:
        logits: float32 [G, D].
        actions: int64 [G, B] placements; ``before``: float32 [G, B], their log-probabilities when drawn.
        advantages: float32 [B], the same for all groups of a placement.

    Returns:
        The loss, and measures for the learning curve: mean entropy of a group, share of clipped ratios, divergence.
    """
    log_probs = logits.log_softmax(-1)
    log_ratio = log_probs.gather(1, actions) - before
    ratio = log_ratio.exp()
    gain = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()
    mean_entropy = -(log_probs.exp() * log_probs).sum(1).mean()
    with torch.no_grad():
        measures = {
            "entropy": float(mean_entropy),
            "clipped_share": float(((ratio - 1).abs() > clip).float().mean()),
            "divergence": float((ratio - 1 - log_ratio).mean()),
        }
    return -gain - entropy * mean_entropy, measures


def rank_advantages(rewards: np.ndarray) -> np.ndarray:
    """float64 [B]: ranks of the rewards (equal rewards share theirs), of mean 0 and at most sqrt(3) apart from it.

    Ranks, because rewards have a long tail: one placement that overflows would drown all differences among the good.
    """
    _, inverse, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2  # mean of the ranks 0.. that equal rewards share
    centred = middle[inverse] - (len(rewards) - 1) / 2
    return centred * (2 * math.sqrt(3) / max(1, len(rewards) - 1))


@dataclass
class TrainResult:
    """What came out of a run: ``solutions`` holds the best placement of each task, in order."""

    args: Args
    network: PlacementNetwork
    tasks: list[Task]
    curve: list[dict[str, Any]]
    updates: int
    evaluations: int
    wall_s: float
    interrupted: bool

    def solutions(self) -> list[Solution]:
        """The best placement of each task, as ``solve`` returns it and ``validate`` checks it."""
        return [_solution(task, AGENT, self.args.seed, self.wall_s) for task in self.tasks if task.best is not None]

    def solution(self) -> Solution:
        """The best placement of the first task."""
        return self.solutions()[0]


def train(
    args: Args,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    progress: Callable[[dict[str, Any]], None] | None = None,
    start_from: str | os.PathLike[str] | None = None,
) -> TrainResult:
    """Train on the graphs of ``args``.

    Args:
        args: see :class:`Args`.
        out: folder of the run: ``checkpoint.pt``, ``curve.csv``, ``curve.json`` and one solution a task; None:
            nothing is written.
        resume: go on with the run in ``out``, exactly, up to ``args.updates``.
        progress: called with each row of the curve.
        start_from: a checkpoint whose network to start from (fine-tuning); optimiser and counts start anew.

    Ctrl-C ends the run after the update under way, with everything written; a second one at once.

    Raises:
        InputError: bad arguments; a folder that cannot be written, holds a run already, or another one; a checkpoint
            that cannot be read; a cluster that the network cannot serve.
    """
    folder = None if out is None else checkpoints.run_folder(out, resume)
    kept = None
    if resume:
        if folder is None:
            raise InputError("resume needs the folder of the run; give --out")
        kept = checkpoints.load_checkpoint(folder, AGENT)
        checkpoints.same_arguments(args.json(), kept.args, str(folder), FREE_ARGUMENTS)
    tasks = [
        make_task(graph, cluster, args.grouping)
        for graph, cluster in zip(args.graphs, args.each_cluster(), strict=True)
    ]
    network = None
    if start_from is not None:
        network = load_network(start_from)
        if network.config != args.network():
            raise InputError(
                f"{str(start_from)!r} holds a network of other sizes than the arguments name; leave them out"
            )
    trainer = Trainer(args, tasks, network)
    if kept is not None:
        assert folder is not None
        prints = {task.name: task.instance.problem.fingerprints() for task in tasks}
        if kept.facts.get("fingerprints") != prints:
            raise InputError(f"{str(folder)!r} was trained on other graphs, clusters or op times; use another folder")
        trainer.restore(kept.state, str(folder))
    with _stop_on_interrupt() as stopped, _tensorboard(folder, trainer.updates + 1) as board:
        while trainer.updates < args.updates and not stopped():
            rows = trainer.update()
            for row in rows:
                if progress:
                    progress(row)
                if board:
                    for name in SCALARS:
                        if row[name] is not None:
                            board.add_scalar(f"{row['graph']}@{row['cluster']}/{name}", row[name], row["update"])
            if folder is not None and trainer.updates % args.checkpoint_every == 0 and trainer.updates < args.updates:
                save(folder, trainer)
        interrupted = trainer.updates < args.updates
        if folder is not None:
            save(folder, trainer)
    return TrainResult(
        args, trainer.network, tasks, trainer.curve, trainer.updates, trainer.evaluations, trainer.wall_s, interrupted
    )


def save(folder: Path, trainer: Trainer) -> None:
    """Write the run: solutions and curve, and last the checkpoint."""
    for task in trainer.tasks:
        if task.best is not None:
            name = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in task.name)
            _solution(task, AGENT, trainer.args.seed, trainer.wall_s).save(folder / f"solution_{name}.json")
    text = io.StringIO()
    columns = list(trainer.curve[0]) if trainer.curve else ["update"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(trainer.curve)
    write_text(folder / "curve.csv", text.getvalue())
    document = {"agent": AGENT, "args": trainer.args.json(), "libraries": checkpoints.library_versions()}
    write_text(folder / "curve.json", json.dumps({**document, "rows": trainer.curve}) + "\n")
    facts = {"fingerprints": {task.name: task.instance.problem.fingerprints() for task in trainer.tasks}}
    where = folder / checkpoints.CHECKPOINT_NAME
    checkpoints.save_checkpoint(where, AGENT, trainer.args.json(), trainer.state(), facts)


def load_network(path: str | os.PathLike[str]) -> PlacementNetwork:
    """The network of a checkpoint.

    Raises:
        InputError: see :func:`checkpoints.load_checkpoint`; weights that do not fit its arguments.
    """
    kept = checkpoints.load_checkpoint(path, AGENT)
    try:
        known = [one.name for one in dataclasses.fields(NetworkConfig)]
        config = NetworkConfig(**{name: kept.args[name] for name in known})
    except (KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} is damaged: its arguments are incomplete ({error}); train again") from None
    network = PlacementNetwork(config)
    checkpoints.load_weights(network, kept.state.get("network", {}), str(path))
    return network


def start_arguments(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The sizes of a checkpoint's network, which a run that starts from it takes over."""
    return dataclasses.asdict(load_network(path).config)


def place(network: PlacementNetwork, task: Task, samples: int = 1, seed: int = 0) -> Solution:
    """Place a graph with a trained network as it is, no weight of it changed (zero-shot).

    Args:
        samples: simulator evaluations in all. The first is the likeliest placement where each module is in one piece:
            a module's groups, such as the steps of an unrolled layer, go where the mean of their log-probabilities is
            highest. The second is the likeliest device of each group by itself. Where the policy might fill a device
            beyond its memory, the next two are the same of :func:`within_memory`. The rest change a block of the best
            so far, as in training, :data:`PLACE_BATCH` at a time.

    The best of them.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples is {samples!r}; give a whole number, at least 1")
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        log_probs = network(task.graph).log_softmax(-1)
    lighter = within_memory(log_probs, task)
    likeliest = [log_probs] if torch.equal(lighter, log_probs) else [log_probs, lighter]
    likeliest = [one for policy in likeliest for one in (module_mean(policy, task.modules), policy)]
    tried = torch.stack([one.argmax(1) for one in likeliest])[:samples]
    costs = np.concatenate([_price(task, one, started) for one in tried.split(1)])
    while len(tried) < samples:
        best = tried[int(np.argmin(costs))][None]
        changed = mutate_placements(best, lighter, min(PLACE_BATCH, samples - len(tried)), generator, task.blocks)
        tried, costs = torch.cat([tried, changed]), np.append(costs, _price(task, changed, started))
    return _solution(task, f"{AGENT} zero-shot", seed, time.perf_counter() - started)


def within_memory(log_probs: torch.Tensor, task: Task) -> torch.Tensor:
    """float32 [G, D]: a policy, its full devices made less likely until what they are expected to hold fits.

    What is held: parameters, state and activations as if all were there at once, which is more than ever are; where it
    is more than all devices have, the limit is a fair share of it and a tenth. No simulator call is spent. A policy
    that fits is left alone.
    """
    tables = task.instance.tables
    held = torch.from_numpy(tables.persistent_bytes + tables.activation_bytes)[:-1]
    capacity = torch.from_numpy(tables.capacity_bytes)
    limit = capacity * max(1.0, 1.1 * float(held.sum() / capacity.sum()))
    for _ in range(MEMORY_ROUNDS):
        filled = (held @ log_probs.double().exp()) / limit
        if filled.max() <= 1:
            break
        log_probs = (log_probs - filled.clamp(min=1).log().float()).log_softmax(-1)
    return log_probs


def _price(task: Task, placements: torch.Tensor, started: float) -> np.ndarray:
    """float64 [B]: the costs of placements, which count as trials of the task."""
    costs, _ = task.evaluate(placements.numpy().astype(np.int32), time.perf_counter() - started)
    task.count(-np.sqrt(costs))
    return costs


def module_mean(log_probs: torch.Tensor, modules: torch.Tensor) -> torch.Tensor:
    """float32 [G, D]: the mean over the groups of each group's module, of ``log_probs`` float32 [G, D].

    ``modules``: int64 [G], the module of each group, 0 to M - 1.
    """
    count = torch.bincount(modules).unsqueeze(1)
    total = log_probs.new_zeros(len(count), log_probs.shape[1]).index_add_(0, modules, log_probs)
    return (total / count)[modules]


def evaluate(
    checkpoint: str | os.PathLike[str],
    graph: GraphLike | None = None,
    cluster: ClusterLike | None = None,
    *,
    samples: int = 1,
    updates: int = 0,
    seed: int = 0,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Solution:
    """Place one graph with a trained policy, zero-shot or after fine-tuning on it.

    Args:
        checkpoint: the folder or file that training wrote.
        graph: the first of its own where left out.
        cluster: where left out, the one that it was trained on with this graph, else the graph's own (a graph of a
            paper), else the first that it was trained on.
        samples: evaluations of zero-shot placement.
        updates: of fine-tuning, each of the checkpoint's ``samples``; 0: none.
        progress: called with each row of the fine-tuning's curve.

    Raises:
        InputError: see :func:`load_network`, :func:`make_task`.
    """
    kept = checkpoints.load_checkpoint(checkpoint, AGENT)
    try:
        given = args_from(kept.args)
    except (InputError, TypeError) as error:
        raise InputError(f"{str(checkpoint)!r} was written by another version: {error}; train again") from None
    for name, value in (("updates", updates), ("seed", seed)):
        if value < 0:
            raise InputError(f"{name} is {value!r}; give a whole number, at least 0")
    graph = given.graphs[0] if graph is None else graph
    if cluster is None:
        trained = dict(zip(reversed(given.graphs), reversed(given.each_cluster()), strict=True))
        paper = ZOO[graph].cluster if isinstance(graph, str) and graph in ZOO else None
        cluster = (trained.get(graph) if isinstance(graph, str) else None) or paper or given.clusters[0]
    task = make_task(graph, cluster, given.grouping)
    network = load_network(checkpoint)
    if not updates:
        return place(network, task, samples, seed)
    return fine_tune(network, task, dataclasses.replace(given, seed=seed, updates=updates), progress)


def fine_tune(
    network: PlacementNetwork, task: Task, args: Args, progress: Callable[[dict[str, Any]], None] | None = None
) -> Solution:
    """Train a network (changed in place) on one task for ``args.updates``; the best placement on the way.

    The likeliest placement before the first update is evaluated too.
    """
    started = time.perf_counter()
    trainer = Trainer(args, [task], network)
    place(network, task)
    with _stop_on_interrupt() as stopped:
        while trainer.updates < args.updates and not stopped():
            for row in trainer.update():
                if progress:
                    progress(row)
    return _solution(task, f"{AGENT} fine-tuned", args.seed, time.perf_counter() - started)


def method_trainer(
    evaluator: Evaluator,
    rng: np.random.Generator,
    start_from: str | os.PathLike[str] | None,
    arguments: Mapping[str, Any],
) -> Trainer:
    """A trainer on an evaluator's problem, which prices and counts its placements; see :func:`method_run`."""
    given = {"seed": int(rng.integers(2**31)), **arguments}
    network = None
    if start_from is not None:
        network = load_network(start_from)
        given = {**dataclasses.asdict(network.config), **given}
    args = args_from(given)
    if args.reward != "priced":
        raise InputError("gdp as a method learns from priced placements; leave reward out")
    task = task_of(Instance(evaluator.problem), evaluator.costs_and_valid)  # type: ignore[arg-type]
    return Trainer(args, [task], network)


def method_run(
    start_from: str | os.PathLike[str] | None = None, **arguments: Any
) -> Callable[[Evaluator, np.random.Generator], None]:
    """GDP on one problem, from scratch or from a checkpoint, as a method of ``solve``: ``run(evaluator, rng)``.

    It trains until the evaluator's budget is spent. ``arguments``: fields of :class:`Args`.
    """

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        trainer = method_trainer(evaluator, rng, start_from, arguments)
        while evaluator.left > 0:
            trainer.update()

    return run


def _solution(task: Task, method: str, seed: int, wall_s: float) -> Solution:
    assert task.best is not None
    problem = task.instance.problem
    return Solution(
        problem, method, seed, task.best, problem.evaluate(task.best), task.trials, wall_s, tuple(task.improved)
    )


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a request to stop; the second one interrupts as usual."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        os.write(2, b"stopping after this update; Ctrl-C again stops at once, without it\n")  # print is not reentrant

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield lambda: asked
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _tensorboard(folder: Path | None, update: int) -> contextlib.AbstractContextManager[Any]:
    """A writer into the run's folder, or of None where TensorBoard is not installed.

    What is logged there of ``update`` and later ones, by a run that was killed after its last checkpoint, is void.
    """
    if folder is None:
        return contextlib.nullcontext()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return contextlib.nullcontext()
    return SummaryWriter(str(folder / "tensorboard"), purge_step=update)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train GDP's placement policy.")
    for entry in dataclasses.fields(Args):
        kind: Any = {"int": int, "float": float}.get(str(entry.type), str)
        if entry.type == "bool":
            kind = {"true": True, "false": False}.__getitem__
        default = ",".join(entry.default) if isinstance(entry.default, tuple) else entry.default
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, default=default)
    parser.add_argument("--out", default=None, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--start-from", default=None, help="a checkpoint to fine-tune")
    given = vars(parser.parse_args())
    out, resume, start_from = given.pop("out"), given.pop("resume"), given.pop("start_from")
    try:
        if start_from:
            sizes = start_arguments(start_from)
            given |= {name: size for name, size in sizes.items() if given[name] == parser.get_default(name)}
        args = args_from(given)
        from tqdm import tqdm

        with tqdm(total=args.updates, unit="update", dynamic_ncols=True) as bar:

            def show(row: dict[str, Any]) -> None:
                best = "none valid" if row["best_cost_s"] is None else f"{row['best_cost_s'] * 1e3:.2f} ms"
                mean, entropy = row["mean_cost_s"] * 1e3, row["entropy"]
                bar.set_postfix_str(f"{row['graph']}: best {best}, mean {mean:.1f} ms, entropy {entropy:.2f}")
                bar.update(row["update"] - bar.n)

            result = train(args, out, resume=resume, progress=show, start_from=start_from)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    for solution in result.solutions():
        problem, outcome = solution.problem, solution.outcome
        text = f"{outcome.cost * 1e3:.2f} ms" if outcome.valid else outcome.reasons[0]
        print(f"{problem.graph.name} on {problem.cluster.name}: {text}, {solution.evaluations:,} evaluations")
    if result.interrupted:
        print(f"stopped after {result.updates} updates" + (f"; --resume goes on from {out}" if out else ""))


if __name__ == "__main__":
    main()
