"""The program of a solution as a file: ONNX with its weights, or text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from graphopt_gym.envs.rewrite.measure import load_rewriting
from graphopt_gym.errors import InputError
from graphopt_gym.files import write_text
from graphopt_gym.graphs.tensor_program import program_text


def export_solution(
    path: str | os.PathLike[str], out: str | os.PathLike[str], graph: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Write the program of a solution of ``RewriteOrder-v0``.

    Args:
        path: the solution file.
        out: where to; as ONNX where it ends in ``.onnx``, else as text.
        graph: stands in for the program that the solution names, such as an ONNX file that has moved.

    Returns:
        What was written: ``file``, ``ops``, and ``weights``: where their values are from. Those of an ONNX file that
        the solution is of go into the new one; other programs have no values, and get random ones.

    Raises:
        InputError: no such solution, a decision that does not compute what the original does, or a file that cannot be
            written.
    """
    problem, stored = load_rewriting(path, graph)
    program = problem.check(stored.decision)
    wrong = problem.reasons(program)
    if wrong:
        raise InputError(f"{os.fspath(path)!r} holds a program that is not the original's equal: {wrong[0]}")
    weights = "none, a text has no values"
    if Path(out).suffix == ".onnx":
        from graphopt_gym.graphs.tensor_program.onnx_io import read_onnx, write_onnx

        source = problem.config["graph"]
        values = read_onnx(source, dims=problem.config.get("dims"))[1] if Path(source).suffix == ".onnx" else None
        weights = f"of {source}" if values is not None else "random, the program has no values"
        try:
            write_onnx(program, out, values)
        except OSError as error:
            raise InputError(f"cannot write {os.fspath(out)!r}: {error.strerror or error}") from None
    else:
        write_text(out, program_text(program))
    return {"file": os.fspath(out), "ops": program.statistics()["computed"], "weights": weights}
