"""Searches, equality saturation and learning rewrite the networks of TENSAT's table; two hours, resumable.

Every rewritten program is executed against the original before its run counts. Last, both are timed on this CPU.
"""

import gzip
import json
import os
import sys

from experiments.runner import Entry, Experiment, Pretraining
from experiments.runner.runs import claim
from experiments.runner.tables import geometric_mean, graphs_where, mean, published, stored_summary
from graphopt_gym.envs.rewrite import measure as timing
from graphopt_gym.files import write_file, write_text
from graphopt_gym.graphs.zoo.programs import WORKLOADS
from graphopt_gym.graphs.zoo.programs.variants import write_variants

DEVICE = "t4"
EQUAL_CALLS = 2_000  # where sequential methods are compared at equal numbers of programs
VARIANTS = 45  # programs like the networks, smaller and of random sizes, that the shipped policy learns from
POLICY = {"updates": 240, "episodes": 4, "graphs_per_update": 4, "starts": 1500, "decay": True, "checkpoint_every": 60}
PLAIN = tuple(f"saturation_k{k}" for k in (0, 1, 2, 3))  # by iterations of multi-pattern rules
SEQUENTIAL = ("greedy", "taso", "random_walk", "rl", "rl_pretrained")
BEYOND = ("saturation_repeat", "tree_search", "tree_search_repeat", "rl", "rl_pretrained")
ENTRIES = {
    "greedy": Entry("greedy"), "taso": Entry("TASO's search"), "random_walk": Entry("random rewrites"),
    **{name: Entry(f"saturation, k={name[-1]}", "saturation", options={"k_multi": int(name[-1])}) for name in PLAIN},
    "saturation_repeat": Entry("saturation, repeated"), "tree_search": Entry("tree search"),
    "tree_search_repeat": Entry("tree search, repeated"), "rl": Entry("RL from nothing"),
    "rl_pretrained": Entry("RL, trained on others"),
}  # fmt: skip


def policy(out):
    """The arguments of the policy that is shipped: it learns from the small programs and the variants."""
    variants = os.path.relpath(out / "variants")  # the checkpoint names them; as seen from here
    os.makedirs(variants, exist_ok=True)
    return {"graphs": ("small", *write_variants(variants, VARIANTS, seed=0)), **POLICY}


def facts(problem, solution):
    history = [list(row) for row in solution.history]
    return {
        "original": problem.original_s, "seconds": solution.wall_s, "best_s": history[-1][1] if history else 0.0,
        "after_equal_calls": next((cost for calls, _, cost in reversed(history) if calls <= EQUAL_CALLS), None),
        "curve": history[:: max(1, len(history) // 40)] + history[-1:], "details": dict(solution.details),
        "ops_before": problem.program.statistics()["computed"], "ops": solution.decision.statistics()["computed"],
    }  # fmt: skip


def bests(runs):
    """The best run of each program: the quickest of those that cost the least."""
    return {graph: run for graph in EXPERIMENT.graphs if (run := runs.best_run(graph, "seconds"))}


def measure(out, runs, graphs):
    """Time the original and the best program of each network on the CPU, interleaved; a file each."""
    for graph, best in bests(runs).items():
        path = out / "measured" / f"{graph}.json"
        with claim(path.with_suffix(".claim")) as mine:
            done = path.exists() and json.loads(path.read_text("utf-8"))["cost"] == best["cost"]
            if done or not mine or graph not in graphs:
                continue
            problem = EXPERIMENT.problem(graph)
            pair = (problem.program, problem.check(best["decision"]))
            found = timing.measure(*pair, runs=1000, seconds=20.0, clock="cpu")
            row = {name: getattr(found, name) for name in ("speedup", "low", "high", "runs", "same_outputs")}
            row |= {"original_s": found.original.median_s, "rewritten_s": found.rewritten.median_s}
            row |= {"graph": graph, "method": best["name"], "cost": best["cost"]}
            write_text(path, json.dumps(row) + "\n")
        print(f"measured {graph}: {row}", file=sys.stderr, flush=True)


def measured(out):
    """What was measured of graphs' best programs, here or else before."""
    stored = [row["measured"] for row in stored_summary("rewrite")["rows"] if row["measured"]]
    here = [json.loads(path.read_text("utf-8")) for path in sorted(out.glob("measured/*.json"))]
    return {(row["graph"], row["cost"]): row for row in [*stored, *here]}


def of_method(mine):
    """What the tables say of the runs of a method on a program."""
    return {
        "seeds": len(mine), "valid": all(run["valid"] for run in mine),
        "cost": mean(costs := [run["cost"] for run in mine]), "worst": None if None in costs else max(costs),
        **{key: mean(run[key] for run in mine) for key in ("seconds", "best_s", "evaluations", "after_equal_calls")},
        "stopped_by": mine[0]["stopped_by"], "details": mine[0]["details"],
    }  # fmt: skip


def summarise(runs, out):
    papers, timed, rows = {row["model"]: row for row in published("tensat_vs_taso.csv")}, measured(out), []
    for graph, best in bests(runs).items():
        paper = None if graph in ("bert", "nasrnn") else papers.get(graph.removesuffix("_tensat"))  # its own are these
        methods = {name: of_method(mine) for name in ENTRIES if (mine := runs.of(graph, name))}
        plain = [methods[name]["cost"] for name in PLAIN if name in methods and methods[name]["cost"]]
        row = {"graph": graph, "ops": best["ops_before"], "original": best["original"], "best": best["cost"]}
        row |= {"best_by": best["name"], "published": paper, "measured": timed.get((graph, best["cost"]))}
        rows.append({**row, "methods": methods, "plain": min(plain, default=None)})
    return {"device": DEVICE, "seconds": EXPERIMENT.seconds, "rows": rows, "claims": claims(rows)}


def claims(rows):
    """What the page's sentences say: the graphs on which a method is ahead, equal or behind (the mean of its seeds)."""

    def cost(row, name):
        return row["methods"].get(name, {}).get("cost")

    rows = [row for row in rows if row["plain"]]
    others = [(row, [cost(row, "greedy"), cost(row, "taso")]) for row in rows]
    pairs = [(row["graph"], row["plain"], min(both)) for row, both in others if None not in both]
    found = {f"saturation_{w}": graphs_where(pairs, sign) for w, sign in (("better", 1), ("equal", 0), ("worse", -1))}
    graph, mine, theirs = max(pairs, key=lambda pair: pair[2] / pair[1], default=(None, None, None))
    found |= {"most_better": mine and 1 - mine / theirs, "most_better_on": graph}
    for name in BEYOND:
        pairs = [(row["graph"], cost(row, name), row["plain"]) for row in rows if cost(row, name)]
        found |= {f"{name}_ahead": graphs_where(pairs, 1), f"{name}_behind": graphs_where(pairs, -1)}
    both = [(row["graph"], row["methods"].get("taso"), row["methods"].get("saturation_k1")) for row in rows]
    ratios = {graph: taso["seconds"] / one["seconds"] for graph, taso, one in both if taso and one}
    found |= {"time_ratios": ratios, "time_ratio_mean": geometric_mean(list(ratios.values()))}
    return {**found, "a_tenth_of_the_time": [graph for graph, ratio in ratios.items() if ratio >= 10]}


def store(room, runs):
    if all("decision" in run for run in runs.values()):  # stored runs are without
        text = json.dumps({graph: run["decision"] for graph, run in bests(runs).items()})
        write_file(room / "best.json.gz", gzip.compress(text.encode(), mtime=0))


EXPERIMENT = Experiment(
    room="rewrite",
    env="RewriteOrder-v0",
    arguments=lambda graph: {"graph": graph, "cluster": DEVICE},
    graphs=(*WORKLOADS, "bert_tensat", "nasrnn_tensat"),
    entries=ENTRIES,
    budget=10_000_000,  # more programs than any prices in that time
    seconds=40.0,
    kept=(
        "seed", "cost", "valid", "original", "seconds", "evaluations", "stopped_by", "best_s", "after_equal_calls",
        "details", "ops_before", "ops", "fingerprints", "costs_version", "curve",
    ),
    facts=facts,
    measure=measure,
    summarise=summarise,
    store=store,
    shipped=("rewrite", Pretraining("rewrite", "policy", policy)),
)  # fmt: skip
