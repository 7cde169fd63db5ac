"""An experiment's page: its template, filled with the summary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments.runner import Experiment, load, module
from experiments.runner.tables import ALMOST, compared


def render(folder: Path, name: str, summary: Mapping[str, Any]) -> str:
    """The page of an experiment. Its template has the names of its file, of the summary, and those given here."""
    experiment = load(folder, name)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    environment.filters |= {"f": shown, "cost": lambda value: cost(experiment, value)}

    def costs(names: Sequence[str], beside: Sequence[str] = (), rows: Sequence[Any] | None = None) -> str:
        return cost_table(experiment, summary["rows"] if rows is None else rows, names, beside)

    names = {"costs_line": costs_line(experiment, name, summary)}
    names |= {"line": line, "head": head, "ratio": ratio, "costs": costs, "compared": compared, "ALMOST": ALMOST}
    template = environment.get_template(f"{name.replace('-', '_')}.md")
    return template.render({**vars(module(folder, name)), **names, **summary})


def costs_line(experiment: Experiment, name: str, summary: Mapping[str, Any]) -> str:
    """Which version of the fitted costs the figures are made with, and whether it is today's; empty: of none."""
    made, today = summary.get("costs_version", ""), experiment.problem(experiment.graphs[0]).costs_version
    line = f"Made with version {made} of the costs that are fitted to measurements (`envs_data/cost_model`)."
    if made == today:
        return line if made else ""
    return (
        f"{line} **Today's costs are version {today}**, by which all would cost something else: the figures here stand "
        f"for version {made} until `graphopt reproduce {name}` has made them again."
    )


def shown(value: Any, form: str = "") -> str:
    """A number in a form such as ``,`` or ``.1%``; nothing where there is none."""
    return "" if value is None else format(value, form)


def cost(experiment: Experiment, value: float | None) -> str:
    """A cost as the experiment's pages show it; nothing where there is none."""
    form, word, scale = experiment.cost
    return "" if value is None else format(value * scale, form) if math.isfinite(value) else word


def ratio(a: Any, b: Any, form: str = ".2f") -> str:
    """A ratio; nothing where one is not known, or the first is of nothing valid."""
    return "" if a is None or b is None or not math.isfinite(float(a)) else format(float(a) / float(b), form)


def line(*cells: Any) -> str:
    """A row of a Markdown table; lists among the cells are taken apart."""
    flat = [one for cell in cells for one in (cell if isinstance(cell, list | tuple) else [cell])]
    return f"| {' | '.join(map(str, flat))} |"


def head(*titles: Any) -> str:
    """The head of a Markdown table."""
    first = line(*titles)
    return f"{first}\n{'|---' * (first.count(' | ') + 1)}|"


def cost_table(
    experiment: Experiment, rows: Iterable[Mapping[str, Any]], names: Iterable[str], beside: Sequence[str] = ()
) -> str:
    """A table with a row a graph and a column an entry, the best of each row in bold.

    Entries without runs are left out, and rows without any. ``beside``: entries that come first, and make no row.
    """
    rows = list(rows)
    beside, names = ([n for n in some if any(row.get(n) is not None for row in rows)] for some in (beside, names))
    columns = [*beside, *names]
    lines = [head(*experiment.before, *(experiment.entries[name].label for name in columns), *experiment.after)]
    for row in rows:
        if all(row[name] is None for name in names):
            continue
        most = min(row[name] for name in columns if row[name] is not None) * (1 + ALMOST)
        texts = [
            f"**{cost(experiment, row[name])}**"
            if row[name] is not None and math.isfinite(most) and row[name] <= most
            else cost(experiment, row[name])
            for name in columns
        ]
        first, last = ([text(row) for text in more.values()] for more in (experiment.before, experiment.after))
        lines.append(line(first, texts, last))
    return "\n".join(lines)
