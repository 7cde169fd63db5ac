"""Solutions of ``RewriteOrder-v0``: measured on this machine's CPU, and written as files of programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphopt_gym.envs.rewrite.measure import TOLERANCE, correlation, measure
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.errors import InputError
from graphopt_gym.files import check_output, write_text
from graphopt_gym.graphs.tensor_program import TensorProgram, program_text
from graphopt_gym.solutions import StoredSolution


def measure_report(
    solutions: Sequence[StoredSolution], *, say: Callable[[str], object] = str, **limits: Any
) -> dict[str, Any]:
    """A table with a row a solution: the simulated gain beside the measured one; ``ok``: all outputs are the same.

    Args:
        solutions: of ``RewriteOrder-v0``.
        say: called with a line before each is measured.
        limits: as :func:`measure` takes them.

    Raises:
        InputError: a problem that cannot be built here, or what :func:`measure` refuses.
    """
    problems = [_problem_of(stored) for stored in solutions]
    programs = [problem.check(stored.decision) for problem, stored in zip(problems, solutions, strict=True)]
    rows: list[dict[str, Any]] = []
    for problem, program, stored in zip(problems, programs, solutions, strict=True):
        say(f"{stored.path}: measured with its original in turns")
        rows.append({"program": problem.program.name, "method": stored.method, **_row(problem, program, limits)})
    notes = [
        "simulated: on the problem's device; cpu: measured on this machine's CPU, original and rewritten in turns, "
        "medians; low and high: 95 % interval of what is saved, by bootstrap",
        f"clock: {limits.get('clock', 'wall')}; threads: {limits.get('threads', 1)}; another process may be some "
        f"percent off; difference: of the outputs, to the largest; "
        f"at most {TOLERANCE[limits.get('dtype', 'float32')]:g}",
    ]
    found = correlation([row["saved_percent"] for row in rows], [row["cpu_saved_percent"] for row in rows])
    if found is not None:
        notes.append(f"rank correlation of the two gains over {len(rows)} solutions: {found:.2f}")
    columns = [name for name in rows[0] if not name.endswith("quartiles_s")]
    ok = all(row["same_outputs"] for row in rows)
    return {"title": "Simulated and measured", "columns": columns, "rows": rows, "notes": notes, "ok": ok}


def _problem_of(stored: StoredSolution, graph: Any = None) -> RewriteProblem:
    problem = stored.make_problem(graph)
    assert isinstance(problem, RewriteProblem)
    return problem


def _row(problem: RewriteProblem, program: TensorProgram, limits: dict[str, Any]) -> dict[str, Any]:
    found = measure(problem.program, program, **limits)
    cost = problem.program_cost(program)
    return {
        "device": problem.cluster.name,
        "original_s": problem.original_s,
        "rewritten_s": cost,
        "saved_percent": 100 * (1 - cost / problem.original_s) if problem.original_s else 0.0,
        "cpu_original_s": found.original.median_s,
        "cpu_rewritten_s": found.rewritten.median_s,
        "cpu_saved_percent": found.saved_percent,
        "low_percent": 100 * (1 - 1 / found.low),
        "high_percent": 100 * (1 - 1 / found.high),
        "cpu_original_quartiles_s": [found.original.low_s, found.original.high_s],
        "cpu_rewritten_quartiles_s": [found.rewritten.low_s, found.rewritten.high_s],
        "runs": found.runs,
        "difference": found.difference,
        "same_outputs": found.same_outputs,
    }


def export_solution(
    stored: StoredSolution, out: str | os.PathLike[str] | None = None, graph: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Write the program of a solution of ``RewriteOrder-v0``.

    Args:
        stored: the solution.
        out: where to; as ONNX where it ends in ``.onnx``, else as text. Left out: as ONNX beside the solution.
        graph: stands in for the program that the solution names, such as an ONNX file that has moved.

    Returns:
        What was written: ``file``, ``ops``, and ``weights``: where their values are from. A solution of an ONNX file
        is written as an edit of that file, compared with it in onnxruntime beforehand (``nodes_kept``, ``nodes_added``,
        ``same_outputs_at``: the open sizes at which it was), see :mod:`graphopt_gym.graphs.tensor_program.onnx_edit`;
        other programs have no values, and get random ones.

    Raises:
        InputError: a decision that does not compute what the original does, or whose file does not in onnxruntime; a
            file that cannot be written.
    """
    out = Path(stored.path.with_suffix(".onnx") if out is None else out)
    check_output(out, inputs=(stored.path, graph))
    problem = _problem_of(stored, graph)
    source = problem.config["graph"]
    check_output(out, inputs=(source,))
    program = problem.check(stored.decision)
    wrong = problem.reasons(program)
    if wrong:
        raise InputError(f"{str(stored.path)!r} holds a program that is not the original's equal: {wrong[0]}")
    weights = "none, a text has no values"
    edited: dict[str, Any] = {}
    if out.suffix == ".onnx":
        from graphopt_gym.graphs.tensor_program.onnx_edit import write_edited
        from graphopt_gym.graphs.tensor_program.onnx_io import write_onnx
        from graphopt_gym.graphs.tensor_program.onnx_read import load_onnx
        from graphopt_gym.graphs.zoo.programs import CATALOG

        file, dims = CATALOG.split_dims(source)
        if Path(file).suffix.lower() == ".onnx":
            loaded = load_onnx(file, dims=dims | (problem.config.get("dims") or {}))
            said = write_edited(loaded, program, out)
            sizes = [",".join(f"{key}={size}" for key, size in one.items()) for one in said["checked"]]
            edited = {"nodes_kept": said["kept"], "nodes_added": said["added"]}
            edited |= {"same_outputs_at": "; ".join(sizes)} if any(sizes) else {}
            weights = f"of {source}"
        else:
            write_onnx(program, out)
            weights = "random, the program has no values"
    else:
        write_text(out, program_text(program))
    return {"file": os.fspath(out), "ops": program.statistics()["computed"], "weights": weights, **edited}
