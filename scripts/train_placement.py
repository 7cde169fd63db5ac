#!/usr/bin/env python3
"""The learning experiment: PPO and MaskablePPO place three graphs, three seeds each, against random placements.

    python scripts/train_placement.py

trains what is missing under ``out/learning`` (a run that is there, of the same graph, cluster and op times, is not
repeated), then writes the curves and the
summary to ``envs_data/learning``, the figure and the table to ``docs``. Under half an hour on two cores.

Both algorithms are plain Stable-Baselines3 / sb3-contrib with ``MultiInputPolicy``, see ``graphopt_agents.ppo``.
MaskablePPO gets an action space of eight devices on a cluster of four, so that its mask matters. Random search gets
as many evaluations as an agent takes decisions (of which only those that change the placement are simulated).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
for folder in (ROOT, ROOT / "agents"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
from graphopt_agents.ppo import TRAINERS, Args  # noqa: E402

from graphopt_gym.envs.placement.problem import PlacementProblem  # noqa: E402
from graphopt_gym.files import write_file, write_text  # noqa: E402
from graphopt_gym.search.solve import solve  # noqa: E402

CLUSTER = "v100x4"
STEPS = {"bert_base": 250_000, "inception_v3_b32": 300_000, "rnnlm_2layer": 150_000}
SEEDS = (0, 1, 2)
PADDED_DEVICES = {"ppo": None, "maskable_ppo": 8}
SHOWN = {"ppo": "PPO", "maskable_ppo": "MaskablePPO"}
CURVE = ("steps", "wall_s", "mean_cost", "valid_share", "best_cost")


def run_agent(algorithm: str, graph: str, seed: int) -> dict[str, Any]:
    args = Args(
        graph=graph,
        cluster=CLUSTER,
        environment={"max_devices": PADDED_DEVICES[algorithm]},
        seed=seed,
        steps=STEPS[graph],
    )

    def show(row: dict[str, float]) -> None:
        print(
            f"\r{algorithm} {graph} seed {seed}: {row['steps']:>7.0f} of {args.steps} decisions, "
            f"{row['wall_s']:5.0f} s, mean {row['mean_cost']:.4f} s, best {row['best_cost']:.4f} s  ",
            end="",
            file=sys.stderr,
            flush=True,
        )

    result = TRAINERS[algorithm].train(args, progress=show)
    print(file=sys.stderr)
    outcome, likeliest = result.solution().outcome, result.trainer.likeliest().outcome
    return {
        "args": dataclasses.asdict(args),
        "steps": result.done,
        "wall_s": result.wall_s,
        "mean_cost": result.curve[-1]["mean_cost"],
        "valid_share": result.curve[-1]["valid_share"],
        "best_cost": outcome.cost if outcome.valid else None,
        "greedy_cost": likeliest.cost if likeliest.valid else None,
        "history": result.curve,
    }


def run_random(graph: str, seed: int) -> dict[str, Any]:
    """Mean and best of as many random placements as an agent takes decisions."""
    problem = PlacementProblem(graph, CLUSTER)
    rng = np.random.default_rng(seed)
    total, best, valid, done, budget = 0.0, np.inf, 0, 0, STEPS[graph]
    while done < budget:
        count = min(2048, budget - done)
        costs, fits = problem.costs(rng.integers(0, problem.num_devices, (count, problem.num_groups), dtype=np.int32))
        total, valid, done = total + costs.sum(), valid + int(fits.sum()), done + count
        best = min(best, costs[fits].min(initial=np.inf))
        print(f"\rrandom {graph} seed {seed}: {done} of {budget} placements  ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        "steps": done,
        "mean_cost": total / done,
        "valid_share": valid / done,
        "best_cost": None if np.isinf(best) else best,
    }


def baselines(graph: str) -> dict[str, float | None]:
    problem = PlacementProblem(graph, CLUSTER)
    costs: dict[str, float | None] = {}
    for method in ("single", "expert"):
        outcome = solve(problem, method).outcome
        costs[method] = outcome.cost if outcome.valid else None
    return costs


def summarise(runs: dict[tuple[str, str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for graph in STEPS:
        random = [runs["random", graph, seed] for seed in SEEDS]
        row: dict[str, Any] = {"graph": graph, "cluster": CLUSTER, "evaluations": STEPS[graph]}
        row["depends_on"] = runs["ppo", graph, SEEDS[0]]["depends_on"]
        row |= {f"{method}_cost_s": cost for method, cost in baselines(graph).items()}
        row["random_mean_s"] = float(np.mean([run["mean_cost"] for run in random]))
        row["random_best_s"] = min(run["best_cost"] for run in random)
        for algorithm in SHOWN:
            mine = [runs[algorithm, graph, seed] for seed in SEEDS]
            row[f"{algorithm}_mean_s"] = [run["mean_cost"] for run in mine]
            row[f"{algorithm}_best_s"] = [run["best_cost"] for run in mine]
            row[f"{algorithm}_greedy_s"] = [run["greedy_cost"] for run in mine]
            row[f"{algorithm}_wall_s"] = [round(run["wall_s"], 1) for run in mine]
        rows.append(row)
    return rows


def write_curves(runs: dict[tuple[str, str, int], dict[str, Any]], folder: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("graph", "algorithm", "seed", *CURVE))
    for (algorithm, graph, seed), run in runs.items():
        for row in run.get("history", ()):
            numbers = [int(row["steps"]), *(f"{row[name]:.6g}" for name in CURVE[1:])]
            writer.writerow((graph, algorithm, seed, *numbers))
    write_text(folder / "curves.csv", text.getvalue())


def draw(runs: dict[tuple[str, str, int], dict[str, Any]], rows: list[dict[str, Any]], path: Path) -> None:
    """Mean final cost of each update's episodes, three seeds, against random, one device and the expert."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5))
    FigureCanvasAgg(figure)
    handles: dict[str, Any] = {}
    for column, row in enumerate(rows):
        axis = figure.add_subplot(1, len(rows), column + 1)
        for colour, (algorithm, name) in zip(("#4c78a8", "#f28e2b"), SHOWN.items(), strict=True):
            for seed in SEEDS:
                history = runs[algorithm, row["graph"], seed]["history"]
                steps = [entry["steps"] / 1000 for entry in history]
                axis.plot(steps, [entry["mean_cost"] for entry in history], color=colour, linewidth=1.2, alpha=0.8,
                          label=name if seed == SEEDS[0] else None)  # fmt: skip
        lines = (
            ("random, mean", row["random_mean_s"], "#777777", "--"),
            ("random, best of as many", row["random_best_s"], "#777777", ":"),
            ("one device", row["single_cost_s"], "#d62728", "-."),
            ("human expert", row["expert_cost_s"], "#2ca02c", "-."),
        )
        for name, cost, colour, style in lines:
            if cost is not None:
                axis.axhline(cost, color=colour, linestyle=style, linewidth=1.3, label=name)
        axis.set_title(f"{row['graph']} on {row['cluster']}", fontsize=13)
        axis.set_xlabel("decisions (thousand)", fontsize=11)
        axis.set_ylim(0, max(row["random_mean_s"], 0) * 1.15)
        axis.spines[["top", "right"]].set_visible(False)
        if column == 0:
            axis.set_ylabel("mean step time of a rollout's placements (s)", fontsize=11)
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1]))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    write_file(path, picture.getvalue(), make_folders=True)


def document(rows: list[dict[str, Any]]) -> str:
    def number(cost: float | None) -> str:
        return "does not fit" if cost is None else f"{cost:.4f}"

    def three(costs: list[float | None]) -> str:
        return " / ".join(number(cost) for cost in costs)

    lines = [
        "# Learning to place: PPO and MaskablePPO against random placements",
        "",
        "Simulated step times in seconds on `" + CLUSTER + "`, seeds " + ", ".join(map(str, SEEDS)) + ". Written by",
        "",
        "    python scripts/train_placement.py",
        "",
        "`mean`: of the final placements of the last rollout (16 episodes, sampled actions; a placement that does not",
        "fit in memory counts with its penalty). `best`: the best placement of the run. Random search has as many",
        "evaluations as an agent takes decisions; its best is the best over all seeds.",
        "",
        "| Graph | Decisions | Random, mean | Random, best | One device | Human expert |"
        " PPO, mean | PPO, best | MaskablePPO, mean | MaskablePPO, best |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["graph"], f"{row['evaluations']:,}", number(row["random_mean_s"]), number(row["random_best_s"]),
            number(row["single_cost_s"]), number(row["expert_cost_s"]),
        ]  # fmt: skip
        for algorithm in SHOWN:
            cells += [three(row[f"{algorithm}_mean_s"]), three(row[f"{algorithm}_best_s"])]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "![Learning curves](learning.png)", "", "The curves: `envs_data/learning/curves.csv`.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "out" / "learning", help="where finished runs are kept")
    runs_folder = parser.parse_args().runs
    runs_folder.mkdir(parents=True, exist_ok=True)
    runs: dict[tuple[str, str, int], dict[str, Any]] = {}
    depends_on = {graph: PlacementProblem(graph, CLUSTER).fingerprints() | {"steps": STEPS[graph]} for graph in STEPS}
    for seed in SEEDS:
        for graph in STEPS:
            for algorithm in (*SHOWN, "random"):
                path = runs_folder / f"{graph}-{algorithm}-{seed}.json"
                run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                if run.get("depends_on") != depends_on[graph]:
                    run = run_random(graph, seed) if algorithm == "random" else run_agent(algorithm, graph, seed)
                    run["depends_on"] = depends_on[graph]
                    write_text(path, json.dumps(run) + "\n")
                runs[algorithm, graph, seed] = run
    folder = ROOT / "envs_data" / "learning"
    folder.mkdir(parents=True, exist_ok=True)
    rows = summarise(runs)
    settings = {
        key: value
        for key, value in runs["ppo", next(iter(STEPS)), 0]["args"].items()
        if key not in ("algorithm", "graph", "seed", "steps", "max_devices")
    }
    write_curves(runs, folder)
    write_text(folder / "summary.json", json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    draw(runs, rows, ROOT / "docs" / "learning.png")
    text = document(rows)
    write_text(ROOT / "docs" / "learning.md", text)
    print(text)


if __name__ == "__main__":
    main()
