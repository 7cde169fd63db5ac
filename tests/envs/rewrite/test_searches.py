"""The sequential searches: what they find, that they keep to their rules, and that they do so again."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.rewrite import searches
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.rendering import changed, comparison_page
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import parse_program
from graphopt_gym.report.files import write_report
from graphopt_gym.search.evaluator import BudgetSpent, Evaluator
from tests.envs.rewrite.programs import all_programs, attention, inception, recurrent

MERGE = parse_program(
    '"merge"\nx = input(name="x", shape=(8, 64))\n'
    'a = matmul(x, weight(name="a", shape=(64, 64)))\nb = matmul(x, weight(name="b", shape=(64, 64)))\n'
    "return relu(a), relu(b)"
)
UNDO = parse_program(
    '"undo"\nx = input(name="x", shape=(64, 64))\nreturn relu(relu(transpose(transpose(x, perm=(1, 0)), perm=(1, 0))))'
)


class Recorder(Evaluator):
    """Keeps all that a method proposes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.proposed = []

    def price(self, decisions):
        self.proposed.extend(decisions)
        return super().price(decisions)


def run(method, program, budget=100_000, **options):
    recorder = Recorder(RewriteProblem(program, **options), budget)
    getattr(searches, method)(recorder, np.random.default_rng(0))
    return recorder


def test_greedy__each_step_saves_most_of_all_that_there_are():
    for program in all_programs():
        problem = RewriteProblem(program)
        solution = gg.solve(problem, "greedy", budget=100_000)
        assert solution.stopped_by == "finished"
        state = problem.original
        for number, (rule, _, seconds) in enumerate(solution.trace):
            costs = [state.apply(match).cost for match in state.matches]
            assert seconds == min(costs) < state.cost
            state = problem.replay(solution.trace[: number + 1])
            assert state.trace[-1][0] == rule
        assert min(state.apply(match).cost for match in state.matches) >= state.cost


def plain_taso(problem, iterations):
    """TASO's algorithm 2 word for word, matches searched and programs priced anew: (best cost, programs seen)."""
    queue = [(problem.program_cost(problem.program), 0, problem.program)]
    best, seen, count = queue[0][0], {problem.program.fingerprint}, 1
    for _ in range(iterations):
        if not queue:
            break
        queue.sort(key=lambda entry: entry[:2])
        cost, _, program = queue.pop(0)
        if cost > searches.ALPHA * best:
            break
        for match in problem.matcher.find(program):
            child, _ = problem.matcher.apply(program, match)
            if child.fingerprint in seen:
                continue
            seen.add(child.fingerprint)
            cost = problem.program_cost(child)
            if cost < searches.ALPHA * best:
                best = min(best, cost)
                queue.append((cost, count, child))
                count += 1
    return best, seen


@pytest.mark.parametrize("program", [recurrent(steps=1), inception(), attention()], ids=lambda program: program.name)
def test_taso__is_the_plain_algorithm(program):
    rules = ["associativity and commutativity", "fused activation", "concat", "two that share an input", "split"]
    problem = RewriteProblem(program, rules=rules)
    best, seen = plain_taso(problem, 12)
    recorder = Recorder(problem, len(seen))
    with suppress(BudgetSpent):
        searches.taso(recorder, np.random.default_rng(0))
    assert recorder.best_cost == best
    assert {state.program.fingerprint for state in recorder.proposed} == seen


def test_taso__proposes_no_program_twice_and_gets_through_what_costs_more():
    rules = ["two that share an input", "fused activation", "elementwise on both parts of a split"]
    recorder = run("taso", MERGE, rules=rules)
    prints = [state.program.fingerprint for state in recorder.proposed]
    assert len(set(prints)) == len(prints)
    assert recorder.best_cost < recorder.problem.original_s


@pytest.mark.parametrize("program", [MERGE, UNDO], ids=lambda program: program.name)
def test_exhaustive__no_other_search_finds_better(program):
    solution = gg.solve(RewriteProblem(program), "exhaustive", budget=4000)
    assert solution.outcome.valid
    for method in ("greedy", "taso", "annealing"):
        assert gg.solve(RewriteProblem(program), method, budget=400).outcome.cost >= solution.outcome.cost * (1 - 1e-12)


def test_exhaustive__ends_with_a_known_best():
    rules = ["transposes", "fused activation"]
    solution = gg.solve(RewriteProblem(UNDO, rules=rules), "exhaustive", budget=100_000)
    best = parse_program('return relu(input(name="x", shape=(64, 64)))')
    assert solution.stopped_by == "finished"
    assert solution.decision == best
    merged = parse_program(
        'x = input(name="x", shape=(8, 64))\n'
        'm = matmul(x, concat(weight(name="a", shape=(64, 64)), weight(name="b", shape=(64, 64)), axis=1), act=relu)\n'
        "return split0(m, axis=1, at=64), split1(m, axis=1, at=64)"
    )
    rules = ["two that share an input", "fused activation", "elementwise on both parts of a split"]
    solution = gg.solve(RewriteProblem(MERGE, rules=rules), "exhaustive", budget=100_000)
    assert solution.stopped_by == "finished"
    assert solution.decision.statistics()["ops"] == merged.statistics()["ops"]
    assert solution.outcome.cost == RewriteProblem(MERGE).program_cost(merged)


def test_exhaustive__refuses_a_large_program_in_one_line():
    with pytest.raises(InputError, match=r"takes programs of at most 24 operators; 'squeezenet' has 65: use 'taso'"):
        gg.solve(RewriteProblem("squeezenet"), "exhaustive")


@pytest.mark.parametrize("method", ["taso", "greedy", "random_walk"])
def test_searches__the_same_seed_gives_the_same(method):
    runs = [gg.solve(RewriteProblem(recurrent()), method, budget=300, seed=1) for _ in range(2)]
    assert runs[0].decision == runs[1].decision
    assert runs[0].trace == runs[1].trace
    assert [row[::2] for row in runs[0].history] == [row[::2] for row in runs[1].history]


def test_random_walk__is_a_walk_of_valid_programs():
    problem = RewriteProblem(attention())
    recorder = Recorder(problem, 150)
    with pytest.raises(BudgetSpent):
        searches.random_walk(recorder, np.random.default_rng(0))
    lengths = [len(state.trace) for state in recorder.proposed]
    assert lengths[:101] == [0, *range(1, 101)]
    assert lengths[101] == 1
    for state in recorder.proposed[::30]:
        assert problem.evaluate(state.program).valid


def test_report__shows_the_rules_in_order_and_what_changed(tmp_path):
    problem = RewriteProblem(MERGE)
    solution = gg.solve(problem, "taso", budget=500)
    page = comparison_page(problem, solution.decision, solution.trace)
    places = [page.index(f"<td>{number}</td>".replace("<td>", '<td class="n">') + f"<td>{rule}</td>")
              for number, (rule, *_) in enumerate(solution.trace, 1)]  # fmt: skip
    assert places == sorted(places)
    gone, new = changed(problem.program, solution.decision)
    assert {problem.program.nodes[node].op for node in gone} == {"matmul", "relu"}
    assert "matmul" in {solution.decision.nodes[node].op for node in new}
    assert changed(problem.program, parse_program(problem.encode(problem.program))) == (set(), set())
    assert "does not say" in comparison_page(problem, solution.decision, None)
    assert "the program is the original" in comparison_page(problem, problem.program, ())
    png, html = write_report(solution, tmp_path, "merge")
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert page.splitlines()[0] in html.read_text()
    assert "merge-matmuls-input" in html.read_text()
