"""Matches kept up to date against matches searched anew; programs stay correct along random rewrites."""

import random

import numpy as np
import pytest

from graphopt_gym.envs.rewrite.cost import ProgramCosts, program_cost
from graphopt_gym.envs.rewrite.rules.matching import Match, Matcher
from graphopt_gym.envs.rewrite.rules.patterns import make_rule
from graphopt_gym.envs.rewrite.rules.table import load_rules, rules
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import (
    ProgramBuilder,
    execute,
    parse_program,
    program_text,
    random_values,
    to_computation_graph,
)
from graphopt_gym.hardware.cluster import load_device
from graphopt_gym.hardware.cost_model import load_cost_model
from tests.envs.rewrite.programs import all_programs, recurrent

MATCHER = Matcher(rules())


def plain_pairs(matcher: Matcher, program, index: int) -> set[tuple[int, ...]]:
    """The roots of a multi-pattern rule's matches, by trying all pairs of nodes."""
    compiled = matcher.compiled[index]
    found = set()
    for first in program.nodes:
        one = compiled.sources[0](program.nodes, first)
        for second in program.nodes if one is not None else ():
            other = compiled.sources[1](program.nodes, second)
            if other is None or first == second or (compiled.rule.symmetric and first > second):
                continue
            names = dict(zip(compiled.names[0], one, strict=True))
            if any(names.setdefault(n, v) != v for n, v in zip(compiled.names[1], other, strict=True)):
                continue
            binding = tuple(names[name] for name in (*compiled.rule.tensors, *compiled.rule.params))
            match = Match(index, (first, second), binding)
            if compiled.holds(program.nodes, match.roots, *binding) and not matcher.cyclic(program, match):
                found.add(match.roots)
    return found


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_update__equals_a_new_search_on_random_walks(program):
    values = random_values(program)
    expected = execute(program, values)
    costs = ProgramCosts("t4")
    used = set()
    for seed in range(4):
        chance = random.Random(seed)
        current, matches, priced = program, MATCHER.find(program), costs.node_costs(program)
        for step in range(40):
            by_rule = {}
            for match in matches:
                by_rule.setdefault(match.rule, []).append(match)
            match = chance.choice(by_rule[chance.choice(sorted(by_rule))])
            used.add(match.rule)
            before = current
            current, change = MATCHER.apply(current, match)
            assert current != before, MATCHER.rules[match.rule].name
            matches = MATCHER.update(matches, current, change)
            assert matches.matches == MATCHER.find(current).matches
            priced = costs.update(priced, current, change, before)
            assert priced == costs.node_costs(current)
            if step % 8 == 7:
                for wanted, after in zip(expected, execute(current, values), strict=True):
                    np.testing.assert_allclose(after, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())
                assert parse_program(program_text(current)) == current
    assert len(used) > 12


def test_update__leaves_the_match_set_it_started_from_alone():
    program = recurrent()
    before = MATCHER.find(program)
    listed = before.matches
    for match in listed[:: max(1, len(listed) // 20)]:
        MATCHER.update(before, *MATCHER.apply(program, match))
    again = MATCHER.find(program)
    assert (before._single, before._filed, before._files) == (again._single, again._filed, again._files)


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_find__pairs_are_those_of_trying_all_pairs(program):
    multi = [index for index, rule in enumerate(MATCHER.rules) if rule.multi]
    chance = random.Random(1)
    for _ in range(10):
        matches = MATCHER.find(program)
        for index in multi:
            assert {match.roots for match in matches if match.rule == index} == plain_pairs(MATCHER, program, index)
        program, _ = MATCHER.apply(program, chance.choice([m for m in matches if m.rule in multi] or matches.matches))


def test_find__a_pair_that_would_be_cyclic_is_left_out_and_refused():
    program = parse_program(
        'x = input(name="x", shape=(4, 4))\na = matmul(x, weight(name="w", shape=(4, 4)))\nb = matmul(x, a)\nreturn b'
    )
    matcher = Matcher(load_rules(["merge-matmuls-input"]))
    assert len(matcher.find(program)) == 0
    first, second = (node for node in program.order if program.nodes[node].op == "matmul")
    x, w = program.nodes[first].inputs
    with pytest.raises(InputError, match="does not match"):
        matcher.apply(program, Match(0, (first, second), (x, w, first, "none")))


def test_apply__merges_readers_that_become_equal_and_drops_what_is_dead():
    program = parse_program(
        'x = input(name="x", shape=(2, 2))\ny = input(name="y", shape=(2, 2))\n'
        "a = relu(add(x, y))\nb = relu(add(y, x))\nreturn mul(a, b)"
    )
    matcher = Matcher(load_rules(["add-commutes"]))
    after, change = matcher.apply(program, matcher.find(program).matches[0])
    assert len(after) == 5
    assert len(change.removed) == 2
    assert len(program) == 7


def test_apply__a_constant_folds_what_reads_it():
    program = parse_program(
        'x = input(name="x", shape=(2, 4))\nw = weight(name="w", shape=(2, 4))\n'
        "p = split1(concat(x, w, axis=0), axis=0, at=2)\nreturn add(x, relu(p))"
    )
    matcher = Matcher(load_rules(["split1-of-concat"]))
    after, change = matcher.apply(program, matcher.find(program).matches[0])
    relu = next(node for node in after.nodes if after.nodes[node].op == "relu")
    assert after.is_static(relu)
    assert not program.is_static(relu)
    costs = ProgramCosts()
    assert costs.update(costs.node_costs(program), after, change, program) == costs.node_costs(after)


def test_apply__refuses_a_match_of_another_program_and_a_target_that_reads_its_source():
    program = recurrent()
    fusing = Matcher(load_rules(["relu-twice", "tanh-into-matmul", "merge-matmuls-input"]))
    match = fusing.find(program).matches[0]
    after, _ = fusing.apply(program, match)
    with pytest.raises(InputError, match="'merge-matmuls-input' does not match at nodes"):
        fusing.apply(after, match)
    with pytest.raises(InputError, match=r"rules are 0 to"):
        MATCHER.apply(program, Match(len(MATCHER.rules), (0,), ()))
    grow = Matcher([make_rule("grow", "wrong", "relu(x)", "relu(relu(x))")])
    program = parse_program('return relu(input(name="x", shape=(2,)))')
    with pytest.raises(InputError, match="reads what it replaces"):
        grow.apply(program, grow.find(program).matches[0])


def test_find__a_rewrite_to_itself_is_no_match():
    b = ProgramBuilder("doubled")
    x, y = b.input("x", (2, 2)), b.input("y", (2, 2))
    s = b.input("s", ())
    twice = b.op("smul", b.op("smul", y, s), s)
    program = b.finish([b.op("add", x, x), b.op("mul", x, y), twice])
    matcher = Matcher(load_rules(["add-commutes", "mul-commutes", "smul-swaps"]))
    (match,) = matcher.find(program)
    assert matcher.rules[match.rule].name == "mul-commutes"
    double = next(node for node in program.nodes if program.nodes[node].op == "add")
    with pytest.raises(InputError, match="'add-commutes' does not match"):
        matcher.apply(program, Match(0, (double,), (x, x)))


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_program_cost__is_the_sum_of_the_graphs_op_times(program):
    for _ in range(3):
        graph = to_computation_graph(program)
        times = load_cost_model("back_to_back").op_times(graph, load_device("t4"))
        assert program_cost(program) == pytest.approx(times.sum(), rel=1e-12)
        program, _ = MATCHER.apply(program, MATCHER.find(program).matches[-1])


def test_program_cost__work_on_weights_alone_is_free():
    folded = 'x = input(name="x", shape=(8, 64))\nw = weight(name="w", shape=(64, 64))\n'
    plain = parse_program(folded + "return matmul(x, w)")
    more = parse_program(folded + "return matmul(x, transpose(add(w, mul(w, w)), perm=(1, 0)))")
    assert program_cost(more) == program_cost(plain)
