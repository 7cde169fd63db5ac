"""Classical methods of chiplet partition.

:data:`METHODS` is the table that ``solve`` uses.
"""

from __future__ import annotations

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.chiplet.corrector import memory_facts
from graphopt_gym.envs.chiplet.exact import best_partition
from graphopt_gym.envs.chiplet.ops import HOST
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.envs.chiplet.propagator import Propagator, make_rules
from graphopt_gym.errors import InputError
from graphopt_gym.search.evaluator import Evaluator, Method

# What the greedy heuristic believes of a chip's memory, one after the other until a partition is valid: its account
# leaves out what lives and dies within a chip.
BELIEVED_CAPACITIES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4)

# z3's optimum: the largest instances that it is tried on, and how long.
EXACT_SIZE = 160
EXACT_SECONDS = 120.0


def greedy_decision(problem: ChipletProblem) -> np.ndarray:
    """int32 [N]: the greedy compiler heuristic. Ops in topological order fill one chip after the other.

    A chip is full when it has its share of the work (what is left, by what is left of the chips' speed) or when the
    next op's parameters and buffers do not fit. The next chip is taken as soon as the rules allow it. The first
    partition that fits the memory; where none does (memory is tight, or the way along the graph ends where no chip is
    left for an op), :func:`contiguous_decision`; where there is none either, what the corrector makes of the filling
    that knows no memory.
    """
    for share in BELIEVED_CAPACITIES:
        found = _fill(problem, share)
        if found is not None and not problem.measure(found)[3].any():
            return found
    cut = contiguous_decision(problem)
    if cut is not None:
        return cut
    without = _fill(problem, None)
    assert without is not None
    return problem.corrector.fix(without, np.random.default_rng(0)).decision


def _fill(problem: ChipletProblem, share: float | None) -> np.ndarray | None:
    """One pass; ``share``: of the capacity, None for no limit. None where an op fits nowhere under it."""
    memory = None
    if share is not None:
        memory = memory_facts(problem, share)
    propagator = Propagator(make_rules(problem.num_ops, problem.num_chips, problem.ops.edges, memory=memory))
    if not propagator.feasible:
        return None
    decision = np.zeros(problem.num_ops, np.int32)
    seconds, speed = problem.op_seconds, 1.0 / np.maximum(problem.op_seconds.sum(axis=1), 1e-300)
    left = 1.0  # share of the work not yet assigned
    work = seconds.mean(axis=0) / max(float(seconds.mean(axis=0).sum()), 1e-300)
    chip, load = 0, 0.0
    for op in range(problem.num_ops):
        target = (left + load) * speed[chip] / speed[chip:].sum()
        # the op goes where it leaves the chip's load nearer to its share
        full = load > 0 and load + work[op] / 2 > target and chip + 1 < problem.num_chips
        wanted = [chip + 1, chip] if full else [chip, chip + 1]
        rest = [c for c in range(problem.num_chips) if c not in wanted]
        rest.sort(key=lambda c, at=chip: abs(c - at))  # type: ignore[misc]
        home = next((c for c in [*wanted, *rest] if c < problem.num_chips and propagator.assign(op, c)), None)
        if home is None:
            if share is not None:
                return None
            decision[op:] = chip  # a dead end of the rules, for the corrector
            return decision
        if home > chip:
            chip, load = home, 0.0
        if home == chip:
            load += work[op]
        left -= work[op]
        decision[op] = home
    return decision


def contiguous_decision(problem: ChipletProblem) -> np.ndarray | None:
    """int32 [N]: the best cut of the topological order into consecutive slices, one a chip; None where none fits.

    Dynamic programming over (chips so far, ops so far), memory included. Every edge may cross at most one cut, which
    implies the triangle rule. On a chain of ops, every valid partition is of this kind, and so this is the optimum.
    """
    ops, n = problem.ops, problem.num_ops
    last = np.full(len(ops.tensor_op), -1, np.int64)
    np.maximum.at(last, np.repeat(np.arange(len(last)), np.diff(ops.reader_ptr)), ops.reader)
    inside = ops.tensor_op != HOST
    change = np.zeros(n + 2, np.int64)  # bytes that cross a cut before each op
    farthest = np.zeros(n + 1, np.int64)  # the last op that a tensor which crosses the cut goes to
    for producer, size, reader in zip(ops.tensor_op[inside], ops.tensor_bytes[inside], last[inside], strict=True):
        change[producer + 1] += size
        change[reader + 1] -= size
        farthest[producer + 1] = max(farthest[producer + 1], reader)
    crossing = np.cumsum(change)[: n + 1]
    farthest = np.maximum.accumulate(farthest)  # those that end before the cut do not matter
    work = np.concatenate([np.zeros((problem.num_chips, 1)), np.cumsum(problem.op_seconds, axis=1)], axis=1)
    memory = memory_facts(problem, 1.0)
    held = make_rules(n, problem.num_chips, ops.edges, chain=True, memory=memory).memory
    cuts = _best_cuts(
        work,
        crossing,
        farthest,
        crossing / problem.package.link_bytes_per_s,
        problem.package.sram_bytes,
        last,
        held.op_param_ptr,
        held.op_param,
        held.param_bytes,
        held.input_ptr,
        held.input_tensor,
        held.made_ptr,
        held.made_tensor,
        held.tensor_op,
        held.tensor_bytes,
    )
    if len(cuts) == 0:
        return None
    return (np.searchsorted(cuts, np.arange(n), side="right")).astype(np.int32)


@kernel
def _best_cuts(
    work,  # float64 [C, N+1] seconds of the first ops on each chip
    crossing,  # int64 [N+1] bytes over a cut before each op
    farthest,  # int64 [N+1]
    link_s,  # float64 [N+1]
    capacity,  # int64 [C]
    last,  # int64 [T] last reader
    op_param_ptr,
    op_param,
    param_bytes,
    input_ptr,
    input_tensor,
    made_ptr,
    made_tensor,
    tensor_op,
    tensor_bytes,
):
    """The cuts (ends of the slices, N the last) of the least period; empty where nothing fits."""
    chips, n = work.shape[0], work.shape[1] - 1
    best = np.full((chips + 1, n + 1), np.inf)
    came = np.full((chips + 1, n + 1), -1, np.int64)
    best[0, 0] = 0.0
    most = capacity.max()
    param_seen = np.full(param_bytes.shape[0], -1, np.int64)
    tensor_seen = np.full(tensor_bytes.shape[0], -1, np.int64)
    released = np.zeros(n + 1, np.int64)  # bytes whose last reader is an op
    for begin in range(n):
        reachable = False
        for used in range(chips):
            if best[used, begin] < np.inf:
                reachable = True
        if not reachable:
            continue
        held = 2 * crossing[begin]
        alive = peak = np.int64(0)
        released[begin:] = 0
        for end in range(begin + 1, n + 1):
            op = end - 1
            for k in range(op_param_ptr[op], op_param_ptr[op + 1]):
                if param_seen[op_param[k]] != begin:
                    param_seen[op_param[k]] = begin
                    held += param_bytes[op_param[k]]
            for k in range(input_ptr[op], input_ptr[op + 1]):
                tensor = input_tensor[k]
                if tensor_op[tensor] < 0 and tensor_seen[tensor] != begin:
                    tensor_seen[tensor] = begin
                    held += 2 * tensor_bytes[tensor]
            for k in range(made_ptr[op], made_ptr[op + 1]):
                alive += tensor_bytes[made_tensor[k]]
                released[max(last[made_tensor[k]], op)] += tensor_bytes[made_tensor[k]]
            peak = max(peak, alive)
            alive -= released[op]
            if held + peak > most:
                break  # and so do all longer slices
            if farthest[begin] >= end:
                continue  # something crosses both cuts
            need = held + peak + crossing[end]
            for used in range(chips):
                if best[used, begin] == np.inf or need > capacity[used]:
                    continue
                period = max(best[used, begin], work[used, end] - work[used, begin])
                if end < n:
                    period = max(period, link_s[end])
                if period < best[used + 1, end]:
                    best[used + 1, end] = period
                    came[used + 1, end] = begin
    used = np.int64(np.argmin(best[:, n]))  # type: ignore[assignment]
    if best[used, n] == np.inf:
        return np.zeros(0, np.int64)
    cuts = np.empty(used, np.int64)
    at = n
    for chip in range(used, 0, -1):
        cuts[chip - 1] = at
        at = int(came[chip, at])
    return cuts


def _chiplet_problem(evaluator: Evaluator) -> ChipletProblem:
    assert isinstance(evaluator.problem, ChipletProblem)
    return evaluator.problem


def _single(evaluator: Evaluator, rng: np.random.Generator) -> None:
    evaluator.cost(np.zeros(_chiplet_problem(evaluator).num_ops, np.int32))


def _greedy(evaluator: Evaluator, rng: np.random.Generator) -> None:
    evaluator.cost(greedy_decision(_chiplet_problem(evaluator)))


def _contiguous(evaluator: Evaluator, rng: np.random.Generator) -> None:
    problem = _chiplet_problem(evaluator)
    decision = contiguous_decision(problem)
    # where no cut fits, one that says so
    evaluator.cost(np.zeros(problem.num_ops, np.int32) if decision is None else decision)


def _exact(evaluator: Evaluator, rng: np.random.Generator) -> None:
    problem = _chiplet_problem(evaluator)
    what = f"graph {problem.graph.name!r} on {problem.package.name!r} has {problem.num_ops} ops on {problem.num_chips}"
    if problem.num_ops * problem.num_chips > EXACT_SIZE:
        raise InputError(
            f"method 'exact' takes at most {EXACT_SIZE} ops times chips; {what} chips: use 'annealing', and lower_bound"
        )
    seconds = evaluator.seconds or EXACT_SECONDS
    verdict = best_partition(problem, seconds)
    if verdict.proved and verdict.decision is None:
        raise InputError(
            f"method 'exact': z3 proved that {what} chips, and no partition that keeps to rules and memory"
        )
    if not verdict.proved:
        found = "none found" if verdict.decision is None else f"best {problem.evaluate(verdict.decision).cost:.4g} s"
        raise InputError(f"method 'exact': z3 proved no optimum in {seconds:.0f} s ({what} chips; {found}); give more")
    assert verdict.decision is not None
    evaluator.cost(verdict.decision)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("single", _single, "everything on the first chip", "the usual baseline"),
        Method(
            "greedy",
            _greedy,
            "chips filled in topological order, each with its share of the work, within the rules and memory",
            "the greedy compiler heuristic of Xie et al., MLSys 2022, as far as the paper describes it",
        ),
        Method(
            "contiguous",
            _contiguous,
            "the best cut of the topological order into one slice a chip, by dynamic programming",
            "after the linear partition problem; see Tarnawski et al., NeurIPS 2020, for pipelines",
        ),
        Method(
            "exact",
            _exact,
            f"the optimum, proved by z3 or refused; up to {EXACT_SIZE} ops times chips",
            "z3 (de Moura and Bjørner, TACAS 2008) on the rules stated in clauses",
            small=True,
            needs=("z3",),
        ),
    )
}
