from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.hardware.cost_model import load_cost_model
from graphopt_gym.problem import Solution
from graphopt_gym.report.files import report_on
from graphopt_gym.solutions import load_solution, validate


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "graph.npz"
    gg.save_graph(layered_dag(60, 3, seed=5, phases=True), path)
    return path


@pytest.fixture
def saved(graph, tmp_path):
    problem = gg.make_problem("Placement-v0", graph=str(graph), cluster="toyx2", grouping="op")
    decision = problem.sample(np.random.default_rng(0))
    solution = Solution(problem, "some_method", 3, decision, problem.evaluate(decision), 7, 0.5, ((1, 0.1, 2.0),))
    solution.save(tmp_path / "solution.json")
    return solution


def change(path, **fields):
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, **fields}))
    return path


def test_load_solution__gives_back_what_was_saved(saved, tmp_path):
    stored = load_solution(tmp_path / "solution.json")
    assert (stored.method, stored.seed, stored.evaluations, stored.wall_s) == ("some_method", 3, 7, 0.5)
    assert np.array_equal(stored.decision, saved.decision)
    assert stored.cost == saved.outcome.cost
    assert stored.history == saved.history
    again = stored.evaluate(stored.make_problem())
    assert again.problem.grouping == "op"
    assert again.row() == saved.row()


def test_validate__untouched_file__agrees(saved, tmp_path):
    result = validate(tmp_path / "solution.json")
    assert result.ok
    assert result.cost == saved.outcome.cost


@pytest.mark.parametrize("factor", [1 + 1e-9, 0.5])
def test_validate__changed_cost__is_named(saved, tmp_path, factor):
    path = change(tmp_path / "solution.json", cost=saved.outcome.cost * factor)
    result = validate(path)
    assert not result.ok
    assert any(line.startswith("cost: stored ") for line in result.mismatches)


def test_validate__changed_decision__is_caught_by_cost_and_metrics(saved, tmp_path):
    decision = saved.problem.neighbour(saved.decision, np.random.default_rng(1))
    while saved.problem.evaluate(decision).cost == saved.outcome.cost:
        decision = saved.problem.neighbour(decision, np.random.default_rng(2))
    result = validate(change(tmp_path / "solution.json", decision=decision.tolist()))
    named = " ".join(result.mismatches)
    assert "cost: stored" in named
    assert "metric busy_s" in named or "metric transfer_bytes" in named


@pytest.mark.parametrize(
    ("decision", "reason"),
    [([0, 1], "shape"), ([5], "shape"), (None, "allowed: 0 to 1")],
)
def test_validate__impossible_decision__is_a_mismatch_and_no_crash(saved, tmp_path, decision, reason):
    decision = [7] * saved.decision.size if decision is None else decision
    result = validate(change(tmp_path / "solution.json", decision=decision))
    assert not result.ok
    assert any(reason in line for line in result.mismatches)
    assert result.cost == math.inf


def test_validate__changed_graph__is_named(saved, graph, tmp_path):
    other = gg.load_graph(str(graph))
    gg.save_graph(other.replace(flops=other.flops * 2), graph)
    result = validate(tmp_path / "solution.json")
    assert any(line.startswith("graph changed: stored") for line in result.mismatches)
    assert any(line.startswith("op times changed: stored") for line in result.mismatches)


def test_validate__other_cluster__is_named(saved, tmp_path):
    result = validate(tmp_path / "solution.json", cluster="v100x2")
    assert any(line.startswith("cluster changed: stored") for line in result.mismatches)


def test_validate__graph_given_by_hand__stands_in_for_the_stored_name(graph, tmp_path):
    loaded = gg.load_graph(str(graph))
    problem = gg.make_problem("Placement-v0", graph=loaded, cluster="toyx2")
    decision = problem.sample(np.random.default_rng(0))
    Solution(problem, "m", 0, decision, problem.evaluate(decision), 1, 0.1).save(tmp_path / "s.json")
    with pytest.raises(InputError, match="unknown graph"):
        validate(tmp_path / "s.json")
    assert validate(tmp_path / "s.json", graph=loaded).ok
    assert validate(tmp_path / "s.json", graph=str(graph)).ok


def test_validate__honest_but_invalid__fails_with_the_reason(graph, tmp_path):
    loaded = gg.load_graph(str(graph))
    heavy = loaded.replace(state_bytes=np.full(loaded.num_ops, 2**30))
    gg.save_graph(heavy, graph)
    problem = gg.make_problem("Placement-v0", graph=str(graph), cluster="toyx2")
    decision = problem.sample(np.random.default_rng(0))
    Solution(problem, "m", 0, decision, problem.evaluate(decision), 1, 0.1).save(tmp_path / "s.json")
    result = validate(tmp_path / "s.json")
    assert not result.ok
    assert all(line.startswith("out of memory: ") for line in result.mismatches)
    lying = validate(change(tmp_path / "s.json", valid=True, cost=1.0))
    assert "valid: stored True, here False" in lying.mismatches


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or not JSON"),
        (b'{"format": "graphopt-solution", "ver', "is damaged or not JSON"),
        (b"\xff\xfe\x00", "is damaged or not JSON"),
        (b"[1, 2]", "so it is not a solution of ours"),
        (b'{"format": "other"}', "so it is not a solution of ours"),
        (b'{"format": "graphopt-solution", "version": 99}', "newer than the 1 this release reads: upgrade"),
        (b'{"format": "graphopt-solution", "version": "1"}', "version is '1', expected 1"),
        (b'{"format": "graphopt-solution", "version": 1}', "'env' is missing or of the wrong type"),
    ],
)
def test_load_solution__damaged_foreign_or_newer__is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_solution(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("decision", [[1], [2, 3]], "something else than numbers"),
        ("decision", ["a"], "expected integers"),
        ("decision", [0.5], "expected integers"),
        ("decision", {"a": 1}, "'decision' is missing or of the wrong type"),
        ("cost", "fast", "'cost' is missing or of the wrong type"),
        ("cost", None, "it says valid, but cost is None"),
        ("seed", True, "'seed' is missing or of the wrong type"),
        ("history", [[1]], "something else than numbers"),
    ],
)
def test_load_solution__wrong_field__is_refused_by_name(saved, tmp_path, field, value, message):
    with pytest.raises(InputError, match=message):
        load_solution(change(tmp_path / "solution.json", **{field: value}))


def test_load_solution__no_such_file__is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.json' cannot be read: No such file"):
        load_solution(tmp_path / "none.json")


def test_make_problem__argument_of_another_release__is_refused_by_name(saved, tmp_path):
    path = change(tmp_path / "solution.json", problem={"graph": "bert_base", "gruping": "op"})
    with pytest.raises(InputError, match=r"gruping.*did you mean 'grouping'"):
        validate(path)


def test_solutions_page__names_every_key(tmp_path):
    page = (Path(__file__).resolve().parents[1] / "docs" / "solutions.md").read_text(encoding="utf-8")
    named = {key for row in re.findall(r"^\| (`[^|]*) \|", page, flags=re.M) for key in re.findall(r"`(\w+)`", row)}
    problem = gg.make_problem("RewriteOrder-v0", graph="small_chain")
    solution = gg.solve(problem, "saturation_greedy", budget=4)
    saved = json.loads(solution.save(tmp_path / "solution.json").read_text(encoding="utf-8"))
    assert named == {*saved, "options", "details", "trace", "problem_class"}


@pytest.fixture
def priced(graph, tmp_path):
    """A solution that rests on fitted costs."""
    problem = gg.make_problem("Placement-v0", graph=str(graph), cluster="v100x2")
    solution = gg.solve(problem, "single")
    return solution.save(tmp_path / "priced.json")


def test_costs_version__is_kept_and_checked(priced, monkeypatch, capsys):
    here = load_cost_model().version
    assert json.loads(priced.read_text())["costs_version"] == here
    assert validate(priced).ok
    monkeypatch.setattr(load_cost_model(), "version", "next")
    line = f"it was priced by costs '{here}', here they are 'next': solve it again"
    result = validate(priced)
    assert (result.ok, result.mismatches, result.row()["cost"]) == (False, (line,), None)
    with pytest.raises(InputError, match=line):
        report_on(priced)
    assert not list(priced.parent.glob("priced.*[!n]"))  # nothing is drawn


def test_costs_version__of_a_file_that_names_none__is_the_first(priced, monkeypatch):
    facts = json.loads(priced.read_text())
    del facts["costs_version"]
    priced.write_text(json.dumps(facts))
    monkeypatch.setattr(load_cost_model(), "version", "1")
    assert validate(priced).ok
    monkeypatch.setattr(load_cost_model(), "version", "next")
    assert validate(priced).mismatches == ("it was priced by costs '1', here they are 'next': solve it again",)


def test_costs_version__of_ideal_devices_and_packages__is_none(saved, tmp_path, monkeypatch):
    assert "costs_version" not in json.loads((tmp_path / "solution.json").read_text())
    assert gg.make_problem("ChipletPartition-v0").costs_version == ""
    monkeypatch.setattr(load_cost_model(), "version", "next")
    assert validate(tmp_path / "solution.json").ok


class Doubled:
    """A cost model of a user's."""

    def op_times(self, graph, device):
        return 2 * load_cost_model().op_times(graph, device)


@pytest.mark.parametrize(("version", "said"), [(None, "Doubled"), ("mine-3", "mine-3"), (3, "3")])
def test_costs_version__of_a_model_of_ones_own__is_refused_where_it_is_not_given(graph, tmp_path, version, said):
    model = Doubled()
    if version is not None:
        model.version = version
    problem = gg.make_problem("Placement-v0", graph=str(graph), cluster="v100x2", cost_model=model)
    path = gg.solve(problem, "single").save(tmp_path / "own.json")
    assert json.loads(path.read_text())["costs_version"] == said
    (line,) = validate(path).mismatches
    assert f"it was priced by costs '{said}', here they are '{load_cost_model().version}'" in line
    with pytest.raises(InputError, match="it was priced by costs"):
        report_on(path)


def test_report__of_another_graph_or_cluster__draws_nothing(priced, graph, tmp_path):
    other = gg.load_graph(str(graph))
    gg.save_graph(other.replace(flops=other.flops * 2), tmp_path / "other.npz")
    with pytest.raises(InputError, match="is of another problem: graph changed: stored"):
        report_on(priced, graph=tmp_path / "other.npz")
    with pytest.raises(InputError, match="is of another problem: cluster changed: stored"):
        report_on(priced, cluster="p100x2")


def test_load_solution__a_version_of_costs_that_is_none__is_refused(priced):
    with pytest.raises(InputError, match="costs_version is 2, expected a text"):
        load_solution(change(priced, costs_version=2))
