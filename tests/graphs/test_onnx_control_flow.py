"""Branches, loops, scans and sequences of ONNX files: what is taken, how often, with which edges and shapes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import ComputationGraph
from graphopt_gym.graphs.onnx_import import import_onnx

onnx = pytest.importorskip("onnx")
helper, FLOAT, INT64, BOOL = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def weight(name: str, *shape: int) -> Any:
    return onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)


def constant(name: str, value: Any, dtype: type = np.int64) -> Any:
    return onnx.numpy_helper.from_array(np.asarray(value, dtype), name)


def value(name: str, shape: Any, dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def sequence(name: str, shape: Any = None) -> Any:
    return helper.make_value_info(name, helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, shape)))


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"n_{outputs.split()[0]}", **attributes)


def body(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] = ()) -> Any:  # type: ignore[assignment]
    return helper.make_graph(nodes, "body", inputs, outputs, list(weights))


def save(folder: Path, graph: Any) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def kinds(graph: ComputationGraph) -> list[str]:
    return [graph.kinds[kind] for kind in graph.kind]


def named(graph: ComputationGraph, kind: str) -> list[str]:
    return [graph.modules[graph.module[op]] for op, one in enumerate(kinds(graph)) if one == kind]


def run(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)


# ---- If


def choice(folder: Path, condition: Any = None, inputs: Any = ()) -> Path:
    """A product with a large weight, or with a small one; both read h, which is computed outside."""
    then = body([node("MatMul", "h large", "a"), node("MatMul", "a back", "out")], [], [value("out", None)],
                [weight("large", 8, 64), weight("back", 64, 8)])  # fmt: skip
    other = body([node("MatMul", "h small", "out")], [], [value("out", None)], [weight("small", 8, 8)])
    nodes = [
        node("Relu", "x", "h"),
        node("If", "c", "picked", then_branch=then, else_branch=other),
        node("Tanh", "picked", "y"),
    ]
    given = [value("x", [4, 8]), *inputs, *([] if condition is not None else [value("c", [], BOOL)])]
    weights = [] if condition is None else [constant("c", condition, np.bool_)]
    return save(folder, helper.make_graph(nodes, "g", given, [value("y", None)], weights))


@pytest.mark.parametrize(
    ("condition", "dims", "taken", "products"),
    [
        (None, {}, "then: the costlier", 2),
        (True, {}, "then: its condition is constant", 2),
        (False, {}, "else: its condition is constant", 1),
        (None, {"branch:n_picked": 0}, "else: as given", 1),
        (False, {"branch:n_picked": 1}, "then: as given", 2),
    ],
)
def test_if__one_branch_counts(tmp_path: Path, condition: Any, dims: dict[str, int], taken: str, products: int) -> None:
    graph = import_onnx(choice(tmp_path, condition), dims=dims)
    assert graph.metadata["control_flow"] == {"n_picked": taken}
    assert [note for note in graph.notes if "If n_picked (then, the costlier)" in note] == (
        graph.notes if taken.endswith("costlier") else []
    )
    found = named(graph, "MatMul")
    assert len(found) == products
    assert found[0] == f"n_picked/{taken[:4]}/n_{'a' if products == 2 else 'out'}"
    flops = 2 * 4 * 8 * 64 * 2 if products == 2 else 2 * 4 * 8 * 8
    assert graph.flops[[kind == "MatMul" for kind in kinds(graph)]].sum() == flops
    assert graph.param_bytes.sum() == 4 * (2 * 8 * 64 if products == 2 else 64)
    # h is read from outside, and the branch's result goes on: a chain
    order = [op for op in range(graph.num_ops) if graph.bytes_written[op]]
    assert all(order[i] in graph.predecessors(order[i + 1]) for i in range(len(order) - 1))
    assert [kinds(graph)[op] for op in order] == ["Relu", *["MatMul"] * products, "Tanh"]


def test_if__a_condition_on_shapes_is_decided(tmp_path: Path) -> None:
    """As exporters write guards: which branch is taken follows from the sizes."""
    then = body([node("Relu", "x", "out")], [], [value("out", None)])
    other = body([node("Tanh", "x", "out")], [], [value("out", None)])
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "rows"),
        node("Equal", "rows one", "c"),
        node("If", "c", "y", then_branch=then, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", ["N", 3])], [value("y", None)], [constant("zero", 0), constant("one", 1)]
    )
    path = save(tmp_path, graph)
    assert named(import_onnx(path, dims={"N": 1}), "Relu") == ["n_y/then/n_out"]
    assert named(import_onnx(path, dims={"N": 2}), "Tanh") == ["n_y/else/n_out"]


# ---- Loop


def loop(folder: Path, trips: Any, condition: list[Any], going: str = "cond_out") -> Path:
    """h -> tanh(h w), and a scan output; ``condition``: the nodes that compute whether to go on."""
    inner = body(
        [node("MatMul", "h w", "m"), node("Tanh", "m", "h_out"), node("Relu", "m", "each"), *condition],
        [value("i", [], INT64), value("going", [], BOOL), value("h", None)],
        [value(going, [], BOOL), value("h_out", None), value("each", None)],
        [weight("w", 8, 8)],
    )
    nodes = [node("Loop", "trips go x", "last all", body=inner), node("Add", "all last", "y")]
    given = [value("x", [4, 8]), *([value("trips", [], INT64)] if trips is None else [])]
    weights = [constant("go", True, np.bool_), constant("limit", 4)]
    weights += [] if trips is None else [constant("trips", trips)]
    return save(folder, helper.make_graph(nodes, "g", given, [value("y", None)], weights))


ALWAYS = [node("Identity", "going", "cond_out")]
COUNTED = [node("Less", "i limit", "cond_out")]  # true for i = 0 to 3: five rounds
BY_DATA = [
    node("ReduceMax", "h", "top", keepdims=0),
    node("Cast", "top", "cond_out", to=BOOL),
]


@pytest.mark.parametrize(
    ("trips", "condition", "dims", "rounds", "why"),
    [
        (3, ALWAYS, {}, 3, "its trip count"),
        (2**62, COUNTED, {}, 5, "until its condition is false"),
        (3, COUNTED, {}, 3, "its trip count"),
        (3, BY_DATA, {}, 3, "as many as there may be"),
        (None, ALWAYS, {"trips:n_last": 6}, 6, "as given"),
        (2**62, BY_DATA, {"trips:n_last": 2}, 2, "as given"),
    ],
)
def test_loop__is_unrolled(
    tmp_path: Path, trips: Any, condition: list[Any], dims: dict[str, int], rounds: int, why: str
) -> None:
    path = loop(tmp_path, trips, condition)
    graph = import_onnx(path, dims=dims)
    assert graph.metadata["control_flow"] == {"n_last": f"{rounds} rounds: {why}"}
    assert ("Loop n_last (3 rounds" in " ".join(graph.notes)) == (why == "as many as there may be")
    assert named(graph, "MatMul") == [f"n_last/{index}/n_m" for index in range(rounds)]
    assert graph.flops[[kind == "MatMul" for kind in kinds(graph)]].sum() == rounds * 2 * 4 * 8 * 8
    assert graph.param_bytes.sum() == 4 * 8 * 8  # of all rounds
    assert graph.shape(graph.num_ops - 1) == (rounds, 4, 8)
    stack = kinds(graph).index("Stack")
    assert len(graph.predecessors(stack)) == rounds
    products = [op for op, kind in enumerate(kinds(graph)) if kind == "MatMul"]
    for one, following in itertools.pairwise(products):  # the state goes from round to round
        [tanh] = [op for op in graph.predecessors(following) if kinds(graph)[op] == "Tanh"]
        assert one in graph.predecessors(tanh)
    if trips is not None and not dims and condition is not BY_DATA:
        assert run(path, x=np.ones((4, 8), np.float32))[0].shape == (rounds, 4, 8)


@pytest.mark.parametrize(("trips", "condition"), [(None, ALWAYS), (2**62, BY_DATA)])
def test_loop__of_unknown_length__asks_for_it(tmp_path: Path, trips: Any, condition: list[Any]) -> None:
    with pytest.raises(
        InputError, match=r"number of rounds depends on data: Loop n_last; give it: dims=\{'trips:n_last"
    ):
        import_onnx(loop(tmp_path, trips, condition))


def test_loop__that_never_ends__is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt_gym.graphs.onnx.flatten.MOST_NODES", 1000)
    with pytest.raises(InputError, match=r"its loops make more than 1,000 operators; give fewer rounds"):
        import_onnx(loop(tmp_path, 2**62, ALWAYS))


def test_loop__state_that_grows(tmp_path: Path) -> None:
    inner = body(
        [node("Concat", "cache token", "longer", axis=0), *ALWAYS],
        [value("i", [], INT64), value("going", [], BOOL), value("cache", None)],
        [value("cond_out", [], BOOL), value("longer", None)],
    )
    nodes = [node("Relu", "x", "token"), node("Loop", "trips  token", "out", body=inner)]
    nodes[1].input[:] = ["trips", "", "token"]
    graph = helper.make_graph(nodes, "g", [value("x", [1, 8])], [value("out", None)], [constant("trips", 3)])
    path = save(tmp_path, graph)
    found = import_onnx(path)
    concats = [op for op, kind in enumerate(kinds(found)) if kind == "Concat"]
    assert [found.shape(op) for op in concats] == [(2, 8), (3, 8), (4, 8)]
    assert run(path, x=np.ones((1, 8), np.float32))[0].shape == (4, 8)


def test_loop__in_a_branch_in_a_loop(tmp_path: Path) -> None:
    innermost = body(
        [node("Tanh", "s", "s_out"), node("Identity", "go_in", "go_out")],
        [value("j", [], INT64), value("go_in", [], BOOL), value("s", None)],
        [value("go_out", [], BOOL), value("s_out", None)],
    )
    then = body([node("Loop", "two going h", "t", body=innermost)], [], [value("t", None)])
    other = body([node("Relu", "h", "t2")], [], [value("t2", None)])
    inner = body(
        [node("Equal", "i zero", "first"), node("If", "first", "h_out", then_branch=then, else_branch=other), *ALWAYS],
        [value("i", [], INT64), value("going", [], BOOL), value("h", None)],
        [value("cond_out", [], BOOL), value("h_out", None)],
    )
    nodes = [node("Loop", "three go x", "y", body=inner)]
    weights = [constant("three", 3), constant("two", 2), constant("zero", 0), constant("go", True, np.bool_)]
    path = save(tmp_path, helper.make_graph(nodes, "g", [value("x", [4])], [value("y", None)], weights))
    graph = import_onnx(path)
    computed = [kinds(graph)[op] for op in range(graph.num_ops) if graph.bytes_written[op]]
    assert computed == ["Tanh", "Tanh", "Relu", "Relu"]
    assert run(path, x=np.ones(4, np.float32))[0].shape == (4,)


# ---- Scan


@pytest.mark.parametrize("backwards", [0, 1])
def test_scan__is_unrolled_over_what_it_scans(tmp_path: Path, backwards: int) -> None:
    inner = body(
        [node("MatMul", "part w", "m"), node("Add", "m h", "h_out"), node("Relu", "h_out", "each")],
        [value("h", None), value("part", None)],
        [value("h_out", None), value("each", None)],
        [weight("w", 8, 8)],
    )
    scan = node(
        "Scan", "start x", "last all", body=inner, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[-1],
        scan_input_directions=[backwards],
    )  # fmt: skip
    nodes = [scan, node("ReduceSum", "last", "total", keepdims=0)]
    inputs = [value("start", [2, 8]), value("x", [2, 5, 8])]
    path = save(tmp_path, helper.make_graph(nodes, "g", inputs, [value("all", None), value("total", None)]))
    graph = import_onnx(path)
    assert named(graph, "MatMul") == [f"n_last/{index}/n_m" for index in range(5)]
    assert kinds(graph).count("Select") == 5
    stack = kinds(graph).index("Stack")
    results = run(path, start=np.ones((2, 8), np.float32), x=np.ones((2, 5, 8), np.float32))
    assert graph.shape(stack) == results[0].shape == (2, 8, 5)
    assert graph.shape(kinds(graph).index("ReduceSum")) == ()


# ---- sequences


def test_sequences__are_their_tensors(tmp_path: Path) -> None:
    each = body([node("Tanh", "part", "out")], [value("part", None)], [value("out", None)])
    nodes = [
        node("SplitToSequence", "x sizes", "parts", axis=0),
        node("SequenceMap", "parts", "mapped", body=each),
        node("SequenceAt", "mapped one", "second"),
        node("SequenceInsert", "mapped second", "more"),
        node("SequenceErase", "more zero", "fewer"),
        node("ConcatFromSequence", "fewer", "y", axis=0),
    ]
    weights = [constant("sizes", [1, 2, 3]), constant("one", 1), constant("zero", 0)]
    path = save(tmp_path, helper.make_graph(nodes, "g", [value("x", [6, 4])], [value("y", None)], weights))
    graph = import_onnx(path)
    assert named(graph, "Tanh") == ["n_mapped/1/n_out", "n_mapped/2/n_out"]  # the first one is read by none
    assert graph.shape(graph.num_ops - 1) == (7, 4)
    assert run(path, x=np.ones((6, 4), np.float32))[0].shape == (7, 4)


def test_sequences__at_a_place_that_depends_on_data__are_refused(tmp_path: Path) -> None:
    nodes = [
        node("SequenceConstruct", "x x", "parts"),
        node("ArgMax", "x", "where", axis=0, keepdims=0),
        node("SequenceAt", "parts where", "y"),
    ]
    path = save(tmp_path, helper.make_graph(nodes, "g", [value("x", [6])], [value("y", None)]))
    with pytest.raises(InputError, match=r"SequenceAt 'n_y': its position depends on data; make it a constant"):
        import_onnx(path)


def test_sequences__as_inputs__are_refused(tmp_path: Path) -> None:
    nodes = [node("ConcatFromSequence", "x", "y", axis=0)]
    path = save(tmp_path, helper.make_graph(nodes, "g", [sequence("x", [2, 3])], [value("y", None)]))
    with pytest.raises(InputError, match="has inputs that are not tensors of a known rank: x"):
        import_onnx(path)


def test_optionals__are_what_they_hold(tmp_path: Path) -> None:
    then = body([node("OptionalGetElement", "o", "g"), node("Relu", "g", "out")], [], [value("out", None)])
    other = body([node("Tanh", "x", "out")], [], [value("out", None)])
    nodes = [
        node("Optional", "x", "o"),
        node("OptionalHasElement", "o", "has"),
        node("If", "has", "y", then_branch=then, else_branch=other),
    ]
    path = save(tmp_path, helper.make_graph(nodes, "g", [value("x", [6])], [value("y", None)]))
    assert named(import_onnx(path), "Relu") == ["n_y/then/n_out"]
