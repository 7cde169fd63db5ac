"""The runner of experiments, on a toy: an experiment is two files in a folder."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys

import pytest
from experiments.runner import agents, load, runs, summaries
from experiments.runner.command import run
from experiments.runner.runs import claim, make_one
from experiments.runner.tables import Runs, compared, finite

import graphopt_gym as gg
from graphopt_gym.cli import reproduce
from graphopt_gym.data import data_path
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.hardware.cost_model import load_cost_model
from tests.commands import only_json

TOY = '''"""Two searches on two toys.

More of it.
"""

from pathlib import Path

from experiments.runner import Curves, Entry, Experiment, Pretraining

FOLDER = Path(__file__).parent
BUDGET = 40


def pretraining(graph, seed):
    pairs = [(str(FOLDER / f"{graph}.npz"), "toyx2")]
    return Pretraining.on(pairs, "gdp", f"{graph}-{seed}", seed=seed, updates=1, samples=4)


ENTRIES = {
    "single": Entry("one device"),
    "annealing": Entry("annealing"),
    "short": Entry("short", "annealing_random", budget=5, graphs=("a",), count_valid=True),
    "shot": Entry("zero-shot", agent="gdp", zero_shot=True, budget=3, pretraining=pretraining, graphs=("a",)),
    "tuned": Entry("tuned", agent="gdp", options={"samples": 4}, budget=8, pretraining=pretraining, graphs=("a",)),
}


def summarise(runs, out):
    names = EXPERIMENT.names_in(runs)
    rows = [{"graph": g, **{name: runs.mean_cost(g, name) for name in names}} for g in EXPERIMENT.graphs]
    return {"seeds": names, "rows": rows}


EXPERIMENT = Experiment(
    room="toy",
    env="Placement-v0",
    arguments=lambda graph: {"graph": FOLDER / f"{graph}.npz", "cluster": "toyx2"},
    graphs=("a", "b"),
    entries=ENTRIES,
    budget=BUDGET,
    seeds=(0, 1),
    facts=lambda problem, solution: dict(solution.details),
    summarise=summarise,
    cost=(".1f", "none", 1e6),
    before={"graph": lambda row: row["graph"]},
    curves=Curves("images/toy.png", {"annealing": "C0"}, line="single", labels=("calls", "s"), columns=2),
    shipped=("toy", pretraining("a", 0)),
)
'''
PAGE = """# Toy, {{ BUDGET | f(",") }} calls

{{ costs(["single", "annealing", "short"]) }}
"""
CLASSICAL = ["single", "annealing", "short"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout's ``scripts/experiments`` with a toy."""
    folder = tmp_path / "scripts" / "experiments"
    folder.mkdir(parents=True)
    (folder / "toy.py").write_text(TOY)
    (folder / "toy.md").write_text(PAGE)
    (folder / "no_experiment.py").write_text("")
    for number, name in enumerate("ab"):
        gg.save_graph(layered_dag(20, 3, seed=number), folder / f"{name}.npz")
    monkeypatch.setattr(reproduce, "EXPERIMENTS", folder)
    return folder


def found(out):
    """What runs found, without the times."""
    kept = {}
    for path in sorted(out.glob("*/*-*.json")):
        row = json.loads(path.read_text())
        row.pop("wall_s")
        kept[f"{path.parent.name}/{path.stem}"] = {**row, "history": [[c, cost] for c, _, cost in row["history"]]}
    return kept


def test_reproduce__lists_the_experiments_of_the_checkout(graphopt):
    code, out, _ = graphopt("reproduce", "--json")
    rows = {row["table"]: row["shows"] for row in only_json(out)["rows"]}
    assert code == 0
    assert set(rows) == {
        "placement",
        "placement-learning",
        "placement-transfer",
        "placer",
        "joint",
        "chiplet",
        "gang",
        "gang-learning",
        "gang-transfer",
        "rewrite",
        "architecture",
    }
    assert all(len(shows) > 40 for shows in rows.values())


def test_reproduce__writes_runs_tables_page_and_curves(graphopt, folder):
    _, listed, _ = graphopt("reproduce", "--json")
    assert only_json(listed)["rows"] == [{"table": "toy", "shows": "Two searches on two toys."}]
    code, out, err = graphopt("reproduce", "toy", "--methods", ",".join(CLASSICAL), "--json")
    assert code == 0, err
    root = folder.parents[1]
    rows = only_json(out)["rows"]
    assert [row["graph"] for row in rows] == ["a", "b"]
    assert rows[0]["short"] is not None
    assert rows[1]["short"] is None
    assert set(found(root / "out" / "toy")) == {
        "a/single-0", "a/annealing-0", "a/annealing-1", "a/short-0", "a/short-1", "b/single-0", "b/annealing-0",
        "b/annealing-1",
    }  # fmt: skip
    lines = (root / "docs" / "toy.md").read_text().splitlines()
    assert lines[:4] == ["# Toy, 40 calls", "", "| graph | one device | annealing | short |", "|---|---|---|---|"]
    assert lines[5].endswith(" |  |")
    assert (root / "docs" / "images" / "toy.png").stat().st_size > 1000
    kept = json.loads(gzip.decompress((root / "envs_data" / "toy" / "runs.json.gz").read_bytes()))
    assert {run["valid_share"] for run in kept if run["name"] == "short"} == {1.0}
    assert all(run["decision"] for run in kept)
    page = (root / "docs" / "toy.md").read_bytes()
    # without the runs, the tables of those that are stored
    assert run(folder, "toy", root / "nothing", tables=True) == rows
    assert (root / "docs" / "toy.md").read_bytes() == page


@pytest.mark.parametrize("workers", ["2", "ray"])
def test_run__finds_the_same_side_by_side(folder, tmp_path, workers, request):
    if workers == "ray":
        request.getfixturevalue("ray_cluster")
    rows = run(folder, "toy", tmp_path / "one", methods=CLASSICAL)
    assert run(folder, "toy", tmp_path / "several", methods=CLASSICAL, workers=workers) == rows
    assert found(tmp_path / "several") == found(tmp_path / "one")


def test_run__makes_only_what_is_missing_or_of_another_problem(folder, tmp_path, capsys):
    run(folder, "toy", tmp_path, methods=["single"])
    (tmp_path / "a" / "single-0.json").unlink()
    stale = tmp_path / "b" / "single-0.json"
    stale.write_text(json.dumps({**json.loads(stale.read_text()), "fingerprints": {}}))
    capsys.readouterr()
    run(folder, "toy", tmp_path, methods=["single"])
    assert capsys.readouterr().err.count("run ") == 2
    assert json.loads(stale.read_text())["fingerprints"]
    run(folder, "toy", tmp_path, methods=["single"])
    assert "run " not in capsys.readouterr().err


def test_tables__say_which_costs_they_are_made_with(folder, tmp_path, monkeypatch, capsys):
    for path in (folder / "toy.py", folder / "toy.md"):
        path.write_text(
            path.read_text().replace("toyx2", "v100x2").replace("calls\n", "calls\n\n{{ costs_line }}\n", 1)
        )
    page, out = folder.parents[1] / "docs" / "toy.md", tmp_path / "out"
    run(folder, "toy", out, methods=["single"])
    here = load_cost_model().version
    made = f"Made with version {here} of the costs"
    assert made in page.read_text()
    assert "Today's costs" not in page.read_text()
    for file in out.glob("*/*.json"):  # of before files named their costs
        row = json.loads(file.read_text())
        assert row.pop("costs_version") == here
        if here == "1":
            file.write_text(json.dumps(row))

    monkeypatch.setattr(load_cost_model(), "version", "next")
    with pytest.raises(
        InputError, match=r"2 of 2 runs under .* are priced by other costs than today's; make them again"
    ):
        run(folder, "toy", out, tables=True)
    run(folder, "toy", tmp_path / "none", tables=True)  # the tables of those that are stored
    assert made in page.read_text()
    assert "**Today's costs are version next**" in page.read_text()
    assert "`graphopt reproduce toy`" in page.read_text()
    capsys.readouterr()
    run(folder, "toy", out, methods=["single"], graphs=["a"])
    err = capsys.readouterr().err
    assert err.count("run ") == 1
    assert "1 of 2 runs under" in err
    assert "left out of the tables" in err
    assert "Made with version next of the costs" in page.read_text()
    run(folder, "toy", out, methods=["single"])
    assert capsys.readouterr().err.count("run ") == 1


def test_pages__say_which_costs_they_are_made_with():
    folder = data_path().parent / "scripts" / "experiments"
    for name in summaries(folder):
        experiment = load(folder, name)
        rests = bool(experiment.problem(experiment.graphs[0]).costs_version)
        assert ("{{ costs_line }}" in (folder / f"{name.replace('-', '_')}.md").read_text()) == rests, name
        assert ("Made with version" in (folder.parents[1] / "docs" / f"{experiment.room}.md").read_text()) == rests


def test_run__interrupted__keeps_the_runs_that_are_finished(graphopt, folder, tmp_path, monkeypatch):
    """``solve`` takes an interrupt as the run's end; such a run is not kept."""

    def solve(problem, method, **given):
        stop = method.name == "annealing"
        progress = (lambda calls, best: os.kill(os.getpid(), signal.SIGTERM)) if stop else None
        return gg.solve(problem, method, **given, progress=progress)

    everything = ("reproduce", "toy", "--methods", "single,annealing", "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "solve", solve)
        code, _, err = graphopt(*everything)
    assert code == 130
    assert "interrupted: what is done is kept" in err
    assert set(found(tmp_path / "out")) == {"a/single-0", "b/single-0"}
    assert not list(tmp_path.rglob("*.claim"))
    assert graphopt(*everything)[0] == 0
    assert set(found(tmp_path / "out")) > {"a/single-0", "b/annealing-1"}


def test_claim__only_one_has_it__and_none_is_left_by_the_dead(folder, tmp_path):
    path = tmp_path / "a" / "single-0.claim"
    with claim(path) as mine, claim(path) as second:
        assert (mine, second) == (True, False)
        assert make_one(folder, "toy", tmp_path, ("run", ("a", "single", 0))) == runs.BUSY
    assert not path.exists()
    path.touch()  # of a process that was killed
    assert make_one(folder, "toy", tmp_path, ("run", ("a", "single", 0))).text
    assert not path.exists()


def test_run__trains_what_runs_begin_from_once(folder, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    trained = []
    train = agents.train
    monkeypatch.setattr(agents, "train", lambda wanted, *rest: trained.append(wanted.name) or train(wanted, *rest))
    run(folder, "toy", tmp_path, methods=["shot"], seeds=["0"], pretrain=True)
    assert trained == ["a-0"]
    assert found(tmp_path) == {}
    run(folder, "toy", tmp_path, methods=["shot", "tuned"])
    assert trained == ["a-0", "a-1"]
    rows = found(tmp_path)
    assert set(rows) == {"a/shot-0", "a/shot-1", "a/tuned-0", "a/tuned-1"}
    assert [row["evaluations"] for row in rows.values()] == [3, 3, 8, 8]
    assert (tmp_path / "pretrained" / "a-1" / "finished").read_text()
    run(folder, "toy", tmp_path, ship=True)
    facts = json.loads((folder.parents[1] / "envs_data" / "checkpoints" / "toy.json").read_text())
    assert facts["command"] == "graphopt reproduce toy --ship"
    assert facts["args"]["updates"] == 1


def test_make_one__waits_for_the_training_that_another_process_is_at(folder, tmp_path):
    (tmp_path / "pretrained").mkdir()
    with claim(tmp_path / "pretrained" / "a-0.claim"):
        for what in ("train", "run"):
            assert make_one(folder, "toy", tmp_path, (what, ("a", "shot", 0))) == runs.BUSY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toi"], "unknown table 'toi'; did you mean 'toy'?"),
        (["toy", "--methods", "singel"], "unknown method 'singel'; did you mean 'single'?"),
        (["toy", "--seeds", "0,x"], "seed is 'x'; give a whole number, at least 0"),
        (["toy", "--methods", "single", "--workers", "0"], "workers is '0'; give a number of processes"),
        (["toy", "--methods", "single", "--graphs", "c"], "c.npz"),
    ],
)
def test_reproduce__bad_input__one_line(graphopt, folder, arguments, message):
    code, out, err = graphopt("reproduce", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_reproduce__no_checkout__says_so(graphopt, monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "EXPERIMENTS", tmp_path / "none")
    code, _, err = graphopt("reproduce", "toy")
    assert code == 2
    assert "experiments need a checkout" in err


def test_script__is_the_command():
    """Also where the package is not installed."""
    import subprocess

    script = data_path().parent / "scripts" / "experiments"
    done = subprocess.run([sys.executable, "-I", script, "--json"], capture_output=True, text=True, check=True)
    assert {"placement", "rewrite"} <= {row["table"] for row in json.loads(done.stdout)["rows"]}


def test_compared__counts_and_geometric_mean():
    pairs = [(1.0, 2.0), (2.0, 2.0 * (1 + 1e-6)), (8.0, 2.0), (float("inf"), 1.0), (None, 1.0)]
    rows = [{"a": mine, "b": theirs} for mine, theirs in pairs]
    assert compared(rows, "a", "b") == {
        "method": "a", "against": "b", "rows": 4, "wins": 1, "losses": 2, "out_of_memory": 1,
        "baseline_out_of_memory": 0, "reduction": pytest.approx(1 - (2 / (1 + 1e-6)) ** (1 / 3)),
    }  # fmt: skip


def test_runs__reached__pairs_the_first_rows_at_the_baselines_best():
    def one(seed, *history):
        return {"seed": seed, "valid": bool(history), "cost": history[-1][2] if history else None, "history": history}

    kept = Runs(
        {
            ("g", "a", 0): one(0, [1, 0.1, 9.0], [4, 0.4, 5.0]),
            ("g", "a", 1): one(1, [1, 0.1, 9.0]),
            ("g", "b", 0): one(0, [2, 0.2, 8.0], [3, 0.3, 6.0]),
            ("g", "b", 1): one(1, [2, 0.2, 7.0]),
            ("g", "b", 2): one(2, [2, 0.2, 7.0]),
        }
    )
    assert kept.reached("g", "a", "b") == [[[3, 0.3, 6.0], [4, 0.4, 5.0]], [[2, 0.2, 7.0], None]]
    assert kept.best_run("g", "seed")["cost"] == 5.0
    assert kept.mean_cost("g", "b") == pytest.approx(20 / 3)
    assert kept.mean_cost_after("g", "a", 3) == 9.0
    assert kept.mean_cost("g", "c") is None


def test_finite__infinity_is_a_word():
    assert finite({"a": [float("inf"), 1.0], "b": (None, "x")}) == {"a": ["OOM", 1.0], "b": [None, "x"]}
