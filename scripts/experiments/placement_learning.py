"""PPO and MaskablePPO place three graphs, against random placements, by order and granularity; an hour, resumable.

Three seeds each. Both are plain Stable-Baselines3 / sb3-contrib with ``MultiInputPolicy``. MaskablePPO gets an action
space of eight devices on a cluster of four, so that its mask matters. Random search gets as many evaluations as an
agent takes decisions (of which only those that change the placement are simulated).
"""

import csv
import io
import itertools
import time

import numpy as np

from experiments.runner import Entry, Experiment
from experiments.runner.curves import panels, save
from experiments.runner.rules import PAPERS, arguments, cases, graph_of, rules_of
from experiments.runner.tables import stored_summary
from graphopt_gym.agent import find_agent
from graphopt_gym.files import write_text
from graphopt_gym.search.solve import solve

CLUSTER = "v100x4"
STEPS = {"bert_base": 250_000, "inception_v3_b32": 300_000, "rnnlm_2layer": 150_000}
RULES = [PAPERS, ("stream", "phase")]
AGENTS = {"ppo": Entry("PPO"), "maskable_ppo": Entry("MaskablePPO")}
PADDED_DEVICES = {"ppo": None, "maskable_ppo": 8}
CURVE = ("steps", "wall_s", "mean_cost", "valid_share", "best_cost")


def run(name, problem, seed):
    """What the file of a run holds; of an agent, its history has a row an update."""
    row = run_random(problem, seed) if name == "random" else run_agent(name, problem, seed)
    shared = {"unit": "s", "cost": row["best_cost"], "valid": row["best_cost"] is not None, "evaluations": row["steps"]}
    return {**shared, **row, "fingerprints": problem.fingerprints(), "costs_version": problem.costs_version}


def run_agent(algorithm, problem, seed):
    trainer, graph = find_agent(algorithm).load(), problem.graph.name
    given = {**arguments_of(problem), "max_devices": PADDED_DEVICES[algorithm]}
    args = trainer.args_from({**given, "steps": STEPS[graph], "seed": seed})
    result = trainer.train(args)
    if result.interrupted:
        raise KeyboardInterrupt
    last, best, greedy = result.curve[-1], result.solution().outcome, result.likeliest().outcome
    return {
        "args": args.json(),
        "steps": result.done,
        "wall_s": result.wall_s,
        "mean_cost": last["mean_cost"],
        "valid_share": last["valid_share"],
        "best_cost": best.cost if best.valid else None,
        "greedy_cost": greedy.cost if greedy.valid else None,
        "history": result.curve,
    }


def arguments_of(problem):
    return {"graph": problem.graph.name, "cluster": CLUSTER, "order": problem.order, "grouping": problem.grouping}


def run_random(problem, seed):
    """Mean and best of as many random placements as an agent takes decisions."""
    rng, started = np.random.default_rng(seed), time.perf_counter()
    total, best, valid, done = 0.0, np.inf, 0, 0
    budget = STEPS[problem.graph.name]
    while done < budget:
        count = min(2048, budget - done)
        costs, fits = problem.costs(rng.integers(0, problem.num_devices, (count, problem.num_groups), dtype=np.int32))
        total, valid, done = total + costs.sum(), valid + int(fits.sum()), done + count
        best = min(best, costs[fits].min(initial=np.inf))
    found = {"mean_cost": total / done, "valid_share": valid / done, "best_cost": None if np.isinf(best) else best}
    return {"steps": done, "wall_s": time.perf_counter() - started, **found}


def summarise(runs, out):
    if not runs:
        return stored_summary("learning")
    rows = []
    for case in (case for case in EXPERIMENT.graphs if all(runs.of(case, name) for name in EXPERIMENT.entries)):
        random, first = runs.of(case, "random"), runs.of(case, "ppo")[0]
        graph, (order, grouping) = graph_of(case), rules_of(case)
        steps = STEPS[graph]
        row = {"case": case, "graph": graph, "cluster": CLUSTER, "order": order, "grouping": grouping}
        row |= {"evaluations": steps, "depends_on": first["fingerprints"] | {"steps": steps}}
        for method in ("single", "expert"):
            outcome = solve(EXPERIMENT.problem(case), method).outcome
            row[f"{method}_cost_s"] = outcome.cost if outcome.valid else None
        row["random_mean_s"] = float(np.mean([run["mean_cost"] for run in random]))
        row["random_best_s"] = min(run["best_cost"] for run in random)
        for algorithm in AGENTS:
            mine = runs.of(case, algorithm)
            row |= {
                f"{algorithm}_{name}_s": [run[f"{name}_cost"] for run in mine] for name in ("mean", "best", "greedy")
            }
            row[f"{algorithm}_wall_s"] = [round(run["wall_s"], 1) for run in mine]
        rows.append(row)
    args = next((run["args"] for job, run in runs.items() if job[1] == "ppo"), {})
    left_out = ("graph", "seed", "steps", "environment", "order", "grouping")
    return {"settings": {key: value for key, value in args.items() if key not in left_out}, "rows": rows}


def store(room, runs):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "algorithm", "seed", *CURVE))
    for seed, case, algorithm in itertools.product(EXPERIMENT.seeds, EXPERIMENT.graphs, AGENTS):
        for row in runs.get((case, algorithm, seed), {"history": ()})["history"]:
            writer.writerow((case, algorithm, seed, int(row["steps"]), *(f"{row[name]:.6g}" for name in CURVE[1:])))
    write_text(room / "curves.csv", text.getvalue())


def draw(runs, summary, folder):
    """Mean final cost of each update's episodes, three seeds, against random, one device and the expert."""
    with (folder.parent / "envs_data" / "learning" / "curves.csv").open(encoding="utf-8", newline="") as lines:
        curves = list(csv.DictReader(lines))
    figure, axes = panels(len(summary["rows"]) or 1, len(STEPS), (5, 5))
    handles = {}
    for axis, row in zip(axes, summary["rows"]):
        for colour, (algorithm, entry) in zip(("#4c78a8", "#f28e2b"), AGENTS.items(), strict=True):
            for seed in map(str, EXPERIMENT.seeds):
                key = (row["case"], algorithm, seed)
                mine = [one for one in curves if (one["case"], one["algorithm"], one["seed"]) == key]
                steps, costs = ([float(one[name]) for one in mine] for name in ("steps", "mean_cost"))
                label = entry.label if seed == "0" else None
                axis.plot(np.array(steps) / 1000, costs, color=colour, linewidth=1.2, alpha=0.8, label=label)
        for label, name, colour, style in (
            ("random, mean", "random_mean_s", "#777777", "--"),
            ("random, best of as many", "random_best_s", "#777777", ":"),
            ("one device", "single_cost_s", "#d62728", "-."),
            ("human expert", "expert_cost_s", "#2ca02c", "-."),
        ):
            if row[name] is not None:
                axis.axhline(row[name], color=colour, linestyle=style, linewidth=1.3, label=label)
        axis.set_title(f"{row['graph']}: {row['order']}, {row['grouping']}", fontsize=13)
        axis.set_xlabel("decisions (thousand)", fontsize=11)
        axis.set_ylim(0, row["random_mean_s"] * 1.15)
        axis.spines[["top", "right"]].set_visible(False)
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1]))
    axes[0].set_ylabel("mean step time of a rollout's placements (s)", fontsize=11)
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    save(figure, folder / "learning.png", 110)


EXPERIMENT = Experiment(
    room="learning",
    env="Placement-v0",
    arguments=lambda case: arguments(case, CLUSTER),
    graphs=cases(tuple(STEPS), RULES),
    entries={**AGENTS, "random": Entry("random")},
    run=run,
    kept=(),
    summarise=summarise,
    store=store,
    draw=draw,
)
