"""Gang scheduling: by which plan, on which slices and in which order a workload's gangs run on islands of cores."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.catalog import stored_name
from graphopt_gym.envs.gang.orders import class_lists, dense_levels, topological_order
from graphopt_gym.envs.gang.rules import ORDERS, pipeline_decision, policy_decision, start_order
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_integers, choice, flag, positive
from graphopt_gym.problem import Outcome, Problem
from graphopt_gym.simulator.gang import engine
from graphopt_gym.simulator.gang.engine import BEGIN, LISTS, NUM_DONE, OVER_CLASS, STATIC, State
from graphopt_gym.simulator.gang.lowering import CONTROLLERS, DISPATCH
from graphopt_gym.simulator.gang.orders import bubble
from graphopt_gym.simulator.gang.simulator import GangSimulator
from graphopt_gym.simulator.gang.slices import may_span_islands, spread
from graphopt_gym.task import Words
from graphopt_gym.units import format_bytes, format_seconds

if TYPE_CHECKING:
    import os

    from matplotlib.figure import Figure

    from graphopt_gym.hardware.machine import Machine
    from graphopt_gym.simulator.gang.program import ShardedProgram
    from graphopt_gym.simulator.gang.timeline import GangTimeline
    from graphopt_gym.simulator.gang.workloads import Plan, Workload

OBJECTIVES = {"step": "s", "throughput": "s/unit", "fairness": "share"}  # and what each is measured in
PLAN, STRICT, HEAD = 0, 1, 2  # places in a decision; positions of the slices come behind, then levels
MOST_POSITIONS = 64  # of a slice
KEPT = 64  # simulators of plans whose slices lie somewhere

# how often a move is of each kind, where there is something of that kind
MOVES = {"plan": 0.03, "strict": 0.06, "position": 0.13, "level": 0.8}


class Parts(NamedTuple):
    """A decision by its parts, for its own plan. V slices, G gangs."""

    plan: int
    strict: bool
    first_core: np.ndarray  # int64 [V]
    levels: np.ndarray  # int32 [G]; with ``safe=False`` [R], see the problem


class Measured(NamedTuple):
    """What a run is worth."""

    makespan_s: float  # nan: it came to no end
    over: float  # memory beyond capacity, as a share of it; 0: none
    undone: float  # the share of tasks that never ran
    progress: np.ndarray  # float64 [C]: core-seconds of each client up to the horizon
    served: np.ndarray  # float64: those over what is due, of the clients that are due anything

    @property
    def valid(self) -> bool:
        return self.over == 0 and self.undone == 0


class GangProblem(Problem):
    """Run a workload's gangs on a machine of islands.

    A *gang* is a computation over all cores of a slice, which runs on all of them at once without preemption; see
    :mod:`graphopt_gym.simulator.gang` for what is simulated. K plans, V slices and G gangs of the largest plans. A
    decision is an int array of

    - the plan that the workload is run by;
    - 0: a free core takes of its ready gangs that of the highest level, of one level the earliest ready (so cores do
      not idle while something can run); or 1: *strict*: all gangs have one order, the highest level first, of one level
      the lowest number, each moved behind what it reads; every core takes its gangs in that order and waits for them;
    - V positions: which of its allowed first cores each slice begins on (:attr:`positions`, counted around where a
      plan's slice has fewer);
    - G levels.

    What lies beyond the slices and gangs of its plan is ignored. So every decision is legal: one order of all gangs
    cannot end in a deadlock of turns (Barham et al., Pathways, MLSys 2022, §4.4). It is invalid where a core's memory
    overflows: without back-pressure as soon as it does; with it, where gangs wait for memory that never comes free, a
    deadlock that the outcome reports with its gangs and cores.

    With ``safe=False`` each core class orders its own gangs: a decision is the plan, 1, and a level for each of R pairs
    of a gang and a core class that it runs on, gang by gang (:attr:`pairs`); slices lie where ``spread`` puts them.
    Then two gangs in different orders on shared cores deadlock, and the decision is invalid.

    Objectives, in each case to be minimised:

    - ``step``: seconds from 0 to the last finish.
    - ``throughput``: those over the units done: steps of a pipeline, else calls; seconds a unit.
    - ``fairness``: of the clients that have a weight, what the worst served lacks of its due share at the horizon. Its
      due are as many core-seconds as its weight's share of all cores gives until then, or all that it asks for, where
      that is less. 0: max-min fair.

    Args:
        graph: a workload: a name, the path of a JSON file, a :class:`Workload`, or the text of a generator.
        cluster: a machine: a name, a path or a :class:`Machine`.
        objective: one of :data:`OBJECTIVES`.
        horizon_s: when progress is looked at; half of what the cores need for everything, where left out.
        controllers: ``single``, ``multi`` or ``none``.
        dispatch: ``parallel`` or ``sequential``.
        back_pressure: whether what lacks memory waits for it.
        place: whether slices may lie elsewhere than ``spread`` puts them.
        safe: whether the cores' orders agree.

    Raises:
        InputError: an unknown name, a slice larger than an island, ``place`` together with ``safe=False``.
    """

    env_id = "GangScheduling-v0"
    unit = "s"
    slow_moves = 4.0
    page_name = "Cores over time"
    graph: Workload  # type: ignore[assignment]
    cluster: Machine  # type: ignore[assignment]

    def __init__(
        self,
        graph: str | os.PathLike[str] | Workload = "decoder_3b",
        cluster: str | os.PathLike[str] | Machine = "pathways_b_16hosts",
        *,
        objective: str = "step",
        horizon_s: float | None = None,
        controllers: str = "single",
        dispatch: str = "parallel",
        back_pressure: bool = True,
        place: bool | None = None,
        safe: bool = True,
    ) -> None:
        from graphopt_gym.hardware.machine import load_machine
        from graphopt_gym.simulator.gang.workloads import load_workload

        self.graph, self.cluster = load_workload(graph), load_machine(cluster)
        self.objective = choice("objective", objective, tuple(OBJECTIVES))
        self.unit = OBJECTIVES[objective]  # type: ignore[misc]
        self.controllers = choice("controllers", controllers, CONTROLLERS)
        self.dispatch = choice("dispatch", dispatch, DISPATCH)
        self.back_pressure, self.safe = flag("back_pressure", back_pressure), flag("safe", safe)
        self.place = self.safe if place is None else flag("place", place)
        if self.place and not self.safe:
            raise InputError("place is true and safe is false; core classes depend on where slices lie: give one")
        self.plans = self.graph.plans
        self.spread = [spread(one.program, self.cluster) for one in self.plans]  # int64 [V] of each plan
        self.positions = [
            _positions(one.program, self.cluster, first) if self.place else [np.array([at]) for at in first]
            for one, first in zip(self.plans, self.spread, strict=True)
        ]
        self._simulators: OrderedDict[tuple[int, bytes], GangSimulator] = OrderedDict()
        self._by_rules: dict[int, list[np.ndarray]] = {}
        first = self.simulator(0, self.spread[0])
        self.shared_cores = int(first.classes.class_size.sum())  # that clients have their shares of
        needed_s = float(_asked(first).sum()) / self.shared_cores
        self.horizon_s = max(needed_s / 2, 1e-9) if horizon_s is None else positive("horizon_s", horizon_s)
        self.config = {
            "graph": stored_name(graph, self.graph),
            "cluster": stored_name(cluster, self.cluster),
            "objective": objective,
            "horizon_s": None if horizon_s is None else self.horizon_s,
            "controllers": controllers,
            "dispatch": dispatch,
            "back_pressure": self.back_pressure,
            "place": self.place,
            "safe": self.safe,
        }
        self.num_slices, self.num_gangs = self.graph.most_slices, self.graph.most_gangs
        if self.safe:
            slots = max(len(one) for plan in self.positions for one in plan)
            places = [max(len(plan[v]) for plan in self.positions if v < len(plan)) for v in range(self.num_slices)]
            length, levels = self.num_gangs, max(2, self.num_gangs)
        else:
            self.pairs = [_pairs(self.simulator(k, at)) for k, at in enumerate(self.spread)]  # int32 [R, 2] each
            slots, places, length = 1, [], max(len(one) for one in self.pairs)
            levels = max(2, self.num_gangs)
        self.levels = levels
        # int32 [length]: how many choices each entry has
        self.entry_choices = np.array([len(self.plans), 2, *places, *[levels] * length], np.int32)
        self.levels_at = HEAD + len(places)
        self.decision_shape = (len(self.entry_choices),)
        self.num_choices = int(max(slots, *self.entry_choices))

    @property
    def words(self) -> Words:
        """Its task's, with what the objective is called."""
        named = {"step": "step time", "throughput": "time a unit", "fairness": "lack of the worst served"}
        return replace(super().words, cost=named[self.objective])

    # ---- decisions

    @cached_property
    def choices_allowed(self) -> np.ndarray | None:
        """bool [length, num_choices]: those that each entry may have; None: all."""
        found = np.arange(self.num_choices) < self.entry_choices[:, None]
        if not self.safe:
            found[STRICT] = np.arange(self.num_choices) == 1
        return None if found.all() else found

    @property
    def rules(self) -> Mapping[str, str]:
        return {
            "objective": self.objective,
            "controllers": self.controllers,
            "dispatch": self.dispatch,
            **({} if self.back_pressure else {"back_pressure": "no"}),
            **({} if self.place else {"place": "no"}),
            **({} if self.safe else {"safe": "no"}),
        }

    def check(self, decision: Any) -> np.ndarray:
        given = check_integers(decision, self.decision_shape, 2**31 - 1, "choice")
        parts = (
            ("plan", 0, 1, "plan"), ("strict", 1, 2, "0: by level, 1: strict"), ("positions", 2, self.levels_at,
             "position"), ("levels", self.levels_at, len(given), "level"),
        )  # fmt: skip
        for name, begin, end, what in parts:
            limits = self.entry_choices[begin:end]
            bad = given[begin:end] >= limits
            if bad.any():
                at = int(bad.argmax())
                raise InputError(
                    f"decision[{begin + at}] is {given[begin + at]}, allowed: 0 to {limits[at] - 1} "
                    f"({what} {at} of the {name})"
                )
        if not self.safe and given[STRICT] != 1:
            raise InputError("decision[1] is 0; with safe=False each core has its own strict order: give 1")
        return given

    def parts(self, decision: np.ndarray) -> Parts:
        """What a checked decision says of its plan."""
        k = int(decision[PLAN])
        program, places = self.plans[k].program, self.positions[k]
        levels = decision[self.levels_at :]
        if not self.safe:
            return Parts(k, True, self.spread[k], levels[: len(self.pairs[k])])
        chosen = decision[HEAD : HEAD + program.num_slices].tolist()
        first = np.array([one[at % len(one)] for one, at in zip(places, chosen, strict=True)], np.int64)
        return Parts(k, bool(decision[STRICT]), first, levels[: program.num_gangs])

    def decision_of(
        self, plan: int, levels: np.ndarray, strict: bool = True, first_core: np.ndarray | None = None
    ) -> np.ndarray:
        """int32 [length]: a decision of its parts; what is padding is 0.

        Args:
            plan: its number.
            levels: int [G] of that plan.
            strict: whether all gangs have one order.
            first_core: int [V], each among :attr:`positions`; as ``spread`` puts them where left out.
        """
        out = np.zeros(self.decision_shape, np.int32)
        out[PLAN], out[STRICT] = plan, strict or not self.safe
        if not self.safe:
            of_pair = np.asarray(levels)[self.pairs[plan][:, 0]]
            out[self.levels_at : self.levels_at + len(of_pair)] = of_pair
            return out
        first = self.spread[plan] if first_core is None else first_core
        for v, (places, at) in enumerate(zip(self.positions[plan], first.tolist(), strict=True)):
            out[HEAD + v] = int(np.flatnonzero(places == at)[0])
        out[self.levels_at : self.levels_at + len(levels)] = levels
        return out

    def levels_of_order(self, order: np.ndarray) -> np.ndarray:
        """int32 [G]: levels that give an order of all gangs, the first the highest."""
        levels = np.empty(len(order), np.int32)
        levels[order] = np.arange(len(order) - 1, -1, -1)
        return levels

    def levels_of_priorities(self, priorities: np.ndarray) -> np.ndarray:
        """int32 [G]: levels in the order of priorities, equal where these are."""
        return dense_levels(priorities)

    def order(self, plan: int, levels: np.ndarray) -> np.ndarray:
        """int32 [G]: the one order of all gangs that levels stand for, each gang behind what it reads."""
        pointers, successors = self.plans[plan].program.successors
        # a copy, since a decision may be one that cannot be written to, of which a kernel would need another form
        return topological_order(pointers, successors, np.array(levels, np.int32))

    # ---- runs

    def simulator(self, plan: int, first_core: np.ndarray) -> GangSimulator:
        """A plan's simulator with its slices there; kept for the next time."""
        key = (plan, first_core.tobytes())
        found = self._simulators.get(key)
        if found is None:
            found = self._simulators[key] = GangSimulator(
                self.plans[plan].program, self.cluster, first_core, controllers=self.controllers,
                dispatch=self.dispatch, back_pressure=self.back_pressure,
            )  # fmt: skip
            while len(self._simulators) > KEPT:
                self._simulators.popitem(last=False)
        self._simulators.move_to_end(key)
        return found

    def run(self, decision: np.ndarray) -> tuple[GangSimulator, State]:
        """A checked decision run to its end."""
        parts = self.parts(decision)
        simulator = self.simulator(parts.plan, parts.first_core)
        gangs, tables = simulator.program.num_gangs, simulator.lowered.tables
        level, lists = None, None
        if not self.safe:
            lists = _own_lists(self.pairs[parts.plan], parts.levels, simulator.classes.num_classes)
        elif parts.strict:
            order = self.order(parts.plan, parts.levels)
            lists = class_lists(order, tables.resource_ptr, tables.resource, simulator.classes.num_classes)
        else:
            level = -parts.levels.astype(np.float64)
        state = engine.new_state(
            tables, gangs, simulator.lowered.num_resources, STATIC if lists is None else LISTS, self.back_pressure,
            level, lists,
        )  # fmt: skip
        engine.advance(tables, state, BEGIN)
        return simulator, state

    def timeline(self, decision: Any) -> GangTimeline:
        """What runs where and when. Raises InputError as :meth:`check` does."""
        simulator, state = self.run(self.check(decision))
        return simulator.timeline(state)

    def measure(self, simulator: GangSimulator, state: State) -> Measured:
        """What a run that has come to its end is worth."""
        tables, tasks = simulator.lowered.tables, simulator.num_tasks
        beyond = tables.resident_bytes - tables.capacity_bytes
        over = float((np.maximum(beyond, 0) / tables.capacity_bytes).sum())
        if state.clock[OVER_CLASS] >= 0:
            over += float((np.maximum(state.peak_bytes - tables.capacity_bytes, 0) / tables.capacity_bytes).sum())
        undone = 1.0 - float(state.counts[NUM_DONE]) / tasks
        works = simulator.lowered.kind <= 1
        makespan = float(state.finish_s[works].max()) if undone == 0 else float("nan")
        progress, due = self._progress(simulator.program, tables, state), self.due(simulator)
        return Measured(makespan, over, undone, progress, progress[due > 0] / due[due > 0])

    def _progress(self, program: ShardedProgram, tables: Any, state: State) -> np.ndarray:
        gangs = program.num_gangs
        start, finish = state.start_s[:gangs], state.finish_s[:gangs]
        ran = np.clip(np.minimum(finish, self.horizon_s) - start, 0.0, None)
        ran = np.where(np.isnan(ran), 0.0, ran) * tables.cores[:gangs]
        return np.bincount(program.client, ran, len(program.clients))

    def due(self, simulator: GangSimulator) -> np.ndarray:
        """float64 [C]: core-seconds that each client has a right to up to the horizon."""
        weights = simulator.program.weights
        return np.minimum(weights / weights.sum() * self.shared_cores * self.horizon_s, _asked(simulator))

    def _cost(self, plan: int, found: Measured) -> float:
        """Of a valid run."""
        if self.objective == "fairness":
            return max(0.0, 1.0 - float(found.served.min(initial=1.0)))
        if self.objective == "throughput":
            return found.makespan_s / self.plans[plan].num_units
        return found.makespan_s

    @cached_property
    def worst(self) -> float:
        """More than any valid decision costs, near enough: every task, delay and worst transfer after the other."""
        if self.objective == "fairness":
            return 1.0
        machine, found = self.cluster, 0.0
        links = [one for one in (machine.ici, machine.pcie, machine.dcn) if one is not None]
        for number, plan in enumerate(self.plans):
            lowered = self.simulator(number, self.spread[number]).lowered
            tables, program = lowered.tables, plan.program
            serial = float(tables.duration_s.sum() + tables.delay_s.sum() + tables.arrival_s.max(initial=0.0))
            moved = float(program.edge_bytes.sum()) / min(one.bytes_per_s for one in links)
            moved += program.num_edges * sum(2 * one.latency_s for one in links)
            units = plan.num_units if self.objective == "throughput" else 1
            found = max(found, (serial + moved) / units)
        return found

    def price(self, plan: int, found: Measured) -> float:
        """The cost of a run, finite where it is invalid, too."""
        if found.valid:
            return self._cost(plan, found)
        return self.worst * (2.0 + found.over + found.undone)

    def costs(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        costs, valid = np.empty(len(decisions)), np.empty(len(decisions), np.bool_)
        for row, decision in enumerate(decisions):
            found = self.measure(*self.run(decision))
            costs[row], valid[row] = self.price(int(decision[PLAN]), found), found.valid
        return costs, valid

    def evaluate(self, decision: Any) -> Outcome:
        decision = self.check(decision)
        simulator, state = self.run(decision)
        found, timeline = self.measure(simulator, state), simulator.timeline(state)
        plan = self.plans[int(decision[PLAN])]
        cost = self._cost(int(decision[PLAN]), found) if found.valid else float("inf")
        return Outcome(found.valid, cost, self.unit, timeline.reasons, self._metrics(plan, found, timeline))

    def _metrics(self, plan: Plan, found: Measured, timeline: GangTimeline) -> dict[str, Any]:
        program = plan.program
        ends = np.full(plan.num_units, -np.inf)
        np.fmax.at(ends, plan.unit, timeline.gang_finish_s)
        ended = found.undone == 0
        steady = (ends.max() - ends.min()) / (len(ends) - 1) if ended and len(ends) > 1 else None
        weighted = found.progress[program.weights > 0] / program.weights[program.weights > 0]
        total = float((weighted**2).sum())
        return {
            "plan": plan.label,
            "step_time_s": found.makespan_s if ended else None,
            "unit_s": found.makespan_s / plan.num_units if ended else None,
            "steady_unit_s": None if steady is None else float(steady),
            "utilisation": timeline.utilisation if ended else None,
            "bubble": bubble(timeline) if ended else None,
            "least_served": float(found.served.min(initial=1.0)),
            "jain_index": float(weighted.sum()) ** 2 / (len(weighted) * total) if total > 0 else 1.0,
            "horizon_s": self.horizon_s,
            "progress_core_s": found.progress.tolist(),
            "peak_bytes": timeline.peak_bytes.tolist(),
            "capacity_bytes": self.cluster.hbm_bytes,
            "waited_for_memory": int((timeline.lacked >= 0).sum()),
            "gangs": program.num_gangs,
            "core_classes": timeline.classes.num_classes,
        }

    def summary_lines(self, outcome: Outcome, details: Mapping[str, Any]) -> tuple[str, ...]:
        metrics = outcome.metrics
        if metrics["step_time_s"] is None:
            return (f"plan {metrics['plan']}: it comes to no end",)
        peak = format_bytes(max(metrics["peak_bytes"]))
        return (
            f"plan {metrics['plan']}: {format_seconds(metrics['step_time_s'])}, cores busy "
            f"{100 * metrics['utilisation']:.1f} %, peak {peak} of {format_bytes(metrics['capacity_bytes'])}",
        )

    def figure(self, decision: np.ndarray) -> Figure:
        """What the cores do over time: for whom, or of one client what."""
        from graphopt_gym.simulator.gang.figure import run_figure

        return run_figure(self.timeline(decision), title=self.title)

    def page(self, decision: np.ndarray, trace: Any, details: Mapping[str, Any]) -> str:
        """Who waits for whom."""
        from graphopt_gym.simulator.gang.waiting import waiting_html

        return waiting_html(self.timeline(decision))

    def trace_file(self, decision: np.ndarray) -> bytes:
        """A track a core class, a link, a host, and each part of the control plane."""
        from graphopt_gym.simulator.gang.trace import gang_trace_bytes

        return gang_trace_bytes(self.timeline(decision))

    # ---- moves

    def by_rules(self, plan: int) -> list[np.ndarray]:
        """Decisions of a plan by each cheap rule that is for it: what a search begins from where it goes there."""
        if plan not in self._by_rules:
            found = [policy_decision(self, plan, name) for name in ("fifo", "longest", "shortest")]
            orders = (pipeline_decision(self, plan, name) for name in ORDERS)
            self._by_rules[plan] = found + [one for one in orders if one is not None]
        return self._by_rules[plan]

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A random plan, on random slices, by random levels: half of them strict."""
        plan = int(rng.integers(len(self.plans)))
        gangs = self.plans[plan].program.num_gangs
        strict = bool(rng.random() < 0.5) or not self.safe
        levels = rng.integers(0, gangs, gangs).astype(np.int32)
        if strict:
            levels = self.levels_of_order(self.order(plan, levels))
        out = self.decision_of(plan, levels, strict)
        self._draw_positions(out, rng)
        return out

    def _draw_positions(self, decision: np.ndarray, rng: np.random.Generator) -> None:
        if self.place:
            for v, places in enumerate(self.positions[int(decision[PLAN])]):
                decision[HEAD + v] = rng.integers(len(places))

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A copy with one small change: a gang, or a run of gangs that follow each other, earlier or later in the
        order of those that share its cores, a slice elsewhere; now and then the other way to take turns, or another
        plan, by one of its cheap rules."""
        changed = decision.astype(np.int32)
        plan = int(changed[PLAN])
        movable = [v for v, one in enumerate(self.positions[plan]) if len(one) > 1] if self.place else []
        kinds = ["level"] + ["plan"] * (len(self.plans) > 1) + ["strict"] * self.safe + ["position"] * bool(movable)
        chances = np.array([MOVES[one] for one in kinds])
        kind = kinds[int(np.searchsorted(np.cumsum(chances) / chances.sum(), rng.random(), "right"))]
        if kind == "plan":
            plan = (plan + 1 + int(rng.integers(len(self.plans) - 1))) % len(self.plans)
            rules = self.by_rules(plan)
            return rules[int(rng.integers(len(rules)))].copy()
        if kind == "position":
            v = movable[int(rng.integers(len(movable)))]
            count = len(self.positions[plan][v])
            changed[HEAD + v] = (changed[HEAD + v] + 1 + int(rng.integers(count - 1))) % count
        elif kind == "strict":
            self._turn(changed)
        elif not self.safe:
            self._move_pair(changed, rng)
        else:
            self._move_gangs(changed, rng)
        return changed

    def _turn(self, decision: np.ndarray) -> None:
        """The other way to take turns: the order in which gangs start now, or its levels as they are."""
        plan, begin = int(decision[PLAN]), self.levels_at
        gangs = self.plans[plan].program.num_gangs
        if not decision[STRICT]:
            simulator, state = self.run(decision)
            order = start_order(simulator, state)
            decision[begin : begin + gangs] = self.levels_of_order(order)
        decision[STRICT] = 1 - decision[STRICT]

    def _move_gangs(self, decision: np.ndarray, rng: np.random.Generator) -> None:
        plan, begin = int(decision[PLAN]), self.levels_at
        program = self.plans[plan].program
        gangs = program.num_gangs
        levels = decision[begin : begin + gangs]
        if gangs == 1:
            levels[0] = (levels[0] + 1) % self.levels
            return
        order = self.order(plan, levels) if decision[STRICT] else np.lexsort((np.arange(gangs), -levels))
        at = int(rng.integers(gangs))
        gang = order[at]
        kind = rng.random()
        if not decision[STRICT] and kind < 0.5:  # as urgent as another one, or one level off
            other = int(rng.integers(gangs))
            level = levels[other] if levels[other] != levels[gang] else levels[gang] + (1 if rng.random() < 0.5 else -1)
            mine = np.array([gang])
            if kind < 0.15:  # all of its slice
                mine = np.flatnonzero(program.slice == program.slice[gang])
            levels[mine] = np.clip(level, 0, self.levels - 1)
            return
        mine = np.flatnonzero(self._sharing(decision)[program.slice[gang]][program.slice[order]])
        if kind < 0.85 and len(mine) > 1:  # one or several that follow each other there, earlier or later
            here = int(np.searchsorted(mine, at))
            block = mine[here : here + (1 if kind < 0.7 else 1 + int(rng.geometric(0.4)))]
            step = int(rng.geometric(0.35))
            later = bool(rng.random() < 0.5) if here > 0 else True
            if here + len(block) == len(mine):
                later = False
            target = min(here + len(block) - 1 + step, len(mine) - 1) if later else max(here - step, 0)
            goal = int(mine[target])
        else:  # anywhere
            block, goal = np.array([at]), int(rng.integers(gangs))
        taken = order[block]
        rest = np.delete(order, block)
        goal -= int((block <= goal).sum()) - (1 if goal > at else 0)
        goal = int(np.clip(goal, 0, len(rest)))
        levels[:] = self.levels_of_order(np.concatenate([rest[:goal], taken, rest[goal:]]))

    def _sharing(self, decision: np.ndarray) -> np.ndarray:
        """bool [V, V]: which slices share cores."""
        parts = self.parts(decision)
        first, size = parts.first_core, self.plans[parts.plan].program.slice_cores
        last = first + size
        return (first[:, None] < last) & (first < last[:, None])  # type: ignore[no-any-return]

    def _move_pair(self, decision: np.ndarray, rng: np.random.Generator) -> None:
        """Two gangs of one core class change their levels there."""
        pairs, begin = self.pairs[int(decision[PLAN])], self.levels_at
        if not len(pairs):  # all on links
            return
        at = int(rng.integers(len(pairs)))
        others = np.flatnonzero(pairs[:, 1] == pairs[at, 1])
        other = int(others[int(rng.integers(len(others)))])
        here, there = begin + at, begin + other
        if decision[here] == decision[there]:
            decision[here] = (decision[here] + 1) % self.levels
        else:
            decision[here], decision[there] = decision[there], decision[here]

    def crossover(self, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Of one plan: each slice where either has it, levels between the two; else the second."""
        if first[PLAN] != second[PLAN] or first[STRICT] != second[STRICT]:
            return second.astype(np.int32)
        child = np.where(rng.random(len(first)) < 0.5, first, second).astype(np.int32)
        child[:HEAD] = first[:HEAD]
        share = rng.random()
        levels = slice(self.levels_at, None)
        child[levels] = np.rint(share * first[levels] + (1 - share) * second[levels]).astype(np.int32)
        return child


def _asked(simulator: GangSimulator) -> np.ndarray:
    """float64 [C]: core-seconds of all that each client runs."""
    program, tables = simulator.program, simulator.lowered.tables
    gangs = program.num_gangs
    return np.bincount(program.client, tables.duration_s[:gangs] * tables.cores[:gangs], len(program.clients))


def _positions(program: ShardedProgram, machine: Machine, first: np.ndarray) -> list[np.ndarray]:
    """V arrays int64 of the first cores that each slice may begin on, ascending: multiples of its size within an
    island, and where ``spread`` puts it."""
    found = []
    bounds = machine.first_core
    spans = may_span_islands(program)
    for number, one in enumerate(program.slices):
        ranges = [(0, machine.num_cores)] if spans[number] else list(itertools.pairwise(bounds))
        parts = [np.arange(a, b - one.cores + 1, one.cores) for a, b in ranges if b - a >= one.cores]
        places = np.unique(np.concatenate([*parts, [first[number]]])).astype(np.int64)
        if len(places) > MOST_POSITIONS:
            even = places[np.linspace(0, len(places) - 1, MOST_POSITIONS - 1).astype(np.int64)]
            places = np.unique(np.append(even, first[number]))
        found.append(places)
    return found


def _pairs(simulator: GangSimulator) -> np.ndarray:
    """int32 [R, 2] of (gang, core class), gang by gang."""
    tables, gangs = simulator.lowered.tables, simulator.program.num_gangs
    gang = np.repeat(np.arange(gangs), np.diff(tables.resource_ptr[: gangs + 1]))
    at = tables.resource[: len(gang)]
    on_core = at < simulator.classes.num_classes
    return np.stack([gang[on_core], at[on_core]], axis=1).astype(np.int32)


def _own_lists(pairs: np.ndarray, levels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(pointers int64 [P + 1], gangs int32) of each core class, the highest level first, then the lowest number."""
    order = np.lexsort((pairs[:, 0], -levels, pairs[:, 1]))
    pointers = np.zeros(classes + 1, np.int64)
    np.cumsum(np.bincount(pairs[:, 1], minlength=classes), out=pointers[1:])
    return pointers, pairs[order, 0].astype(np.int32)
