from __future__ import annotations

from graphopt_gym.benchmarks import timing
from graphopt_gym.envs.placement.benchmarks import env_report


def test_env_benchmark__one_and_several_with_either_reward(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.01)
    monkeypatch.setattr(timing, "VECTOR_ENVS", 2)
    said = []
    report = env_report("transformer_xl_2layer", "v100x2", say=said.append)
    assert [(row["reward"], row["envs"]) for row in report["rows"]] == [
        ("improvement", 1), ("improvement", 2), ("terminal", 1), ("terminal", 2)
    ]  # fmt: skip
    assert all(row["steps_per_s"] > 0 and set(row) == set(report["columns"]) for row in report["rows"])
    assert all((row["simulations_per_s"] is None) == (row["envs"] > 1) for row in report["rows"])
    assert len(said) == 2
