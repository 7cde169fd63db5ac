"""Scheduling: in which order each device runs its ops, where the placement is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.catalog import stored_name
from graphopt_gym.envs.core.placed import UnfitError, fixed_placement
from graphopt_gym.envs.core.steps import LevelProblem, overflow
from graphopt_gym.envs.scheduling.exact import LowerBounds, lower_bounds, memory_bounds
from graphopt_gym.envs.scheduling.levels import levels_of
from graphopt_gym.envs.scheduling.moves import OrderMoves
from graphopt_gym.errors import InputError
from graphopt_gym.fields import byte_count, choice, positive, whole
from graphopt_gym.simulator.simulator import Simulator
from graphopt_gym.units import format_bytes, format_cost, format_seconds

if TYPE_CHECKING:
    import os

    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel
    from graphopt_gym.problem import Outcome
    from graphopt_gym.task import Words

OBJECTIVES = ("step", "memory")
TIES = ("program", "fifo", "rank")


class SchedulingProblem(LevelProblem):
    """Order the ops of a training step on their devices, for the least step time or the least memory.

    A decision is an int array [K], a level for each task (an op with its views), tasks in captured order: a free device
    takes the ready task of the highest level, and never waits while one is ready. Levels of different devices are not
    compared, and those of sources do not count. Every decision is a schedule; what it holds in memory decides validity.

    With as many levels as tasks (``levels`` left out) any order can be stated. With fewer the methods' orders are
    stated by the fewest levels that give the same schedule, and where even those are too many, neighbouring ones are
    one, see :mod:`graphopt_gym.envs.scheduling.levels`.

    Args:
        graph: a zoo name, a path, or a graph of K tasks.
        cluster: a catalog name, a path, or a cluster of D devices.
        placement: the device of each op: the name of a placement method (``"single"``, ``"expert"``, ``"metis"``,
            ``"heft"``, …), whose best valid placement of the ops it is, or int [N], views with their op.
        objective: ``"step"``, the step time in seconds, or ``"memory"``, the peak of the device that holds the most, in
            bytes.
        levels: how many levels a decision chooses from, at least 2; left out: as many as tasks.
        ties: within a level, the ready task that is first in captured order (``"program"``), that was ready first
            (``"fifo"``), or with the longest way to the end (``"rank"``): see ``docs/rules.md``.
        within: with the objective ``"memory"``, how long a step may take: this times that of the same placement, first
            come, first served. Left out: as long as it likes.
        memory_cap_bytes: with the objective ``"step"``, what each device may hold, where that is less than it has.
        cost_model: prices ops: an object with ``op_times``, or how a step is run (``"eager"``, ``"back_to_back"``,
            ``"graph"``); the fitted roofline, eager, where left out.

    Raises:
        InputError: an unknown name, a file that cannot be read, a placement that is none; a rule of the other
            objective; a limit of memory or time that a bound proves no order to keep.
    """

    env_id = "Scheduling-v0"

    def __init__(
        self,
        graph: str | os.PathLike[str] | ComputationGraph = "bert_base",
        cluster: str | os.PathLike[str] | Cluster = "v100x2",
        *,
        placement: str | Sequence[int] | np.ndarray = "expert",
        objective: str = "step",
        levels: int | None = None,
        ties: str = "program",
        within: float | None = None,
        memory_cap_bytes: int | None = None,
        cost_model: str | CostModel | None = None,
    ) -> None:
        from graphopt_gym.graphs.zoo import load_graph
        from graphopt_gym.hardware.cluster import load_cluster
        from graphopt_gym.hardware.cost_model import run_of

        self.graph, self.cluster = load_graph(graph), load_cluster(cluster)
        self.objective, self.ties = choice("objective", objective, OBJECTIVES), choice("ties", ties, TIES)
        for name, value, other in (("within", within, "memory"), ("memory_cap_bytes", memory_cap_bytes, "step")):
            if value is not None and objective != other:
                raise InputError(f"{name} is {value!r}, a rule of objective {other!r}; leave it out, or give that")
        self.unit = "s" if objective == "step" else "B"  # type: ignore[misc]
        self._simulates(Simulator(self.graph, self.cluster, cost_model, order="priority"))
        self.levels = max(2, self.num_tasks) if levels is None else whole("levels", levels, 2)
        self.config = {
            "graph": stored_name(graph, self.graph),
            "cluster": stored_name(cluster, self.cluster),
            "placement": placement if isinstance(placement, str) else np.asarray(placement).tolist(),
            "objective": objective,
            "levels": levels,
            "ties": ties,
        }
        if (run := run_of(self.simulator.cost_model)) not in (None, "eager"):
            self.config["cost_model"] = run
        self.placement = fixed_placement(self.simulator, placement)
        self.tie = self._tie()  # float64 [K] below 1: added to levels, it is what the engine compares
        self.most_s = float("inf")
        if within is not None:
            self._limit_time(within)
        if memory_cap_bytes is not None:
            self._limit_memory(memory_cap_bytes)

    def _tie(self) -> np.ndarray:
        count = self.num_tasks
        if self.ties == "fifo":
            return np.zeros(count)  # the engine's own
        if self.ties == "program":
            return np.arange(count - 1, -1, -1) / max(1, count)
        return np.unique(self.simulator.priorities, return_inverse=True)[1].reshape(-1) / max(1, count)

    def _limit_time(self, within: float) -> None:
        self.config = {**self.config, "within": positive("within", within)}
        fifo_s, _ = self.simulator.cost(self.placement, np.zeros(self.num_tasks))
        least_s = self.lower.makespan_s
        self.most_s = within * fifo_s
        if self.most_s < least_s * (1 - 1e-9):
            raise UnfitError(
                f"within is {within:g}, {format_seconds(self.most_s)}, but no order of this placement takes less than "
                f"{format_seconds(least_s)}; give at least {least_s / fifo_s:.4g}"
            )

    def _limit_memory(self, cap: int) -> None:
        cap_bytes = byte_count("memory_cap_bytes", cap, least=1)
        self.config = {**self.config, "memory_cap_bytes": cap_bytes}
        least = memory_bounds(self.simulator, self.placement)
        device = int(least.argmax())
        if least[device] > cap_bytes:
            raise UnfitError(
                f"memory_cap_bytes is {cap_bytes}, {format_bytes(cap_bytes)}, but device {device} "
                f"({self.cluster.devices[device].name}) holds at least {format_bytes(least[device])} in any order of "
                f"this placement; give at least {least[device]}, or another placement"
            )
        self.capacity_bytes = np.minimum(self.capacity_bytes, cap_bytes)

    @property
    def rules(self) -> Mapping[str, str]:
        limits = {name: str(self.config[name]) for name in ("within", "memory_cap_bytes") if name in self.config}
        return {
            "objective": self.objective, **limits, "ties": self.ties,
            "placement": self.placement_name,
        }  # fmt: skip

    @property
    def words(self) -> Words:
        return super().words if self.objective == "step" else replace(super().words, cost="peak memory")

    def decision_of(self, priority: np.ndarray) -> np.ndarray:
        """int32 [K]: the decision that stands for priorities, float64 [K], as well as the levels allow it."""
        return levels_of(self.simulator, self.placement, priority, self.tie, self.levels)

    def op_priorities(self, decision: Any) -> np.ndarray:
        """float64 [N]: the priority of each op, higher first, for a runtime that takes such."""
        return (self.check(decision) + self.tie)[self.simulator.tasks.task_of_op]

    def costs(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        placements = np.tile(self.placement, (len(decisions), 1))
        batch = self.simulator.run_many(placements, decisions + self.tie)
        return self.price(batch.makespan_s, batch.peak_bytes)

    def price(self, seconds: np.ndarray, peak_bytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.objective == "step":
            return super().price(seconds, peak_bytes)
        late = np.maximum(seconds / self.most_s - 1, 0.0) if np.isfinite(self.most_s) else np.zeros(len(seconds))
        beyond = overflow(peak_bytes, self.capacity_bytes)
        valid = np.asarray((beyond == 0) & (seconds <= self.most_s))
        held, beyond = peak_bytes.max(axis=-1).astype(np.float64), beyond + late
        return np.where(valid, held, held + float(self.capacity_bytes.max()) * (1 + beyond)), valid

    def evaluate(self, decision: Any) -> Outcome:
        timeline = self.simulator.run_tasks(self.placement, self.check(decision) + self.tie)
        held = int(timeline.peak_bytes.max())
        outcome = self.outcome_of(timeline, {"most_bytes": held})
        if self.objective == "step":
            return outcome
        reasons = outcome.reasons
        if timeline.makespan_s > self.most_s:
            reasons += (
                f"too slow: a step takes {format_seconds(timeline.makespan_s)} and may take "
                f"{format_seconds(self.most_s)} (within {self.config['within']:g})",
            )
        return replace(outcome, valid=not reasons, cost=float("inf") if reasons else float(held), reasons=reasons)

    def summary_lines(self, outcome: Outcome, details: Mapping[str, Any]) -> tuple[str, ...]:
        """What a solver proved."""
        bound = details.get("lower_bound_s", details.get("lower_bound_bytes"))
        if bound is None:
            return ()
        line, gap = (
            f"no order of this placement gives less than {format_cost(bound, self.unit)}",
            details["gap_percent"],
        )
        if details["proved"]:
            return (f"{line}: this is the best" + (f" but for {gap:.1g} %" if gap > 0 else ""),)
        return (line if gap is None else f"{line}: this is {gap:.3g} % above",)

    @cached_property
    def moves(self) -> OrderMoves:
        return order_moves(self.simulator, self.placement, self.levels)

    @cached_property
    def lower(self) -> LowerBounds:
        """What no order of this placement beats."""
        return lower_bounds(self.simulator, self.placement)

    def bounds(self) -> dict[str, float]:
        """What no order can beat, in seconds or bytes, as the cost: see :func:`exact.lower_bounds`."""
        if self.objective == "memory":
            return {"held_bytes": float(self.lower.peak_bytes.max(initial=0))}
        return {
            "path_s": self.lower.critical_path_s,
            "device_s": float(self.lower.device_s.max(initial=0.0)),
            "link_s": float(self.lower.link_s.max(initial=0.0)),
        }


def order_moves(simulator: Simulator, placement: np.ndarray, levels: int) -> OrderMoves:
    """Of the tasks of a graph where a placement, int32 [K], has them."""
    graph, tasks = simulator.graph, simulator.tasks
    computes = tasks.sequence[~tasks.is_source[tasks.sequence]]
    on = tuple(computes[placement[computes] == device] for device in range(simulator.num_devices))
    kind = graph.module[tasks.first_op].astype(np.int64) * 4 + graph.phase[tasks.first_op]
    return OrderMoves(tuple(one for one in on if len(one) > 1), kind, levels)
