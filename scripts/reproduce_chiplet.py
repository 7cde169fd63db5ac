#!/usr/bin/env python3
# ruff: noqa: E501 - sentences of a document
"""The chiplet experiment: one policy and classical searches through the same solver, on the 36 chips of mcm36.

1. Every method on the sixteen test graphs and on a BERT of 2,142 ops, at equal evaluations and at equal seconds: the
   policy from scratch, pre-trained on the graphs of other families (as it is, and fine-tuned), random search,
   annealing, hill climbing and evolution, the compiler's heuristics.
2. Evaluations that fine-tuning needs to reach what learning from scratch ends with.
3. Without the solver: how many partitions that the policy draws are valid.

    python scripts/reproduce_chiplet.py              # what is missing, then the tables; can be interrupted
    python scripts/reproduce_chiplet.py --tables     # the tables of what is there
    python scripts/reproduce_chiplet.py --pretrain   # only the policies that are pre-trained
    python scripts/reproduce_chiplet.py --graphs bert_base_b1 --methods rl,annealing --seeds 0

Every run is one (graph, method, seed) and is kept as a file of its own under ``out/chiplet``; a run that is there, of
the same graph, package and op times, is not repeated, and several processes may share the work. The results, with
decisions and curves, go to ``envs_data/chiplet``, tables and curves to ``docs/chiplet.md``.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
for folder in (ROOT, ROOT / "agents", ROOT / "scripts"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
from experiment import (  # noqa: E402
    ALMOST,
    Busy,
    Job,
    Runs,
    best_known,
    calls_to_reach,
    claim,
    cost_after,
    draw_curves,
    geometric_mean,
    jobs,
    mean_cost,
    read_runs,
    reductions,
    run_jobs,
    saved,
    ship_checkpoint,
    store_runs,
    stored_runs,
)

from graphopt_gym.data import data_path  # noqa: E402
from graphopt_gym.envs.chiplet.bounds import lower_bound  # noqa: E402
from graphopt_gym.envs.chiplet.problem import ChipletProblem  # noqa: E402
from graphopt_gym.files import write_text  # noqa: E402
from graphopt_gym.graphs.zoo.registry import SPLITS  # noqa: E402
from graphopt_gym.problem import Problem, Solution  # noqa: E402
from graphopt_gym.search.solve import Evaluator, Method, solve  # noqa: E402

ROOM = "chiplet"  # of envs_data
PACKAGE = "mcm36"
BERT = "bert_primitive"
GRAPHS = (*SPLITS["inference_test"], BERT)
CALLS = 2_000  # evaluations of a run
SEEDS = (0, 1, 2)
SECONDS = {BERT: 20.0}  # of the runs that are compared at equal seconds
OTHER_SECONDS = 2.0
TUNING_CALLS = CALLS // 20
ZERO_SHOT_CALLS = 20
TUNING = {"samples": 10}
PRETRAINING: dict[str, Any] = {"updates": 800, "decay": True, "relaxed_updates": 1000, "checkpoint_every": 100}
PRETRAINING_PACKAGES = ("mcm36", "mcm16")
Run = Callable[[Evaluator, np.random.Generator], None]


def rl(**arguments: Any) -> Run:
    from graphopt_agents import chiplet

    return chiplet.method_run(**arguments)


def rl_paper(**arguments: Any) -> Run:
    from graphopt_agents import chiplet

    return chiplet.method_run(**{**chiplet.paper_arguments(), **arguments})


# name -> (what makes its run, or None for a method of the package; whether the seed matters)
METHODS: dict[str, tuple[Callable[[], Run] | None, bool]] = {
    "greedy": (None, False),
    "contiguous": (None, False),
    "rl": (rl, True),
    "random": (None, True),
    "annealing_random": (None, True),
    "evolution_random": (None, True),
    "hill_climbing_random": (None, True),
    "zero_shot": (None, True),
    "tuned": (None, True),
    "tuned_long": (None, True),
    "rl_starts": (lambda: rl(starts=True), True),
    "annealing": (None, True),
    "evolution": (None, True),
    "rl_paper": (rl_paper, True),
    "rl_no_search": (lambda: rl(mutants=0.0, elites=0), True),
    "rl_no_relaxed": (lambda: rl(relaxed=0.0), True),
    "rl_paper_no_solver": (lambda: rl_paper(solver=False), True),
    "rl_no_solver": (lambda: rl(solver=False, mutants=0.0, elites=0), True),
    "rl_seconds": (rl, True),
    "annealing_random_seconds": (None, True),
    "evolution_random_seconds": (None, True),
    "hill_climbing_random_seconds": (None, True),
}
PRETRAINED = ("zero_shot", "tuned", "tuned_long")
ABLATIONS = ("rl_paper", "rl_no_search", "rl_no_relaxed", "rl_paper_no_solver", "rl_no_solver")
ABLATED = ("densenet63_b2", "gnmt_l2_t2_b1", "bert_base_b1", "gmlp_tiny_b1", "unet_w32_b1")
NO_SOLVER = ("rl_paper_no_solver", "rl_no_solver")


def pretrained(out: Path, seed: int) -> Path:
    """The folder of a network that was trained on the training graphs; trains it where it is missing."""
    from graphopt_agents.chiplet import Args, train

    folder = out / "pretrained" / str(seed)
    finished = folder / "finished"
    if finished.exists():
        return folder
    pairs = [(graph, package) for package in PRETRAINING_PACKAGES for graph in SPLITS["inference_train"]]
    graphs, packages = zip(*pairs, strict=True)
    args = Args(graphs=graphs, clusters=packages, seed=seed, **PRETRAINING)
    with claim(folder.with_suffix(".claim")):
        result = train(args, folder, resume=(folder / "checkpoint.pt").exists())
        if result.interrupted:
            raise KeyboardInterrupt
        write_text(finished, f"{result.evaluations} evaluations, {result.wall_s:.1f} s\n")
    print(f"pre-trained, seed {seed}: {result.evaluations:,} evaluations, {result.wall_s:.1f} s", file=sys.stderr)
    return folder


def run_method(out: Path, problem: Problem, job: Job) -> Solution:
    graph, name, seed = job
    make, _ = METHODS[name]
    calls, seconds = CALLS, None
    method: str | Method = name
    if name in PRETRAINED:
        from graphopt_agents import chiplet

        folder = pretrained(out, seed)
        if name == "zero_shot":
            run, calls = chiplet.zero_shot_run(folder), ZERO_SHOT_CALLS
        else:
            run = chiplet.method_run(folder, **TUNING)
            calls = TUNING_CALLS if name == "tuned" else CALLS
        method = Method(name, run, "", "", random=True)
    elif make is not None:
        method = Method(name, make(), "", "", random=True)
    if name in NO_SOLVER:
        assert make is not None
        return count_valid(problem, name, make(), out / graph / f"{name}-{seed}.valid", seed)
    if name.endswith("_seconds"):
        calls, seconds = 10**9, SECONDS.get(graph, OTHER_SECONDS)
        if make is None:
            method = name.removesuffix("_seconds")
    return solve(problem, method, budget=calls, seconds=seconds, seed=seed)


def count_valid(problem: Problem, name: str, run: Run, path: Path, seed: int) -> Solution:
    """A run that writes beside itself what share of its partitions was valid."""
    counts = [0, 0]

    def counted(evaluator: Evaluator, rng: np.random.Generator) -> None:
        price = evaluator.price

        def count(decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            costs, valid = price(decisions)
            counts[0] += int(valid.sum())
            counts[1] += len(valid)
            return costs, valid

        evaluator.price = count  # type: ignore[method-assign]
        run(evaluator, rng)

    solution = solve(problem, Method(name, counted, "", "", random=True), budget=CALLS, seed=seed)
    write_text(path, f"{counts[0] / counts[1]}\n")
    return solution


def is_made(graph: str, name: str) -> bool:
    """Whether a method runs on a graph."""
    return name not in ABLATIONS or graph in ABLATED or (name in NO_SOLVER and graph == BERT)


# ---- tables

SHOWN = {
    "greedy": "greedy",
    "contiguous": "contiguous",
    "random": "random",
    "annealing_random": "annealing",
    "evolution_random": "evolution",
    "hill_climbing_random": "hill climbing",
    "rl": "RL",
    "rl_starts": "RL from heuristics",
    "annealing": "annealing from heuristics",
    "evolution": "evolution from heuristics",
    "zero_shot": f"zero-shot, {ZERO_SHOT_CALLS}",
    "tuned": f"fine-tuned, {TUNING_CALLS}",
    "tuned_long": f"fine-tuned, {CALLS:,}",
    "rl_paper": "RL, the paper's",
    "rl_no_search": "RL without search",
    "rl_no_relaxed": "RL without the relaxed strain",
    "rl_paper_no_solver": "RL, the paper's, no solver",
    "rl_no_solver": "RL, no solver",
    "rl_seconds": "RL",
    "annealing_random_seconds": "annealing",
    "evolution_random_seconds": "evolution",
    "hill_climbing_random_seconds": "hill climbing",
}
NEAR_OPTIMUM = 0.02
MILESTONES = (20, 50, 100, 200, 500, 1_000, 2_000)
CURVES = {
    "rl": ("RL from scratch", "C0"),
    "tuned_long": ("RL, pre-trained", "C2"),
    "random": ("random", "C7"),
    "annealing_random": ("annealing", "C1"),
    "evolution_random": ("evolution", "C3"),
    "hill_climbing_random": ("hill climbing", "C4"),
}


def gain(rows: list[dict[str, Any]], method: str, baseline: str) -> float | None:
    """Throughput of a method over a baseline's, minus 1: over the graphs where both have something valid in every seed."""
    reduction = reductions(rows, method, baseline)["reduction"]
    return None if reduction is None else 1 / (1 - reduction) - 1


def to_reach(runs: Runs, graph: str) -> dict[str, Any]:
    """Evaluations until learning from scratch and fine-tuning were at what learning from scratch ends with; means over
    seeds, None where a seed of fine-tuning never was."""
    scratch: list[Any] = []
    tuned: list[Any] = []
    for seed in SEEDS:
        mine, theirs = runs.get((graph, "tuned_long", seed)), runs.get((graph, "rl", seed))
        if not mine or not theirs or not theirs["valid"]:
            continue
        target = theirs["cost"] * (1 + ALMOST)
        scratch.append(calls_to_reach(theirs, target))
        tuned.append(calls_to_reach(mine, target))
    if not scratch:
        return {"scratch": None, "tuned": None}
    return {
        "scratch": float(np.mean(scratch)),
        "tuned": None if None in tuned else float(np.mean(tuned)),
    }


def by_evaluations(runs: Runs) -> dict[str, dict[str, dict[str, Any]]]:
    """For methods and numbers of evaluations: on how many graphs the mean over seeds is within NEAR_OPTIMUM of the best
    known, on how many a seed had nothing valid, and the geometric mean of the period to the best known of the others."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name in CURVES:
        table[name] = {}
        for calls in MILESTONES:
            ratios = []
            for graph in GRAPHS:
                costs = [cost_after(run, calls) for (g, m, _), run in runs.items() if (g, m) == (graph, name)]
                if costs:
                    ratios.append(float(np.mean(costs)) / best_known(runs, graph))
            known = [ratio for ratio in ratios if np.isfinite(ratio)]
            table[name][str(calls)] = {
                "near": sum(ratio <= 1 + NEAR_OPTIMUM for ratio in ratios),
                "none": len(ratios) - len(known),
                "ratio": geometric_mean(known),
            }
    return table


AGAINST = [
    *((method, baseline) for method in ("rl", "zero_shot", "tuned", "tuned_long") for baseline in (
        "random", "annealing_random", "evolution_random", "hill_climbing_random", "greedy", "contiguous")),
    ("rl_starts", "contiguous"),
    ("rl_starts", "annealing"),
    ("rl_starts", "evolution"),
    ("annealing", "contiguous"),
    ("evolution", "contiguous"),
    ("tuned", "rl"),
    ("tuned_long", "rl"),
    ("rl", "rl_paper"),
    ("rl", "rl_no_search"),
    ("rl", "rl_no_relaxed"),
    ("rl_seconds", "annealing_random_seconds"),
    ("rl_seconds", "evolution_random_seconds"),
    ("rl_seconds", "hill_climbing_random_seconds"),
    ("rl", "best_known"),
    ("rl_starts", "best_known"),
    ("contiguous", "best_known"),
]  # fmt: skip


def summarise(runs: Runs) -> dict[str, Any]:
    names = [name for name in METHODS if any(method == name for _, method, _ in runs)]
    rows = []
    for graph in GRAPHS:
        problem = ChipletProblem(graph, PACKAGE)
        row: dict[str, Any] = {"graph": graph, "ops": problem.num_ops, "bound": lower_bound(problem)}
        row |= {name: mean_cost(runs, graph, name) for name in names}
        row["best_known"] = best_known(runs, graph)
        row["optimal"] = row["best_known"] <= row["bound"] * (1 + 1e-9)
        row["to_reach"] = to_reach(runs, graph)
        shares = {
            name: [run["valid_share"] for (g, m, _), run in runs.items() if (g, m) == (graph, name)]
            for name in NO_SOLVER
        }
        row["valid_share"] = {name: float(np.mean(share)) for name, share in shares.items() if share}
        rows.append(row)
    against = [
        {
            **reductions(rows, *pair),
            "gain": gain(rows, *pair),
            "bert": gain([row for row in rows if row["graph"] == BERT], *pair),
        }
        for pair in AGAINST
        if all(any(row.get(name) is not None for row in rows) for name in pair)
    ]
    known = [row for row in rows if row["optimal"]]
    near = {
        name: sum(bool(row.get(name)) and row[name] <= row["bound"] * (1 + NEAR_OPTIMUM) for row in known)
        for name in ("rl", "rl_starts", "tuned", "tuned_long", "contiguous", "annealing_random", "random")
        if name in names
    }
    published = {
        row["quantity"]: float(row["value"])
        for row in csv.DictReader(data_path("published", "mcm_headlines.csv").open())
    }
    seeds = {name: len({seed for _, method, seed in runs if method == name}) for name in names}
    return {
        "calls": CALLS,
        "package": PACKAGE,
        "seeds": seeds,
        "rows": rows,
        "against": against,
        "optimum_known": len(known),
        "near_optimum": near,
        "by_evaluations": by_evaluations(runs),
        "published": published,
    }


def document(summary: dict[str, Any]) -> str:
    rows, there = summary["rows"], summary["seeds"]

    def micro(value: float | None) -> str:
        return "" if value is None else f"{value * 1e6:,.1f}" if np.isfinite(value) else "none"

    def table(names: list[str], also: str | None = None) -> list[str]:
        names = [name for name in names if name in there]
        shown = [row for row in rows if any(row[name] is not None for name in names)]
        names = [*([also] if also else []), *names]
        lines = [
            "| graph | ops | " + " | ".join(SHOWN[name] for name in names) + " | best known | bound |",
            "|---|---|" + "---|" * (len(names) + 2),
        ]
        for row in shown:
            least = min((row[name] for name in names if row[name] is not None), default=np.inf)
            cells = [
                f"**{micro(row[name])}**" if row[name] is not None and row[name] <= least * (1 + ALMOST) and
                np.isfinite(least) else micro(row[name])
                for name in names
            ]  # fmt: skip
            known = "optimal" if row["optimal"] else micro(row["bound"])
            lines.append(
                f"| {row['graph']} | {row['ops']} | {' | '.join(cells)} | {micro(row['best_known'])} | {known} |"
            )
        return lines

    def gains(methods: tuple[str, ...], baselines: tuple[str, ...] | None = None) -> list[str]:
        lines = [
            "| method | over | graphs | won | lost | nothing valid (method / other) | throughput | on BERT |",
            "|---|---|---|---|---|---|---|---|",
        ]
        shown = {**SHOWN, "best_known": "best known"}
        for entry in summary["against"]:
            if entry["method"] in methods and (baselines is None or entry["against"] in baselines):
                cells = ["" if entry[key] is None else f"{entry[key]:+.1%}" for key in ("gain", "bert")]
                lines.append(
                    f"| {shown[entry['method']]} | {shown[entry['against']]} | {entry['rows']} | {entry['wins']} | "
                    f"{entry['losses']} | {entry['out_of_memory']} / {entry['baseline_out_of_memory']} | "
                    f"{' | '.join(cells)} |"
                )
        return lines

    published = summary["published"]
    seconds = f"{OTHER_SECONDS:.0f} s, {SECONDS[BERT]:.0f} s for the large BERT"
    near = ", ".join(f"{SHOWN[name]} {count}" for name, count in summary["near_optimum"].items())
    lines = [
        "# Chiplet partition: a policy and searches through one solver",
        "",
        "Written by `graphopt reproduce chiplet` (`python scripts/reproduce_chiplet.py`); the runs, with decisions and",
        "curves, are in `envs_data/chiplet/`. Periods of the full pipeline are **simulated**, in microseconds: the slowest",
        f"chip or link of `{summary['package']}`, 36 chips on a one-directional ring, memory kept to. Its rates are chosen:",
        f"the paper gives none. Each cell is the mean over seeds of the best partition in {summary['calls']:,} evaluations",
        "(greedy and contiguous use one, zero-shot and fine-tuning what is named). *None*: a seed found no partition that",
        "fits the memory. Bold: the best of the row. *Optimal*: the best known reaches the bound that is proved for",
        "every valid partition (`envs/chiplet/bounds.py`).",
        "",
        "The policy was pre-trained on the 66 training graphs (families of which none is here) on "
        f"{' and '.join(PRETRAINING_PACKAGES)},",
        f"{PRETRAINING['updates']:,} updates, one network a seed. All of RL, annealing, evolution and hill climbing begin with",
        "nothing but what *from heuristics* names; all go through the same corrector.",
        "",
        f"Seeds: {', '.join(f'{SHOWN[name]} {count}' for name, count in there.items() if not name.endswith('_seconds'))}.",
        "",
        f"## At equal evaluations ({summary['calls']:,})",
        "",
        *table(
            ["rl", "random", "annealing_random", "evolution_random", "hill_climbing_random", "greedy", "contiguous"]
        ),
        "",
        "*Contiguous* cuts the topological order by dynamic programming, optimal where every op follows the one before.",
        "On networks that are nearly chains little is left to anyone else.",
        "",
        "Throughput (geometric mean of the ratio, over the graphs where both found something; a graph is won or lost",
        f"where they differ by more than {ALMOST:.2%}):",
        "",
        *gains(
            ("rl",),
            (
                "random",
                "annealing_random",
                "evolution_random",
                "hill_climbing_random",
                "greedy",
                "contiguous",
                "best_known",
            ),
        ),
        "",
        "Published, on BERT of 2,138 ops (Xie et al., MLSys 2022; hardware and budget are not public): RL over random search"
        f" +{published['bert_throughput_gain_rl_over_random_search']} %, over simulated annealing"
        f" +{published['bert_throughput_gain_rl_over_simulated_annealing']} %.",
        "",
        f"Of the {summary['optimum_known']} graphs whose optimum is known, within {NEAR_OPTIMUM:.0%} of it (mean over seeds): {near}.",
        "",
        f"Most of these graphs are small enough that {summary['calls']:,} evaluations bring nearly every method to the best",
        f"known. What fewer bring: graphs of {len(rows)} within {NEAR_OPTIMUM:.0%} of the best known (graphs on which a seed had",
        "nothing valid yet), and the period to the best known on the others, geometric mean:",
        "",
        "| evaluations | " + " | ".join(label for label, _ in CURVES.values()) + " |",
        "|---|" + "---|" * len(CURVES),
        *(
            f"| {calls:,} | "
            + " | ".join(
                f"{cell['near']} ({cell['none']}), {cell['ratio']:.2f}" if cell["ratio"] else ""
                for cell in (summary["by_evaluations"][name][str(calls)] for name in CURVES)
            )
            + " |"
            for calls in MILESTONES
        ),
        "",
        "![period against evaluations](images/chiplet_curves.png)",
        "",
        "## At equal seconds",
        "",
        f"{seconds}, on a machine that was busy with two such runs at a time.",
        "",
        *table(["rl_seconds", "annealing_random_seconds", "evolution_random_seconds", "hill_climbing_random_seconds"]),
        "",
        *gains(("rl_seconds",)),
        "",
        "## From heuristics",
        "",
        "The same, but the first partitions are those of greedy and contiguous.",
        "",
        *table(["rl_starts", "annealing", "evolution", "contiguous"]),
        "",
        *gains(("rl_starts", "annealing", "evolution", "contiguous")),
        "",
        "## Pre-trained",
        "",
        *table(["zero_shot", "tuned", "tuned_long", "rl", "annealing_random", "contiguous"]),
        "",
        *gains(("zero_shot", "tuned", "tuned_long")),
        "",
        f"Evaluations until a run was at what learning from scratch has after {summary['calls']:,} (within {ALMOST:.2%};",
        "means over seeds; *no*: a seed never was). The paper's 180 and 9 minutes of search are a factor of 20.",
        "",
        "| graph | from scratch | fine-tuned | factor |",
        "|---|---|---|---|",
    ]
    factors = []
    for row in rows:
        scratch, tuned = row["to_reach"]["scratch"], row["to_reach"]["tuned"]
        factor = "" if not scratch or not tuned else f"{scratch / tuned:.1f}"
        if scratch and tuned:
            factors.append(scratch / tuned)
        cells = ["no" if value is None else f"{value:,.0f}" for value in (scratch, tuned)]
        lines.append(f"| {row['graph']} | {' | '.join(cells)} | {factor} |")
    mean = geometric_mean(factors)
    lines += [
        "",
        f"Geometric mean of the factor where every seed reached it ({len(factors)} graphs): "
        f"{'' if mean is None else f'{mean:.1f}'}.",
        "",
        "## What the parts are worth",
        "",
        "*The paper's*: PPO on the throughput relative to greedy's, a head that does not know where in the graph an op is",
        "but by its features, no search. *Without search*: the policy draws every partition itself.",
        "",
        *table(["rl_paper", "rl_no_search", "rl_no_relaxed"], also="rl"),
        "",
        "## Without the solver",
        "",
        f"Share of {summary['calls']:,} partitions that are valid when the policy's draws are evaluated as they are (mean",
        "over seeds), and the best period:",
        "",
        "| graph | the paper's RL: valid | period | RL: valid | period |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if not row["valid_share"]:
            continue
        cells = []
        for name in NO_SOLVER:
            share = row["valid_share"].get(name)
            cells += ["" if share is None else f"{share:.2%}", micro(row.get(name))]
        lines.append(f"| {row['graph']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_tables(out: Path) -> None:
    runs = read_runs(out)
    if not runs:
        print(f"no runs under {out}: the tables of those that are stored", file=sys.stderr)
        runs = stored_runs(ROOM)
    for (graph, name, seed), run in runs.items():
        share = out / graph / f"{name}-{seed}.valid"
        if name in NO_SOLVER and share.exists():
            run["valid_share"] = float(share.read_text())
    summary = summarise(runs)
    store_runs(ROOM, runs, summary)
    draw_curves(
        runs,
        GRAPHS,
        CURVES,
        ROOT / "docs" / "images" / "chiplet_curves.png",
        columns=4,
        calls=CALLS,
        scale=lambda graph: 1e-6,
        labels=("evaluations", "period of the best partition so far, simulated (microseconds)"),
        line=("contiguous", "contiguous"),
    )
    write_text(ROOT / "docs" / "chiplet.md", document(summary))
    print(f"wrote {data_path(ROOM)} and {ROOT / 'docs' / 'chiplet.md'}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "chiplet")
    parser.add_argument("--graphs", default=",".join(GRAPHS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is there")
    parser.add_argument("--pretrain", action="store_true", help="only train the policies that are pre-trained")
    parser.add_argument("--ship", action="store_true", help="write the first of these as the policy that is shipped")
    args = parser.parse_args()
    seeds = tuple(int(seed) for seed in args.seeds.split(","))
    if args.ship:
        ship_checkpoint(pretrained(args.out, 0), "chiplet", "python scripts/reproduce_chiplet.py --ship")
        return
    if args.pretrain:
        for seed in seeds:
            try:
                pretrained(args.out, seed)
            except Busy:
                print(f"seed {seed} is being trained by another process", file=sys.stderr)
        return
    if not args.tables:
        run_jobs(
            args.out,
            jobs(args.graphs.split(","), args.methods.split(","), seeds, lambda name: METHODS[name][1], is_made),
            lambda graph: ChipletProblem(graph, PACKAGE),
            lambda problem, job, target: saved(run_method(args.out, problem, job), target),
        )
    write_tables(args.out)


if __name__ == "__main__":
    main()
