"""Joint optimisation: placement, fusion and schedule of a training step, decided and evaluated at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.catalog import stored_name
from graphopt_gym.envs.core.level_moves import LevelMoves
from graphopt_gym.envs.core.steps import StepProblem
from graphopt_gym.envs.fusion import methods as fusion
from graphopt_gym.envs.fusion.problem import fusion_moves
from graphopt_gym.envs.joint.bounds import step_bounds
from graphopt_gym.envs.scheduling.methods import RULES
from graphopt_gym.errors import InputError, quoted
from graphopt_gym.fields import check_integers, choice, whole
from graphopt_gym.simulator.fused import FusedSimulator
from graphopt_gym.simulator.fusing import may_begin
from graphopt_gym.simulator.simulator import Simulator

if TYPE_CHECKING:
    import os

    from graphopt_gym.envs.placement.problem import PlacementProblem
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel
    from graphopt_gym.problem import Outcome, Trace

TASKS = ("placement", "fusion", "schedule")
WEIGHTS = {"placement": 0.5, "fusion": 0.2, "schedule": 0.3}  # how often a move is of each task

FUSIONS: dict[str, Callable[[fusion.Fusible], np.ndarray]] = {
    name: getattr(fusion, name) for name in ("none", "greedy", "vertical", "epilogues", "benefit")
}
# by what a device's ready queue is ordered: rules of `Scheduling-v0`
SCHEDULES = (
    "fifo", "program", "placed_rank", "highest_level", "most_work_remaining", "depth_first", "shortest_first",
    "longest_first",
)  # fmt: skip


class Parts(NamedTuple):
    """Decisions by their tasks. G groups, K tasks of the simulator."""

    placement: np.ndarray  # int32 [..., G] devices
    fusion: np.ndarray  # int32 [..., K] levels
    schedule: np.ndarray  # int32 [..., K] levels


@dataclass
class _Placed:
    """What fusion's methods look at, of one placement."""

    num_tasks: int
    levels: int
    simulator: Simulator
    fused: FusedSimulator
    placement: np.ndarray


class GraphOptimizationProblem(StepProblem):
    """Place, fuse and schedule a training step, for the least step time within memory.

    A decision is an int array: a device for each of G colocation groups; behind them a fusion level for each of K tasks
    (an op with its views, in the order of their op); behind these a schedule level for each. Producers of the highest
    fusion level are tried first, those of level 0 never, and ops fuse only with ops of their device, see
    :mod:`graphopt_gym.simulator.fusing`. A free device takes of its ready kernels that of the highest schedule level,
    of one level the earliest ready; a kernel has the level of its most urgent member. So every decision is legal, and
    memory alone decides validity. After GO (Zhou et al., Transferable Graph Optimizers for ML Compilers, NeurIPS 2020);
    levels are ours.

    ``tasks`` may leave some of the three out: a decision has no entries of those, and they stay as the default stack
    has them.

    Args:
        graph: a zoo name, a path, or a graph.
        cluster: a catalog name, a path, or a cluster of D devices.
        tasks: what is decided, some of ``"placement"``, ``"fusion"``, ``"schedule"``: a sequence, or with ``+``.
        placement, fusion, schedule: the default stack, of names: a placement method; one of :data:`FUSIONS`; one of
            :data:`SCHEDULES`.
        levels: how many levels there are of fusion, and of schedule, at least 2.
        cost_model: prices ops and kernels: an object with ``op_times`` and ``components``, or how a step is run
            (``"eager"``, ``"back_to_back"``, ``"graph"``); the fitted roofline, eager, where left out.

    Attributes:
        default: :class:`Parts` of the default stack.
        producers: int64, the tasks that may be fused into a consumer: the fusion levels of others do not matter.
        scheduled: int64, the tasks that are no sources: the schedule levels of others do not matter.

    Raises:
        InputError: an unknown name, a file that cannot be read, no task.
    """

    env_id = "GraphOptimization-v0"

    def __init__(
        self,
        graph: str | os.PathLike[str] | ComputationGraph = "bert_base",
        cluster: str | os.PathLike[str] | Cluster = "v100x2",
        *,
        tasks: str | Sequence[str] = TASKS,
        placement: str = "expert",
        fusion: str = "greedy",
        schedule: str = "fifo",
        levels: int = 16,
        cost_model: str | CostModel | None = None,
    ) -> None:
        from graphopt_gym.graphs.zoo import load_graph
        from graphopt_gym.hardware.cluster import load_cluster
        from graphopt_gym.hardware.cost_model import run_of
        from graphopt_gym.search.solve import find_method

        self.graph, self.cluster = load_graph(graph), load_cluster(cluster)
        decides = _tasks(tasks)
        find_method("Placement-v0", placement)
        choice("fusion", fusion, tuple(FUSIONS))
        choice("schedule", schedule, SCHEDULES)
        self.levels = whole("levels", levels, 2)
        self.config = {
            "graph": stored_name(graph, self.graph),
            "cluster": stored_name(cluster, self.cluster),
            "tasks": "+".join(decides),
            "placement": placement,
            "fusion": fusion,
            "schedule": schedule,
            "levels": self.levels,
        }
        self._simulates(Simulator(self.graph, self.cluster, cost_model, order="priority"))
        if (run := run_of(self.simulator.cost_model)) not in (None, "eager"):
            self.config["cost_model"] = run
        self.fused = FusedSimulator(self.simulator)
        self.placing = self._placing()
        self.serial_s += self.placing.all_transfers_s()  # so that no valid decision costs more than what does not fit
        self.num_groups, self.num_devices = self.placing.num_groups, self.cluster.num_devices
        self.group_of_task = self.placing.group_of_task
        self._decides(decides)
        self.producers = np.flatnonzero(may_begin(self.fused.tables))
        self.scheduled = np.flatnonzero(~self.simulator.tasks.is_source)
        devices = self.devices_by(placement)
        placed = devices[self.group_of_task]
        self.default = Parts(devices, self.fusion_by(fusion, placed), self.schedule_by(schedule, placed))

    def _placing(self) -> PlacementProblem:
        from graphopt_gym.envs.placement.problem import PlacementProblem

        return PlacementProblem(self.graph, self.cluster, cost_model=self.simulator.cost_model)

    def devices_by(self, name: str) -> np.ndarray:
        """int32 [G]: what a placement method proposes for the ops by themselves, first come, first served."""
        from graphopt_gym.search.solve import solve

        return solve(self.placing, name, budget=1000, seed=0).decision.astype(np.int32)  # type: ignore[no-any-return]

    @property
    def placed_by_default(self) -> fusion.Fusible:
        """The tasks where the default stack has them, for those who look at what fusion's methods look at."""
        return self._placed(self.default.placement[self.group_of_task])

    def _placed(self, placed: np.ndarray) -> _Placed:
        return _Placed(self.num_tasks, self.levels, self.simulator, self.fused, placed)

    def fusion_by(self, name: str, placed: np.ndarray) -> np.ndarray:
        """int32 [K]: the levels of one of :data:`FUSIONS`, of the device of each task int32 [K]."""
        return FUSIONS[name](self._placed(placed))

    def schedule_by(self, name: str, placed: np.ndarray) -> np.ndarray:
        """int32 [K]: one of :data:`SCHEDULES`, of the device of each task int32 [K]: as many tasks a level as there are
        levels, so a level holds those whose priorities are near each other."""
        levels = np.zeros(self.num_tasks, np.int32)
        if name != "fifo":  # all of one level
            priority = RULES[name][0](self.simulator, placed)[self.scheduled]
            place = np.empty(len(priority), np.int64)
            place[np.argsort(priority, kind="stable")] = np.arange(len(priority))
            levels[self.scheduled] = place * self.levels // max(1, len(priority))
        return levels

    def _decides(self, tasks: tuple[str, ...]) -> None:
        sizes = {"placement": self.num_groups, "fusion": self.num_tasks, "schedule": self.num_tasks}
        ends = np.cumsum([sizes[task] for task in tasks]).tolist()
        self.tasks = tasks
        # where the entries of each task stand
        self.slices = {task: slice(end - sizes[task], end) for task, end in zip(tasks, ends, strict=True)}
        self.decision_shape = (ends[-1],)
        choices = {"placement": self.num_devices, "fusion": self.levels, "schedule": self.levels}
        # int32 [length]: how many choices each entry of a decision has
        self.entry_choices = np.repeat([choices[one] for one in tasks], [sizes[one] for one in tasks]).astype(np.int32)

    def only(self, *tasks: str, default: Parts) -> GraphOptimizationProblem:
        """The same problem with decisions of some tasks alone, the others as in ``default``."""
        other = copy.copy(self)
        other.__dict__.pop("choices_allowed", None)
        other.default = default
        other._decides(_tasks(tasks))
        return other

    # -- decisions -------------------------------------------------------------------------------------------------

    @property
    def num_choices(self) -> int:
        """The most that an entry has; see :attr:`choices_allowed`."""
        return int(self.entry_choices.max())

    @cached_property
    def choices_allowed(self) -> np.ndarray | None:
        """bool [length, num_choices]: those that each entry may have; None: all."""
        if (self.entry_choices == self.num_choices).all():
            return None
        return np.arange(self.num_choices) < self.entry_choices[:, None]

    @property
    def rules(self) -> Mapping[str, str]:
        return {name: str(self.config[name]) for name in ("tasks", "placement", "fusion", "schedule")}

    def check(self, decision: Any) -> np.ndarray:
        given = check_integers(decision, self.decision_shape, 2**31 - 1, "device or level")
        for task, part in self.slices.items():
            what, most = ("device", self.num_devices) if task == "placement" else (f"{task} level", self.levels)
            check_integers(given[part], given[part].shape, most, what, f"{task} of the decision")
        return given

    def parts(self, decisions: np.ndarray) -> Parts:
        """Decisions int [..., length] by their tasks; what is not decided has the shape of one, without batch."""
        return Parts(*(
            decisions[..., self.slices[task]] if task in self.slices else default
            for task, default in zip(TASKS, self.default, strict=True)
        ))  # fmt: skip

    def decision_of(self, parts: Parts) -> np.ndarray:
        """int32 [..., length]: the decision of its parts."""
        given = dict(zip(TASKS, parts, strict=True))
        return np.concatenate([given[task] for task in self.tasks], axis=-1).astype(np.int32)

    def costs(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = self.parts(decisions)
        placements = np.broadcast_to(parts.placement[..., self.group_of_task], (len(decisions), self.num_tasks))
        priorities = np.atleast_2d(parts.schedule).astype(np.float64)
        batch, _ = self.fused.run_many(placements, np.atleast_2d(parts.fusion), priorities)
        return self.price(batch.makespan_s, batch.peak_bytes)

    def evaluate(self, decision: Any) -> Outcome:
        parts = self.parts(self.check(decision))
        placed = parts.placement[self.group_of_task]
        timeline = self.fused.timeline(placed, parts.fusion, parts.schedule.astype(np.float64))
        return self.outcome_of(timeline, self.kernel_metrics(timeline))

    def kernel_of_op(self, decision: Any) -> np.ndarray:
        """int32 [N]: the fused group of each op, -1 for one that is a kernel by itself."""
        parts = self.parts(self.check(decision))
        return self.fused.fusion(parts.placement[self.group_of_task], parts.fusion)

    def op_placement(self, decision: Any) -> np.ndarray:
        """int32 [N]: the device of each op."""
        return self.parts(self.check(decision)).placement[self.placing.group_of_op]

    def trace(self, decision: Any) -> Trace:
        """A row for each fused kernel: its device, and its ops."""
        kernels, placement = self.kernel_of_op(decision), self.op_placement(decision)
        order = np.argsort(kernels, kind="stable")
        order = order[kernels[order] >= 0]
        members = np.split(order, np.flatnonzero(np.diff(kernels[order])) + 1) if len(order) else []
        return tuple((int(placement[one[0]]), one.tolist()) for one in sorted(members, key=lambda one: int(one[0])))

    def check_trace(self, decision: Any, trace: Trace) -> str:
        seen: dict[int, int] = {}
        placement = self.op_placement(decision)
        for number, row in enumerate(trace):
            where = f"kernel {number}"
            if len(row) != 2 or not isinstance(row[1], list):
                return f"{where} is {quoted(row)}; it is a device and a list of ops"
            device, ops = row
            for op in ops:
                if not isinstance(op, int) or isinstance(op, bool) or not 0 <= op < self.graph.num_ops:
                    return f"{where} has op {quoted(op)}; ops are whole numbers from 0 to {self.graph.num_ops - 1}"
                if op in seen:
                    return f"{where} has op {op} ({self.graph.label(op)}), which is in kernel {seen[op]}, too"
                seen[op] = number
                if placement[op] != device:
                    return (
                        f"{where} is on device {quoted(device)}, and its op {op} ({self.graph.label(op)}) on device "
                        f"{placement[op]}: a kernel is on one device"
                    )
        if trace != self.trace(decision):
            return "its kernels are not those that its levels lead to"
        return ""

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, self.entry_choices, dtype=np.int32)

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A copy where one of the tasks changes by one move of its own."""
        changed = decision.astype(np.int32)
        task = self.draw_task(rng)
        part = self.slices[task]
        if task == "placement":
            changed[part] = self.placing.neighbour(changed[part], rng)
        else:
            self.moves[task].change(changed[part], rng)
        return changed

    def draw_task(self, rng: np.random.Generator) -> str:
        """Which task a move is of."""
        if len(self.tasks) == 1:
            return self.tasks[0]
        weights = np.cumsum([WEIGHTS[one] for one in self.tasks])
        return self.tasks[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]

    @cached_property
    def moves(self) -> dict[str, LevelMoves]:
        modules = self.group_of_task[self.scheduled].astype(np.int64) * 4
        modules += self.graph.phase[self.simulator.tasks.first_op[self.scheduled]]
        return {
            "fusion": fusion_moves(self.simulator, self.producers, self.levels),
            "schedule": LevelMoves(self.scheduled, modules, self.levels),
        }

    def bounds(self) -> dict[str, float]:
        """Seconds that no placement, fusion and schedule can beat, see :func:`step_bounds`."""
        return step_bounds(self.fused)


def _tasks(given: str | Sequence[str]) -> tuple[str, ...]:
    named = given.split("+") if isinstance(given, str) else list(given)
    for one in named:
        choice("tasks", one, TASKS)
    if not named or len(set(named)) < len(named):
        raise InputError(f"tasks is {quoted(given)}; name some of {', '.join(TASKS)}, each once")
    return tuple(task for task in TASKS if task in named)
