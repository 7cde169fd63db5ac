"""A learned scheduler of gangs on larger islands and on programs that it has not seen; half an hour, resumable.

Trained on small drawn tenants and pipelines on one island of 32 cores, one network a seed; tried as it is,
beside the same network untrained, rules, a random search and annealing, at equal decisions.
"""

import csv

from experiments.runner import Curves, Entry, Experiment, Pretraining
from experiments.runner.curves import panels, save
from experiments.runner.tables import comparisons, mean, stored_summary
from graphopt_gym.envs.gang.bounds import least_cost

DECISIONS = 32  # that are tried on a workload
SMALL = "pathways_b_4hosts"  # one island of 32 cores
TRAINED_ON = ("crossing:pipelines=1-2:services=2-4:calls=4-8:seed=0-5", "pipelines:micro_batches=4:seed=0-5")
TRAINING = {"updates": 30}
CASES = {  # workload and machine; what is new about it
    "crossing:seed=100": (SMALL, "drawn as those trained on"),
    "crossing:seed=101": (SMALL, "drawn as those trained on"),
    "tenants_crossing": (SMALL, "more calls"),
    "pipelines:stages=4:micro_batches=16:seed=100": (SMALL, "more micro-batches"),
    "tenants_crossing_128": ("pathways_b_16hosts", "four times the cores, more clients"),
    "crossing:cores=512:pipelines=4-6:services=8-12:calls=12:seed=100": ("pathways_b", "16 times the cores"),
    "tenants_mixed": ("pathways_c", "four islands, other programs"),
    "encoder_decoder": (SMALL, "other pipelines"),
    "inception_v3_pipelines": (SMALL, "captured"),
    "amoebanet_pipelines": (SMALL, "captured"),
    "gnmt_pipelines": (SMALL, "captured"),
}


def trained(graph, seed):
    """One network a seed for all cases."""
    return pretraining(seed)


def pretraining(seed):
    return Pretraining("gang", f"small-{seed}",
                       lambda out: {"graphs": TRAINED_ON, "clusters": (SMALL,), "seed": seed, **TRAINING})  # fmt: skip


ENTRIES = {
    "fifo": Entry("FIFO"),
    "stride": Entry("stride"),
    "longest": Entry("longest"),
    "backfill": Entry("backfill"),
    "backfill_longest": Entry("backfill, longest"),
    "heuristics": Entry("rules, as many"),
    "rules": Entry("all rules", "heuristics", budget=1000),
    "random": Entry("random decisions"),
    "annealing": Entry("annealing"),
    "learned_1": Entry("learned, likeliest", agent="gang", zero_shot=True, pretraining=trained, budget=1),
    "learned": Entry("learned", agent="gang", zero_shot=True, pretraining=trained),
    "untrained_1": Entry("untrained, likeliest", agent="gang", zero_shot=True, budget=1),
    "untrained": Entry("untrained", agent="gang", zero_shot=True),
}
COMPARED = [
    ("learned_1", "fifo"), ("learned_1", "stride"), ("learned_1", "backfill_longest"), ("learned_1", "untrained_1"),
    ("learned", "fifo"), ("learned", "heuristics"), ("learned", "rules"), ("learned", "untrained"),
    ("learned", "random"), ("learned", "annealing"), ("untrained", "rules"), ("annealing", "rules"),
]  # fmt: skip


def curves_of(out):
    """(update, mean reward of its candidates, episodes so far), by seed, of networks trained under a folder; or else
    of those that are stored."""
    found = {}
    for seed in EXPERIMENT.seeds:
        path = out / "pretrained" / pretraining(seed).name / "curve.csv"
        if path.exists():
            with path.open(encoding="utf-8", newline="") as lines:
                rows = list(csv.DictReader(lines))
            updates = {row["update"]: [one for one in rows if one["update"] == row["update"]] for row in rows}
            found[str(seed)] = [
                [int(update), round(mean(float(one["mean_reward"]) for one in mine), 6),
                 sum(int(one["evaluations"]) for one in mine)]
                for update, mine in updates.items()
            ]  # fmt: skip
    return found or stored_summary("gang_transfer")["curves"]


def summarise(runs, out):
    rows = []
    for graph in (one for one in EXPERIMENT.graphs if runs.of(one, "fifo")):
        problem = EXPERIMENT.problem(graph)
        row = {"graph": graph, "cluster": problem.cluster_name, "new": CASES[graph][1], "gangs": problem.num_gangs}
        row |= {name: runs.mean_cost(graph, name) for name in EXPERIMENT.names_in(runs)}
        row |= {"best_known": runs.best_known(graph), "bound": least_cost(problem)}
        rows.append(row)
    against = comparisons(rows, COMPARED)
    return {"seeds": EXPERIMENT.names_in(runs), "rows": rows, "against": against, "curves": curves_of(out)}


def draw(runs, summary, folder):
    """Mean reward of the candidates of each update."""
    figure, (axis,) = panels(1, 1, (7, 4))
    for seed, curve in summary["curves"].items():
        axis.plot([one[0] for one in curve], [one[1] for one in curve], linewidth=1.3, label=f"seed {seed}")
    axis.set_xlabel("update", fontsize=11)
    axis.set_ylabel("1 - cost to FIFO, mean of candidates", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.tight_layout()
    save(figure, folder / "images" / "gang_transfer_training.png", 80)


EXPERIMENT = Experiment(
    room="gang_transfer",
    env="GangScheduling-v0",
    arguments=lambda graph: {"graph": graph, "cluster": CASES[graph][0], "place": False},
    graphs=tuple(CASES),
    entries=ENTRIES,
    budget=DECISIONS,
    summarise=summarise,
    draw=draw,
    cost=(",.2f", "invalid", 1e3),
    before={
        "workload": lambda row: f"`{row['graph']}`",
        "machine": lambda row: row["cluster"],
        "new": lambda row: row["new"],
        "gangs": lambda row: row["gangs"],
    },
    after={"bound": lambda row: f"{row['bound'] * 1e3:,.2f}"},
    curves=Curves(
        "images/gang_transfer.png",
        {"learned": "C0", "untrained": "C7", "annealing": "C1", "random": "C3"},
        line="fifo",
        labels=("decisions", "best step time so far, simulated (ms)"),
        columns=4,
    ),
    shipped=("gang", pretraining(0)),
)
