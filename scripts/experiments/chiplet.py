"""A policy and searches partition test networks over 36 chips through one solver; one to two hours, resumable.

Every method at equal evaluations and at equal seconds; the policy pre-trained on the graphs of other families; the
evaluations that fine-tuning needs to reach what learning from scratch ends with; what is valid without the solver.
"""

import numpy as np

from experiments.runner import Curves, Entry, Experiment, Pretraining
from experiments.runner.tables import ALMOST, compared, comparisons, geometric_mean, mean, published
from graphopt_gym.envs.chiplet.bounds import lower_bound
from graphopt_gym.graphs.zoo.registry import SPLITS

PACKAGE = "mcm36"
BERT = "bert_primitive"
GRAPHS = (*SPLITS["inference_test"], BERT)
CALLS = 2_000  # evaluations of a run
TUNING_CALLS, SHOTS = CALLS // 20, 20
PRETRAINING = {"updates": 800, "decay": True, "relaxed_updates": 1000, "checkpoint_every": 100}
PRETRAINING_PACKAGES = ("mcm36", "mcm16")
SECONDS = {graph: 20.0 if graph == BERT else 2.0 for graph in GRAPHS}  # of runs at equal seconds
ABLATED = ("densenet63_b2", "gnmt_l2_t2_b1", "bert_base_b1", "gmlp_tiny_b1", "unet_w32_b1")


def pretraining(graph, seed):
    """On the training graphs."""
    pairs = [(graph, package) for package in PRETRAINING_PACKAGES for graph in SPLITS["inference_train"]]
    return Pretraining.on(pairs, "chiplet", str(seed), seed=seed, **PRETRAINING)


RL = {"agent": "chiplet"}
TUNED = {**RL, "pretraining": pretraining, "options": {"samples": 10}}
ALONE = {"mutants": 0.0, "elites": 0}  # the policy draws every partition itself
UNSOLVED = {"graphs": (*ABLATED, BERT), "count_valid": True, **RL}
NO_SOLVER = {
    "rl_paper_no_solver": Entry("RL, the paper's, no solver", paper=True, options={"solver": False}, **UNSOLVED),
    "rl_no_solver": Entry("RL, no solver", options={"solver": False, **ALONE}, **UNSOLVED),
}
ENTRIES = {
    "greedy": Entry("greedy"), "contiguous": Entry("contiguous"), "rl": Entry("RL", **RL), "random": Entry("random"),
    "annealing_random": Entry("annealing"), "evolution_random": Entry("evolution"),
    "hill_climbing_random": Entry("hill climbing"),
    "zero_shot": Entry(f"zero-shot, {SHOTS}", zero_shot=True, budget=SHOTS, pretraining=pretraining, **RL),
    "tuned": Entry(f"fine-tuned, {TUNING_CALLS}", budget=TUNING_CALLS, **TUNED),
    "tuned_long": Entry(f"fine-tuned, {CALLS:,}", **TUNED),
    "rl_starts": Entry("RL from heuristics", options={"starts": True}, **RL),
    "annealing": Entry("annealing from heuristics"), "evolution": Entry("evolution from heuristics"),
    "rl_paper": Entry("RL, the paper's", paper=True, graphs=ABLATED, **RL),
    "rl_no_search": Entry("RL without search", options=ALONE, graphs=ABLATED, **RL),
    "rl_no_relaxed": Entry("RL without the relaxed strain", options={"relaxed": 0.0}, graphs=ABLATED, **RL),
    **NO_SOLVER,
    "rl_seconds": Entry("RL", seconds=SECONDS.get, **RL),
    "annealing_random_seconds": Entry("annealing", "annealing_random", seconds=SECONDS.get),
    "evolution_random_seconds": Entry("evolution", "evolution_random", seconds=SECONDS.get),
    "hill_climbing_random_seconds": Entry("hill climbing", "hill_climbing_random", seconds=SECONDS.get),
}  # fmt: skip
SEARCHES = ("random", "annealing_random", "evolution_random", "hill_climbing_random")
BASELINES = (*SEARCHES, "greedy", "contiguous")
COMPARED = [(method, baseline) for method in ("rl", "zero_shot", "tuned", "tuned_long") for baseline in BASELINES] + [
    ("rl_starts", "contiguous"), ("rl_starts", "annealing"), ("rl_starts", "evolution"), ("annealing", "contiguous"),
    ("evolution", "contiguous"), ("tuned", "rl"), ("tuned_long", "rl"), ("rl", "rl_paper"), ("rl", "rl_no_search"),
    ("rl", "rl_no_relaxed"), *(("rl_seconds", f"{name}_seconds") for name in SEARCHES[1:]), ("rl", "best_known"),
    ("rl_starts", "best_known"), ("contiguous", "best_known"),
]  # fmt: skip
COLOURS = dict(zip(("rl", "tuned_long", *SEARCHES), ("C0", "C2", "C7", "C1", "C3", "C4"), strict=True))
NEAR_OPTIMUM = 0.02
MILESTONES = (20, 50, 100, 200, 500, 1_000, 2_000)


def gains(rows, method, baseline):
    """A comparison, and the throughput of a method over a baseline's, minus 1, on all graphs and on BERT."""
    every, bert = compared(rows, method, baseline), compared(rows[-1:], method, baseline)
    cuts = {"gain": every["reduction"], "bert": bert["reduction"]}
    return {**every, **{name: None if cut is None else 1 / (1 - cut) - 1 for name, cut in cuts.items()}}


def to_reach(runs, graph):
    """Evaluations until learning from scratch and fine-tuning were at what learning from scratch ends with; means over
    seeds, None where a seed of fine-tuning never was."""
    pairs = runs.reached(graph, "tuned_long", "rl", ALMOST)
    return {"scratch": mean(rl[0] for rl, _ in pairs), "tuned": mean(tuned and tuned[0] for _, tuned in pairs)}


def factors_of(rows):
    """Of the evaluations to reach, where every seed reached it."""
    return [row["to_reach"]["scratch"] / row["to_reach"]["tuned"] for row in rows if row["to_reach"]["tuned"]]


def after(runs, name, calls):
    """On how many graphs the mean over seeds is within NEAR_OPTIMUM of the best known, on how many a seed had nothing
    valid, and the geometric mean of the period to the best known of the others."""
    costs = {graph: runs.mean_cost_after(graph, name, calls) for graph in GRAPHS}
    ratios = [cost / runs.best_known(graph) for graph, cost in costs.items() if cost is not None]
    known = [ratio for ratio in ratios if np.isfinite(ratio)]
    near = sum(ratio <= 1 + NEAR_OPTIMUM for ratio in ratios)
    return {"near": near, "none": len(ratios) - len(known), "ratio": geometric_mean(known)}


def summarise(runs, out):
    seeds, rows = EXPERIMENT.names_in(runs), []
    for graph in GRAPHS:
        problem = EXPERIMENT.problem(graph)
        row = {"graph": graph, "ops": problem.num_ops, "bound": lower_bound(problem)}
        row |= {name: runs.mean_cost(graph, name) for name in seeds}
        row["best_known"] = runs.best_known(graph)
        row["optimal"] = row["best_known"] <= row["bound"] * (1 + 1e-9)
        row["to_reach"] = to_reach(runs, graph)
        shares = {name: mean(run["valid_share"] for run in runs.of(graph, name)) for name in NO_SOLVER}
        row["valid_share"] = {name: share for name, share in shares.items() if share is not None}
        rows.append(row)
    known = [row for row in rows if row["optimal"]]
    return {
        "calls": CALLS, "package": PACKAGE, "seeds": seeds, "rows": rows,
        "against": comparisons(rows, COMPARED, gains),
        "optimum_known": len(known),
        "near_optimum": {
            name: sum(bool(row.get(name)) and row[name] <= row["bound"] * (1 + NEAR_OPTIMUM) for row in known)
            for name in ("rl", "rl_starts", "tuned", "tuned_long", "contiguous", "annealing_random", "random")
            if name in seeds
        },
        "by_evaluations": {name: {str(calls): after(runs, name, calls) for calls in MILESTONES} for name in COLOURS},
        "published": {one["quantity"]: float(one["value"]) for one in published("mcm_headlines.csv")},
    }  # fmt: skip


EXPERIMENT = Experiment(
    room="chiplet",
    env="ChipletPartition-v0",
    arguments=lambda graph: {"graph": graph, "cluster": PACKAGE},
    graphs=GRAPHS,
    entries=ENTRIES,
    budget=CALLS,
    facts=lambda problem, solution: dict(solution.details),  # valid_share
    summarise=summarise,
    cost=(",.1f", "none", 1e6),
    before={"graph": lambda row: row["graph"], "ops": lambda row: row["ops"]},
    after={
        "best known": lambda row: f"{row['best_known'] * 1e6:,.1f}",
        "bound": lambda row: "optimal" if row["optimal"] else f"{row['bound'] * 1e6:,.1f}",
    },
    curves=Curves(
        "images/chiplet_curves.png",
        COLOURS,
        line="contiguous",
        called={"rl": "RL from scratch", "tuned_long": "RL, pre-trained"},
        labels=("evaluations", "period of the best partition so far, simulated (microseconds)"),
    ),
    shipped=("chiplet", pretraining("", 0)),
)
