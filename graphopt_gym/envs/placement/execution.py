"""Placements on worker processes of this machine: what is measured beside what was simulated."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.execution.program import SEED, Program, build_program, zoo_arguments
from graphopt_gym.execution.session import Workers
from graphopt_gym.fields import choice, whole
from graphopt_gym.search.solve import solve
from graphopt_gym.simulator.simulator import Simulator, cores
from graphopt_gym.solutions import StoredSolution
from graphopt_gym.units import format_bytes

if TYPE_CHECKING:
    import torch

    from graphopt_gym.simulator.timeline import Timeline

# of the further placements, with the evaluations that each may take
METHODS = {"single": 1, "expert": 1, "metis": 1, "heft": 1, "m_etf": 1, "m_topo": 1, "annealing": 1000}
POOL = 10  # random placements are chosen from so many times as many
OP_TIMES = ("model", "measured")
WARM_UP = 2  # steps of each placement that do not count, of which the first one is checked
ROUNDS = (
    10  # every placement is measured so often, apart in time: what slows the machine for a while slows no one alone
)
ATTEMPTS = 5  # of a step whose workers do not begin together, on a machine that is busy with other things
TOLERANCE = 1e-4  # largest difference of a result from one worker's, to the largest of its values; rounding only
SHARE_OF_MEMORY = 0.8  # of what is free here, that all workers together may take


@dataclass
class Measured:
    """A placement that was run."""

    name: str
    decision: np.ndarray
    steps_s: list[float] = field(default_factory=list)
    busy_s: list[tuple[float, ...]] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)  # the longest of the workers', as a share of the step
    peak_bytes: tuple[int, ...] = ()
    sent: int = 0
    difference: float = 0.0


def execute_report(
    solutions: Sequence[StoredSolution],
    *,
    model: str | None = None,
    graph: str | None = None,
    cluster: str | None = None,
    repeat: int = 20,
    decisions: int = 0,
    op_times: str = "model",
    order: str | None = None,
    devices: str = "auto",
    transport: str = "auto",
    timeout_s: float = 300.0,
    seed: int = 0,
    say: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Run solutions' placements on workers of this machine: a device a process, torch ops one by one.

    Args:
        solutions: of ``Placement-v0``; those of one graph and cluster share a table.
        model: ``"package.module:function"``, which the graph was captured from; a zoo's graph needs none.
        graph, cluster: stand in for the stored ones.
        repeat: steps of each that count.
        decisions: how many placements to run of each graph, the solutions' included: those of methods, then random
            ones, whose step times spread.
        op_times: what the simulated step times rest on: ``"model"``, the cluster's cost model; ``"measured"``, each
            op's time in a step on one worker here.
        order: what workers take next, in place of what the solutions were priced by: ``fifo``, ``program``, ``stream``.
        devices, transport, timeout_s: see :class:`Workers`.
        seed: of the random placements.
        say: called with a line on what is being done.

    Returns:
        ``{"ok", "tables", "facts"}``: a table a graph; ``ok``: all results are those of one worker.

    Raises:
        InputError: a model that makes another graph, an invalid solution, too little memory; what workers raise.
    """
    whole("repeat", repeat, 1)
    whole("decisions", decisions)
    choice("op_times", op_times, OP_TIMES)
    tasks: dict[tuple[str, ...], tuple[PlacementProblem, list[StoredSolution]]] = {}
    for stored in solutions:
        problem = stored.make_problem(graph, cluster)
        assert isinstance(problem, PlacementProblem)
        key = problem.graph.fingerprint, problem.cluster.fingerprint, problem.grouping, problem.order
        tasks.setdefault(key, (problem, []))[1].append(stored)
    tables = []
    for problem, its in tasks.values():
        found = [Measured(_label(stored), problem.check(stored.decision)) for stored in its]
        for one in found:
            outcome = problem.evaluate(one.decision)
            if not outcome.valid:
                raise InputError(f"execute: {one.name} is invalid: {outcome.reasons[0]}")
        found += further(problem, decisions - len(found), seed, [one.decision for one in found])
        check_memory(problem, found)
        program = program_of(problem, model, its[0].config.get("graph", ""), say)
        with Workers(
            problem.num_devices,
            devices=devices,
            transport=transport,
            timeout_s=timeout_s,
            modules=[program.module] if program.module else [],
        ) as workers:
            times = run_all(workers, program, problem, found, repeat, order or problem.order, say)
            facts = {"devices": workers.kind, "transport": workers.transport}
        tables.append(_table(problem, program, found, times if op_times == "measured" else None, times, facts))
    import torch

    setting: dict[str, Any] = {
        "torch": torch.__version__,
        "cores": cores(),
        "repeat": repeat,
        "rounds": ROUNDS,
        "order": order or sorted({problem.order for problem, _ in tasks.values()}),
    }
    ok = all(row["difference"] <= TOLERANCE for table in tables for row in table["rows"])
    return {"ok": ok, "tables": tables, "facts": setting | {"op_times": op_times, "seed": seed}}


def program_of(problem: PlacementProblem, model: str | None, name: str, say: Callable[[str], object] = str) -> Program:
    """The program whose graph is the problem's.

    Raises:
        InputError: no model is known for it, or it makes another graph.
    """
    from graphopt_gym.extras import need
    from graphopt_gym.graphs.capture import arguments_from_spec

    need("torch", what="execute")
    import torch

    wanted = problem.graph
    say(f"{wanted.name}: the model is built and captured again")
    torch.manual_seed(SEED)
    if model is not None:
        arguments: Mapping[str, Any] | None = arguments_from_spec(model)
        targets = [arguments.get("target", "gpu")] if arguments else []
    else:
        arguments, targets = zoo_arguments(wanted, name), ["cpu"]
    if arguments is None:
        raise InputError(
            f"execute: graph {wanted.name!r} is not the zoo's; name the function that it was captured from: "
            "--model package.module:function"
        )
    targets += [one for one in ("cpu", "gpu") if one not in targets]
    found = []
    for target in targets:
        program = build_program({**arguments, "target": target}, wanted.name, (model or "").partition(":")[0])
        if program.graph.fingerprint == wanted.fingerprint:
            for note in program.notes:
                say(f"{wanted.name}: {note}")
            return program
        found.append(program.graph.num_ops)
    raise InputError(
        f"execute: {model or 'the zoo'} makes another graph than the solution's ({found[0]:,} ops, the solution's "
        f"{wanted.num_ops:,}; the torch that captured it: {wanted.metadata.get('torch', 'unknown')}, here "
        f"{torch.__version__.split('+')[0]}): capture it again and solve it again, or name the model that it is of"
    )


def check_memory(problem: PlacementProblem, found: Sequence[Measured]) -> None:
    """Refuses what all workers together have no room for.

    Raises:
        InputError: with what is needed and what is free.
    """
    free = free_memory_bytes()
    kept = int(problem.graph.param_bytes.sum())
    for one in found:
        timeline = _timeline(problem, one.decision)
        # each device's peak, buffers of what is sent, and the values in this process and on their way
        needed = int(timeline.peak_bytes.sum() + timeline.transfer_bytes.sum()) + 2 * kept
        if free is not None and needed > SHARE_OF_MEMORY * free:
            raise InputError(
                f"execute: {one.name} of {problem.graph.name} needs {format_bytes(needed)} of this machine's memory, "
                f"and {format_bytes(free)} are free: give a smaller batch or model"
            )


def free_memory_bytes() -> int | None:
    """What programs can have of this machine's memory; None where that cannot be known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def further(problem: PlacementProblem, count: int, seed: int, known: Sequence[np.ndarray] = ()) -> list[Measured]:
    """Up to ``count`` valid placements whose step times spread: of methods (half of them at most), then random ones.

    The random ones are those of :data:`POOL` times as many whose simulated step times are farthest from each other's
    and from the others', one after the other: ranks of step times that nearly agree would say nothing.
    """
    rng = np.random.default_rng(seed)
    seen = {problem.check(one).tobytes() for one in known}
    times = [outcome.cost for outcome in map(problem.evaluate, known) if outcome.valid]
    found: list[Measured] = []
    best = problem.decision_of(np.zeros(problem.num_groups, np.int32)), np.inf
    for name, budget in METHODS.items() if count > 0 else ():
        if len(found) < (count + 1) // 2:
            solution = solve(problem, name, budget=budget, seed=seed)
            best = min(best, (solution.decision, solution.outcome.cost), key=lambda one: one[1])
            if solution.outcome.valid and solution.decision.tobytes() not in seen:
                seen.add(solution.decision.tobytes())
                found.append(Measured(name, solution.decision))
                times.append(solution.outcome.cost)
    pool: list[tuple[float, Measured]] = []
    for number in range(POOL * max(0, count - len(found))):
        name, decision = random_placement(problem, number, problem.devices_of(best[0]), rng)
        outcome = problem.evaluate(decision)
        if outcome.valid and decision.tobytes() not in seen:
            seen.add(decision.tobytes())
            pool.append((outcome.cost, Measured(name, decision)))
    while pool and len(found) < count:
        apart = [min((abs(np.log(cost / one)) for one in times), default=np.inf) for cost, _ in pool]
        cost, one = pool.pop(int(np.argmax(apart)))
        times.append(cost)
        found.append(one)
    return found


def random_placement(
    problem: PlacementProblem, number: int, best: np.ndarray, rng: np.random.Generator
) -> tuple[str, np.ndarray]:
    """A placement of one of four kinds, in turn, and what it is called.

    The groups in their order, cut once for each further device; each group by itself, with shares of the devices that
    are drawn too; runs of groups, each on one device; a good one with a share of its groups drawn anew.
    """
    groups, devices = problem.num_groups, problem.num_devices
    shares = rng.dirichlet(np.ones(devices))
    text, at = "/".join(f"{share:.2f}" for share in shares), np.arange(groups)
    if number % 4 == 0:
        name, decision = f"cut {text}", np.searchsorted(np.cumsum(shares)[:-1] * groups, at, side="right")
    elif number % 4 == 1:
        name, decision = f"random {text}", rng.choice(devices, size=groups, p=shares)
    elif number % 4 == 2:
        runs = int(rng.integers(2, max(3, min(groups, 40))))
        cuts = np.sort(rng.integers(0, groups, runs - 1))
        name, decision = f"{runs} runs", rng.choice(devices, size=runs, p=shares)[np.searchsorted(cuts, at)]
    else:
        share = float(rng.random())
        drawn = rng.integers(0, devices, groups)
        name, decision = f"best, {share:.2f} drawn", np.where(rng.random(groups) < share, drawn, best)
    return name, problem.check(decision)


def run_all(
    workers: Workers,
    program: Program,
    problem: PlacementProblem,
    found: Sequence[Measured],
    repeat: int,
    order: str,
    say: Callable[[str], object] = str,
) -> np.ndarray:
    """Run every placement, in :data:`ROUNDS` rounds; gives float64 [N]: each op's time in a step on one worker.

    An op's time is from its start to the next one's: with what it takes to run it from Python, and to make its views.
    """
    say(f"{problem.graph.name}: a step on one worker")
    workers.load(program, np.zeros(program.graph.num_ops, int), "program")
    workers.step(seed=SEED)
    expected = workers.results()
    times = []
    for number in range(WARM_UP + max(5, repeat // 2)):
        run = workers.step(record=True)
        if number >= WARM_UP:
            rows = run.ops[0]
            ends = np.append(rows[1:, 1], rows[-1, 2]) if len(rows) else np.zeros(0)
            seconds = np.zeros(program.graph.num_ops)
            seconds[rows[:, 0].astype(int)] = ends - rows[:, 1]
            times.append(seconds)
    for turn in range(ROUNDS):
        for number, one in enumerate(found if turn % 2 == 0 else list(found)[::-1]):
            say(f"{problem.graph.name}: {one.name} ({turn * len(found) + number + 1} of {ROUNDS * len(found)})")
            priorities = problem.op_priorities(one.decision) if order == problem.order else None
            workers.load(program, problem.op_placement(one.decision), order, priorities)
            run = workers.step(seed=SEED if turn == 0 else None)
            if turn == 0:
                one.difference = largest_difference(workers.results(), expected)
                one.sent = run.sent
            for _ in range(WARM_UP - 1):
                workers.step()
            for _ in range(-(-repeat // ROUNDS)):
                for _ in range(ATTEMPTS):
                    run = workers.step()
                    if not run.late_s:
                        break
                one.steps_s.append(run.step_s)
                one.busy_s.append(run.busy_s)
                one.waited.append(max(run.waited_s) / run.step_s)
                one.peak_bytes = run.peak_bytes
    return np.median(times, axis=0)


def largest_difference(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Over all results: the largest difference to the largest value; infinite where one is missing or is NaN alone."""
    worst = 0.0
    if found.keys() != expected.keys():
        return float("inf")
    for name, value in expected.items():
        one, other = value.double(), found[name].double()
        if not one.numel():
            continue
        apart = (one - other).abs()
        apart = apart[~(one.isnan() & other.isnan()) & (one != other)]
        if not apart.numel():
            continue
        largest = float(apart.max())
        scale = float(one[one.isfinite()].abs().max()) if one.isfinite().any() else 0.0
        worst = max(worst, largest / scale if scale and largest == largest else float("inf"))
    return worst


def rank_correlation(simulated: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman's, None below five placements or where one is constant."""
    from scipy.stats import spearmanr

    if len(simulated) < 5 or len(set(simulated)) == 1 or len(set(measured)) == 1:
        return None
    return float(spearmanr(simulated, measured).statistic)


def _label(stored: StoredSolution) -> str:
    return f"{stored.method} ({stored.path.name})"


def _timeline(problem: PlacementProblem, decision: np.ndarray, simulator: Simulator | None = None) -> Timeline:
    """A checked decision's step, by the problem's simulator or one with other times."""
    priorities = problem.lowering.priorities(problem.levels_of(decision))
    priorities = problem.simulator.priorities if priorities is None else priorities
    return (simulator or problem.simulator).run_tasks(
        problem.lowering.placement(problem.devices_of(decision)), priorities
    )


def _table(
    problem: PlacementProblem,
    program: Program,
    found: Sequence[Measured],
    used: np.ndarray | None,
    times: np.ndarray,
    facts: Mapping[str, str],
) -> dict[str, Any]:
    rows = []
    simulator = None
    if used is not None:
        simulator = Simulator(problem.graph, problem.cluster, op_times_s=used, order=problem.order)
    for one in found:
        timeline = _timeline(problem, one.decision, simulator)
        measured = statistics.median(one.steps_s)
        row = {
            "placement": one.name,
            "simulated_s": timeline.makespan_s,
            "measured_s": measured,
            "fastest_s": min(one.steps_s),
            "simulated_vs_measured_percent": 100 * (timeline.makespan_s / measured - 1),
            "simulated_busy_s": timeline.busy_s.tolist(),
            "measured_busy_s": np.median(one.busy_s, axis=0).tolist(),
            "waiting_percent": 100 * statistics.median(one.waited),
            "transfers": one.sent,
            "transfer_bytes": int(timeline.transfer_bytes.sum()),
            "difference": one.difference,
        }
        if one.peak_bytes:
            row |= {"simulated_peak_bytes": timeline.peak_bytes.tolist(), "measured_peak_bytes": list(one.peak_bytes)}
        rows.append(row)
    simulated, measured_s = ([row[name] for row in rows] for name in ("simulated_s", "measured_s"))
    correlation = rank_correlation(simulated, measured_s)
    of_fastest = rank_correlation(simulated, [row["fastest_s"] for row in rows])
    error = statistics.mean(abs(row["simulated_vs_measured_percent"]) for row in rows)
    basis = "op times measured in a step on one worker" if used is not None else "the cluster's cost model"
    where = f"{problem.num_devices} workers of this machine ({facts['devices']}, {cores()} cores)"
    notes = [
        f"simulated: by {basis}; measured: the median of {len(found[0].steps_s)} steps on {where}, tensors by "
        f"{facts['transport']}; busy: each worker's ops; waiting: for a core, which sending or another program had",
        "difference: of loss and gradients (or outputs) from one worker's, to the largest of each; mean distance of "
        f"simulated from measured: {error:.1f} %",
    ]
    if problem.num_devices > cores() and facts["devices"] == "cpu":
        notes.append(f"{problem.num_devices} workers share {cores()} cores: they wait for each other")
    if correlation is not None:
        notes.append(
            f"Spearman's rank correlation of simulated with measured over {len(rows)} placements: {correlation:.3f} "
            f"(with the fastest steps: {of_fastest:.3f})"
        )
    return {
        "title": f"{problem.title}: simulated and measured",
        "rows": rows,
        "notes": notes,
        "graph": problem.graph_name,
        "cluster": problem.cluster_name,
        "rank_correlation": correlation,
        "rank_correlation_of_fastest": of_fastest,
        "mean_error_percent": error,
        "one_worker_s": float(times.sum()),
        **facts,
    }
