"""What the runs of the agents that decide a whole graph at once share: tasks and their best decisions, updates that
can be stopped and gone on with, curves, solutions.

An agent's module has a Trainer of its own with ``update``; :func:`run` does the rest. Everything is seeded: the same
arguments give the same numbers, and a run that was stopped goes on exactly as if it had not been.
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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from graphopt_agents import checkpoints
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.fields import names, whole
from graphopt_gym.files import write_text
from graphopt_gym.graphs.zoo import GRAPHS
from graphopt_gym.problem import Problem, Solution
from graphopt_gym.search.methods import good_start
from graphopt_gym.search.solve import Evaluator

SCALARS = ("mean_reward", "entropy", "best_cost_s", "mean_cost_s", "valid_share", "divergence", "evaluations")
FREE_ARGUMENTS = ("updates", "checkpoint_every")  # may differ when a run goes on

Costs = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # decisions [B, …] -> (cost [B], valid [B])
Progress = Callable[[dict[str, Any]], None]


class GraphArgs:
    """What the arguments of a run share: frozen dataclasses with ``graphs`` and ``clusters``, and the fields of the
    network's configuration, ``config_class``, among theirs."""

    config_class: ClassVar[type[Any]]
    graphs: tuple[str, ...]
    clusters: tuple[str, ...]

    def each_cluster(self) -> tuple[str, ...]:
        """The cluster of each graph."""
        return self.clusters * len(self.graphs) if len(self.clusters) == 1 else self.clusters

    def network(self) -> Any:
        """The configuration of the network."""
        names = [one.name for one in dataclasses.fields(self.config_class)]
        return self.config_class(**{name: getattr(self, name) for name in names})

    def json(self) -> dict[str, Any]:
        """As JSON has it: lists in place of tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]


@dataclass(kw_only=True)
class Task:
    """One graph on one cluster, and what a run knows of it."""

    problem: Problem
    price: Costs
    trials: int = 0
    reward_mean: float = 0.0  # of the trials
    best: Any = None  # a decision: int32, or what the problem takes
    best_cost: float = math.inf
    best_valid: bool = False
    improved: list[tuple[int, float, float]] = field(default_factory=list)  # (evaluations, seconds, cost) of valid ones
    elites: list[tuple[float, float, np.ndarray]] = field(default_factory=list)  # (cost, reward, decision), best first

    @property
    def name(self) -> str:
        return f"{self.problem.graph.name}@{self.problem.cluster.name}"

    def evaluate(self, decisions: np.ndarray, wall_s: float, before: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(costs, valid) of decisions int32 [B, …]; remembers the best. ``before``: trials not counted yet."""
        costs, valid = self.price(decisions)
        for row in np.lexsort((costs, ~valid))[:1].tolist():
            better = costs[row] < self.best_cost if valid[row] == self.best_valid else bool(valid[row])
            if better:
                best = decisions[row]
                self.best = best.copy() if isinstance(best, np.ndarray) else best  # other decisions cannot be changed
                self.best_cost, self.best_valid = float(costs[row]), bool(valid[row])
                if self.best_valid:
                    self.improved.append((self.trials + before + row + 1, wall_s, self.best_cost))
        return costs, valid

    def keep_elites(self, decisions: np.ndarray, costs: np.ndarray, rewards: np.ndarray, count: int) -> None:
        """Take decisions int32 [B, …] into the best ``count`` different ones so far."""
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

    def elite(self, rng: np.random.Generator) -> np.ndarray:
        """One of the best so far, better ones more often."""
        return self.elites[int(len(self.elites) * rng.random() ** 2)][2]

    def count(self, rewards: np.ndarray) -> None:
        """Take trials into the mean reward."""
        total = self.trials + len(rewards)
        self.reward_mean = (self.reward_mean * self.trials + float(rewards.sum())) / total
        self.trials = total

    def starts(self, rng: np.random.Generator, wall_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(decisions, costs, valid) of what the cheap heuristics that local searches start from decide; one trial each,
        to be counted by the caller."""
        evaluator = _Starts(self, wall_s)
        good_start(evaluator, rng)
        costs, valid = (np.concatenate(part) for part in zip(*evaluator.prices, strict=True))
        return np.concatenate(evaluator.tried), costs, valid

    def solution(self, method: str, seed: int, wall_s: float) -> Solution:
        """The best decision so far, as ``solve`` returns it and ``validate`` checks it."""
        assert self.best is not None
        outcome = self.problem.evaluate(self.best)
        return Solution(self.problem, method, seed, self.best, outcome, self.trials, wall_s, tuple(self.improved))

    def packed(self, decision: Any) -> Any:
        """The best decision as a checkpoint holds it."""
        return torch.from_numpy(decision)

    def unpacked(self, kept: Any) -> Any:
        """A decision from what :meth:`packed` made of it."""
        return self.problem.check(kept.numpy())

    def state(self) -> dict[str, Any]:
        """What the run knows, as plain containers and tensors."""
        return {
            "trials": self.trials,
            "reward_mean": self.reward_mean,
            "best": None if self.best is None else self.packed(self.best),
            "best_cost": self.best_cost,
            "best_valid": self.best_valid,
            "improved": [list(row) for row in self.improved],
            "elites": [(cost, reward, torch.from_numpy(one)) for cost, reward, one in self.elites],
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.trials, self.reward_mean = int(kept["trials"]), float(kept["reward_mean"])
        self.best = None if kept["best"] is None else self.unpacked(kept["best"])
        self.best_cost, self.best_valid = float(kept["best_cost"]), bool(kept["best_valid"])
        self.improved = [(int(row[0]), float(row[1]), float(row[2])) for row in kept["improved"]]
        self.elites = [
            (float(cost), float(reward), self.problem.check(one.numpy())) for cost, reward, one in kept["elites"]
        ]


class _Starts(Evaluator):
    """What heuristics propose to: prices as trials of a task."""

    def __init__(self, task: Task, wall_s: float) -> None:
        super().__init__(task.problem, budget=10**9)
        self.task, self.at = task, wall_s
        self.tried: list[np.ndarray] = []
        self.prices: list[tuple[np.ndarray, np.ndarray]] = []

    def price(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.prices.append(self.task.evaluate(decisions, self.at, self.evaluations))
        self.tried.append(decisions)
        return self.prices[-1]


class Trainer(ABC):
    """The state of a run. Give tasks with different names.

    ``args`` is a :class:`GraphArgs` with ``seed``, ``learning_rate``, ``graphs_per_update``, ``updates`` and
    ``checkpoint_every``.
    """

    agent: ClassVar[str]
    args_class: ClassVar[type[Any]]
    network_class: ClassVar[type[Any]]  # made of the configuration, which it keeps as ``config``

    def __init__(self, args: Any, tasks: Sequence[Any], network: nn.Module | None = None) -> None:
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
                network = self.network_class(args.network())
        self.network: Any = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.rng = np.random.default_rng(args.seed)
        self.queue: list[int] = []  # tasks not yet taken in this round
        self.updates = 0
        self.wall_before_s = 0.0
        self.started = time.perf_counter()
        self.curve: list[dict[str, Any]] = []

    @classmethod
    def load_network(cls, path: str | os.PathLike[str]) -> Any:
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
        network = cls.network_class(config)
        checkpoints.load_weights(network, kept.state.get("network", {}), str(path))
        return network

    @classmethod
    def start_arguments(cls, path: str | os.PathLike[str]) -> dict[str, Any]:
        """The sizes of a checkpoint's network, which a run that starts from it takes over."""
        return dataclasses.asdict(cls.load_network(path).config)

    @abstractmethod
    def update(self) -> list[dict[str, Any]]:
        """One update on the next few tasks; returns a row of the learning curve for each."""

    @property
    def wall_s(self) -> float:
        return self.wall_before_s + time.perf_counter() - self.started

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
        """A task's row of the curve, of a batch that was counted."""
        return {
            "update": self.updates + 1,
            "graph": task.problem.graph.name,
            "cluster": task.problem.cluster.name,
            "evaluations": task.trials,
            "mean_cost_s": float(costs.mean()),
            "mean_reward": float(rewards.mean()),
            "valid_share": float(valid.mean()),
            "best_cost_s": task.best_cost if task.best_valid else None,
        }

    def finish_update(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Counts the update and keeps its rows."""
        self.updates += 1
        for row in rows:
            row["wall_s"] = self.wall_s
        self.curve += rows
        return rows

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
                task.restore(state["tasks"][task.name])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise InputError(f"{where!r} is damaged, or of other graphs ({error}); train into another folder") from None


@dataclass
class TrainResult:
    """What came out of a run: ``solutions`` holds the best decision of each task, in order."""

    agent: str
    args: Any
    network: Any
    tasks: list[Any]
    curve: list[dict[str, Any]]
    updates: int
    evaluations: int
    wall_s: float
    interrupted: bool

    def solutions(self) -> list[Solution]:
        """The best decision of each task, as ``solve`` returns it and ``validate`` checks it."""
        return [task.solution(self.agent, self.args.seed, self.wall_s) for task in self.tasks if task.best is not None]

    def solution(self) -> Solution:
        """The best decision of the first task."""
        return self.solutions()[0]


def run(
    trainer_class: type[Trainer],
    make_tasks: Callable[[], Sequence[Task]],
    args: Any,
    out: str | os.PathLike[str] | None,
    resume: bool,
    progress: Progress | None,
    start_from: str | os.PathLike[str] | None,
) -> TrainResult:
    """Train for ``args.updates`` updates.

    Args:
        make_tasks: called once the folder and the arguments are known to be good.
        args: the run's arguments.
        out: folder of the run: ``checkpoint.pt``, ``curve.csv``, ``curve.json`` and one solution a task; None:
            nothing is written.
        resume: go on with the run in ``out``, exactly, up to ``args.updates``.
        progress: called with each row of the curve.
        start_from: a checkpoint whose network to start from (fine-tuning); optimiser and counts start anew.

    Ctrl-C ends the run after the update under way, with everything written; a second one at once.

    Raises:
        InputError: a folder that cannot be written, holds a run already, or another one; a checkpoint that cannot be
            read, or whose network has other sizes than ``args``.
    """
    folder = None if out is None else checkpoints.run_folder(out, resume)
    kept = None
    if resume:
        if folder is None:
            raise InputError("resume needs the folder of the run; give --out")
        kept = checkpoints.load_checkpoint(folder, trainer_class.agent)
        checkpoints.same_arguments(args.json(), kept.args, str(folder), FREE_ARGUMENTS)
    tasks = make_tasks()
    network = None
    if start_from is not None:
        network = trainer_class.load_network(start_from)
        if network.config != args.network():
            raise InputError(
                f"{str(start_from)!r} holds a network of other sizes than the arguments name; leave them out"
            )
    trainer = trainer_class(args, tasks, network)
    if kept is not None:
        if kept.facts.get("fingerprints") != trainer.fingerprints():
            raise InputError(f"{str(folder)!r} was trained on other graphs, clusters or op times; use another folder")
        trainer.restore(kept.state, str(folder))
    with stop_on_interrupt() as stopped, _tensorboard(folder, trainer.updates + 1) as board:
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
        trainer.agent, args, trainer.network, trainer.tasks, trainer.curve, trainer.updates, trainer.evaluations,
        trainer.wall_s, interrupted,
    )  # fmt: skip


def save(folder: Path, trainer: Trainer) -> None:
    """Write the run: solutions and curve, and last the checkpoint."""
    for task in trainer.tasks:
        if task.best is not None:
            name = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in task.name)
            solution = task.solution(trainer.agent, trainer.args.seed, trainer.wall_s)
            solution.save(folder / f"solution_{name}.json")
    text = io.StringIO()
    columns = list(trainer.curve[0]) if trainer.curve else ["update"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(trainer.curve)
    write_text(folder / "curve.csv", text.getvalue())
    document = {"agent": trainer.agent, "args": trainer.args.json(), "libraries": checkpoints.library_versions()}
    write_text(folder / "curve.json", json.dumps({**document, "rows": trainer.curve}) + "\n")
    where = folder / checkpoints.CHECKPOINT_NAME
    facts = {"fingerprints": trainer.fingerprints()}
    checkpoints.save_checkpoint(where, trainer.agent, trainer.args.json(), trainer.state(), facts)


def rank_advantages(rewards: np.ndarray) -> np.ndarray:
    """float64 [B]: ranks of the rewards (equal rewards share theirs), of mean 0 and at most sqrt(3) apart from it.

    Ranks, because rewards have a long tail: one placement that overflows would drown all differences among the good.
    """
    _, inverse, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2  # mean of the ranks 0.. that equal rewards share
    centred = middle[inverse] - (len(rewards) - 1) / 2
    return centred * (2 * math.sqrt(3) / max(1, len(rewards) - 1))


def clipped_loss(
    log_ratio: torch.Tensor, gains: torch.Tensor, log_probs: torch.Tensor, clip: float, entropy: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO's loss with one clipped ratio for each choice, and the entropy bonus.

    Args:
        log_ratio: of new to old probability of each choice; none: the bonus alone.
        gains: the advantage of each, of a shape that goes with it.
        log_probs: float32 [ops, chips], of the network now.

    Returns:
        The loss, and measures for the learning curve: mean entropy of an op, share of clipped ratios,
        divergence.
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


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
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


def args_from(trainer_class: type[Trainer], given: dict[str, Any]) -> Any:
    """Arguments from a dictionary. Raises InputError for an unknown name, with the nearest known one."""
    known = [one.name for one in dataclasses.fields(trainer_class.args_class)]
    for name in given:
        if name not in known:
            raise unknown_name(f"argument of {trainer_class.agent}", name, known)
    return trainer_class.args_class(**given)


def list_graphs(
    args: Any,
    default_clusters: Callable[[tuple[str, ...]], tuple[str, ...]],
    expand: Callable[[tuple[str, ...]], tuple[str, ...]] = GRAPHS.expand,
) -> None:
    """Makes ``graphs`` and ``clusters`` of frozen arguments tuples of names: ``expand`` puts its graphs' names in the
    place of a split's.

    Raises:
        InputError: no graph, or neither one cluster nor one for each graph.
    """
    for name in ("graphs", "clusters"):
        object.__setattr__(args, name, names(name, getattr(args, name)))
    if not args.graphs:
        raise InputError("graphs is an empty list; name at least one graph")
    object.__setattr__(args, "graphs", expand(args.graphs))
    if not args.clusters:
        object.__setattr__(args, "clusters", default_clusters(args.graphs))
    if len(args.clusters) not in (1, len(args.graphs)):
        raise InputError(
            f"clusters has {len(args.clusters)} entries for {len(args.graphs)} graphs; give one, or one for each"
        )


def kept_arguments(trainer_class: type[Trainer], checkpoint: str | os.PathLike[str], updates: int, seed: int) -> Any:
    """The arguments of a checkpoint, with the updates and the seed of a fine-tuning.

    Raises:
        InputError: written by another version; a negative number.
    """
    kept = checkpoints.load_checkpoint(checkpoint, trainer_class.agent)
    try:
        given = args_from(trainer_class, kept.args)
    except (InputError, TypeError) as error:
        raise InputError(f"{str(checkpoint)!r} was written by another version: {error}; train again") from None
    whole("updates", updates)
    whole("seed", seed)
    return dataclasses.replace(given, seed=seed, **({"updates": updates} if updates else {}))


def tune(trainer: Trainer, task: Task, progress: Progress | None, started: float) -> Solution:
    """Train on one task for the arguments' updates; the best decision on the way, and the seconds since ``started``."""
    with stop_on_interrupt() as stopped:
        while trainer.updates < trainer.args.updates and not stopped():
            for row in trainer.update():
                if progress:
                    progress(row)
    return task.solution(f"{trainer.agent} fine-tuned", trainer.args.seed, time.perf_counter() - started)


def command(
    description: str,
    trainer_class: type[Trainer],
    train: Callable[..., TrainResult],
) -> None:
    """``python -m graphopt_agents.train_…``: an option for each argument, a bar, the result in a line a task."""
    parser = argparse.ArgumentParser(description=description)
    for entry in dataclasses.fields(trainer_class.args_class):
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
            sizes = trainer_class.start_arguments(start_from)
            given |= {name: size for name, size in sizes.items() if given[name] == parser.get_default(name)}
        args = args_from(trainer_class, given)
        from tqdm import tqdm

        from graphopt_gym.report.units import format_cost

        with tqdm(total=args.updates, unit="update", dynamic_ncols=True) as bar:

            def show(row: dict[str, Any]) -> None:
                best = "none valid" if row["best_cost_s"] is None else format_cost(row["best_cost_s"], "s")
                mean, entropy = format_cost(row["mean_cost_s"], "s"), row["entropy"]
                bar.set_postfix_str(f"{row['graph']}: best {best}, mean {mean}, entropy {entropy:.2f}")
                bar.update(row["update"] - bar.n)

            result = train(args, out, resume=resume, progress=show, start_from=start_from)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    for solution in result.solutions():
        problem, outcome = solution.problem, solution.outcome
        text = format_cost(outcome.cost, "s") if outcome.valid else outcome.reasons[0]
        print(f"{problem.graph.name} on {problem.cluster.name}: {text}, {solution.evaluations:,} evaluations")
    if result.interrupted:
        print(f"stopped after {result.updates} updates" + (f"; --resume goes on from {out}" if out else ""))
