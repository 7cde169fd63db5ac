#!/usr/bin/env python
"""Captures the shipped graphs anew into envs_data/graphs. The same torch gives the same bytes.

python scripts/build_graphs.py                    every graph
python scripts/build_graphs.py bert_base resnet50 these
python scripts/build_graphs.py --check [NAME…]    writes nothing; exit 1 where a rebuilt file differs
python scripts/build_graphs.py --table            the statistics tables of the README, from the shipped files
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.graphs.graph import DTYPE_BYTES, VIEW
from graphopt_gym.graphs.io import read_graph, save_graph
from graphopt_gym.graphs.zoo.registry import ENTRIES, INFERENCE, MEASURED, TRAINING, ZOO


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
    """The statistics table of training steps and measured graphs in envs_data/graphs/README.md."""
    lines = [
        "| graph | split | paper's devices | ops | of them views | edges | groups | TFLOP | parameters (M) | KB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in (ZOO | MEASURED).items():
        lines.append(f"| {name} | {entry.split or ''} | {entry.devices or ''} | {_sizes(Path(entry.path(name)))} |")
    return lines


def _sizes(path: Path) -> str:
    """The columns from ``ops`` to ``KB`` of a shipped file."""
    graph = read_graph(path)
    facts = graph.statistics()
    views = int((graph.op_class == VIEW).sum())
    parameters = float((graph.param_bytes / np.array(list(DTYPE_BYTES.values()))[graph.dtype]).sum())
    return (
        f"{facts['ops']} | {views} | {facts['edges']} | {facts['groups']} | "
        f"{facts['flops'] / 1e12:.2f} | {parameters / 1e6:.1f} | {path.stat().st_size / 1024:.0f}"
    )


def training_table() -> list[str]:
    """The table of further training steps in envs_data/graphs/README.md."""
    lines = [
        "| graph | family | optimiser | ops | of them views | edges | groups | TFLOP | parameters (M) | KB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in TRAINING.items():
        lines.append(f"| {name} | {entry.family} | {entry.optimizer} | {_sizes(Path(entry.path(name)))} |")
    return lines


def package_for(num_ops: int) -> str:
    """The largest ring of small chips on which a chip has four ops or more on average."""
    return next((f"mcm{chips}" for chips in (36, 16, 9) if num_ops >= 4 * chips), "mcm4")


def inference_table() -> list[str]:
    """The table of inference graphs in envs_data/graphs/README.md."""
    from graphopt_gym.envs.chiplet.ops import chip_ops

    lines = [
        "| graph | family | split | type | ops for chips | edges | GFLOP | parameters on chips (MB) | package | KB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in INFERENCE.items():
        path = Path(entry.path(name))
        graph = read_graph(path)
        ops = chip_ops(graph)
        lines.append(
            f"| {name} | {entry.family} | {entry.split or ''} | {entry.dtype} | {ops.num_ops} | {len(ops.edges)} | "
            f"{graph.flops.sum() / 1e9:.2f} | {ops.param_bytes.sum() / 1e6:.1f} | {package_for(ops.num_ops)} | "
            f"{path.stat().st_size / 1024:.0f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare")
    parser.add_argument("--table", action="store_true", help="print the statistics table")
    given = parser.parse_args()
    if given.table:
        print("\n".join([*table(), "", *inference_table(), "", *training_table()]))
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
