"""How the simulator of gangs scales: with cores, with gangs, with kinds of cores; and its plain twin beside it."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt_gym.benchmarks.timing import seconds
from graphopt_gym.extras import NotInstalled, installed
from graphopt_gym.hardware.machine import Machine, load_machine
from graphopt_gym.simulator.gang import GangSimulator, chain, pipeline, pipeline_lists, together
from graphopt_gym.simulator.gang.program import ShardedProgram

CORES, GANGS = (8, 128, 2_048, 100_000), (10, 1_000, 100_000)
STAGES = ((4, 16), (16, 64), (64, 256), (128, 390))  # pipelines: S and M, two gangs for each pair
TWIN_LIMIT, ROUNDS = 1_000, 5  # gangs up to which the twin is run; runs, of which the least counts


def gang_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """The tables behind ``graphopt bench gang``: ``scale``, ``pipelines`` and ``steps``."""
    return {"scale": scale_report(say), "pipelines": pipeline_report(say), "choices": choice_report(say)}


def _measured(
    program: ShardedProgram, machine: Machine, first_core: Any = None, order: str | None = None, made: Any = None,
    policy: str = "fifo",
) -> dict[str, Any]:  # fmt: skip
    simulator = GangSimulator(program, machine, first_core)
    lists = None if order is None else simulator.lists_of_slices(pipeline_lists(made, order))
    options: dict[str, Any] = {"policy": policy} if lists is None else {"policy": "lists", "lists": lists}
    run = simulator.run(**options)
    if not run.valid:
        raise RuntimeError("; ".join(run.reasons))
    rounds = ROUNDS if program.num_gangs <= TWIN_LIMIT else 2
    lower_s = min(seconds(lambda: GangSimulator(program, machine, first_core)) for _ in range(rounds))
    run_s = min(seconds(lambda: simulator.run(**options)) for _ in range(rounds))
    tracemalloc.start()
    GangSimulator(program, machine, first_core).run(**options)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "cores": machine.num_cores, "gangs": program.num_gangs, "classes": simulator.classes.num_classes,
        "tasks": simulator.num_tasks, "lower_ms": lower_s * 1e3, "run_ms": run_s * 1e3,
        "us_per_gang": (lower_s + run_s) * 1e6 / program.num_gangs, "peak_memory_bytes": memory, "simulator": simulator,
    }  # fmt: skip


def _islands(cores: int) -> Machine:
    return load_machine("pathways_a").resized(cores // 4)


def scale_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """Four clients' chains of computations on all cores: what more cores cost, and more gangs."""
    rows: list[dict[str, Any]] = []
    chain_of = {}
    _measured(chain(4, 8, 1e-3, nodes=4), _islands(8), policy="stride")  # compiled and loaded
    for gangs in GANGS:
        for cores in CORES:
            say(f"{gangs:,} gangs on {cores:,} cores")
            length = max(gangs // 4, 2)
            one = chain_of[gangs, cores] = chain(length, cores, 1e-3, form="op_by_op", collective="all_reduce",
                                                 collective_bytes=4, output_bytes=2**10)  # fmt: skip
            program = together([one] * 4, [1, 2, 4, 8])
            row = _measured(program, _islands(cores), [0] * 4, policy="stride")
            simulator = row.pop("simulator")
            row["twin_ratio"] = None
            if program.num_gangs <= TWIN_LIMIT and installed("tests"):
                from tests.simulator.gang.twin import Twin

                twin_s = seconds(lambda simulator=simulator: Twin(simulator.lowered.tables, "stride").run())
                row["twin_ratio"] = twin_s * 1e3 / row["run_ms"]
            rows.append(row)
    notes = [
        f"lower, run: least of {ROUNDS}, of 2 where there are more than {TWIN_LIMIT:,} gangs; one processor",
        "peak_memory: of Python and NumPy, while a program is lowered and run",
    ]
    if not installed("tests"):
        notes.append(str(NotInstalled("tests", "twin_ratio")))
    return {"columns": list(rows[0]), "rows": rows, "notes": notes}


def pipeline_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """Training steps as pipelines, each stage on cores of its own, with transfers, memory and 1F1B's order."""
    rows: list[dict[str, Any]] = []
    for stages, micro_batches in STAGES:
        for each in (4, 64):
            say(f"{stages} stages of {each} cores, {micro_batches} micro-batches")
            made = pipeline(stages, micro_batches, 1e-3, 2e-3, cores=each, boundary_bytes=2**20, stash_bytes=2**16)
            row = _measured(made.program, _islands(max(stages * each, 8)), None, "1f1b", made)
            row.pop("simulator")
            rows.append({"stages": stages, "micro_batches": micro_batches, **row})
    return {"columns": list(rows[0]), "rows": rows}


def choice_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """Choices a second where a caller picks each gang: a BERT-like pipeline of 8 stages on 128 cores, at random."""
    made = pipeline(8, 32, 1e-3, 2e-3, cores=16, boundary_bytes=2**20, stash_bytes=2**16)
    simulator = GangSimulator(made.program, load_machine("pathways_b").resized(16))
    rng = np.random.default_rng(0)

    def episode() -> int:
        state, steps = simulator.choose(), 0
        count = simulator.step(state)
        while count:
            found = np.flatnonzero(simulator.candidates(state))
            count = simulator.step(state, int(found[rng.integers(0, len(found))]))
            steps += 1
        return steps

    say("choices")
    episode()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < 1.0:
        steps += episode()
    rows = [{"gangs": made.program.num_gangs, "choices_per_s": steps / (time.perf_counter() - started)}]
    return {"columns": list(rows[0]), "rows": rows}
