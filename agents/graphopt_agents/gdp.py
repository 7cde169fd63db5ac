"""GDP: a graph network that places a whole graph at once, trained on one or several graphs.

    graphopt train gdp --graphs bert_base --clusters v100x4 --out runs/bert
    graphopt train gdp --graphs rnnlm_2layer,gpt2_small --clusters v100x2,v100x4 --out runs/two

The policy is one categorical over devices for each group, all groups decided together (Zhou et al., GDP, 2019); it is
trained by ``core.one_shot``. What GDP does [recalled]: reward ``-sqrt(step time)``, -10 for a placement that does not
fit in memory; the mean reward of the graph's earlier trials as baseline; PPO. All of it is here as
``paper_arguments()``. What learns better, and is the default (ours): the rank of a reward in its batch as the
advantage, placements without room priced by ``PlacementProblem.costs`` (so that less overflow is better; under ranks
the scale of the price does not matter), placements drawn in blocks (``blocks.draw_placements``), and the best few
placements of a graph so far among each batch, together with placements that change one block of them
(``blocks.mutate_placements``), or that the problem's own moves change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphopt_agents.blocks import Blocks, draw_placements, mutate_placements
from graphopt_agents.core.one_shot import OneShotArgs, OneShotTask, OneShotTrainer
from graphopt_agents.core.run import Costs, Name
from graphopt_agents.networks import GraphInput, NetworkConfig, PlacementNetwork
from graphopt_gym.envs.placement.instances import Instance
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_fields, choice
from graphopt_gym.graphs.zoo.registry import ZOO, own_cluster
from graphopt_gym.simulator.own_costs import ARGUMENTS as OWN_COSTS
from graphopt_gym.simulator.own_costs import read_cost_files, stored

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem

REWARDS = ("priced", "papers")
INVALID_REWARD = -10.0
MAX_DEVICES = 16  # places of devices are told apart by waves that are too slow for more
MEMORY_ROUNDS = 50  # of within_memory, at most
PLACE_BATCH = 4  # changed placements that are priced together when a graph is placed


@dataclass(frozen=True)
class Args(OneShotArgs, NetworkConfig):
    """What a run depends on, beside the fields of :class:`OneShotArgs` and :class:`NetworkConfig`."""

    env_id = "Placement-v0"
    config_class = NetworkConfig

    graphs: tuple[str, ...] = ("bert_base",)
    grouping: str = "colocation"  # or "phase", "op"
    order: str = "fifo"  # of a step, or "stream", "program", "rank"
    updates: int = 200
    learning_rate: float = 5e-4
    entropy: float = 0.01
    reward: str = "priced"  # or "papers": -10 where a placement does not fit
    independent: float = 0.3  # share of placements drawn group by group, the others in blocks
    canonical: bool = True  # like devices are named in the order of their groups, see Task.canonical
    moved: float = 0.5  # share of the mutants that change by the problem's own moves, as a local search does
    # costs of one's own, see graphopt_gym.OwnCosts: of one graph on one cluster
    op_times_s: Any = None
    missing_op_times: str = "refuse"
    tensor_bytes: Any = None
    transfer_s: Any = None
    allowed_devices: Any = None
    static_bytes: Any = None
    imitation: float = 0.0  # weight of the log-likelihood of a graph's best placement so far, besides PPO's gain

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, at_least=("imitation",), shares=("independent", "moved"))
        choice("reward", self.reward, REWARDS)
        given = {name: getattr(self, name) for name in OWN_COSTS}
        stated = {name: value for name, value in read_cost_files(given).items() if value is not None}
        costs = [name for name in stated if name != "missing_op_times"]
        if costs and len(self.graphs) * len(self.clusters) > 1:
            raise InputError(
                f"{costs[0]} is of one graph on one cluster; name one of each, not {len(self.graphs)} and "
                f"{len(self.clusters)}"
            )
        for name, value in stated.items():  # as checkpoints hold them
            object.__setattr__(self, name, stored(value))

    def own_clusters(self, graphs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(own_cluster, graphs))


def paper_arguments() -> dict[str, Any]:
    """The arguments that follow GDP where its choices are known [recalled]."""
    ours = {"independent": 1.0, "canonical": False, "starts": False, "mutants": 0.0, "elites": 0}
    return {"reward": "papers", "advantage": "baseline", "use_times": False, "waves": 0, **ours}


@dataclass(kw_only=True)
class Task(OneShotTask):
    """One graph on one cluster, and what the run knows of it."""

    instance: Instance
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
        devices, kinds = self.instance.num_devices, self.instance.problem.interchangeable
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


class Trainer(OneShotTrainer):
    """GDP's runs."""

    agent = "gdp"
    args_class = Args
    network_class = PlacementNetwork
    problem_arguments = ("grouping", "order", *OWN_COSTS)
    graph_arguments = OWN_COSTS

    @classmethod
    def task_of(cls, problem: PlacementProblem, args: Args | None = None, price: Costs | None = None) -> Task:
        """A task of a problem. Raises InputError for a cluster that the network cannot serve."""
        if price is not None and args is not None and args.reward != "priced":
            raise InputError("gdp as a method learns from priced placements; leave reward out")
        instance, cluster = Instance(problem), problem.cluster
        if not 1 <= instance.num_devices <= MAX_DEVICES:
            raise InputError(
                f"cluster {cluster.name!r} has {instance.num_devices} devices, the network serves 1 to {MAX_DEVICES}; "
                "give a smaller one"
            )
        return Task(
            problem=problem,
            price=price or problem.costs,
            instance=instance,
            graph=GraphInput.from_instance(instance),
            blocks=Blocks.of(instance),
            modules=torch.from_numpy(instance.module_of_group),
        )

    def judge(
        self, task: Task, decisions: np.ndarray, costs: np.ndarray, valid: np.ndarray
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        rewards = -np.sqrt(costs)
        return (np.where(valid, rewards, INVALID_REWARD) if self.args.reward == "papers" else rewards), {}

    def draw(self, task: Task, logits: torch.Tensor, count: int) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        log_probs, alone = logits.log_softmax(-1), self.args.independent
        drawn = draw_placements(log_probs, count, self.generator, task.blocks, alone)
        return drawn.numpy().astype(np.int32), {}

    def changed(self, task: Task, logits: torch.Tensor, count: int) -> np.ndarray:
        count -= round(count * self.args.moved)
        if not count:
            return super().changed(task, logits, count)
        best = torch.from_numpy(np.stack([one[2] for one in task.elites])).long()
        allowed = task.graph.allowed
        changed = mutate_placements(best, logits.log_softmax(-1), count, self.generator, task.blocks, allowed)
        return changed.numpy().astype(np.int32)

    def named(self, task: Task, decisions: np.ndarray, logits: torch.Tensor) -> np.ndarray:
        return task.canonical(decisions) if self.args.canonical else decisions

    def more_loss(self, task: Task, logits: torch.Tensor) -> torch.Tensor | float:
        if not (self.args.imitation and task.elites):
            return 0.0
        best = torch.from_numpy(task.elites[0][2]).long()
        loss: torch.Tensor = self.args.imitation * torch.nn.functional.cross_entropy(logits, best)
        return loss

    @classmethod
    def decide(
        cls, network: PlacementNetwork, task: Task, samples: int, seed: int, wall_s: Callable[[], float]
    ) -> None:
        """The first sample is the likeliest placement where each module is in one piece: a module's groups, such as
        the steps of an unrolled layer, go where the mean of their log-probabilities is highest. The second is the
        likeliest device of each group by itself. Where the policy might fill a device beyond its memory, the next two
        are the same of :func:`within_memory`. The rest change a block of the best so far, as in training,
        :data:`PLACE_BATCH` at a time.
        """

        def price(placements: torch.Tensor) -> np.ndarray:
            return cls.try_decisions(task, placements.numpy().astype(np.int32), wall_s)

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            log_probs = network(task.graph).log_softmax(-1)
        lighter = within_memory(log_probs, task)
        likeliest = [log_probs] if torch.equal(lighter, log_probs) else [log_probs, lighter]
        masked = task.graph.masked
        likeliest = [one for policy in likeliest for one in (masked(module_mean(policy, task.modules)), policy)]
        tried = torch.stack([one.argmax(1) for one in likeliest])[:samples]
        costs = np.concatenate([price(one) for one in tried.split(1)])
        while len(tried) < samples:
            best = tried[int(np.argmin(costs))][None]
            count = min(PLACE_BATCH, samples - len(tried))
            changed = mutate_placements(best, lighter, count, generator, task.blocks, task.graph.allowed)
            tried, costs = torch.cat([tried, changed]), np.append(costs, price(changed))

    @classmethod
    def usual_cluster(cls, graph: Name, args: Args) -> Any:
        """The one that the policy was trained on with this graph, else the graph's own (a graph of a paper), else the
        first that it was trained on."""
        if not isinstance(graph, str):
            return args.clusters[0]
        trained = dict(zip(reversed(args.graphs), reversed(args.each_cluster()), strict=True))
        return trained.get(graph) or (ZOO[graph].cluster if graph in ZOO else None) or args.clusters[0]


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


def module_mean(log_probs: torch.Tensor, modules: torch.Tensor) -> torch.Tensor:
    """float32 [G, D]: the mean over the groups of each group's module, of ``log_probs`` float32 [G, D].

    ``modules``: int64 [G], the module of each group, 0 to M - 1.
    """
    count = torch.bincount(modules).unsqueeze(1)
    total = log_probs.new_zeros(len(count), log_probs.shape[1]).index_add_(0, modules, log_probs)
    return (total / count)[modules]


args_from, make_task, task_of, load_network = (
    Trainer.args_from,
    Trainer.make_task,
    Trainer.task_of,
    Trainer.load_network,
)
train, place, evaluate, method_run = Trainer.train, Trainer.place, Trainer.evaluate, Trainer.method_run
