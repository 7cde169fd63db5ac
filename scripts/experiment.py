"""What the experiments that compare methods share: runs kept as files, claimed by processes, read again, compared.

Every run is one (graph, method, seed) and a file of its own, ``OUT/GRAPH/METHOD-SEED.json``; a run that is there, of
the same fingerprints, is not repeated, and several processes may share the work.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from graphopt_gym.data import data_path
from graphopt_gym.files import write_file, write_text
from graphopt_gym.problem import Problem, Solution

KEPT = ("seed", "cost", "valid", "evaluations", "wall_s", "fingerprints", "history", "decision", "valid_share")
ALMOST = 0.0005  # two costs are shown as equal within this share

ProblemT = TypeVar("ProblemT", bound=Problem)
Job = tuple[str, str, int]  # graph, method, seed
Runs = dict[Job, dict[str, Any]]


class Busy(Exception):
    """Another process is at it."""


@contextlib.contextmanager
def claim(path: Path) -> Iterator[None]:
    """A file that tells other processes to keep off. Raises Busy where another one has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        if time.time() - path.stat().st_mtime < 3600:
            raise Busy from None
        path.touch()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def jobs(
    graphs: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    is_random: Callable[[str], bool],
    is_made: Callable[[str, str], bool] = lambda graph, name: True,
) -> list[Job]:
    """All runs, a seed of everything before the next, so that an early end leaves whole tables.

    Args:
        is_random: whether a method's seed matters; others run once.
        is_made: whether a method runs on a graph.
    """
    return [
        (graph, name, seed)
        for seed in seeds
        for name in methods
        for graph in graphs
        if is_made(graph, name) and (seed == seeds[0] or is_random(name))
    ]


def run_jobs(
    out: Path, todo: Sequence[Job], problem_of: Callable[[str], ProblemT], run: Callable[[ProblemT, Job, Path], str]
) -> None:
    """Make the runs that are missing, in order; those that others are at are left to them.

    Args:
        run: makes a run of a problem and writes it to the path, as JSON with its ``fingerprints``; says how it went.
    """
    problems: dict[str, ProblemT] = {}
    waiting = 0
    for number, job in enumerate(todo, 1):
        graph, name, seed = job
        target = out / graph / f"{name}-{seed}.json"
        if graph not in problems:
            problems[graph] = problem_of(graph)
        problem = problems[graph]
        if target.exists() and json.loads(target.read_text())["fingerprints"] == problem.fingerprints():
            continue
        try:
            with claim(target.with_suffix(".claim")):
                line = run(problem, job, target)
        except Busy:
            waiting += 1
            continue
        print(f"[{number}/{len(todo)}] {graph} {name} seed {seed}: {line}", file=sys.stderr, flush=True)
    if waiting:
        print(f"{waiting} runs are being made by other processes, or wait for one", file=sys.stderr)


def saved(solution: Solution, target: Path) -> str:
    """Write a solution; what it cost, in words."""
    from graphopt_gym.units import format_cost

    solution.save(target)
    cost = format_cost(solution.outcome.cost, "s") if solution.outcome.valid else "nothing valid"
    return f"{cost}, {solution.evaluations:,} evaluations, {solution.wall_s:.1f} s"


def read_runs(out: Path) -> Runs:
    """Finished runs by (graph, method, seed)."""
    runs = {}
    for path in sorted(out.glob("*/*.json")):
        name, _, seed = path.stem.rpartition("-")
        runs[path.parent.name, name, int(seed)] = json.loads(path.read_text(encoding="utf-8"))
    return runs


def stored_runs(room: str) -> Runs:
    """The runs in ``envs_data``, by (graph, method, seed)."""
    kept = json.loads(gzip.decompress(data_path(room, "runs.json.gz").read_bytes()))
    return {(run["graph"], run["name"], run["seed"]): run for run in kept}


def store_runs(room: str, runs: Runs, summary: Mapping[str, Any], fields: Sequence[str] = KEPT) -> None:
    """Write these fields of runs, and the summary, into ``envs_data``."""
    folder = data_path(room)
    kept = [
        {"graph": graph, "name": name, **{key: run[key] for key in fields if key in run}}
        for (graph, name, _), run in sorted(runs.items())
    ]
    text = json.dumps(kept, separators=(",", ":")).encode()
    write_file(folder / "runs.json.gz", gzip.compress(text, mtime=0), make_folders=True)
    write_text(folder / "summary.json", json.dumps(finite(summary), indent=1) + "\n")


def ship_checkpoint(folder: Path, agent: str, command: str) -> Path:
    """Write a run's policy as the one that is shipped, without what only training needs, and its curve beside it."""
    from graphopt_agents.core import checkpoints

    kept = checkpoints.load_checkpoint(folder, agent)
    target = Path(str(data_path("checkpoints", f"{agent}.pt")))
    target.parent.mkdir(exist_ok=True)
    facts = {
        "command": command,
        "evaluations": sum(int(task["trials"]) for task in kept.state["tasks"].values()),
        "wall_s": round(float(kept.state["wall_s"]), 1),
    }
    checkpoints.save_checkpoint(target, kept.agent, kept.args, {"network": kept.state["network"]}, facts)
    text = json.dumps({**facts, "args": kept.args, "libraries": kept.libraries})
    write_text(target.with_suffix(".json"), text + "\n")
    write_file(target.with_suffix(".csv.gz"), gzip.compress((folder / "curve.csv").read_bytes(), mtime=0))
    print(f"wrote {target}", file=sys.stderr)
    return target


def mean_cost(runs: Runs, graph: str, method: str) -> float | None:
    """Mean over seeds of the best cost; inf where a seed found nothing valid, None where none was run."""
    costs = [run["cost"] for (g, m, _), run in runs.items() if (g, m) == (graph, method)]
    if not costs:
        return None
    return float("inf") if None in costs else float(np.mean(costs))


def best_known(runs: Runs, graph: str) -> float:
    """The least cost of any run of a graph."""
    return min((run["cost"] for (g, _, _), run in runs.items() if g == graph and run["valid"]), default=float("inf"))


def calls_to_reach(run: Mapping[str, Any], cost: float) -> int | None:
    """Evaluations until a run was at ``cost`` or below."""
    return next((calls for calls, _, best in run["history"] if best <= cost), None)


def cost_after(run: Mapping[str, Any], calls: int) -> float:
    """Best cost of a run after so many evaluations; inf where nothing was valid by then."""
    return next((cost for at, _, cost in reversed(run["history"]) if at <= calls), float("inf"))


def geometric_mean(values: Sequence[float]) -> float | None:
    return float(np.exp(np.mean(np.log(values)))) if len(values) else None


def reductions(rows: Sequence[Mapping[str, Any]], method: str, baseline: str) -> dict[str, Any]:
    """Over the rows where both are valid: 1 - geometric mean of the ratio of costs, and the wins."""
    pairs = [
        (row[method], row[baseline]) for row in rows if row.get(method) is not None and row.get(baseline) is not None
    ]
    ratios = [mine / theirs for mine, theirs in pairs if np.isfinite(mine) and np.isfinite(theirs)]
    return {
        "method": method,
        "against": baseline,
        "rows": len(pairs),
        "wins": sum(mine < theirs * (1 - ALMOST) for mine, theirs in pairs),
        "losses": sum(mine > theirs * (1 + ALMOST) for mine, theirs in pairs),
        "out_of_memory": sum(not np.isfinite(mine) for mine, _ in pairs),
        "baseline_out_of_memory": sum(not np.isfinite(theirs) for _, theirs in pairs),
        "reduction": 1 - float(np.exp(np.mean(np.log(ratios)))) if ratios else None,
    }


def finite(value: Any) -> Any:
    """JSON has no infinity: out of memory is written as the text OOM."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return "OOM" if isinstance(value, float) and not np.isfinite(value) else value


def draw_curves(
    runs: Runs,
    graphs: Sequence[str],
    methods: Mapping[str, tuple[str, str]],
    path: Path,
    *,
    columns: int,
    calls: int,
    scale: Callable[[str], float] = lambda graph: 1.0,
    labels: tuple[str, str],
    line: tuple[str, str] | None = None,
) -> None:
    """Best cost against evaluations, a panel a graph: mean over seeds, and their range.

    Args:
        methods: by name, what the legend says and a colour.
        columns: panels a row. ``calls``: the last evaluation shown. ``labels``: of the axes.
        scale: what a graph's costs are divided by.
        line: a method that is drawn as a dotted line, and what the legend says.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    height = -(-len(graphs) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(3.75 * columns, 3 * height), squeeze=False)
    at = np.unique(np.geomspace(1, calls, 80).astype(int))
    for axis, graph in zip(axes.flat, graphs, strict=False):
        unit = scale(graph)
        for name, (label, colour) in methods.items():
            mine = [run for (g, m, _), run in runs.items() if (g, m) == (graph, name)]
            if not mine:
                continue
            here = at[at <= max(run["evaluations"] for run in mine)]
            curves = np.array([[cost_after(run, call) for call in here] for run in mine]) / unit
            known = np.isfinite(curves).all(axis=0)
            axis.plot(here[known], curves[:, known].mean(axis=0), color=colour, label=label)
            axis.fill_between(here[known], *np.quantile(curves[:, known], (0, 1), axis=0), color=colour, alpha=0.2)
        if line:
            level = runs.get((graph, line[0], 0))
            if level and level["valid"]:
                axis.axhline(level["cost"] / unit, color="black", linestyle=":", label=line[1])
        axis.set_xscale("log")
        axis.set_title(graph, fontsize=10)
    axes.flat[0].legend(fontsize=8)
    for axis in axes.flat[len(graphs) :]:
        axis.axis("off")
    figure.supxlabel(labels[0])
    figure.supylabel(labels[1])
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=80)
    plt.close(figure)
    write_file(path, image.getvalue(), make_folders=True)
