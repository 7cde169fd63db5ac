"""Solutions of ``RewriteOrder-v0``: measured on this machine's CPU, and written as files of programs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphopt_gym.envs.rewrite.measure import TOLERANCE, correlation, measure
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.errors import InputError
from graphopt_gym.extras import installed
from graphopt_gym.files import check_output, write_text
from graphopt_gym.graphs.tensor_program import TensorProgram, program_text
from graphopt_gym.solutions import StoredSolution


def measure_report(
    solutions: Sequence[StoredSolution], *, say: Callable[[str], object] = str, **limits: Any
) -> dict[str, Any]:
    """A table of the simulated gain beside the measured one; ``ok``: all outputs are the same.

    Of a program a row: original and rewritten one, by torch. Of an ONNX file a row for each level of onnxruntime's own
    optimiser: the file and the one that is exported (:mod:`graphopt_gym.envs.rewrite.onnx_timing`), with ``spread``,
    how far the file is from itself, and a verdict; one for the file after onnxslim, where that is installed, against
    the file; and one by torch where that runs all its operators.

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
    timed = False
    for problem, program, stored in zip(problems, programs, solutions, strict=True):
        say(f"{stored.path}: measured with its original in turns")
        about = {"program": problem.program.name, "method": stored.method}
        file = _file_of(problem)
        if file is not None:
            timed = True
            rows += [about | row for row in _file_rows(problem, program, file, say, limits)]
        if file is None or not any(one.op == "opaque" for one in problem.program.nodes.values()):
            rows.append(about | _row(problem, program, limits))
    columns = list(dict.fromkeys(name for row in rows for name in row if not name.endswith("quartiles_s")))
    if timed:  # what a narrow window has no room for last
        first = ("executor", "cpu_original_s", "cpu_rewritten_s", "saved_percent", "cpu_saved_percent", "low_percent",
                 "high_percent", "spread_percent", "verdict")  # fmt: skip
        columns = [*first, *(name for name in columns if name not in first)]
    notes = [
        "simulated: on the problem's device; cpu: measured on this machine's CPU, original and rewritten in turns, "
        "medians; low and high: 95 % interval of what is saved, by bootstrap",
        f"clock: {limits.get('clock', 'wall')}; threads: {limits.get('threads', 1)}; another process may be some "
        f"percent off; difference: of the outputs, to the largest; "
        f"at most {TOLERANCE[limits.get('dtype', 'float32')]:g}",
    ]
    if timed:
        notes.append(
            "onnxruntime: the file and its rewritten form, each loaded several times; low and high: of pairs of loads; "
            "spread: how far a second copy of the file was from the first at most; faster or slower: by more than that"
        )
    ones = {(row["program"], row["method"]): row for row in reversed(rows)}.values()  # a row a solution
    found = correlation([row["saved_percent"] for row in ones], [row["cpu_saved_percent"] for row in ones])
    if found is not None:
        notes.append(f"rank correlation of the two gains over {len(ones)} solutions: {found:.2f}")
    ok = all(row["same_outputs"] for row in rows)
    return {"title": "Simulated and measured", "columns": columns, "rows": rows, "notes": notes, "ok": ok}


def _file_of(problem: RewriteProblem) -> tuple[str, dict[str, int]] | None:
    """The ONNX file that a problem's program is from, and its open sizes."""
    from graphopt_gym.graphs.zoo.programs import CATALOG

    source = problem.config["graph"]
    file, dims = CATALOG.split_dims(source) if isinstance(source, str) else ("", {})
    sized = (os.fspath(file), dims | (problem.config.get("dims") or {}))
    return sized if Path(file).suffix.lower() == ".onnx" else None


def _file_rows(
    problem: RewriteProblem,
    program: TensorProgram,
    file: tuple[str, dict[str, int]],
    say: Callable[[str], object],
    limits: dict[str, Any],
) -> list[dict[str, Any]]:
    """A row a level of onnxruntime's optimiser; the rewritten file gives the original's outputs, or is refused."""
    from graphopt_gym.envs.rewrite.onnx_timing import LEVELS, TWIN, slimmed, spread_of, time_files, verdict
    from graphopt_gym.graphs.tensor_program.onnx_edit import original_runs, write_edited
    from graphopt_gym.graphs.tensor_program.onnx_read import load_onnx

    path, dims = file
    with tempfile.TemporaryDirectory(prefix="graphopt.") as folder:
        rewritten = os.path.join(folder, "rewritten.onnx")
        loaded = load_onnx(path, dims=dims)
        write_edited(loaded, program, rewritten)
        files: dict[str, Any] = {"original": path, "rewritten": rewritten}
        if installed("onnxslim"):
            files["onnxslim"] = slimmed(path)
        [(_, several), *_] = original_runs(loaded)
        share = limits.get("seconds", 30.0) / len(LEVELS)
        chosen = {name: limits[name] for name in ("runs", "threads", "clock") if name in limits}
        found = time_files(files, several[0][0], levels=LEVELS, seconds=share, say=say, **chosen)
    cost = problem.program_cost(program)
    rows = []
    for level in LEVELS:
        spread = spread_of(found[TWIN, level])
        for name in list(files)[1:]:
            one = found[name, level]
            simulated = cost if name == "rewritten" else problem.original_s
            rows.append(
                {
                    "executor": f"onnxruntime, {level}" + f", after {name}" * (name != "rewritten"),
                    "device": problem.cluster.name,
                    "original_s": problem.original_s,
                    "rewritten_s": simulated,
                    "saved_percent": 100 * (1 - simulated / problem.original_s) if problem.original_s else 0.0,
                    "cpu_original_s": found["original", level].seconds,
                    "cpu_rewritten_s": one.seconds,
                    "cpu_saved_percent": one.saved_percent,
                    "low_percent": 100 * (1 - 1 / one.low),
                    "high_percent": 100 * (1 - 1 / one.high),
                    "spread_percent": 100 * spread,
                    "verdict": verdict(one, spread),
                    "runs": one.runs,
                    "same_outputs": True,
                }
            )
    return rows


def _problem_of(stored: StoredSolution, graph: Any = None) -> RewriteProblem:
    problem = stored.make_problem(graph)
    assert isinstance(problem, RewriteProblem)
    return problem


def _row(problem: RewriteProblem, program: TensorProgram, limits: dict[str, Any]) -> dict[str, Any]:
    found = measure(problem.program, program, **limits)
    cost = problem.program_cost(program)
    return {
        **({"executor": "torch"} if _file_of(problem) is not None else {}),
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
    source, file = problem.config["graph"], _file_of(problem)
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

        if file is not None:
            loaded = load_onnx(file[0], dims=file[1])
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
