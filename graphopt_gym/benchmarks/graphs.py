"""How fast graphs are read and built, and the package imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphopt_gym.benchmarks.timing import seconds
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import ComputationGraph
from graphopt_gym.graphs.io import read_graph, save_graph
from graphopt_gym.graphs.zoo import graph_names, load_graph

REPEATS = 5
GENERATED = (2_000, 80_000)


def graphs_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """The table behind ``graphopt bench graphs``: the least of a few repeats, for shipped and for random graphs."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for graph in [load_graph(name) for name in graph_names()] + [layered_dag(ops, seed=0) for ops in GENERATED]:
            say(graph.name)
            path = Path(folder) / f"{graph.name}.npz"
            save_graph(graph, path)
            rows.append(
                {
                    "graph": graph.name,
                    "ops": graph.num_ops,
                    "edges": graph.num_edges,
                    "file_bytes": path.stat().st_size,
                    "read_ms": _least_ms(read_graph, path),
                    "build_ms": _least_ms(ComputationGraph.replace, graph),
                }
            )
    command = [sys.executable, "-c", "import time; s = time.perf_counter(); import graphopt_gym; "
               "print(time.perf_counter() - s)"]  # fmt: skip
    import_s = min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(REPEATS))
    notes = [f"import graphopt_gym: {import_s:.2f} s in a new process, the least of {REPEATS}"]
    return {"title": "Graphs", "columns": list(rows[0]), "rows": rows, "notes": notes}


def _least_ms(function: Callable[[Any], object], argument: object) -> float:
    return min(seconds(function, argument) for _ in range(REPEATS)) * 1e3
