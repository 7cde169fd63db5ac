"""MaskablePPO schedules gangs of three workloads, against first come, first served and a random policy; resumable.

Three seeds, plain sb3-contrib with ``MultiInputPolicy``. The random policy takes legal actions with equal chances in
the same environment, for as many steps.
"""

import csv
import io
import itertools
import time

import gymnasium as gym
import numpy as np

from experiments.runner import Entry, Experiment
from experiments.runner.curves import panels, save
from experiments.runner.tables import stored_summary
from graphopt_gym.agent import find_agent
from graphopt_gym.envs.gang.bounds import least_cost
from graphopt_gym.files import write_text
from graphopt_gym.search.solve import solve
from graphopt_gym.simulator.gang.workloads import load_workload

STEPS = dict.fromkeys(("tenants_crossing", "inception_v3_pipelines", "amoebanet_pipelines"), 40_000)
ENTRIES = {"maskable_ppo": Entry("MaskablePPO"), "random": Entry("random policy")}
CURVE = ("steps", "wall_s", "mean_cost", "valid_share", "best_cost")
RULES = ("fifo", "heuristics")


def arguments(graph):
    return {"graph": graph, "cluster": load_workload(graph).machine, "place": False}


def run(name, problem, seed):
    """What the file of a run holds; of an agent, its history has a row an update."""
    row = run_random(problem, seed) if name == "random" else run_agent(problem, seed)
    shared = {"unit": "s", "cost": row["best_cost"], "valid": row["best_cost"] is not None, "evaluations": row["steps"]}
    return {**shared, **row, "fingerprints": problem.fingerprints()}


def run_agent(problem, seed):
    trainer, graph = find_agent("maskable_ppo").load(), problem.graph.name
    given = arguments(graph)
    args = trainer.args_from({
        "env": "GangScheduling-v0", "graph": graph, "cluster": given.pop("cluster"), "steps": STEPS[graph],
        "seed": seed, "environment": {"place": given["place"]}, "num_envs": 8,
    })  # fmt: skip
    result = trainer.train(args)
    if result.interrupted:
        raise KeyboardInterrupt
    last, best, greedy = result.curve[-1], result.solution().outcome, result.likeliest().outcome
    return {
        "args": args.json(), "steps": result.done, "wall_s": result.wall_s, "mean_cost": last["mean_cost"],
        "valid_share": last["valid_share"], "best_cost": best.cost if best.valid else None,
        "greedy_cost": greedy.cost if greedy.valid else None, "history": result.curve,
    }  # fmt: skip


def run_random(problem, seed):
    """Mean and best of the episodes that fit in as many steps of random legal actions."""
    rng, started, costs, done = np.random.default_rng(seed), time.perf_counter(), [], 0
    env = gym.make("GangScheduling-v0", graph=problem, info="light", disable_env_checker=True).unwrapped
    while done < STEPS[problem.graph.name]:
        env.reset(seed=int(rng.integers(2**31)))
        ended = False
        while not ended:
            legal = np.flatnonzero(env.action_masks())
            _, _, ended, _, info = env.step(int(legal[rng.integers(len(legal))]))
            done += 1
        costs.append(float(info["cost"]) if info["valid"] else np.nan)
    valid = float(np.isfinite(costs).mean())
    found = {"mean_cost": float(np.nanmean(costs)), "best_cost": float(np.nanmin(costs)), "valid_share": valid}
    return {"steps": done, "episodes": len(costs), "wall_s": time.perf_counter() - started, **found}


def summarise(runs, out):
    if not runs:
        return stored_summary("gang_learning")
    rows = []
    for graph in (one for one in EXPERIMENT.graphs if all(runs.of(one, name) for name in ENTRIES)):
        problem = EXPERIMENT.problem(graph)
        random, agent = (runs.of(graph, name) for name in ("random", "maskable_ppo"))
        row = {"graph": graph, "cluster": problem.cluster_name, "steps": STEPS[graph], "bound": least_cost(problem)}
        row |= {f"{name}_cost": solve(problem, name).outcome.cost for name in RULES}
        row |= {
            "random_mean": float(np.mean([one["mean_cost"] for one in random])),
            "random_best": min(one["best_cost"] for one in random),
        }
        row |= {f"ppo_{name}": [one[f"{name}_cost"] for one in agent] for name in ("mean", "best", "greedy")}
        row["ppo_first_mean"] = [one["history"][0]["mean_cost"] for one in agent]
        row["ppo_wall_s"] = [round(one["wall_s"], 1) for one in agent]
        row["fingerprints"] = problem.fingerprints()
        rows.append(row)
    args = next((one["args"] for job, one in runs.items() if job[1] == "maskable_ppo"), {})
    left_out = ("graph", "cluster", "seed", "steps", "environment", "env")
    return {"settings": {key: value for key, value in args.items() if key not in left_out}, "rows": rows}


def store(room, runs):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("graph", "seed", *CURVE))
    for seed, graph in itertools.product(EXPERIMENT.seeds, EXPERIMENT.graphs):
        for row in runs.get((graph, "maskable_ppo", seed), {"history": ()})["history"]:
            values = (row[name] for name in CURVE[1:])
            writer.writerow((graph, seed, int(row["steps"]), *("" if one is None else f"{one:.6g}" for one in values)))
    write_text(room / "curves.csv", text.getvalue())


def draw(runs, summary, folder):
    """Mean cost of each update's episodes, three seeds, beside rules and the random policy."""
    with (folder.parent / "envs_data" / "gang_learning" / "curves.csv").open(encoding="utf-8", newline="") as lines:
        curves = list(csv.DictReader(lines))
    figure, axes = panels(len(summary["rows"]) or 1, len(STEPS), (5, 4.4))
    for axis, row in zip(axes, summary["rows"]):
        for seed in EXPERIMENT.seeds:
            mine = [one for one in curves if (one["graph"], one["seed"]) == (row["graph"], str(seed))]
            steps, costs = ([float(one[name]) for one in mine] for name in ("steps", "mean_cost"))
            label = "MaskablePPO, mean of an update" if seed == 0 else None
            axis.plot(np.array(steps) / 1e3, np.array(costs) * 1e3, color="#f28e2b", linewidth=1.2, label=label)
        for label, name, colour, style in (
            ("random policy, mean", "random_mean", "#777777", "--"), ("FIFO", "fifo_cost", "black", ":"),
            ("best of all rules", "heuristics_cost", "#2ca02c", "-."), ("bound", "bound", "#d62728", "-"),
        ):  # fmt: skip
            axis.axhline(row[name] * 1e3, color=colour, linestyle=style, linewidth=1.2, label=label)
        axis.set_title(row["graph"], fontsize=12)
        axis.set_xlabel("steps (thousand)", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("step time, simulated (ms)", fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    save(figure, folder / "images" / "gang_learning.png", 80)


EXPERIMENT = Experiment(
    room="gang_learning",
    env="GangScheduling-v0",
    arguments=arguments,
    graphs=tuple(STEPS),
    entries=ENTRIES,
    run=run,
    kept=(),
    summarise=summarise,
    store=store,
    draw=draw,
)
