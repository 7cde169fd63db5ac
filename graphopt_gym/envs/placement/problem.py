"""Device placement: which device runs each group of ops."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.catalog import stored_name
from graphopt_gym.envs.core.steps import overflow
from graphopt_gym.envs.placement.moves import SETS, Moves, make_moves, move
from graphopt_gym.envs.placement.walk import run_walk
from graphopt_gym.envs.placement.workload import Workload, is_workload, read_workload
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_integers, choice, flag, whole
from graphopt_gym.problem import Outcome, Problem
from graphopt_gym.simulator.lowering import Lowering
from graphopt_gym.simulator.own_costs import ARGUMENTS, OwnCosts
from graphopt_gym.simulator.pipeline import Pipeline
from graphopt_gym.task import Words
from graphopt_gym.units import format_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster, Device
    from graphopt_gym.hardware.cost_model import CostModel
    from graphopt_gym.search.walk import Walk

WALKED = ("neighbour", "costs", "price")  # what the compiled walk stands for
OBJECTIVES = ("step", "throughput")


class PlacementProblem(Problem):
    """Place the ops of a training step on the devices of a cluster, for the least step time within memory.

    With ``objective="throughput"`` the cost is the period of a pipeline, the load that one sample puts on the busiest
    device or link, in place of the step time: see :mod:`graphopt_gym.simulator.pipeline`.

    A decision is an int array [G]: the device of each group, groups in the order of their first op. With
    ``order="priority"`` it is int [2, G]: the devices, and below them the level of each group, higher first; within a
    level the op with the longest way to the end is first. Devices alone, int [G], are then taken too: all of one level.

    Args:
        graph: a zoo name, a path (with an ONNX file's open sizes: ``model.onnx@batch=1``), or a graph of N ops; or a
            workload, or the path of its ``.json`` file, which brings devices and costs: see
            :mod:`graphopt_gym.envs.placement.workload`.
        cluster: a catalog name, a path, or a cluster of D devices; left out: ``v100x4``, or the workload's.
        grouping: ``"colocation"`` places the graph's colocation groups (a module call with its backward ops,
            parameters and updates); ``"phase"`` the forward pass of each, the gradients of its inputs, and those of its
            parameters with their update, by themselves (:func:`parts_of_tasks` in the simulator's ``lowering`` says
            what is what); ``"op"`` every op (views stay with their producer).
        order: what a free device takes next: ``"fifo"``, the earliest ready; ``"stream"``, strictly the next in
            captured order; ``"program"``, of the ready ones the first in captured order; ``"rank"``, the one with the
            longest way to the end; ``"priority"``, as the decision says. See ``graphopt_gym.simulator.orders``.
        priority_levels: how many levels a decision chooses from, with ``order="priority"``.
        objective: ``"step"``, the time of a step, or ``"throughput"``, the period of a pipeline, which has no order.
        overlap: whether devices send and receive while they compute, with ``objective="throughput"``; left out: yes,
            or as the workload says.
        transfers: how tensors go from device to device, with ``objective="throughput"``: ``"direct"`` or through the
            memory of the ``"host"``; left out: directly, or as the workload says.
        cost_model: prices the ops: an object with ``op_times``, or how a step is run (``"eager"``, ``"back_to_back"``,
            ``"graph"``, or with TF32, ``"eager, tf32 all"``); the fitted roofline, eager, where left out.
        op_times_s, missing_op_times, tensor_bytes, transfer_s, allowed_devices, static_bytes: costs of one's own, in
            place of what cost model, graph and cluster say: see :meth:`graphopt_gym.OwnCosts.of`. A group may be on the
            devices that all its ops allow; a decision that has it elsewhere is invalid.

    Raises:
        InputError: an unknown name, a file that cannot be read, own costs that make no sense.
    """

    env_id = "Placement-v0"
    unit = "s"
    moves = "all"  # the set that ``neighbour`` draws from, see :meth:`with_moves`

    def __init__(
        self,
        graph: str | os.PathLike[str] | ComputationGraph | Workload = "bert_base",
        cluster: str | os.PathLike[str] | Cluster | None = None,
        *,
        grouping: str = "colocation",
        order: str = "fifo",
        priority_levels: int = 16,
        objective: str = "step",
        overlap: bool | None = None,
        transfers: str | None = None,
        cost_model: str | CostModel | None = None,
        op_times_s: Any = None,
        missing_op_times: str = "refuse",
        tensor_bytes: Any = None,
        transfer_s: Any = None,
        allowed_devices: Any = None,
        static_bytes: Any = None,
    ) -> None:
        from graphopt_gym.graphs.zoo import load_graph
        from graphopt_gym.hardware.cluster import load_cluster
        from graphopt_gym.hardware.cost_model import run_of

        self.grouping, self.order = grouping, order
        self.priority_levels = whole("priority_levels", priority_levels, 1)
        self.objective = choice("objective", objective, OBJECTIVES)
        stated = (op_times_s, missing_op_times, tensor_bytes, transfer_s, allowed_devices, static_bytes)
        own = dict(zip(ARGUMENTS, stated, strict=True))
        given = {"overlap": overlap, "transfers": transfers}
        pipeline: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if objective == "step" and pipeline:
            name = next(iter(pipeline))
            raise InputError(
                f"{name} is {pipeline[name]!r}, a rule of objective 'throughput'; leave it out, or give that"
            )
        if objective == "throughput" and order == "priority":
            raise InputError(
                "order 'priority' decides on the order of a step; objective 'throughput' has none: leave it out"
            )
        if overlap is not None:
            flag("overlap", overlap)
        if is_workload(graph):
            work = read_workload(graph)
            self._check_alone(work, cluster, cost_model, own)
            self.graph, self.cluster, own = work.graph, work.cluster, own | dict(work.costs)
            pipeline = dict(work.pipeline) | pipeline
            self.config = {"graph": work.stored}
        else:
            self.graph = load_graph(graph)  # type: ignore[arg-type]
            self.cluster = load_cluster("v100x4" if cluster is None else cluster)
            self.config = {
                "graph": stored_name(graph, self.graph),
                "cluster": stored_name("v100x4" if cluster is None else cluster, self.cluster),
            }
        self.own = OwnCosts.of(self.graph, self.cluster, **own)
        self.config |= {
            "grouping": grouping,
            "order": order,
            **({"priority_levels": self.priority_levels} if order == "priority" else {}),
            **({"objective": objective, **pipeline} if objective != "step" else {}),
            **(self.own.given if self.own and not is_workload(graph) else {}),
        }
        self.lowering = Lowering(self.graph, self.cluster, grouping, cost_model, self.own, order)
        if (run := run_of(self.lowering.simulator.cost_model)) not in (None, "eager"):
            self.config["cost_model"] = run
        self.allowed = self.lowering.allowed  # bool [G, D], or None: every group may be on every device
        self.simulator = self.lowering.simulator
        self.group_of_task = self.lowering.unit_of_task
        self.num_groups = self.lowering.num_units
        self.with_levels = order == "priority"
        self.decision_shape = (2, self.num_groups) if self.with_levels else (self.num_groups,)
        self.capacity_bytes = self.simulator.capacity_bytes
        # every op one after the other on the slowest device: what a violation is priced by
        self.serial_s = float(self.simulator.durations_s.max(axis=0).sum())
        if self.own or objective != "step":
            # transfers may take longer than all ops: then these too, so that no valid decision costs more
            self.serial_s += self.all_transfers_s()
        self.pipeline: Pipeline | None = None
        if objective == "throughput":
            self.unit = "s/sample"  # type: ignore[misc]
            self.pipeline = Pipeline(self.simulator, **pipeline)

    def _check_alone(self, work: Workload, cluster: Any, cost_model: Any, own: Mapping[str, Any]) -> None:
        """Raises InputError for what a workload brings and was given beside it."""
        given = {"cluster": cluster, "cost_model": cost_model, **own, "missing_op_times": None}
        for name, value in given.items():
            if value is not None:
                raise InputError(
                    f"{name} is given, but workload {work.graph.name!r} brings its devices and costs: leave it out"
                )

    @property
    def starts(self) -> tuple[str, ...]:
        return super().starts if self.pipeline is None else (*super().starts, "dp")

    @property
    def words(self) -> Words:
        return super().words if self.pipeline is None else replace(super().words, cost="period")

    def all_transfers_s(self) -> float:
        """Seconds of all transfers that any placement can have, one after the other, each over the slowest link."""
        tasks, links = self.simulator.tasks, self.cluster.links
        if not links:
            return 0.0
        by_link = np.max([link.latency_s + tasks.tensor_bytes / link.bytes_per_s for link in links], axis=0)
        times = np.minimum(np.diff(tasks.reader_ptr), self.num_devices - 1)
        return float((times * np.where(tasks.transfer_s < 0, by_link, tasks.transfer_s)).sum())

    @property
    def usable(self) -> np.ndarray:
        """int64: the devices that any group may be on."""
        return np.arange(self.num_devices) if self.allowed is None else np.flatnonzero(self.allowed.any(axis=0))

    @property
    def num_devices(self) -> int:
        return self.cluster.num_devices

    @property
    def num_choices(self) -> int:
        """Each entry of a decision is free of the others, from 0 to this less 1: the space of the sampling searches."""
        return max(self.num_devices, self.priority_levels) if self.with_levels else self.num_devices

    @cached_property
    def choices_allowed(self) -> np.ndarray | None:
        """bool [*decision_shape, num_choices], the entries that a decision may have; None: all. Others are invalid."""
        if not self.with_levels:
            return self.allowed
        choices = np.zeros((*self.decision_shape, self.num_choices), bool)
        choices[0, :, : self.num_devices] = True if self.allowed is None else self.allowed
        choices[1, :, : self.priority_levels] = True
        return choices

    @property
    def rules(self) -> Mapping[str, str]:
        if self.pipeline is None:
            return {"order": self.order, "grouping": self.grouping}
        overlap = "yes" if self.pipeline.overlap else "no"
        return {
            "objective": self.objective, "overlap": overlap, "transfers": self.pipeline.transfers,
            "grouping": self.grouping,
        }  # fmt: skip

    @property
    def group_of_op(self) -> np.ndarray:
        """int32 [N]: the group of each op (views: of their root)."""
        return self.lowering.unit_of_op

    def check(self, decision: Any) -> np.ndarray:
        if not self.with_levels:
            return check_integers(decision, self.decision_shape, self.num_devices, "device")
        if _is_row(decision):
            return self.decision_of(check_integers(decision, (self.num_groups,), self.num_devices, "device"))
        given = check_integers(decision, self.decision_shape, 2**31 - 1, "device or level")
        check_integers(given[0], (self.num_groups,), self.num_devices, "device", "decision[0]")
        check_integers(given[1], (self.num_groups,), self.priority_levels, "level", "decision[1]")
        return given

    def decision_of(self, devices: np.ndarray) -> np.ndarray:
        """The decision that has groups on the devices int [..., G], all of one level."""
        return np.stack([devices, np.zeros_like(devices)], axis=-2) if self.with_levels else devices

    def devices_of(self, decisions: np.ndarray) -> np.ndarray:
        """int [..., G]: the devices of groups, of decisions [..., *decision_shape]."""
        return decisions[..., 0, :] if self.with_levels else decisions

    def levels_of(self, decisions: np.ndarray) -> np.ndarray | None:
        """int [..., G]: the levels of groups, where decisions state them."""
        return decisions[..., 1, :] if self.with_levels else None

    def op_placement(self, decision: Any) -> np.ndarray:
        """int32 [N]: the device of each op."""
        return self.devices_of(self.check(decision))[self.group_of_op]

    def op_priorities(self, decision: Any) -> np.ndarray | None:
        """float64 [N]: the priority of each op, higher first; None where the order needs none."""
        priorities = self.lowering.priorities(self.levels_of(self.check(decision)))
        priorities = self.simulator.priorities if priorities is None else priorities
        return priorities[self.simulator.tasks.task_of_op] if len(priorities) else None

    def evaluate(self, decision: Any) -> Outcome:
        decision = self.check(decision)
        timeline = self.lowering.timeline(self.devices_of(decision), self.levels_of(decision))
        cost, peak_bytes = timeline.makespan_s, timeline.peak_bytes
        peak_time_s: np.ndarray | None = timeline.peak_time_s
        metrics: dict[str, Any] = {}
        if self.pipeline is not None:  # the timeline is that of one sample by itself
            loads = self.pipeline.loads(timeline.task_device)
            cost, peak_bytes, peak_time_s = loads.period_s, loads.peak_bytes, None
            metrics = {
                "period_s": loads.period_s,
                "compute_s": loads.compute_s.tolist(),
                "sent_s": loads.sent_s.tolist(),
                "received_s": loads.received_s.tolist(),
                "busiest_link_s": float(loads.link_s.max(initial=0.0)),
                "samples_in_flight": loads.samples.tolist(),
            }
        reasons = self.reasons(decision, peak_bytes, peak_time_s)
        transfers = timeline.transfer_bytes
        metrics |= {
            "step_time_s": timeline.makespan_s,
            "peak_bytes": peak_bytes.tolist(),
            "capacity_bytes": self.capacity_bytes.tolist(),
            "busy_s": timeline.busy_s.tolist(),
            "transfers": len(transfers),
            "transfer_bytes": int(transfers.sum()),
            "ops_per_device": np.bincount(timeline.op_device, minlength=self.num_devices).tolist(),
        }
        valid = not reasons
        return Outcome(valid, cost if valid else float("inf"), self.unit, reasons, metrics, timeline)

    def reasons(
        self, decision: np.ndarray, peak_bytes: np.ndarray, time_s: np.ndarray | None = None
    ) -> tuple[str, ...]:
        """Which rule a checked decision breaks, and where; ``peak_bytes`` and ``time_s`` of its simulated step."""
        return (*self.device_reasons(decision), *self.memory_reasons(peak_bytes, time_s))

    def device_reasons(self, decision: np.ndarray) -> tuple[str, ...]:
        """A line for the groups, if any, that a checked decision has on devices where they may not be."""
        decision = self.devices_of(decision)
        wrong = np.flatnonzero(self.misplaced(decision))
        if not len(wrong):
            return ()
        assert self.allowed is not None
        group = int(wrong[0])
        device, first = int(decision[group]), int(np.flatnonzero(self.group_of_op == group)[0])
        may = ", ".join(f"{one} ({self.cluster.devices[one].name})" for one in np.flatnonzero(self.allowed[group])[:8])
        more = f" (and {len(wrong) - 1} more groups are where they may not be)" if len(wrong) > 1 else ""
        return (
            f"not allowed there: group {group} ({self.graph.label(first)}) is on device {device} "
            f"({self.cluster.devices[device].name}), it may be on {may}{more}",
        )

    @cached_property
    def interchangeable(self) -> np.ndarray:
        """int64 [D]: a class for each device; of one class are those that can change places, and nothing else changes:
        like :attr:`Cluster.interchangeable`, and with the same op times and the same groups that may be on them."""
        alike = [self.cluster.interchangeable]
        if self.own and self.own.op_times_s is not None:
            alike.append(self.simulator.device_type)
        if self.allowed is not None:
            alike.append(np.unique(self.allowed, axis=1, return_inverse=True)[1].reshape(-1))
        keys = list(zip(*(one.tolist() for one in alike), strict=True))
        return np.array([list(dict.fromkeys(keys)).index(key) for key in keys])

    def misplaced(self, decisions: np.ndarray) -> np.ndarray:
        """bool [..., G]: which groups are where they may not be, of devices int [..., G]."""
        if self.allowed is None:
            return np.zeros(decisions.shape, bool)
        return ~self.allowed[np.arange(self.num_groups), decisions]

    def keep_to_allowed(self, decision: np.ndarray) -> np.ndarray:
        """Devices of groups, int [G], as they are but for groups that may not be where they are.

        In the order of groups, each of these follows the one before it where it may and that device has less than an
        even share of the work, or else goes to the device, of those that it may be on, which then has the least.
        """
        wrong = np.flatnonzero(self.misplaced(decision))
        if not len(wrong):
            return decision
        assert self.allowed is not None
        kept, work_s = decision.copy(), self._group_s
        load = np.bincount(decision, weights=work_s[decision, np.arange(self.num_groups)], minlength=self.num_devices)
        np.subtract.at(load, decision[wrong], work_s[decision[wrong], wrong])
        even, last = work_s.min(axis=0).sum() / self.num_devices, -1
        for group in wrong.tolist():
            if last < 0 or not self.allowed[group, last] or load[last] >= even:
                last = int(np.where(self.allowed[group], load + work_s[:, group], np.inf).argmin())
            kept[group] = last
            load[last] += work_s[last, group]
        return kept

    @cached_property
    def _group_s(self) -> np.ndarray:
        """float64 [D, G]: the time of each group on each device."""
        durations = self.simulator.device_durations_s()
        return np.stack([np.bincount(self.group_of_task, row, self.num_groups) for row in durations])

    @property
    def alone_s(self) -> np.ndarray:
        """float64 [D]: the time of the whole graph on each device."""
        return self._group_s.sum(axis=1)

    def on_devices(self, devices: np.ndarray) -> PlacementProblem | None:
        """The same problem where groups may be only on some devices, bool [D]; None where one could be on none."""
        every = np.ones((self.num_groups, self.num_devices), bool) if self.allowed is None else self.allowed
        allowed = every & devices
        if not allowed.any(axis=1).all():
            return None
        found = copy.copy(self)
        for made in ("move_tables", "choices_allowed", "interchangeable"):  # cached, of the devices that were allowed
            found.__dict__.pop(made, None)
        found.allowed = allowed
        return found

    def memory_reasons(self, peak_bytes: np.ndarray, time_s: np.ndarray | None = None) -> tuple[str, ...]:
        """A line for each device whose peak int64 [D] is beyond its capacity; ``time_s``: when, float64 [D]."""
        reasons = []
        for device in np.flatnonzero(peak_bytes > self.capacity_bytes).tolist():
            name, peak, capacity = self.cluster.devices[device].name, peak_bytes[device], self.capacity_bytes[device]
            when = "" if time_s is None else f" at {time_s[device] * 1e3:.3f} ms"
            reasons.append(
                f"out of memory: device {device} ({name}) needs {format_bytes(peak)}{when} and has "
                f"{format_bytes(capacity)}: {format_bytes(peak - capacity)} too much"
            )
        return tuple(reasons)

    def costs(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        levels = self.levels_of(decisions)
        placements = self.lowering.placement(self.devices_of(decisions))
        seconds, peak_bytes = self.simulated(placements, self.lowering.priorities(levels))
        return self.price(seconds, peak_bytes, decisions)

    def simulated(self, placements: np.ndarray, priorities: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(seconds float64 [B], peak_bytes int64 [B, D]) of placements of tasks, int [B, K]: the makespan of a step, or
        the period, as the objective asks; of priorities float64 [B, K], where the decision states them."""
        if self.pipeline is not None:
            return self.pipeline.costs(placements)
        if len(placements) == 1:
            seconds, peak = self.simulator.cost(placements[0], None if priorities is None else priorities[0])
            return np.array([seconds]), peak[None]
        batch = self.simulator.run_many(placements, priorities)
        return batch.makespan_s, batch.peak_bytes

    def price(
        self, seconds: np.ndarray, peak_bytes: np.ndarray, decisions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(cost float64 [B], valid bool [B]) of simulated decisions: seconds float64 [B], peaks int64 [B, D]."""
        valid = np.asarray((peak_bytes <= self.capacity_bytes).all(axis=-1))
        beyond = self.overflow(peak_bytes)
        if self.allowed is not None:
            wrong = self.misplaced(self.devices_of(np.asarray(decisions))).mean(axis=-1)
            valid, beyond = valid & (wrong == 0), beyond + wrong
        if valid.all():
            return seconds, valid
        return np.where(valid, seconds, seconds + self.serial_s * (1 + beyond)), valid

    def overflow(self, peak_bytes: np.ndarray) -> np.ndarray:
        """float64 [...]: memory beyond capacity as a share of it, summed over devices, of peaks int64 [..., D]."""
        return overflow(peak_bytes, self.capacity_bytes)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        if self.allowed is not None:  # each group's device evenly from those that it may be on
            which = rng.integers(0, self.allowed.sum(axis=1))
            devices = np.argmax(np.cumsum(self.allowed, axis=1) > which[:, None], axis=1).astype(np.int32)
        else:
            devices = rng.integers(0, self.num_devices, self.num_groups, dtype=np.int32)
        if not self.with_levels:
            return devices
        return np.stack([devices, rng.integers(0, self.priority_levels, self.num_groups, dtype=np.int32)])

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A copy with one of the moves of :mod:`~graphopt_gym.envs.placement.moves`.

        A group, a run of consecutive groups, a stretch of the graph or a module goes to another device, mostly that of
        a group with which it exchanges tensors; the border between two devices shifts; two devices, or two groups,
        change places. Every other move draws its group by its work. With ``moves="runs"`` groups and runs alone move.
        Where the decision states levels, every other move gives groups another level in place of another device.
        """
        changed = decision.astype(np.int32)
        move(changed.reshape(-1, self.num_groups), self.move_tables, rng.integers(2**64, dtype=np.uint64))
        return changed

    @property
    def has_walk(self) -> bool:
        """Not where a subclass changes what the compiled walk does too, and not for pipelines."""
        return self.pipeline is None and all(
            getattr(type(self), name) is getattr(PlacementProblem, name) for name in WALKED
        )

    def walk(self, state: Walk, steps: int, most_idle: int) -> None:
        run_walk(self, state, steps, most_idle)

    def with_moves(self, moves: str) -> PlacementProblem:
        if choice("moves", moves, SETS) == self.moves:
            return self
        found = copy.copy(self)
        found.__dict__.pop("move_tables", None)
        found.moves = moves
        return found

    @cached_property
    def move_tables(self) -> Moves:
        """What moves are drawn from."""
        return make_moves(self)

    def bounds(self) -> dict[str, float]:
        """Step times, or periods, that no placement can beat, in seconds.

        ``critical_path_s``: the longest path with each task on the fastest device that it may be on and no transfer.
        ``work_s``: the times of all tasks, each on its fastest device, spread evenly over the devices.
        ``group_s``: of a period, in place of the path: the longest group, on the fastest device that it may be on.
        """
        tasks = self.simulator.tasks
        durations = self.simulator.device_durations_s()
        if self.allowed is not None:
            durations = np.where(self.allowed.T[:, self.group_of_task], durations, np.inf)
        fastest = durations.min(axis=0)
        if self.pipeline is not None:
            alone = self._group_s if self.allowed is None else np.where(self.allowed.T, self._group_s, np.inf)
            return {"group_s": float(alone.min(axis=0).max()), "work_s": float(fastest.sum() / self.num_devices)}
        finish = fastest.copy()
        for task in range(tasks.num_tasks):
            inputs = tasks.tensor_task[tasks.input_tensor[tasks.input_ptr[task] : tasks.input_ptr[task + 1]]]
            if len(inputs):
                finish[task] = fastest[task] + finish[inputs].max()
        return {"critical_path_s": float(finish.max()), "work_s": float(fastest.sum() / self.num_devices)}

    @property
    def pricing(self) -> tuple[CostModel, Sequence[Device]] | None:
        model = self.simulator.cost_model
        return None if model is None else (model, self.cluster.devices)

    def fingerprints(self) -> dict[str, str]:
        import hashlib

        times = hashlib.sha256(self.simulator.durations_s.tobytes()).hexdigest()
        found = {**super().fingerprints(), "op_times": times}
        if self.own:
            tasks, own = self.simulator.tasks, hashlib.sha256()
            everything = (tasks.tensor_op, tasks.tensor_bytes, tasks.transfer_s, tasks.reader, tasks.storage_bytes,
                          tasks.persistent_bytes, self.simulator.device_type)  # fmt: skip
            for array in (*everything, *([] if self.allowed is None else [self.allowed])):
                own.update(array.tobytes())
            found["own_costs"] = own.hexdigest()
        return found


def _is_row(decision: Any) -> bool:
    """Whether something given as a decision has one dimension; what NumPy cannot even look at has none."""
    try:
        return np.ndim(decision) == 1
    except (ValueError, TypeError, RecursionError):
        return False
