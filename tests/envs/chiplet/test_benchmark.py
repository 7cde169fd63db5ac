from __future__ import annotations

from graphopt_gym.benchmarks import timing
from graphopt_gym.envs.chiplet.benchmarks import env_report


def test_chiplet_env_benchmark__has_a_rate_for_each_mode(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.01)
    monkeypatch.setattr(timing, "VECTOR_ENVS", 2)
    report = env_report("vgg11_b1", "mcm4")
    assert [(row["mode"], row["envs"]) for row in report["rows"]] == [
        ("fix", 1), ("fix", 2), ("sample", 1), ("sample", 2), ("step", 1), ("step", 2)
    ]  # fmt: skip
    assert all(row["steps_per_s"] > 0 for row in report["rows"])
    assert all(set(row) == set(report["columns"]) for row in report["rows"])
