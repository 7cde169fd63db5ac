"""Op fusion: in which order producers are fused into their consumers, on devices that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.catalog import stored_name
from graphopt_gym.envs.core.level_moves import LevelMoves
from graphopt_gym.envs.core.placed import fixed_placement
from graphopt_gym.envs.core.steps import LevelProblem
from graphopt_gym.fields import choice, whole
from graphopt_gym.simulator.fused import FusedSimulator
from graphopt_gym.simulator.fusing import LOOP, OPAQUE, may_begin
from graphopt_gym.simulator.simulator import Simulator

if TYPE_CHECKING:
    import os

    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel
    from graphopt_gym.problem import Outcome

ORDERS = ("fifo", "rank")


class FusionProblem(LevelProblem):
    """Fuse the ops of a training step into kernels, for the least step time within memory; the placement is given.

    A decision is an int array [K], a level for each task (an op with its views), tasks in the order of their op: those
    of the highest level are tried first as producers, of one level the last first, and those of level 0 never. A
    producer goes into all of its consumers that it may go into, or into none; see
    :mod:`graphopt_gym.simulator.fusing` for what is legal, so every decision is, and memory alone decides validity.
    A kernel takes one launch, the FLOPs of its members, and the bytes that cross its border.

    Args:
        graph: a zoo name, a path, or a graph.
        cluster: a catalog name, a path, or a cluster of D devices.
        placement: the device of each op: the name of a placement method (``"single"``, ``"expert"``, ``"metis"``,
            ``"heft"``, …), whose best valid placement of the ops by themselves it is, or int [N], views with their op.
        levels: how many levels a decision chooses from, at least 2.
        order: what a free device takes next, ``"fifo"`` or ``"rank"`` (the longest way to the end first, by the times
            of ops by themselves).
        cost_model: prices ops and kernels: an object with ``op_times`` and ``components``, or how a step is run
            (``"eager"``, ``"back_to_back"``, ``"graph"``); the fitted roofline, eager, where left out.

    Raises:
        InputError: an unknown name, a file that cannot be read, a placement that is none.
    """

    env_id = "Fusion-v0"

    def __init__(
        self,
        graph: str | os.PathLike[str] | ComputationGraph = "bert_base",
        cluster: str | os.PathLike[str] | Cluster = "v100x2",
        *,
        placement: str | Sequence[int] | np.ndarray = "expert",
        levels: int = 16,
        order: str = "fifo",
        cost_model: str | CostModel | None = None,
    ) -> None:
        from graphopt_gym.graphs.zoo import load_graph
        from graphopt_gym.hardware.cluster import load_cluster
        from graphopt_gym.hardware.cost_model import run_of

        self.graph, self.cluster = load_graph(graph), load_cluster(cluster)
        self.order = choice("order", order, ORDERS)
        self.levels = whole("levels", levels, 2)
        self.config = {
            "graph": stored_name(graph, self.graph),
            "cluster": stored_name(cluster, self.cluster),
            "placement": placement if isinstance(placement, str) else np.asarray(placement).tolist(),
            "levels": self.levels,
            "order": order,
        }
        self._simulates(
            Simulator(self.graph, self.cluster, cost_model, order="fifo" if order == "fifo" else "priority")
        )
        if (run := run_of(self.simulator.cost_model)) not in (None, "eager"):
            self.config["cost_model"] = run
        self.fused = FusedSimulator(self.simulator)
        self.placement = fixed_placement(self.simulator, placement)
        # those whose level matters: the others may go into no consumer
        self.producers = np.flatnonzero(may_begin(self.fused.tables))

    @property
    def rules(self) -> Mapping[str, str]:
        return {"order": self.order, "placement": self.placement_name}

    def kernel_of_op(self, decision: Any) -> np.ndarray:
        """int32 [N]: the fused group of each op, -1 for one that is a kernel by itself."""
        return self.fused.fusion(self.placement, self.check(decision))

    def costs(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        placements = np.broadcast_to(self.placement, (len(decisions), self.num_tasks))
        batch, _ = self.fused.run_many(placements, decisions)
        return self.price(batch.makespan_s, batch.peak_bytes)

    def evaluate(self, decision: Any) -> Outcome:
        decision = self.check(decision)
        timeline = self.fused.timeline(
            self.placement, decision, self.simulator.priorities if self.order == "rank" else None
        )
        return self.outcome_of(timeline, self.kernel_metrics(timeline))

    @cached_property
    def moves(self) -> LevelMoves:
        return fusion_moves(self.simulator, self.producers, self.levels)

    def bounds(self) -> dict[str, float]:
        """Seconds that no fusion can beat.

        ``work_s``: of the busiest device. No two products, row-wise or opaque ops share a kernel, so each keeps its
        launch; no fusion saves compute, and an opaque op keeps its whole time.
        """
        tables, tasks = self.fused.task_tables, self.fused.tables
        kind, every = self.simulator.device_type[self.placement], np.arange(self.num_tasks)
        opaque = tasks.fusion_class == OPAQUE
        launch = np.where(tasks.fusion_class == LOOP, 0.0, tables.launch_s[kind, every])
        least = np.where(opaque, tables.durations[kind, every], launch + tables.compute_s[kind, every])
        least[tables.is_source] = 0.0
        return {"work_s": float(np.bincount(self.placement, least, self.cluster.num_devices).max())}


def fusion_moves(simulator: Simulator, producers: np.ndarray, levels: int) -> LevelMoves:
    """Of the levels of producers int [P]: alone, by stretches in captured order, by operator and phase."""
    graph, op = simulator.graph, simulator.tasks.first_op[producers]
    return LevelMoves(producers, graph.kind[op].astype(np.int64) * 4 + graph.phase[op], levels)
