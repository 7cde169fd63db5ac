"""GO: one policy that places, fuses and schedules a whole graph at once, trained on one or several graphs.

    graphopt train go --graphs bert_base --clusters v100x4 --out runs/bert

The network is :class:`JointNetwork`; the policy is one categorical for each entry of a decision, and it is trained by
``core.one_shot``, as GDP is. As there, a share of each batch changes the best decisions so far (ours; ``mutants=0``,
``elites=0`` and ``starts=False`` turn it off). How levels are drawn is ours too, see :func:`levels.draw_levels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from graphopt_agents import gdp, gdp_search
from graphopt_agents.blocks import Blocks, draw_placements, mutate_placements
from graphopt_agents.core.guided import train_then_anneal
from graphopt_agents.core.one_shot import OneShotArgs, OneShotTrainer
from graphopt_agents.core.run import Costs, Run
from graphopt_agents.levels import draw_levels, redraw
from graphopt_agents.networks.joint import JointConfig, JointInput, JointNetwork
from graphopt_gym.envs.joint.instances import Instance
from graphopt_gym.envs.joint.problem import TASKS, WEIGHTS
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_fields
from graphopt_gym.graphs.zoo.registry import own_cluster

if TYPE_CHECKING:
    from graphopt_gym.envs.joint.problem import GraphOptimizationProblem


@dataclass(frozen=True)
class Args(OneShotArgs, JointConfig):
    """What a run depends on, beside the fields of :class:`OneShotArgs` and :class:`JointConfig`."""

    env_id = "GraphOptimization-v0"
    config_class = JointConfig

    graphs: tuple[str, ...] = ("bert_base",)
    tasks: str = "+".join(TASKS)  # what is decided
    levels: int = 16
    updates: int = 100
    epochs: int = 4
    learning_rate: float = 3e-3
    entropy: float = 0.003
    independent: float = 0.3  # share of placements drawn group by group, the others in blocks
    ordered: float = 0.9  # share of decisions whose levels share their noise, in the order of random features
    moved: float = 0.5  # share of the mutants that change by the problem's own moves, as a local search does
    canonical: bool = True  # like devices are named as the policy would, see Task.named

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"levels": 2}, shares=("independent", "ordered", "moved"))

    def own_clusters(self, graphs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(own_cluster, graphs))


@dataclass(kw_only=True)
class Task(gdp.Task):
    """One graph on one cluster, and what the run knows of it. ``instance``: of the placement of its groups."""

    whole: Instance
    told: np.ndarray | None = None  # the decision that ``graph`` tells of

    def named(self, decisions: np.ndarray, logits: torch.Tensor) -> np.ndarray:
        """The same decisions with interchangeable devices named as the policy would, of its logits float32 [length, C];
        where it does not care, in the order of their groups.

        Named by their groups alone, what a policy draws most may bear the name that it draws least: what it then
        unlearns is the other, until it draws nothing else.
        """
        problem: GraphOptimizationProblem = self.whole.problem
        if "placement" not in problem.tasks:
            return decisions
        part, devices = problem.slices["placement"], problem.num_devices
        changed, kinds = decisions.copy(), problem.placing.interchangeable
        rows = self.canonical(decisions[:, part])
        log_probs = logits[part, :devices].log_softmax(-1).double().numpy()
        for row in rows:
            likely = np.zeros((devices, devices))
            np.add.at(likely, row, log_probs)
            names = np.arange(devices, dtype=np.int32)
            for kind in range(int(kinds.max()) + 1):
                members = np.flatnonzero(kinds == kind)
                names[members] = members[linear_sum_assignment(likely[np.ix_(members, members)], maximize=True)[1]]
            row[:] = names[row]
        changed[:, part] = rows
        return changed


class PolicyMoves:
    """A problem as a local search sees it, where one in five moves is drawn from a policy.

    Args:
        problem: what is searched.
        probs: float64 [length, C], the policy's probabilities.
    """

    has_walk = False  # none has the policy's moves

    def __init__(self, problem: GraphOptimizationProblem, probs: np.ndarray) -> None:
        self.problem, self.probs = problem, probs
        self.decision_shape, self.slow_moves = problem.decision_shape, problem.slow_moves
        self.placing = None
        if "placement" in problem.tasks:
            part = problem.slices["placement"]
            self.placing = gdp_search.PolicyMoves(problem.placing, probs[part, : problem.num_devices], own=0.0)

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A changed copy of a decision int32 [length]."""
        problem = self.problem
        if rng.random() < gdp_search.OWN_MOVES:
            return problem.neighbour(decision, rng)
        task, changed = problem.draw_task(rng), decision.copy()
        part = problem.slices[task]
        if task == "placement":
            assert self.placing is not None
            changed[part] = self.placing.neighbour(changed[part], rng)
        else:
            redraw(changed[part], problem.moves[task], self.probs[part, : problem.levels], rng)
        return changed


def draw_decisions(
    task: Task, logits: torch.Tensor, count: int, args: Args, rng: np.random.Generator, generator: torch.Generator
) -> np.ndarray:
    """int32 [count, length] of logits float32 [length, C]: placements by blocks, levels as :func:`draw_levels`."""
    problem: GraphOptimizationProblem = task.whole.problem
    drawn = np.empty((count, len(logits)), np.int32)
    for name, part in problem.slices.items():
        if name == "placement":
            log_probs = logits[part, : problem.num_devices].log_softmax(-1)
            drawn[:, part] = draw_placements(log_probs, count, generator, task.blocks, args.independent).numpy()
        else:
            mine = logits[part, : problem.levels]
            drawn[:, part] = draw_levels(mine, task.whole.features, count, rng, args.ordered)
    return drawn


class Trainer(OneShotTrainer):
    """GO's runs."""

    agent = "go"
    args_class = Args
    network_class = JointNetwork
    problem_arguments = ("tasks", "levels")

    @classmethod
    def task_of(cls, problem: GraphOptimizationProblem, args: Args | None = None, price: Costs | None = None) -> Task:
        """A task of a problem. Raises InputError for a cluster that the network cannot serve."""
        if not 1 <= problem.num_devices <= gdp.MAX_DEVICES:
            raise InputError(
                f"cluster {problem.cluster.name!r} has {problem.num_devices} devices, the network serves 1 to "
                f"{gdp.MAX_DEVICES}; give a smaller one"
            )
        whole = Instance(problem)
        return Task(
            problem=problem,
            price=price or problem.costs,
            whole=whole,
            instance=whole.placing,
            graph=JointInput.from_instance(whole),
            blocks=Blocks.of(whole.placing),
            modules=torch.from_numpy(whole.placing.module_of_group),
        )

    def draw(self, task: Task, logits: torch.Tensor, count: int) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        return draw_decisions(task, logits, count, self.args, self.rng, self.generator), {}

    def changed(self, task: Task, logits: torch.Tensor, count: int) -> np.ndarray:
        """Elites of which one task's block is drawn anew from the policy."""
        count -= round(count * self.args.moved)
        problem = task.whole.problem
        rows = np.stack([task.elite(self.rng) for _ in range(count)]) if count else np.empty((0, len(logits)), np.int32)
        weights = np.cumsum([WEIGHTS[name] for name in problem.tasks])
        which = np.searchsorted(weights, self.rng.random(count) * weights[-1], side="right")
        for index, (name, part) in enumerate(problem.slices.items()):
            mine = np.flatnonzero(which == index)
            if not len(mine):
                continue
            if name == "placement":
                log_probs = logits[part, : problem.num_devices].log_softmax(-1)
                best = torch.from_numpy(rows[mine, part]).long()
                allowed = task.graph.place.allowed
                drawn = torch.cat(
                    [mutate_placements(one[None], log_probs, 1, self.generator, task.blocks, allowed) for one in best]
                ).numpy()
            else:
                chances = logits[part, : problem.levels].softmax(1).double().numpy()
                for row in mine:
                    redraw(rows[row, part], problem.moves[name], chances, self.rng)
                continue
            rows[mine, part] = drawn
        return rows

    def named(self, task: Task, decisions: np.ndarray, logits: torch.Tensor) -> np.ndarray:
        return task.named(decisions, logits) if self.args.canonical else decisions

    def update(self) -> list[dict[str, Any]]:
        if self.args.timeline:
            for task in self.tasks:
                if task.elites and task.elites[0][2] is not task.told:
                    task.told = task.elites[0][2]
                    task.graph = task.graph.after(task.whole, task.told)
        return super().update()

    @classmethod
    def decide(cls, network: Any, task: Task, samples: int, seed: int, wall_s: Callable[[], float]) -> None:
        """The likeliest decision, then others drawn as in training."""
        with torch.no_grad():
            logits = network(task.graph)
        likeliest = logits.argmax(1).numpy().astype(np.int32)[None]
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        drawn = draw_decisions(task, logits, samples - 1, Args(), rng, generator)
        cls.try_decisions(task, np.concatenate([likeliest, drawn]), wall_s)


args_from, make_task, task_of, load_network = (
    Trainer.args_from,
    Trainer.make_task,
    Trainer.task_of,
    Trainer.load_network,
)


def search_run(share: float = 0.25, start_from: Any = None, **arguments: Any) -> Run:
    """GO followed by annealing, as a method of ``solve``: ``run(evaluator, rng)``; see :func:`train_then_anneal`."""
    return train_then_anneal(
        Trainer, lambda problem, task, probs: PolicyMoves(problem, probs), share, start_from, arguments
    )


train, place, evaluate, method_run = Trainer.train, Trainer.place, Trainer.evaluate, Trainer.method_run
