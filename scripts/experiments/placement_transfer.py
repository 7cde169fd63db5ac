"""GDP carried over to families of graphs that it was not trained on, with and without superposition; hours, resumable.

Pre-trained on the graphs of the other families, for each of the fourteen graphs of GO's table 1.
"""

from functools import partial

from experiments.runner import Entry, Experiment, Pretraining
from experiments.runner.tables import comparisons
from graphopt_gym.graphs.zoo.registry import SPLITS, ZOO, held_out, own_cluster

CALLS = 12_800  # simulator calls of a run from nothing: 200 updates of GDP
TUNING_CALLS, TUNING = CALLS // 10, {"starts": False, "samples": 26}  # so that these are 50 updates
ZERO_SHOT_CALLS = 64
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
    "expert": Entry("expert"),
    "gdp": Entry("GDP-one", agent="gdp", options={"starts": False}),
    "gdp_zero": Entry("zero-shot", pretraining=other_families, **ZERO_SHOT),
    "gdp_untrained": Entry("untrained", **ZERO_SHOT),
    "gdp_tuned": Entry("fine-tuned", pretraining=other_families, **TUNED),
    "gdp_tuned_untrained": Entry(f"from scratch, {TUNING_CALLS:,} calls", **TUNED),
    "gdp_zero_no_superposition": Entry("zero-shot, without superposition", pretraining=plain, **ZERO_SHOT),
    "gdp_tuned_no_superposition": Entry("fine-tuned, without superposition", pretraining=plain, **TUNED),
}
COMPARED = [
    ("zero_shot", "expert"), ("zero_shot", "untrained"), ("zero_shot", "zero_plain"), ("tuned", "expert"),
    ("tuned", "tuned_untrained"), ("tuned", "scratch"), ("tuned", "tuned_plain"),
]  # fmt: skip


def summarise(runs, out):
    rows = []
    for graph in EXPERIMENT.graphs:

        def after(name, calls, graph=graph):
            return runs.mean_cost_after(graph, name, calls)

        rows.append(
            {
                "graph": graph,
                "cluster": own_cluster(graph),
                "expert": runs.mean_cost(graph, "expert"),
                "zero_1": after("gdp_zero", 1),
                "zero_shot": after("gdp_zero", ZERO_SHOT_CALLS),
                "zero_plain": after("gdp_zero_no_superposition", ZERO_SHOT_CALLS),
                "untrained": after("gdp_untrained", ZERO_SHOT_CALLS),
                "tuned": after("gdp_tuned", TUNING_CALLS),
                "tuned_plain": after("gdp_tuned_no_superposition", TUNING_CALLS),
                "tuned_untrained": after("gdp_tuned_untrained", TUNING_CALLS),
                "scratch": after("gdp", CALLS),
            }
        )
    return {"seeds": EXPERIMENT.names_in(runs), "rows": rows, "against": comparisons(rows, COMPARED)}


EXPERIMENT = Experiment(
    room="placement_transfer",
    env="Placement-v0",
    arguments=lambda graph: {"graph": graph, "cluster": own_cluster(graph)},
    graphs=SPLITS["papers"],
    entries=ENTRIES,
    budget=CALLS,
    summarise=summarise,
    cost=(".3f", "OOM", 1.0),
    shipped=("gdp", pretraining(SPLITS["papers"], "all-0", seed=0, updates=600)),
)
