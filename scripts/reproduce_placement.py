#!/usr/bin/env python3
"""The placement experiment: GDP, HDP and the classical methods on the fourteen graphs of GO's table 1.

1. Every method on every graph, the learned ones from scratch, at equal simulator calls and at equal seconds.
2. GDP pre-trained on the graphs of the other families: zero-shot, and fine-tuned, with and without superposition.
3. The calls and seconds that GDP needs to reach HDP's best.
4. Ablations of GDP's network.

    python scripts/reproduce_placement.py              # what is missing, then the tables; can be interrupted
    python scripts/reproduce_placement.py --tables     # the tables of what is there
    python scripts/reproduce_placement.py --graphs gnmt_8layer --methods gdp,annealing --seeds 0

Every run is one (graph, method, seed) and is kept as a file of its own under ``out/placement``; a run that is there,
of the same graph, cluster and op times, is not repeated, and several processes may share the work. All methods get
the same number of simulator calls, but for HDP (it is slow), and those whose names end in ``_seconds``. Pre-trained
networks are kept too, and trained when a run needs them. The results, with decisions and curves, go to
``envs_data/placement``, tables and curves to ``docs/placement.md``.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
for folder in (ROOT, ROOT / "agents", ROOT / "scripts"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
from experiment import (  # noqa: E402
    ALMOST,
    Runs,
    best_known,
    claim,
    cost_after,
    draw_curves,
    geometric_mean,
    jobs,
    mean_cost,
    read_runs,
    reductions,
    run_jobs,
    saved,
    ship_checkpoint,
    store_runs,
    stored_runs,
)

from graphopt_gym.data import data_path  # noqa: E402
from graphopt_gym.envs.placement.problem import PlacementProblem  # noqa: E402
from graphopt_gym.files import write_text  # noqa: E402
from graphopt_gym.graphs.zoo.registry import SPLITS, ZOO, held_out, own_cluster  # noqa: E402
from graphopt_gym.problem import Solution  # noqa: E402
from graphopt_gym.search.solve import Evaluator, Method, solve  # noqa: E402

ROOM = "placement"  # of envs_data
CALLS = 12_800  # simulator calls of a run: 200 updates of GDP
HDP_CALLS = 1_600  # of a run of HDP: a placement takes it 15 to 100 ms, and its policy has long decided by then
SEEDS = (0, 1, 2)
SECONDS = 20.0  # of the runs that are compared at equal seconds
PRETRAINING = {
    "updates": 150,
    "samples": 32,
    "learning_rate": 1e-3,
    "entropy": 0.02,
    "imitation": 1.0,
    "checkpoint_every": 50,
}
SHIPPED_UPDATES = 600  # of the policy that is shipped
TOO_LONG = ("gnmt_8layer",)  # to pre-train on: it would take a third of the time
ALSO = ("bert_base", "gpt2_small", "resnet50")  # pre-trained on beside the papers' graphs
TUNING_CALLS = CALLS // 10
TUNING = {"samples": 26}  # so that these are 50 updates
ZERO_SHOT_CALLS = 64
ABLATED = ("inception_v3_b32", "rnnlm_4layer", "transformer_xl_4layer", "wavenet_2x18")
LONG_S = 60.0  # seconds of the long annealing that estimates the optimum
Run = Callable[[Evaluator, np.random.Generator], None]


def gdp(**arguments: Any) -> Run:
    from graphopt_agents import gdp as gdp_agent

    return gdp_agent.method_run(**arguments)


def gdp_search() -> Run:
    from graphopt_agents import gdp_search

    return gdp_search.method_run()


def hdp() -> Run:
    from graphopt_agents import hdp

    return hdp.method_run()


# name -> (what makes its run, or None for a method of the package; whether the seed matters)
METHODS: dict[str, tuple[Callable[[], Run] | None, bool]] = {
    "gdp": (lambda: gdp(starts=False), True),
    "gdp_starts": (gdp, True),
    "gdp_search": (gdp_search, True),
    "gdp_search_seconds": (gdp_search, True),
    "hdp": (hdp, True),
    "annealing": (None, True),
    "annealing_random": (None, True),
    "annealing_seconds": (None, True),
    "cross_entropy": (None, True),
    "hill_climbing": (None, True),
    "random": (None, True),
    "metis": (None, True),
    "single": (None, False),
    "expert": (None, False),
    "heft": (None, False),
    "m_topo": (None, False),
    "m_etf": (None, False),
    "m_sct": (None, False),
    "annealing_long": (None, False),
    "gdp_zero": (None, True),
    "gdp_untrained": (None, True),
    "gdp_tuned": (None, True),
    "gdp_tuned_untrained": (lambda: gdp(starts=False, **TUNING), True),
    "gdp_zero_no_superposition": (None, True),
    "gdp_tuned_no_superposition": (None, True),
    "gdp_no_graph_network": (lambda: gdp(starts=False, sage_layers=0), True),
    "gdp_no_attention": (lambda: gdp(starts=False, attention=False), True),
    "gdp_no_recurrence": (lambda: gdp(starts=False, recurrence=False), True),
    "gdp_no_superposition": (lambda: gdp(starts=False, superposition=False), True),
}
TRANSFER = [name for name in METHODS if name.startswith(("gdp_zero", "gdp_tuned", "gdp_untrained"))]
TRANSFER.remove("gdp_tuned_untrained")
ABLATIONS = [name for name in METHODS if name.startswith("gdp_no_")]


def pretrained(out: Path, family: str | None, superposition: bool, seed: int, **arguments: Any) -> Path:
    """The folder of a network that was trained on all families but one (None: all); trains it where it is missing."""
    from graphopt_agents.gdp import Args, train

    folder = out / "pretrained" / f"{family or 'all'}{'' if superposition else '-no_superposition'}-{seed}"
    finished = folder / "finished"
    if finished.exists():
        return folder
    papers = held_out(family)[0] if family else SPLITS["papers"]
    names = [name for name in (*papers, *ALSO) if name not in TOO_LONG]
    pairs = [(name, ZOO[name].cluster or "v100x4") for name in names]
    # on other numbers of devices too, but what is too large for fewer, or too small for more
    pairs += [
        (name, cluster)
        for name in names
        for cluster in ("p100x2", "p100x4", "p100x8")
        if cluster != ZOO[name].cluster and not name.startswith(("transformer_xl_2", "transformer_xl_8"))
    ]
    graphs, clusters = zip(*pairs, strict=True)
    given: dict[str, Any] = {**PRETRAINING, **arguments}
    args = Args(graphs=graphs, clusters=clusters, superposition=superposition, seed=seed, **given)
    with claim(folder.with_suffix(".claim")):
        result = train(args, folder, resume=(folder / "checkpoint.pt").exists())
        if result.interrupted:
            raise KeyboardInterrupt
        write_text(finished, f"{result.evaluations} evaluations, {result.wall_s:.1f} s\n")
    print(
        f"pre-trained {folder.name}: {result.evaluations:,} calls, {result.wall_s:.1f} s", file=sys.stderr, flush=True
    )
    return folder


def ship(out: Path) -> None:
    """Train the policy that is shipped, on all families, and write it without what only training needs."""
    folder = pretrained(out, None, True, 0, updates=SHIPPED_UPDATES)
    ship_checkpoint(folder, "gdp", "python scripts/reproduce_placement.py --ship")


def transfer(out: Path, graph: str, name: str, seed: int) -> tuple[Run, int]:
    """(run, simulator calls) of a method of TRANSFER."""
    from graphopt_agents import gdp as gdp_agent

    if name != "gdp_untrained":
        folder = pretrained(out, ZOO[graph].family, not name.endswith("_no_superposition"), seed)
    if name.startswith("gdp_tuned"):
        return gdp_agent.method_run(folder, starts=False, **TUNING), TUNING_CALLS

    def zero_shot(evaluator: Evaluator, rng: np.random.Generator) -> None:
        task = gdp_agent.task_of(evaluator.problem, None, evaluator.costs_and_valid)
        if name == "gdp_untrained":
            network = gdp_agent.Trainer(gdp_agent.Args(seed=seed), [task]).network
        else:
            network = gdp_agent.load_network(folder)
        gdp_agent.place(network, task, ZERO_SHOT_CALLS, int(rng.integers(2**31)))

    return zero_shot, ZERO_SHOT_CALLS


def run_method(out: Path, problem: PlacementProblem, graph: str, name: str, seed: int) -> Solution:
    make, _ = METHODS[name]
    calls, seconds = CALLS, None
    method: str | Method = name
    if make is not None:
        method = Method(name, make(), "", "", random=True)
    if name in TRANSFER:
        run, calls = transfer(out, graph, name, seed)
        method = Method(name, run, "", "", random=True)
    elif name in ("hdp", "gdp_tuned_untrained"):
        calls = HDP_CALLS if name == "hdp" else TUNING_CALLS
    elif name.endswith("_seconds"):
        method, calls, seconds = "annealing" if make is None else method, 10**9, SECONDS
    elif name == "annealing_long":
        method, calls, seconds = "annealing", 10**9, LONG_S
    return solve(problem, method, budget=calls, seconds=seconds, seed=seed)


def run_all(out: Path, graphs: list[str], methods: list[str], seeds: tuple[int, ...]) -> None:
    run_jobs(
        out,
        jobs(
            graphs,
            methods,
            seeds,
            lambda name: METHODS[name][1],
            lambda graph, name: name not in ABLATIONS or graph in ABLATED,
        ),
        lambda graph: PlacementProblem(graph, own_cluster(graph)),
        lambda problem, job, target: saved(run_method(out, problem, *job), target),
    )


# ---- tables


def to_reach_hdp(runs: Runs, graph: str) -> dict[str, Any]:
    """Calls and seconds until GDP and HDP reached HDP's best, their ratios, and GDP's cost at as many calls."""
    calls, seconds, missed, costs = [], [], 0, []
    for seed in SEEDS:
        mine, theirs = runs.get((graph, "gdp", seed)), runs.get((graph, "hdp", seed))
        if not mine or not theirs or not theirs["valid"]:
            continue
        costs.append(cost_after(mine, theirs["evaluations"]))
        ours = next((entry for entry in mine["history"] if entry[2] <= theirs["cost"]), None)
        if ours is None:
            missed += 1
            continue
        last = theirs["history"][-1]
        calls.append((last[0], ours[0]))
        seconds.append((last[1], ours[1]))
    return {
        "hdp_calls": float(np.mean([hdp for hdp, _ in calls])) if calls else None,
        "gdp_calls": float(np.mean([gdp for _, gdp in calls])) if calls else None,
        "calls_ratio": geometric_mean([hdp / gdp for hdp, gdp in calls]),
        "seconds_ratio": geometric_mean([hdp / gdp for hdp, gdp in seconds]),
        "missed": missed,
        "gdp_at_hdps_calls": float(np.mean(costs)) if costs else None,
    }


def transfer_row(runs: Runs, graph: str, suffix: str) -> dict[str, Any]:
    """Means over seeds of pre-trained policies on a graph of the family that was held out."""

    def mean(method: str, calls: int) -> float | None:
        costs = [cost_after(run, calls) for (g, m, _), run in runs.items() if (g, m) == (graph, method)]
        return float(np.mean(costs)) if costs else None

    return {
        "zero_1": mean("gdp_zero" + suffix, 1),
        "zero": mean("gdp_zero" + suffix, ZERO_SHOT_CALLS),
        "untrained": mean("gdp_untrained", ZERO_SHOT_CALLS),
        "tuned": mean("gdp_tuned" + suffix, TUNING_CALLS),
        "tuned_untrained": mean("gdp_tuned_untrained", TUNING_CALLS),
        "scratch": mean("gdp", CALLS),
    }


def summarise(runs: Runs) -> dict[str, Any]:
    published = {row["model"]: row for row in csv.DictReader(data_path("published", "go_table1_placement.csv").open())}
    names = [name for name in METHODS if any(method == name for _, method, _ in runs)]
    rows = []
    for graph in SPLITS["papers"]:
        row: dict[str, Any] = {"graph": graph, "cluster": ZOO[graph].cluster}
        row |= {name: mean_cost(runs, graph, name) for name in names}
        bounds = PlacementProblem(graph, ZOO[graph].cluster).bounds()
        row["bound"] = max(bounds.values())
        row["best_known"] = best_known(runs, graph)
        expert = row.get("expert")
        row["no_room"] = expert is not None and expert <= 1.01 * row["best_known"]
        row["to_reach_hdp"] = to_reach_hdp(runs, graph)
        row["transfer"] = {name: transfer_row(runs, graph, name) for name in ("", "_no_superposition")}
        row["published"] = {
            key: published[graph][key] for key in ("go_one_s", "human_s", "metis_s", "hdp_s", "search_speedup_vs_hdp")
        }
        rows.append(row)
    for row in rows:
        row["gdp_at_hdps_calls"] = row["to_reach_hdp"]["gdp_at_hdps_calls"]
        row["zero_shot"], row["untrained"] = row["transfer"][""]["zero"], row["transfer"][""]["untrained"]
        for name in ("tuned", "tuned_untrained", "scratch"):
            row[name] = row["transfer"][""][name]
        for name in ("zero", "tuned"):
            row[f"{name}_plain"] = row["transfer"]["_no_superposition"][name]
    pairs = [
        (method, baseline)
        for method in ("gdp", "gdp_starts", "gdp_search")
        for baseline in ("expert", "metis", "hdp", "annealing", "hill_climbing", "cross_entropy")
    ]
    pairs += [
        ("gdp_at_hdps_calls", "hdp"),
        ("gdp_search_seconds", "annealing_seconds"),
        ("gdp_search_seconds", "expert"),
        ("best_known", "expert"),
        ("zero_shot", "expert"),
        ("zero_shot", "untrained"),
        ("zero_shot", "zero_plain"),
        ("tuned", "expert"),
        ("tuned", "tuned_untrained"),
        ("tuned", "scratch"),
        ("tuned", "tuned_plain"),
    ]
    against = [
        reductions(rows, method, baseline)
        for method, baseline in pairs
        if all(any(row.get(name) is not None for row in rows) for name in (method, baseline))
    ]
    seeds = {name: len({seed for _, method, seed in runs if method == name}) for name in names}
    return {"calls": CALLS, "seeds": seeds, "rows": rows, "against": against}


SHOWN = {
    "gdp": "GDP-one",
    "gdp_starts": "GDP from heuristics",
    "gdp_search": "GDP + search",
    "gdp_search_seconds": f"GDP + search, {SECONDS:.0f} s",
    "gdp_zero": "zero-shot",
    "gdp_untrained": "untrained",
    "gdp_tuned_untrained": f"from scratch, {TUNING_CALLS:,} calls",
    "gdp_tuned": "fine-tuned",
    "gdp_zero_no_superposition": "zero-shot, without superposition",
    "gdp_tuned_no_superposition": "fine-tuned, without superposition",
    "hdp": "HDP",
    "annealing": "annealing",
    "annealing_seconds": f"annealing, {SECONDS:.0f} s",
    "annealing_long": f"annealing, {LONG_S:.0f} s",
    "annealing_random": "annealing from random",
    "hill_climbing": "hill climbing",
    "cross_entropy": "cross-entropy",
    "random": "random",
    "expert": "expert",
    "metis": "METIS",
    "heft": "HEFT",
    "m_topo": "m-TOPO",
    "m_etf": "m-ETF",
    "m_sct": "m-SCT",
    "single": "one device",
    "gdp_no_graph_network": "without the graph network",
    "gdp_no_attention": "without attention",
    "gdp_no_recurrence": "without recurrence",
    "gdp_no_superposition": "without superposition",
}


SHOWN_ALSO = {
    "gdp_at_hdps_calls": "GDP-one at HDP's calls",
    "best_known": "best known",
    "untrained": f"untrained network, {ZERO_SHOT_CALLS} evaluations",
    "zero_shot": f"zero-shot, {ZERO_SHOT_CALLS} evaluations",
    "zero_plain": f"zero-shot without superposition, {ZERO_SHOT_CALLS} evaluations",
    "tuned": f"fine-tuned, {TUNING_CALLS:,} evaluations",
    "tuned_plain": f"fine-tuned without superposition, {TUNING_CALLS:,} evaluations",
    "tuned_untrained": f"from scratch in the same way, {TUNING_CALLS:,} evaluations",
    "scratch": "GDP-one",
}


def document(summary: dict[str, Any]) -> str:
    shown = {**SHOWN, **SHOWN_ALSO}

    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}" if np.isfinite(value) else "OOM"

    def ratio(a: Any, b: Any) -> str:
        try:
            value = float(a) / float(b)
        except (TypeError, ValueError):
            return ""
        return f"{value:.2f}" if np.isfinite(value) else ""

    def table(names: list[str], rows: list[dict[str, Any]]) -> list[str]:
        there = [name for name in names if name in summary["seeds"]]
        lines = [
            "| graph | cluster | " + " | ".join(shown[name] for name in there) + " | best known | bound |",
            "|---|---|" + "---|" * (len(there) + 2),
        ]
        for row in rows:
            best = min((row[name] for name in there if row[name] is not None), default=None)
            cells = [
                f"**{seconds(row[name])}**"
                if row[name] is not None and np.isfinite(best) and row[name] <= best * (1 + ALMOST)
                else seconds(row[name])
                for name in there
            ]
            mark = " (no room)" if row["no_room"] else ""
            lines.append(
                f"| {row['graph']}{mark} | {row['cluster']} | {' | '.join(cells)} | {seconds(row['best_known'])} | "
                f"{seconds(row['bound'])} |"
            )
        return lines

    def transfer_table() -> list[str]:
        lines = [
            f"| graph | expert | 1 evaluation | {ZERO_SHOT_CALLS} | untrained, {ZERO_SHOT_CALLS} | "
            f"fine-tuned, {TUNING_CALLS:,} | untrained, {TUNING_CALLS:,} | GDP-one, {CALLS:,} | "
            f"without superposition: {ZERO_SHOT_CALLS} | fine-tuned, {TUNING_CALLS:,} |",
            "|---" * 10 + "|",
        ]
        for row in summary["rows"]:
            one, plain = row["transfer"][""], row["transfer"]["_no_superposition"]
            names = ("zero_1", "zero", "untrained", "tuned", "tuned_untrained", "scratch")
            cells = [one[name] for name in names] + [plain[name] for name in ("zero", "tuned")]
            lines.append(f"| {row['graph']} | {' | '.join(map(seconds, [row.get('expert'), *cells]))} |")
        return lines

    rows = summary["rows"]
    seeds = ", ".join(f"{shown[name]} {count}" for name, count in summary["seeds"].items())
    lines = [
        "# Placement: GDP beside HDP and the classical methods",
        "",
        "Written by `graphopt reproduce placement` (`python scripts/reproduce_placement.py`); the runs, with decisions",
        "and curves, are in `envs_data/placement/`. Step times are **simulated**, in seconds, the mean over seeds of",
        f"the best placement found. Every method got {summary['calls']:,} simulator calls (constructive ones use one",
        f"or a few), but for HDP ({HDP_CALLS:,}: its two LSTMs take 15 to 100 ms a placement, and its policy has long",
        "settled by then) and where seconds are named. OOM: a seed found nothing that fits in memory. *No room*: the",
        "expert is within 1 % of the best step time known. Bound: the larger of the critical path and the work spread",
        "evenly. Bold: the best of the row.",
        "",
        "GDP-one learns from nothing, as the papers' does. *From heuristics*: the placements that annealing, hill",
        "climbing and the cross-entropy method start from too (expert, METIS, HEFT, m-ETF, one device) are the first",
        "it learns from, so it cannot end behind the expert. *GDP + search*: a quarter of the budget for that, the",
        "rest for annealing from its best, where the policy proposes a fifth of the moves.",
        "",
        f"Seeds: {seeds}.",
        "",
        "## Learned methods and searches",
        "",
        *table(
            ["gdp", "gdp_starts", "gdp_search", "hdp", "annealing", "hill_climbing", "cross_entropy", "expert"], rows
        ),
        "",
        f"At equal seconds ({SECONDS:.0f}, on a machine that was busy with two such runs at a time):",
        "",
        *table(["gdp_search_seconds", "annealing_seconds", "annealing_long", "expert"], rows),
        "",
        "## Classical methods",
        "",
        *table(["expert", "metis", "heft", "m_topo", "m_etf", "m_sct", "single", "annealing_random", "random"], rows),
        "",
        "Everything on one device is often hard to beat: where it fits, only a placement that hides its transfers is",
        "faster.",
        "",
        "## Summary",
        "",
        "Reduction: 1 minus the geometric mean of the ratio of step times, over the rows where both fit in memory.",
        f"A row is won or lost where the two differ by more than {ALMOST:.2%}.",
        "",
        "| method | against | rows | won | lost | out of memory (method / baseline) | reduction of step time |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in summary["against"]:
        cut = "" if entry["reduction"] is None else f"{entry['reduction']:.1%}"
        lines.append(
            f"| {shown[entry['method']]} | {shown[entry['against']]} | {entry['rows']} | {entry['wins']} | "
            f"{entry['losses']} | {entry['out_of_memory']} / {entry['baseline_out_of_memory']} | {cut} |"
        )
    lines += [
        "",
        "*Best known* against the expert is the room there is: no method that was run has found more.",
        "",
        "![best step time against simulator calls](images/placement_curves.png)",
        "",
        "## Beside the published table",
        "",
        "GO's table 1 (Zhou et al. 2020; read from a reproduced table) is measured on real GPUs, at batch sizes that",
        "are not known; ours is simulated. So compare ratios, not seconds. To reach HDP's best: simulator calls and",
        "seconds that HDP needs over those that GDP-one needs (geometric means over the seeds that reach it).",
        "",
        "| graph | GDP / expert, ours | GO / human, published | GDP / HDP, ours | GO / HDP, published | "
        "HDP's calls | GDP's calls | ratio of calls | of seconds | published speed-up | seeds that miss |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        paper, reach = row["published"], row["to_reach_hdp"]
        figures = [
            "" if reach[name] is None else f"{reach[name]:,.{digits}f}"
            for name, digits in (("hdp_calls", 0), ("gdp_calls", 0), ("calls_ratio", 1), ("seconds_ratio", 1))
        ]
        lines.append(
            f"| {row['graph']} | {ratio(row.get('gdp'), row.get('expert'))} | "
            f"{ratio(paper['go_one_s'], paper['human_s'])} | {ratio(row.get('gdp'), row.get('hdp'))} | "
            f"{ratio(paper['go_one_s'], paper['hdp_s'])} | {' | '.join(figures)} | "
            f"{paper['search_speedup_vs_hdp']} | {reach['missed']} |"
        )
    if any(row["transfer"][""]["zero"] is not None for row in rows):
        lines += [
            "",
            "## One policy for graphs it has not seen",
            "",
            "For each family a network was trained on the graphs of the other families",
            f"({PRETRAINING['updates']} updates, {len(SEEDS)} seeds; with them {', '.join(ALSO)}; all on 2, 4 and 8",
            f"devices; {', '.join(TOO_LONG)} takes too long). Zero-shot: its weights as they are, the best of 1 or",
            f"{ZERO_SHOT_CALLS} evaluations. Fine-tuned: 50 updates of {TUNING['samples']} evaluations. Neither begins",
            "with placements of heuristics. Of the 64 evaluations all but the first few change a block of the best so",
            "far, a search by itself, and so does half of training. *Untrained* is the same with a network that knows",
            "nothing at first, so the difference between the two is what was carried over from other families.",
            "",
            *transfer_table(),
        ]
    ablations = [name for name in METHODS if name.startswith("gdp_no_") and name in summary["seeds"]]
    if ablations:
        lines += [
            "",
            "## Ablations",
            "",
            f"GDP-one on four graphs of different families, {summary['calls']:,} calls, {len(SEEDS)} seeds.",
            "",
            *table(["gdp", *ablations], [row for row in rows if row["graph"] in ABLATED]),
        ]
        lines += ["", "| without | step time to GDP-one's, geometric mean | worse on |", "|---|---|---|"]
        for name in ablations:
            pairs = [(row[name], row["gdp"]) for row in rows if row[name] is not None and row["gdp"] is not None]
            mean = geometric_mean([a / b for a, b in pairs if np.isfinite(a) and np.isfinite(b)])
            worse = sum(a > b * (1 + ALMOST) for a, b in pairs)
            lines.append(f"| {shown[name].removeprefix('without ')} | {mean or 0:.3f} | {worse} of {len(pairs)} |")
    return "\n".join(lines) + "\n"


def write_tables(out: Path) -> None:
    runs = read_runs(out)
    if not runs:
        print(f"no runs under {out}: the tables of those that are stored", file=sys.stderr)
        runs = stored_runs(ROOM)
    summary = summarise(runs)
    store_runs(ROOM, runs, summary)
    draw_curves(
        runs,
        SPLITS["papers"],
        {"gdp": (SHOWN["gdp"], "C0"), "gdp_search": (SHOWN["gdp_search"], "C2")}
        | {"annealing": (SHOWN["annealing"], "C1"), "hdp": (SHOWN["hdp"], "C3")},
        ROOT / "docs" / "images" / "placement_curves.png",
        columns=4,
        calls=CALLS,
        labels=("simulator calls", "best step time so far, simulated (s)"),
        line=("expert", "expert"),
    )
    write_text(ROOT / "docs" / "placement.md", document(summary))
    print(f"wrote {data_path(ROOM)} and {ROOT / 'docs' / 'placement.md'}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "placement")
    parser.add_argument("--graphs", default=",".join(SPLITS["papers"]))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is there")
    parser.add_argument("--ship", action="store_true", help="only train the policy that is shipped")
    args = parser.parse_args()
    if args.ship:
        ship(args.out)
        return
    if not args.tables:
        seeds = tuple(int(seed) for seed in args.seeds.split(","))
        run_all(args.out, args.graphs.split(","), args.methods.split(","), seeds)
    write_tables(args.out)


if __name__ == "__main__":
    main()
