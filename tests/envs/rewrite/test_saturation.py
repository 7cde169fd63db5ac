"""Equality saturation and extraction: what comes out computes the same, and costs what the bound allows."""

from __future__ import annotations

import pytest

from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.saturation.explore import saturate
from graphopt_gym.envs.rewrite.saturation.extraction import extract_greedy, extract_ilp
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import parse_program
from graphopt_gym.graphs.zoo.programs import PROGRAMS, build_program


@pytest.mark.parametrize("name", ["nasrnn", "bert", "squeezenet"])
def test_extraction__computes_the_same_and_keeps_to_the_bound(name):
    problem = RewriteProblem(build_program(name, **PROGRAMS[name].small))
    explored = saturate(problem.program, None, problem.program_costs, node_limit=2000, iteration_limit=3, seconds=20)
    greedy, best = extract_greedy(explored), extract_ilp(explored, seconds=3)
    for extraction in (greedy, best):
        outcome = problem.evaluate(extraction.program)  # executes it against the original
        assert outcome.valid, outcome.reasons
        assert outcome.cost == pytest.approx(extraction.cost)
        assert extraction.cost <= problem.original_s * (1 + 1e-9)
    assert best.cost <= greedy.cost * (1 + 1e-9)
    assert best.bound <= best.cost
    assert best.gap == pytest.approx(1 - best.bound / best.cost)


def test_saturation__names_the_limit_that_ended_it():
    problem = RewriteProblem(build_program("squeezenet", **PROGRAMS["squeezenet"].small))
    few = saturate(problem.program, None, problem.program_costs, node_limit=60)
    assert few.stopped_by == "node limit"
    once = saturate(problem.program, None, problem.program_costs, iteration_limit=1)
    assert once.stopped_by == "iteration limit"
    assert problem.evaluate(extract_greedy(few).program).valid  # and extraction still follows


def test_saturation__says_that_it_is_saturated_only_where_no_rule_adds_anything():
    chain = parse_program('x = input(name="x", shape=(2, 2))\nreturn relu(relu(tanh(x)))')
    costs = RewriteProblem(chain).program_costs
    for schedule in ("first", "need"):
        assert saturate(chain, None, costs, k_multi=9, schedule=schedule).stopped_by == "saturated"
        assert saturate(chain, None, costs, k_multi=0, schedule=schedule).stopped_by == "saturated for k=0"
        assert saturate(chain, ["fused activation"], costs, k_multi=0, schedule=schedule).stopped_by == "saturated"
    text = 'x = input(name="x", shape=(4, 4))\n' + "".join(
        f'w{i} = weight(name="w{i}", shape=(4, 4))\n' for i in range(3)
    )
    merging = parse_program(text + "return matmul(x, w0), matmul(x, w1), matmul(x, w2)")
    explored = saturate(merging, None, costs, k_multi=1, schedule="need")
    assert explored.stopped_by == "saturated for k=1"  # the merged ones could be merged again
    entered = [iteration.applied for iteration in explored.iterations]
    quiet = entered.index(0)
    assert entered[quiet + 1] > 0  # the round of multi-pattern rules follows


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"node_limit": 0}, "node_limit is 0; give a whole number, at least 1"),
        ({"iteration_limit": 0}, "iteration_limit is 0"),
        ({"seconds": 0}, "seconds is 0; give a number above 0"),
        ({"memory_bytes": 0}, "memory_bytes is 0; give a whole number, at least 1"),
        ({"k_multi": -1}, "k_multi is -1"),
        ({"cycles": "filtr"}, "filter"),
        ({"schedule": "last"}, "unknown schedule 'last'; did you mean 'first'"),
    ],
)
def test_saturation__bad_limits_are_named(limits, says):
    problem = RewriteProblem(build_program("nasrnn", **PROGRAMS["nasrnn"].small))
    with pytest.raises(InputError, match=says):
        saturate(problem.program, None, problem.program_costs, **limits)
