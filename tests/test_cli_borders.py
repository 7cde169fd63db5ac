"""The command line at its borders: outputs, settings, streams, modules that are not there, problems of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

import graphopt_gym as gg
from graphopt_gym import problem as problem_module
from graphopt_gym.cli import common
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.report.html import render_html
from graphopt_gym.report.tables import solution_table
from graphopt_gym.solutions import load_solution, validate
from graphopt_gym.units import format_cost
from tests.commands import only_json
from tests.envs.rewrite.programs import inception

SMALL = ("Placement-v0", "-c", "toyx2")

MY_PROBLEM = '''
import numpy as np
from graphopt_gym import Outcome, Problem

class Ones(Problem):
    """As many ones as can be."""
    unit = "B"
    decision_shape = (8,)
    num_choices = 2
    def __init__(self, weight=1024.0):
        self.weight = float(weight)
        self.config = {"weight": self.weight}
    def check(self, decision):
        return np.asarray(decision, np.int32)
    def costs(self, decisions):
        return self.weight * (8.0 - decisions.sum(axis=1)), np.ones(len(decisions), bool)
    def evaluate(self, decision):
        return Outcome(True, float(self.costs(self.check(decision)[None])[0][0]), self.unit)
    def sample(self, rng):
        return rng.integers(0, 2, 8, dtype=np.int32)
    def neighbour(self, decision, rng):
        decision = decision.copy()
        decision[rng.integers(8)] ^= 1
        return decision

number = 5
'''


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "graph.npz"
    gg.save_graph(layered_dag(40, 3, seed=5, phases=True), path)
    return path


@pytest.fixture
def my_problem(tmp_path, monkeypatch):
    (tmp_path / "my_problem.py").write_text(MY_PROBLEM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_problem:Ones"
    sys.modules.pop("my_problem", None)
    problem_module.PROBLEM_CLASSES.pop("my_problem:Ones", None)


def test_solve__out__is_never_an_input_and_respects_what_is_there(graphopt, graph, tmp_path):
    before = graph.read_bytes()
    (tmp_path / "link").symlink_to(graph)
    for out in (graph, tmp_path / "link"):
        code, said, err = graphopt("solve", *SMALL, "-g", graph, "-m", "single", "-o", out)
        assert (code, said, err.count("\n")) == (2, "", 1)
        assert "it is the input" in err
        assert graph.read_bytes() == before
    target = tmp_path / "target.json"
    (tmp_path / "other").symlink_to(target)
    assert graphopt("solve", *SMALL, "-g", graph, "-m", "single", "-o", tmp_path / "other")[0] == 0
    assert (tmp_path / "other").is_symlink()
    assert load_solution(target).method == "single"
    assert graphopt("solve", *SMALL, "-g", graph, "-m", "single", "-o", "/dev/null")[0] == 0
    assert not os.path.isfile("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert graphopt("solve", *SMALL, "-g", graph, "-m", "single", "-o", tmp_path / "pipe")[0] == 0
    reader.join()
    assert json.loads(got[0])["method"] == "single"


def test_capture__out__is_not_the_code_that_is_captured(graphopt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model.py").write_text("step = 5\n")
    code, said, err = graphopt("capture", "my_model:step", "-o", "my_model.py")
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert "it is the input" in err
    assert (tmp_path / "my_model.py").read_text() == "step = 5\n"


def test_compare__command__goes_on_and_works_side_by_side(graphopt, graph, tmp_path):
    run = ("compare", *SMALL, "-g", graph, "--methods", "single,random,single", "-b", 10, "--seeds", 2, "--json")
    code, first, err = graphopt(*run, "-o", tmp_path / "runs")
    assert (code, err) == (0, "")
    code, again, err = graphopt(*run, "-o", tmp_path / "runs")
    assert (code, err.count("done before; not repeated")) == (0, 3)
    assert again == first
    code, _, err = graphopt(*run, "-o", tmp_path / "runs", "--again")
    assert (code, err) == (0, "")
    code, beside, err = graphopt(*run, "--workers", 2)
    assert (code, err) == (0, "")
    rows = [[{**row, "wall_s": 0} for row in only_json(text)["rows"]] for text in (first, beside)]
    assert rows[0] == rows[1]
    code, said, err = graphopt(*run, "--workers", "many")
    assert (code, said, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("a=1", 1), ("a=-2.5", -2.5), ("a=true", True), ("a=True", True), ("a=False", False), ("a=None", None),
        ("a=null", None), ("a=text", "text"), ('a="True"', "True"), ("a=b=c", "b=c"), ("a=", ""), ("a=[1, 2]", [1, 2]),
        ("a=trueish", "trueish"), ("a=" + "[" * 20_000, "[" * 20_000), ("a=" + "9" * 6000, "9" * 6000),
    ],
)  # fmt: skip
def test_parse_settings__values_are_json_python_words_or_texts(given, value):
    (found,) = common.parse_settings([given]).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "[1, NaN]", '{"x": -1e400}'])
def test_parse_settings__refuses_what_is_not_finite(value):
    with pytest.raises(InputError, match="give a finite number"):
        common.parse_settings([f"x={value}"])


def test_set__a_flag_is_a_flag(graphopt, graph, tmp_path):
    out = tmp_path / "s.json"
    run = ("solve", "ChipletPartition-v0", "-g", graph, "-c", "mcm4", "-m", "single", "-o", out, "--set")
    for given, value in (("False", False), ("false", False), ("True", True)):
        assert graphopt(*run, f"memory_rule={given}")[0] in (0, 1)
        assert load_solution(out).config["memory_rule"] is value
    for given in ("no", "0", "NaN", "[]"):
        code, said, err = graphopt(*run, f"memory_rule={given}")
        assert (code, said, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    "arguments",
    [["solve"], ["solve", "Placement-v0"], ["solve", "Placement-v0", "--nothing"], ["no"], ["bench", "--jason"],
     ["solve", "Placement-v0", "-m", "single", "--budget", "x"]],
)  # fmt: skip
def test_usage_error__one_line(graphopt, arguments):
    code, out, err = graphopt(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert "--help)" in err


def test_standard_output__of_few_characters__is_no_traceback():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "graphopt_gym", "list", "graphs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_solve__names_are_printed_as_they_are(graphopt, tmp_path):
    path = tmp_path / "g.npz"
    gg.save_graph(layered_dag(40, 3, seed=5).replace(name="[red]a[/x] :smile:"), path)
    code, out, err = graphopt("solve", *SMALL, "-g", path, "-m", "single", "-o", tmp_path / "[b].json")
    assert (code, err) == (0, "")
    assert "single: [red]a[/x] :smile: on toyx2: " in out
    assert "[b].json   report: " in out
    code, out, err = graphopt("compare", *SMALL, "-g", path, "--methods", "single")
    assert (code, err) == (0, "")
    assert "Placement-v0: [red]a[/x] :smile: on toyx2, at most 1,000 simulator calls a run" in out


# -- modules that are not there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("ortools", ["bench", "saturation"], "rewrite"),
        ("torch_geometric", ["bench", "agent"], "agents"),
        ("ortools", ["solve", "RewriteOrder-v0", "-g", "small_fire", "-m", "saturation"], "rewrite"),
        ("highspy", ["solve", "RewriteOrder-v0", "-g", "small_fire", "-m", "tree_search", "--option", "solver=highs"],
         "rewrite"),
        ("egglog", ["solve", "RewriteOrder-v0", "-g", "small_fire", "-m", "saturation_greedy", "--option",
                    "engine=egglog"], "rewrite"),
        ("torch_geometric", ["solve", *SMALL, "-g", "bert_base", "-m", "gdp"], "agents"),
        ("z3", ["solve", "ChipletPartition-v0", "-g", "vgg11_b1", "-c", "mcm4", "-m", "exact"], "solver"),
        ("z3", ["compare", "ChipletPartition-v0", "-g", "vgg11_b1", "-c", "mcm4", "--methods", "single,exact"],
         "solver"),
        ("ray", ["compare", *SMALL, "-g", "bert_base", "--methods", "single", "--workers", "ray"], "ray"),
    ],
)  # fmt: skip
def test_module_not_installed__one_line_before_the_work(graphopt, monkeypatch, missing, arguments, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, err = graphopt(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"needs '{missing}', which is not installed: pip install \"graphopt-gym[{extra}]\"" in err


def test_module_not_installed__is_an_import_error_too():
    from graphopt_gym.extras import need

    need("numpy", "json")
    with pytest.raises(ImportError, match="the search needs 'no_such_module', which is not installed") as caught:
        need("numpy", "no_such_module", what="the search")
    assert isinstance(caught.value, InputError)


def test_bench__says_what_it_does_on_standard_error(graphopt, monkeypatch):
    from graphopt_gym.envs.chiplet import benchmarks

    monkeypatch.setattr(benchmarks, "GRAPHS", ("vgg11_b1",))
    monkeypatch.setattr(benchmarks.corrector_report, "__defaults__", (("vgg11_b1",), "mcm4", 0.01, 0.01, str))
    code, out, err = graphopt("bench", "corrector", "--json")
    assert code == 0
    assert len(only_json(out)["rows"]) == 3
    lines = err.splitlines()
    assert lines[0].startswith("bench corrector: corrections of")
    assert "vgg11_b1: SAMPLE" in lines


def test_bench_simulator__both_are_run_as_often(monkeypatch):
    from graphopt_gym.benchmarks import simulator

    calls = []
    processor_s = simulator._processor_s
    monkeypatch.setattr(
        simulator, "_processor_s", lambda f, *a, **b: calls.append(f.__name__) or processor_s(f, *a, **b)
    )
    monkeypatch.setattr(simulator, "SIZES", ((200, 2),))
    report = simulator.steps_report()
    assert [row["placement"] for row in report["rows"]] == ["random", "blocks"]
    assert all(row["twin_ratio"] > 1 for row in report["rows"])
    assert calls.count("cost") == calls.count("run") == 2 * simulator.PEER_REPEATS


# -- problems of one's own --------------------------------------------------------------------------------------------


def test_own_problem__solves_validates_and_reports_by_its_class(graphopt, my_problem, tmp_path):
    chosen = ("solve", my_problem, "-m", "annealing", "-b", 200, "-o", "s.json")
    code, out, err = graphopt(*chosen, "--set", "weight=2048")
    assert (code, err) == (0, "")
    assert "annealing: Ones: 0 B" in out
    assert "200 evaluations in " in out
    stored = load_solution("s.json")
    assert (stored.env_id, stored.problem_class, stored.config) == ("Ones", my_problem, {"weight": 2048.0})
    assert (stored.graph, stored.cluster, stored.unit) == ("", "", "B")
    assert validate("s.json").ok  # the class is known in this process
    problem_module.PROBLEM_CLASSES.pop(my_problem)
    for arguments in (["validate", "s.json"], ["report", "s.json"]):
        code, out, err = graphopt(*arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert "its problem is of 'my_problem:Ones', which is not known here" in err
        assert "--problem MODULE:CLASS" in err
        code, out, err = graphopt(*arguments, "--problem", my_problem)
        assert (code, err) == (0, "")
    assert out.split() == ["s.html"]
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "<h1>annealing: Ones</h1>" in page
    assert "evaluations" in page
    assert "2.05" not in page
    assert "not measured" not in page  # nothing is simulated


class Halved(ChipletProblem):
    """A variant of a registered task's problem, under its id."""

    def evaluate(self, decision):
        outcome = super().evaluate(decision)
        return replace(outcome, cost=outcome.cost / 2)


def test_own_problem__a_variant_of_a_registered_one_keeps_its_class(tmp_path):
    problem = Halved("bert_tiny_b16", "mcm36")
    path = gg.solve(problem, "greedy").save(tmp_path / "s.json")
    assert load_solution(path).problem_class == f"{__name__}:Halved"
    assert validate(path).ok
    assert not validate(path, problem_class=ChipletProblem).ok


def test_own_problem__compares(graphopt, my_problem, tmp_path):
    chosen = ("compare", my_problem, "-b", 20, "--seeds", 1, "-o", tmp_path / "runs")
    code, out, err = graphopt(*chosen)
    assert (code, err) == (0, "")
    assert "Ones: Ones, at most 20 evaluations a run" in out
    assert "cross_entropy" in out  # its entries are free
    assert "vs " not in out
    code, out, _ = graphopt("report", tmp_path / "runs", "--problem", my_problem)
    assert code == 0
    assert [line.rpartition("/")[2] for line in out.split()] == ["report.html"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_problem:Onse", "unknown class in my_problem 'Onse'; did you mean 'Ones'?"),
        ("my_problem:number", "is no subclass of graphopt_gym.Problem"),
        ("my_problem:", "not of the form package.module:class"),
        (":Ones", "not of the form package.module:class"),
        ("no_such_module:Ones", "no Python module 'no_such_module'"),
    ],
)
def test_own_problem__bad_names_are_one_line(graphopt, my_problem, spec, message):
    for arguments in (["solve", spec, "-m", "random"], ["validate", "s.json", "--problem", spec]):
        code, out, err = graphopt(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    code, out, err = graphopt("solve", my_problem, "-m", "random", "--set", "wait=1")
    assert code == 2
    assert "did you mean 'weight'?" in err


# -- words ------------------------------------------------------------------------------------------------------------


def test_tables__speak_the_tasks_words(graphopt, graph):
    partition = gg.make_problem("ChipletPartition-v0", graph=layered_dag(40, 3, seed=5), cluster="mcm4")
    rewriting = gg.make_problem("RewriteOrder-v0", graph=inception())
    placing = gg.make_problem("Placement-v0", graph=str(graph), cluster="toyx2")
    columns = [
        solution_table([gg.solve(problem, method)]).columns
        for problem, method in ((partition, "greedy"), (rewriting, "original"), (placing, "single"))
    ]
    assert columns[0] == ("graph", "package", "period_s", "evaluations")
    assert columns[1] == ("program", "device", "inference_time_s", "evaluations")
    assert columns[2] == ("graph", "cluster", "step_time_s", "peak_memory_per_device_bytes", "simulator_calls")
    page = render_html([gg.solve(rewriting, "greedy"), gg.solve(rewriting, "original")])
    assert "vs original" in page
    assert "Each inference time is computed from a model of the device, not measured." in page
    assert "simulator calls" not in page


def test_compare__the_reference_is_there_or_no_column(graphopt, graph):
    chosen = ("compare", "ChipletPartition-v0", "-g", "bert_tiny_b16", "-b", 5, "--seeds", 1, "--methods")
    assert "vs greedy" in graphopt(*chosen, "single,greedy")[1]
    assert "vs " not in graphopt(*chosen, "single,contiguous")[1]
    out = graphopt(*chosen, "single,greedy", "-g", graph, "-c", "mcm4")[1]
    assert "greedy (seed 0) is invalid" in out
    assert "vs " not in out  # what has no cost is no reference
    chosen = ("compare", "RewriteOrder-v0", "-g", "small_fire", "-b", 20, "--seeds", 1, "--methods")
    assert "vs original" in graphopt(*chosen, "greedy,original")[1]
    assert "vs greedy" in graphopt(*chosen, "greedy,random_walk")[1]
    assert "vs " not in graphopt(*chosen, "random_walk")[1]


def test_reasons__are_in_the_largest_unit(graphopt, tmp_path):
    path = tmp_path / "heavy.npz"
    light = layered_dag(60, 3, seed=5)
    gg.save_graph(light.replace(state_bytes=light.state_bytes + 2**30), path)
    code, out, _ = graphopt("solve", *SMALL, "-g", path, "-m", "single")
    assert code == 1
    assert "needs 60.3 GiB" in out
    assert format_cost(3 * 2**20, "B") == format_cost(3 * 2**20, "bytes") == "3.00 MiB"
    assert format_cost(2**20, "B/sample") == "1.00 MiB/sample"
    assert format_cost(5.0, "") == "5"


def test_measure_export__of_another_task__one_line(graphopt, graph, tmp_path):
    out = tmp_path / "s.json"
    graphopt("solve", *SMALL, "-g", graph, "-m", "single", "-o", out)
    for name in ("measure", "export"):
        code, said, err = graphopt(name, out)
        assert (code, said, err.count("\n")) == (2, "", 1)
        assert f"is a solution of Placement-v0, which has no {name}; those that have: RewriteOrder-v0" in err
