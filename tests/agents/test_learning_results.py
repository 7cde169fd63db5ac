"""The stored learning experiment says what the documentation claims of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from experiments.runner.page import render

from graphopt_gym.data import data_path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "learning.md"


def test_learning__beats_random_on_every_graph_with_every_seed():
    rows = json.loads(data_path("learning", "summary.json").read_text())["rows"]
    assert len(rows) >= 3
    for row in rows:
        for algorithm in ("ppo", "maskable_ppo"):
            means, bests = row[f"{algorithm}_mean_s"], row[f"{algorithm}_best_s"]
            assert len(means) >= 3
            # the trained policy's average placement is better than the best of as many random ones
            assert max(means) < 0.75 * row["random_best_s"] < row["random_mean_s"]
            assert max(bests) <= max(means)


def test_learning__curves_and_table_come_from_the_same_runs():
    rows = json.loads(data_path("learning", "summary.json").read_text())["rows"]
    with data_path("learning", "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    text = DOCUMENT.read_text()
    for row in rows:
        for algorithm in ("ppo", "maskable_ppo"):
            for seed, mean in enumerate(row[f"{algorithm}_mean_s"]):
                mine = [
                    entry
                    for entry in curves
                    if (entry["case"], entry["algorithm"], entry["seed"]) == (row["case"], algorithm, str(seed))
                ]
                assert float(mine[-1]["mean_cost"]) == float(f"{mean:.6g}")
                assert f"{mean:.4f}" in text


def test_document__says_what_the_summary_says():
    folder = data_path().parent / "scripts" / "experiments"
    summary = json.loads(data_path("learning", "summary.json").read_text())
    assert render(folder, "placement-learning", summary) == DOCUMENT.read_text(encoding="utf-8")
