"""Timing a design from start to end: kept row by row, so that it can be interrupted and go on."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from graphopt_gym.errors import InputError, quoted
from graphopt_gym.files import check_output, make_folder
from graphopt_gym.hardware.calibration.kernels import FLOATING, SHAPE_COLUMNS, Kernel, design
from graphopt_gym.hardware.calibration.table import HEADER, Timed, read_kernels
from graphopt_gym.hardware.calibration.timing import Clock, time_kernels


def planned(kind: str, dtypes: Sequence[str], quick: bool) -> list[Kernel]:
    """The design for several types.

    Raises:
        InputError: a type that is not there, or no float32, on which the others' prices rest.
    """
    for dtype in dtypes:
        if dtype not in FLOATING:
            raise InputError(f"dtypes: {quoted(dtype)} is not one of {', '.join(FLOATING)}")
    if "float32" not in dtypes:
        raise InputError("dtypes: float32 is missing; what was not timed in another type is priced by it")
    return [kernel for dtype in dict.fromkeys(dtypes) for kernel in design(kind, dtype, quick)]


def time_design(
    kernels: Sequence[Kernel],
    device: str,
    name: str,
    path: Path,
    clock: Clock,
    *,
    resume: bool = False,
    done: Callable[[int, str], object] = lambda count, text: None,
    warn: Callable[[str], object] = print,
) -> list[Timed]:
    """Times kernels and keeps each in a table as it is done.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        name: of the device, for the table.
        path: of the table. With ``resume``, kernels that are in it already are not timed again.
        done: called with the number of kernels done and the operator that comes next.
        warn: called with a line for an operator that the device cannot run.

    Raises:
        InputError: the table is there and ``resume`` is not given, or it cannot be written.
    """
    make_folder(path.parent)
    there: list[Timed] = []
    if path.exists():
        if not resume:
            raise InputError(
                f"kernel times {quoted(os.fspath(path))} are there already; give --resume to go on with them, "
                "--kernels to fit to them, or another --out"
            )
        there = read_kernels(path)
    known = {one.kernel.key for one in there}
    rows = list(there)
    failed: dict[tuple[str, str], str] = {}
    check_output(path)
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not there:
            writer.writerow(HEADER)
            file.flush()

        def keep(kernel: Kernel, seconds: float) -> None:
            shape = [kernel.shape.get(column, "") for column in SHAPE_COLUMNS]
            writer.writerow([name, kernel.op, kernel.dtype, *shape, f"{seconds * 1e6:.5g}"])
            file.flush()
            rows.append(Timed(kernel, seconds, device=name))
            done(len(rows), kernel.op)

        def skip(kernel: Kernel, why: str) -> None:
            failed.setdefault((kernel.op, kernel.dtype), why)

        left = [kernel for kernel in kernels if kernel.key not in known]
        done(len(rows), left[0].op if left else "")
        time_kernels(left, device, keep, clock, skip)
    for why in failed.values():
        warn(f"left out: {why}")
    return rows
