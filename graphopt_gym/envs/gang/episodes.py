"""Episodes of gang scheduling: one choice a step of a simulated run, or a whole decision in one action."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from graphopt_gym.envs.core.episodes import Episodes, Result
from graphopt_gym.envs.core.observation import ObservationTable, Part
from graphopt_gym.envs.gang.instances import (
    CLIENT_FEATURES,
    GANG_FEATURES,
    ISLAND_FEATURES,
    NODE_FEATURES,
    PLAN_FEATURES,
    POSITION_FEATURES,
    PROGRESS_FEATURES,
    SLICE_FEATURES,
    GangRoster,
    Instance,
    Ready,
)
from graphopt_gym.envs.gang.problem import HEAD, PLAN, STRICT
from graphopt_gym.envs.gang.rules import start_order
from graphopt_gym.envs.gang.walk import look
from graphopt_gym.fields import choice, flag
from graphopt_gym.simulator.gang import engine
from graphopt_gym.simulator.gang.engine import BEGIN, WAIT, State

if TYPE_CHECKING:
    from graphopt_gym.simulator.gang.simulator import GangSimulator

REWARDS = ("improvement", "terminal")
INVALID = 10.0  # what an invalid decision costs, to the reference
PHASES = ("plan", "slice", "gang")
CHOOSES_PLAN, CHOOSES_SLICE, CHOOSES_GANG, ENDED = range(4)

STEP = ObservationTable(
    (
        Part("phase", (len(PHASES),), "share", "1: what is chosen: a plan, a slice's place, or a gang", "none"),
        Part("plans", ("K", len(PLAN_FEATURES)), "share", "the features of every plan"),
        Part("plan", ("K",), "share", "1: the plan that was chosen"),
        Part("slice", (len(SLICE_FEATURES),), "share", "the slice whose place is chosen", "0 in other phases"),
        Part("positions", ("Q", len(POSITION_FEATURES)), "share", "where it may lie", "0 in other phases"),
        Part("gangs", ("W", len(GANG_FEATURES)), "share", "gangs that may start, the earliest ready first"),
        Part("clients", ("C", len(CLIENT_FEATURES)), "share", "the features of every client"),
        Part("islands", ("I", len(ISLAND_FEATURES)), "share", "the features of every island"),
        Part("progress", (len(PROGRESS_FEATURES),), "share", "how far the run is", "none"),
        Part("action_mask", ("A",), "mask", "1: the choice is there", "none"),
    )
)
ONE_SHOT = ObservationTable(
    (
        Part("plans", ("K", len(PLAN_FEATURES)), "share", "the features of every plan"),
        Part("nodes", ("K", "G", len(NODE_FEATURES)), "share", "the features of every gang of every plan"),
        Part("node_mask", ("K", "G"), "mask", "1: a gang"),
        Part("edge_index", ("K", 2, "E"), "index", "sending and reading gang of each edge, plan by plan", "-1", "G"),
        Part("slice_of_gang", ("K", "G"), "index", "the slice of each gang", "-1", "V"),
        Part("client_of_gang", ("K", "G"), "index", "the client of each gang", "-1", "C"),
    )
)


class GangEpisodes(Episodes[Instance]):
    """``count`` episodes on instances of a roster, and what both forms of them share."""

    roster: GangRoster

    def __init__(self, roster: GangRoster, count: int, info: str) -> None:
        super().__init__(roster, count, info)
        longest = max(one.length for one in roster.flat)
        self.decided = np.full((count, longest), -1, np.int32)
        self.cost, self.valid = np.zeros(count), np.zeros(count, bool)

    def decision(self, row: int) -> np.ndarray:
        """int32 [length], a copy: the whole decision as it stands."""
        return self.decided[row, : self.instance(row).length].copy()

    def _set(self, row: int, decision: np.ndarray) -> None:
        self.decided[row] = -1
        self.decided[row, : len(decision)] = decision

    def _first_decision(self, row: int) -> np.ndarray:
        """First come, first served, by the first plan."""
        problem = self.instance(row).problem
        return problem.decision_of(0, np.zeros(problem.plans[0].program.num_gangs, np.int32), False)

    def _end(self, row: int) -> float:
        """Price what is decided: minus its cost, to the reference."""
        instance = self.instance(row)
        costs, valid = instance.problem.costs(self.decided[row : row + 1, : instance.length])
        self.cost[row], self.valid[row] = costs[0], valid[0]
        return -float(costs[0]) / instance.reference if valid[0] else -INVALID

    def begun(self, row: int) -> dict[str, Any]:
        return {"gangs": self.instance(row).num_gangs, "plans": self.instance(row).num_plans}

    def result(self, row: int) -> Result:
        valid = bool(self.valid[row])
        reasons = () if valid or self.light else self.outcome(row).reasons
        return Result(self.decided[row].copy(), float(self.cost[row]), valid, reasons)

    def ended(self, row: int) -> dict[str, Any]:
        return {"relative_cost": float(self.cost[row]) / self.instance(row).reference}


class GangStep(GangEpisodes):
    """A plan, then a place for each slice, then again and again which gang starts now, or that none does."""

    table = STEP

    def __init__(
        self, roster: GangRoster, count: int, info: str = "full", reward: str = "improvement", wait: bool = True
    ) -> None:
        super().__init__(roster, count, info)
        self.reward, self.wait = choice("reward", reward, REWARDS), flag("wait", wait)
        self.action_space = spaces.Discrete(roster.sizes["A"])
        self.longest = 1 + roster.sizes["V"] + roster.sizes["G"] * (2 if wait else 1)
        self.waits = np.zeros(count, np.int64)
        self.phase = np.zeros(count, np.int64)
        self.plan, self.slice = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.first_core: list[np.ndarray] = [np.zeros(0, np.int64)] * count
        self.runs: list[tuple[GangSimulator, State, Ready, np.ndarray] | None] = [None] * count
        self.potential, self.may_wait = np.full(count, -1.0), np.zeros(count, bool)
        # filled by `look`
        self.window, self.window_size = np.zeros((count, roster.window), np.int32), np.zeros(count, np.int64)
        shapes = self.observation_shapes
        self.gangs, self.clients, self.islands, self.progress = (
            np.zeros((count, *shapes[name]), np.float32) for name in ("gangs", "clients", "islands", "progress")
        )

    def _begin(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            self.runs[row] = None
            self.waits[row] = 0
            self.cost[row], self.valid[row] = 0.0, False
            self.potential[row] = -1.0
            for part in (self.gangs, self.clients, self.islands, self.progress):
                part[row] = 0.0
            self.window_size[row] = 0
            self.plan[row] = self.slice[row] = 0
            self._set(row, self._first_decision(row))
            self.phase[row] = CHOOSES_PLAN
            if self.instance(row).num_plans == 1:
                self._take_plan(row, 0)

    def _take_plan(self, row: int, plan: int) -> None:
        problem = self.instance(row).problem
        self.plan[row], self.slice[row] = plan, 0
        self.first_core[row] = problem.spread[plan].copy()
        self.phase[row] = CHOOSES_SLICE
        self._next_slice(row)

    def _next_slice(self, row: int) -> None:
        """On to a slice that may lie in several places, or to the run."""
        positions = self.instance(row).problem.positions[int(self.plan[row])]
        while self.slice[row] < len(positions) and len(positions[int(self.slice[row])]) == 1:
            self.slice[row] += 1  # there is no choice
        if self.slice[row] < len(positions):
            return
        instance = self.instance(row)
        simulator = instance.problem.simulator(int(self.plan[row]), self.first_core[row])
        ready = instance.ready(int(self.plan[row]), self.first_core[row], simulator)
        last = np.full(simulator.classes.num_classes, -1, np.int32)
        self.runs[row] = (simulator, simulator.choose(), ready, last)
        self.phase[row] = CHOOSES_GANG
        self._advance(row, BEGIN)

    def _advance(self, row: int, chosen: int) -> None:
        """On in the run to where there is something to choose again, or to its end."""
        run = self.runs[row]
        assert run is not None
        simulator, state, ready, last = run
        tables, mask, blocked = simulator.lowered.tables, np.empty(len(ready.client), np.bool_), np.empty(3)
        while True:
            if chosen >= 0:
                for at in tables.resource[tables.resource_ptr[chosen] : tables.resource_ptr[chosen + 1]]:
                    if at < len(last):
                        last[at] = ready.client[chosen]
            found = engine.advance(tables, state, chosen)
            engine.candidates(tables, state, mask)
            size, potential, bound, started, events = look(
                tables,
                state,
                ready,
                mask,
                last,
                self.window[row],
                self.gangs[row],
                self.clients[row],
                self.islands[row],
                blocked,
            )
            # as often as there are gangs, so that episodes have an end
            self.window_size[row], self.may_wait[row] = (
                size,
                events and self.wait and self.waits[row] < len(ready.client),
            )
            if found == 0:
                self.phase[row] = ENDED
                return
            if size > 1 or self.may_wait[row] or chosen == BEGIN:
                break
            chosen = int(self.window[row, 0])  # there is no choice
        now, reference = state.clock[engine.NOW], ready.reference
        now_share = now / ready.units / reference if not ready.fair else now / ready.horizon_s
        bound_share = bound / reference if not ready.fair else bound / ready.horizon_s
        self.progress[row] = (
            started / len(ready.client), now_share / (1 + now_share), bound_share / (1 + bound_share),
            float(self.may_wait[row]), blocked[0] / (1 + blocked[0]), blocked[1], blocked[2],
        )  # fmt: skip
        self.potential[row] = potential

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards, done, illegal = np.zeros(len(rows)), np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        for at, row in enumerate(rows.tolist()):
            before = self.potential[row]
            illegal[at] = self._act(row, int(actions[at]))
            if self.phase[row] == ENDED:
                done[at] = True
                self._set(row, self._decision_now(row))
                final = self._end(row)
                rewards[at] = final - before if self.reward == "improvement" else final
            elif self.reward == "improvement":
                rewards[at] = self.potential[row] - before
        return rewards, done, illegal

    def _act(self, row: int, action: int) -> bool:
        """Takes an action, or a plain one in place of an illegal one. Whether it was illegal."""
        phase, instance = self.phase[row], self.instance(row)
        if phase == CHOOSES_PLAN:
            illegal = not 0 <= action < instance.num_plans
            self._take_plan(row, 0 if illegal else action)
        elif phase == CHOOSES_SLICE:
            plan, v = int(self.plan[row]), int(self.slice[row])
            places = instance.problem.positions[plan][v]
            illegal = not (0 <= action < len(places) and instance.fits(plan, v, self.first_core[row])[action])
            if not illegal:
                self.first_core[row][v] = places[action]
            self.slice[row] += 1
            self._next_slice(row)
        elif self.window_size[row] == 0:  # nothing on cores is there to be chosen
            self.phase[row] = ENDED
            illegal = action != 0
        else:
            waits = action == self.roster.window and self.may_wait[row]
            illegal = not waits and not 0 <= action < self.window_size[row]
            self.waits[row] += waits
            self._advance(row, WAIT if waits else int(self.window[row, 0 if illegal else action]))
        return bool(illegal)

    def _decision_now(self, row: int) -> np.ndarray:
        """Gangs in the order in which they started, then the others."""
        problem, run = self.instance(row).problem, self.runs[row]
        if run is None:
            return self._first_decision(row)
        levels = problem.levels_of_order(start_order(run[0], run[1]))
        return problem.decision_of(int(self.plan[row]), levels, True, self.first_core[row])

    def decision(self, row: int) -> np.ndarray:
        if self.phase[row] != ENDED:
            self._set(row, self._decision_now(row))
        return super().decision(row)

    def masks(self, rows: np.ndarray) -> np.ndarray:
        out = np.zeros((len(rows), self.roster.sizes["A"]), np.bool_)
        for at, row in enumerate(rows.tolist()):
            phase, instance = self.phase[row], self.instance(row)
            if phase == CHOOSES_PLAN:
                out[at, : instance.num_plans] = True
            elif phase == CHOOSES_SLICE:
                fits = instance.fits(int(self.plan[row]), int(self.slice[row]), self.first_core[row])
                out[at, : len(fits)] = fits
            else:
                out[at, : max(1, int(self.window_size[row])) if phase == CHOOSES_GANG else 1] = True
                out[at, self.roster.window] = phase == CHOOSES_GANG and self.may_wait[row]
        return out

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        count, shapes = len(rows), self.observation_shapes
        out = {
            name: np.zeros((count, *shapes[name]), np.float32)
            for name in ("phase", "plans", "plan", "slice", "positions")
        }
        for at, row in enumerate(rows.tolist()):
            phase, instance = int(self.phase[row]), self.instance(row)
            if phase < ENDED:
                out["phase"][at, phase] = 1.0
            out["plans"][at, : instance.num_plans] = instance.plan_features
            if phase != CHOOSES_PLAN:
                out["plan"][at, self.plan[row]] = 1.0
            if phase == CHOOSES_SLICE:
                plan, v = int(self.plan[row]), int(self.slice[row])
                out["slice"][at] = instance.slice_features(plan, v)
                found = instance.position_features(plan, v, self.first_core[row])
                out["positions"][at, : len(found)] = found
        for name in ("gangs", "clients", "islands", "progress"):
            out[name] = getattr(self, name)[rows]
        out["action_mask"] = self.masks(rows).astype(np.int8)
        return {name: out[name].reshape(count, -1) for name in (part.name for part in self.table)}


class GangOneShot(GangEpisodes):
    """Plan, way to take turns, places and levels in one action, of fixed size."""

    table = ONE_SHOT
    longest = 1

    def __init__(self, roster: GangRoster, count: int, info: str = "full") -> None:
        super().__init__(roster, count, info)
        sizes = roster.sizes
        choices = [sizes["K"], 2, *[sizes["Q"]] * sizes["V"], *[sizes["P"]] * sizes["N"]]
        self.action_space = spaces.MultiDiscrete(choices)

    def _begin(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            self.cost[row], self.valid[row] = 0.0, False
            self._set(row, self._first_decision(row))

    def _entries(self, instance: Instance) -> tuple[np.ndarray, np.ndarray]:
        """(which entries of an action a decision has, how many choices each)."""
        levels = HEAD + self.roster.sizes["V"] + np.arange(instance.num_entries)
        entries = np.concatenate([[PLAN, STRICT], HEAD + np.arange(instance.placed), levels])
        choices = np.minimum(instance.problem.entry_choices, self.action_space.nvec[entries])  # type: ignore[attr-defined]
        return entries.astype(np.int64), choices

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards, illegal = np.zeros(len(rows)), np.zeros(len(rows), bool)
        for at, row in enumerate(rows.tolist()):
            instance = self.instance(row)
            entries, choices = self._entries(instance)
            given = actions[at, entries]
            wrong = (given < 0) | (given >= choices)
            if not instance.problem.safe:
                wrong[STRICT] |= given[STRICT] != 1
            illegal[at] = wrong.any()
            self._set(row, np.where(wrong, self.decided[row, : instance.length], given).astype(np.int32))
            rewards[at] = self._end(row)
        return rewards, np.ones(len(rows), bool), illegal

    def masks(self, rows: np.ndarray) -> np.ndarray:
        nvec = self.action_space.nvec  # type: ignore[attr-defined]
        starts = np.concatenate([[0], np.cumsum(nvec)[:-1]])
        out = np.zeros((len(rows), int(nvec.sum())), np.bool_)
        for at, row in enumerate(rows.tolist()):
            instance = self.instance(row)
            entries, choices = self._entries(instance)
            most = np.ones(len(nvec), np.int64)
            most[entries] = choices
            place = np.arange(out.shape[1]) - np.repeat(starts, nvec)
            out[at] = place < np.repeat(most, nvec)
            if not instance.problem.safe:
                out[at, starts[STRICT]] = False
        return out

    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        instance, shapes = self.instances[index], self.table.shapes(self.roster.sizes)
        out = {
            part.name: np.full(shapes[part.name], -1 if part.kind == "index" else 0, part.dtype) for part in self.table
        }
        out["plans"][: instance.num_plans] = instance.plan_features
        for plan, one in enumerate(instance.problem.plans):
            program = one.program
            gangs, edges = program.num_gangs, program.num_edges
            out["nodes"][plan, :gangs] = instance.nodes(plan)
            out["node_mask"][plan, :gangs] = 1
            out["edge_index"][plan, :, :edges] = np.stack([program.edge_src, program.edge_dst])
            out["slice_of_gang"][plan, :gangs] = program.slice
            out["client_of_gang"][plan, :gangs] = program.client
        return out

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        self._fill_static(rows, out)
        return out
