"""The native engine and egglog, which share the rules' texts and no machinery, find the same e-graphs.

No cycles are filtered here, so that both apply the same matches. Where a symmetric multi-pattern rule takes a pair of
roots once, each engine takes it in an order of its own (by its numbers of classes), which the merged weight's order
shows; to compare e-graphs exactly such rules are taken both ways.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest

from graphopt_gym.envs.rewrite.cost import ProgramCosts
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.rules.matching import Matcher
from graphopt_gym.envs.rewrite.rules.patterns import Rule, make_rule
from graphopt_gym.envs.rewrite.rules.table import rules
from graphopt_gym.envs.rewrite.rules.verification import draw_instance
from graphopt_gym.envs.rewrite.saturation.egraph import EGraph
from graphopt_gym.envs.rewrite.saturation.explore import Explorer, saturate
from graphopt_gym.envs.rewrite.saturation.extraction import extract_greedy, extract_ilp
from graphopt_gym.envs.rewrite.saturation.limits import Limits
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import ProgramBuilder, TensorProgram
from graphopt_gym.graphs.zoo.programs import PROGRAMS, build_program, load_program, program_names
from tests.envs.rewrite.programs import all_programs

pytest.importorskip("egglog")

from graphopt_gym.envs.rewrite.saturation.egglog_engine import EgglogExplorer

BOTH_WAYS = tuple(replace(rule, symmetric=False) for rule in rules())
SINGLE = [index for index, rule in enumerate(BOTH_WAYS) if not rule.multi]
ALL = range(len(BOTH_WAYS))
FREE = Limits(nodes=1_000_000, seconds=1e6)  # its clock starts when this file is imported


def absorb(graph: EGraph, other: EGraph) -> tuple[int, int]:
    """Adds all e-nodes of another e-graph, and its equalities; e-nodes and classes that there are then."""
    graph = graph.copy()
    made: dict[int, int] = {}
    left = deque((node, cls) for cls in other.classes() for node in other.nodes_of(cls))
    idle = 0
    while left:
        node, cls = left.popleft()
        if all(other.find(child) in made for child in node.children):
            new = graph.add(node.op, node.params, [made[other.find(child)] for child in node.children])
            graph.union(made.setdefault(cls, new), new)
            idle = 0
        else:
            left.append((node, cls))
            idle += 1
            assert idle <= len(left), "a class that no program computes"
    graph.rebuild()
    return graph.nodes, graph.num_classes


def assert_same(native: EGraph, egglog: EGraph) -> None:
    """Each holds all e-nodes and all equalities of the other."""
    sizes = (native.nodes, native.num_classes)
    assert (egglog.nodes, egglog.num_classes) == sizes
    assert absorb(native, egglog) == sizes
    assert absorb(egglog, native) == sizes


def explore_both(
    program: TensorProgram, table: Sequence[Rule], rounds: Sequence[Sequence[int]], enough: int
) -> tuple[Explorer, EgglogExplorer]:
    """Iterations until nothing is new, or there are ``enough`` e-nodes; both must go on and end together."""
    native, egglog = Explorer(program, table, False), EgglogExplorer(program, table, False)
    for chosen in rounds:
        ours, limit = native.iterate(chosen, FREE)
        theirs, other_limit = egglog.iterate(chosen, FREE)
        assert limit == other_limit == ""
        assert (ours.nodes, ours.classes) == (theirs.nodes, theirs.classes)
        assert bool(ours.applied) == bool(theirs.applied)
        if not ours.applied or ours.nodes >= enough:
            break
    return native, egglog


@pytest.mark.parametrize("name", program_names("small"))
@pytest.mark.parametrize("k_multi", [0, 2])
def test_engines__find_the_same_e_graph_of_a_small_program_in_every_iteration(name, k_multi):
    rounds = [ALL] * k_multi + [SINGLE] * 12
    assert_same(*(side.graph for side in explore_both(load_program(name), BOTH_WAYS, rounds, 1000)))


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_engines__find_the_same_e_graph_of_a_network_in_little(program):
    assert_same(*(side.graph for side in explore_both(program, BOTH_WAYS, [ALL] + [SINGLE] * 3, 500)))


def random_program(seed: int) -> TensorProgram:
    chance = random.Random(seed)
    b = ProgramBuilder(f"random {seed}")
    if chance.random() < 0.5:
        found = [b.input("x", (1, 2, 4, 4)), b.input("y", (1, 2, 4, 4))]
        weights = [b.weight(f"w{i}", (2, 2, size, size)) for i, size in enumerate((1, 1, 3))]
        ops = ["conv2d", "conv2d", "add", "relu", "avgpool", "concat", "smul"]
    else:
        found = [b.input("x", (4, 4)), b.input("y", (4, 4))]
        weights = [b.weight(f"w{i}", (4, 4)) for i in range(2)]
        ops = ["matmul", "matmul", "add", "mul", "tanh", "transpose", "concat", "split0", "split1", "smul"]
    scale = b.weight("scale", ())
    params = {"avgpool": {"kernel": (3, 3)}, "transpose": {"perm": (1, 0)}, "concat": {"axis": 1}}
    params |= {op: {"axis": 1, "at": 2} for op in ("split0", "split1")}
    while len(found) < 9:
        op = chance.choice(ops)
        operands = [chance.choice(found)]
        if op in ("add", "mul", "concat", "matmul", "conv2d"):
            operands.append(chance.choice(weights if op in ("matmul", "conv2d") and chance.random() < 0.8 else found))
        elif op == "smul":
            operands.append(scale)
        try:
            found.append(b.op(op, *operands, **params.get(op, {})))
        except InputError:
            continue
    return b.finish(found[-2:])


@pytest.mark.parametrize("seed", range(12))
def test_engines__find_the_same_e_graph_of_a_random_program(seed):
    program = random_program(seed)
    assert_same(*(side.graph for side in explore_both(program, BOTH_WAYS, [ALL] + [SINGLE] * 12, 600)))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_rule__does_the_same_in_egglog_where_it_holds_and_where_it_does_not(rule):
    compiled = Matcher([rule]).compiled[0]
    chance = random.Random(rule.name)
    fired = 0
    for trial in range(2000):  # most rules fire in the first few
        drawn = draw_instance(rule, compiled, chance, perturb=trial % 3 == 0)
        if drawn is None:
            continue
        program, _ = drawn
        native, egglog = explore_both(program, [replace(rule, symmetric=False)], [[0]], 10**6)
        assert_same(native.graph, egglog.graph)
        assert (rule.name in native.entered) <= (rule.name in egglog.entered)
        fired += rule.name in native.entered
        if fired == 2:
            return
    raise AssertionError(f"{rule.name} fired {fired} times")


@pytest.mark.parametrize("name", program_names("small"))
def test_saturate__costs_the_same_from_either_engine(name):
    """As the rules are: the engines may order what they merge differently, which the price does not show."""
    costs = ProgramCosts("t4")
    program = load_program(name)
    found = [
        saturate(program, None, costs, node_limit=100_000, iteration_limit=4, cycles="ilp", engine=engine)
        for engine in ("native", "egglog")
    ]
    assert found[0].stopped_by == found[1].stopped_by
    assert extract_greedy(found[0]).cost == pytest.approx(extract_greedy(found[1]).cost, rel=1e-12)


@pytest.mark.parametrize(("name", "cycles"), [("nasrnn", "filter"), ("squeezenet", "ilp")])
def test_extraction__of_what_egglog_found_computes_the_same(name, cycles):
    problem = RewriteProblem(build_program(name, **PROGRAMS[name].small))
    explored = saturate(problem.program, None, problem.program_costs, node_limit=1000, cycles=cycles, engine="egglog")
    assert explored.acyclic == (cycles == "filter")
    if explored.acyclic:
        explored.graph.descendants()  # defined on acyclic e-graphs only
        assert explored.graph.copy().clean_up() == 0
    for extraction in (extract_greedy(explored), extract_ilp(explored, seconds=1)):
        outcome = problem.evaluate(extraction.program)
        assert outcome.valid, outcome.reasons
        assert outcome.cost <= problem.original_s * (1 + 1e-9)


def test_egglog__says_which_limit_ended_it():
    problem = RewriteProblem(build_program("squeezenet", **PROGRAMS["squeezenet"].small))

    def stopped(**limits):
        return saturate(problem.program, None, problem.program_costs, engine="egglog", **limits)

    few = stopped(node_limit=500)
    assert few.stopped_by == "node limit"
    assert 500 <= few.iterations[-1].nodes <= 1000  # a whole rule at a time
    assert few.nodes + few.graph.filtered == few.iterations[-1].nodes
    assert stopped(iteration_limit=1).stopped_by == "iteration limit"
    assert stopped(seconds=1e-9).stopped_by == "time limit"
    assert problem.evaluate(extract_greedy(few).program).valid


def test_egglog__refuses_a_rule_that_changes_the_shape():
    wrong = make_rule("wrong", "wrong", "transpose(x, perm=p)", "x")
    b = ProgramBuilder("one")
    program = b.finish([b.op("transpose", b.input("x", (2, 3)), perm=(1, 0))])
    explorer = EgglogExplorer(program, [wrong])
    with pytest.raises(Exception, match=r"(?i)merge"):
        explorer.iterate([0], FREE)


def test_saturate__names_engines_and_what_is_missing(monkeypatch):
    problem = RewriteProblem(load_program("small_chain"))
    with pytest.raises(InputError, match=r"engine 'eglog'.*did you mean 'egglog'"):
        saturate(problem.program, None, problem.program_costs, engine="eglog")
    monkeypatch.setitem(sys.modules, "egglog", None)
    with pytest.raises(InputError, match=r"pip install \"graphopt-gym\[rewrite\]\""):
        saturate(problem.program, None, problem.program_costs, engine="egglog")
