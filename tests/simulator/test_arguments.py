"""What the simulator is given by hand: each wrong array is refused in one line that names the op and the value."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import graphopt_gym as gg
from graphopt_gym.envs.rewrite.cost import ProgramCosts
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag, uniform_op_times_s
from graphopt_gym.graphs.graph import SOURCE, VIEW
from graphopt_gym.graphs.zoo.programs import program_names
from graphopt_gym.hardware.cost_model import load_cost_model
from graphopt_gym.simulator import Simulator, simulate

GRAPH = layered_dag(30, 3, seed=1, phases=True, views=0.2)
N = GRAPH.num_ops
CLUSTER = gg.load_cluster("toy_mixedx3")
PLACEMENT = np.arange(N) % 3
TIMES = uniform_op_times_s(GRAPH)
REAL = np.flatnonzero((GRAPH.op_class != SOURCE) & (GRAPH.op_class != VIEW))
OP = int(REAL[3])
LABEL = GRAPH.label(OP).replace("[", r"\[")
WRONG = (math.nan, math.inf, -math.inf, -1.0, -1e-300)


class Changed:
    """The fitted cost model, what it gives changed."""

    def __init__(self, change, which="op_times"):
        self.change, self.which = change, which

    def op_times(self, graph, device):
        times = load_cost_model().op_times(graph, device)
        return self.change(times) if self.which == "op_times" else times

    def components(self, graph, device):
        found = list(load_cost_model().components(graph, device))
        if self.which != "op_times":
            found[self.which] = self.change(found[self.which])
        return tuple(found)


def put(value, op=OP):
    def change(array):
        array = np.array(array, np.float64)
        array[..., op] = value
        return array

    return change


def refused(match, **arguments):
    arguments = {"graph": GRAPH, "cluster": CLUSTER, "placement": PLACEMENT, **arguments}
    with pytest.raises(InputError, match=match) as caught:
        simulate(**arguments)
    assert str(caught.value).isprintable()


def test_simulate__takes_names_and_arrays_as_lists():
    by_name = simulate("bert_tiny_b16", "toyx2", [0] * gg.load_graph("bert_tiny_b16").num_ops)
    assert by_name.makespan_s > 0
    whole = simulate(GRAPH, CLUSTER, PLACEMENT, op_times_s=TIMES)
    assert simulate(GRAPH, CLUSTER, PLACEMENT.tolist(), op_times_s=TIMES.tolist()).makespan_s == whole.makespan_s
    types = len(set(CLUSTER.devices))
    assert simulate(GRAPH, CLUSTER, PLACEMENT, op_times_s=np.tile(TIMES, (types, 1))).makespan_s == whole.makespan_s
    assert simulate(GRAPH, CLUSTER, PLACEMENT, op_times_s=TIMES.astype(int)).makespan_s == whole.makespan_s


@pytest.mark.parametrize("value", WRONG)
def test_simulate__times_that_no_op_takes__are_refused_with_op_and_value(value):
    refused(f"the time of {LABEL} is {value} s; give finite seconds", op_times_s=put(value)(TIMES))
    refused(f"the time of {LABEL} is {value} s", cost_model=Changed(put(value)))
    with pytest.raises(InputError, match=f"the time of {LABEL} is {value} s"):
        gg.make_problem("Placement-v0", graph=GRAPH, cluster=CLUSTER, cost_model=Changed(put(value)))


def test_simulate__times_of_what_has_no_kernel_do_not_count():
    costless = np.flatnonzero(np.isin(GRAPH.op_class, (SOURCE, VIEW)))
    whole = simulate(GRAPH, CLUSTER, PLACEMENT, op_times_s=TIMES).makespan_s
    assert simulate(GRAPH, CLUSTER, PLACEMENT, op_times_s=put(math.nan, costless)(TIMES)).makespan_s == whole


def test_simulate__times_that_add_up_past_a_float__are_refused():
    refused("add up to more than a float holds", op_times_s=np.full(N, 1e308))


@pytest.mark.parametrize(("which", "values"), [(0, WRONG), (1, (0.0, -1.0, math.nan)), (2, WRONG)])
def test_simulate__components_of_a_fused_group_that_are_none__are_refused(which, values):
    edge = next(edge for edge in GRAPH.edges.tolist() if set(edge) <= set(REAL.tolist()))
    fusion = np.full(N, -1)
    fusion[edge] = 7
    assert simulate(GRAPH, CLUSTER, np.zeros(N, int), fusion=fusion).makespan_s > 0
    for value in values:
        model = Changed(put(value, edge), which)
        refused("the time of .* is .* s; give finite", fusion=fusion, cost_model=model, placement=np.zeros(N, int))
    refused("components .* has shape", fusion=fusion, cost_model=Changed(lambda array: array[1:], which))


@pytest.mark.parametrize(
    "given",
    [TIMES[1:], np.zeros((5, N)), np.zeros((1, 1, N)), 1.0, [[1.0], [1.0, 2.0]], ["1"] * N, TIMES + 0j, [None] * N,
     [10**400] * N, "x", TIMES > 0],
    ids=lambda given: str(np.shape(given)) if isinstance(given, np.ndarray) else type(given).__name__,
)  # fmt: skip
def test_simulate__arrays_of_another_shape_or_type__are_refused(given):
    refused("op_times_s (has|must be)", op_times_s=given)
    refused("op_times of the cost model (has|must be)", cost_model=Changed(lambda times: given))
    refused("priority (has|must be)", priority=given)
    refused("placement (has|must be)", placement=given)


def test_simulate__other_wrong_arguments__are_refused():
    refused(r"placement\[3\] is 3, allowed: 0 to 2", placement=np.where(np.arange(N) == 3, 3, 0))
    refused(r"placement\[0\] is -1", placement=np.full(N, -1))
    refused("placement has type float64", placement=np.zeros(N))
    refused(f"priority of {LABEL} is nan", priority=put(math.nan)(TIMES))
    refused("cannot be given together", op_times_s=TIMES, fusion=np.full(N, -1))
    refused("cost_model: unknown launch 'roofline'; known: back_to_back, eager, graph", cost_model="roofline")
    refused("cost_model is 3; give an object with op_times", cost_model=3)
    refused("fusion holds 4294967296", fusion=np.full(N, 2**32))
    refused("unknown graph 'x'", graph="x")
    refused("cluster is a int", cluster=3)


@given(arrays.arrays(np.float64, N, elements=st.floats(width=64)))
def test_simulator__any_times_give_a_finite_makespan_or_are_refused(times):
    with np.errstate(over="ignore", invalid="ignore"):
        ok = all(0 <= value < math.inf for value in times[REAL].tolist()) and times[REAL].sum() < 1e308
    try:
        makespan = Simulator(GRAPH, CLUSTER, op_times_s=times).run(PLACEMENT).makespan_s
    except InputError:
        assert not ok
    else:
        assert math.isfinite(makespan)


@pytest.mark.parametrize("value", WRONG)
def test_program_costs__of_a_cost_model_that_gives_no_times__are_refused(value):
    program = gg.load_program(program_names("small")[0])
    with pytest.raises(InputError, match=f"the time of .* is {value} s"):
        ProgramCosts("t4", Changed(put(value, slice(None)))).cost(program)
    with pytest.raises(InputError, match="op_times of the cost model has shape"):
        ProgramCosts("t4", Changed(lambda times: times[1:])).cost(program)


class Gives:
    """A cost model of a user's that gives the same, whatever the graph, or raises it."""

    def __init__(self, given):
        self.given = given

    def op_times(self, graph, device):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


FAULTS = [
    (np.full(N, -1.0), "the time of .* is -1.0 s; give finite seconds, at least 0"),
    (np.full(N, math.nan), "the time of .* is nan s; give finite seconds"),
    (np.full(N, math.inf), "the time of .* is inf s; give finite seconds"),
    (np.full(N, 1e308), "add up to more than a float holds"),
    (np.ones(N + 1), r"op_times of the cost model has shape \(\d+,\), expected"),
    (np.ones((N, 1)), "op_times of the cost model has shape"),
    (np.full(N, "1"), "op_times of the cost model has type"),
    (np.ones(N, complex), "op_times of the cost model has type"),
    (np.ones(N, bool), "op_times of the cost model has type bool"),
    (None, "op_times of the cost model has type object"),
    ([1.0, [2.0]], "op_times of the cost model must be an array"),
    (KeyError("mm\nadd"), "op_times of the cost model Gives raised KeyError for graph .* on device .*; let it give"),
    (ZeroDivisionError(), "raised ZeroDivisionError for graph .*: ZeroDivisionError; let it give an array"),
]


@pytest.mark.parametrize(("given", "message"), FAULTS, ids=lambda value: type(value).__name__)
def test_cost_model__of_ones_own__that_is_wrong__is_refused_everywhere(given, message):
    model = Gives(given)
    refused(message, cost_model=model)
    for build in (
        lambda: gg.make_problem("Placement-v0", graph=GRAPH, cluster=CLUSTER, cost_model=model),
        lambda: gymnasium.make("Placement-v0", graph=GRAPH, cluster=CLUSTER, cost_model=model),
        lambda: gymnasium.make("PlacementOneShot-v0", graph=GRAPH, cluster=CLUSTER, cost_model=model),
        lambda: gg.make_problem(
            "Placement-v0", graph=GRAPH, cluster=CLUSTER, cost_model=model, op_times_s={OP: 1.0},
            missing_op_times="cost_model",
        ),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message) as caught:
            build()
        assert "\n" not in str(caught.value)


def test_cost_model__that_is_a_class_or_has_no_function__is_refused():
    refused(r"op_times of the cost model \w+ raised TypeError", cost_model=Gives)
    model = Gives(None)
    model.op_times = 3
    refused("op_times of the cost model Gives raised TypeError", cost_model=model)


def test_cost_model__of_a_fused_group__that_raises_or_gives_something_else__is_refused():
    edge = next(edge for edge in GRAPH.edges.tolist() if set(edge) <= set(REAL.tolist()))
    fusion = np.full(N, -1)
    fusion[edge] = 7
    model = Gives(TIMES)
    refused("components of the cost model Gives raised AttributeError", fusion=fusion, cost_model=model)
    for wrong in (3, (1, 2), None):
        model.components = lambda graph, device, wrong=wrong: wrong
        refused("components of the cost model is .*; give compute_s, bytes_per_s", fusion=fusion, cost_model=model)


@pytest.mark.parametrize("seconds", [0.0, 1e-300, 1e300 / N])
def test_methods__take_any_times_that_a_step_can_take(seconds):
    problem = gg.make_problem("Placement-v0", graph=GRAPH, cluster=CLUSTER, cost_model=Gives(np.full(N, seconds)))
    pipeline = gg.make_problem(
        "Placement-v0", graph=GRAPH, cluster=CLUSTER, cost_model=Gives(np.full(N, seconds)), objective="throughput"
    )
    for name in gg.methods("Placement-v0"):
        suited = pipeline if name in ("dp", "load_annealing", "cp_sat") else problem
        outcome = gg.solve(suited, name, budget=20).outcome
        assert outcome.valid, name
        assert math.isfinite(outcome.cost), name
