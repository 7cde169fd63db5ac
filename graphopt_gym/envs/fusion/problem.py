"""Op fusion: in which order producers are fused into their consumers, on devices that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.catalog import stored_name
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_integers, choice, whole
from graphopt_gym.problem import Outcome, Problem
from graphopt_gym.simulator.fused import FusedSimulator
from graphopt_gym.simulator.fusing import LOOP, OPAQUE, may_begin
from graphopt_gym.simulator.simulator import Simulator
from graphopt_gym.units import format_bytes

if TYPE_CHECKING:
    import os

    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster, Device
    from graphopt_gym.hardware.cost_model import CostModel

ORDERS = ("fifo", "rank")
NEAR = 8.0  # how many ops a stretch has on average that a move changes


class FusionProblem(Problem):
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
    unit = "s"

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
        self.simulator = Simulator(
            self.graph, self.cluster, cost_model, order="fifo" if order == "fifo" else "priority"
        )
        if (run := run_of(self.simulator.cost_model)) not in (None, "eager"):
            self.config["cost_model"] = run
        self.fused = FusedSimulator(self.simulator)
        self.placement = fixed_placement(self.simulator, placement)
        self.num_tasks = self.simulator.num_tasks
        self.decision_shape = (self.num_tasks,)
        self.capacity_bytes = self.simulator.capacity_bytes
        self.serial_s = float(self.simulator.durations_s.max(axis=0).sum())
        # those whose level matters: the others may go into no consumer
        self.producers = np.flatnonzero(may_begin(self.fused.tables))

    @property
    def num_choices(self) -> int:
        """Each entry of a decision is free of the others, from 0 to this less 1."""
        return self.levels

    @property
    def rules(self) -> Mapping[str, str]:
        named = self.config["placement"]
        return {"order": self.order, "placement": named if isinstance(named, str) else "given"}

    @property
    def task_label(self) -> list[str]:
        """The name of each task, for people."""
        return [self.graph.label(int(op)) for op in self.simulator.tasks.first_op]

    def check(self, decision: Any) -> np.ndarray:
        return check_integers(decision, self.decision_shape, self.levels, "level")

    def kernel_of_op(self, decision: Any) -> np.ndarray:
        """int32 [N]: the fused group of each op, -1 for one that is a kernel by itself."""
        return self.fused.fusion(self.placement, self.check(decision))

    def costs(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        placements = np.broadcast_to(self.placement, (len(decisions), self.num_tasks))
        batch, _ = self.fused.run_many(placements, decisions)
        return self.price(batch.makespan_s, batch.peak_bytes)

    def price(self, seconds: np.ndarray, peak_bytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(cost float64 [B], valid bool [B]) of simulated decisions: seconds float64 [B], peaks int64 [B, D]."""
        over = np.maximum(peak_bytes - self.capacity_bytes, 0)
        valid = np.asarray((over == 0).all(axis=-1))
        beyond = (over / self.capacity_bytes).sum(axis=-1)
        return np.where(valid, seconds, seconds + self.serial_s * (1 + beyond)), valid

    def evaluate(self, decision: Any) -> Outcome:
        decision = self.check(decision)
        timeline = self.fused.timeline(
            self.placement, decision, self.simulator.priorities if self.order == "rank" else None
        )
        tasks = timeline.tasks
        members = np.bincount(tasks.task_of_op[self.simulator.tasks.first_op], minlength=tasks.num_tasks)
        reasons = tuple(
            f"out of memory: device {device} ({self.cluster.devices[device].name}) needs "
            f"{format_bytes(timeline.peak_bytes[device])} and has {format_bytes(self.capacity_bytes[device])}"
            for device in np.flatnonzero(timeline.peak_bytes > self.capacity_bytes).tolist()
        )
        sources = int(tasks.is_source.sum())
        metrics = {
            "step_time_s": timeline.makespan_s,
            "kernels": tasks.num_tasks - sources,
            "ops": self.num_tasks - sources,
            "fused_kernels": int((members > 1).sum()),
            "fused_ops": int(members[members > 1].sum()),
            "largest_kernel": int(members.max()),
            "peak_bytes": timeline.peak_bytes.tolist(),
            "capacity_bytes": self.capacity_bytes.tolist(),
            "busy_s": timeline.busy_s.tolist(),
        }
        valid = not reasons
        cost = timeline.makespan_s if valid else float("inf")
        return Outcome(valid, cost, self.unit, reasons, metrics, timeline)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, self.levels, self.num_tasks, dtype=np.int32)

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A copy where one producer, a stretch of them, or all of one operator get another level.

        Half of the new levels are 0 or the highest: whether a fusion is tried matters more than when.
        """
        changed = decision.astype(np.int32)
        producers = self.producers
        if not len(producers):
            return changed
        kind = rng.random()
        at = int(rng.integers(len(producers)))
        if kind < 0.6:
            chosen = producers[at : at + 1]
        elif kind < 0.9:
            chosen = producers[at : at + 1 + int(rng.exponential(NEAR))]
        else:
            of = self.kind_of_producer
            chosen = producers[of == of[at]]
        extreme = 0 if rng.random() < 0.5 else self.levels - 1
        level = extreme if rng.random() < 0.5 else int(rng.integers(self.levels))
        changed[chosen] = level
        return changed

    @cached_property
    def kind_of_producer(self) -> np.ndarray:
        """int [P]: which operator each producer is, with the phase of the step that it is in."""
        op = self.simulator.tasks.first_op[self.producers]
        return self.graph.kind[op].astype(np.int64) * 4 + self.graph.phase[op]

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

    @property
    def pricing(self) -> tuple[CostModel, Sequence[Device]] | None:
        model = self.simulator.cost_model
        return None if model is None else (model, self.cluster.devices)

    def fingerprints(self) -> dict[str, str]:
        import hashlib

        times = hashlib.sha256(self.simulator.durations_s.tobytes()).hexdigest()
        return {
            **super().fingerprints(), "op_times": times,
            "placement": hashlib.sha256(self.placement.tobytes()).hexdigest(),
        }  # fmt: skip


def fixed_placement(simulator: Simulator, given: str | Sequence[int] | np.ndarray) -> np.ndarray:
    """int32 [K]: the device of each task, of the name of a placement method or of devices int [N].

    Raises:
        InputError: an unknown method, one that finds nothing valid, devices that there are not.
    """
    tasks = simulator.tasks
    if not isinstance(given, str):
        devices = check_integers(given, (simulator.graph.num_ops,), simulator.num_devices, "device", "placement")
        return devices[tasks.first_op].astype(np.int32)
    if simulator.num_devices == 1:
        from graphopt_gym.search.solve import find_method

        find_method("Placement-v0", given)
        return np.zeros(tasks.num_tasks, np.int32)
    from graphopt_gym.envs.placement.problem import PlacementProblem
    from graphopt_gym.search.solve import solve

    problem = PlacementProblem(simulator.graph, simulator.cluster, cost_model=simulator.cost_model)
    solution = solve(problem, given, budget=1000, seed=0)
    if not solution.outcome.valid:
        raise InputError(
            f"placement {given!r} finds nothing valid for {simulator.graph.name!r} on {simulator.cluster.name!r}: "
            f"{solution.outcome.reasons[0]}; name another method"
        )
    return problem.lowering.placement(solution.decision).astype(np.int32)
