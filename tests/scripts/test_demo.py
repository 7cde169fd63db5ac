"""The demo, from its first line to its last, with little to do."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from graphopt_gym.data import data_path
from graphopt_gym.registration import make_problem
from graphopt_gym.search.solve import methods

DEMO = data_path().parent / "scripts" / "demo.py"


def test_demo__solves_by_every_method_trains_and_draws(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sb3_contrib")
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    given = ["--graph", "transformer_xl_2layer", "--cluster", "v100x2", "--budget", "20", "--steps", "1500"]
    monkeypatch.setattr(sys, "argv", ["demo", *given, "--out", str(tmp_path / "demo")])
    demo.main()
    said = capsys.readouterr().out
    shown = {path.stem for path in (tmp_path / "demo").glob("*.json")}
    assert shown > {"expert", "annealing", "heft"}
    suited = set(methods(make_problem("Placement-v0", graph="transformer_xl_2layer", cluster="v100x2")))
    assert shown == suited | {"maskable_ppo"}
    assert "done in" in said
    for name in (*shown, "table.md", "report.html"):
        assert name in said
