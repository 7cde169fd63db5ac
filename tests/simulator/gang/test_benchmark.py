"""The benchmark's tables, at sizes that take no time."""

from __future__ import annotations

from graphopt_gym.benchmarks import gang


def test_report__has_a_row_for_each_size(monkeypatch):
    monkeypatch.setattr(gang, "CORES", (8, 128))
    monkeypatch.setattr(gang, "GANGS", (10, 40))
    monkeypatch.setattr(gang, "STAGES", ((2, 4),))
    said = []
    found = gang.gang_report(said.append)
    assert [(row["cores"], row["gangs"]) for row in found["scale"]["rows"]] == [(8, 8), (128, 8), (8, 40), (128, 40)]
    assert all(row["classes"] == 1 and row["twin_ratio"] > 0 for row in found["scale"]["rows"])
    assert [row["gangs"] for row in found["pipelines"]["rows"]] == [16, 16]
    assert found["choices"]["rows"][0]["choices_per_s"] > 1000
    assert said
