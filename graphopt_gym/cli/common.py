"""What the commands share: where output goes, progress, arguments, and files checked before the work starts."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt_gym.errors import InputError
from graphopt_gym.registration import env_ids, make_problem

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt_gym.problem import Problem, Solution
    from graphopt_gym.report.tables import Table

WIDE = 200  # columns of text that is not printed on a terminal, so that tables are not cut

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]
EnvArgument = Annotated[str, typer.Argument(metavar="ENV", help=f"An environment: {', '.join(env_ids())}.")]
GraphOption = Annotated[
    str | None, typer.Option("--graph", "-g", help="A zoo name or a graph file (RewriteOrder-v0: program).")
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        help="A cluster (ChipletPartition-v0: package, RewriteOrder-v0: device) by name, or a TOML file.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A further argument of the environment; may be repeated."),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="An option of the method (list methods); may be repeated."),
]
BudgetOption = Annotated[int, typer.Option("--budget", "-b", help="Most evaluations of the problem.")]
SecondsOption = Annotated[float | None, typer.Option("--seconds", help="Most seconds.")]


def stdout() -> Console:
    """For answers."""
    return _console(sys.stdout)


def stderr() -> Console:
    """For progress, warnings and errors."""
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else WIDE, highlight=False, soft_wrap=False)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output; what is not finite becomes null."""
    sys.stdout.write(json.dumps(plain(value), allow_nan=False, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """The value in JSON's own types: NumPy numbers and arrays unpacked, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def show(table: Table, as_json: bool) -> None:
    """A table on standard output, for people or as JSON."""
    if as_json:
        print_json(table.to_json())
    else:
        table.print(stdout())


def warn(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr)


def build_problem(env_id: str, graph: str | None, cluster: str | None, settings: list[str] | None) -> Problem:
    """The problem that the common options name; options left out take the environment's defaults."""
    given = {name: value for name, value in {"graph": graph, "cluster": cluster}.items() if value is not None}
    return make_problem(env_id, **{**parse_settings(settings), **given})


def parse_settings(settings: list[str] | None, flag: str = "--set", example: str = "grouping=op") -> dict[str, Any]:
    """``["grouping=op", "batch=3"]`` -> ``{"grouping": "op", "batch": 3}``; values are JSON, or else texts."""
    arguments: dict[str, Any] = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise InputError(f"{flag} {setting!r} is not NAME=VALUE, e.g. {flag} {example}")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def parse_options(options: list[str] | None) -> dict[str, Any]:
    """A method's options, as :func:`parse_settings`."""
    return parse_settings(options, "--option", "k_multi=2")


def check_file(path: Path | None) -> None:
    """Refuse an output file that cannot be written, before any work is done for it."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {str(path)!r}: it is a folder; give a file name")
    _check_folder(path.parent, path)


def check_folder(path: Path | None) -> None:
    """Make an output folder, or refuse one that cannot be made or written, before any work is done for it."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {str(path)!r}: {error.strerror or error}") from None
    _check_folder(path, path)


def _check_folder(folder: Path, wanted: Path) -> None:
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".graphopt.")
    except OSError as error:
        detail = error.strerror or error
        raise InputError(f"cannot write {str(wanted)!r}: {detail}; give a path that can be written") from None
    os.close(handle)
    os.unlink(name)


def print_solution(solution: Solution, out: Path | None) -> None:
    """What ``solve`` and ``train`` print for people: the cost, what is wrong, a row a device, what it took."""
    from graphopt_gym.report.tables import device_table
    from graphopt_gym.report.units import format_cost, format_seconds

    outcome, problem, console = solution.outcome, solution.problem, stdout()
    name = f"{problem.graph.name} on {problem.cluster.name}"
    cost = format_cost(outcome.cost, outcome.unit) if outcome.valid else "invalid"
    console.print(f"{solution.method}: {name}: [bold]{cost}[/bold]", soft_wrap=True)
    for reason in outcome.reasons:
        console.print(f"  {reason}", style="red", soft_wrap=True, markup=False)
    if outcome.timeline is not None:
        device_table(outcome.timeline).print(console)
    if "bottleneck" in outcome.metrics:
        text = "a sample every {} with {} chips; bottleneck: {}"
        period = format_seconds(1 / outcome.metrics["throughput_per_s"])
        console.print(text.format(period, outcome.metrics["chips_used"], outcome.metrics["bottleneck"]))
    growth = solution.details.get("growth_nodes")
    if growth:
        details = solution.details
        text = "e-graph: {:,} nodes in {:,} classes after {} iterations ({}), stopped by: {}"
        counts = " ".join(f"{count:,}" for count in growth)
        console.print(
            text.format(details["nodes"], details["classes"], len(growth), counts, details["saturation_stopped_by"]),
            soft_wrap=True,
            markup=False,
        )
    calls = f"{solution.evaluations:,} simulator call{'s' * (solution.evaluations != 1)}"
    console.print(f"{calls} in {format_seconds(solution.wall_s)}, stopped by: {solution.stopped_by}", soft_wrap=True)
    if out:
        console.print(f"solution: {out}   report: graphopt report {out}", soft_wrap=True, markup=False)


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[..., None] | None]:
    """A bar on standard error, updated by ``update(done, text, label=…)``; None where that is no terminal."""
    console = stderr()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total, text="")
        shown_at = 0.0

        def update(done: int, text: str, label: str | None = None) -> None:
            nonlocal shown_at
            now = time.perf_counter()
            if now - shown_at >= 0.1:  # evaluations come by the thousand a second; drawing must not slow them
                shown_at = now
                bar.update(task, completed=done, text=text, description=label)

        yield update
