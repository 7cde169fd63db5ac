from __future__ import annotations

from graphopt_gym.benchmarks import timing
from graphopt_gym.envs.rewrite import benchmarks


def test_matching_benchmark__checks_that_both_ways_agree():
    report = benchmarks.matching_report(("small_fire", "small_scores"), rewrites=3)
    assert [row["program"] for row in report["rows"]] == ["small_fire", "small_scores"]
    assert all(row["ratio"] > 0 and set(row) == set(report["columns"]) for row in report["rows"])


def test_rewrite_env_benchmark__one_and_several(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.01)
    monkeypatch.setattr(benchmarks, "VECTOR_ENVS", 2)
    report = benchmarks.env_report(("small_fire",))
    assert [(row["actions"], row["envs"]) for row in report["rows"]] == [
        ("random", 1), ("random", 2), ("repeated", 1), ("repeated", 2)
    ]  # fmt: skip
    assert all(row["steps_per_s"] > 0 and set(row) == set(report["columns"]) for row in report["rows"])


def test_saturation_benchmark__a_row_for_each_engine(monkeypatch):
    monkeypatch.setattr(benchmarks, "ILP_S", 1.0)
    report = benchmarks.saturation_report(("small_fire",), node_limit=300)
    assert report["rows"][0]["engine"] == "native"
    assert all(row["nodes_per_s"] > 0 and set(row) == set(report["columns"]) for row in report["rows"])
