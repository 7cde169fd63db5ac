"""Extraction against the enumeration of all picks; e-graphs against checks that share no code with them."""

from __future__ import annotations

import itertools
import math
import random
import time

import networkx as nx
import numpy as np
import pytest

from graphopt_gym.envs.rewrite.cost import ProgramCosts
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.rules.patterns import make_rule
from graphopt_gym.envs.rewrite.rules.table import load_rules
from graphopt_gym.envs.rewrite.saturation.egraph import EGraph
from graphopt_gym.envs.rewrite.saturation.explore import Explorer, Saturation, saturate
from graphopt_gym.envs.rewrite.saturation.extraction import Choices, extract_greedy, extract_ilp, extract_shared
from graphopt_gym.envs.rewrite.saturation.limits import Limits
from graphopt_gym.envs.rewrite.saturation.solvers import Part, alike, eliminate, improve, like, parts_of
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import ProgramBuilder, TensorProgram
from graphopt_gym.graphs.tensor_program.convert import class_of
from graphopt_gym.graphs.tensor_program.execute import execute, random_values
from graphopt_gym.graphs.tensor_program.ops import infer
from graphopt_gym.graphs.zoo.programs import build_program, known_best, program_names
from tests.envs.rewrite.programs import all_programs, inception

UNARY, BINARY = ("relu", "tanh", "sigmoid"), ("add", "mul", "matmul")


class Prices:
    """Costs of a whole number of microseconds, drawn for each operation; operators on constants are free."""

    fused = False

    def counts(self, op, params) -> bool:
        return class_of(op, params) != "view"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def price(self, op, params, inputs, same) -> float:
        chance = random.Random(f"{self.seed} {op} {params} {inputs} {same}")
        return chance.choice([0, 1, 2, 3, 5, 8, 13]) * 1e-6

    def seconds(self, operations) -> list[float]:
        return [self.price(row.op, row.params, row.inputs, row.same) for row in operations]

    def cost(self, program: TensorProgram) -> float:
        total = 0.0
        for node, (op, params, inputs, _) in program.nodes.items():
            if op != "input" and not program.is_static(node):
                shapes = tuple(program.nodes[source].shape for source in inputs)
                total += self.price(op, params, shapes, tuple(inputs.index(source) for source in inputs))
        return total


def synthetic(seed: int, acyclic: bool, steps: int = 12, unions: int = 5) -> Saturation:
    """A random e-graph: a random program, more operators on its classes, and classes merged at random."""
    chance = random.Random(seed)
    b = ProgramBuilder("random")
    nodes = [b.input("x", (2, 2)), b.input("y", (2, 2)), b.weight("w", (2, 2))]
    for _ in range(5):
        nodes.append(b.add(*_random_op(chance, nodes)))
    program = b.finish([nodes[-1], nodes[-2]])
    graph = EGraph()
    roots = graph.add_program(program)
    classes = list(graph.classes())
    for _ in range(steps):
        classes.append(graph.add(*_random_op(chance, classes)))
    for _ in range(unions):
        varying = [cls for cls in graph.classes() if not graph.static[cls]]
        graph.union(chance.choice(varying), chance.choice(varying))
        graph.rebuild()
    if acyclic:
        graph.clean_up()
    return Saturation(program, graph, roots, Prices(seed), "", (), 0.0, 0, acyclic)  # type: ignore[arg-type]


def _random_op(chance, nodes):
    op = chance.choice(chance.choice([UNARY, BINARY]))
    inputs = [chance.choice(nodes) for _ in range(1 if op in UNARY else 2)]
    return op, ("none",) if op == "matmul" else (), inputs


def cheapest_of_all(explored: Saturation) -> float:
    """The cost of the cheapest program, by trying every e-node of every class that is needed."""
    graph = explored.graph
    nodes = {cls: list(graph.nodes_of(cls)) for cls in graph.classes()}
    constant: set[int] = set()
    grows = True
    while grows:
        more = {
            cls
            for cls in nodes
            if any(node.op != "input" and set(node.children) <= constant for node in nodes[cls])
        }  # fmt: skip
        grows, constant = more != constant, more
    prices = explored.costs
    best = math.inf

    def price(node) -> float:
        if node.op == "input":
            return 0.0
        children = node.children
        shapes = tuple(graph.shapes[child] for child in children)
        return prices.price(node.op, node.params, shapes, tuple(children.index(child) for child in children))

    def visit(picked: dict[int, object], waiting: list[int], cost: float) -> None:
        nonlocal best
        if cost >= best:
            return
        waiting = [cls for cls in waiting if cls not in picked and cls not in constant]
        if not waiting:
            edges = nx.DiGraph([(cls, child) for cls, node in picked.items() for child in node.children])
            edges.remove_nodes_from(constant & set(edges))
            if nx.is_directed_acyclic_graph(edges):
                best = cost
            return
        cls, *rest = waiting
        for node in nodes[cls]:
            visit({**picked, cls: node}, [*rest, *node.children], cost + price(node))

    visit({}, [graph.find(root) for root in explored.roots], 0.0)
    return best


@pytest.mark.parametrize("acyclic", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_extraction__is_the_cheapest_of_all_picks(seed, acyclic):
    explored = synthetic(seed, acyclic)
    best = cheapest_of_all(explored)
    original = explored.costs.cost(explored.program)
    ways = [{}] if acyclic else [{"cycle_constraints": True}, {"cycle_constraints": False}]
    for solver, elimination, way in itertools.product(("highs", "cp-sat"), (True, False), ways):
        found = extract_ilp(explored, solver=solver, elimination=elimination, seconds=5, **way)
        assert found.status == "optimal"
        assert found.cost == pytest.approx(min(best, original), rel=1e-6, abs=1e-12), (solver, elimination, way)
        assert found.improved == (found.cost < original)
        assert found.cost == explored.costs.cost(found.program)
        assert found.bound == pytest.approx(found.cost, rel=1e-6, abs=1e-12)
    assert extract_greedy(explored).cost >= min(best, original) - 1e-12
    assert extract_shared(explored).cost >= min(best, original) - 1e-12


def test_synthetic__e_graphs_are_of_all_kinds():
    kinds = [synthetic(seed, acyclic) for seed in range(25) for acyclic in (True, False)]
    cyclic = [len(part.cyclic) for explored in kinds for part in parts_of(Choices(explored))]
    assert sum(size > 0 for size in cyclic) >= 10
    better = [extract_ilp(explored).cost < extract_greedy(explored).cost - 1e-9 for explored in kinds]
    assert sum(better) >= 3
    assert sum(extract_ilp(explored).improved for explored in kinds) >= 20


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_eliminate__agrees_with_the_integer_programs(program):
    problem = RewriteProblem(program)
    explored = saturate(program, None, problem.program_costs, node_limit=300)
    choices = Choices(explored)
    assert any(len(part.options) > 5 and eliminate(part) for part in parts_of(choices))
    exact = extract_ilp(explored, choices=choices)
    for solver in ("highs", "cp-sat"):
        other = extract_ilp(explored, choices=choices, solver=solver, elimination=False, seconds=5)
        assert other.bound <= exact.cost * (1 + 1e-6)
        assert other.cost >= exact.cost * (1 - 1e-6)
    assert extract_shared(explored, choices).cost >= exact.cost * (1 - 1e-12)
    assert extract_greedy(explored, choices).cost >= exact.cost * (1 - 1e-12)


def test_eliminate__gives_up_where_tables_would_be_large():
    problem = RewriteProblem(build_program("small_fire"))
    explored = saturate(problem.program, None, problem.program_costs)
    part = parts_of(Choices(explored))[-1]
    assert eliminate(part) is not None
    assert eliminate(part, most_entries=8) is None


def test_alike__knows_a_part_under_other_numbers_and_no_other():
    program = all_programs()[2]
    problem = RewriteProblem(program)
    part = parts_of(Choices(saturate(program, None, problem.program_costs, node_limit=400)))[-1]
    to = dict(zip(part.options, random.Random(1).sample(range(10_000), len(part.options)), strict=True))
    other = Part(forced=[to[cls] for cls in part.forced])
    for cls, options in part.options.items():
        other.options[to[cls]] = [
            option._replace(children=frozenset(to[child] for child in option.children)) for option in options
        ]
    last = next(reversed(other.options))
    dearer = [option._replace(cost=option.cost + 1e-6) for option in other.options[last]]
    third = Part({**other.options, last: dearer}, other.forced)
    (group, alone) = alike([part, other, third])
    assert [len(group), len(alone)] == [2, 1]
    (one, order), (same, same_order) = group
    exact = eliminate(one)
    assert exact is not None
    carried = like(one, order, exact.picks, same, same_order)
    assert set(other.forced) <= carried.keys()
    for cls, number in carried.items():
        (option,) = [option for option in other.options[cls] if option.number == number]
        assert option.children <= carried.keys()
    cost = sum(option.cost for cls in carried for option in other.options[cls] if option.number == carried[cls])
    assert cost == pytest.approx(exact.bound)


def test_improve__never_worsens_and_finds_what_elimination_finds():
    reached = 0
    for program in (*all_programs(), build_program("small_separable")):
        problem = RewriteProblem(program)
        choices = Choices(saturate(program, None, problem.program_costs, node_limit=300))
        start = choices.greedy()[0]
        first = {cls: choices.index(cls, start[cls]) for cls in choices.made(start)}
        part = max(parts_of(choices), key=lambda part: part.size)
        exact = eliminate(part)
        assert exact is not None
        found = improve(part, first, 0.5)
        before, after = (
            sum(choices.of[cls][number].cost for cls, number in picks.items() if cls in part.options)
            for picks in (first, found)
        )
        assert exact.bound * (1 - 1e-9) <= after <= before
        reached += after <= exact.bound * (1 + 1e-9)
        whole = {cls: choices.of[cls][number].node for cls, number in {**first, **found}.items()}
        assert choices.price(whole) == pytest.approx(choices.price(start) - before + after)
    assert reached >= 3


def test_extraction__in_no_time_says_so_and_keeps_the_bound():
    problem = RewriteProblem(build_program("inception_v3"))
    explored = saturate(problem.program, None, problem.program_costs, node_limit=5000)
    choices = Choices(explored)
    choices.shared()  # what is found fast, which the solvers start from
    for solver in ("highs", "cp-sat", "both"):
        found = extract_ilp(explored, seconds=0.2, solver=solver, choices=choices)
        assert found.status == "time limit"
        assert found.improved
        assert 0 <= found.bound <= found.cost
        assert found.gap == pytest.approx(1 - found.bound / found.cost)


def test_extraction__an_e_graph_with_nothing_better_gives_the_original():
    problem = RewriteProblem(build_program("small_factored"))
    explored = saturate(problem.program, ["associativity and commutativity"], problem.program_costs)
    for found in (extract_greedy(explored), extract_shared(explored), extract_ilp(explored)):
        assert not found.improved
        assert found.program == problem.program
    assert found.status == "optimal"
    assert found.bound == pytest.approx(problem.original_s, rel=1e-9)


@pytest.mark.parametrize(("told", "says"), [({"solver": "hihgs"}, "did you mean 'highs'"), ({"seconds": 0}, "seconds")])
def test_extraction__bad_arguments_are_named(told, says):
    with pytest.raises(InputError, match=says):
        extract_ilp(synthetic(0, True), **told)


# The best of small_scores merges the matmul of k with that of a scaled q. Multi-pattern rules of the first two (three;
# four within 5,000 nodes) iterations do not find it, those of five do, as the scale has to reach q first; one round of
# them once the other rules add nothing any more does, too.
DEEP = {"small_scores": 5}


@pytest.mark.parametrize("name", program_names("small"))
def test_saturation__finds_the_best_of_exhaustive_search(name):
    problem = RewriteProblem(build_program(name))
    best = known_best(name)["best_s"]
    for cycles in ("filter", "ilp"):
        explored = saturate(problem.program, None, problem.program_costs, k_multi=2, node_limit=1500, cycles=cycles)
        assert explored.stopped_by == "saturated for k=2"
        found = extract_ilp(explored, solver="cp-sat", seconds=20)
        assert found.status == "optimal"
        if name in DEEP:
            assert found.cost > best * (1 + 1e-3)
        else:
            assert found.cost == pytest.approx(best, rel=1e-9)
    if name in DEEP:
        deep = saturate(problem.program, None, problem.program_costs, k_multi=DEEP[name], node_limit=1500)
        assert extract_shared(deep).cost >= best * (1 - 1e-9)
        assert extract_ilp(deep, solver="cp-sat", seconds=20).cost == pytest.approx(best, rel=1e-9)
        needed = saturate(problem.program, None, problem.program_costs, schedule="need", iteration_limit=40)
        assert (needed.stopped_by, needed.nodes < 500) == ("saturated for k=1", True)
        assert extract_ilp(needed, solver="cp-sat", seconds=20).cost == pytest.approx(best, rel=1e-9)


# -- e-graphs ----------------------------------------------------------------------------------------------------------


def check_e_graph(graph: EGraph, acyclic: bool) -> None:
    """Congruence, hash-consing, counts, shapes and acyclicity, from the e-nodes alone."""
    known: dict[tuple, int] = {}
    count = 0
    edges = nx.DiGraph()
    for cls in graph.classes():
        assert graph.find(cls) == cls
        edges.add_node(cls)
        for node in graph.nodes_of(cls):
            count += 1
            assert node.alive
            assert not node.filtered
            assert graph.find(node.owner) == cls
            assert tuple(graph.find(child) for child in node.children) == node.children
            form = (node.op, node.params, node.children)
            assert form not in known, "two e-nodes of the same form"
            known[form] = cls
            shapes = tuple(graph.shape(child) for child in node.children)
            assert infer(node.op, shapes, node.params)[1] == graph.shape(cls)
            assert all(node in graph.users_of(child) for child in node.children)
            edges.add_edges_from((cls, child) for child in node.children)
    assert count == graph.nodes
    assert edges.number_of_nodes() == graph.num_classes
    if acyclic:  # constants are made from constants alone, so nothing of theirs is a cycle
        edges.remove_nodes_from([cls for cls in edges if graph.static[cls]])
        assert nx.is_directed_acyclic_graph(edges)


def unequal(program: TensorProgram, graph: EGraph) -> tuple[int, int]:
    """(e-nodes that were executed, those of them whose value is not their class's), in float64 from the leaves up."""
    given = random_values(program, seed=3)
    values: dict[int, np.ndarray] = {}
    left = {id(node): (cls, node) for cls in graph.classes() for node in graph.nodes_of(cls)}
    executed = wrong = 0
    while True:
        ready = [key for key, (_, node) in left.items() if all(child in values for child in node.children)]
        if not ready:
            return executed, wrong
        for key in ready:
            cls, node = left.pop(key)
            b = ProgramBuilder("one")
            if node.children:
                inputs = [b.input(f"x{place}", graph.shape(child)) for place, child in enumerate(node.children)]
                feed = {f"x{place}": values[child] for place, child in enumerate(node.children)}
            else:
                inputs, feed = [], given
            (value,) = execute(b.finish([b.add(node.op, node.params, inputs)]), feed)
            executed += 1
            if cls in values:
                scale = max(1e-12, float(np.abs(values[cls]).max()))
                wrong += float(np.abs(value - values[cls]).max()) > 1e-9 * scale
            else:
                values[cls] = value


@pytest.mark.parametrize("cycles", ["filter", "ilp"])
@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_e_graph__is_congruent_and_all_e_nodes_of_a_class_compute_the_same(program, cycles):
    explored = saturate(program, None, RewriteProblem(program).program_costs, k_multi=2, node_limit=700, cycles=cycles)
    check_e_graph(explored.graph, acyclic=cycles == "filter")
    executed, wrong = unequal(program, explored.graph)
    assert executed >= 0.99 * explored.nodes  # of a cyclic one, all that a program can reach
    assert wrong == 0


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("acyclic", [True, False])
def test_e_graph__of_random_unions_is_congruent(seed, acyclic):
    explored = synthetic(seed, acyclic, steps=30, unions=8)
    check_e_graph(explored.graph, acyclic)


def test_e_graph__a_copy_is_explored_alone():
    program = all_programs()[0]
    explorer = Explorer(program, load_rules())
    singles = [index for index, rule in enumerate(explorer.rules) if not rule.multi]
    explorer.iterate(singles, Limits(400))
    before = sorted(map(repr, (node for cls in explorer.graph.classes() for node in explorer.graph.nodes_of(cls))))
    copy = explorer.copy()
    copy.iterate(singles, Limits(600))
    check_e_graph(copy.graph, acyclic=True)
    check_e_graph(explorer.graph, acyclic=True)
    after = sorted(map(repr, (node for cls in explorer.graph.classes() for node in explorer.graph.nodes_of(cls))))
    assert before == after
    assert copy.graph.nodes > explorer.graph.nodes


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("relu(mul(x, y))", "mul(relu(x), relu(y))"),  # both below zero
        ("matmul(x, add(y, z))", "add(matmul(x, y), z)"),
        ("mul(x, add(y, z))", "add(mul(x, y), y)"),
    ],
)
def test_unequal__catches_a_wrong_rule(source, target):
    b = ProgramBuilder("caught")
    x, y, z = (b.input(name, (3, 3)) for name in "xyz")
    both = b.op("add", y, z)
    program = b.finish([b.op("relu", b.op("mul", x, y)), b.op("matmul", x, both), b.op("mul", x, both)])
    costs = RewriteProblem(program).program_costs
    wrong = make_rule("mine", "wrong", source, target, "")
    right = saturate(program, None, costs, node_limit=200)
    assert unequal(program, right.graph)[1] == 0
    assert unequal(program, saturate(program, [*load_rules(), wrong], costs, node_limit=200).graph)[1] > 0


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "stopped_by"),
    [
        ({"node_limit": 800}, "node limit"),
        ({"iteration_limit": 2}, "iteration limit"),
        ({"seconds": 0.15}, "time limit"),
        ({"memory_bytes": 1 << 20}, "memory limit"),
    ],
)
def test_saturation__every_limit_fires_by_name_and_leaves_a_program(limits, stopped_by):
    problem = RewriteProblem(build_program("nasnet_a"))
    explored = saturate(problem.program, None, problem.program_costs, k_multi=2, **limits)
    assert explored.stopped_by == stopped_by
    check_e_graph(explored.graph, acyclic=True)
    found = extract_shared(explored)
    assert found.cost <= problem.original_s
    if "node_limit" in limits:
        assert explored.nodes <= limits["node_limit"] + 100  # one match, at most
    if "seconds" in limits:
        assert explored.seconds < 2.0
    if "memory_bytes" in limits:
        assert explored.memory_bytes < 200 << 20


def test_extract_ilp__looks_at_the_clock__and_starts_from_what_filtering_cycles_finds():
    """An e-graph on which the solvers take all the time that they get."""
    problem = RewriteProblem("nasnet_a")
    rules = problem.matcher.rules
    explored = saturate(problem.program, rules, problem.program_costs, node_limit=10_000, cycles="ilp")
    started = time.process_time()  # of this process, as others may be busy
    found = extract_ilp(explored, solver="cp-sat", seconds=2)
    assert time.process_time() - started < 4
    assert found.bound <= found.cost * (1 + 1e-6)
    choices = Choices(explored)
    filtered = choices._filtered()
    assert filtered is not None
    assert choices.price(choices.best_known()) <= choices.price(filtered) < choices.price(choices.greedy()[0])


def test_unsolved__keeps_the_start_and_a_bound():
    explored = saturate(inception(), None, ProgramCosts("t4"), node_limit=800)
    exact, hurried = extract_ilp(explored), extract_ilp(explored, seconds=1e-6)
    assert hurried.bound <= exact.cost * (1 + 1e-6)
    assert exact.cost <= hurried.cost * (1 + 1e-9)
