"""The placer on graphs of families that it was not trained on, at equal simulator calls and at equal seconds; an hour.

Trained on training steps of other families than the papers'; on the fourteen graphs of GO's table 1 and on other
clusters, orders and groupings, beside the heuristics, annealing, and the placer with each part switched off.
"""

import math

from experiments.runner import Curves, Entry, Experiment, Pretraining
from experiments.runner.tables import comparisons, geometric_mean
from graphopt_gym.graphs.zoo.registry import PAPERS, TRAINING, ZOO, own_cluster

CALLS, MANY_CALLS = 1_000, 12_800
PLANNED_FIRST = 8  # of graphopt_agents.placer
AT = (1, 8, 64, 256, CALLS)
SECONDS = (1.0, 10.0)
HEURISTICS = ("expert", "metis", "heft", "m_etf")
# other clusters than the papers', of unlike devices and of other links; other orders and groupings
ELSEWHERE = (
    "inception_v3_b32@p100x2_v100x2", "gnmt_2layer@v100x4x2", "amoebanet@v100_nvlinkx4", "rnnlm_4layer@p100x4x2",
    "transformer_xl_4layer@t4x4",
)  # fmt: skip
RULES = (("stream", "phase"), ("rank", "colocation"))
OTHERWISE = tuple(
    f"{graph}+{order}+{grouping}"
    for order, grouping in RULES
    for graph in ("inception_v3_b32", "gnmt_2layer", "amoebanet")
)
RECURRENT, TRANSFORMERS = ("gru", "tagger"), ("bert", "gpt2", "t5", "vit", "swin")
COUSINS = {"rnnlm": RECURRENT, "gnmt": RECURRENT, "transformer_xl": TRANSFORMERS}


def graph_of(case):
    """A case is ``GRAPH``, ``GRAPH@CLUSTER`` or ``GRAPH+ORDER+GROUPING``."""
    return case.partition("@")[0].partition("+")[0]


def arguments(case):
    graph, _, cluster = case.partition("@")
    name, *rules = graph.split("+")
    order, grouping = rules or ("fifo", "colocation")
    return {"graph": name, "cluster": cluster or own_cluster(name), "order": order, "grouping": grouping}


def trained(case, seed, without=()):
    """On training steps of other families, but for some."""
    graphs = tuple(name for name, entry in TRAINING.items() if entry.family not in without)
    name = f"all-{seed}" if not without else f"without_{without[0]}-{seed}"
    return Pretraining("placer", name, lambda out: {"graphs": graphs, "seed": seed})


def without_cousins(case, seed):
    """On what is not of the graph's kind either: no recurrent network for one, no transformer for another."""
    return trained(case, seed, COUSINS[ZOO[graph_of(case)].family])


def entry(label, pretraining=trained, **given):
    options = {key: given.pop(key) for key in ("search", "guided", "starts", "adapt") if key in given}
    return Entry(label, agent="placer", options=options, pretraining=pretraining, **given)


PLACER = {
    "placer_search": entry("placer"),
    "placer_alone": entry("without heuristics", starts=False),
    "placer": entry("candidates alone", search=False),
    "placer_unguided": entry("without the ranker", guided=False),
    "placer_untrained": entry("untrained", pretraining=None, graphs=PAPERS),
    "placer_tuned": entry("fine-tuned", adapt=True, graphs=PAPERS),
    "placer_nothing": entry("from nothing", pretraining=None, adapt=True, graphs=PAPERS),
    "placer_no_cousins": entry(
        "no cousins in training", pretraining=without_cousins,
        graphs=[graph for graph in PAPERS if ZOO[graph].family in COUSINS],
    ),
}  # fmt: skip
TIMED = {}
for _seconds in SECONDS:
    _given = {"seconds": _seconds, "graphs": PAPERS}
    TIMED |= {
        f"annealing_{_seconds:g}s": Entry(f"annealing, {_seconds:g} s", "annealing", **_given),
        f"placer_search_{_seconds:g}s": entry(f"placer, {_seconds:g} s", **_given),
    }
ENTRIES = {
    **{name: Entry(name.replace("_", "-"), budget=100) for name in HEURISTICS},
    **PLACER,
    "annealing": Entry("annealing"),
    "annealing_long": Entry(f"annealing, {MANY_CALLS:,}", "annealing", budget=MANY_CALLS, graphs=PAPERS),
    **TIMED,
}
COMPARED = [
    *((f"placer_search@{calls}", "heuristics") for calls in AT),
    *((f"placer_search@{calls}", f"{other}@{calls}") for calls in (8, 64, CALLS) for other in
      ("placer_untrained", "placer_unguided", "placer_alone", "placer", "placer_nothing", "placer_tuned")),
    ("placer_search@64", f"annealing_long@{MANY_CALLS}"), (f"placer_search@{CALLS}", f"annealing_long@{MANY_CALLS}"),
    (f"placer_search@{CALLS}", f"annealing@{CALLS}"), (f"placer_search@{CALLS}", "expert"),
    *((f"placer_no_cousins@{calls}", f"placer_search@{calls}") for calls in AT),
    *((f"placer_search_{seconds:g}s", f"annealing_{seconds:g}s") for seconds in SECONDS),
]  # fmt: skip


def label(name):
    """What tables call a column: an entry, perhaps after some calls."""
    name, _, calls = name.partition("@")
    text = "best of four heuristics" if name == "heuristics" else ENTRIES[name].label
    if name == "annealing_long":
        return text
    return f"{text}, {int(calls):,}" if calls else text


def summarise(runs, out):
    rows = []
    for case in EXPERIMENT.graphs:
        if not runs.of(case, "placer_search"):
            continue
        row = {"case": case, "graph": case, "cluster": arguments(case)["cluster"]}
        row |= {name: runs.mean_cost(case, name) for name in EXPERIMENT.names_in(runs)}
        row["heuristics"] = min(cost for name in HEURISTICS if (cost := row.get(name)))
        for name in (*PLACER, "annealing", "annealing_long"):
            for calls in (MANY_CALLS,) if name == "annealing_long" else AT:
                row[f"{name}@{calls}"] = runs.mean_cost_after(case, name, calls)
        row["best_known"] = runs.best_known(case)
        rows.append(row)
    papers = [row for row in rows if row["case"] in PAPERS]
    others = [row for row in rows if row["case"] not in PAPERS]
    relative = {name: [ratio(papers, f"{name}@{calls}") for calls in AT] for name in (*PLACER, "annealing")}
    return {
        "at": AT, "missing": EXPERIMENT.lacking(runs), "seeds": EXPERIMENT.names_in(runs), "rows": rows,
        "against": comparisons(papers, COMPARED),
        "against_elsewhere": comparisons(others, COMPARED), "relative": relative,
    }  # fmt: skip


def ratio(rows, name):
    """Geometric mean over rows of cost to that of the best of four heuristics; None where a row has no valid one."""
    both = [(row[name], row["heuristics"]) for row in rows if row.get(name)]
    found = geometric_mean([cost / best for cost, best in both])
    return found if found and math.isfinite(found) and len(both) == len(rows) else None


EXPERIMENT = Experiment(
    room="placer",
    env="Placement-v0",
    arguments=arguments,
    graphs=PAPERS + ELSEWHERE + OTHERWISE,
    entries=ENTRIES,
    budget=CALLS,
    summarise=summarise,
    cost=(".3f", "OOM", 1.0),
    before={"graph": lambda row: row["case"], "cluster": lambda row: row["cluster"]},
    after={"best known": lambda row: f"{row['best_known']:.3f}"},
    curves=Curves(
        "images/placer_curves.png",
        {"placer_search": "C0", "placer_unguided": "C2", "placer_untrained": "C4", "annealing": "C1"},
        line="expert",
        labels=("simulator calls", "best step time so far, simulated (s)"),
        graphs=PAPERS,
    ),
    shipped=("placer", trained("", 0)),
)
