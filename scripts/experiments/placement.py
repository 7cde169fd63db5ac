"""GDP, HDP and the classical methods on the fourteen graphs of GO's table 1; some hours, resumable.

Every method at equal simulator calls and at equal seconds; GDP pre-trained on the graphs of the other families; the
calls and seconds that GDP needs to reach HDP's best; ablations of GDP's network.
"""

from functools import partial

from experiments.runner import Curves, Entry, Experiment, Pretraining
from experiments.runner.tables import comparisons, geometric_mean, mean, published, stored_summary
from graphopt_gym.graphs.zoo.registry import SPLITS, ZOO, held_out, own_cluster

CALLS = 12_800  # simulator calls of a run: 200 updates of GDP
HDP_CALLS = 1_600  # of a run of HDP: a placement takes it 15 to 100 ms, and its policy has long decided by then
SECONDS, LONG_S = 20.0, 60.0  # of the runs that are compared at equal seconds; of the annealing that seeks the optimum
TUNING_CALLS, TUNING = CALLS // 10, {"starts": False, "samples": 26}  # so that these are 50 updates
ZERO_SHOT_CALLS = 64
ABLATED = ("inception_v3_b32", "rnnlm_4layer", "transformer_xl_4layer", "wavenet_2x18")
PRETRAINING = {
    "updates": 150, "samples": 32, "learning_rate": 1e-3, "entropy": 0.02, "imitation": 1.0, "checkpoint_every": 50,
}  # fmt: skip
TOO_LONG = ("gnmt_8layer",)  # to pre-train on: it would take a third of the time
ALSO = ("bert_base", "gpt2_small", "resnet50")  # pre-trained on beside the papers' graphs


def pretraining(graphs, name, **arguments):
    """GDP on these graphs, each on its own cluster and on other numbers of devices too, unless it is too large for
    fewer, or too small for more."""
    graphs = [graph for graph in (*graphs, *ALSO) if graph not in TOO_LONG]
    pairs = [(graph, own_cluster(graph)) for graph in graphs] + [
        (graph, cluster)
        for graph in graphs
        for cluster in ("p100x2", "p100x4", "p100x8")
        if cluster != ZOO[graph].cluster and not graph.startswith(("transformer_xl_2", "transformer_xl_8"))
    ]
    return Pretraining.on(pairs, "gdp", name, **{**PRETRAINING, **arguments})


def other_families(graph, seed, superposition=True):
    """On all families but the graph's own."""
    family = ZOO[graph].family
    name = f"{family}{'' if superposition else '-no_superposition'}-{seed}"
    return pretraining(held_out(family)[0], name, superposition=superposition, seed=seed)


plain = partial(other_families, superposition=False)
ZERO_SHOT = {"agent": "gdp", "zero_shot": True, "budget": ZERO_SHOT_CALLS}
TUNED = {"agent": "gdp", "options": TUNING, "budget": TUNING_CALLS}
ENTRIES = {
    "gdp": Entry("GDP-one", agent="gdp", options={"starts": False}),
    "gdp_starts": Entry("GDP from heuristics", "gdp"),
    "gdp_search": Entry("GDP + search"),
    "gdp_search_seconds": Entry(f"GDP + search, {SECONDS:.0f} s", "gdp_search", seconds=SECONDS),
    "hdp": Entry("HDP", budget=HDP_CALLS),
    "annealing": Entry("annealing"), "annealing_random": Entry("annealing from random"),
    "annealing_seconds": Entry(f"annealing, {SECONDS:.0f} s", "annealing", seconds=SECONDS),
    "cross_entropy": Entry("cross-entropy"), "hill_climbing": Entry("hill climbing"), "random": Entry("random"),
    "metis": Entry("METIS"), "single": Entry("one device"), "expert": Entry("expert"), "heft": Entry("HEFT"),
    "m_topo": Entry("m-TOPO"), "m_etf": Entry("m-ETF"), "m_sct": Entry("m-SCT"),
    "annealing_long": Entry(f"annealing, {LONG_S:.0f} s", "annealing", seconds=LONG_S, random=False),
    "gdp_zero": Entry("zero-shot", pretraining=other_families, **ZERO_SHOT),
    "gdp_untrained": Entry("untrained", **ZERO_SHOT),
    "gdp_tuned": Entry("fine-tuned", pretraining=other_families, **TUNED),
    "gdp_tuned_untrained": Entry(f"from scratch, {TUNING_CALLS:,} calls", **TUNED),
    "gdp_zero_no_superposition": Entry("zero-shot, without superposition", pretraining=plain, **ZERO_SHOT),
    "gdp_tuned_no_superposition": Entry("fine-tuned, without superposition", pretraining=plain, **TUNED),
}  # fmt: skip
ABLATIONS = {
    f"gdp_no_{name}": Entry(f"without {part}", agent="gdp", options={"starts": False, **off}, graphs=ABLATED)
    for name, part, off in (
        ("graph_network", "the graph network", {"sage_layers": 0}),
        ("attention", "attention", {"attention": False}),
        ("recurrence", "recurrence", {"recurrence": False}),
        ("superposition", "superposition", {"superposition": False}),
    )
}
ENTRIES |= ABLATIONS
BASELINES = ("expert", "metis", "hdp", "annealing", "hill_climbing", "cross_entropy")
COMPARED = [(method, baseline) for method in ("gdp", "gdp_starts", "gdp_search") for baseline in BASELINES] + [
    ("gdp_at_hdps_calls", "hdp"), ("gdp_search_seconds", "annealing_seconds"), ("gdp_search_seconds", "expert"),
    ("best_known", "expert"), ("zero_shot", "expert"), ("zero_shot", "untrained"), ("zero_shot", "zero_plain"),
    ("tuned", "expert"), ("tuned", "tuned_untrained"), ("tuned", "scratch"), ("tuned", "tuned_plain"),
]  # fmt: skip


def to_reach_hdp(runs, graph):
    """Calls and seconds until GDP and HDP reached HDP's best, their ratios, and GDP's cost at as many calls."""
    found = runs.reached(graph, "gdp", "hdp")
    pairs = [(hdp, gdp) for hdp, gdp in found if gdp]
    return {
        "hdp_calls": mean(hdp[0] for hdp, _ in pairs),
        "gdp_calls": mean(gdp[0] for _, gdp in pairs),
        "calls_ratio": geometric_mean([hdp[0] / gdp[0] for hdp, gdp in pairs]),
        "seconds_ratio": geometric_mean([hdp[1] / gdp[1] for hdp, gdp in pairs]),
        "missed": len(found) - len(pairs),
        "gdp_at_hdps_calls": runs.mean_cost_after(graph, "gdp", HDP_CALLS),
    }


def transfer(runs, graph, suffix):
    """Means over seeds of pre-trained policies on a graph of the family that was held out."""
    means = {
        "zero_1": ("gdp_zero" + suffix, 1), "zero": ("gdp_zero" + suffix, ZERO_SHOT_CALLS),
        "untrained": ("gdp_untrained", ZERO_SHOT_CALLS), "tuned": ("gdp_tuned" + suffix, TUNING_CALLS),
        "tuned_untrained": ("gdp_tuned_untrained", TUNING_CALLS), "scratch": ("gdp", CALLS),
    }  # fmt: skip
    return {name: runs.mean_cost_after(graph, *of) for name, of in means.items()}


def summarise(runs, out):
    papers = {row["model"]: row for row in published("go_table1_placement.csv")}
    seeds, rows = EXPERIMENT.names_in(runs), []
    # bounds of the costs that the runs were priced by
    stored = {row["graph"]: row["bound"] for row in stored_summary("placement")["rows"]}
    today = EXPERIMENT.is_of_today(runs)
    for graph in EXPERIMENT.graphs:
        row = {
            "graph": graph,
            "cluster": own_cluster(graph),
            **{name: runs.mean_cost(graph, name) for name in seeds},
        }
        row |= {"bound": max(EXPERIMENT.problem(graph).bounds().values()) if today else stored[graph]}
        row["best_known"] = runs.best_known(graph)
        row["no_room"] = row.get("expert") is not None and row["expert"] <= 1.01 * row["best_known"]
        row["to_reach_hdp"] = to_reach_hdp(runs, graph)
        one, without = transfer(runs, graph, ""), transfer(runs, graph, "_no_superposition")
        row["transfer"] = {"": one, "_no_superposition": without}
        row["published"] = {key: value for key, value in papers[graph].items() if key not in ("model", "devices")}
        row["gdp_at_hdps_calls"] = row["to_reach_hdp"]["gdp_at_hdps_calls"]
        row |= {"zero_shot": one["zero"], **{k: one[k] for k in ("untrained", "tuned", "tuned_untrained", "scratch")}}
        row |= {"zero_plain": without["zero"], "tuned_plain": without["tuned"]}
        rows.append(row)
    return {"calls": CALLS, "seeds": seeds, "rows": rows, "against": comparisons(rows, COMPARED)}


EXPERIMENT = Experiment(
    room="placement",
    env="Placement-v0",
    arguments=lambda graph: {"graph": graph, "cluster": own_cluster(graph)},
    graphs=SPLITS["papers"],
    entries=ENTRIES,
    budget=CALLS,
    summarise=summarise,
    cost=(".3f", "OOM", 1.0),
    before={"graph": lambda row: row["graph"] + " (no room)" * row["no_room"], "cluster": lambda row: row["cluster"]},
    after={"best known": lambda row: f"{row['best_known']:.3f}", "bound": lambda row: f"{row['bound']:.3f}"},
    curves=Curves(
        "images/placement_curves.png",
        {"gdp": "C0", "gdp_search": "C2", "annealing": "C1", "hdp": "C3"},
        line="expert",
        labels=("simulator calls", "best step time so far, simulated (s)"),
    ),
    shipped=("gdp", pretraining(SPLITS["papers"], "all-0", seed=0, updates=600)),
)
