"""ComputationGraph: what it refuses, its CSR edges against networkx, its conversions."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import COLUMNS, MAX_RANK, OP_CLASSES, PHASES, SOURCE, VIEW, ComputationGraph

ELEMENTWISE = OP_CLASSES.index("elementwise")
KINDS = ("add", "view")


def columns(num_ops: int = 4, **given: Any) -> dict[str, Any]:
    """Columns of plain ops, with some of them replaced."""
    shapes = np.full((num_ops, MAX_RANK), -1)
    shapes[:, 0] = 10
    filled: dict[str, Any] = {column: np.zeros(num_ops, np.int64) for column in COLUMNS}
    filled |= {"op_class": np.full(num_ops, ELEMENTWISE), "output_shape": shapes, "output_bytes": np.full(num_ops, 40)}
    return filled | {column: np.asarray(values) for column, values in given.items()}


def graph(num_ops: int = 4, edges: Any = ((0, 1), (1, 2), (0, 3)), **given: Any) -> ComputationGraph:
    return ComputationGraph("g", kinds=KINDS, modules=("", "a"), columns=columns(num_ops, **given), edges=edges)


dags = st.builds(
    layered_dag,
    num_ops=st.integers(1, 60),
    width=st.integers(1, 8),
    seed=st.integers(0, 2**32),
    fan_in=st.integers(1, 5),
    sources=st.floats(0, 1),
    views=st.floats(0, 1),
    zeros=st.floats(0, 1),
    colocated=st.floats(0, 1),
    phases=st.booleans(),
    equal=st.booleans(),
)


# -- what the constructor refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flops": [1, 2]}, r"column 'flops' has shape \(2,\), expected \(4,\) for 4 ops"),
        ({"output_shape": np.zeros((4, 3), int)}, r"'output_shape' has shape \(4, 3\), expected \(4, 8\)"),
        ({"flops": [0.5] * 4}, "column 'flops' has dtype float64, expected integers"),
        ({"flops": np.array([1, None, 2, 3], object)}, "column 'flops' has dtype object"),
        ({"flops": [1, 2, -3, 4]}, "column 'flops' of op 2 is -3; allowed: at least 0"),
        ({"kind": [0, 0, 1, 2]}, "column 'kind' of op 3 is 2; allowed: 0 to 1"),
        ({"kind": [0, 0, 0, 2**16]}, "column 'kind' of op 3 is 65536"),  # would be 0 in int16
        ({"flops": np.array([0, 2**63, 0, 0], np.uint64)}, "column 'flops' of op 1 is 9223372036854775808"),
        ({"op_class": [0, 0, 0, len(OP_CLASSES)]}, "column 'op_class' of op 3 is 13; allowed: 0 to 12"),
        ({"phase": [0, 3, 0, 0]}, "column 'phase' of op 1 is 3; allowed: 0 to 2"),
        ({"dtype": [-1, 0, 0, 0]}, "column 'dtype' of op 0 is -1"),
        ({"module": [0, 0, 2, 0]}, "column 'module' of op 2 is 2; allowed: 0 to 1"),
        ({"colocation": [0, -2, 0, 0]}, "column 'colocation' of op 1 is -2; allowed: at least -1"),
        ({"output_shape": [[2, -1, 3, *[-1] * 5]] * 4}, "output_shape of op 0 is .*; pad with -1 at the end only"),
        ({"speed": [1, 2, 3, 4]}, "unknown column 'speed'"),
    ],
)
def test_graph__refuses_bad_columns(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        graph(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", COLUMNS)
def test_graph__refuses_a_missing_column(column: str) -> None:
    lacking = {name: values for name, values in columns().items() if name != column}
    with pytest.raises(InputError, match=f"column '{column}' is missing"):
        ComputationGraph("g", kinds=KINDS, modules=("",), columns=lacking, edges=[])


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0, 4]], r"edge 0 is \[0, 4\], but ops are 0 to 3"),
        ([[0, 1], [-1, 2]], r"edge 1 is \[-1, 2\]"),
        ([[0, 1, 2]], r"edges must be integers \[E, 2\], got int64 \(1, 3\)"),
        ([[0.0, 1.0]], r"edges must be integers \[E, 2\], got float64"),
        ([[2, 1]], r"not in topological order: edge add\[2\] -> add\[1\]; use ComputationGraph.sorted"),
        ([[1, 1]], r"is cyclic: add\[1\] -> add\[1\]$"),
        ([[0, 1], [1, 2], [2, 3], [3, 1]], r"is cyclic: add\[\d\] -> add\[\d\] -> add\[\d\] -> add\[\d\]$"),
    ],
)
def test_graph__refuses_bad_edges(edges: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        graph(edges=edges)


def test_graph__refuses_views_and_sources_with_wrong_inputs() -> None:
    with pytest.raises(InputError, match=r"view\[3\] a is a view with 2 inputs; a view has one"):
        graph(edges=[(0, 3), (1, 3)], op_class=[2, 2, 2, VIEW], kind=[0, 0, 0, 1], module=[0, 0, 0, 1])
    with pytest.raises(InputError, match="is a view with 0 inputs"):
        graph(edges=[], op_class=[2, 2, 2, VIEW])
    with pytest.raises(InputError, match=r"add\[1\] is a source with 1 inputs"):
        graph(edges=[(0, 1)], op_class=[2, SOURCE, 2, 2])


def test_graph__refuses_to_be_empty() -> None:
    with pytest.raises(InputError, match="graph 'g' has no ops"):
        graph(0, edges=[])


# -- edges ----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    )
)
def test_graph__csr_agrees_with_networkx(case: tuple[int, list[tuple[int, int]]]) -> None:
    num_ops, pairs = case
    pairs = [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]]
    g = graph(num_ops, edges=np.asarray(pairs, np.int64).reshape(-1, 2))
    reference = nx.DiGraph(pairs)
    reference.add_nodes_from(range(num_ops))
    assert g.num_edges == reference.number_of_edges()  # duplicates are merged
    assert g.edges.tolist() == sorted(map(list, reference.edges))
    for op in range(num_ops):
        assert g.successors(op).tolist() == sorted(reference.successors(op))
        assert g.predecessors(op).tolist() == sorted(reference.predecessors(op))
    depth = nx.dag_longest_path_length(reference)
    assert g.level.max() == depth == g.statistics()["depth"] - 1
    assert g.edge_bytes.tolist() == [40] * g.num_edges


def test_graph__level_is_the_longest_path_to_each_op() -> None:
    assert graph(5, edges=[(0, 1), (1, 2), (0, 2), (3, 4)]).level.tolist() == [0, 1, 2, 0, 1]


@settings(max_examples=60, deadline=None)
@given(dags, st.randoms(use_true_random=False))
def test_sorted__restores_a_shuffled_graph(g: ComputationGraph, random: Any) -> None:
    place = list(range(g.num_ops))
    random.shuffle(place)  # op i goes to place[i]
    shuffled = {column: np.empty_like(getattr(g, column)) for column in COLUMNS}
    for column, values in shuffled.items():
        values[place] = getattr(g, column)
    edges = np.asarray(place)[g.edges]
    again = ComputationGraph.sorted("g", kinds=g.kinds, modules=g.modules, columns=shuffled, edges=edges)
    assert (again.edge_src < again.edge_dst).all()
    assert sorted(again.flops.tolist()) == sorted(g.flops.tolist())
    described = [
        sorted((int(x.flops[a]), x.shape(a), int(x.flops[b]), x.shape(b)) for a, b in x.edges.tolist())
        for x in (g, again)
    ]
    assert described[0] == described[1]


def test_sorted__leaves_an_ordered_graph_and_refuses_what_the_constructor_does() -> None:
    given: dict[str, Any] = {"kinds": KINDS, "modules": ("", "a")}
    same = ComputationGraph.sorted("g", columns=columns(), edges=[(0, 1), (1, 2), (0, 3)], **given)
    assert same.fingerprint == graph().fingerprint
    with pytest.raises(InputError, match="is cyclic"):
        ComputationGraph.sorted("g", columns=columns(), edges=[(0, 1), (1, 0)], **given)
    with pytest.raises(InputError, match="column 'flops' has shape"):
        ComputationGraph.sorted("g", columns=columns(flops=[1]), edges=[(1, 0)], **given)
    with pytest.raises(InputError, match="but ops are 0 to 3"):
        ComputationGraph.sorted("g", columns=columns(), edges=[(7, 0)], **given)
    with pytest.raises(InputError, match="column 'kind' is missing"):
        ComputationGraph.sorted("g", columns={}, edges=[(1, 0)], **given)


# -- views ----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(dags)
def test_view_root__agrees_with_walking_up(g: ComputationGraph) -> None:
    for op in range(g.num_ops):
        root = op
        while g.op_class[root] == VIEW:
            (root,) = g.predecessors(root)
        assert g.view_root[op] == root


def test_view_root__goes_through_long_chains() -> None:
    n = 1000
    edges = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    chain = graph(n, edges=edges, op_class=[ELEMENTWISE] + [VIEW] * (n - 1))
    assert (chain.view_root == 0).all()
    assert chain.statistics()["output_bytes"] == 40  # the views own no memory


# -- immutability, replace, fingerprint -----------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [lambda g: g, copy.copy, copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_graph__cannot_be_changed(copied: Any) -> None:
    g = copied(graph())
    with pytest.raises(AttributeError, match=r"immutable.*use replace\(\)"):
        g.name = "other"
    for column in (*COLUMNS, "edge_src", "edge_dst", "succ_ptr", "pred_ptr", "pred", "view_root", "level"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(g, column)[0] = 1


def test_graph__does_not_share_the_arrays_it_was_given() -> None:
    flops = np.arange(4)
    g = graph(flops=flops)
    flops[:] = 99
    assert g.flops.tolist() == [0, 1, 2, 3]


def test_graph__columns_have_their_types() -> None:
    g = graph()
    assert {column: getattr(g, column).dtype.name for column in COLUMNS} == {c: t for c, (t, _) in COLUMNS.items()}


def test_replace__changes_only_what_is_given() -> None:
    g = graph().replace(metadata={"a": 1})
    other = g.replace(name="h", flops=[5, 6, 7, 8])
    assert (other.name, other.metadata, other.flops.tolist()) == ("h", {"a": 1}, [5, 6, 7, 8])
    assert g.flops.tolist() == [0] * 4
    assert all((getattr(other, c) == getattr(g, c)).all() for c in COLUMNS if c != "flops")
    assert (other.edges == g.edges).all()
    with pytest.raises(InputError, match="unknown column 'flop'"):
        g.replace(flop=[1, 2, 3, 4])
    with pytest.raises(InputError, match="column 'flops' has shape"):
        g.replace(flops=[1])


@pytest.mark.parametrize("column", COLUMNS)
def test_fingerprint__changes_with_each_column(column: str) -> None:
    g = graph()
    values = getattr(g, column).copy()
    values[3] += 1
    assert g.replace(**{column: values}).fingerprint != g.fingerprint


def test_fingerprint__is_of_what_costs_depend_on() -> None:
    g = graph()
    assert g.replace(name="h", metadata={"a": 1}).fingerprint == g.fingerprint == graph().fingerprint
    assert graph(edges=[(0, 1), (1, 2)]).fingerprint != g.fingerprint
    assert graph(edges=[(0, 1), (1, 2), (1, 3)]).fingerprint != g.fingerprint
    renamed = ComputationGraph("g", kinds=("mul", "view"), modules=("", "a"), columns=columns(), edges=g.edges)
    assert renamed.fingerprint != g.fingerprint


# -- conversions ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(dags)
def test_to_networkx__holds_every_column(g: ComputationGraph) -> None:
    converted = g.to_networkx()
    assert nx.is_directed_acyclic_graph(converted)
    assert list(converted.nodes) == list(range(g.num_ops))
    assert sorted(map(list, converted.edges)) == g.edges.tolist()
    for op, data in converted.nodes(data=True):
        assert data["kind"] == g.kinds[g.kind[op]]
        assert data["module"] == g.modules[g.module[op]]
        assert data["output_shape"] == g.shape(op)
        for column in set(COLUMNS) - {"kind", "module", "output_shape"}:
            assert data[column] == getattr(g, column)[op]
            assert type(data[column]) is int
    assert all(data["bytes"] == g.output_bytes[source] for source, _, data in converted.edges(data=True))


def test_to_pyg__round_trip() -> None:
    pytest.importorskip("torch_geometric")
    g = layered_dag(60, seed=3, phases=True)
    data = g.to_pyg()
    assert data.validate()
    assert data.num_nodes == g.num_ops
    assert data.edge_index.T.tolist() == g.edges.tolist()
    x = data.x.numpy()
    sizes = ("flops", "bytes_read", "bytes_written", "output_bytes", "param_bytes", "state_bytes")
    for position, column in enumerate(sizes):
        np.testing.assert_allclose(np.expm1(x[:, position].astype(float)), getattr(g, column), rtol=1e-5, atol=0.5)
    classes = x[:, 6 : 6 + len(OP_CLASSES)]
    assert (classes.argmax(1) == g.op_class).all()
    assert (x[:, 6 + len(OP_CLASSES) :].argmax(1) == g.phase).all()
    assert x.shape[1] == 6 + len(OP_CLASSES) + len(PHASES)
    np.testing.assert_allclose(np.expm1(data.edge_attr.numpy()[:, 0].astype(float)), g.edge_bytes, rtol=1e-5, atol=0.5)


def test_statistics__counts_by_hand() -> None:
    g = graph(flops=[1, 2, 3, 4], phase=[0, 1, 1, 2], colocation=[0, 0, -1, -1], param_bytes=[8, 0, 0, 0])
    assert g.statistics() == {
        "name": "g", "ops": 4, "edges": 3, "groups": 3, "depth": 3, "flops": 10, "param_bytes": 8, "state_bytes": 0,
        "output_bytes": 160, "phases": {"forward": 1, "backward": 2, "optimizer": 1},
    }  # fmt: skip


def test_graph__describes_ops_for_people() -> None:
    g = graph(module=[1, 0, 0, 0])
    assert (g.label(0), g.label(1)) == ("add[0] a", "add[1]")
    assert repr(g) == "ComputationGraph('g', ops=4, edges=3)"
    assert g.shape(0) == (10,)
