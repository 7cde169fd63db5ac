"""Train the policy of chiplet partition on one or several graphs: one file, top to bottom.

    python -m graphopt_agents.train_chiplet --graphs bert_2138 --clusters mcm36 --out runs/bert
    python -m graphopt_agents.train_chiplet --graphs inference_train --clusters mcm36 --out runs/all

An update takes a few (graph, package) pairs; for each it draws a batch of partitions from the policy through the
corrector (SAMPLE), prices them, and takes a few steps of PPO (Xie et al., MLSys 2022). What the paper leaves open, and
we chose:

- The ratio of new to old probability is that of each op's choice *among the chips that the corrector left it*, clipped
  for each op by itself. Ops whose chip followed from others' choices are left out: nothing was chosen there.
- The advantage is the rank of a partition's cost in its batch; one that does not fit the memory is priced by
  ``ChipletProblem.costs``, so that less overflow is better. ``advantage="baseline"`` is the paper's [recalled]: the
  throughput relative to the greedy heuristic, 0 where invalid, minus the mean of the graph's earlier trials.
- ``mutants``: a share of the batch that is not drawn from the policy but changes one of the best partitions so far by
  the problem's own move, through the corrector's FIX; the policy learns from these and from the best themselves as if
  it had drawn them. 0: PPO alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphopt_agents import checkpoints, training
from graphopt_agents.gdp import check_share
from graphopt_agents.networks.chiplet import ChipletConfig, ChipletInput, ChipletNetwork
from graphopt_agents.training import Costs, Progress, TrainResult, rank_advantages, stop_on_interrupt
from graphopt_gym.envs.chiplet.methods import greedy_decision
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.graphs.zoo.registry import graphs_in
from graphopt_gym.problem import Solution
from graphopt_gym.search.solve import Evaluator

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.package import Package

AGENT = "chiplet"
ADVANTAGES = ("rank", "baseline")
DEFAULT_PACKAGE = "mcm36"
SHARPENED = 4  # how much sharper than in training the policy is drawn from, at most, when a graph is partitioned
PLACE_BATCH = 8


@dataclass(frozen=True)
class Args(ChipletConfig):
    """What a run depends on, beside the fields of :class:`ChipletConfig`; stored with the checkpoint."""

    graphs: tuple[str, ...] = ("bert_base",)  # names, paths, and splits of the zoo, which become their graphs' names
    clusters: tuple[str, ...] = (DEFAULT_PACKAGE,)  # packages: one for all graphs, or one for each
    memory_rule: bool = False  # whether the corrector keeps to the memory
    solver: bool = True  # false: partitions as the policy draws them, uncorrected
    seed: int = 0
    updates: int = 100
    samples: int = 20  # partitions of a graph in an update, each one evaluation
    graphs_per_update: int = 4  # at most; each graph in turn
    epochs: int = 4  # PPO steps an update
    learning_rate: float = 1e-3
    clip: float = 0.2
    entropy: float = 0.003  # bonus for the mean entropy of an op
    max_grad_norm: float = 1.0
    advantage: str = "rank"  # in the batch; or "baseline"
    mutants: float = 0.5  # share of the batch that changes one of the best
    elites: int = 8  # the best partitions of a graph so far, learned from in each of its updates; 0: none
    starts: bool = False  # whether the first of them are those of cheap heuristics, one evaluation each
    checkpoint_every: int = 20  # updates

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("graphs", "clusters"):
            object.__setattr__(self, name, training.names(name, getattr(self, name)))
        if not self.graphs:
            raise InputError("graphs is an empty list; name at least one graph")
        object.__setattr__(self, "graphs", graphs_in(self.graphs))
        if not self.clusters:
            object.__setattr__(self, "clusters", (DEFAULT_PACKAGE,))
        training.one_cluster_each(self.graphs, self.clusters)
        least = {"seed": 0, "updates": 1, "samples": 2, "graphs_per_update": 1, "epochs": 1, "elites": 0}
        training.check_whole(self, {**least, "checkpoint_every": 1})
        training.check_numbers(self, ("learning_rate", "clip", "max_grad_norm"), ("entropy",))
        training.check_flags(self)
        check_share("mutants", self.mutants)
        if self.mutants and not self.elites:
            raise InputError(
                f"mutants is {self.mutants} and elites is 0; mutants change elites: give some, or 0 mutants"
            )
        if round(self.samples * self.mutants) == self.samples:
            raise InputError(
                f"mutants is {self.mutants}, which leaves none of {self.samples} samples to the policy; give a smaller "
                "share, or more samples"
            )
        if self.advantage not in ADVANTAGES:
            raise unknown_name("advantage", self.advantage, ADVANTAGES)

    def each_cluster(self) -> tuple[str, ...]:
        """The package of each graph."""
        return self.clusters * len(self.graphs) if len(self.clusters) == 1 else self.clusters

    def network(self) -> ChipletConfig:
        return ChipletConfig(**{one.name: getattr(self, one.name) for one in dataclasses.fields(ChipletConfig)})

    def json(self) -> dict[str, Any]:
        """As JSON has it: lists in place of tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def paper_arguments() -> dict[str, Any]:
    """The arguments that follow the paper where its choices are known."""
    return {"advantage": "baseline", "mutants": 0.0, "elites": 0, "anchored": False}


def args_from(given: dict[str, Any]) -> Args:
    """Arguments from a dictionary. Raises InputError for an unknown name, with the nearest known one."""
    known = [one.name for one in dataclasses.fields(Args)]
    for name in given:
        if name not in known:
            raise unknown_name("argument of chiplet", name, known)
    return Args(**given)


@dataclass(kw_only=True)
class Task(training.Task):
    """One graph on one package."""

    problem: ChipletProblem
    graph: ChipletInput

    @cached_property
    def greedy_s(self) -> float:
        """The period of the greedy heuristic's partition: what throughput is relative to."""
        return float(self.problem.costs(greedy_decision(self.problem)[None])[0][0])


@dataclass(frozen=True)
class Batch:
    """Partitions int32 [B, N] and the sets of chips, as bits int64 [B, N], that each chip was chosen from; 0 where an
    op had no choice."""

    decisions: np.ndarray
    drawn_from: np.ndarray


def make_task(
    graph: str | os.PathLike[str] | ComputationGraph,
    package: str | os.PathLike[str] | Package,
    memory_rule: bool = False,
    price: Costs | None = None,
) -> Task:
    """A task to train on or to partition. Raises InputError for unknown names."""
    return task_of(ChipletProblem(graph, package, memory_rule=memory_rule), price)


def task_of(problem: ChipletProblem, price: Costs | None = None) -> Task:
    """A task of a problem; ``price`` in place of its ``costs``."""
    return Task(problem=problem, price=price or problem.costs, graph=ChipletInput.from_problem(problem))


class Trainer(training.Trainer):
    """The state of a run, and one update of it. Give tasks with different names."""

    agent = AGENT

    def new_network(self) -> ChipletNetwork:
        return ChipletNetwork(self.args.network())

    def update(self) -> list[dict[str, Any]]:
        """One update on the next few tasks; returns a row of the learning curve for each."""
        args = self.args
        batches, rows = [], []
        for task in self.next_tasks():
            if args.starts and args.elites and not task.trials:
                decisions, costs, valid = task.starts(self.rng, self.wall_s)
                rewards = self._rewards(task, costs, valid)
                task.keep_elites(decisions, costs, rewards, args.elites)
                task.count(rewards)
            with torch.no_grad():
                old = self.network(task.graph)
            batch, costs, valid = self._try(task, old)
            rewards = self._rewards(task, costs, valid)
            task.keep_elites(batch.decisions, costs, rewards, args.elites)
            batch, advantages = self._with_elites(task, batch, rewards)
            task.count(rewards)
            choices = Choices.of(batch, task.problem.num_chips)
            batches.append((task, choices, torch.from_numpy(advantages).float(), choices.log_probs(old)))
            rows.append(self.row(task, costs, valid, rewards))
        for _ in range(args.epochs):
            self.optimizer.zero_grad()
            for (task, choices, gains, before), row in zip(batches, rows, strict=True):
                logits = self.network(task.graph)
                loss, measures = ppo_loss(logits, choices, gains, before, args.clip, args.entropy)
                (loss / len(batches)).backward()
                row |= measures
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), args.max_grad_norm)
            self.optimizer.step()
        return self.finish_update(rows)

    def _rewards(self, task: Task, costs: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """float64 [B]: minus the cost for ranks; else throughput relative to greedy's, none where invalid."""
        if self.args.advantage == "rank":
            return -costs
        return np.where(valid, task.greedy_s / costs, 0.0)

    def _try(self, task: Task, logits: torch.Tensor) -> tuple[Batch, np.ndarray, np.ndarray]:
        """(batch, costs, valid): partitions from the policy, and changed ones of the best so far."""
        args = self.args
        mutants = round(args.samples * args.mutants) if task.elites else 0
        chances = logits.softmax(1).double().numpy()
        drawn = sample(task.problem, chances, args.samples - mutants, self.rng, args.solver)
        prices = [task.evaluate(drawn.decisions, self.wall_s)]
        parts = [drawn]
        for _ in range(mutants):  # one at a time, so that one can build on another
            task.keep_elites(parts[-1].decisions, prices[-1][0], self._rewards(task, *prices[-1]), args.elites)
            changed = task.problem.neighbour(task.elite(self.rng), self.rng)[None]
            parts.append(Batch(changed, np.full(changed.shape, every_chip(task.problem.num_chips))))
            prices.append(task.evaluate(changed, self.wall_s, sum(len(part.decisions) for part in parts[:-1])))
        costs, valid = (np.concatenate(part) for part in zip(*prices, strict=True))
        batch = Batch(
            np.concatenate([part.decisions for part in parts]), np.concatenate([part.drawn_from for part in parts])
        )
        return batch, costs, valid

    def _with_elites(self, task: Task, batch: Batch, rewards: np.ndarray) -> tuple[Batch, np.ndarray]:
        """The batch with the task's best partitions so far, and an advantage for each row."""
        if task.elites:
            best = np.stack([one[2] for one in task.elites])
            every = np.full(best.shape, every_chip(task.problem.num_chips))
            batch = Batch(np.concatenate([batch.decisions, best]), np.concatenate([batch.drawn_from, every]))
            rewards = np.concatenate([rewards, [one[1] for one in task.elites]])
        if self.args.advantage == "rank":
            return batch, rank_advantages(rewards)
        baseline = task.reward_mean if task.trials else float(rewards.mean())
        return batch, (rewards - baseline) / (rewards.std() + 1e-8)


def every_chip(count: int) -> np.int64:
    """The set of all chips, as bits."""
    return np.int64((1 << count) - 1)


def sample(
    problem: ChipletProblem, chances: np.ndarray, count: int, rng: np.random.Generator, solver: bool = True
) -> Batch:
    """Partitions drawn from float64 [N, C]: through the corrector, or each op by itself."""
    if solver:
        corrections = [problem.corrector.sample(chances, rng) for _ in range(count)]
        return Batch(np.stack([one.decision for one in corrections]), np.stack([one.drawn_from for one in corrections]))
    above = rng.random((count, problem.num_ops, 1)) * chances.sum(1)[:, None] > np.cumsum(chances, axis=1)[:, :-1]
    decisions = above.sum(axis=2, dtype=np.int32)
    return Batch(decisions, np.full(decisions.shape, every_chip(problem.num_chips)))


@dataclass(frozen=True)
class Choices:
    """What was chosen in a batch of partitions, and what from."""

    chips: torch.Tensor  # int64 [B, N, 1]
    left_out: torch.Tensor  # bool [B, N, C] chips that an op could not choose; none of an op without choice
    chosen: torch.Tensor  # bool [B, N] ops that had a choice

    @classmethod
    def of(cls, batch: Batch, num_chips: int) -> Choices:
        free = torch.from_numpy((batch.drawn_from[:, :, None] >> np.arange(num_chips) & 1).astype(bool))
        chosen = free.sum(2) > 1
        return cls(torch.from_numpy(batch.decisions).long().unsqueeze(2), ~free & chosen.unsqueeze(2), chosen)

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 [B, N]: the log-probability of each op's chip among those it could choose, of logits [N, C]."""
        lowest = torch.finfo(logits.dtype).min
        return (
            logits.expand_as(self.left_out)
            .masked_fill(self.left_out, lowest)
            .log_softmax(2)
            .gather(2, self.chips)[..., 0]
        )


def ppo_loss(
    logits: torch.Tensor,
    choices: Choices,
    advantages: torch.Tensor,
    before: torch.Tensor,
    clip: float,
    entropy: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO's clipped loss with one ratio for each op that had a choice, and the entropy bonus.

    Args:
        logits: float32 [N, C].
        choices: of B partitions; ``before``: float32 [B, N], their log-probabilities when drawn.
        advantages: float32 [B], the same for all ops of a partition.

    Returns:
        The loss, and measures for the learning curve: mean entropy of an op, share of clipped ratios, divergence, share
        of ops that had a choice.
    """
    log_ratio = choices.log_probs(logits) - before
    ratio, gains = log_ratio.exp(), advantages.unsqueeze(1)
    gain = torch.min(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains)
    count = choices.chosen.sum().clamp(min=1)
    gain = gain.where(choices.chosen, torch.zeros_like(gain)).sum() / count
    log_probs = logits.log_softmax(1)
    mean_entropy = -(log_probs.exp() * log_probs).sum(1).mean()
    with torch.no_grad():
        chosen = log_ratio[choices.chosen]
        measures = {
            "entropy": float(mean_entropy),
            "clipped_share": float(((chosen.exp() - 1).abs() > clip).float().mean()) if len(chosen) else 0.0,
            "divergence": float((chosen.exp() - 1 - chosen).mean()) if len(chosen) else 0.0,
            "chosen_share": float(choices.chosen.float().mean()),
        }
    return -gain - entropy * mean_entropy, measures


def train(
    args: Args,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    start_from: str | os.PathLike[str] | None = None,
) -> TrainResult:
    """Train on the graphs of ``args``; see :func:`training.run` for the other arguments.

    ``start_from``: a checkpoint whose network to start from (fine-tuning); optimiser and counts start anew.

    Raises:
        InputError: bad arguments; what :func:`training.run` raises.
    """

    def make_trainer() -> Trainer:
        tasks = [
            make_task(graph, package, args.memory_rule)
            for graph, package in zip(args.graphs, args.each_cluster(), strict=True)
        ]
        network = None
        if start_from is not None:
            network = load_network(start_from)
            if network.config != args.network():
                raise InputError(
                    f"{str(start_from)!r} holds a network of other sizes than the arguments name; leave them out"
                )
        return Trainer(args, tasks, network)

    return training.run(make_trainer, args, AGENT, out, resume, progress)


def load_network(path: str | os.PathLike[str]) -> ChipletNetwork:
    """The network of a checkpoint.

    Raises:
        InputError: see :func:`checkpoints.load_checkpoint`; weights that do not fit its arguments.
    """
    kept = checkpoints.load_checkpoint(path, AGENT)
    try:
        known = [one.name for one in dataclasses.fields(ChipletConfig)]
        config = ChipletConfig(**{name: kept.args[name] for name in known})
    except (KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} is damaged: its arguments are incomplete ({error}); train again") from None
    network = ChipletNetwork(config)
    checkpoints.load_weights(network, kept.state.get("network", {}), str(path))
    return network


def start_arguments(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The sizes of a checkpoint's network, which a run that starts from it takes over."""
    return dataclasses.asdict(load_network(path).config)


def place(network: ChipletNetwork, task: Task, samples: int = 1, seed: int = 0) -> Solution:
    """Partition a graph with a trained network as it is, no weight of it changed (zero-shot).

    Args:
        samples: evaluations in all. The first is the likeliest chip of each op, corrected by FIX; the rest are drawn
            by SAMPLE, from ever sharper chances.

    The best of them.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples is {samples!r}; give a whole number, at least 1")
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        log_probs = network(task.graph).log_softmax(1).double()
    likeliest = log_probs.argmax(1).numpy().astype(np.int32)
    tried = [task.problem.corrector.fix(likeliest, rng).decision[None]]
    done = 1
    _price(task, tried[0], started)
    while done < samples:
        sharp = float(rng.uniform(1, SHARPENED))
        drawn = sample(task.problem, (log_probs * sharp).softmax(1).numpy(), min(PLACE_BATCH, samples - done), rng)
        _price(task, drawn.decisions, started)
        done += len(drawn.decisions)
    return task.solution(f"{AGENT} zero-shot", seed, time.perf_counter() - started)


def _price(task: Task, decisions: np.ndarray, started: float) -> None:
    """Have partitions evaluated as trials of the task."""
    costs, _ = task.evaluate(decisions, time.perf_counter() - started)
    task.count(-costs)


def evaluate(
    checkpoint: str | os.PathLike[str],
    graph: str | os.PathLike[str] | ComputationGraph | None = None,
    cluster: str | os.PathLike[str] | Package | None = None,
    *,
    samples: int = 1,
    updates: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Partition one graph with a trained policy, zero-shot or after fine-tuning on it.

    Args:
        checkpoint: the folder or file that training wrote.
        graph, cluster: the first of its own where left out.
        samples: evaluations of the policy as it is.
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
    task = make_task(
        given.graphs[0] if graph is None else graph,
        given.clusters[0] if cluster is None else cluster,
        given.memory_rule,
    )
    network = load_network(checkpoint)
    if not updates:
        return place(network, task, samples, seed)
    return fine_tune(network, task, dataclasses.replace(given, seed=seed, updates=updates), progress)


def fine_tune(network: ChipletNetwork, task: Task, args: Args, progress: Progress | None = None) -> Solution:
    """Train a network (changed in place) on one task for ``args.updates``; the best partition on the way.

    The likeliest partition before the first update is evaluated too.
    """
    started = time.perf_counter()
    trainer = Trainer(args, [task], network)
    place(network, task)
    with stop_on_interrupt() as stopped:
        while trainer.updates < args.updates and not stopped():
            for row in trainer.update():
                if progress:
                    progress(row)
    return task.solution(f"{AGENT} fine-tuned", args.seed, time.perf_counter() - started)


def method_run(
    start_from: str | os.PathLike[str] | None = None, **arguments: Any
) -> Callable[[Evaluator, np.random.Generator], None]:
    """The policy on one problem, from scratch or from a checkpoint, as a method of ``solve``: ``run(evaluator, rng)``.

    It trains until the evaluator's budget is spent; from a checkpoint, the likeliest partition comes first.
    ``arguments``: fields of :class:`Args`.
    """

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        network, given = None, {"seed": int(rng.integers(2**31)), **arguments}
        if start_from is not None:
            network = load_network(start_from)
            given = {**dataclasses.asdict(network.config), **given}
        args = args_from(given)
        task = task_of(evaluator.problem, evaluator.costs_and_valid)  # type: ignore[arg-type]
        trainer = Trainer(args, [task], network)
        if network is not None:
            place(network, task)
        while evaluator.left > 0:
            trainer.update()

    return run


def zero_shot_run(start_from: str | os.PathLike[str]) -> Callable[[Evaluator, np.random.Generator], None]:
    """A checkpoint as it is, as a method of ``solve``: :func:`place` until the budget is spent."""

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        task = task_of(evaluator.problem, evaluator.costs_and_valid)  # type: ignore[arg-type]
        place(load_network(start_from), task, evaluator.left, int(rng.integers(2**31)))

    return run


def main() -> None:
    training.command("Train the policy of chiplet partition.", Args, args_from, start_arguments, train)


if __name__ == "__main__":
    main()
