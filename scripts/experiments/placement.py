"""Searches, learned methods and heuristics on the fourteen graphs of GO's table 1, by order and granularity; hours.

Under the rules of the papers (first come, first served; groups of a module's ops): GDP, HDP and the classical methods,
at equal simulator calls and at equal seconds; the calls and seconds that GDP needs to reach HDP's best; ablations of
its network. Under others: what an order and finer groups are worth, and who wins there. Resumable.
"""

import json

from experiments.runner import Curves, Entry, Experiment
from experiments.runner.rules import PAPERS, arguments, cases, graph_of, rules_of
from experiments.runner.tables import comparisons, geometric_mean, mean, published, stored_summary
from graphopt_gym.data import data_path
from graphopt_gym.graphs.zoo.registry import SPLITS, own_cluster

CALLS = 6_400  # simulator calls of a run: 100 updates of GDP
HDP_CALLS = 800  # of a run of HDP: a placement takes it 15 to 100 ms, and its policy has long decided by then
SECONDS, LONG_S = 10.0, 30.0  # of the runs that are compared at equal seconds; of the annealing that seeks the optimum
RULES = [PAPERS, ("stream", "colocation"), ("fifo", "phase"), ("stream", "phase")]
RANKED = [("rank", "colocation"), ("rank", "phase")]  # what an order that knows all costs is worth: searches alone
GRAPHS = SPLITS["papers"]
PAPERS_CASES = cases(GRAPHS, [PAPERS])
LEARNED_CASES = PAPERS_CASES + cases(GRAPHS, RULES[-1:])  # the papers' rules, and both changed at once
FAMILIES = (  # a graph of each, for the orders that know all
    "inception_v3_b32", "rnnlm_4layer", "gnmt_4layer", "transformer_xl_4layer", "amoebanet", "wavenet_2x18",
)  # fmt: skip
ABLATED = ("inception_v3_b32", "rnnlm_4layer", "transformer_xl_4layer", "wavenet_2x18")
ENTRIES = {
    "gdp": Entry("GDP-one", agent="gdp", options={"starts": False}, graphs=PAPERS_CASES),
    "gdp_starts": Entry("GDP from heuristics", "gdp", graphs=PAPERS_CASES),
    "gdp_search": Entry("GDP + search", graphs=LEARNED_CASES),
    "gdp_search_seconds": Entry(f"GDP + search, {SECONDS:.0f} s", "gdp_search", seconds=SECONDS, graphs=PAPERS_CASES),
    "hdp": Entry("HDP", budget=HDP_CALLS, graphs=PAPERS_CASES),
    "annealing": Entry("annealing"),
    "annealing_random": Entry("annealing from random", graphs=PAPERS_CASES),
    "annealing_seconds": Entry(f"annealing, {SECONDS:.0f} s", "annealing", seconds=SECONDS, graphs=PAPERS_CASES),
    "cross_entropy": Entry("cross-entropy", graphs=PAPERS_CASES),
    "hill_climbing": Entry("hill climbing", graphs=PAPERS_CASES),
    "random": Entry("random", graphs=PAPERS_CASES),
    "metis": Entry("METIS"),
    "single": Entry("one device"),
    "expert": Entry("expert"),
    "heft": Entry("HEFT"),
    "cpop": Entry("CPOP"),
    "m_topo": Entry("m-TOPO"),
    "m_etf": Entry("m-ETF"),
    "m_sct": Entry("m-SCT"),
    "annealing_long": Entry(
        f"annealing, {LONG_S:.0f} s", "annealing", seconds=LONG_S, random=False, graphs=PAPERS_CASES
    ),
}
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
FIRST = json.loads((data_path("placement") / "first_edition.json").read_text(encoding="utf-8"))  # of its summary
COMPARED = [(method, baseline) for method in ("gdp", "gdp_starts", "gdp_search") for baseline in BASELINES] + [
    ("gdp_at_hdps_calls", "hdp"), ("gdp_search_seconds", "annealing_seconds"), ("gdp_search_seconds", "expert"),
    ("annealing", "expert"), ("annealing_seconds", "expert"), ("best_known", "expert"),
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


def summarise(runs, out):
    papers = {row["model"]: row for row in published("go_table1_placement.csv")}
    seeds, rows = EXPERIMENT.names_in(runs), []
    # bounds of the costs that the runs were priced by
    stored = {row["case"]: row["bound"] for row in stored_summary("placement")["rows"]}
    today = EXPERIMENT.is_of_today(runs)
    for case in EXPERIMENT.graphs:
        if not any(job[0] == case for job in runs):
            continue
        graph, (order, grouping) = graph_of(case), rules_of(case)
        row = {"case": case, "graph": graph, "cluster": own_cluster(graph), "order": order, "grouping": grouping}
        row |= {name: runs.mean_cost(case, name) for name in seeds}
        row["bound"] = max(EXPERIMENT.problem(case).bounds().values()) if today else stored[case]
        row["best_known"] = runs.best_known(case)
        row["no_room"] = row.get("expert") is not None and row["expert"] <= 1.01 * row["best_known"]
        if case in PAPERS_CASES:
            row["to_reach_hdp"] = to_reach_hdp(runs, case)
            row["published"] = {key: value for key, value in papers[graph].items() if key not in ("model", "devices")}
            row["gdp_at_hdps_calls"] = row["to_reach_hdp"]["gdp_at_hdps_calls"]
        rows.append(row)
    against = {"+".join(rules): comparisons(of_rules(rows, rules), COMPARED) for rules in (*RULES, *RANKED)}
    return {"calls": CALLS, "seeds": seeds, "rows": rows, "against": against}


def of_rules(rows, rules):
    return [row for row in rows if (row["order"], row["grouping"]) == tuple(rules)]


def row_of(rows, graph, order, grouping):
    """None where it was not run."""
    return next((row for row in of_rules(rows, (order, grouping)) if row["graph"] == graph), None)


EXPERIMENT = Experiment(
    room="placement",
    env="Placement-v0",
    arguments=lambda case: arguments(case, own_cluster(graph_of(case))),
    graphs=cases(GRAPHS, RULES) + cases(FAMILIES, RANKED),
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
        graphs=PAPERS_CASES,
    ),
)
