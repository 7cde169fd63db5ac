"""The placer: a placement policy that transfers, and a search that it guides.

    graphopt train placer --out runs/placer                  # on the training steps that are shipped; minutes
    graphopt evaluate placer --graph gnmt_4layer --samples 8
    graphopt compare Placement-v0 --graph gnmt_4layer --methods expert,placer,placer_search,annealing --budget 64

Scorers (``scorer``) construct placements from local features; a plan (``plan``) orders the candidates; a ranker of
moves (``ranker``), which reads the simulated timeline, guides a search from the best (``search``). A run trains all
three on graphs and clusters that are varied at random (``instances``): first one scorer, by CMA-ES (Hansen and
Ostermeier, 2001) over its weights; then further ones, each for what the scorers before it leave (after Poppy's
population, Grinsztajn et al., NeurIPS 2023); then the ranker, on moves that it itself proposed (after DAgger, Ross et
al., AISTATS 2011). Each label costs one simulation. Ours.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from graphopt_agents.core import run
from graphopt_agents.core.run import AnyPath, Costs, Progress, Run, RunArgs
from graphopt_agents.placer import candidates, instances
from graphopt_agents.placer.arrays import Arrays, make_arrays
from graphopt_agents.placer.network import PlacerConfig, PlacerNetwork
from graphopt_agents.placer.ranker import LEAST_GAIN, NUM_FEATURES, Ranker, fit, steps
from graphopt_agents.placer.scorer import BY_HAND, place
from graphopt_agents.placer.search import COLD, HOT, GuidedWalk
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_fields
from graphopt_gym.graphs.zoo.registry import own_cluster
from graphopt_gym.problem import Solution
from graphopt_gym.search.evaluator import BudgetSpent, Evaluator
from graphopt_gym.search.walk import Walk

WORST, INVALID = 1.2, 0.3  # most that a placement counts, log of its cost to the reference's; and what comes to it
SIGMA = 0.3  # of CMA-ES at the start, and by how much a further scorer starts apart from the first
HELD_OUT = 6  # every such problem is for validation
CHECKED = 10  # updates between two looks at those
WARM = (0, 300, 1500)  # evaluations of a walk before its moves are noted, one of these
NOTED = 300  # moves of a walk
PLANNED_FIRST = 8  # candidates that are simulated before the search
TOGETHER = 64  # evaluations of the search between two looks at the clock, at most
SHARE = 0.02  # of the seconds of a run that they may take
PLANNING = 0.1  # and that candidates may, from when on each kind ends with its next
ADAPTING = 25  # steps of the ranker after each such
RATE, ADAPTING_RATE = 2e-3, 5e-4  # of learning
EPOCHS = 12


@dataclass(frozen=True)
class Args(RunArgs, PlacerConfig):
    """What a run depends on, beside the fields of :class:`RunArgs` and :class:`PlacerConfig`."""

    env_id = "Placement-v0"
    config_class = PlacerConfig
    paired = False

    graphs: tuple[str, ...] = ("training_steps",)
    clusters: tuple[str, ...] = instances.CLUSTERS  # each problem is on one of them
    updates: int = 0  # 0: first + more for each further scorer + rounds
    problems: int = 400  # that are drawn, of graphs and clusters
    population: int = 16  # of CMA-ES
    batch: int = 64  # problems that each of them places
    first: int = 160  # updates of the first scorer
    more: int = 25  # of each further one
    rounds: int = 6  # of the ranker, at the end
    walks: int = 80  # in each round

    def __post_init__(self) -> None:
        for name in ("scorers", "more", "rounds", "first"):
            check_fields(self, {name: 1})
        if self.updates == 0:
            object.__setattr__(self, "updates", self.first + (self.scorers - 1) * self.more + self.rounds)
        super().__post_init__()
        check_fields(self, {"problems": HELD_OUT, "population": 4, "batch": 1, "walks": 1})


@dataclass(kw_only=True)
class Task(run.Task):
    """A problem, and what the run knows of it."""

    problem: PlacementProblem
    arrays: Arrays

    @cached_property
    def reference(self) -> float:
        """What costs are compared with: those of the scorer written by hand, or twice the bound."""
        cost, valid = self.problem.costs(self.problem.decision_of(place(self.arrays, BY_HAND))[None])
        return float(cost[0]) if valid[0] else 2 * max(self.problem.bounds().values())

    def value(self, weights: np.ndarray) -> float:
        """How bad a scorer's placement is; one evaluation."""
        cost, valid = self.price(self.problem.decision_of(place(self.arrays, weights))[None])
        self.trials += 1
        gap = math.log(float(cost[0]) / self.reference)
        return min(max(gap, -1.0), WORST) + (0.0 if valid[0] else INVALID)


class Evolution:
    """CMA-ES over the weights of one scorer after the other, with the state that a checkpoint holds.

    What it was told is all that its state depends on, so that it is told again where a run goes on.
    """

    def __init__(self, seed: int, population: int) -> None:
        self.seed, self.population = seed, population
        self.scorer, self.told = -1, []  # type: ignore[var-annotated]
        self.least = math.inf  # on what is held out
        self.mean = np.zeros(0)

    def begin(self, scorer: int, mean: np.ndarray) -> None:
        from cmaes import CMA

        self.scorer, self.mean, self.told, self.least = scorer, mean, [], math.inf
        self.cma = CMA(mean, SIGMA, seed=(self.seed + 7919 * scorer) % 2**31, population_size=self.population)

    def ask(self) -> np.ndarray:
        """float64 [population, features]."""
        return np.stack([self.cma.ask() for _ in range(self.population)])

    def tell(self, asked: np.ndarray, values: np.ndarray) -> None:
        self.cma.tell(list(zip(asked, values.tolist())))
        self.told.append(values.tolist())

    def state_dict(self) -> dict[str, Any]:
        told = json.dumps(self.told)
        return {"scorer": self.scorer, "mean": torch.from_numpy(self.mean), "told": told, "least": self.least}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["scorer"] >= 0:
            self.begin(int(state["scorer"]), state["mean"].numpy())
            for values in json.loads(state["told"]):
                self.tell(self.ask(), np.array(values))
        self.least = float(state["least"])


class Trainer(run.Trainer):
    """Trains a :class:`PlacerNetwork`; a task is a problem that is drawn."""

    agent = "placer"
    args_class = Args
    network_class = PlacerNetwork

    def make_network(self) -> None:
        if self.network is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.args.seed)
                self.network = PlacerNetwork(self.args.network())
        self.optimizer = Evolution(self.args.seed, self.args.population)  # type: ignore[assignment]
        self.reached = np.full(len(self.tasks), math.inf)  # the least value of the scorers before this one
        self.moves = [np.zeros((0, NUM_FEATURES), np.float16)]  # that the ranker learns from
        self.gains = [np.zeros(0, np.float32)]
        self.held_out = np.arange(len(self.tasks)) % HELD_OUT == HELD_OUT - 1

    # -- what a run works on ---------------------------------------------------------------------------------------

    @classmethod
    def task_of(cls, problem: Any, args: Any = None, price: Costs | None = None) -> Task:
        check_problem(problem)
        return Task(problem=problem, price=price or problem.costs, arrays=make_arrays(problem))

    @classmethod
    def make_tasks(cls, args: Any) -> list[Task]:
        return [
            cls.task_of(instances.draw(args.graphs, args.clusters, number, args.seed), args)
            for number in range(args.problems)
        ]

    @classmethod
    def usual_cluster(cls, graph: Any, args: Any) -> str:
        return own_cluster(str(graph))

    # -- updates ---------------------------------------------------------------------------------------------------

    def update(self) -> list[dict[str, Any]]:
        """A generation of a scorer, or a round of the ranker."""
        args = self.args
        scorer = 0 if self.updates < args.first else 1 + (self.updates - args.first) // args.more
        row = self.evolve(scorer) if scorer < args.scorers else self.rank()
        return self.finish_update([{"update": self.updates + 1, "graph": "all", "cluster": "all", **row}])

    def evolve(self, scorer: int) -> dict[str, Any]:
        evolution, weights = self.optimizer, self.network.weights.numpy()
        train, held_out = np.flatnonzero(~self.held_out), np.flatnonzero(self.held_out)
        if evolution.scorer != scorer:  # type: ignore[attr-defined]
            self.reached[:] = math.inf
            for number in range(scorer):
                self.reached = np.minimum(self.reached, [task.value(weights[number]) for task in self.tasks])
            apart = np.random.default_rng((self.args.seed, scorer)).normal(size=weights.shape[1])
            evolution.begin(scorer, BY_HAND.copy() if scorer == 0 else weights[0] + SIGMA * apart)  # type: ignore[attr-defined]
        asked = evolution.ask()  # type: ignore[attr-defined]
        chosen = self.rng.choice(train, min(self.args.batch, len(train)), replace=False)
        values = np.array([[min(self.tasks[one].value(row), self.reached[one]) for one in chosen] for row in asked])
        evolution.tell(asked, values.mean(axis=1))  # type: ignore[attr-defined]
        row = {"phase": f"scorer {scorer}", "evaluations": self.evaluations, "value": float(values.mean())}
        if len(evolution.told) % CHECKED == 0:  # type: ignore[attr-defined]
            mean = np.array(evolution.cma.mean)  # type: ignore[attr-defined]
            value = float(np.mean([min(self.tasks[one].value(mean), self.reached[one]) for one in held_out]))
            row["held_out"] = value
            if value < evolution.least:  # type: ignore[attr-defined]
                evolution.least = value  # type: ignore[attr-defined]
                self.network.weights[scorer] = torch.from_numpy(mean)
        relative = math.exp(float(values.mean()))
        return row | {"mean_cost": relative, "mean_reward": -float(values.mean()), "best_cost": None}

    def rank(self) -> dict[str, Any]:
        """Walks whose moves are noted, from placements of the scorers; then the ranker learns from all moves so far."""
        rng, first = self.rng, not any(map(len, self.gains))
        train, held_out = np.flatnonzero(~self.held_out), np.flatnonzero(self.held_out)
        network = self.network.ranker.arrays()
        shares = []
        for number in range(self.args.walks):
            features, gains = self.walk(self.tasks[int(rng.choice(train))], network, not first and number % 2 == 0)
            self.moves.append(features.astype(np.float16))
            self.gains.append(gains)
            shares.append(float((gains > LEAST_GAIN).mean()) if len(gains) else 0.0)
        moves, gains = np.concatenate(self.moves).astype(np.float32), np.concatenate(self.gains)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed + self.updates)
            ranker = Ranker()
            ranker.mean[:] = torch.from_numpy(moves.mean(axis=0))
            ranker.scale[:] = torch.from_numpy(moves.std(axis=0) + 1e-3)
            loss = fit(ranker, moves, gains, EPOCHS, RATE, self.generator)
        self.network.ranker = ranker
        checked = [
            self.walk(self.tasks[int(one)], network, False) for one in rng.choice(held_out, min(8, len(held_out)))
        ]
        features, gains = (np.concatenate([one[part] for one in checked]) for part in (0, 1))
        with torch.no_grad():
            given = ranker(torch.from_numpy(features))[:, 0].numpy()
        return {
            "phase": "ranker", "evaluations": self.evaluations, "moves": len(moves), "loss": loss,
            "better_share": float(np.mean(shares)), "auc": auc(given, gains > LEAST_GAIN), "mean_cost": 1.0,
            "mean_reward": -loss, "best_cost": None,
        }  # fmt: skip

    def walk(self, task: Task, network: tuple[np.ndarray, ...], guided: bool) -> tuple[np.ndarray, np.ndarray]:
        """(features, gains) of moves that a walk tried, from a scorer's placement on."""
        rng = self.rng
        weights, spread = self.network.weights.numpy(), self.network.spread.numpy()
        around = weights[int(rng.integers(len(weights)))] + spread * rng.normal(size=weights.shape[1])
        start = task.problem.decision_of(place(task.arrays, around))
        cost, valid = task.price(start[None])
        state = Walk(start, float(cost[0]), int(rng.integers(2**63)), start, float(cost[0]), bool(valid[0]))
        walk = GuidedWalk(task.problem, task.arrays, network, guided, seed=int(rng.integers(2**31)), note=NOTED)
        warm = WARM[int(rng.integers(len(WARM)))]
        walk.temperature = COLD if warm else HOT
        task.trials += 1
        for length in (warm, NOTED):
            walk.num_noted = 0
            if length:
                walk(state, length, 0)
                task.trials += walk.made
        return walk.taken()

    # -- what is kept ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        moves, gains = np.concatenate(self.moves), np.concatenate(self.gains)
        kept = {"moves": torch.from_numpy(moves), "gains": torch.from_numpy(gains), "reached": self.reached.tolist()}
        return super().state() | kept | {"tasks": {task.name: {"trials": task.trials} for task in self.tasks}}

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        trials = {task.name: state["tasks"][task.name]["trials"] for task in self.tasks}
        empty: dict[str, Any] = {"best": None, "best_cost": math.inf, "best_valid": False, "improved": []}
        super().restore({**state, "tasks": {name: {"trials": one, **empty} for name, one in trials.items()}}, where)
        self.moves, self.gains = [state["moves"].numpy()], [state["gains"].numpy()]
        self.reached = np.array(state["reached"])

    def solutions(self) -> list[Solution]:
        """None: problems are drawn, and no decision of them is kept."""
        return []

    # -- a trained network -----------------------------------------------------------------------------------------

    @classmethod
    def place(cls, network: Any, task: Any, samples: int = 1, seed: int = 0) -> Solution:
        return _solved(task.problem, search_run(network), samples, seed, "placer zero-shot")

    @classmethod
    def fine_tune(cls, network: Any, task: Any, args: Any, progress: Progress | None = None) -> Solution:
        budget = PLANNED_FIRST + TOGETHER * args.updates
        return _solved(task.problem, search_run(network, adapt=True), budget, args.seed, "placer fine-tuned")

    @classmethod
    def method_run(
        cls, start_from: AnyPath | None = None, search: bool = True, adapt: bool = False, guided: bool = True,
        starts: bool = True, **arguments: Any,
    ) -> Run:  # fmt: skip
        """The placer on one problem as a method of ``solve``; see :func:`search_run` and :func:`construct_run`.

        Args:
            start_from: a checkpoint; None: untrained.
            search: whether a search follows its first candidates, or candidates alone are tried.
            arguments: fields of :class:`PlacerConfig`, where there is no checkpoint.
        """

        def solve(evaluator: Evaluator, rng: np.random.Generator) -> None:
            if start_from is not None:
                network = cls.load_network(start_from)
            else:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(int(rng.integers(2**31)))
                    network = PlacerNetwork(PlacerConfig(**arguments))
            if search:
                search_run(network, adapt, guided, starts)(evaluator, rng)
            else:
                construct_run(network, starts)(evaluator, rng)

        return solve

    @classmethod
    def zero_shot_run(cls, start_from: AnyPath) -> Run:
        return cls.method_run(start_from)


def check_problem(problem: Any) -> None:
    """Raises InputError for a problem that the placer does not place."""
    if problem.pipeline is not None:
        raise InputError(
            "objective 'throughput' has no timeline, which the placer reads; give objective 'step', or another method"
        )


def auc(scores: np.ndarray, right: np.ndarray) -> float | None:
    """The chance that one that is right is scored above one that is not; None where all or none are."""
    positives = int(right.sum())
    if positives in (0, len(right)):
        return None
    rank = np.empty(len(scores))
    rank[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    return float((rank[right].sum() - positives * (positives - 1) / 2) / (positives * (len(right) - positives)))


def _solved(problem: Any, method: Run, budget: int, seed: int, name: str) -> Solution:
    """The best of a run with a budget."""
    evaluator = Evaluator(problem, budget)
    with contextlib.suppress(BudgetSpent):
        method(evaluator, np.random.default_rng(seed))
    wall_s, outcome = evaluator.wall_s, problem.evaluate(evaluator.best)
    return Solution(
        problem, name, seed, evaluator.best, outcome, evaluator.evaluations, wall_s, tuple(evaluator.history)
    )


def _candidates(
    network: PlacerNetwork, arrays: Arrays, starts: bool, evaluator: Evaluator, rng: np.random.Generator
) -> list[np.ndarray]:
    """Candidates as the plan likes them; of a run with a limit in seconds as many as a share of them allows."""
    problem = evaluator.problem
    assert isinstance(problem, PlacementProblem)
    weights, spread = network.weights.numpy(), network.spread.numpy()
    settings = candidates.drawn(weights, spread, candidates.CANDIDATES, rng)
    own = (place(arrays, *one) for one in settings)
    planned = candidates.heuristic(problem, int(rng.integers(2**31))) if starts else iter(())

    def in_time(homes: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for home in homes:
            yield home
            if evaluator.seconds is not None and evaluator.wall_s > PLANNING * evaluator.seconds:
                return

    first = list(in_time(itertools.islice(own, 2 * network.config.scorers)))
    return candidates.ordered(arrays, [*in_time(planned), *first, *in_time(own)])


def construct_run(network: PlacerNetwork, starts: bool = True) -> Run:
    """Candidates alone, in the order that the plan likes, as a method of ``solve``: those of scorers and, with
    ``starts``, of heuristics; then rounds of as many new ones, of which the plan's best eighth is tried."""

    def solve(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = evaluator.problem
        check_problem(problem)
        assert isinstance(problem, PlacementProblem)
        arrays, weights, spread = make_arrays(problem), network.weights.numpy(), network.spread.numpy()
        homes = _candidates(network, arrays, starts, evaluator, rng)[:PLANNED_FIRST]
        while True:
            for home in homes:
                evaluator.costs(problem.decision_of(home)[None])
            new = candidates.drawn(weights, spread, candidates.CANDIDATES, rng, first=False)
            homes = candidates.ordered(arrays, [place(arrays, *one) for one in new])[:PLANNED_FIRST]

    return solve


def search_run(network: PlacerNetwork, adapt: bool = False, guided: bool = True, starts: bool = True) -> Run:
    """The best candidates, and then the search that the ranker guides, as a method of ``solve``.

    Args:
        adapt: whether the ranker goes on learning, from the moves that the search simulates.
        guided: whether it chooses at all.
        starts: whether heuristics are among the candidates.
    """

    def solve(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = evaluator.problem
        check_problem(problem)
        assert isinstance(problem, PlacementProblem)
        arrays = make_arrays(problem)
        for home in _candidates(network, arrays, starts, evaluator, rng)[:PLANNED_FIRST]:
            evaluator.costs(problem.decision_of(home)[None])
        seed = int(rng.integers(2**31))
        ranker = Ranker()
        ranker.load_state_dict(network.ranker.state_dict())
        walk = GuidedWalk(problem, arrays, ranker.arrays(), guided, seed, note=2 * TOGETHER if adapt else 0)
        start = evaluator.best
        state = Walk(start, evaluator.best_cost, seed, start, evaluator.best_cost, evaluator.best_valid)
        learned, generator = Adapted(ranker), torch.Generator().manual_seed(seed)
        together = TOGETHER
        while problem.num_devices > 1:
            walk.temperature = HOT * (COLD / HOT) ** evaluator.share_spent
            began = evaluator.wall_s
            evaluator.walk(state, together, 0, walk)
            if evaluator.seconds is not None:  # not long beyond them
                pace_s = (evaluator.wall_s - began) / max(walk.made, 1)
                together = max(1, min(TOGETHER, int(SHARE * evaluator.seconds / max(pace_s, 1e-9))))
            if walk.made == 0:  # all that can be reached from here is known
                walk.seen[:] = 0
            if adapt:
                learned.learn(*walk.taken(), generator)
                walk.network = ranker.arrays()

    return solve


class Adapted:
    """A ranker that learns on, and the moves that it has seen."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker
        self.features, self.gains = np.zeros((0, NUM_FEATURES), np.float32), np.zeros(0, np.float32)
        self.optimizer = torch.optim.Adam(ranker.parameters(), ADAPTING_RATE)

    def learn(self, features: np.ndarray, gains: np.ndarray, generator: torch.Generator) -> None:
        """A few steps on the latest moves."""
        self.features = np.concatenate([self.features, features])[-1500:]
        self.gains = np.concatenate([self.gains, gains])[-1500:]
        if len(self.gains):
            steps(self.ranker, self.optimizer, self.features, self.gains, ADAPTING, 128, generator)
