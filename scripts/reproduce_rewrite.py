#!/usr/bin/env python3
# ruff: noqa: E501 - sentences of a document
"""The rewriting experiment: TASO's sequential search and equality saturation on the seven networks of their papers.

    python scripts/reproduce_rewrite.py              # what is missing, then the tables; can be interrupted
    python scripts/reproduce_rewrite.py --tables     # the tables of what is there
    python scripts/reproduce_rewrite.py --graphs squeezenet --methods taso,saturation_k1

Every run is one (program, method, seed) and a file of its own under ``out/rewrite``; one that is there is not repeated.
Every rewritten program is executed against the original before its run counts. The results go to
``envs_data/rewrite``, the tables to ``docs/rewrite.md``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
for folder in (ROOT, ROOT / "agents", ROOT / "scripts"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
from experiment import Job, geometric_mean, jobs, read_runs, run_jobs  # noqa: E402

from graphopt_gym.data import data_path  # noqa: E402
from graphopt_gym.envs.rewrite.extraction import Choices, extract_greedy, extract_ilp  # noqa: E402
from graphopt_gym.envs.rewrite.problem import RewriteProblem  # noqa: E402
from graphopt_gym.envs.rewrite.saturation import saturate  # noqa: E402
from graphopt_gym.files import write_text  # noqa: E402
from graphopt_gym.graphs.zoo.programs import WORKLOADS  # noqa: E402
from graphopt_gym.search.solve import find_method, solve  # noqa: E402

DEVICE = "t4"
SEEDS = (0, 1, 2)
CALLS = 20_000  # programs that a sequential search may price
SECONDS = 60.0  # of a run, whatever it is
NODES, ITERATIONS = 50_000, 15  # limits of the e-graph: TENSAT's
ILP_SECONDS = 60.0
KEPT = (
    "greedy_cost", "bound", "gap", "status", "stopped_by", "nodes", "classes", "memory_bytes", "growth", "saturation_s",
    "extraction_s", "best_s", "evaluations",
)  # fmt: skip


def saturation(k_multi: int) -> Callable[[RewriteProblem, int], dict[str, Any]]:
    def run(problem: RewriteProblem, seed: int) -> dict[str, Any]:
        explored = saturate(
            problem.program,
            None,
            problem.program_costs,
            k_multi=k_multi,
            node_limit=NODES,
            iteration_limit=ITERATIONS,
            seconds=SECONDS,
        )
        choices = Choices(explored)
        greedy = extract_greedy(explored, choices)
        best = extract_ilp(explored, seconds=ILP_SECONDS, choices=choices)
        return {
            "program": best.program,
            "evaluations": 1,
            "seconds": explored.seconds + best.seconds,
            "saturation_s": explored.seconds,
            "extraction_s": best.seconds,
            "greedy_cost": greedy.cost,
            "bound": best.bound,
            "gap": best.gap,
            "status": best.status,
            "stopped_by": explored.stopped_by,
            "nodes": explored.nodes,
            "classes": explored.classes,
            "memory_bytes": explored.memory_bytes,
            "growth": [iteration.nodes for iteration in explored.iterations],
        }

    return run


def by_solve(name: str) -> Callable[[RewriteProblem, int], dict[str, Any]]:
    def run(problem: RewriteProblem, seed: int) -> dict[str, Any]:
        solution = solve(problem, name, budget=CALLS, seconds=SECONDS, seed=seed)
        return {
            "program": problem.check(solution.decision),
            "evaluations": solution.evaluations,
            "seconds": solution.wall_s,
            "best_s": solution.history[-1][1] if solution.history else 0.0,
            "stopped_by": solution.stopped_by,
        }

    return run


# name -> (run, what the table calls it)
METHODS: dict[str, tuple[Callable[[RewriteProblem, int], dict[str, Any]], str]] = {
    "greedy": (by_solve("greedy"), "greedy"),
    "taso": (by_solve("taso"), "TASO's search"),
    "random_walk": (by_solve("random_walk"), "random rewrites"),
    "saturation_k0": (saturation(0), "saturation, k=0"),
    "saturation_k1": (saturation(1), "saturation, k=1"),
    "saturation_k2": (saturation(2), "saturation, k=2"),
    "mcts": (by_solve("mcts"), "tree search"),
}


def is_random(name: str) -> bool:
    """Whether the seed matters."""
    return not name.startswith("saturation") and find_method(RewriteProblem.env_id, name).random


def run_method(problem: RewriteProblem, job: Job, target: Path) -> str:
    """Make a run, execute what came out against the original, and write it; the gain, in words."""
    graph, name, seed = job
    row = METHODS[name][0](problem, seed)
    program = row.pop("program")
    started = time.perf_counter()
    outcome = problem.evaluate(program)
    row |= {
        "graph": graph,
        "name": name,
        "seed": seed,
        "valid": outcome.valid,
        "cost": outcome.cost if outcome.valid else None,
        "original": problem.original_s,
        "ops_before": len(problem.program.order),
        "ops": len(program.order),
        "check_s": time.perf_counter() - started,
        "fingerprints": problem.fingerprints(),
    }
    write_text(target, json.dumps(row) + "\n")
    gain = "invalid" if row["cost"] is None else f"{row['original'] / row['cost'] - 1:+.1%}"
    return f"{gain}, {row['seconds']:.1f} s"


# ---- tables


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    published = {row["model"]: row for row in csv.DictReader(data_path("published", "tensat_vs_taso.csv").open())}
    rows = []
    for graph in WORKLOADS:
        mine = [run for run in runs if run["graph"] == graph]
        if not mine:
            continue
        row: dict[str, Any] = {
            "graph": graph,
            "ops": mine[0]["ops_before"],
            "original": mine[0]["original"],
            "published": published[graph],
        }
        for name in METHODS:
            those = [run for run in mine if run["name"] == name]
            if those:
                row[name] = {
                    "cost": float(np.mean([run["cost"] for run in those]))
                    if all(run["valid"] for run in those)
                    else None,
                    "seconds": float(np.mean([run["seconds"] for run in those])),
                    "seeds": len(those),
                    **{key: those[0].get(key) for key in KEPT},
                }
        rows.append(row)
    return {"device": DEVICE, "rows": rows}


def gain(row: dict[str, Any], cost: float | None) -> str:
    return "" if cost is None else f"{row['original'] / cost - 1:.1%}"


def document(summary: dict[str, Any]) -> str:
    rows = summary["rows"]
    names = [name for name in METHODS if any(name in row for row in rows)]
    lines = [
        "# Rewriting: sequential search beside equality saturation",
        "",
        "Written by `python scripts/reproduce_rewrite.py`. Times are **simulated**: the sum of operator times on the",
        f"catalog's {summary['device']}, a cost model that is fitted to measured kernels. Views (split, reshape) and work on",
        "weights alone cost nothing. Speed-up: the original's time over the rewritten program's, minus 1. Every rewritten",
        f"program was executed against the original. Limits: {SECONDS:.0f} s a run, {CALLS:,} programs for sequential",
        f"searches, {NODES:,} e-nodes and {ITERATIONS} iterations for saturation, {ILP_SECONDS:.0f} s for its integer program.",
        "",
        "## Speed-up",
        "",
        "| program | ops | " + " | ".join(METHODS[name][1] for name in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for row in rows:
        cells = [gain(row, row[name]["cost"]) if name in row else "" for name in names]
        lines.append(f"| {row['graph']} | {row['ops']} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Seconds",
        "",
        "| program | " + " | ".join(METHODS[name][1] for name in names) + " | TASO's / saturation's, k=1 |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    ratios = []
    for row in rows:
        cells = [f"{row[name]['seconds']:.1f}" if name in row else "" for name in names]
        ratio = (
            row["taso"]["seconds"] / row["saturation_k1"]["seconds"] if {"taso", "saturation_k1"} <= set(row) else None
        )
        if ratio:
            ratios.append(ratio)
        lines.append(f"| {row['graph']} | {' | '.join(cells)} | {f'{ratio:.1f}' if ratio else ''} |")
    if ratios:
        lines += ["", f"Geometric mean of the last column: {geometric_mean(ratios):.1f}."]
    lines += [
        "",
        "## Multi-pattern rules and the e-graph",
        "",
        "| program | k | e-nodes | e-classes | stopped by | greedy extraction | integer program | its gap | MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for k in range(3):
            one = row.get(f"saturation_k{k}")
            if one:
                gap = "" if one["gap"] is None else f"{one['gap']:.2%}"
                lines.append(
                    f"| {row['graph']} | {k} | {one['nodes']:,} | {one['classes']:,} | {one['stopped_by']} | "
                    f"{gain(row, one['greedy_cost'])} | {gain(row, one['cost'])} | {gap} | "
                    f"{one['memory_bytes'] / 2**20:.0f} |"
                )
    lines += [
        "",
        "## Published, on a real T4 (recalled; Yang et al., TENSAT, MLSys 2021)",
        "",
        "| program | TASO's speed-up | TENSAT's | TASO's seconds | TENSAT's seconds | ours: TASO's search | ours: best saturation |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = row["published"]
        best = min(
            (row[f"saturation_k{k}"]["cost"] for k in range(3) if row.get(f"saturation_k{k}", {}).get("cost")),
            default=None,
        )
        lines.append(
            f"| {row['graph']} | {paper['taso_speedup_percent']} % | {paper['tensat_speedup_percent']} % | "
            f"{paper['taso_total_s']} | {paper['tensat_s']} | {gain(row, row.get('taso', {}).get('cost'))} | {gain(row, best)} |"
        )
    return "\n".join(lines) + "\n"


def write_tables(out: Path) -> None:
    summary = summarise(list(read_runs(out).values()))
    target = data_path("rewrite", "summary.json")
    Path(str(target)).parent.mkdir(exist_ok=True)
    write_text(target, json.dumps(summary, indent=1) + "\n")
    write_text(ROOT / "docs" / "rewrite.md", document(summary))
    print(f"wrote {target} and {ROOT / 'docs' / 'rewrite.md'}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "rewrite")
    parser.add_argument("--graphs", default=",".join(WORKLOADS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is there")
    args = parser.parse_args()
    if not args.tables:
        seeds = tuple(int(seed) for seed in args.seeds.split(","))
        todo = jobs(args.graphs.split(","), args.methods.split(","), seeds, is_random)
        run_jobs(args.out, todo, lambda graph: RewriteProblem(graph, DEVICE), run_method)
    write_tables(args.out)


if __name__ == "__main__":
    main()
