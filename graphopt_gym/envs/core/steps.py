"""Problems whose cost is the simulated time of a training step, within the memory of its devices."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.fields import check_integers
from graphopt_gym.problem import Outcome, Problem
from graphopt_gym.units import format_bytes

if TYPE_CHECKING:
    from graphopt_gym.hardware.cluster import Device
    from graphopt_gym.hardware.cost_model import CostModel
    from graphopt_gym.simulator.simulator import Simulator
    from graphopt_gym.simulator.timeline import Timeline


class StepProblem(Problem):
    """What the problems of fusion, scheduling and all together share.

    A subclass sets ``graph``, ``cluster``, and by :meth:`_simulates` the simulator of the tasks that are not fused.
    """

    unit = "s"
    slow_moves = 20.0  # decisions have thousands of entries, and single levels matter little
    simulator: Simulator

    def _simulates(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.num_tasks = simulator.num_tasks
        self.capacity_bytes = simulator.capacity_bytes
        # every op one after the other on the slowest device: what a violation is priced by
        self.serial_s = float(simulator.durations_s.max(axis=0).sum())

    @property
    def task_label(self) -> list[str]:
        """The name of each task, for people."""
        return [self.graph.label(int(op)) for op in self.simulator.tasks.first_op]

    def price(self, seconds: np.ndarray, peak_bytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(cost float64 [B], valid bool [B]) of simulated decisions: seconds float64 [B], peaks int64 [B, D]."""
        beyond = overflow(peak_bytes, self.capacity_bytes)
        valid = np.asarray(beyond == 0)
        return np.where(valid, seconds, seconds + self.serial_s * (1 + beyond)), valid

    def outcome_of(self, timeline: Timeline, metrics: Mapping[str, Any]) -> Outcome:
        """The outcome of a decision that runs so; ``metrics`` beside those of every step."""
        reasons = tuple(
            f"out of memory: device {device} ({self.cluster.devices[device].name}) needs "
            f"{format_bytes(timeline.peak_bytes[device])} and has {format_bytes(self.capacity_bytes[device])}"
            for device in np.flatnonzero(timeline.peak_bytes > self.capacity_bytes).tolist()
        )
        found = {
            "step_time_s": timeline.makespan_s,
            **metrics,
            "peak_bytes": timeline.peak_bytes.tolist(),
            "capacity_bytes": self.capacity_bytes.tolist(),
            "busy_s": timeline.busy_s.tolist(),
        }
        valid = not reasons
        cost = timeline.makespan_s if valid else float("inf")
        return Outcome(valid, cost, self.unit, reasons, found, timeline)

    def kernel_metrics(self, timeline: Timeline) -> dict[str, int]:
        """How many kernels a step of fused ops has, and of how many ops."""
        tasks = timeline.tasks
        members = np.bincount(tasks.task_of_op[self.simulator.tasks.first_op], minlength=tasks.num_tasks)
        sources = int(tasks.is_source.sum())
        return {
            "kernels": tasks.num_tasks - sources,
            "ops": self.num_tasks - sources,
            "fused_kernels": int((members > 1).sum()),
            "fused_ops": int(members[members > 1].sum()),
            "largest_kernel": int(members.max()),
        }

    @property
    def pricing(self) -> tuple[CostModel, Sequence[Device]] | None:
        model = self.simulator.cost_model
        return None if model is None else (model, self.cluster.devices)

    def fingerprints(self) -> dict[str, str]:
        times = hashlib.sha256(self.simulator.durations_s.tobytes()).hexdigest()
        return {**super().fingerprints(), "op_times": times}


class LevelProblem(StepProblem):
    """One that gives each task a level, on devices that are given: a decision is int32 [K].

    A subclass sets ``levels``, ``placement``, int32 [K], and ``moves``.
    """

    levels: int
    placement: np.ndarray
    moves: Any  # its ``change(row, rng)`` changes levels in place

    @property
    def decision_shape(self) -> tuple[int]:  # type: ignore[override]
        return (self.num_tasks,)

    @property
    def num_choices(self) -> int:
        """Each entry of a decision is free of the others, from 0 to this less 1."""
        return self.levels

    @property
    def placement_name(self) -> str:
        """The method that placed the tasks, for people."""
        named = self.config["placement"]
        return named if isinstance(named, str) else "given"

    def check(self, decision: Any) -> np.ndarray:
        return check_integers(decision, self.decision_shape, self.levels, "level")

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, self.levels, self.num_tasks, dtype=np.int32)

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A copy that one of its ``moves`` changed."""
        changed = decision.astype(np.int32)
        self.moves.change(changed, rng)
        return changed

    def fingerprints(self) -> dict[str, str]:
        return {**super().fingerprints(), "placement": hashlib.sha256(self.placement.tobytes()).hexdigest()}


def overflow(peak_bytes: np.ndarray, capacity_bytes: np.ndarray) -> np.ndarray:
    """float64 [...]: memory beyond capacity as a share of it, summed over devices, of peaks int64 [..., D]."""
    return (np.maximum(peak_bytes - capacity_bytes, 0) / capacity_bytes).sum(axis=-1)  # type: ignore[no-any-return]
