"""One table, three ways out: for the terminal (rich), for documents (Markdown), for programs (JSON).

A column's name says its unit (``time_s``, ``peak_bytes``, ``speed_per_s``, ``vs_other_percent``): values are plain
numbers in that unit, and are written for people only on the way out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import printable, shortened
from graphopt_gym.units import format_bytes, format_bytes_list, format_count, format_seconds

if TYPE_CHECKING:
    import rich.console

    from graphopt_gym.problem import Problem, Solution
    from graphopt_gym.simulator.timeline import Timeline

# longest first: a column belongs to the first suffix that it ends with
_SUFFIXES: dict[str, Callable[[Any], str]] = {
    "_bytes_per_s": lambda value: f"{format_count(value, 'B')}/s",
    "_flops_per_s": lambda value: f"{format_count(value, 'FLOP')}/s",
    "_percent": lambda value: f"{value:.1f} %",
    "_per_s": lambda value: f"{format_count(value)}/s",
    "_bytes": format_bytes,
    "_flops": lambda value: format_count(value, "FLOP"),
    "_s": format_seconds,
}
_NARROWEST_TEXT = 28  # characters a line
MOST_CHARACTERS = 2000  # of a text in a cell
_SIGNED = "vs_"  # differences show their sign


@dataclass(frozen=True)
class Table:
    """Rows under named columns; cells are JSON-able: numbers, texts, None, or lists of numbers.

    This is also the common format of benchmark results: ``{"title", "columns", "rows", "notes"}``.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, result: Table | Mapping[str, Any]) -> Table:
        """A table from ``{"title", "columns", "rows", "notes"}``; rows may be sequences or mappings by column.

        Columns left out are taken from mappings, in order of first appearance; other keys are ignored.
        """
        if isinstance(result, Table):
            return result
        rows: Sequence[Any] = result.get("rows", ())
        columns = tuple(result.get("columns") or dict.fromkeys(key for row in rows for key in row))
        cells = tuple(
            tuple(row.get(column) for column in columns) if isinstance(row, Mapping) else tuple(row) for row in rows
        )
        notes = result.get("notes", ())
        return cls(str(result.get("title", "")), columns, cells, (notes,) if isinstance(notes, str) else tuple(notes))

    def to_json(self) -> dict[str, Any]:
        """JSON-able, values unformatted; rows by column."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "notes": list(self.notes)}

    def cells(self) -> list[list[str]]:
        """The rows as texts."""
        return [[format_cell(*cell) for cell in zip(self.columns, row, strict=True)] for row in self.rows]

    def print(self, console: rich.console.Console) -> None:
        """Print title, table and notes.

        Where the console is too narrow, columns are left out from the right, texts before numbers, and named.
        """
        import rich.box
        import rich.table
        from rich.text import Text

        shown = self._columns_within(console.width)
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
        for index in shown:
            number = self._is_number(index)
            table.add_column(
                Text(heading(self.columns[index])),
                justify="right" if number else "left",
                no_wrap=number or index == 0,
                overflow="fold",
            )
        for row in self.cells():
            table.add_row(*(Text(row[index]) for index in shown))
        if self.title:
            console.print(Text(printable(self.title), style="bold"))
        console.print(table)
        left_out = [heading(column) for index, column in enumerate(self.columns) if index not in shown]
        for note in [*self.notes, *([f"No room here for: {', '.join(left_out)}."] if left_out else [])]:
            console.print(Text(printable(note), style="dim"))

    def _columns_within(self, width: int) -> list[int]:
        """Indices of the columns that ``width`` characters have room for; a text may be broken into lines."""
        cells = self.cells()
        needed = []
        for index, column in enumerate(self.columns):
            longest = max([len(heading(column)), *(len(row[index]) for row in cells)])
            needed.append(longest if self._is_number(index) or index == 0 else min(longest, _NARROWEST_TEXT))
        shown = list(range(len(self.columns)))
        while len(shown) > 1 and sum(needed[index] + 3 for index in shown) > width:
            texts = [index for index in shown[1:] if not self._is_number(index)]
            shown.remove(texts[-1] if texts else shown[-1])
        return shown

    def to_markdown(self) -> str:
        """A GitHub table, without the title."""
        aligned = ["---:" if self._is_number(index) else "---" for index in range(len(self.columns))]
        lines = [[heading(column) for column in self.columns], aligned, *self.cells()]
        text = "\n".join("| " + " | ".join(map(_for_markdown, line)) + " |" for line in lines)
        return "\n\n".join([text, *map(printable, self.notes)]) + "\n"

    def _is_number(self, index: int) -> bool:
        return all(not isinstance(row[index], str) for row in self.rows)


def heading(column: str) -> str:
    """A column's name for people: without its unit, which stands in the cells."""
    suffix = _suffix(column)
    return column.removesuffix(suffix).replace("_", " ") if suffix != column else column


def format_cell(column: str, value: Any) -> str:
    """A cell for people: by the unit in its column's name."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return shortened(printable(value), MOST_CHARACTERS)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Sequence | np.ndarray) and _suffix(column) == "_bytes":
        return format_bytes_list([float(item) for item in value])
    if isinstance(value, Iterable):
        return " ".join(format_cell(column, item).replace(" ", "\u00a0") for item in value)
    if not math.isfinite(value):
        return "-"
    suffix = _suffix(column)
    if column.endswith("error") or "_error_" in column:  # a share
        return f"{100 * value:.1f} %"
    if suffix:
        text = _SUFFIXES[suffix](value)
        return f"+{text}" if column.startswith(_SIGNED) and value > 0 else text
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _for_markdown(text: str) -> str:
    """A text as Markdown that shows it as it is; an underscore inside a word marks nothing."""
    return re.sub(r"[\\|`*<\[\]$~]|\b_|_\b", lambda sign: "\\" + sign[0], text)


def _suffix(column: str) -> str:
    return next((suffix for suffix in _SUFFIXES if column.endswith(suffix)), "")


def comparison_table(solutions: Sequence[Solution], title: str = "") -> Table:
    """A row a method: its cost (the mean over its seeds), against the reference, memory, evaluations and seconds.

    The reference is the first of those of the task that is among the methods and has a cost. A method some of whose
    seeds are invalid has its valid seeds' mean, and says how many failed. ``solutions``: of one problem, at least one.
    """
    by_method: dict[str, list[Solution]] = {}
    for solution in solutions:
        by_method.setdefault(solution.method, []).append(solution)
    problem = solutions[0].problem
    means = {method: _mean([s.outcome.cost for s in runs if s.outcome.valid]) for method, runs in by_method.items()}
    reference = next((name for name in problem.task.references if means.get(name)), None) if problem.task else None
    usual = means[reference] if reference else None
    with_memory = any("peak_bytes" in solution.outcome.metrics for solution in solutions)
    several = any(len(runs) > 1 for runs in by_method.values())
    rows = []
    for method, runs in by_method.items():
        cost = means[method]
        costs = [run.outcome.cost for run in runs if run.outcome.valid]
        best = min(runs, key=lambda run: (not run.outcome.valid, run.outcome.cost))
        row = [
            method,
            cost,
            *([min(costs, default=None), len(runs) if len(costs) == len(runs) else f"{len(costs)} of {len(runs)} valid"]
              if several else []),
            *([100 * (cost / usual - 1) if cost is not None else None] if usual else []),
            *([best.outcome.metrics.get("peak_bytes")] if with_memory else []),
            round(float(np.mean([run.evaluations for run in runs]))),
            _mean([run.wall_s for run in runs]),
        ]  # fmt: skip
        rows.append(tuple(row))
    columns = (
        "method",
        cost_column(problem),
        *((cost_column(problem, "best"), "seeds") if several else ()),
        *((f"vs_{reference}_percent",) if reference else ()),
        *(("peak_memory_per_device_bytes",) if with_memory else ()),
        evaluations_column(problem),
        "search_s",
    )
    invalid = [run for runs in by_method.values() for run in runs if not run.outcome.valid]
    notes = [_invalid(f"{run.method} (seed {run.seed})", run) for run in invalid[:4]]
    notes += problem.notes
    return Table(title, columns, tuple(rows), tuple(notes))


def cost_column(problem: Problem, name: str = "") -> str:
    """The column of a problem's costs, with their unit: by the task's word where no name is given."""
    name, suffix = (
        name or problem.words.cost,
        {"s": "_s", "s/sample": "_s", "B": "_bytes", "bytes": "_bytes"}.get(problem.unit),
    )
    return f"{name.replace(' ', '_')}{suffix}" if suffix else f"{name} ({problem.unit})" if problem.unit else name


def evaluations_column(problem: Problem) -> str:
    return f"{problem.words.evaluation.replace(' ', '_')}s"


def solution_table(solutions: Sequence[Solution], title: str = "") -> Table:
    """A row a solution, each of another problem of one task: its cost, memory and evaluations."""
    first = solutions[0].problem
    with_memory = any("peak_bytes" in solution.outcome.metrics for solution in solutions)
    rows, notes = [], []
    for solution in solutions:
        problem, outcome = solution.problem, solution.outcome
        cost = outcome.cost if outcome.valid else None
        memory = (outcome.metrics.get("peak_bytes"),) if with_memory else ()
        rows.append((problem.graph_name, problem.cluster_name, cost, *memory, solution.evaluations))
        if not outcome.valid:
            notes.append(_invalid(problem.title, solution))
    names = (first.words.graph, first.words.cluster, cost_column(first))
    memory_column = ("peak_memory_per_device_bytes",) if with_memory else ()
    notes += dict.fromkeys(note for solution in solutions for note in solution.problem.notes)
    return Table(title, (*names, *memory_column, evaluations_column(first)), tuple(rows), tuple(notes))


def device_table(timeline: Timeline) -> Table:
    """A row a device: ops, seconds busy, share of the step, peak memory against capacity."""
    makespan = timeline.makespan_s or math.inf
    rows = []
    for index, device in enumerate(timeline.cluster.devices):
        busy = float(timeline.busy_s[index])
        ops = int((timeline.op_device == index).sum())
        peak = int(timeline.peak_bytes[index])
        rows.append((index, device.name, ops, busy, 100 * busy / makespan, peak, device.memory_bytes))
    columns = ("device", "name", "ops", "busy_s", "busy_share_percent", "peak_bytes", "capacity_bytes")
    return Table("", columns, tuple(rows))


def _invalid(name: str, solution: Solution) -> str:
    return ": ".join((f"{name} is invalid", *solution.outcome.reasons[:1]))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
