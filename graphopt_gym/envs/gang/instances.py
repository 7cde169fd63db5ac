"""The workloads and machines that an environment draws from, each with what it shows of plans, gangs and slices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from graphopt_gym.envs.core.roster import Roster, padded_size
from graphopt_gym.envs.gang.bounds import plan_bounds
from graphopt_gym.envs.gang.problem import HEAD, GangProblem
from graphopt_gym.fields import whole
from graphopt_gym.simulator.gang.lower_bounds import ways
from graphopt_gym.simulator.gang.simulator import GangSimulator

PLAN_FEATURES = (
    "there",
    "gangs",  # to those of the largest plan
    "slices",  # alike
    "path",  # its lower bound by the longest way, to the largest step bound of all plans
    "cores",  # by the busiest cores
    "memory",  # of the fullest core at the least, to its HBM, at most 1
    "split",  # 1: the gradient of the weights is a gang of its own
    "cut",  # 1: layers cut by time
)
SLICE_FEATURES = (
    "cores",  # to those of the machine
    "work",  # to that of the slice with the most
    "resident",  # bytes to a core's HBM
    "weight",  # the largest weight of its clients, to the largest of all
    "placed",  # share of the slices that lie already
)
POSITION_FEATURES = (
    "load",  # what the slices there already have to do, of the busiest of these cores, to all work
    "island",  # what those on its island have, a core, to all work
    "resident",  # bytes there already, to a core's HBM
    "spread",  # 1: where ``spread`` puts it
)
GANG_FEATURES = (
    "there",
    "time",  # to the longest gang's
    "path",  # from its start to the end of everything, to the longest way of the plan
    "waited",  # squashed: seconds since it was ready, to the mean gang's time
    "served",  # squashed: progress of its client to what is due to it
    "weight",  # of its client, to the largest
    "cores",  # to those of the machine
    "memory",  # bytes that it takes on a core, to HBM
    "free",  # bytes that are free on its fullest core, to HBM
    "readers",  # squashed: gangs that read it
    "left",  # work left on its busiest cores, to the most that any had
    "follows",  # 1: the last gang on its cores was of the same client
    "keeps",  # the longest path of the gangs that are ready, cannot start, and run on cores that it runs on
    "number",  # its number, to that of all gangs
)
CLIENT_FEATURES = (
    "weight",  # to the largest
    "done",  # core-seconds begun, to all of its own
    "served",  # squashed: progress to what is due
    "ready",  # squashed: gangs that may start
)
ISLAND_FEATURES = (
    "busy",  # share of its cores that compute
    "memory",  # of its fullest core, to HBM
    "left",  # work left on its busiest cores, to the most that any had
)
PROGRESS_FEATURES = (
    "started",  # share of the gangs
    "time",  # squashed: now, to the reference cost
    "bound",  # squashed: what the step takes at the least from here, to the reference
    "wait",  # 1: may wait
    "blocked",  # squashed: gangs that are ready and cannot start
    "urgent",  # the longest path of those
    "wide",  # the most cores of those, to those of the machine
)
NODE_FEATURES = (
    "time", "path", "before", "cores", "output", "temp", "weight", "slice", "collective", "unit",
)  # fmt: skip


class Ready(NamedTuple):
    """What an episode's kernel reads of a plan whose slices lie somewhere. G gangs, P core classes, C clients."""

    client: np.ndarray  # int32 [G]
    fixed: np.ndarray  # float32 [G, F]: features that do not change
    tail_s: np.ndarray  # float64 [G]: what comes after each gang takes at the least
    total_s: np.ndarray  # float64 [P]: all work of a class
    class_tail_s: np.ndarray  # float64 [P]: the least that comes after it
    class_size: np.ndarray  # int64 [P]
    class_island: np.ndarray  # int64 [P]
    island_cores: np.ndarray  # int64 [I]
    due: np.ndarray  # float64 [C]
    client_work: np.ndarray  # float64 [C]: core-seconds
    weight: np.ndarray  # float64 [C], to the largest
    mean_s: float  # of a gang
    most_s: float  # the most work of a class
    horizon_s: float
    fair: bool
    units: float  # what seconds are divided by
    reference: float


class Instance:
    """One workload on one machine."""

    def __init__(self, problem: GangProblem) -> None:
        self.problem = problem
        self.length = problem.decision_shape[0]
        self.num_plans, self.num_gangs, self.num_slices = len(problem.plans), problem.num_gangs, problem.num_slices
        self.num_clients, self.num_edges = problem.graph.most_clients, problem.graph.most_edges
        self.num_islands = problem.cluster.num_islands
        self.num_positions = max(len(one) for plan in problem.positions for one in plan)
        self.num_entries = self.length - problem.levels_at  # of levels
        self.placed = problem.levels_at - HEAD  # positions in a decision
        self.num_levels = problem.levels
        self._ready: dict[tuple[int, bytes], Ready] = {}

    @cached_property
    def reference(self) -> float:
        """What costs are relative to: first come, first served, of the first plan; 1 of fairness."""
        problem = self.problem
        if problem.objective == "fairness":
            return 1.0
        gangs = problem.plans[0].program.num_gangs
        start = problem.decision_of(0, np.zeros(gangs, np.int32), False)
        simulator, state = problem.run(start)
        found = problem.measure(simulator, state)
        return problem.price(0, found) if found.valid else problem.worst

    @cached_property
    def plan_features(self) -> np.ndarray:
        """float32 [K, F]"""
        problem = self.problem
        found = [plan_bounds(problem, plan) for plan in range(self.num_plans)]
        most = max(one.step_s for one in found) or 1.0
        rows = []
        for plan, bound in zip(problem.plans, found, strict=True):
            program, made = plan.program, plan.pipeline
            rows.append((
                1.0, program.num_gangs / self.num_gangs, program.num_slices / self.num_slices, bound.path_s / most,
                bound.cores_s / most, min(1.0, bound.memory_bytes / problem.cluster.hbm_bytes),
                float(made is not None and made.weight.size > 0), float(plan.cut == "dp"),
            ))  # fmt: skip
        return np.array(rows, np.float32)

    def ready(self, plan: int, first_core: np.ndarray, simulator: GangSimulator) -> Ready:
        """What does not change in a run; kept while it is among the last few."""
        key = (plan, first_core.tobytes())
        if key not in self._ready:
            if len(self._ready) >= 64:
                self._ready.pop(next(iter(self._ready)))
            self._ready[key] = self._make_ready(plan, simulator)
        return self._ready[key]

    def _make_ready(self, plan: int, simulator: GangSimulator) -> Ready:
        problem, program = self.problem, simulator.program
        tables, classes, gangs = simulator.lowered.tables, simulator.classes, program.num_gangs
        head, tail = (one[:gangs] for one in ways(simulator))
        duration = tables.duration_s[:gangs]
        owner = np.repeat(np.arange(gangs), np.diff(tables.resource_ptr[: gangs + 1]))
        at = tables.resource[: len(owner)]
        count = classes.num_classes
        on_core = at < count
        total = np.bincount(at[on_core], duration[owner[on_core]], count)
        least = np.full(count, np.inf)
        np.minimum.at(least, at[on_core], tail[owner[on_core]])
        weight = program.weights / program.weights.max()
        readers = np.bincount(program.edge_src, minlength=gangs)
        memory = program.output_bytes + program.temp_bytes
        path = head + duration + tail
        fixed = np.zeros((gangs, len(GANG_FEATURES)), np.float32)
        for name, values in {
            "there": np.ones(gangs),
            "time": duration / max(float(duration.max()), 1e-300),
            "path": (duration + tail) / max(float(path.max()), 1e-300),
            "weight": weight[program.client],
            "cores": program.slice_cores[program.slice] / problem.cluster.num_cores,
            "memory": np.minimum(1.0, memory / problem.cluster.hbm_bytes),
            "readers": readers / (1.0 + readers),
            "number": np.arange(gangs) / gangs,
        }.items():
            fixed[:, GANG_FEATURES.index(name)] = values
        work = np.bincount(program.client, duration * tables.cores[:gangs], len(program.clients))
        units = problem.plans[plan].num_units if problem.objective == "throughput" else 1
        return Ready(
            program.client.astype(np.int32), fixed, tail, total, np.where(np.isfinite(least), least, 0.0),
            classes.class_size, classes.class_island.astype(np.int64),
            np.diff(problem.cluster.first_core).astype(np.int64), problem.due(simulator), np.maximum(work, 1e-300),
            weight,
            max(float(duration.mean()), 1e-300), max(float(total.max(initial=0.0)), 1e-300), problem.horizon_s,
            problem.objective == "fairness", float(units), self.reference,
        )  # fmt: skip

    @cached_property
    def slice_work(self) -> list[np.ndarray]:
        """float64 [V] of each plan: seconds of each slice."""
        return [
            np.bincount(one.program.slice, one.program.time_s * one.program.repeats, one.program.num_slices)
            for one in self.problem.plans
        ]

    def slice_features(self, plan: int, v: int) -> np.ndarray:
        """float32 [F]"""
        problem, program = self.problem, self.problem.plans[plan].program
        work, weights = self.slice_work[plan], program.weights / program.weights.max()
        mine = program.client[program.slice == v]
        return np.array((
            program.slices[v].cores / problem.cluster.num_cores, work[v] / max(work.max(), 1e-300),
            min(1.0, program.slices[v].resident_bytes / problem.cluster.hbm_bytes),
            weights[mine].max(initial=0.0), v / program.num_slices,
        ), np.float32)  # fmt: skip

    def _below(self, plan: int, v: int, first_core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(seconds, resident bytes) float64 [N] of each core by the slices before v, which lie at ``first_core``."""
        program, cores = self.problem.plans[plan].program, self.problem.cluster.num_cores
        load, held = np.zeros(cores), np.zeros(cores)
        for other in range(v):
            one = program.slices[other]
            own = slice(first_core[other], first_core[other] + one.cores)
            load[own] += self.slice_work[plan][other]
            held[own] += one.resident_bytes
        return load, held

    def fits(self, plan: int, v: int, first_core: np.ndarray) -> np.ndarray:
        """bool [positions]: where what slice v holds all the time fits beside that of those before it; all, where it
        fits nowhere."""
        problem, one = self.problem, self.problem.plans[plan].program.slices[v]
        places = problem.positions[plan][v]
        _, held = self._below(plan, v, first_core)
        room = problem.cluster.hbm_bytes - one.resident_bytes
        found = np.array([held[at : at + one.cores].max() <= room for at in places.tolist()])
        return found if found.any() else np.ones(len(places), bool)

    def position_features(self, plan: int, v: int, first_core: np.ndarray) -> np.ndarray:
        """float32 [Q, F]: where slice v may lie, those before it lying where ``first_core`` says."""
        problem, program = self.problem, self.problem.plans[plan].program
        machine, work = problem.cluster, self.slice_work[plan]
        load, held = self._below(plan, v, first_core)
        places, size = problem.positions[plan][v], program.slices[v].cores
        sums = np.concatenate([[0.0], np.cumsum(load)])[machine.first_core]
        island = np.diff(sums) / np.diff(machine.first_core)
        total = max(float(work.sum()), 1e-300)
        rows = [
            (load[at : at + size].max() / total, island[machine.core_island[at]] / total,
             min(1.0, held[at : at + size].max() / machine.hbm_bytes), float(at == problem.spread[plan][v]))
            for at in places.tolist()
        ]  # fmt: skip
        return np.array(rows, np.float32)

    def nodes(self, plan: int) -> np.ndarray:
        """float32 [G, F]: :data:`NODE_FEATURES` of a plan's gangs."""
        problem, one = self.problem, self.problem.plans[plan]
        program, machine = one.program, problem.cluster
        simulator = problem.simulator(plan, problem.spread[plan])
        head, tail = (part[: program.num_gangs] for part in ways(simulator))
        duration = simulator.lowered.tables.duration_s[: program.num_gangs]
        longest, hbm = max(float((head + duration + tail).max()), 1e-300), machine.hbm_bytes
        return np.stack([
            duration / max(float(duration.max()), 1e-300), (duration + tail) / longest, head / longest,
            program.slice_cores[program.slice] / machine.num_cores, np.minimum(1.0, program.output_bytes / hbm),
            np.minimum(1.0, program.temp_bytes / hbm), (program.weights / program.weights.max())[program.client],
            program.slice / program.num_slices, program.collective > 0, one.unit / one.num_units,
        ], axis=1).astype(np.float32)  # fmt: skip


class GangRoster(Roster[Instance]):
    """All workloads on all machines that an environment may be asked for, and the padded sizes they share.

    Args:
        graph, cluster: see :class:`Roster`; a graph here is a workload, a cluster a machine.
        window: ready gangs that are shown at most.
        max_gangs, max_slices, max_clients, max_plans, max_islands, max_positions, max_edges: sizes to pad to; the
            largest where left out.
        levels: of the whole decision in one action.
        options: of the problem; those that are None are left out.

    Raises:
        InputError: as :class:`Roster`; a size smaller than what is there.
    """

    measures = MappingProxyType({})

    def __init__(
        self, graph: Any, cluster: Any, window: int = 32, max_gangs: int | None = None, max_slices: int | None = None,
        max_clients: int | None = None, max_plans: int | None = None, max_islands: int | None = None,
        max_positions: int | None = None, max_edges: int | None = None, levels: int = 16, **options: Any,
    ) -> None:  # fmt: skip
        stated: Mapping[str, Any] = {name: value for name, value in options.items() if value is not None}
        super().__init__(GangProblem, Instance, graph, cluster, **stated)

        def most(what: str) -> int:
            return max(1, *(int(getattr(one, what)) for one in self.flat), 1)

        self.window = whole("window", window, 1, 4096)
        given = {
            "G": ("max_gangs", max_gangs, "num_gangs"), "V": ("max_slices", max_slices, "num_slices"),
            "C": ("max_clients", max_clients, "num_clients"), "K": ("max_plans", max_plans, "num_plans"),
            "I": ("max_islands", max_islands, "num_islands"),
            "Q": ("max_positions", max_positions, "num_positions"), "E": ("max_edges", max_edges, "num_edges"),
        }  # fmt: skip
        self.sizes = {symbol: padded_size(name, size, most(own)) for symbol, (name, size, own) in given.items()}
        self.sizes["W"] = self.window
        self.sizes["A"] = max(self.window + 1, self.sizes["K"], self.sizes["Q"])
        self.sizes["P"] = min(whole("levels", levels, 2), max(2, most("num_levels")))
        # level entries of a whole decision: gangs, or pairs of a gang and a core class
        self.sizes["N"] = max(self.sizes["G"], most("num_entries"))
