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

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphopt_agents import training
from graphopt_agents.gdp import Blocks, draw_placements, mutate_placements
from graphopt_agents.networks import GraphInput, NetworkConfig, PlacementNetwork
from graphopt_agents.training import Costs, Progress, TrainResult, clipped_loss, rank_advantages
from graphopt_gym.envs.placement.instances import Instance, load_instance
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.fields import check_fields, whole
from graphopt_gym.graphs.zoo.registry import ZOO, own_cluster
from graphopt_gym.problem import Solution
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


@dataclass(frozen=True)
class Args(training.GraphArgs, NetworkConfig):
    """What a run depends on, beside the fields of :class:`NetworkConfig`; stored with the checkpoint."""

    config_class = NetworkConfig

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
        training.list_graphs(self, lambda graphs: tuple(map(own_cluster, graphs)))
        least = {"seed": 0, "updates": 1, "samples": 2, "graphs_per_update": 1, "epochs": 1, "elites": 0}
        check_fields(
            self,
            {**least, "checkpoint_every": 1},
            above=("learning_rate", "clip", "max_grad_norm"),
            at_least=("entropy", "imitation"),
            shares=("independent", "mutants", "moved"),
        )
        if self.elites and round(self.samples * self.mutants) == self.samples:
            raise InputError(
                f"mutants is {self.mutants}, which leaves none of {self.samples} samples to the policy; give a smaller "
                "share, or more samples"
            )
        if self.reward not in REWARDS:
            raise unknown_name("reward", self.reward, REWARDS)
        if self.advantage not in ADVANTAGES:
            raise unknown_name("advantage", self.advantage, ADVANTAGES)


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
    return training.args_from(Trainer, given)  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class Task(training.Task):
    """One graph on one cluster, and what the run knows of it."""

    instance: Instance
    graph: GraphInput
    blocks: Blocks
    modules: torch.Tensor  # int64 [G], see Instance.module_of_group

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
    return Task(
        problem=instance.problem,
        price=price or instance.problem.costs,
        instance=instance,
        graph=GraphInput.from_instance(instance),
        blocks=Blocks.of(instance),
        modules=torch.from_numpy(instance.module_of_group),
    )


class Trainer(training.Trainer):
    """The state of a run, and one update of it. Give tasks with different names."""

    agent = AGENT
    args_class = Args
    network_class = PlacementNetwork

    def update(self) -> list[dict[str, Any]]:
        """One update on the next few tasks; returns a row of the learning curve for each."""
        args = self.args
        batches, rows = [], []
        for task in self.next_tasks():
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
            rows.append(self.row(task, costs, valid, rewards))
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
        return self.finish_update(rows)

    def _start(self, task: Task) -> None:
        """Have the heuristics that local searches start from place the graph."""
        decisions, costs, valid = task.starts(self.rng, self.wall_s)
        rewards = self._rewards(costs, valid)
        task.keep_elites(self._named(task, decisions), costs, rewards, self.args.elites)
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
            row = task.elite(self.rng)
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
    return clipped_loss(log_probs.gather(1, actions) - before, advantages, log_probs, clip, entropy)


def train(
    args: Args,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    start_from: str | os.PathLike[str] | None = None,
) -> TrainResult:
    """Train on the graphs of ``args``; see :func:`training.run` for the other arguments.

    Raises:
        InputError: bad arguments; what :func:`training.run` raises; a cluster that the network cannot serve.
    """

    def make_tasks() -> list[Task]:
        pairs = zip(args.graphs, args.each_cluster(), strict=True)
        return [make_task(graph, cluster, args.grouping) for graph, cluster in pairs]

    return training.run(Trainer, make_tasks, args, out, resume, progress, start_from)


def load_network(path: str | os.PathLike[str]) -> PlacementNetwork:
    """The network of a checkpoint, see :meth:`training.Trainer.load_network`."""
    return Trainer.load_network(path)  # type: ignore[no-any-return]


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
    whole("samples", samples, 1)
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
    return task.solution(f"{AGENT} zero-shot", seed, time.perf_counter() - started)


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
    progress: Progress | None = None,
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
    given = training.kept_arguments(Trainer, checkpoint, updates, seed)
    graph = given.graphs[0] if graph is None else graph
    if cluster is None:
        trained = dict(zip(reversed(given.graphs), reversed(given.each_cluster()), strict=True))
        paper = ZOO[graph].cluster if isinstance(graph, str) and graph in ZOO else None
        cluster = (trained.get(graph) if isinstance(graph, str) else None) or paper or given.clusters[0]
    task = make_task(graph, cluster, given.grouping)
    network = load_network(checkpoint)
    if not updates:
        return place(network, task, samples, seed)
    return fine_tune(network, task, given, progress)


def fine_tune(network: PlacementNetwork, task: Task, args: Args, progress: Progress | None = None) -> Solution:
    """Train a network (changed in place) on one task for ``args.updates``; the best placement on the way.

    The likeliest placement before the first update is evaluated too.
    """
    started = time.perf_counter()
    trainer = Trainer(args, [task], network)
    place(network, task)
    return training.tune(trainer, task, progress, started)


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


def main() -> None:
    training.command("Train GDP's placement policy.", Trainer, train)


if __name__ == "__main__":
    main()
