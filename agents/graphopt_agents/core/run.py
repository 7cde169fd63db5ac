"""The run of any trainer: arguments, tasks and their best decisions, updates that can be stopped and gone on with, the
folder with its lock, curves, solutions.

A trainer (``one_shot``, ``stepwise``, ``sb3``) has ``update``; the rest is here. Everything is seeded: the same
arguments give the same numbers, and a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import nn

from graphopt_agents.core import checkpoints
from graphopt_gym.catalog import catalogs
from graphopt_gym.errors import InputError, printable, unknown_name
from graphopt_gym.fields import check_fields, names, whole
from graphopt_gym.files import file_stem, write_text
from graphopt_gym.problem import Problem, Solution
from graphopt_gym.registration import make_problem, task_of
from graphopt_gym.search.evaluator import Evaluator
from graphopt_gym.search.workers import stop_signals

SCALARS = ("mean_reward", "entropy", "best_cost", "mean_cost", "valid_share", "divergence", "evaluations")
STOPPING = "stopping after this update; Ctrl-C again stops at once, without it\n"
MOST_SEED = 2**64 - 1  # that torch takes
FREE_ARGUMENTS = ("updates", "steps", "checkpoint_every")  # may differ when a run goes on

Costs = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # decisions [B, …] -> (cost [B], valid [B])
Progress = Callable[[dict[str, Any]], None]
Run = Callable[[Evaluator, np.random.Generator], None]
AnyPath = str | os.PathLike[str]
Name = AnyPath | Any  # of a graph or a cluster, or the object itself
TrainerT = TypeVar("TrainerT", bound="Trainer")


@dataclass(frozen=True)
class RunArgs:
    """What every run depends on; an agent's own arguments are a frozen dataclass with this, or :class:`TrainArgs`, and
    the configuration of its network, ``config_class``, among its bases. Stored with the checkpoint."""

    env_id: ClassVar[str]
    config_class: ClassVar[type[Any]]
    default_cluster: ClassVar[str]  # of all graphs where none is named
    paired: ClassVar[bool] = True  # whether clusters are one for all graphs or one for each, or else drawn

    graphs: tuple[
        str, ...
    ] = ()  # names, paths, splits of the zoo and random:seed=0-9, which become their graphs' names
    clusters: tuple[str, ...] = ()  # one for all graphs, or one for each
    seed: int = 0
    updates: int = 100
    checkpoint_every: int = 20  # updates

    def __post_init__(self) -> None:
        """Checks the arguments, and makes tuples of names of ``graphs`` and ``clusters``.

        Raises:
            InputError: a bad value; no graph; neither one cluster nor one for each graph.
        """
        inherited: Any = super()
        if hasattr(inherited, "__post_init__"):  # the network's own checks
            inherited.__post_init__()
        for name in ("graphs", "clusters"):
            object.__setattr__(self, name, names(name, getattr(self, name)))
        if not self.graphs:
            raise InputError("graphs is an empty list; name at least one graph")
        # a split's graphs stand in the place of its name, and those of a range of numbers in that of a generator's text
        graphs = catalogs()[task_of(self.env_id).catalogs["graph"]].each(self.graphs, "graphs")
        object.__setattr__(self, "graphs", graphs)
        if not self.clusters:
            object.__setattr__(self, "clusters", self.own_clusters(self.graphs))
        if self.paired and len(self.clusters) not in (1, len(self.graphs)):
            raise InputError(
                f"clusters has {len(self.clusters)} entries for {len(self.graphs)} graphs; give one, or one for each"
            )
        whole("seed", self.seed, 0, MOST_SEED)
        check_fields(self, dict.fromkeys(("updates", "checkpoint_every"), 1))

    def own_clusters(self, graphs: tuple[str, ...]) -> tuple[str, ...]:
        """What graphs are on where no cluster is named."""
        return (self.default_cluster,)

    def each_cluster(self) -> tuple[str, ...]:
        """The cluster of each graph."""
        return self.clusters * len(self.graphs) if len(self.clusters) == 1 else self.clusters

    def network(self) -> Any:
        """The configuration of the network."""
        named = [one.name for one in dataclasses.fields(self.config_class)]
        return self.config_class(**{name: getattr(self, name) for name in named})

    def json(self) -> dict[str, Any]:
        """As JSON has it: lists in place of tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TrainArgs(RunArgs):
    """What every run that descends along gradients depends on."""

    graphs_per_update: int = 4  # at most; each graph in turn
    epochs: int = 2  # PPO steps an update, or passes over it
    learning_rate: float = 1e-3
    decay: bool = False  # whether it falls linearly to 0 over all updates
    clip: float = 0.2
    entropy: float = 0.003  # bonus for the mean entropy of a choice
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        wholes = dict.fromkeys(("graphs_per_update", "epochs"), 1)
        check_fields(self, wholes, above=("learning_rate", "clip", "max_grad_norm"), at_least=("entropy",))


@dataclass(kw_only=True)
class Task:
    """One graph on one cluster, and what a run knows of it."""

    problem: Problem
    price: Costs
    trials: int = 0
    best: Any = None  # a decision: int32, or what the problem takes
    best_cost: float = math.inf
    best_valid: bool = False
    improved: list[tuple[int, float, float]] = field(default_factory=list)  # (evaluations, seconds, cost) of valid ones

    @property
    def name(self) -> str:
        return f"{self.problem.graph_name}@{self.problem.cluster_name}"

    def evaluate(self, decisions: np.ndarray, wall_s: float, before: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(costs, valid) of decisions [B, …]; remembers the best. ``before``: trials not counted yet."""
        costs, valid = self.price(decisions)
        self.offer(decisions, costs, valid, wall_s, before)
        return costs, valid

    def offer(self, decisions: Any, costs: np.ndarray, valid: np.ndarray, wall_s: float, before: int = 0) -> None:
        """Remember the best of decisions [B] that have been priced; a valid one beats any that is not."""
        for row in np.lexsort((costs, ~valid))[:1].tolist():
            better = costs[row] < self.best_cost if valid[row] == self.best_valid else bool(valid[row])
            if better:
                best = decisions[row]
                self.best = best.copy() if isinstance(best, np.ndarray) else best  # other decisions cannot be changed
                self.best_cost, self.best_valid = float(costs[row]), bool(valid[row])
                if self.best_valid:
                    self.improved.append((self.trials + before + row + 1, wall_s, self.best_cost))

    def solution(self, method: str, seed: int, wall_s: float) -> Solution:
        """The best decision so far, as ``solve`` returns it and ``validate`` checks it."""
        assert self.best is not None
        outcome = self.problem.evaluate(self.best)
        return Solution(self.problem, method, seed, self.best, outcome, self.trials, wall_s, tuple(self.improved))

    def packed(self, decision: Any) -> Any:
        """The best decision as a checkpoint holds it."""
        return torch.from_numpy(decision) if isinstance(decision, np.ndarray) else self.problem.encode(decision)

    def unpacked(self, kept: Any) -> Any:
        """A decision from what :meth:`packed` made of it."""
        return self.problem.check(kept.numpy() if isinstance(kept, torch.Tensor) else kept)

    def state(self) -> dict[str, Any]:
        """What the run knows, as plain containers and tensors."""
        return {
            "trials": self.trials,
            "best": None if self.best is None else self.packed(self.best),
            "best_cost": self.best_cost,
            "best_valid": self.best_valid,
            "improved": [list(row) for row in self.improved],
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.trials = int(kept["trials"])
        self.best = None if kept["best"] is None else self.unpacked(kept["best"])
        self.best_cost, self.best_valid = float(kept["best_cost"]), bool(kept["best_valid"])
        self.improved = [(int(row[0]), float(row[1]), float(row[2])) for row in kept["improved"]]


class Trainer(ABC):
    """The state of a run, and one update of it. Give tasks with different names.

    A subclass says what it trains (the class attributes), what a task is (:meth:`task_of`), how a trained network
    decides (:meth:`decide`), and what an update does. ``args`` is of ``args_class``.
    """

    agent: ClassVar[str]
    args_class: ClassVar[type[Any]]
    network_class: ClassVar[type[Any]]  # made of the configuration, which it keeps as ``config``
    problem_arguments: ClassVar[tuple[str, ...]] = ()  # those of the arguments that the problem takes
    graph_arguments: ClassVar[tuple[str, ...]] = ()  # those of them that are of the run's own graph on its cluster
    length: ClassVar[str] = "updates"  # the argument that says how long a run is
    likeliest_first: ClassVar[bool] = False  # whether a method that begins with a checkpoint evaluates it as it is

    def __init__(self, args: Any, tasks: Sequence[Any], network: nn.Module | None = None) -> None:
        if not tasks:
            raise InputError("graphs is an empty list; name at least one graph")
        self.args = args
        self.tasks = list(tasks)
        named = [task.name for task in self.tasks]
        for name in named:
            if named.count(name) > 1:
                raise InputError(f"two tasks are {name!r}; name each graph on a cluster once")
        self.generator = torch.Generator().manual_seed(args.seed)
        self.rng = np.random.default_rng(args.seed)
        self.queue: list[int] = []  # tasks not yet taken in this round
        self.updates = 0
        self.wall_before_s = 0.0
        self.started: float | None = time.perf_counter()
        self.curve: list[dict[str, Any]] = []
        self.network: Any = network
        self.make_network()

    def make_network(self) -> None:
        """Sets ``network``, where none was given, and ``optimizer``."""
        if self.network is None:
            with torch.random.fork_rng(devices=[]):  # a caller's own random numbers stay as they are
                torch.manual_seed(self.args.seed)
                self.network = self.network_class(self.args.network())
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.args.learning_rate)

    # -- what a run works on ---------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def task_of(cls, problem: Any, args: Any = None, price: Costs | None = None) -> Any:
        """A task of a problem; ``price`` in place of its ``costs``. Raises InputError where it cannot be served."""

    @classmethod
    def make_task(cls, graph: Name, cluster: Name, args: Any = None) -> Any:
        """A task to train on or to decide. Raises InputError for unknown names, and as :meth:`task_of` does."""
        args = args or cls.args_class()
        given = {name: getattr(args, name) for name in cls.problem_arguments}
        return cls.task_of(make_problem(cls.args_class.env_id, graph=graph, cluster=cluster, **given), args)

    @classmethod
    def make_tasks(cls, args: Any) -> list[Any]:
        """The tasks of a run."""
        return [cls.make_task(*pair, args) for pair in zip(args.graphs, args.each_cluster(), strict=True)]

    @classmethod
    def args_from(cls, given: Mapping[str, Any]) -> Any:
        """Arguments from a mapping. Raises InputError for an unknown name, with the nearest known one."""
        known = [one.name for one in dataclasses.fields(cls.args_class)]
        for name in given:
            if name not in known:
                raise unknown_name(f"argument of {cls.agent}", name, known)
        return cls.args_class(**given)

    @classmethod
    def kept_args(cls, kept: checkpoints.Checkpoint, where: str) -> Any:
        """The arguments of a checkpoint. Raises InputError where another version wrote them."""
        try:
            return cls.args_from(kept.args)
        except (InputError, TypeError) as error:
            raise InputError(f"{where!r} was written by another version: {error}; train again") from None

    @classmethod
    def load_network(cls, path: AnyPath) -> Any:
        """The network of a checkpoint.

        Raises:
            InputError: see :func:`checkpoints.load_checkpoint`; weights that do not fit its arguments.
        """
        kept = checkpoints.load_checkpoint(path, cls.agent)
        config_class = cls.args_class.config_class
        try:
            config = config_class(**{one.name: kept.args[one.name] for one in dataclasses.fields(config_class)})
        except (KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} is damaged: its arguments are incomplete ({error}); train again") from None
        return checkpoints.make_network(cls.network_class, config, kept.state.get("network"), str(path))

    @classmethod
    def start_arguments(cls, path: AnyPath) -> dict[str, Any]:
        """The sizes of a checkpoint's network, which a run that starts from it takes over."""
        return dataclasses.asdict(cls.load_network(path).config)

    # -- updates ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def update(self) -> list[dict[str, Any]]:
        """One update on the next few tasks; returns a row of the learning curve for each."""

    @property
    def done(self) -> int:
        """How far the run is, in what its length is counted in."""
        return self.updates

    @property
    def wall_s(self) -> float:
        """Seconds of training."""
        return self.wall_before_s + (0.0 if self.started is None else time.perf_counter() - self.started)

    @property
    def evaluations(self) -> int:
        return sum(task.trials for task in self.tasks)

    def next_tasks(self) -> list[Any]:
        """The tasks of this update: each in turn, in an order drawn anew each round."""
        chosen: list[int] = []
        while len(chosen) < min(self.args.graphs_per_update, len(self.tasks)):
            if not self.queue:
                self.queue = self.rng.permutation(len(self.tasks)).tolist()
            chosen.append(self.queue.pop())
        return [self.tasks[index] for index in dict.fromkeys(chosen)]

    def row(self, task: Task, costs: np.ndarray, valid: np.ndarray, rewards: np.ndarray) -> dict[str, Any]:
        """A task's row of the curve, of a batch that was counted; costs in the problem's unit."""
        return {
            "update": self.updates + 1,
            "graph": task.problem.graph_name,
            "cluster": task.problem.cluster_name,
            "evaluations": task.trials,
            "mean_cost": float(costs.mean()),
            "mean_reward": float(rewards.mean()),
            "valid_share": float(valid.mean()),
            "best_cost": task.best_cost if task.best_valid else None,
        }

    def set_rate(self) -> None:
        """The learning rate of this update."""
        for group in self.optimizer.param_groups:
            left = 1 - self.updates / self.args.updates if self.args.decay else 1.0
            group["lr"] = self.args.learning_rate * left

    def descend(self) -> None:
        """A step along the gradient, which is bounded."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.args.max_grad_norm)
        self.optimizer.step()

    def finish_update(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Counts the update and keeps its rows."""
        self.updates += 1
        for row in rows:
            row["wall_s"] = self.wall_s
        self.curve += rows
        return rows

    # -- what is kept ----------------------------------------------------------------------------------------------

    def fingerprints(self) -> dict[str, dict[str, str]]:
        return {task.name: task.problem.fingerprints() for task in self.tasks}

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
            "tasks": {task.name: task.state() for task in self.tasks},
        }

    def restore(self, state: Mapping[str, Any], where: str) -> None:
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
            # version 0.1.0 called the costs by the unit that most tasks have
            old = {"mean_cost_s": "mean_cost", "best_cost_s": "best_cost"}
            self.curve = [{old.get(key, key): row[key] for key in row} for row in json.loads(state["curve"])]
            self.wall_before_s, self.started = float(state["wall_s"]), time.perf_counter()
            for task in self.tasks:
                task.restore(state["tasks"][task.name])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise InputError(f"{where!r} is damaged, or of other graphs ({error}); train into another folder") from None

    # -- whole runs ------------------------------------------------------------------------------------------------

    @classmethod
    def train(
        cls: type[TrainerT],
        args: Any,
        out: AnyPath | None = None,
        *,
        resume: bool = False,
        progress: Progress | None = None,
        start_from: AnyPath | None = None,
    ) -> TrainerT:
        """Train on the graphs of ``args``; the trainer has what came of it: ``network``, ``tasks``, ``curve`` (a row an
        update and task), ``solutions()``, and whether it was ``interrupted``.

        Args:
            out: folder of the run: ``checkpoint.pt``, ``curve.csv``, ``curve.json`` and one solution a task; None:
                nothing is written.
            resume: go on with the run in ``out``, exactly, up to the length that ``args`` say.
            progress: called with each row of the curve.
            start_from: a checkpoint whose network to start from (fine-tuning); optimiser and counts start anew.

        Ctrl-C, or a request to terminate, ends the run after the update under way, with everything written; a second
        one at once.

        Raises:
            InputError: bad arguments; a folder that cannot be written, holds a run already, or another one, or that
                another process trains into; a checkpoint that cannot be read, or whose network has other sizes than
                ``args``.
        """
        if resume and out is None:
            raise InputError("resume needs the folder of the run; give --out")
        with contextlib.nullcontext() if out is None else checkpoints.held_folder(out, resume) as folder:
            return cls._train(args, folder, resume, progress, start_from)

    @classmethod
    def _train(
        cls: type[TrainerT],
        args: Any,
        folder: Path | None,
        resume: bool,
        progress: Progress | None,
        start_from: AnyPath | None,
    ) -> TrainerT:
        where, kept = str(folder), None
        if resume:
            kept = checkpoints.load_checkpoint(where, cls.agent)
            theirs = {**kept.args, **cls.kept_args(kept, where).json()}  # arguments that are new have their defaults
            checkpoints.same_arguments(args.json(), theirs, where, FREE_ARGUMENTS)
        tasks = cls.make_tasks(args)
        network = None
        if start_from is not None:
            network = cls.load_network(start_from)
            if network.config != args.network():
                raise InputError(
                    f"{str(start_from)!r} holds a network of other sizes than the arguments name; leave them out"
                )
        trainer = cls(args, tasks, network)
        if kept is not None:
            if kept.facts.get("fingerprints") != trainer.fingerprints():
                raise InputError(
                    f"{where!r} was trained on other graphs, clusters or op times, or by another version; "
                    "use another folder"
                )
            trainer.restore(kept.state, where)
        trainer.run(progress, folder)
        return trainer

    def run(self, progress: Progress | None = None, folder: Path | None = None) -> None:
        """Updates up to the length that the arguments say, or to the first signal; written to the folder."""
        with stop_signals(at_once=False, say=STOPPING) as noted, _tensorboard(folder, self.updates + 1) as board:
            while self.interrupted and not noted:
                for row in self.update():
                    if progress:
                        progress(row)
                    for name in SCALARS if board else ():
                        if row.get(name) is not None:
                            tag = printable(f"{row['graph']}@{row['cluster']}/{name}")
                            board.add_scalar(tag, row[name], row["update"])
                if folder is not None and self.updates % self.args.checkpoint_every == 0 and self.interrupted:
                    self.save(folder)
            if folder is not None:
                self.save(folder)
        self.wall_before_s, self.started = self.wall_s, None

    @property
    def interrupted(self) -> bool:
        """Whether the run is not, or not yet, as long as its arguments say."""
        return self.done < getattr(self.args, self.length)

    def solutions(self) -> list[Solution]:
        """The best decision of each task, in order, as ``solve`` returns it and ``validate`` checks it."""
        return [task.solution(self.agent, self.args.seed, self.wall_s) for task in self.tasks if task.best is not None]

    def solution(self) -> Solution:
        """The best decision of the first task."""
        return self.solutions()[0]

    def save(self, folder: Path) -> None:
        """Write the run: solutions and curve, and last the checkpoint."""
        for solution in self.solutions():
            name = file_stem(f"{solution.problem.graph_name}_{solution.problem.cluster_name}")
            solution.save(folder / f"solution_{name}.json")
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in self.curve for name in row)) or ["update"]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.curve)
        write_text(folder / "curve.csv", text.getvalue())
        args = self.args.json()
        document = {"agent": self.agent, "args": args, "libraries": checkpoints.library_versions(), "rows": self.curve}
        write_text(folder / "curve.json", json.dumps(document) + "\n")
        facts = {"fingerprints": self.fingerprints()}
        checkpoints.save_checkpoint(folder / checkpoints.CHECKPOINT_NAME, self.agent, args, self.state(), facts)

    # -- a trained network -----------------------------------------------------------------------------------------

    @classmethod
    def decide(cls, network: Any, task: Any, samples: int, seed: int, wall_s: Callable[[], float]) -> None:
        """Have a network as it is decide a task, with so many samples, as trials of the task; the likeliest first."""
        raise InputError(f"{cls.agent} does not decide without training")

    @classmethod
    def place(cls, network: Any, task: Any, samples: int = 1, seed: int = 0) -> Solution:
        """Decide a task with a trained network, no weight of it changed (zero-shot): the best of what it tries.

        Args:
            samples: how often it tries; see the agent's ``decide``.
        """
        whole("samples", samples, 1)
        started = time.perf_counter()
        cls.decide(network, task, samples, seed, lambda: time.perf_counter() - started)
        return task.solution(f"{cls.agent} zero-shot", seed, time.perf_counter() - started)  # type: ignore[no-any-return]

    @classmethod
    def usual_cluster(cls, graph: Name, args: Any) -> Any:
        """Where a graph is evaluated when no cluster is named; ``args``: those of the checkpoint."""
        return args.clusters[0]

    @classmethod
    def evaluate(
        cls,
        checkpoint: AnyPath,
        graph: Name | None = None,
        cluster: Name | None = None,
        *,
        samples: int = 1,
        updates: int = 0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Solution:
        """Decide one graph with a trained policy, zero-shot or after fine-tuning on it.

        Args:
            checkpoint: the folder or file that training wrote, or the name of one that is shipped.
            graph: the first of its own where left out. ``cluster``: see :meth:`usual_cluster`.
            samples: see :meth:`place`.
            updates: of fine-tuning, with the checkpoint's arguments; 0: none.
            progress: called with each row of the fine-tuning's curve.

        Raises:
            InputError: see :meth:`load_network`, :meth:`make_task`.
        """
        whole("updates", updates)
        whole("seed", seed, 0, MOST_SEED)
        args = cls.kept_args(checkpoints.load_checkpoint(checkpoint, cls.agent), str(checkpoint))
        args = dataclasses.replace(args, seed=seed, **({"updates": updates} if updates else {}))
        named = args.graphs[0] if graph is None else graph
        cluster = cls.usual_cluster(named, args) if cluster is None else cluster
        if cls.graph_arguments and (named, cluster) not in zip(args.graphs, args.each_cluster(), strict=True):
            usual = {one.name: one.default for one in dataclasses.fields(args) if one.name in cls.graph_arguments}
            args = dataclasses.replace(args, **usual)
        task = cls.make_task(named, cluster, args)
        network = cls.load_network(checkpoint)
        if not updates:
            return cls.place(network, task, samples, seed)
        return cls.fine_tune(network, task, args, progress)

    @classmethod
    def fine_tune(cls, network: Any, task: Any, args: Any, progress: Progress | None = None) -> Solution:
        """Train a network (changed in place) on one task for ``args.updates``; the best decision on the way, that of
        the network before its first update included."""
        started = time.perf_counter()
        trainer = cls(args, [task], network)
        cls.place(network, task)
        trainer.run(progress)
        return task.solution(f"{cls.agent} fine-tuned", args.seed, time.perf_counter() - started)  # type: ignore[no-any-return]

    @classmethod
    def method_trainer(
        cls: type[TrainerT],
        evaluator: Evaluator,
        rng: np.random.Generator,
        start_from: AnyPath | None,
        arguments: Mapping[str, Any],
    ) -> TrainerT:
        """A trainer on an evaluator's problem, which prices and counts its decisions; see :meth:`method_run`."""
        given, network = {"seed": int(rng.integers(2**31)), **arguments}, None
        if start_from is not None:
            network = cls.load_network(start_from)
            given = {**dataclasses.asdict(network.config), **given}
        args = cls.args_from(given)
        return cls(args, [cls.task_of(evaluator.problem, args, evaluator.costs_and_valid)], network)

    @classmethod
    def method_run(cls, start_from: AnyPath | None = None, **arguments: Any) -> Run:
        """The policy on one problem as a method of ``solve``: ``run(evaluator, rng)``, from scratch or a checkpoint.

        It trains until the evaluator's budget is spent. ``arguments``: fields of the agent's arguments.
        """

        def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
            trainer = cls.method_trainer(evaluator, rng, start_from, arguments)
            if start_from is not None and cls.likeliest_first:
                cls.place(trainer.network, trainer.tasks[0])
            while evaluator.left > 0:
                trainer.update()

        return run

    @classmethod
    def zero_shot_run(cls, start_from: AnyPath) -> Run:
        """A checkpoint as it is, as a method of ``solve``: :meth:`place` until the budget is spent."""

        def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
            task = cls.task_of(evaluator.problem, None, evaluator.costs_and_valid)
            cls.place(cls.load_network(start_from), task, evaluator.left, int(rng.integers(2**31)))

        return run


def clipped_loss(
    log_ratio: torch.Tensor, gains: torch.Tensor, log_probs: torch.Tensor, clip: float, entropy: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO's loss (Schulman et al., 2017) with one clipped ratio for each choice, and the entropy bonus.

    Args:
        log_ratio: of new to old probability of each choice; none: the bonus alone.
        gains: the advantage of each, of a shape that goes with it.
        log_probs: float32 [rows, choices], of the network now.

    Returns:
        The loss, and measures for the learning curve: mean entropy of a row, share of clipped ratios, divergence.
    """
    ratio = log_ratio.exp()
    count = max(1, log_ratio.numel())
    gain = torch.min(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains).sum() / count
    mean_entropy = -(log_probs.exp() * log_probs).sum(1).mean()
    with torch.no_grad():
        measures = {
            "entropy": float(mean_entropy),
            "clipped_share": float(((ratio - 1).abs() > clip).float().sum() / count),
            "divergence": float((ratio - 1 - log_ratio).sum() / count),
        }
    return -gain - entropy * mean_entropy, measures


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
