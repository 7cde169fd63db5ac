"""The best pipeline, contiguous or not, by CP-SAT: the integer program of Tarnawski et al. (NeurIPS 2020, §5.1.2).

Each group is on one device; the load of the busiest device (or link) is least. Times are rounded down to whole units,
so that the solver's bound holds for the true times. Memory is what is held the whole time: what a sample holds beside
depends on where all others are, and is seen when a plan is evaluated; plans that do not fit are ruled out by believing
in less memory.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.placement import balancing
from graphopt_gym.envs.placement.contiguous import BELIEVED_CAPACITIES, dp
from graphopt_gym.errors import InputError
from graphopt_gym.extras import need
from graphopt_gym.fields import positive, whole

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem
    from graphopt_gym.search.evaluator import Evaluator

SECONDS = 60.0
FIRST_SHARE = 0.2  # of the time: annealing, before the solver
UNITS = 2**26  # in the cost of the best plan that is known
MOST_UNITS = 8 * UNITS  # of a load; what takes longer alone is put there by no plan that is sought
MOST_TERMS = 400_000  # variables; more than that no solver reads in minutes


class Model:
    """The integer program of a problem. G groups, D devices, T tensors that groups send each other.

    Args:
        problem: whose objective is throughput.
        unit_s: the unit of time.
        share: how much of each capacity is believed in.

    Raises:
        InputError: OR-tools is not installed, or there are too many variables.
    """

    def __init__(self, problem: PlacementProblem, unit_s: float, share: float) -> None:
        need("ortools", what="method 'cp_sat'")
        from ortools.sat.python import cp_model

        pipeline = problem.pipeline
        assert pipeline is not None
        self.problem, self.unit_s = problem, unit_s
        self.model = cp_model.CpModel()
        tasks, devices, groups = problem.simulator.tasks, range(problem.num_devices), problem.num_groups
        group = problem.group_of_task
        tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
        home, reader = group[tasks.tensor_task], group[tasks.reader]
        apart = home[tensor] != reader
        read = np.unique(np.stack([tensor[apart], reader[apart]], axis=1), axis=0)
        sends = np.unique(read[:, 0]).tolist()
        host = pipeline.transfers == "host"
        size = groups * len(devices) + len(sends) * len(devices) * (2 if host else 1 + len(devices))
        if size > MOST_TERMS:
            raise InputError(
                f"method 'cp_sat' would need {size:,} variables for {groups:,} groups and {len(sends):,} tensors on "
                f"{len(devices)} devices (at most {MOST_TERMS:,}): take 'dp' or 'annealing'"
            )
        model = self.model
        self.on = [[model.new_bool_var("") for _ in devices] for _ in range(groups)]
        for one, row in enumerate(self.on):
            model.add_exactly_one(row)
            if problem.allowed is not None:
                for device in np.flatnonzero(~problem.allowed[one]).tolist():
                    model.add(row[device] == 0)
        terms: list[list[tuple[int, Any]]] = [[] for _ in devices]  # of each device's load
        for device in devices:
            for one in range(groups):
                if units := _units(problem._group_s[device, one], unit_s):
                    terms[device].append((units, self.on[one][device]))
        readers = {one: read[read[:, 0] == one, 1].tolist() for one in sends}
        by_link: dict[int, list[tuple[int, Any]]] = {}
        out_s, in_s = pipeline.host_s()
        sent: list[list[tuple[int, Any]]] = [[] for _ in devices]
        received: list[list[tuple[int, Any]]] = [[] for _ in devices]
        for one in sends:
            its = self.on[int(home[one])]
            comes = {device: model.new_bool_var("") for device in devices}
            for device in devices:
                for other in readers[one]:
                    model.add_implication(self.on[other][device], its[device]).only_enforce_if(~comes[device])
            if host:
                for device in devices:
                    leaves = model.new_bool_var("")
                    for other in readers[one]:
                        model.add_implication(its[device], self.on[other][device]).only_enforce_if(~leaves)
                    if units := _units(out_s[device, one], unit_s):
                        sent[device].append((units, leaves))
                    if units := _units(in_s[device, one], unit_s):
                        received[device].append((units, comes[device]))
                continue
            for source in devices:
                for device in devices:
                    if source == device:
                        continue
                    link = int(problem.cluster.link_of[source, device])
                    stated = tasks.transfer_s[one]
                    by = problem.cluster.links[link]
                    seconds = stated if stated >= 0 else by.latency_s + tasks.tensor_bytes[one] / by.bytes_per_s
                    if units := _units(seconds, unit_s):
                        goes = model.new_bool_var("")
                        model.add_bool_or([~its[source], ~comes[device], goes])
                        sent[source].append((units, goes))
                        received[device].append((units, goes))
                        by_link.setdefault(link, []).append((units, goes))
        self.load = model.new_int_var(0, MOST_UNITS, "")
        loads = list(by_link.values())
        if pipeline.overlap:
            loads += terms
            loads += [*sent, *received] if host else []
        else:
            loads += [[*terms[device], *sent[device], *received[device]] for device in devices]
        for load in loads:
            if load:
                model.add(sum(units * variable for units, variable in load) <= self.load)
        held = np.bincount(group, tasks.persistent_bytes, groups).astype(np.int64)
        for device in devices:
            capacity = int(problem.capacity_bytes[device] * share)
            if held.sum() > capacity:
                model.add(sum(int(held[one]) * self.on[one][device] for one in range(groups)) <= capacity)
        model.minimize(self.load)

    def solve(
        self, hint: np.ndarray | None, seconds: float, workers: int, seed: int
    ) -> tuple[np.ndarray | None, float]:
        """(devices int32 [G], or None; a period that none beats, in seconds); ``hint`` int [G] is where to begin."""
        from ortools.sat.python import cp_model

        if hint is not None:
            for one, row in enumerate(self.on):
                for device, variable in enumerate(row):
                    self.model.add_hint(variable, bool(hint[one] == device))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = workers
        solver.parameters.random_seed = seed
        solver.parameters.max_time_in_seconds = seconds
        status = solver.solve(self.model)
        bound = max(0.0, solver.best_objective_bound) * self.unit_s
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, bound
        return np.array([[solver.value(one) for one in row] for row in self.on]).argmax(axis=1).astype(np.int32), bound


def _units(seconds: float, unit_s: float) -> int:
    """Rounded down, so that the bound stays one."""
    return int(min(seconds / unit_s, MOST_UNITS + 1))


def cp_sat(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The method: the best contiguous pipeline, annealed, and the solver from there."""
    problem: Any = evaluator.problem
    need("ortools", what="method 'cp_sat'")
    limit = positive("method 'cp_sat': option time_limit_s", evaluator.options.get("time_limit_s", SECONDS))
    workers = whole("method 'cp_sat': option workers", evaluator.options.get("workers", 0), 0) or os.cpu_count() or 1
    begun = evaluator.wall_s
    dp(evaluator, rng)
    balancing.run(evaluator, rng, max(0, evaluator.left // 2), seconds=FIRST_SHARE * limit)
    known = problem.devices_of(evaluator.best)
    lower_s = 0.0
    for share in BELIEVED_CAPACITIES:
        left = limit - (evaluator.wall_s - begun)
        if evaluator.seconds is not None:
            left = min(left, evaluator.seconds - evaluator.wall_s)
        unit_s = evaluator.best_cost / UNITS
        if left <= 0 or unit_s < sys.float_info.min:  # all is free, or next to nothing
            break
        model = Model(problem, unit_s, share)
        found, bound = model.solve(known, left, workers, int(rng.integers(2**31)))
        if share == 1.0:
            lower_s = bound
        if found is None:
            break
        _, valid = evaluator.costs_and_valid(found[None])
        if valid[0]:
            break
    lower_s = max(lower_s, *problem.bounds().values())
    free = evaluator.best_valid and evaluator.best_cost <= 0
    gap = evaluator.best_cost / lower_s - 1 if lower_s > 0 else 0.0 if free else float("inf")
    evaluator.note(
        lower_bound_s=lower_s, gap_percent=100 * gap if evaluator.best_valid else None, proved=bool(gap <= 1e-4)
    )
