"""What the tables of several experiments say of runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt_gym.data import data_path

ALMOST = 0.0005  # two costs are shown as equal within this share

Job = tuple[str, str, int]  # graph, method, seed
Row = Mapping[str, Any]


def cost_after(run: Mapping[str, Any], calls: int) -> float:
    """Best cost of a run after so many evaluations; inf where nothing was valid by then."""
    return next((cost for at, _, cost in reversed(run["history"]) if at <= calls), float("inf"))


class Runs(dict[Job, dict[str, Any]]):
    """What the files of runs hold, by (graph, method, seed)."""

    def of(self, graph: str, method: str) -> list[dict[str, Any]]:
        """The runs of a method on a graph, a seed each."""
        return [run for (g, m, _), run in self.items() if (g, m) == (graph, method)]

    def mean_cost(self, graph: str, method: str) -> float | None:
        """Mean over seeds of the best cost; inf where a seed found nothing valid, None where none was run."""
        return mean(float("inf") if run["cost"] is None else run["cost"] for run in self.of(graph, method))

    def mean_cost_after(self, graph: str, method: str, calls: int) -> float | None:
        """Mean over seeds of :func:`cost_after`."""
        return mean(cost_after(run, calls) for run in self.of(graph, method))

    def best_known(self, graph: str) -> float:
        """The least cost of any run of a graph."""
        return min((run["cost"] for job, run in self.items() if job[0] == graph and run["valid"]), default=float("inf"))

    def best_run(self, graph: str, seconds: str = "wall_s") -> dict[str, Any] | None:
        """The cheapest valid run of a graph; of almost equal ones the quickest. ``seconds``: the field that says so."""
        most = self.best_known(graph) * (1 + ALMOST)
        mine = [run for job, run in self.items() if job[0] == graph and run["valid"] and run["cost"] <= most]
        return min(mine, key=lambda run: run[seconds], default=None)

    def reached(
        self, graph: str, method: str, baseline: str, within: float = 0.0
    ) -> list[tuple[list[float], list[float] | None]]:
        """When two methods were first within a share of what the baseline ends with: a pair of rows of their histories
        (the baseline's, the method's or None) for each seed that both have and where the baseline found something."""
        pairs: list[Any] = []
        for theirs in self.of(graph, baseline):
            mine = self.get((graph, method, theirs["seed"]))
            if mine and theirs["valid"]:
                target = theirs["cost"] * (1 + within)
                pairs.append(
                    [next((row for row in run["history"] if row[2] <= target), None) for run in (theirs, mine)]
                )
        return pairs


def mean(values: Iterable[float | None]) -> float | None:
    """None where there are none, or one is None."""
    given = list(values)
    return float(np.mean(given)) if given and None not in given else None  # type: ignore[arg-type]


def geometric_mean(values: Sequence[float]) -> float | None:
    return float(np.exp(np.mean(np.log(values)))) if len(values) else None


def ahead(mine: float, theirs: float) -> int:
    """1 where a cost is below another, -1 where it is above, 0 where they are almost the same."""
    return (mine < theirs * (1 - ALMOST)) - (mine > theirs * (1 + ALMOST))


def graphs_where(pairs: Iterable[tuple[str, float, float]], sign: int) -> list[str]:
    """Of (graph, cost, other cost): where the first is :func:`ahead` (1), behind (-1) or neither (0)."""
    return [graph for graph, mine, theirs in pairs if ahead(mine, theirs) == sign]


def compared(rows: Sequence[Row], method: str, baseline: str) -> dict[str, Any]:
    """Over the rows that have both: 1 - geometric mean of the ratio of costs where both are valid, and the wins."""
    pairs = [
        (row[method], row[baseline]) for row in rows if row.get(method) is not None and row.get(baseline) is not None
    ]
    ratio = geometric_mean([mine / theirs for mine, theirs in pairs if np.isfinite(mine) and np.isfinite(theirs)])
    signs = [ahead(mine, theirs) for mine, theirs in pairs]
    return {
        "method": method,
        "against": baseline,
        "rows": len(pairs),
        "wins": signs.count(1),
        "losses": signs.count(-1),
        "out_of_memory": sum(not np.isfinite(mine) for mine, _ in pairs),
        "baseline_out_of_memory": sum(not np.isfinite(theirs) for _, theirs in pairs),
        "reduction": None if ratio is None else 1 - ratio,
    }


def comparisons(
    rows: Sequence[Row],
    pairs: Iterable[tuple[str, str]],
    compare: Callable[[Sequence[Row], str, str], dict[str, Any]] = compared,
) -> list[dict[str, Any]]:
    """Each (method, baseline) compared, where some row has each."""
    return [compare(rows, *pair) for pair in pairs if all(any(row.get(n) is not None for row in rows) for n in pair)]


def published(file: str) -> list[dict[str, str]]:
    """The rows of a CSV file of figures from papers."""
    with data_path("published", file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def stored_summary(room: str) -> dict[str, Any]:
    """The summary in a folder of ``envs_data``."""
    return json.loads(data_path(room, "summary.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def finite(value: Any) -> Any:
    """JSON has no infinity: out of memory is written as the text OOM."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return "OOM" if isinstance(value, float) and not np.isfinite(value) else value
