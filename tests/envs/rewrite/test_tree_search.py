"""Saturation and tree search through ``solve``: programs that compute the same, options, limits, seeds."""

from __future__ import annotations

import json
import time

import pytest

from graphopt_gym.envs.rewrite import tree_search
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import parse_program
from graphopt_gym.graphs.zoo.programs import build_program, known_best, program_names
from graphopt_gym.report.html import render_html
from graphopt_gym.search.solve import compare, solve
from graphopt_gym.solutions import load_solution, validate
from tests.envs.rewrite.programs import attention, inception, recurrent

SATURATIONS = ("saturation_greedy", "saturation", "saturation_repeat")
TREES = ("tree_search", "tree_search_repeat")


class Recorded(RewriteProblem):
    """Keeps every program that a method proposes."""

    def __init__(self, program):
        super().__init__(program)
        self.proposed = {}

    def costs(self, decisions):
        for decision in decisions:
            self.proposed[decision.program.fingerprint] = decision.program
        return super().costs(decisions)


@pytest.mark.parametrize("method", [*SATURATIONS, *TREES])
@pytest.mark.parametrize("make", [attention, recurrent, inception])
def test_methods__every_proposed_program_computes_the_same(method, make):
    problem = Recorded(make())
    solution = solve(problem, method, budget=5, seconds=2, options={"node_limit": 300})
    assert solution.outcome.valid, solution.outcome.reasons
    assert solution.outcome.cost <= problem.original_s
    assert len(problem.proposed) > 1
    for program in problem.proposed.values():
        assert not problem.reasons(program)  # executes it against the original


@pytest.mark.parametrize("name", program_names("small"))
def test_tree_search__finds_the_best_of_small_programs(name):
    problem = RewriteProblem(build_program(name))
    best = problem.program_cost(parse_program(known_best(name)["best"]))  # by exhaustive search

    def enough(evaluations, cost):
        if cost <= best * (1 + 1e-9):
            raise KeyboardInterrupt

    for method in TREES:
        found = solve(problem, method, seconds=40, budget=10**5, options={"node_limit": 500}, progress=enough)
        assert found.stopped_by == "interrupt", (method, found.outcome.cost, best)


@pytest.mark.parametrize("method", TREES)
def test_tree_search__is_the_same_for_a_seed_and_another_for_another(method):
    problem = RewriteProblem(recurrent(steps=3))
    runs = [solve(problem, method, budget=12, seed=seed, options={"node_limit": 300}) for seed in (3, 3, 4)]
    same, again, other = ([(calls, cost) for calls, _, cost in run.history] for run in runs)
    assert same == again
    assert runs[0].decision == runs[1].decision
    assert runs[0].details == runs[1].details
    assert (same, runs[0].details) != (other, runs[2].details)


@pytest.mark.parametrize("method", TREES)
def test_tree_search__keeps_to_its_limits(method):
    problem = RewriteProblem(inception())
    limit = tree_search.SAME_PLACE * len(problem.program)
    solution = solve(problem, method, budget=9, options={"node_limit": 10})
    assert solution.evaluations <= 9
    # a clean-up may leave less; the last match that is applied may add some more
    assert 0 < solution.details["largest_nodes"] <= limit + 20
    assert solve(problem, method, budget=1).evaluations == 1
    started = time.process_time()  # a shared machine takes wall time from it
    short = solve(problem, method, seconds=1.0, budget=10**6)
    assert time.process_time() - started < 2.0
    assert short.outcome.valid


@pytest.mark.parametrize("method", [*TREES, "saturation_repeat"])
def test_methods__an_interrupt_keeps_the_best_so_far(method):
    problem = RewriteProblem(inception())

    def interrupt(evaluations, best):
        if best < problem.original_s:
            raise KeyboardInterrupt

    solution = solve(problem, method, progress=interrupt, options={"node_limit": 300})
    assert solution.stopped_by == "interrupt"
    assert solution.outcome.valid
    assert solution.outcome.cost < problem.original_s


def test_tree_search__actions_cover_all_rules():
    rules = RewriteProblem(inception()).matcher.rules
    groups = tree_search.rule_groups(rules)
    assert {index for group in groups for index in group} == set(range(len(rules)))
    assert all(len(group) == 1 for group in groups if rules[group[0]].merges)


def test_tree_search__makes_an_e_graph_again_that_was_not_kept(monkeypatch):
    problem = RewriteProblem(recurrent(steps=3))
    runs = []
    for kept in (1, 1000):
        monkeypatch.setattr(tree_search, "MOST_KEPT", kept)
        run = solve(problem, "tree_search", budget=16, options={"node_limit": 300})
        runs.append(([(calls, cost) for calls, _, cost in run.history], run.details))
    assert runs[0] == runs[1]


def test_saturation__says_what_the_e_graph_was(tmp_path):
    problem = RewriteProblem(inception())
    solution = solve(problem, "saturation", seconds=10, options={"k_multi": 0, "node_limit": 400})
    details = solution.details
    assert solution.options["k_multi"] == 0
    assert details["saturation_stopped_by"] == "node limit"
    assert details["growth_nodes"][-1] == details["nodes"] <= 400 + 20
    assert details["bound_s"] <= details["ilp_cost_s"] <= details["greedy_cost_s"]
    assert details["gap"] == pytest.approx(1 - details["bound_s"] / details["ilp_cost_s"])
    assert solution.outcome.cost == pytest.approx(details["ilp_cost_s"])
    assert "merge-convs-input" not in details["rules_that_entered_the_e_graph"]
    path = solution.save(tmp_path / "s.json")
    stored = load_solution(path)
    assert stored.details == json.loads(json.dumps(details))
    assert stored.options == solution.options
    assert validate(path, graph=problem.program).ok
    page = render_html([stored.evaluate(problem)])
    assert "rules that entered the e graph" in page
    assert "relu-into-conv (" in page


def test_saturation__takes_the_rules_of_the_problem():
    problem = RewriteProblem(inception(), rules=["fused activation"])
    details = solve(problem, "saturation_greedy").details
    assert set(details["rules_that_entered_the_e_graph"]) <= {rule.name for rule in problem.matcher.rules}
    assert details["saturation_stopped_by"] == "saturated"


@pytest.mark.parametrize("method", [*SATURATIONS, *TREES])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"node_limit": 0}, "node_limit is 0; give a whole number, at least 1"),
        ({"iteration_limit": 0}, "iteration_limit is 0; give a whole number, at least 1"),
        ({"memory_bytes": 0}, "memory_bytes is 0; give a whole number, at least 1"),
        ({"node_limit": "many"}, "node_limit is 'many'"),
        ({"node_limt": 5}, "unknown option 'node_limt'; did you mean 'node_limit'?"),
    ],
)
def test_options__bad_ones_are_named(method, options, says):
    with pytest.raises(InputError) as error:
        solve(RewriteProblem(recurrent()), method, options=options)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_options__of_methods_without_any_and_of_several():
    problem = RewriteProblem(recurrent())
    with pytest.raises(InputError, match="method 'greedy' takes no options; 'k_multi' was given"):
        solve(problem, "greedy", options={"k_multi": 1})
    rows = compare(problem, ["greedy", "saturation_greedy"], options={"k_multi": 0})
    assert [row.options.get("k_multi") for row in rows] == [None, 0]
    with pytest.raises(InputError, match="unknown option 'k_mult'; did you mean 'k_multi'"):
        compare(problem, ["greedy", "saturation_greedy"], options={"k_mult": 0})
    with pytest.raises(InputError, match="none of the methods takes options"):
        compare(problem, ["greedy"], options={"k_multi": 0})


def test_command_line__options(graphopt):
    given = ("solve", RewriteProblem.env_id, "--graph", "small_fire", "--method", "saturation", "--json")
    status, said, _ = graphopt(*given, "--option", "k_multi=0", "--option", "cycles=ilp")
    row = json.loads(said)
    assert status == 0
    assert row["options"]["cycles"] == "ilp"
    assert row["options"]["k_multi"] == 0
    for bad, says in (("node_limit=0", "node_limit is 0"), ("node_limt=1", "did you mean"), ("x", "is not NAME=VALUE")):
        status, said, error = graphopt(*given, "--option", bad)
        assert (status, said) == (2, "")
        assert error.count("\n") == 1
        assert says in error
    status, said, _ = graphopt("list", "methods", "--env", RewriteProblem.env_id)
    assert status == 0
    assert "Options of tree_search: node_limit=" in said
