"""What the commands share: arguments, where output goes, progress."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt_gym.catalog import catalogs, check_dims, read_dims, with_dims
from graphopt_gym.errors import InputError, printable, quoted
from graphopt_gym.extras import import_named
from graphopt_gym.registration import dims_of_graph, env_ids, make_problem, refuse_unknown, tasks
from graphopt_gym.units import format_cost, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt_gym.problem import Problem, Solution
    from graphopt_gym.report.tables import Table

WIDE = 200  # columns of text that is not printed on a terminal, so that tables are not cut


def _catalogs(argument: str) -> str:
    """Where the names of an argument are listed, for help texts."""
    found: dict[str, list[str]] = {}
    for task in tasks().values():
        if argument in task.catalogs:
            found.setdefault(task.catalogs[argument], []).append(task.name)
    return ", ".join(f"graphopt list {catalog} ({', '.join(names)})" for catalog, names in found.items())


JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]
EnvArgument = Annotated[
    str,
    typer.Argument(metavar="ENV", help=f"An environment: {', '.join(env_ids())}; or a problem of yours: MODULE:CLASS."),
]
GraphOption = Annotated[
    str | None, typer.Option("--graph", "-g", help=f"By name or file. Names: {_catalogs('graph')}.")
]
DimsOption = Annotated[
    list[str] | None,
    typer.Option("--dims", metavar="NAME=N,…", help="Open sizes of an ONNX file: batch=1,seq=128; may be repeated."),
]
ClusterOption = Annotated[
    str | None, typer.Option("--cluster", "-c", help=f"By name or file. Names: {_catalogs('cluster')}.")
]
ProblemOption = Annotated[
    str | None,
    typer.Option("--problem", metavar="MODULE:CLASS", help="The problem's class, where it is one of yours."),
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

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # main() says what becomes of it

    width = None if file.isatty() else WIDE
    return Plain(file=file, width=width, highlight=False, markup=False, emoji=False)


def say(text: str, style: str = "") -> None:
    """A line on standard output, as it is."""
    stdout().print(printable(text), style=style, soft_wrap=True)


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


def print_csv(table: Table) -> None:
    """A table on standard output as comma-separated values, unformatted."""
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([plain(cell) for cell in row] for row in table.rows)


def warn(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr)


def problem_class(spec: str | None) -> type[Problem] | None:
    """The class of problems that ``"package.module:Class"`` names, imported now; None for none.

    Raises:
        InputError: it cannot be imported, or is something else.
    """
    if spec is None:
        return None
    from graphopt_gym.problem import Problem

    found = import_named(spec, "class")
    if not (isinstance(found, type) and issubclass(found, Problem)):
        raise InputError(f"{spec} is no subclass of graphopt_gym.Problem")
    return found


def parse_dims(dims: list[str] | None) -> dict[str, int]:
    """``["batch=1,seq=128"]`` -> ``{"batch": 1, "seq": 128}``. Raises InputError for anything else."""
    found: dict[str, int] = {}
    for text in dims or []:
        sizes = read_dims(text)
        if sizes is None:
            raise InputError(f"--dims {quoted(text)} is not NAME=N,…, e.g. --dims batch=1,seq=128")
        found |= sizes
    return found


def sized(graph: str | None, dims: list[str] | None) -> str | None:
    """A graph's name or path with the sizes that ``--dims`` gives."""
    sizes = parse_dims(dims)
    if not sizes:
        return graph
    if graph is None:
        raise InputError("--dims are sizes of a graph's file: give it as --graph")
    return with_dims(graph, sizes)


def all_sized(graphs: list[str], dims: list[str] | None) -> list[str]:
    """Names and paths with the sizes that ``--dims`` gives after those that are files which take some."""
    sizes = parse_dims(dims)
    ends = tuple(ending for catalog in catalogs().values() for ending in catalog.sized)
    found = [with_dims(one, sizes) if one.partition("@")[0].lower().endswith(ends) else one for one in graphs]
    if sizes and found == graphs:
        raise InputError(f"--dims are sizes of graphs' files, and there is none that ends in {' or '.join(set(ends))}")
    return found


def listed(text: str) -> list[str]:
    """What an option lists with commas between; those between the sizes of a file, ``m.onnx@a=1,b=2``, part nothing."""
    found: list[str] = []
    for one in text.split(","):
        if found and "@" in found[-1] and read_dims(f"{found[-1].partition('@')[2]},{one}") and "@" not in one:
            found[-1] += f",{one}"
        else:
            found.append(one.strip())
    return [one for one in found if one]


def build_problem(
    env_id: str,
    graph: str | None,
    cluster: str | None,
    settings: Mapping[str, Any],
    dims: list[str] | None = None,
) -> Problem:
    """The problem that the common options name; options left out take the environment's defaults."""
    sizes = parse_dims(dims)
    if sizes:
        if graph is None:
            raise InputError("--dims are sizes of a graph's file: give it as --graph")
        settings = {**settings, "dims": {**check_dims(settings.get("dims")), **sizes}}
    given = {name: value for name, value in {"graph": graph, "cluster": cluster}.items() if value is not None}
    arguments = {**settings, **given}
    own = problem_class(env_id if ":" in env_id else None)
    if own is None:
        return make_problem(env_id, **arguments)
    arguments = dims_of_graph(arguments, own.__init__)
    refuse_unknown(arguments, own.__init__, env_id)
    return own(**arguments)


def parse_settings(settings: list[str] | None, flag: str = "--set", example: str = "name=5") -> dict[str, Any]:
    """``["grouping=op", "batch=3"]`` -> ``{"grouping": "op", "batch": 3}``; values are JSON, or else texts.

    Python's True, False and None are taken as JSON's. Raises InputError for a number that is not finite.
    """
    arguments: dict[str, Any] = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise InputError(f"{flag} {quoted(setting)} is not NAME=VALUE, e.g. {flag} {example}")

        def finite(text: str, setting: str = setting) -> float:
            if not math.isfinite(float(text)):
                raise InputError(f"{flag} {quoted(setting)}: give a finite number")
            return float(text)

        try:
            arguments[name] = json.loads(_PYTHON_WORDS.get(value, value), parse_constant=finite, parse_float=finite)
        except InputError:
            raise
        except (ValueError, RecursionError):
            arguments[name] = value
    return arguments


_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def print_solution(solution: Solution, out: Path | None) -> None:
    """What ``solve`` and ``train`` print for people: the cost, what is wrong, a row a device, what it took."""
    from graphopt_gym.report.tables import device_table

    outcome, problem = solution.outcome, solution.problem
    cost = format_cost(outcome.cost, outcome.unit) if outcome.valid else "invalid"
    say(f"{solution.method}: {problem.title}: {cost}", style="bold")
    for reason in outcome.reasons:
        say(f"  {reason}", style="red")
    if outcome.timeline is not None:
        device_table(outcome.timeline).print(stdout())
    for line in problem.summary_lines(outcome, solution.details):
        say(line)
    for line in problem.notes:
        say(line)
    calls = f"{solution.evaluations:,} {problem.words.evaluation}{'s' * (solution.evaluations != 1)}"
    say(f"{calls} in {format_seconds(solution.wall_s)}, stopped by: {solution.stopped_by}")
    if out:
        say(f"solution: {out}   report: graphopt report {out}")


@contextmanager
def status(text: str) -> Iterator[Callable[[str], object]]:
    """Says on standard error what is being done: in place on a terminal, with the time since; else in a line each."""
    console = stderr()
    if not console.is_terminal:
        warn(text)
        yield warn
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(text)
        yield lambda text: bar.update(task, description=text)


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[..., None] | None]:
    """A bar on standard error, updated by ``update(done, text, label=…)``; None where that is no terminal."""
    console = stderr()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
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
