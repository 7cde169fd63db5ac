"""Runs twenty placements of three models on two workers of this machine: ``python scripts/check_execution.py``.

Calibrates nothing by itself: the device is that of ``envs_data/calibration/my_cpu.toml``, which
``check_calibration.py`` makes on the same machine, or ``--device FILE``. Measures the link between two workers,
captures the models of ``scripts/examples/small_models.py``, places them by HEFT and runs that and nineteen further
placements each (methods, and random ones whose simulated step times spread). Keeps, in ``envs_data/execution``, the
cluster and all figures. About eleven minutes; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from graphopt_gym.data import data_path
from graphopt_gym.files import write_text

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("transformer", "branches", "convnet")
PLACEMENTS = 20


def graphopt(*arguments: object, folder: Path) -> str:
    """Standard output of a command."""
    path = os.pathsep.join([str(ROOT / "scripts" / "examples"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "graphopt_gym", *map(str, arguments)]
    return subprocess.run(
        command, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=Path, default=data_path("calibration", "my_cpu.toml"))
    parser.add_argument("--out", type=Path, default=data_path("execution"))
    options = parser.parse_args()
    kept = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        cluster = folder / "two_workers.toml"
        link = json.loads(
            graphopt(
                "execute", "--write-cluster", cluster, "--device", options.device.resolve(), "--workers", 2, "--json",
                folder=folder,
            )
        )  # fmt: skip
        kept["link"] = {name: link[name] for name in ("latency_s", "link_bytes_per_s", "transport", "fit_error")}
        for model in MODELS:
            graph, solution = f"{model}.npz", f"{model}.json"
            graphopt("capture", f"small_models:{model}", "--out", graph, folder=folder)
            graphopt(
                "solve", "Placement-v0", "--graph", graph, "--cluster", cluster, "--method", "heft", "--out", solution,
                folder=folder,
            )  # fmt: skip
            found = json.loads(
                graphopt("execute", solution, "--model", f"small_models:{model}", "--decisions", PLACEMENTS, "--json",
                         folder=folder)
            )  # fmt: skip
            [table] = found["tables"]
            kept[model] = {**table, "facts": found["facts"], "ok": found["ok"]}
            print(f"{model}: Spearman {table['rank_correlation']:.3f}, mean error {table['mean_error_percent']:.1f} %")
        options.out.mkdir(parents=True, exist_ok=True)
        write_text(options.out / "two_workers.toml", cluster.read_text(encoding="utf-8"))
    write_text(options.out / "placements.json", json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
