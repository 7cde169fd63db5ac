"""The command line on programs: solve, compare, validate, report; bad input in one line with exit status 2."""

from __future__ import annotations

import json

import pytest

from graphopt_gym.graphs.tensor_program import program_text
from tests.envs.rewrite.programs import inception


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "inception.txt"
    path.write_text(program_text(inception()))
    return path


def test_solve_validate_report__of_a_program(graphopt, tmp_path, program):
    out = tmp_path / "x.json"
    chosen = ("RewriteOrder-v0", "--graph", program)
    status, said, _ = graphopt("solve", *chosen, "--method", "taso", "--budget", 300, "--out", out, "--json")
    row = json.loads(said)
    assert status == 0
    assert row["cost"] < row["metrics"]["original_s"]
    assert row["metrics"]["same_outputs_when_executed"]
    stored = json.loads(out.read_text())
    assert stored["decision"].splitlines()[-1].startswith("return ")
    assert stored["trace"][-1][2] == stored["cost"]
    assert graphopt("validate", out)[0] == 0
    status, said, _ = graphopt("report", out)
    assert status == 0
    assert [line.rpartition(".")[2] for line in said.splitlines()] == ["png", "html"]
    page = (tmp_path / "x.html").read_text()
    assert stored["trace"][0][0] in page
    assert "Before" in page


def test_compare__writes_a_folder_that_reports_as_one_page(graphopt, tmp_path, program):
    folder = tmp_path / "all"
    chosen = ("RewriteOrder-v0", "-g", program, "--methods", "original,greedy,taso", "--budget", 200)
    status, said, _ = graphopt("compare", *chosen, "--out", folder)
    assert status == 0
    assert "taso" in said
    status, said, _ = graphopt("report", folder)
    assert status == 0
    assert "report.html" in said


def test_validate__a_wrong_program_fails(graphopt, tmp_path, program):
    out = tmp_path / "x.json"
    graphopt("solve", "RewriteOrder-v0", "-g", program, "-m", "original", "-o", out)
    out.write_text(out.read_text().replace("relu(", "tanh(", 1))
    status, said, _ = graphopt("validate", out)
    assert status == 1
    assert "output 0 differs by" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("return relu(", "bad.txt: line 1, column 12: '(' was never closed"),
        ("return rely(1)", "unknown operator 'rely'; did you mean 'relu'?"),
        (
            'x = input(name="x", shape=(2, 3))\nreturn matmul(x, x)',
            "line 2, column 8: matmul",
        ),
    ],
)
def test_solve__refuses_a_bad_program_in_one_line(graphopt, tmp_path, text, message):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    status, _, error = graphopt("solve", "RewriteOrder-v0", "-g", path, "-m", "taso")
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "tasso"), "did you mean 'taso'?"),
        (("-m", "taso", "-b", "0"), "budget is 0"),
        (("-m", "taso", "-c", "v100x4"), "has 4 devices"),
        (("-m", "taso", "--set", "cost=sums"), "did you mean 'sum'?"),
        (("-m", "taso", "--set", "rules=[]"), "rules is an empty list"),
        (("-m", "exhaustive", "-g", "squeezenet"), "at most 24 operators"),
    ],
)
def test_solve__refuses_bad_arguments_in_one_line(graphopt, arguments, message):
    status, _, error = graphopt("solve", "RewriteOrder-v0", *arguments)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
