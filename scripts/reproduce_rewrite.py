#!/usr/bin/env python3
# ruff: noqa: E501 - sentences of a document
"""The rewriting experiment: sequential search, equality saturation, tree search and learning on the programs of TENSAT's paper.

    python scripts/reproduce_rewrite.py              # what is missing, then the tables; can be interrupted
    python scripts/reproduce_rewrite.py --tables     # the tables of what is there
    python scripts/reproduce_rewrite.py --graphs squeezenet --methods taso,saturation_k1

Every run is one (program, method, seed) and a file of its own under ``out/rewrite``; one that is there is not repeated,
and several processes may share the work. Every rewritten program is executed against the original before its run
counts. Last, the original and the best program of each network are timed on this machine's CPU, which wants a machine
that does nothing else. The results go to ``envs_data/rewrite``, the tables to ``docs/rewrite.md``.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
for folder in (ROOT, ROOT / "agents", ROOT / "scripts"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
from experiment import (  # noqa: E402
    Busy,
    Job,
    claim,
    finite,
    geometric_mean,
    jobs,
    read_runs,
    run_jobs,
    ship_checkpoint,
    store_runs,
)

from graphopt_gym.data import data_path  # noqa: E402
from graphopt_gym.envs.rewrite.problem import RewriteProblem  # noqa: E402
from graphopt_gym.files import write_file, write_text  # noqa: E402
from graphopt_gym.graphs.zoo.programs import WORKLOADS  # noqa: E402
from graphopt_gym.search.solve import find_method, solve  # noqa: E402

ROOM = "rewrite"  # in envs_data
DEVICE = "t4"
SEEDS = (0, 1, 2)
SECONDS = 40.0  # of a run, whatever it is
CALLS = 10_000_000  # programs that a run may price: more than any does in that time
EQUAL_CALLS = 2_000  # where sequential methods are compared at equal numbers of programs
MEASURE_SECONDS = 20.0  # of timing a pair of programs
ALMOST = 5e-4  # two costs are the same within this share
MULTI = (0, 1, 2, 3)  # iterations of multi-pattern rules
GRAPHS = (*WORKLOADS, "bert_tensat", "nasrnn_tensat")


class Way(NamedTuple):
    """A method with its options, and what the tables call it."""

    method: str
    label: str
    options: Mapping[str, Any] = {}


WAYS = {
    "greedy": Way("greedy", "greedy"),
    "taso": Way("taso", "TASO's search"),
    "random_walk": Way("random_walk", "random rewrites"),
    **{f"saturation_k{k}": Way("saturation", f"saturation, k={k}", {"k_multi": k}) for k in MULTI},
    "saturation_repeat": Way("saturation_repeat", "saturation, repeated"),
    "tree_search": Way("tree_search", "tree search"),
    "tree_search_repeat": Way("tree_search_repeat", "tree search, repeated"),
    "rl": Way("rl", "RL from nothing"),
    "rl_pretrained": Way("rl_pretrained", "RL, trained on others"),
}
PLAIN = tuple(f"saturation_k{k}" for k in MULTI)
SEQUENTIAL = ("greedy", "taso", "random_walk", "rl", "rl_pretrained")
BEYOND = ("saturation_repeat", "tree_search", "tree_search_repeat", "rl", "rl_pretrained")
KEPT = (
    "seed", "cost", "valid", "original", "seconds", "evaluations", "stopped_by", "best_s", "after_equal_calls", "details",
    "ops_before", "ops", "fingerprints", "curve",
)  # fmt: skip


VARIANTS = 45  # programs like the networks, smaller and of random sizes, that the shipped policy learns from
TRAINING = {"updates": 240, "episodes": 4, "graphs_per_update": 4, "starts": 1500, "decay": True}


def pretrained(out: Path) -> Path:
    """The folder of the policy that is trained on the small programs and the variants; trains it where it is missing."""
    from graphopt_agents.rewrite import Args, train

    from graphopt_gym.graphs.zoo.programs.variants import write_variants

    folder = out / "policy"
    finished = folder / "finished"
    if finished.exists():
        return folder
    variants = Path(os.path.relpath(out / "variants"))  # the checkpoint names them; as seen from here
    variants.mkdir(parents=True, exist_ok=True)
    paths = write_variants(variants, VARIANTS, seed=0)
    with claim(folder.with_suffix(".claim")):
        args = Args(graphs=("small", *paths), checkpoint_every=60, **TRAINING)
        result = train(args, folder, resume=(folder / "checkpoint.pt").exists())
        if result.interrupted:
            raise KeyboardInterrupt
        write_text(finished, f"{result.evaluations} evaluations, {result.wall_s:.1f} s\n")
    print(f"trained: {result.evaluations:,} programs, {result.wall_s:.1f} s", file=sys.stderr)
    return folder


def is_random(name: str) -> bool:
    """Whether the seed matters."""
    return find_method(RewriteProblem.env_id, WAYS[name].method).random


def run_method(problem: RewriteProblem, job: Job, target: Path) -> str:
    """Make a run, execute what came out against the original, and write it; the gain, in words."""
    graph, name, seed = job
    way = WAYS[name]
    solution = solve(problem, way.method, budget=CALLS, seconds=SECONDS, seed=seed, options=way.options)
    program = problem.check(solution.decision)
    valid = solution.outcome.valid  # evaluate has executed it
    history = [list(row) for row in solution.history]
    row = {
        "graph": graph,
        "name": name,
        "seed": seed,
        "valid": valid,
        "cost": solution.outcome.cost if valid else None,
        "original": problem.original_s,
        "seconds": solution.wall_s,
        "evaluations": solution.evaluations,
        "stopped_by": solution.stopped_by,
        "best_s": history[-1][1] if history else 0.0,
        "after_equal_calls": next((cost for calls, _, cost in reversed(history) if calls <= EQUAL_CALLS), None),
        "curve": history[:: max(1, len(history) // 40)] + history[-1:],
        "details": dict(solution.details),
        "ops_before": problem.program.statistics()["computed"],
        "ops": program.statistics()["computed"],
        "fingerprints": problem.fingerprints(),
        "program": problem.encode(program),
    }
    write_text(target, json.dumps(finite(row)) + "\n")
    gain = f"{problem.original_s / solution.outcome.cost - 1:+.2%}" if valid else "INVALID"
    return f"{gain}, {solution.evaluations:,} programs, {solution.wall_s:.1f} s"


def best_run(runs: Mapping[Job, dict[str, Any]], graph: str) -> dict[str, Any] | None:
    """The cheapest valid run of a program; of equal ones, the quickest."""
    mine = [run for (g, _, _), run in runs.items() if g == graph and run["valid"]]
    if not mine:
        return None
    least = min(run["cost"] for run in mine)
    return min((run for run in mine if run["cost"] <= least * (1 + ALMOST)), key=lambda run: run["seconds"])


def measure_all(out: Path, graphs: Sequence[str]) -> None:
    """Time the original and the best program of each network on the CPU, interleaved; a file each."""
    from graphopt_gym.envs.rewrite.measure import measure

    runs = read_runs(out)
    for graph in graphs:
        best = best_run(runs, graph)
        target = out / "measured" / graph
        if best is None:
            continue
        target = target.with_suffix(".measured")
        if target.exists() and json.loads(target.read_text())["cost"] == best["cost"]:
            continue
        problem = RewriteProblem(graph, DEVICE)
        try:
            with claim(target.with_suffix(".claim")):
                found = measure(
                    problem.program, problem.check(best["program"]), runs=1000, seconds=MEASURE_SECONDS, clock="cpu"
                )
                row = {
                    "graph": graph,
                    "method": best["name"],
                    "cost": best["cost"],
                    "speedup": found.speedup,
                    "low": found.low,
                    "high": found.high,
                    "original_s": found.original.median_s,
                    "rewritten_s": found.rewritten.median_s,
                    "runs": found.runs,
                    "same_outputs": found.same_outputs,
                }
                write_text(target, json.dumps(row) + "\n")
        except Busy:
            continue
        print(f"measured {graph}: {row}", file=sys.stderr, flush=True)


# ---- what the runs say


def summarise(runs: Mapping[Job, dict[str, Any]], measured: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The tables' figures, a row a program."""
    published = {row["model"]: row for row in csv.DictReader(data_path("published", "tensat_vs_taso.csv").open())}
    rows = []
    for graph in GRAPHS:
        best = best_run(runs, graph)
        if best is None:
            continue
        row: dict[str, Any] = {
            "graph": graph,
            "ops": best["ops_before"],
            "original": best["original"],
            "best": best["cost"],
            "best_by": best["name"],
            "published": published.get(graph.removesuffix("_tensat"))
            if graph not in ("bert", "nasrnn")
            else None,  # the paper's rows are of its own BERT and NASRNN, which end in _tensat here
            "measured": measured.get(graph),
            "methods": {},
        }
        for name in WAYS:
            mine = [run for (g, m, _), run in sorted(runs.items()) if (g, m) == (graph, name)]
            if not mine:
                continue
            costs = [run["cost"] for run in mine]
            row["methods"][name] = {
                "seeds": len(mine),
                "valid": all(run["valid"] for run in mine),
                "cost": float(np.mean(costs)) if None not in costs else None,
                "worst": max(costs) if None not in costs else None,
                **{key: float(np.mean([run[key] for run in mine])) for key in ("seconds", "best_s", "evaluations")},
                "after_equal_calls": _mean([run["after_equal_calls"] for run in mine]),
                "stopped_by": mine[0]["stopped_by"],
                "details": mine[0]["details"],
            }
        plain = [row["methods"][name] for name in PLAIN if name in row["methods"]]
        row["plain"] = min((one["cost"] for one in plain if one["cost"]), default=None)
        rows.append(row)
    return {"device": DEVICE, "seconds": SECONDS, "rows": rows, "claims": claims(rows)}


def _mean(values: Sequence[float | None]) -> float | None:
    return float(np.mean(values)) if values and None not in values else None  # type: ignore[arg-type]


def claims(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the document's sentences say, computed."""
    found: dict[str, Any] = {}
    pairs = [
        (row["plain"], min(row["methods"][name]["cost"] for name in ("greedy", "taso")), row)
        for row in rows
        if row["plain"] and {"greedy", "taso"} <= set(row["methods"])
    ]
    found["saturation_better"] = [row["graph"] for mine, theirs, row in pairs if mine < theirs * (1 - ALMOST)]
    found["saturation_equal"] = [row["graph"] for mine, theirs, row in pairs if abs(mine / theirs - 1) <= ALMOST]
    found["saturation_worse"] = [row["graph"] for mine, theirs, row in pairs if mine > theirs * (1 + ALMOST)]
    most = max(pairs, key=lambda pair: pair[1] / pair[0], default=None)
    found["most_better"], found["most_better_on"] = (1 - most[0] / most[1], most[2]["graph"]) if most else (None, None)
    for name in BEYOND:
        with_it = [row for row in rows if row["plain"] and name in row["methods"] and row["methods"][name]["cost"]]
        # a random method is ahead where the mean of its seeds is
        found[f"{name}_ahead"] = [
            row["graph"] for row in with_it if row["methods"][name]["cost"] < row["plain"] * (1 - ALMOST)
        ]
        found[f"{name}_behind"] = [
            row["graph"] for row in with_it if row["methods"][name]["cost"] > row["plain"] * (1 + ALMOST)
        ]
    ratios = {
        row["graph"]: row["methods"]["taso"]["seconds"] / row["methods"]["saturation_k1"]["seconds"]
        for row in rows
        if {"taso", "saturation_k1"} <= set(row["methods"])
    }
    found["time_ratios"] = ratios
    found["time_ratio_mean"] = geometric_mean(list(ratios.values()))
    found["a_tenth_of_the_time"] = [graph for graph, ratio in ratios.items() if ratio >= 10]
    return found


def document(summary: Mapping[str, Any]) -> str:
    rows, said = summary["rows"], summary["claims"]
    names = [name for name in WAYS if any(name in row["methods"] for row in rows)]

    def gain(row: Mapping[str, Any], cost: float | None) -> str:
        return "" if cost is None else f"{row['original'] / cost - 1:.1%}"

    def listed(graphs: Sequence[str]) -> str:
        return ", ".join(graphs) if graphs else "none"

    lines = [
        "# Rewriting: sequential search, equality saturation, tree search, learning",
        "",
        "Written by `graphopt reproduce rewrite`. Costs are **simulated**: the sum of operator times on the",
        f"catalog's {summary['device']}, by a cost model that is fitted to measured kernels. Views (split, reshape) and work on",
        "weights alone, which is done once before inference, cost nothing; TENSAT and TASO count them, or not, as their own",
        "cost models do. Speed-up: the original's time over the rewritten program's, minus 1. Every rewritten program was",
        f"executed in float64 against the original. A run has {summary['seconds']:.0f} seconds in all on one core, and the same rules",
        "whatever the method. Random methods: mean of three seeds. Saturation: 50,000 e-nodes, 15 iterations, multi-pattern",
        "rules in the first k; then extraction by an integer linear program.",
        "",
        "`bert` and `nasrnn` are built from their papers' configurations; `bert_tensat` and `nasrnn_tensat` are the programs",
        "of these names in TENSAT's published code, which its table is about.",
        "",
        "What gains on ResNeXt-50 is merging the groups of its convolutions, and how much rests on one number of the cost",
        "model: what a T4 takes for each group of a convolution, fitted to published times of whole ResNeXts",
        "(`envs_data/cost_model`). RL that was trained on others: the shipped policy, one training run on the ten small",
        f"programs and {VARIANTS} smaller, randomly sized programs of the same families as the networks here, none of which it saw",
        "at its own size; the first programs that it imitated were found by greedy and TASO's search.",
        "",
        "## Speed-up",
        "",
        "| program | ops | original | " + " | ".join(WAYS[name].label for name in names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for row in rows:
        cells = []
        for name in names:
            one = row["methods"].get(name)
            text = gain(row, one["cost"]) if one else ""
            same = one and one["cost"] is not None and one["cost"] <= row["best"] * (1 + ALMOST)
            cells.append(f"**{text}**" if same else text)
        lines.append(f"| {row['graph']} | {row['ops']} | {row['original'] * 1e3:.3f} ms | {' | '.join(cells)} |")
    lines += [
        "",
        "Bold: the best known, within 0.05 %.",
        "",
        f"- Saturation (the best of its four k) against the better of greedy and TASO's search: ahead on "
        f"{listed(said['saturation_better'])}; equal on {listed(said['saturation_equal'])}; behind on "
        f"{listed(said['saturation_worse'])}."
        + (
            f" The most: {said['most_better']:.1%} less time, on {said['most_better_on']}."
            if said["saturation_better"]
            else ""
        ),
    ]
    for name in BEYOND:
        if any(name in row["methods"] for row in rows):
            lines.append(
                f"- {WAYS[name].label[0].upper()}{WAYS[name].label[1:]} against the best plain saturation: ahead on "
                f"{listed(said[f'{name}_ahead'])}; behind on {listed(said[f'{name}_behind'])}."
            )
    lines += [
        "",
        "## Seconds",
        "",
        "Of the whole run, and in brackets until its best was found. A sequential search runs until its time is out, or its",
        "queue is empty; saturation ends by itself, and its time includes extraction, of which much is proof. Where TASO's",
        "search was ended by the clock, the ratio is a lower bound.",
        "",
        "| program | " + " | ".join(WAYS[name].label for name in names) + " | TASO's / saturation's, k=1 |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for row in rows:
        cells = [
            f"{row['methods'][name]['seconds']:.1f} ({row['methods'][name]['best_s']:.1f})"
            if name in row["methods"]
            else ""
            for name in names
        ]
        ratio = said["time_ratios"].get(row["graph"])
        lines.append(f"| {row['graph']} | {' | '.join(cells)} | {f'{ratio:.1f}' if ratio else ''} |")
    if said["time_ratio_mean"]:
        lines += [
            "",
            f"Geometric mean of the last column: {said['time_ratio_mean']:.1f}; at least 10 on {listed(said['a_tenth_of_the_time'])}.",
        ]
    lines += [
        "",
        f"## Sequential methods after {EQUAL_CALLS:,} programs",
        "",
    ]
    sequential = [name for name in SEQUENTIAL if name in names]
    lines += [
        "| program | " + " | ".join(WAYS[name].label for name in sequential) + " |",
        "|---|" + "---|" * len(sequential),
    ]
    for row in rows:
        cells = [
            gain(row, row["methods"][name]["after_equal_calls"]) if name in row["methods"] else ""
            for name in sequential
        ]
        lines.append(f"| {row['graph']} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Multi-pattern rules, the e-graph, and extraction",
        "",
        "Growth: e-nodes after each iteration. Gap: between the program found and the solver's bound on every program of",
        "this e-graph, as a share of the program's time. MiB: by how much the process grew, so little where room was free.",
        "",
        "| program | k | e-nodes | e-classes | stopped by | growth | s | greedy extraction | integer program | gap | s | MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name in PLAIN:
            one = row["methods"].get(name)
            if one:
                facts = one["details"]
                gap = "" if facts.get("gap") is None else f"{facts['gap']:.2%}"
                growth = " ".join(f"{nodes:,}" for nodes in facts["growth_nodes"])
                lines.append(
                    f"| {row['graph']} | {name[-1]} | {facts['nodes']:,} | {facts['classes']:,} | {facts['saturation_stopped_by']} "
                    f"| {growth} | {facts['saturation_s']:.1f} | {gain(row, facts['greedy_cost_s'])} | "
                    f"{gain(row, one['cost'])} | {gap} | {facts['extraction_s']:.1f} | {facts['memory_bytes'] / 2**20:.0f} |"
                )
    if any(row["measured"] for row in rows):
        lines += [
            "",
            "## Measured on a CPU",
            "",
            "The original and the best program, compiled by PyTorch's eager operators in float32 on one core of a server CPU,",
            "work on weights done beforehand, interleaved; medians of the process's time, and the 95 % interval of their ratio",
            "by bootstrap over one process's runs (another process may be some percent off). The programs were chosen for a",
            "simulated T4, so what is measured here is another machine's answer.",
            "",
            "| program | by | simulated T4 | measured CPU | interval | original | rewritten | runs of each |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            one = row["measured"]
            if one:
                lines.append(
                    f"| {row['graph']} | {WAYS[one['method']].label} | {gain(row, one['cost'])} | {one['speedup'] - 1:.1%} | "
                    f"{one['low'] - 1:.1%} to {one['high'] - 1:.1%} | {one['original_s'] * 1e3:.2f} ms | "
                    f"{one['rewritten_s'] * 1e3:.2f} ms | {one['runs']} |"
                )
    lines += [
        "",
        "## Published, on a real T4 (recalled; Yang et al., TENSAT, MLSys 2021)",
        "",
        "| program | TASO's speed-up | TENSAT's | TASO's seconds (until its best) | TENSAT's | ours: TASO's search | saturation | best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = row["published"]
        if paper:
            lines.append(
                f"| {row['graph']} | {paper['taso_speedup_percent']} % | {paper['tensat_speedup_percent']} % | "
                f"{paper['taso_total_s']} ({paper['taso_best_s']}) | {paper['tensat_s']} | "
                f"{gain(row, row['methods'].get('taso', {}).get('cost'))} | {gain(row, row['plain'])} | {gain(row, row['best'])} |"
            )
    return "\n".join(lines) + "\n"


def write_tables(out: Path) -> None:
    runs = read_runs(out)
    measured = {path.stem: json.loads(path.read_text()) for path in sorted((out / "measured").glob("*.measured"))}
    summary = summarise(runs, measured)
    store_runs(ROOM, runs, summary, KEPT)
    folder = data_path(ROOM)
    best = {graph: run["program"] for graph in GRAPHS if (run := best_run(runs, graph))}
    write_file(folder / "best.json.gz", gzip.compress(json.dumps(best).encode(), mtime=0))
    write_text(ROOT / "docs" / "rewrite.md", document(summary))
    print(f"wrote {folder} and {ROOT / 'docs' / 'rewrite.md'}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "rewrite")
    parser.add_argument("--graphs", default=",".join(GRAPHS))
    parser.add_argument("--methods", default=",".join(WAYS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is there")
    parser.add_argument("--no-measuring", action="store_true", help="only the simulated part")
    parser.add_argument("--ship", action="store_true", help="train the policy and write it as the one that is shipped")
    args = parser.parse_args()
    if args.ship:
        ship_checkpoint(pretrained(args.out), "rewrite", "python scripts/reproduce_rewrite.py --ship")
        return
    started = time.perf_counter()
    if not args.tables:
        seeds = tuple(int(seed) for seed in args.seeds.split(","))
        todo = jobs(args.graphs.split(","), args.methods.split(","), seeds, is_random)
        run_jobs(args.out, todo, lambda graph: RewriteProblem(graph, DEVICE), run_method)
        if not args.no_measuring:
            measure_all(args.out, args.graphs.split(","))
    write_tables(args.out)
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
