"""Gang scheduling: what Pathways' paper shows, simulated beside it; orders and searches on harder work; ten minutes.

Dispatch, pipelines, islands and tenants of the paper beside its figures, each said to be fitted or predicted; what it
takes to simulate. Then policies, pipeline orders and searches at equal simulator calls, and how far from the bound.
"""

import json

from experiments.gang_parts import NODES as NODES_A_CALL  # noqa: F401 - the page says it
from experiments.gang_parts import PARTS, WEIGHTS, tenants_run
from experiments.runner import Curves, Entry, Experiment
from experiments.runner.curves import panels, save
from experiments.runner.tables import comparisons, stored_summary
from graphopt_gym.envs.gang.bounds import least_cost
from graphopt_gym.files import write_text
from graphopt_gym.simulator.gang.figure import save_tenants
from graphopt_gym.simulator.gang.workloads import load_workload

CALLS = 2_000  # simulator calls of a run
PIPELINES = (
    "decoder_3b", "encoder_decoder", "inception_v3_pipelines", "amoebanet_pipelines", "gnmt_pipelines",
)  # fmt: skip
TENANTS = ("tenants_crossing", "tenants_crossing_128", "tenants_crossing+place")
FAIR = ("tenants_crossing+fairness",)
POLICIES = ("fifo", "stride", "longest", "shortest", "backfill", "backfill_longest")
ORDERS = ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v")
SEARCHES = ("annealing", "hill_climbing", "evolution", "cross_entropy", "random")
ENTRIES = {
    "fifo": Entry("FIFO"),
    "shortest": Entry("shortest"),
    "longest": Entry("longest"),
    "stride": Entry("stride"),
    "round_robin": Entry("round robin"),
    "backfill": Entry("backfill"),
    "backfill_longest": Entry("backfill, longest"),
    "gpipe": Entry("GPipe", graphs=PIPELINES),
    "1f1b": Entry("1F1B", graphs=PIPELINES),
    "interleaved": Entry("interleaved", graphs=PIPELINES[:1]),
    "zb_h1": Entry("ZB-H1", graphs=PIPELINES),
    "zb_h2": Entry("ZB-H2", graphs=PIPELINES),
    "zb_v": Entry("ZB-V", graphs=PIPELINES[:1]),
    "heuristics": Entry("heuristics"),
    "annealing": Entry("annealing"),
    "hill_climbing": Entry("hill climbing"),
    "evolution": Entry("evolution"),
    "cross_entropy": Entry("cross-entropy"),
    "random": Entry("random"),
}
COMPARED = [
    *((method, "fifo") for method in ("heuristics", *SEARCHES)), *((method, "heuristics") for method in SEARCHES),
    ("annealing", "gpipe"), ("annealing", "1f1b"), ("annealing", "zb_h2"), ("annealing", "stride"),
    ("annealing", "backfill_longest"), ("best_known", "fifo"), ("best_known", "heuristics"),
]  # fmt: skip
HOLDS = {  # what the paper says of dispatch, of a row of computations a second
    "fused, one controller matches many (within 1 %) up to 1,024 TPUs": lambda row: (
        row["cores"] > 1024 or abs(row["fused single"] / row["fused multi"] - 1) < 0.01
    ),
    "chained, one controller beats many op by op up to 256 TPUs, and not beyond": lambda row: (
        (row["chained single"] > row["op_by_op multi"]) == (row["cores"] <= 256)
    ),
    "op by op, one controller is far slower than many (here: below 60 %)": lambda row: (
        row["op_by_op single"] < 0.6 * row["op_by_op multi"]
    ),
    "one controller is slower op by op than chained, and chained no faster than fused": lambda row: (
        row["op_by_op single"] < row["chained single"] <= row["fused single"] * 1.001
    ),
}
LINES = {  # of the figure of dispatch: colour, style, name
    "fused multi": ("#4c78a8", "-", "many controllers, fused"),
    "op_by_op multi": ("#4c78a8", ":", "many controllers, op by op"),
    "fused single": ("#e45756", "-", "one controller, fused"),
    "chained single": ("#e45756", "--", "one controller, chained"),
    "op_by_op single": ("#e45756", ":", "one controller, op by op"),
}


def arguments(case):
    """A case is ``WORKLOAD``, ``WORKLOAD+place`` (slices may move) or ``WORKLOAD+OBJECTIVE``."""
    graph, _, more = case.partition("+")
    objective = {"objective": more} if more not in ("", "place") else {}
    return {"graph": graph, "cluster": load_workload(graph).machine, "place": more == "place", **objective}


def measure(out, runs, graphs):
    """The parts that rest on no search; what took to simulate is timed once."""
    path = out / "parts.json"
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name, make in PARTS.items():
        if name != "scale" or name not in kept:
            kept[name] = make()
            write_text(path, json.dumps(kept) + "\n")


def parts_of(out):
    """Those that :func:`measure` wrote, or else those that are stored."""
    path = out / "parts.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else stored_summary("gang")["parts"]


def beyond(cost, bound):
    """How far a cost is from its bound, in words."""
    if cost is None or not bound:
        return ""
    return "optimal" if cost <= bound * (1 + 1e-9) else f"{cost / bound - 1:+.1%}"


def amount(value):
    """A figure of the paper's tables."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def label(name):
    """What tables call a method."""
    return ENTRIES[name].label if name in ENTRIES else name.replace("_", " ")


def summarise(runs, out):
    rows = []
    for case in EXPERIMENT.graphs:
        if not runs.of(case, "fifo"):
            continue
        problem = EXPERIMENT.problem(case)
        row = {"graph": case, "cluster": problem.cluster_name, "gangs": problem.num_gangs, "plans": len(problem.plans)}
        row |= {name: runs.mean_cost(case, name) for name in EXPERIMENT.names_in(runs)}
        row |= {"best_known": runs.best_known(case), "bound": least_cost(problem)}
        row["plan"] = runs.best_run(case)["plan"]
        rows.append(row)
    parts = parts_of(out)
    dispatch = parts["paper"]["dispatch_per_s"]
    fails = {what: [row["cores"] for row in dispatch if not check(row)] for what, check in HOLDS.items()}
    steps = [row for row in rows if row["graph"] not in FAIR]
    return {
        "calls": CALLS, "seeds": EXPERIMENT.names_in(runs), "rows": rows, "against": comparisons(steps, COMPARED),
        "parts": parts, "fails": fails,
    }  # fmt: skip


def draw(runs, summary, folder):
    """Dispatch and tenants, as the paper draws them."""
    dispatch = summary["parts"]["paper"]["dispatch_per_s"]
    figure, (axis,) = panels(1, 1, (9, 5.4))
    cores = [row["cores"] for row in dispatch]
    for name, (colour, style, text) in LINES.items():
        axis.plot(cores, [row[name] for row in dispatch], style, color=colour, marker="o", markersize=4, label=text)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(cores, [f"{number:,}" for number in cores])
    axis.set_xlabel("TPUs (four a host)", fontsize=12)
    axis.set_ylabel("computations a second, simulated", fontsize=12)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=10, frameon=False)
    figure.tight_layout()
    save(figure, folder / "images" / "gang_dispatch.png", 90)
    for weights in WEIGHTS:
        run = tenants_run(weights)
        begin = float(run.gang_start_s.min())
        name = ":".join(map(str, weights))
        save_tenants(
            run, folder / "images" / f"gang_tenants_{'_'.join(map(str, weights))}.png", dpi=70, begin_s=begin,
            end_s=begin + 0.06, title=f"shares {name}, 60 ms of {0.33} ms computations on 512 TPUs",
        )  # fmt: skip


EXPERIMENT = Experiment(
    room="gang",
    env="GangScheduling-v0",
    arguments=arguments,
    graphs=PIPELINES + TENANTS + FAIR,
    entries=ENTRIES,
    budget=CALLS,
    facts=lambda problem, solution: {"plan": solution.outcome.metrics["plan"]},
    kept=("seed", "cost", "valid", "evaluations", "wall_s", "fingerprints", "history", "decision", "plan"),
    summarise=summarise,
    measure=measure,
    cost=(",.2f", "invalid", 1e3),
    before={"workload": lambda row: row["graph"], "gangs": lambda row: row["gangs"]},
    after={
        "best known": lambda row: f"{row['best_known'] * 1e3:,.2f}",
        "bound": lambda row: f"{row['bound'] * 1e3:,.2f}",
        "best known beyond it": lambda row: beyond(row["best_known"], row["bound"]),
    },
    curves=Curves(
        "images/gang_curves.png",
        {"annealing": "C1", "hill_climbing": "C4", "evolution": "C3", "cross_entropy": "C2", "random": "C7"},
        line="fifo",
        labels=("simulator calls", "best cost so far, simulated (ms; of fairness, thousandths)"),
        columns=3,
    ),
    draw=draw,
)
