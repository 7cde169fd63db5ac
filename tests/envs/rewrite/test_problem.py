"""RewriteProblem: what it prices, and what it finds wrong by execution."""

from __future__ import annotations

import math

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import parse_program, program_text
from graphopt_gym.solutions import load_solution, validate
from tests.envs.rewrite.programs import all_programs, inception, recurrent

LAYER = (
    'x = input(name="x", shape=(4, 64))\nw = weight(name="w", shape=(64, 64))\nv = weight(name="v", shape=(64, 64))\n'
)
SMALL = LAYER + "return relu(matmul(x, w)), relu(matmul(x, v))"


def small():
    return parse_program(SMALL)


@pytest.mark.parametrize("cost", ["sum", "simulated"])
@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_costs__are_those_of_evaluate_along_random_rewrites(program, cost):
    problem = RewriteProblem(program, cost=cost)
    rng = np.random.default_rng(0)
    state = problem.original
    for _ in range(12):
        state = problem.neighbour(state, rng)
        outcome = problem.evaluate(state)
        costs, valid = problem.costs([state])
        assert valid[0]
        assert outcome.valid, outcome.reasons
        assert costs[0] == outcome.cost == problem.program_cost(state.program)
    assert problem.evaluate(state.program).metrics["original_s"] == problem.evaluate(problem.program).cost


WRONG = {
    "values": (LAYER + "return relu(matmul(x, w)), tanh(matmul(x, v))", "output 1 differs by"),
    "outputs swapped": (LAYER + "return relu(matmul(x, v)), relu(matmul(x, w))", "output 0 differs by"),
    "shapes": (LAYER + "return relu(matmul(x, w)), relu(x), x", "outputs have shapes"),
    "another leaf": (SMALL.replace('"v"', '"u"'), "weight 'u' of shape (64, 64): the original has none of that name"),
    "a slight error": (
        LAYER + "return relu(matmul(x, w)), relu(matmul(x, add(v, mul(w, mul(mul(w, w), mul(w, mul(w, mul(w, w))))))))",
        "output 1 differs by",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_evaluate__finds_a_wrong_program_by_execution(name):
    text, reason = WRONG[name]
    problem = RewriteProblem(small())
    outcome = problem.evaluate(text)
    assert not outcome.valid
    assert outcome.cost == math.inf
    assert reason in outcome.reasons[0]
    assert not outcome.metrics["same_outputs_when_executed"]
    costs, valid = problem.costs([parse_program(text)])
    assert not valid[0]
    assert costs[0] > problem.original_s


def test_evaluate__a_program_from_elsewhere_that_computes_the_same_is_valid():
    problem = RewriteProblem(small())
    merged = "m = matmul(x, concat(w, v, axis=1), act=relu)\nreturn split0(m, axis=1, at=64), split1(m, axis=1, at=64)"
    outcome = problem.evaluate(LAYER + merged)
    assert outcome.valid
    assert outcome.cost < problem.original_s
    assert outcome.metrics["ops"] < outcome.metrics["original_ops"] + 1
    state = problem.rewritten(LAYER + merged)
    assert problem.trace(state) is None
    assert problem.costs([state, problem.program])[0].tolist() == [outcome.cost, problem.original_s]


def test_neighbour__of_a_wrong_program_stays_invalid():
    problem = RewriteProblem(small())
    state = problem.neighbour(parse_program(WRONG["values"][0]), np.random.default_rng(0))
    assert not problem.costs([state])[1][0]


@pytest.mark.parametrize(
    "method", ["greedy", "taso", "random_walk", "annealing", "evolution", "hill_climbing", "random"]
)
def test_solve__saves_a_solution_that_validates(method, tmp_path):
    path = tmp_path / "program.txt"
    path.write_text(program_text(recurrent()))
    problem = gg.make_problem("RewriteOrder-v0", graph=str(path))
    solution = gg.solve(problem, method, budget=120)
    assert solution.outcome.valid
    assert solution.outcome.cost <= problem.original_s
    assert solution.evaluations <= 120
    file = solution.save(tmp_path / "x.json")
    result = validate(file)
    assert result.ok, result.mismatches
    assert load_solution(file).trace == tuple(tuple(step) for step in solution.trace)
    if solution.trace:
        assert solution.trace[-1][2] == solution.outcome.cost
    assert problem.replay(solution.trace).program == solution.decision


def test_validate__finds_a_changed_program_and_a_changed_trace(tmp_path):
    path = tmp_path / "program.txt"
    path.write_text(program_text(recurrent()))
    solution = gg.solve(gg.make_problem("RewriteOrder-v0", graph=str(path)), "greedy", budget=200)
    text = solution.save(tmp_path / "x.json").read_text()
    first = solution.trace[0]
    other = "sigmoid-into-matmul" if first[0] != "sigmoid-into-matmul" else "add-commutes"
    stored = f'"trace": [["{first[0]}", {list(first[1])}'
    changed = tmp_path / "changed.json"
    for old, new, found in (
        ("sigmoid(", "tanh(", "output 0 differs by"),
        (f'"{first[0]}"', f'"{other}"', "trace: step 1"),
        (f"{stored}, {first[2]!r}]", f"{stored}, 1.0]", "trace: step 1 says 1.0 s"),
    ):
        assert old in text
        changed.write_text(text.replace(old, new, 1))
        mismatches = validate(changed).mismatches
        assert any(found in line for line in mismatches), mismatches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost": "sums"}, "unknown cost 'sums'; did you mean 'sum'?"),
        ({"cluster": "t44"}, "unknown device 't44'; did you mean 't4'?"),
        ({"cluster": "v100x4"}, "has 4 devices"),
        ({"graph": "squeezenett"}, "did you mean 'squeezenet'?"),
        ({"rules": ["relu-twic"]}, "unknown rule or family 'relu-twic'; did you mean 'relu-twice'?"),
        ({"rules": []}, "rules is an empty list"),
        ({"rules": 3}, "rules is 3"),
    ],
)
def test_problem__refuses_bad_arguments_in_one_line(arguments, message):
    with pytest.raises(InputError) as caught:
        RewriteProblem(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (3, "decision is a int"),
        (SMALL.replace("relu(matmul(x, v))", "relu(matmul(x, v)"), "decision: line 4, column"),
        (SMALL.replace("shape=(64, 64)", "shape=(32, 64)", 1), "matmul"),
    ],
)
def test_check__refuses_what_is_no_program(decision, message):
    with pytest.raises(InputError, match=message) as caught:
        RewriteProblem(small()).evaluate(decision)
    assert "\n" not in str(caught.value)


def test_rules__can_be_chosen():
    problem = RewriteProblem(inception(), rules=["fused activation"])
    assert {rule.family for rule in problem.matcher.rules} == {"fused activation"}
    assert gg.solve(problem, "taso", budget=50).outcome.valid


def test_evaluate__the_second_program_is_compared_with_the_same_outputs_as_the_first():
    for order in (("values", "merged"), ("merged", "values")):
        problem = RewriteProblem(small())
        merged = "m = matmul(x, concat(w, v, axis=1), act=relu)\n"
        parts = "return split0(m, axis=1, at=64), split1(m, axis=1, at=64)"
        texts = {"values": WRONG["values"][0], "merged": LAYER + merged + parts}
        valid = {name: problem.evaluate(texts[name]).valid for name in order}
        assert valid == {"values": False, "merged": True}


def test_published__counts_work_on_weights__and_no_launches_or_transposes():
    text = LAYER + "return matmul(x, concat(w, v, axis=1)), transpose(matmul(x, w), perm=(1, 0))"
    program = parse_program(text)
    plain, published = (RewriteProblem(program, cost=cost) for cost in ("sum", "published"))
    ops = [[problem.program.nodes[node].op for node in problem.original.node_costs] for problem in (plain, published)]
    assert sorted(ops[0]) == ["matmul", "matmul", "transpose"]
    assert sorted(ops[1]) == ["concat", "matmul", "matmul"]
    products = [[cost for node, cost in problem.original.node_costs.items() if program.nodes[node].op == "matmul"]
                for problem in (plain, published)]  # fmt: skip
    launch = plain.program_costs.model.launch_s(plain.device)
    assert launch > 0
    assert products[1] == pytest.approx([cost - launch for cost in products[0]], rel=1e-9)
    state, rng = published.original, np.random.default_rng(0)
    for _ in range(30):
        state = published.neighbour(state, rng)
        assert dict(state.node_costs) == published.program_costs.node_costs(state.program)
