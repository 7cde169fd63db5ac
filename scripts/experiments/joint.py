"""Placement, fusion and schedule, each alone and together: GO's policy, searches and passes in turn; hours, resumable.

On ten graphs with 2 to 8 devices, against the default stack (the human expert's placement, greedy fusion, first come
first served), at equal simulator calls and at equal seconds; ablations of GO's network.
"""

from experiments.runner import Curves, Entry, Experiment, Pretraining
from experiments.runner.tables import comparisons
from graphopt_gym.envs.joint.problem import TASKS
from graphopt_gym.graphs.zoo.registry import ZOO, own_cluster

CALLS = 3_000  # simulator calls of a run
SECONDS = {  # of the runs that are compared at equal seconds: some ten for each thousand ops
    "inception_v3_b32": 15.0, "rnnlm_2layer": 40.0, "transformer_xl_4layer": 10.0, "transformer_xl_8layer": 10.0,
    "amoebanet": 45.0, "wavenet_2x18": 12.0, "bert_base": 12.0,
}  # fmt: skip
GRAPHS = (
    "inception_v3_b32", "rnnlm_2layer", "rnnlm_4layer", "gnmt_2layer", "gnmt_8layer", "transformer_xl_4layer",
    "transformer_xl_8layer", "amoebanet", "wavenet_2x18", "bert_base",
)  # fmt: skip
ALONE = tuple(f"{graph}+{task}" for task in TASKS for graph in GRAPHS)
ABLATED = ("inception_v3_b32", "transformer_xl_4layer", "bert_base")
HELD_OUT = ("inception_v3_b32", "transformer_xl_4layer", "wavenet_2x18", "bert_base")  # each with its whole family
SEEN = (
    "inception_v3_b32", "transformer_xl_2layer", "transformer_xl_4layer", "wavenet_2x18", "bert_base", "gpt2_small",
    "resnet50",
)  # fmt: skip
ALONE_LEARNING = {"starts": False, "elites": 0, "mutants": 0.0}  # no decisions but the policy's own
PRETRAINING = {"updates": 40, "samples": 32, **ALONE_LEARNING}
ZERO_SHOT_CALLS, TUNING_CALLS = 64, 640


def other_families(graph, seed):
    """GO on the graphs of ``SEEN`` that are of other families, each on its own cluster."""
    graphs = [one for one in SEEN if ZOO[one].family != ZOO[graph].family]
    pairs = [(one, own_cluster(one)) for one in graphs]
    return Pretraining.on(pairs, "go", f"{ZOO[graph].family}-{seed}", seed=seed, **PRETRAINING)


def from_nothing(label, **off):
    """An entry of GO that learns from nothing, with something switched off."""
    return Entry(label, agent="go", options=ALONE_LEARNING | off, graphs=ABLATED)


ENTRIES = {
    "default": Entry("default stack"),
    "heuristics": Entry("heuristics"),
    "in_turn": Entry("in turn", graphs=GRAPHS),
    "annealing": Entry("annealing"),
    "evolution": Entry("evolution", graphs=GRAPHS),
    "cross_entropy": Entry("cross-entropy", graphs=GRAPHS),
    "random": Entry("random", graphs=GRAPHS),
    "go": Entry("GO", agent="go", options=ALONE_LEARNING, graphs=GRAPHS),
    "go_search": Entry("GO + search", graphs=GRAPHS),
} | {
    f"{name}_seconds": Entry(f"{label}, equal seconds", name, seconds=SECONDS.get, graphs=tuple(SECONDS))
    for name, label in (("annealing", "annealing"), ("in_turn", "in turn"), ("go_search", "GO + search"))
}
ABLATIONS = {
    "go_untrained": from_nothing("without learning", learning_rate=1e-12),
    "go_not_ordered": from_nothing("levels without shared noise", ordered=0.0),
    "go_one_pass": from_nothing("one pass", passes=1),
    "go_not_joint": from_nothing("without joint layers", joint=False),
    "go_not_shared": from_nothing("without sharing", shared=False),
    "go_no_recurrence": from_nothing("without recurrence", recurrence=False),
}
STARTED = {
    "go_starts": Entry("GO from heuristics", agent="go", graphs=ABLATED),
    "go_starts_untrained": Entry(
        "from heuristics without learning", agent="go", options={"learning_rate": 1e-12}, graphs=ABLATED
    ),
    "go_timeline": Entry("told a timeline", agent="go", options={"timeline": True}, graphs=ABLATED),
}
NEW = {"agent": "go", "graphs": HELD_OUT}
ZERO_SHOT, TUNED = {"zero_shot": True, "budget": ZERO_SHOT_CALLS}, {"options": ALONE_LEARNING, "budget": TUNING_CALLS}
CARRIED = {
    "go_zero": Entry("zero-shot", pretraining=other_families, **NEW, **ZERO_SHOT),
    "go_zero_untrained": Entry("untrained", **NEW, **ZERO_SHOT),
    "go_tuned": Entry("fine-tuned", pretraining=other_families, **NEW, **TUNED),
    "go_tuned_untrained": Entry("from nothing", **NEW, **TUNED),
}
ENTRIES |= ABLATIONS | STARTED | CARRIED
TOGETHER = ("annealing", "evolution", "cross_entropy", "go", "go_search")
COMPARED = [
    *((method, "default") for method in ("heuristics", "in_turn", *TOGETHER)),
    *((method, "in_turn") for method in TOGETHER),
    ("go", "heuristics"), ("go", "go_untrained"), ("go_starts", "go_starts_untrained"), ("go_search", "annealing"),
    ("go_search_seconds", "annealing_seconds"), ("annealing_seconds", "in_turn_seconds"), ("best_known", "default"),
    ("go_zero", "go_zero_untrained"), ("go_zero", "default"), ("go_tuned", "go_tuned_untrained"), ("go_tuned", "go"),
]  # fmt: skip


def graph_of(case):
    """A case is ``GRAPH``, all three tasks, or ``GRAPH+TASK``, one of them."""
    return case.partition("+")[0]


def arguments(case):
    graph, _, task = case.partition("+")
    return {"graph": graph, "cluster": own_cluster(graph), "tasks": task or "+".join(TASKS)}


def parts_of_gain(problem, decision):
    """Step times where one task alone is as in the best decision, and where all but it are."""
    best, default = problem.parts(problem.check(decision)), problem.default

    def cost(parts):
        outcome = problem.evaluate(problem.decision_of(parts))
        return outcome.cost if outcome.valid else None

    return {
        task: {
            "alone": cost(default._replace(**{task: getattr(best, task)})),
            "without": cost(best._replace(**{task: getattr(default, task)})),
        }
        for task in TASKS
    }


def speedup(default, cost):
    """In percent; nothing where one of them is missing."""
    return "" if not default or not cost else f"{default / cost - 1:.1%}"


def label(name):
    """What tables call a method."""
    return ENTRIES[name].label if name in ENTRIES else name.replace("_", " ")


def summarise(runs, out):
    rows, today = [], EXPERIMENT.is_of_today(runs)
    for graph in GRAPHS:
        if not runs.of(graph, "default"):
            continue
        problem = EXPERIMENT.problem(graph)
        row = {"graph": graph, "cluster": own_cluster(graph), "ops": problem.num_tasks}
        row |= {name: runs.mean_cost(graph, name) for name in EXPERIMENT.names_in(runs)}
        row["alone"] = {task: runs.mean_cost(f"{graph}+{task}", "annealing") for task in TASKS}
        row["best_known"] = runs.best_known(graph)
        row["bound"] = max(problem.bounds().values()) if today else None
        row["parts"] = parts_of_gain(problem, runs.best_run(graph)["decision"])
        rows.append(row)
    against = comparisons(rows, COMPARED)
    return {
        "calls": CALLS, "seeds": EXPERIMENT.names_in(runs), "missing": EXPERIMENT.lacking(runs), "rows": rows,
        "against": against,
    }  # fmt: skip


EXPERIMENT = Experiment(
    room="joint",
    env="GraphOptimization-v0",
    arguments=arguments,
    graphs=GRAPHS + ALONE,
    entries=ENTRIES,
    budget=CALLS,
    summarise=summarise,
    cost=(".3f", "OOM", 1.0),
    before={"graph": lambda row: row["graph"], "cluster": lambda row: row["cluster"]},
    after={"best known": lambda row: f"{row['best_known']:.3f}", "bound": lambda row: f"{row['bound']:.3f}"},
    curves=Curves(
        "images/joint_curves.png",
        {"go": "C0", "go_search": "C2", "annealing": "C1", "in_turn": "C3"},
        line="default",
        labels=("simulator calls", "best step time so far, simulated (s)"),
        columns=5,
        graphs=GRAPHS,
    ),
)
