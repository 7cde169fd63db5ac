from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.benchmarks import BENCHMARKS
from graphopt_gym.cli.bench import benchmarks
from graphopt_gym.cli.common import plain
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.task import Benchmark
from tests.commands import only_json

ROW_KEYS = {"env", "graph", "cluster", "rules", "method", "seed", "valid", "cost", "unit", "reasons", "metrics",
            "evaluations", "wall_s"}  # fmt: skip


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "graph.npz"
    gg.save_graph(layered_dag(60, 3, seed=5, phases=True), path)
    return path


@pytest.fixture
def heavy(tmp_path):
    """A graph that fits no toy device."""
    path = tmp_path / "heavy.npz"
    light = layered_dag(60, 3, seed=5)
    gg.save_graph(light.replace(state_bytes=np.full(light.num_ops, 2**30)), path)
    return path


@pytest.mark.parametrize(
    "what",
    ["envs", "graphs", "programs", "architectures", "clusters", "packages", "machines", "devices", "methods", "agents"],
)
def test_list__every_kind__prints_a_table_and_json(graphopt, what):
    code, out, err = graphopt("list", what)
    assert (code, err) == (0, "")
    code, encoded, _ = graphopt("list", what, "--json")
    rows = only_json(encoded)["rows"]
    assert rows
    for row in rows:
        assert str(next(iter(row.values()))) in out


def test_list_graphs__gives_the_statistics(graphopt):
    _, out, _ = graphopt("list", "graphs", "--json")
    rows = {row["graph"]: row for row in only_json(out)["rows"]}
    assert set(rows) == set(gg.graph_names())
    statistics = gg.load_graph("bert_base").statistics()
    assert rows["bert_base"]["ops"] == statistics["ops"] >= 2000
    assert rows["bert_base"]["parameters_bytes"] == statistics["param_bytes"]


def test_list_graphs__inference__are_those_for_partition_over_chips(graphopt):
    from graphopt_gym.graphs.zoo import SPLITS

    _, out, _ = graphopt("list", "graphs", "--split", "inference_all", "--json")
    rows = {row["graph"]: row for row in only_json(out)["rows"]}
    assert set(rows) == set(gg.graph_names("inference_all")) > set(SPLITS["inference_test"])
    assert rows[SPLITS["inference_test"][0]]["split"] == "test"


def test_list_packages__gives_chips_and_links(graphopt):
    _, out, _ = graphopt("list", "packages", "--json")
    rows = {row["package"]: row for row in only_json(out)["rows"]}
    assert list(rows) == gg.package_names()
    mcm36 = gg.load_package("mcm36")
    assert rows["mcm36"]["topology"] == "ring"
    assert rows["mcm36"]["memory_bytes"] == mcm36.sram_bytes.sum()
    assert rows["mesh6x6"]["topology"] == "6 x 6 mesh"


def test_chiplet_partition__solved_compared_validated_and_drawn(graphopt, tmp_path):
    chosen = ("ChipletPartition-v0", "--graph", "bert_tiny_b16", "--cluster", "mcm36")
    file = tmp_path / "greedy.json"
    code, out, err = graphopt("solve", *chosen, "--method", "greedy", "--out", file)
    assert (code, err) == (0, "")
    assert "bottleneck: " in out
    stored = json.loads(file.read_text())
    problem = gg.make_problem("ChipletPartition-v0", graph="bert_tiny_b16", cluster="mcm36")
    assert problem.evaluate(np.array(stored["decision"])).cost == stored["cost"]
    code, out, _ = graphopt("validate", file)
    assert (code, "ok: " in out) == (0, True)
    code, out, _ = graphopt("report", file)
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"greedy.json", "greedy.png", "greedy.html"}
    page = (tmp_path / "greedy.html").read_text(encoding="utf-8")
    assert "36 chips" in page
    assert "period" in page
    assert "<svg" in page

    runs = tmp_path / "runs"
    code, out, _ = graphopt("compare", *chosen, "--budget", 5, "--seeds", 1, "--out", runs, "--json")
    names = gg.methods("ChipletPartition-v0")
    assert code == 0
    assert [row["method"] for row in only_json(out)["rows"]] == [name for name in names if name != "exact"]
    assert "exact" in names  # takes small instances alone
    assert not [name for name in names if name.startswith("cross_entropy")]  # entries depend on each other
    assert [name for name in gg.methods("Placement-v0") if name.startswith("cross_entropy")]
    code, out, _ = graphopt("report", runs)
    assert code == 0
    assert "period" in (runs / "report.html").read_text(encoding="utf-8")


def test_solve__json__is_one_object_with_the_keys_and_the_cost_of_the_problem(graphopt, graph, tmp_path):
    out_file = tmp_path / "s.json"
    code, out, err = graphopt(
        "solve", "Placement-v0", "--graph", graph, "--cluster", "toyx2", "--method", "random", "--budget", 20,
        "--seed", 3, "--set", "grouping=op", "--out", out_file, "--json",
    )  # fmt: skip
    row = only_json(out)
    assert (code, err) == (0, "")
    assert set(row) == ROW_KEYS
    assert (row["evaluations"], row["seed"], row["unit"]) == (20, 3, "s")
    problem = gg.make_problem("Placement-v0", graph=str(graph), cluster="toyx2", grouping="op")
    stored = json.loads(out_file.read_text())
    assert problem.evaluate(np.array(stored["decision"])).cost == row["cost"] == stored["cost"]


def test_solve__for_people__names_cost_and_devices(graphopt, graph):
    code, out, _ = graphopt("solve", "Placement-v0", "-g", graph, "-c", "toyx2", "-m", "single")
    assert code == 0
    assert "toy_1tflops" in out
    assert "1 simulator call in" in out


def test_solve__same_seed__same_answer(graphopt, graph):
    run = ("solve", "Placement-v0", "-g", graph, "-c", "toyx2", "-m", "random", "--budget", 50, "--json")
    first, second, other = (only_json(graphopt(*run, "--seed", seed)[1]) for seed in (1, 1, 2))
    assert first["cost"] == second["cost"] != other["cost"]


def test_solve__invalid_outcome__exit_status_1_and_null(graphopt, heavy):
    code, out, _ = graphopt("solve", "Placement-v0", "-g", heavy, "-c", "toyx2", "-m", "single", "--json")
    row = only_json(out)
    assert code == 1
    assert (row["valid"], row["cost"]) == (False, None)
    assert "out of memory: device" in row["reasons"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "Placement-v1", "-m", "single"], "unknown environment 'Placement-v1'; did you mean 'Placement-v0'?"),
        (["solve", "Placement-v0", "-m", "singel"], "unknown method 'singel'; did you mean 'single'?"),
        (["solve", "Placement-v0", "-m", "single", "-g", "bert_bas"], "did you mean 'bert_base'?"),
        (["solve", "Placement-v0", "-m", "single", "-c", "v100x5"], "unknown cluster 'v100x5'; did you mean"),
        (["solve", "ChipletPartition-v0", "-m", "single", "-c", "v100x4"], "unknown package 'v100x4'; known: mcm16"),
        (["solve", "ChipletPartition-v0", "-m", "single", "-c", "mcm35"], "did you mean 'mcm36'?"),
        (["solve", "Placement-v0", "-m", "single", "-g", "none.npz"], "graph file 'none.npz' does not exist"),
        (["solve", "Placement-v0", "-m", "single", "-b", "0"], "budget is 0; give a whole number"),
        (["solve", "Placement-v0", "-m", "single", "--seed", "-1"], "seed is -1; give a whole number"),
        (["solve", "Placement-v0", "-m", "single", "--seconds", "-1"], "seconds is -1.0; give a number above 0"),
        (["solve", "Placement-v0", "-m", "single", "--set", "gruping=op"], "did you mean 'grouping'?"),
        (["solve", "Placement-v0", "-m", "single", "--set", "grouping"], "--set 'grouping' is not NAME=VALUE"),
        (["solve", "Placement-v0", "-m", "single", "--set", "grouping=ops"], "did you mean 'op'?"),
        (["solve", "Placement-v0", "-m", "single", "-o", "no/folder/s.json"], "cannot write 'no/folder/s.json'"),
        (["solve", "Placement-v0", "-m", "single", "-o", "."], "it is a folder; give a file name"),
        (["compare", "Placement-v0", "--methods", "single,heftt"], "unknown method 'heftt'; did you mean 'heft'?"),
        (["compare", "Placement-v0", "--methods", ","], "no methods given; name at least one"),
        (["compare", "Placement-v0", "--methods", "single", "--seeds", "0"], "seeds is 0"),
        (["list", "methods", "--env", "Placement"], "did you mean 'Placement-v0'?"),
        (["train", "pppo"], "unknown agent 'pppo'; did you mean 'ppo'?"),
        (["train", "ppo", "--resume"], "--resume needs --out"),
        (["bench", "simulators"], "unknown benchmark 'simulators'; did you mean 'simulator'?"),
        (["reproduce", "placement-learnin"], "unknown table 'placement-learnin'; did you mean 'placement-learning'?"),
        (["report", "none.json"], "solution file 'none.json' cannot be read"),
        (["validate", "none.json"], "solution file 'none.json' cannot be read"),
        (["capture", "nothing"], "not of the form package.module:function"),
        (["capture", "no_such_module:f"], "no Python module 'no_such_module'"),
    ],
)  # fmt: skip
def test_bad_input__one_line_and_exit_status_2(graphopt, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = graphopt(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["solve"], ["solve", "Placement-v0"], ["list", "things"], ["solve", "Placement-v0", "--nothing"], ["no"]],
)
def test_usage_error__exit_status_2(graphopt, arguments):
    code, out, err = graphopt(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_compare__json__has_a_row_a_method_and_seed(graphopt, graph, tmp_path):
    folder = tmp_path / "out"
    code, out, err = graphopt(
        "compare", "Placement-v0", "-g", graph, "-c", "toyx2", "--methods", "single,random", "--seeds", 2,
        "--budget", 10, "--out", folder, "--json",
    )  # fmt: skip
    rows = only_json(out)["rows"]
    assert (code, err) == (0, "")
    assert [(row["method"], row["seed"]) for row in rows] == [("single", 0), ("random", 0), ("random", 1)]
    assert all(set(row) == ROW_KEYS for row in rows)
    assert sorted(path.name for path in folder.iterdir()) == ["random-0.json", "random-1.json", "single-0.json"]


def test_compare__for_people__is_a_table(graphopt, graph):
    code, out, _ = graphopt("compare", "Placement-v0", "-g", graph, "-c", "toyx2", "--methods", "expert,single")
    assert code == 0
    assert "vs expert" in out
    assert "0.0 %" in out


def test_compare__nothing_valid__exit_status_1(graphopt, heavy):
    code, out, _ = graphopt("compare", "Placement-v0", "-g", heavy, "-c", "toyx2", "--methods", "single")
    assert code == 1
    assert "out of memory" in out


def test_validate__a_line_a_file_and_exit_status(graphopt, graph, tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    graphopt("solve", "Placement-v0", "-g", graph, "-c", "toyx2", "-m", "single", "-o", good)
    facts = json.loads(good.read_text())
    code, out, _ = graphopt("validate", good)
    assert code == 0
    assert out.startswith(f"{good}: ok: ")
    bad.write_text(json.dumps({**facts, "cost": facts["cost"] * 0.9}))
    code, out, _ = graphopt("validate", good, bad)
    assert code == 1
    lines = out.splitlines()
    assert lines[0].startswith(f"{good}: ok: ")
    assert lines[1].startswith(f"{bad}: FAILED: cost: stored ")
    code, out, err = graphopt("validate", bad, tmp_path / "none.json", good, "--json")
    assert code == 2
    assert [row["ok"] for row in only_json(out)["rows"]] == [False, False, True]
    assert "none.json" in err


def test_report__writes_the_files_and_names_them(graphopt, graph, tmp_path):
    graphopt("solve", "Placement-v0", "-g", graph, "-c", "toyx2", "-m", "single", "-o", tmp_path / "s.json")
    out_folder = tmp_path / "new" / "folder"
    code, out, err = graphopt("report", tmp_path / "s.json", "--out", out_folder)
    assert (code, err) == (0, "")
    assert out.splitlines() == [str(out_folder / f"s.{kind}") for kind in ("png", "pftrace", "html")]
    assert all((out_folder / f"s.{kind}").stat().st_size for kind in ("png", "pftrace", "html"))


def test_capture__your_own_module__gives_a_graph_that_solve_takes(graphopt, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (tmp_path / "my_model.py").write_text(
        "import torch\n"
        "def step():\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))\n"
        "    return net, (torch.zeros(2, 8),)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = graphopt("capture", "my_model:step", "--out", "mine.npz", "--json")
    facts = only_json(out)
    assert code == 0
    assert facts["parameters_bytes"] == 4 * (8 * 16 + 16 + 16 * 4 + 4)
    code, out, _ = graphopt("solve", "Placement-v0", "-g", "mine.npz", "-c", "toyx2", "-m", "single", "--json")
    assert code == 0
    assert only_json(out)["valid"]


def test_capture__target_and_what_a_graph_says_of_itself(graphopt, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (tmp_path / "two_outputs.py").write_text(
        "import torch\n"
        "@torch.library.custom_op('graphopt_cli_test::fancy', mutates_args=())\n"
        "def fancy(x: torch.Tensor) -> torch.Tensor:\n"
        "    return x.clone()\n"
        "fancy.register_fake(torch.empty_like)\n"
        "fancy.register_autograd(lambda ctx, grad: grad)\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.one, self.two = torch.nn.LSTM(8, 8), torch.nn.Linear(8, 8)\n"
        "    def forward(self, x):\n"
        "        return fancy(self.one(x)[0]), self.two(x)\n"
        "def step():\n"
        "    return Net(), (torch.zeros(2, 1, 8),)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    kinds = {}
    for target in ("gpu", "cpu"):
        code, out, err = graphopt("capture", "two_outputs:step", "--target", target, "--out", f"{target}.npz", "--json")
        assert code == 0
        assert only_json(out)["file"] == f"{target}.npz"
        assert "Net: 2 of 6 trainable parameters get no gradient and no update: the loss does not depend on two." in err
        assert (
            "Net: 1 op has no formula, priced by bytes and at most one FLOP an element: graphopt_cli_test.fancy" in err
        )
        kinds[target] = set(gg.load_graph(f"{target}.npz").kinds)
    assert "_cudnn_rnn" in kinds["gpu"] - kinds["cpu"]
    code, out, _ = graphopt("list", "graphs", "gpu.npz", "--json")
    assert code == 0
    code, out, _ = graphopt("list", "graphs", "gpu.npz")
    assert "graphopt_cli_test.fancy" in " ".join(out.split())
    solved = graphopt("solve", "Placement-v0", "-g", "gpu.npz", "-c", "toyx2", "-m", "single", "--out", "s.json")
    code, _, err = graphopt("report", "s.json")
    assert (solved[0], code) == (0, 0)
    assert "graphopt_cli_test.fancy" in err
    assert "graphopt_cli_test.fancy" in (tmp_path / "s.html").read_text(encoding="utf-8")
    code, _, err = graphopt("capture", "two_outputs:step", "--target", "tpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "unknown target 'tpu'" in err


def test_train__evaluate__resume(graphopt, graph, tmp_path):
    pytest.importorskip("sb3_contrib")
    run = tmp_path / "run"
    train = ("train", "maskable_ppo", "-g", graph, "-c", "toyx2", "--set", "num_envs=2", "--set", "minibatches=1")
    code, out, err = graphopt(*train, "--steps", 200, "--out", run, "--json")
    assert code == 0, err
    row = only_json(out)
    assert (code, row["method"], row["valid"]) == (0, "maskable_ppo", True)
    assert "of 200 steps: mean " in err
    (solution,) = run.glob("solution_*.json")
    assert graphopt("validate", solution)[0] == 0
    code, out, err = graphopt(*train, "--steps", 400, "--out", run, "--resume", "--json")
    assert code == 0
    assert only_json(out)["evaluations"] >= 400
    assert "200 of 400" not in err  # it goes on where it was
    code, out, _ = graphopt("evaluate", run, "--out", tmp_path / "policy.json", "--json")
    assert code == 0
    policy = only_json(out)
    assert policy["cost"] == json.loads((tmp_path / "policy.json").read_text())["cost"]
    run = tmp_path / "gdp"
    code, out, err = graphopt(
        "train", "gdp", "-g", graph, "-c", "toyx2", "--steps", 2, "--set", "samples=4", "--out", run
    )
    assert code == 0, err
    assert "2 of 2 updates: mean " in err
    code, out, _ = graphopt("evaluate", run, "--json")
    assert (code, only_json(out)["graph"]) == (0, "layered_60_5")
    code, out, err = graphopt("train", "ppo", "--set", "stepps=3")
    assert (code, out) == (2, "")
    assert "unknown argument of ppo 'stepps'; did you mean 'steps'?" in err
    code, out, err = graphopt("evaluate", tmp_path / "nothing")
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("as_json", [False, True])
def test_bench__runs_a_function_of_the_table(graphopt, monkeypatch, as_json):
    monkeypatch.setitem(BENCHMARKS, "mine", Benchmark("tests.test_cli:_report", "for the test"))
    code, out, _ = graphopt("bench", "mine", *(["--json"] if as_json else []))
    assert code == 0
    if as_json:
        assert only_json(out)["rows"] == [{"what": "a", "time_s": 0.5, "worst": None}]
    else:
        assert "500 ms" in out


def _report(say):
    return {"title": "t", "columns": ["what", "time_s", "worst"], "rows": [["a", np.float64(0.5), float("nan")]]}


def test_bench__several_tables__are_printed_each(graphopt, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "mine", Benchmark("tests.test_cli:_two_tables", "for the test"))
    _, out, _ = graphopt("bench", "mine")
    assert "first table" in out
    assert "12.5 %" in out
    _, out, _ = graphopt("bench", "mine", "--json")
    assert [table["rows"] for table in only_json(out)["tables"]] == [[{"a": 1}], [{"b_percent": 12.5}]]


def _two_tables(say):
    return {"first_table": [{"a": 1}], "second": [{"b_percent": 12.5}]}


def test_bench__table_names_functions_that_exist():
    from graphopt_gym.task import resolve

    for benchmark in benchmarks().values():
        if importlib.util.find_spec(benchmark.run.partition(".")[0]):
            assert callable(resolve(benchmark.run))


def test_plain__numpy_and_what_is_not_finite():
    value = {"a": np.float64("inf"), "b": np.array([1, 2]), "c": (np.int64(3), float("nan")), 4: True}
    assert plain(value) == {"a": None, "b": [1, 2], "c": [3, None], "4": True}


def test_version__and_help(graphopt):
    assert graphopt("--version")[:2] == (0, f"{gg.__version__}\n")
    code, out, _ = graphopt("--help")
    assert code == 0
    assert all(command in out for command in ("solve", "compare", "validate", "report", "capture", "bench", "list"))


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_solve__interrupted__keeps_the_best_and_says_so(graph, tmp_path, number):
    out = tmp_path / "s.json"
    code = (
        "import signal, sys\n"
        "from graphopt_gym.cli import main\n"
        "from graphopt_gym.search.solve import Evaluator\n"
        "costs = Evaluator.costs\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
        "def costs_then_ctrl_c(self, decisions):\n"
        "    if self.evaluations >= 500:\n"
        f"        signal.raise_signal(signal.{number})\n"
        "    return costs(self, decisions)\n"
        "Evaluator.costs = costs_then_ctrl_c\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "solve", "Placement-v0", "-g", str(graph), "-c", "toyx2", "-m", "random",
               "--budget", "1000000000", "--out", str(out), "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    row = only_json(done.stdout)
    assert done.returncode == 0, done.stderr
    assert f"interrupted: random keeps the best of its {row['evaluations']:,} evaluations" in done.stderr
    assert row["evaluations"] >= 500
    assert json.loads(out.read_text())["stopped_by"] == "interrupt"


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_solve__interrupted_before_there_is_a_result__says_so_in_a_line(tmp_path, number, status):
    code = (
        "import signal\n"
        "from graphopt_gym.cli import main\n"
        "from graphopt_gym.search.solve import Evaluator\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"Evaluator.costs = lambda self, decisions: signal.raise_signal(signal.{number})\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "solve", "Placement-v0", "-m", "random", "--out", str(tmp_path / "s.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, os.listdir(tmp_path)) == (status, "", [])
    assert done.stderr == "interrupted before there was a result\n"


CLOSED = [
    ("list envs | true; exit ${PIPESTATUS[0]}", 141, ""),
    ("list envs --json | true; exit ${PIPESTATUS[0]}", 141, ""),
    ("list envs >&-", 1, "error: cannot write standard output: Bad file descriptor\n"),
    ("list envs --json >&-", 1, "error: cannot write standard output: Bad file descriptor\n"),
    ("list envs >/dev/full", 1, "error: cannot write standard output: No space left on device\n"),
    ("list envs 2>&-", 0, ""),
    ("list nothing 2>&-", 2, ""),
    ("list nothing >&- 2>&-", 2, ""),
    ("solve Placement-v0 -g {graph} -c toyx2 -m metis --out {out} >&- 2>&- <&-", 1, ""),
    ("solve Placement-v0 -g {graph} -c toyx2 -m metis --out /dev/full", 2, "error: cannot write '/dev/full': No space"),
]


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="needs a shell")
@pytest.mark.parametrize(("command", "status", "said"), CLOSED, ids=[command for command, *_ in CLOSED])
def test_graphopt__output_that_is_closed_or_full__ends_in_a_line_at_most(graph, tmp_path, command, status, said):
    out = tmp_path / "s.json"
    line = command.replace("{graph}", str(graph)).replace("{out}", str(out))
    line = f"'{sys.executable}' -m graphopt_gym {line}"
    done = subprocess.run(["/bin/bash", "-c", line], capture_output=True, text=True, timeout=300)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == (said != "")
    if "{out}" in command:  # what was asked for is there, and is nothing else
        assert json.loads(out.read_text())["method"] == "metis"


@pytest.mark.parametrize("name", ["[/x]", "[red]$\\frac$", "two\nlines | <b>", "🦜\x1b[31m", "n" * 3000], ids=ascii)
def test_graphopt__names_of_graphs_are_printed_as_they_are(graphopt, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    gg.save_graph(layered_dag(20, 2, seed=1).replace(name=name, metadata={"source": name}), "g.npz")
    problem = ("Placement-v0", "-g", "g.npz", "-c", "toyx2")
    for command in (
        ("solve", *problem, "-m", "metis", "-o", "s.json"),
        ("compare", *problem, "--methods", "metis,random", "--budget", 3, "-o", "out"),
        ("validate", "s.json"),
        ("report", "s.json"),
        ("report", "out"),
        ("list", "graphs", "g.npz"),
    ):
        code, out, err = graphopt(*command)
        assert (code, err) == (0, "")
        assert (out + err).replace("\n", "").replace("\xa0", "").isprintable()
        code, out, err = graphopt(*command, "--json")
        assert code == 0
        assert only_json(out)
    code, _, err = graphopt("solve", "Placement-v0", "-g", name, "-m", "metis")
    assert (code, err.count("\n")) == (2, 1)


def test_graphopt__called_with_an_output_of_ones_own__writes_into_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["graphopt", "list", "envs", "--json"])
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        gg.cli.main()
    assert stop.value.code == 0
    assert only_json(out.getvalue())["rows"]
