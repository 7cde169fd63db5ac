"""The rules stated to z3: the exact judge and repairer. For small instances, and to hold the corrector against.

Each op has a Boolean a chip (``is``) and one a step (``least``: its chip is at least this). Whatever a partition
implies (a chip feeds another, leads to another, holds a tensor) is implied by clauses in one direction only: the rules
forbid, so no solution gains by more of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.chiplet.propagator import check_graph
from graphopt_gym.errors import InputError
from graphopt_gym.extras import need

if TYPE_CHECKING:
    from graphopt_gym.envs.chiplet.checker import Holdings
    from graphopt_gym.envs.chiplet.problem import ChipletProblem


@dataclass(frozen=True)
class Verdict:
    """An exact answer. ``decision``: int32 [N], or None where there is none; ``proved``: false where time ran out."""

    decision: np.ndarray | None
    proved: bool


class Exact:
    """The rules for one graph and one number of chips, in z3.

    Args:
        num_ops: N, in topological order.
        num_chips: C.
        edges: int [E, 2], producer < consumer.
        holdings: makes memory a rule, exactly as the checker states it.
        seconds: most time for one question.

    Raises:
        InputError: z3 is not installed.
    """

    def __init__(
        self, num_ops: int, num_chips: int, edges: Any, holdings: Holdings | None = None, seconds: float = 60.0
    ) -> None:
        need("z3", what="the exact judge")
        import z3

        self.num_ops, self.num_chips = num_ops, num_chips
        self._z3, self._seconds = z3, seconds
        self._is = [[z3.Bool(f"is_{op}_{chip}") for chip in range(num_chips)] for op in range(num_ops)]
        self._rules = self._state(check_graph(num_ops, num_chips, edges).tolist(), holdings)
        self._solver = z3.Solver()
        self._solver.set("timeout", max(1, int(seconds * 1000)))
        self._solver.add(self._rules)

    @classmethod
    def of(cls, problem: ChipletProblem, *, memory: bool | None = None, seconds: float = 60.0) -> Exact:
        """The rules of a problem; memory among them where the problem's corrections keep to it, or as asked."""
        with_memory = problem.memory_rule if memory is None else memory
        holdings = problem.holdings if with_memory else None
        return cls(problem.num_ops, problem.num_chips, problem.ops.edges, holdings, seconds)

    def _state(self, edges: list[list[int]], holdings: Holdings | None) -> list[Any]:
        z3, chips, ops = self._z3, range(self.num_chips), range(self.num_ops)
        is_on = self._is
        least = [[z3.Bool(f"least_{op}_{chip}") for chip in chips] for op in ops]
        feeds = [[z3.Bool(f"feeds_{a}_{b}") for b in chips] for a in chips]
        leads = [[z3.Bool(f"leads_{a}_{b}") for b in chips] for a in chips]
        rules = []
        for op in ops:
            rules.append(least[op][0])
            for chip in chips:
                if chip + 1 < self.num_chips:
                    rules.append(z3.Implies(least[op][chip + 1], least[op][chip]))
                    rules.append(is_on[op][chip] == z3.And(least[op][chip], z3.Not(least[op][chip + 1])))
                else:
                    rules.append(is_on[op][chip] == least[op][chip])
        for u, v in edges:
            for chip in chips:
                rules.append(z3.Implies(least[u][chip], least[v][chip]))
                for other in range(chip + 1, self.num_chips):
                    rules.append(z3.Or(z3.Not(is_on[u][chip]), z3.Not(is_on[v][other]), feeds[chip][other]))
        for chip in range(1, self.num_chips):
            below = z3.Bool(f"used_{chip - 1}")
            rules.append(z3.Implies(below, z3.Or([is_on[op][chip - 1] for op in ops])))
            rules += [z3.Implies(is_on[op][chip], below) for op in ops]
        for a in chips:
            for b in range(a + 1, self.num_chips):
                rules.append(z3.Implies(feeds[a][b], leads[a][b]))
                for c in range(a + 1, b):
                    rules.append(z3.Implies(z3.And(leads[a][c], leads[c][b]), leads[a][b]))
                    rules.append(z3.Not(z3.And(feeds[a][b], leads[a][c], leads[c][b])))
        if holdings is not None:
            rules += self._memory(holdings)
        return rules

    def _memory(self, holdings: Holdings) -> list[Any]:
        z3, is_on = self._z3, self._is
        rules: list[Any] = []
        for chip in range(self.num_chips):
            always: list[Any] = []
            while_op: list[list[Any]] = [[] for _ in range(self.num_ops)]

            def implied(name: str, when: list[Any], chip: int = chip) -> Any:
                held = z3.Bool(f"{name}_on_{chip}")
                rules.extend(z3.Implies(one, held) for one in when)
                return held

            for param, (size, readers) in enumerate(holdings.params):
                held = implied(f"param_{param}", [is_on[op][chip] for op in readers])
                always.append(z3.If(held, size, 0))
            for tensor, (producer, size, readers) in enumerate(holdings.tensors):
                here = is_on[producer][chip] if producer >= 0 else z3.BoolVal(False)
                arrives = [z3.And(z3.Not(here), is_on[op][chip]) for op in readers]
                always.append(z3.If(implied(f"arrives_{tensor}", arrives), 2 * size, 0))
                if producer < 0:
                    continue
                sent = implied(f"sent_{tensor}", [z3.And(here, z3.Not(is_on[op][chip])) for op in readers])
                always.append(z3.If(sent, size, 0))
                for op in range(producer, self.num_ops):
                    when = [sent] + [z3.And(here, is_on[reader][chip]) for reader in readers if reader >= op]
                    if op == producer:
                        when = [here]
                    while_op[op].append(z3.If(implied(f"alive_{tensor}_{op}", when), size, 0))
            for op in range(self.num_ops):
                fits = z3.Sum([z3.IntVal(0), *always, *while_op[op]]) <= holdings.capacity[chip]
                rules.append(z3.Implies(is_on[op][chip], fits))
        return rules

    def _ask(self, *conditions: Any) -> Verdict:
        z3 = self._z3
        answer = self._solver.check(*conditions)
        if answer == z3.sat:
            return Verdict(self._read(self._solver.model()), True)
        return Verdict(None, answer == z3.unsat)

    def _read(self, model: Any) -> np.ndarray:
        return np.asarray(
            [
                next(chip for chip in range(self.num_chips) if self._z3.is_true(model.eval(row[chip], True)))
                for row in self._is
            ],
            np.int32,
        )

    def complete(self, partial: Any) -> Verdict:
        """A valid partition that agrees with a partial one, int [N] with -1 where an op is free. A decision of None
        that is proved says that there is none."""
        given = np.asarray(partial)
        if given.shape != (self.num_ops,) or given.dtype.kind not in "iu":
            raise InputError(f"partial must be integers of shape ({self.num_ops},), -1 where free")
        fixed = np.flatnonzero(given >= 0).tolist()
        if (given >= self.num_chips).any():
            raise InputError(f"partial names chip {int(given.max())}, allowed: 0 to {self.num_chips - 1}")
        return self._ask(*[self._is[op][int(given[op])] for op in fixed])

    def is_completable(self, partial: Any) -> bool:
        """Whether :meth:`complete` finds one. Raises InputError where time ran out."""
        verdict = self.complete(partial)
        if not verdict.proved:
            raise InputError(f"z3 found no answer in {self._seconds} s; give more seconds or a smaller instance")
        return verdict.decision is not None

    def repair(self, candidate: Any) -> Verdict:
        """A valid partition with the fewest changes to a candidate, int [N]; proved: that there are none fewer."""
        z3 = self._z3
        given = np.asarray(candidate)
        optimizer = z3.Optimize()
        optimizer.set("timeout", max(1, int(self._seconds * 1000)))
        optimizer.add(self._rules)
        for op in range(self.num_ops):
            optimizer.add_soft(self._is[op][int(given[op])])
        answer = optimizer.check()
        if answer == z3.sat:
            return Verdict(self._read(optimizer.model()), True)
        return Verdict(None, answer == z3.unsat)


def best_partition(problem: ChipletProblem, seconds: float = 60.0) -> Verdict:
    """The partition of least period, memory kept to, by z3; for small instances.

    It asks for a shorter period until there is none; proved: that there is none. Where time runs out first, the best
    so far. Times are rounded to a millionth of the whole work, so it may miss the optimum by one millionth of that an
    op.
    """
    started = time.perf_counter()
    exact = Exact.of(problem, memory=True, seconds=seconds)
    z3, is_on, ops, package, solver = exact._z3, exact._is, problem.ops, problem.package, exact._solver
    unit = problem.serial_s / 1e6 or 1.0
    loads: list[list[Any]] = []
    for chip in range(problem.num_chips):
        times = np.round(problem.op_seconds[chip] / unit).astype(np.int64).tolist()
        loads.append([z3.If(is_on[op][chip], time, 0) for op, time in enumerate(times)])
    carried_by: list[list[Any]] = [[] for _ in package.links]
    for tensor, producer in enumerate(ops.tensor_op.tolist()):
        if producer < 0:
            continue
        units = round(int(ops.tensor_bytes[tensor]) / package.link_bytes_per_s / unit)
        carried = [z3.Bool(f"carried_{tensor}_{link}") for link in range(package.num_links)]
        for reader in ops.reader[ops.reader_ptr[tensor] : ops.reader_ptr[tensor + 1]].tolist():
            for a in range(problem.num_chips):
                for b in range(a + 1, problem.num_chips):
                    for link in package.route(a, b):
                        solver.add(z3.Or(z3.Not(is_on[producer][a]), z3.Not(is_on[reader][b]), carried[link]))
        for link, one in enumerate(carried):
            carried_by[link].append(z3.If(one, units, 0))
    sums = [z3.Sum(load) for load in loads + carried_by if load]
    best: np.ndarray | None = None
    while True:
        left = seconds - (time.perf_counter() - started)
        solver.set("timeout", max(1, int(left * 1000)))
        answer = solver.check()
        if answer != z3.sat:
            return Verdict(best, answer == z3.unsat)
        model = solver.model()
        best = exact._read(model)
        period = max(model.eval(load, True).as_long() for load in sums)
        solver.add([load < period for load in sums])
        if left <= 0:
            return Verdict(best, False)
