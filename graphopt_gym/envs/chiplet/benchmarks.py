"""Steps a second of ``ChipletPartition-v0``, and corrections a second beside z3 alone on the same rules."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from graphopt_gym.benchmarks import timing
from graphopt_gym.envs.chiplet.corrector import Correction, Corrector
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.envs.chiplet.propagator import Propagator
from graphopt_gym.extras import NotInstalled, installed
from graphopt_gym.simulator.simulator import cores

GRAPHS = ("bert_primitive", "bert_base_b1", "resnet50_b1", "gnmt_l2_t5_b8", "lstm_l2_w650_t5_b1", "vgg11_b1")
SECONDS = 3.0  # a figure, in ROUNDS rounds; the best counts
ROUNDS = 3
LIMIT_S = 10.0  # what z3 may take for one correction, stating the rules included


def env_report(
    graph: str = "bert_base_b1", cluster: str = "mcm36", say: Callable[[str], object] = str
) -> dict[str, Any]:
    """``ChipletPartition-v0`` under a random policy, by mode: one environment, and the vector one on all cores.

    ``alone_per_s`` is what the environment does at its core on the same proposals, one after the other: a correction
    and its price, or, in mode ``"step"``, the propagator step by step from Python, its masks, and nothing to observe;
    ``share`` what part of a step's time that is: above 1 where the environment's kernels save more than it adds.
    """
    problem = ChipletProblem(graph, cluster)
    rng = np.random.default_rng(0)
    chances = rng.random((problem.num_ops, problem.num_chips)).astype(np.float32)
    candidate = rng.integers(0, problem.num_chips, problem.num_ops)

    def choose(mode: str, count: int) -> Callable[[Any], Any]:
        if mode == "step":
            return lambda observation: timing.draw_legal(observation["action_mask"], rng)
        action = candidate if mode == "fix" else chances
        actions = action if count == 1 else np.repeat(action[None], count, axis=0)
        return lambda observation: actions

    def corrected(mode: str) -> int:
        corrector = problem.corrector
        fixed = corrector.fix(candidate, rng) if mode == "fix" else corrector.sample(chances, rng)
        problem.costs(fixed.decision[None])
        return 1

    def walked(mode: str) -> int:
        propagator, op = Propagator(problem.corrector.rules), 0
        while op < problem.num_ops and (allowed := np.flatnonzero(propagator.allowed(op))).size:
            propagator.assign(op, int(rng.choice(allowed)))
            op += 1
        return op

    rows = []
    for mode in ("fix", "sample", "step"):
        say(f"steps a second in mode {mode!r}")
        found = timing.step_rates(
            "ChipletPartition-v0", problem.num_ops, partial(choose, mode), (1, timing.VECTOR_ENVS),
            graph=graph, cluster=cluster, mode=mode,
        )  # fmt: skip
        alone = timing.best_rate(partial(walked if mode == "step" else corrected, mode))
        for row in found:
            one = row["envs"] == 1
            share = row["steps_per_s"] / alone if one else None
            rows.append({"mode": mode, **row, "alone_per_s": alone if one else None, "share": share})
    notes = [
        f"{problem.num_ops} ops, {problem.num_chips} chips; {cores()} cores; one random proposal again and again "
        f"(its corrections differ), step: random legal actions; best of {timing.ROUNDS} rounds",
    ]
    title = f"ChipletPartition-v0 on {graph}, {cluster}"
    return {"title": title, "columns": list(rows[0]), "rows": rows, "notes": notes}


def corrector_report(
    graphs: tuple[str, ...] = GRAPHS,
    package: str = "mcm36",
    seconds: float = SECONDS,
    limit_s: float = LIMIT_S,
    say: Callable[[str], object] = str,
) -> dict[str, Any]:
    """The table behind ``graphopt bench corrector``. A row each for three kinds of proposals:

    - SAMPLE: the same probability for every chip; z3's peer is to complete a partition of which nothing is given;
    - FIX far: chips drawn evenly and sorted along the graph; z3's peer is the repair with the fewest changes;
    - FIX near: a valid partition with one op on another chip, as the local searches ask; the peer is the same.
    """
    rows = []
    with_z3 = installed("z3")
    for graph in graphs:
        problem = ChipletProblem(graph, package)
        corrector = Corrector.of(problem)
        rng = np.random.default_rng(0)
        for mode, propose in _proposals(problem, corrector, rng).items():
            say(f"{graph}: {mode}")
            rate, made = _rate(corrector, mode, propose, rng, seconds)
            row: dict[str, Any] = {
                "graph": graph,
                "ops": problem.num_ops,
                "mode": mode,
                "corrections_per_s": rate,
                "backtracks": float(np.mean([one.backtracks for one in made])),
                "chain_share": float(np.mean([one.chain for one in made])),
                "changed_share": None,
                "z3_s": None,
                "z3_ratio": None,
                "z3_changed_share": None,
            }
            if mode != "SAMPLE":
                row["changed_share"] = float(np.mean([len(one.changed) for one in made])) / problem.num_ops
            if with_z3:
                say(f"{graph}: {mode}, z3 alone, at most {limit_s:g} s")
                taken, changed = _z3(graph, package, None if mode == "SAMPLE" else propose(), limit_s)
                row["z3_s"] = taken
                row["z3_ratio"] = None if taken is None else taken * rate
                row["z3_changed_share"] = None if changed is None else changed / problem.num_ops
            rows.append(row)
    notes = [
        f"package {package}; one core; the best of {ROUNDS} rounds of {seconds / ROUNDS:g} s",
        "chain_share: corrections that ended under the rules of a chain; changed_share: ops whose chip is not the "
        "candidate's, of all",
        f"z3_s: z3 alone on one such proposal, stating the rules included; none: no answer within {limit_s:g} s"
        if with_z3
        else str(NotInstalled("z3", "the comparison")),
    ]
    return {"title": f"Corrections for {package}", "columns": list(rows[0]), "rows": rows, "notes": notes}


def _proposals(
    problem: ChipletProblem, corrector: Corrector, rng: np.random.Generator
) -> dict[str, Callable[[], np.ndarray]]:
    """What is corrected, by mode."""
    valid = [corrector.sample(None, rng).decision for _ in range(8)]

    def near() -> np.ndarray:
        candidate = valid[rng.integers(len(valid))].copy()
        candidate[rng.integers(problem.num_ops)] = rng.integers(problem.num_chips)
        return candidate

    return {
        "SAMPLE": lambda: np.full((problem.num_ops, problem.num_chips), 1.0 / problem.num_chips),
        "FIX far": lambda: np.sort(rng.integers(0, problem.num_chips, problem.num_ops)),
        "FIX near": near,
    }


def _rate(
    corrector: Corrector, mode: str, propose: Callable[[], np.ndarray], rng: np.random.Generator, seconds: float
) -> tuple[float, list[Correction]]:
    """(corrections a second, the corrections)."""
    correct = corrector.sample if mode == "SAMPLE" else corrector.fix
    made, rates = [correct(propose(), rng)], []
    for _ in range(ROUNDS):
        done, spent = 0, 0.0
        while spent < seconds / ROUNDS:
            proposal = propose()
            started = time.perf_counter()
            made.append(correct(proposal, rng))
            spent += time.perf_counter() - started
            done += 1
        rates.append(done / spent)
    return max(rates), made


def _z3(graph: str, package: str, candidate: np.ndarray | None, limit_s: float) -> tuple[float | None, int | None]:
    """(seconds, changes) of z3's correction of a candidate, or of nothing given; (None, None) where time ran out.

    In a process of its own, since z3's own limit does not cover stating the rules.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run_z3, args=(graph, package, candidate, limit_s, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(30.0):  # it says when it has imported everything, so that this does not count
            raise RuntimeError("the process for z3 did not start within 30 s")
        ours.recv()
        return ours.recv() if ours.poll(limit_s) else (None, None)
    finally:
        process.kill()
        process.join()
        ours.close()


def _run_z3(graph: str, package: str, candidate: np.ndarray | None, limit_s: float, answers: Connection) -> None:
    import z3  # noqa: F401

    from graphopt_gym.envs.chiplet.exact import Exact

    problem = ChipletProblem(graph, package)
    answers.send("ready")
    started = time.perf_counter()
    exact = Exact.of(problem, seconds=limit_s)
    if candidate is None:
        verdict = exact.complete(np.full(problem.num_ops, -1))
    else:
        verdict = exact.repair(candidate)
    taken = time.perf_counter() - started
    if verdict.decision is None:
        answers.send((None, None))
        return
    broken = {one.rule for one in problem.violations(verdict.decision)} - {"memory"}
    if broken:
        raise RuntimeError(f"z3's partition breaks: {', '.join(sorted(broken))}")
    changed = None if candidate is None else int((verdict.decision != candidate).sum())
    answers.send((taken, changed))
