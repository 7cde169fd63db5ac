#!/usr/bin/env python
"""Captures the shipped graphs anew into envs_data/graphs. The same torch gives the same bytes.

python scripts/build_graphs.py                    every graph
python scripts/build_graphs.py bert_base resnet50 these
python scripts/build_graphs.py --check [NAME…]    writes nothing; exit 1 where a rebuilt file differs
python scripts/build_graphs.py --table            the statistics table of the README, from the shipped files
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.graphs.graph import VIEW
from graphopt_gym.graphs.io import read_graph, save_graph
from graphopt_gym.graphs.zoo.registry import INFERENCE, MEASURED, ZOO

ENTRIES = ZOO | INFERENCE | MEASURED


def build(name: str, path: Path) -> str:
    """Captures one graph into ``path``; a line that says what it is."""
    start = time.perf_counter()
    graph = ENTRIES[name].capture(name)
    save_graph(graph, path)
    facts = graph.statistics()
    return (
        f"{name}: {facts['ops']} ops, {facts['edges']} edges, {facts['groups']} groups, "
        f"{facts['flops'] / 1e12:.2f} TFLOP, {path.stat().st_size / 1024:.0f} KB, {time.perf_counter() - start:.1f} s"
    )


def table() -> list[str]:
    """The rows of the statistics table in envs_data/graphs/README.md."""
    lines = [
        "| graph | split | paper's devices | ops | of them views | edges | groups | TFLOP | parameters (M) | KB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in ENTRIES.items():
        path = Path(entry.path(name))
        graph = read_graph(path)
        facts = graph.statistics()
        views = int((graph.op_class == VIEW).sum())
        paper = f"{entry.split or ''} | {entry.devices or ''}"
        lines.append(
            f"| {name} | {paper} | {facts['ops']} | {views} | {facts['edges']} | {facts['groups']} | "
            f"{facts['flops'] / 1e12:.2f} | {facts['param_bytes'] / 4e6:.1f} | {path.stat().st_size / 1024:.0f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare")
    parser.add_argument("--table", action="store_true", help="print the statistics table")
    given = parser.parse_args()
    if given.table:
        print("\n".join(table()))
        return 0
    differ = 0
    for name in given.names or ENTRIES:
        if name not in ENTRIES:
            raise unknown_name("graph", name, ENTRIES)
        shipped = Path(ENTRIES[name].path(name))
        if not given.check:
            print(build(name, shipped), flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            line = build(name, Path(folder) / shipped.name)
            same = shipped.is_file() and (Path(folder) / shipped.name).read_bytes() == shipped.read_bytes()
        differ += not same
        print(f"{'same   ' if same else 'DIFFERS'} {line}", flush=True)
    return 1 if differ else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
