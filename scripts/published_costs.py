"""Gains under TENSAT's own accounting, and what a launch changes: ``python scripts/published_costs.py``.

Searches the networks of TENSAT's table with ``cost="published"`` (transposes free, work on weights counted, launches
hidden), which is the only row here that its table is to be compared with, and with kernel launches of 18, 5 and 2 us on
a T4. Keeps a row as it is done in ``envs_data/rewrite/published.json``, and writes the page. A quarter of an hour.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from graphopt_gym.data import data_path
from graphopt_gym.envs.rewrite.cost import with_launch
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.files import write_text
from graphopt_gym.hardware.cluster import load_device
from graphopt_gym.search.solve import solve

PROGRAMS = ("nasrnn_tensat", "bert_tensat", "squeezenet", "resnext50", "inception_v3", "vgg19", "nasnet_a")
METHODS = {"greedy": {}, "taso": {}, "saturation": {"k_multi": 1}}
LAUNCHES_US = (18.0, 5.0, 2.0)
HEAD = """# Rewriting: costs as TENSAT counts them, and what a launch changes

Written by `python scripts/published_costs.py`. Simulated on the catalog's T4. Under `cost="published"` transposes are
free beside reshapes and splits, operators on weights alone are counted, and launches are hidden, as in TENSAT's own
accounting: only these columns are to be compared with its table (recalled; Yang et al., MLSys 2021, on a real T4).
Speed-up: the original's time over the rewritten program's, minus 1. NasNet-A, ResNeXt-50, Inception-v3, SqueezeNet
and VGG-19 are built from their papers, not from TENSAT's files, so their programs may differ; extraction does not see
work on weights.
"""
LAUNCHES = """
## Launches

The best of the three methods as programs are deployed (transposes are copies, work on weights is done beforehand), with
the launch that the costs were fitted with, and with others: how much of a gain is launches that are saved.
"""
DOCS = Path(__file__).resolve().parent.parent / "docs"


def gains(problem: RewriteProblem, seconds: float) -> dict[str, float]:
    """Speed-up less one of each method."""
    return {
        method: problem.original_s
        / solve(problem, method, seconds=seconds, budget=10_000_000, options=options).outcome.cost
        - 1
        for method, options in METHODS.items()
    }


def row_of(name: str, seconds: float) -> dict:
    settings = {"published": RewriteProblem(name, "t4", cost="published"), "deployed": RewriteProblem(name, "t4")}
    for launch in LAUNCHES_US:
        settings[f"{launch:g} us"] = RewriteProblem(name, with_launch(load_device("t4"), launch * 1e-6))
    found = {setting: gains(problem, seconds) for setting, problem in settings.items()}
    return {
        "program": name,
        "seconds": seconds,
        "original_s": {key: problem.original_s for key, problem in settings.items()},
        **found,
    }


def page(rows: list[dict]) -> str:
    with open(data_path("published", "tensat_vs_taso.csv"), newline="", encoding="utf-8") as file:
        papers = {row["model"]: row for row in csv.DictReader(file)}

    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    given = [row["seconds"] for row in rows]
    lines = [
        HEAD,
        f"Each search had {min(given):g} to {max(given):g} s, on cores",
        "that were busy with other work: gains are lower bounds, and the search under one setting may have got further",
        "than under another.",
        "",
        "| program | greedy | TASO's search | saturation, k=1 | published: TASO | published: TENSAT |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = papers[row["program"].removesuffix("_tensat")]
        mine = " | ".join(percent(row["published"][method]) for method in METHODS)
        lines.append(
            f"| {row['program']} | {mine} | {paper['taso_speedup_percent']} % | {paper['tensat_speedup_percent']} % |"
        )
    launches = "".join(f" {launch:g} us |" for launch in LAUNCHES_US)
    lines += [
        LAUNCHES,
        f"| program | as fitted |{launches} launches hidden, as published |",
        "|---|---|" + "---|" * (len(LAUNCHES_US) + 1),
    ]
    for row in rows:
        settings = ["deployed", *(f"{launch:g} us" for launch in LAUNCHES_US), "published"]
        cells = " | ".join(percent(max(row[setting].values())) for setting in settings)
        lines.append(f"| {row['program']} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=data_path("rewrite", "published.json"))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each search")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    for name in PROGRAMS:
        if not any(row["program"] == name for row in rows):
            print(f"{len(rows)} of {len(PROGRAMS)}: {name}", file=sys.stderr, flush=True)
            rows.append(row_of(name, options.seconds))
            write_text(options.out, json.dumps(rows, indent=1) + "\n")
    write_text(DOCS / "rewrite_published.md", page(rows))


if __name__ == "__main__":
    main()
