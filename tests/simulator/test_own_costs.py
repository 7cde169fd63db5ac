"""Own costs: the schedule against a plain twin, all the forms in which they are given, and what is refused."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import COLUMNS, MAX_RANK, SOURCE, VIEW, ComputationGraph
from graphopt_gym.hardware.cluster import Cluster, Link
from graphopt_gym.simulator import Simulator, simulate
from graphopt_gym.simulator.own_costs import INLINE_BYTES, OwnCosts

from . import own_costs_twin
from .cases import device, random_cluster, random_graph

GRAPH = layered_dag(12, 3, seed=1, views=0.2)
N = GRAPH.num_ops
CPU, GPU = device("slow", kind="cpu"), device("fast")
CLUSTER = Cluster(
    "lab", (GPU, GPU, CPU), (Link("bus", 0.5, 10.0),), np.zeros((3, 3), int) - np.eye(3, dtype=int), (0,) * 3
)
REAL = np.flatnonzero((GRAPH.op_class != SOURCE) & (GRAPH.op_class != VIEW))
OP = int(REAL[0])
EDGES = list(zip(GRAPH.edge_src.tolist(), GRAPH.edge_dst.tolist(), strict=True))


def random_own(rng, graph, cluster):
    """Dictionaries as the twin takes them; some of each kind."""
    some = lambda things, share: [one for one in things if rng.random() < share]  # noqa: E731
    ops, edges = range(graph.num_ops), list(zip(graph.edge_src.tolist(), graph.edge_dst.tolist(), strict=True))
    values = lambda keys, of: {key: type(of[0])(rng.choice(of)) for key in keys}  # noqa: E731
    return {
        "time": values([(op, d) for op in ops for d in range(cluster.num_devices)], [0.0, 1.0, 0.3, 2.0]),
        "op_bytes": values(some(ops, 0.3), [0, 3, 5]),
        "edge_bytes": values(some(edges, 0.3 * (rng.random() < 0.5)), [0, 2, 7]),
        "op_s": values(some(ops, 0.2), [0.0, 0.7, 1.0]),
        "edge_s": values(some(edges, 0.4 * (rng.random() < 0.6)), [0.0, 0.5, 2.0]),
        "static": values(some(ops, 0.3), [0, 1, 9]),
    }


def together(of_ops, of_edges):
    """Statements on ops and on edges in one, as edges alone: an argument takes either."""
    return of_edges if of_edges else of_ops


@pytest.mark.parametrize("seed", range(300))
def test_own_costs__a_step_is_that_of_the_plain_twin(seed):
    rng = np.random.default_rng(seed)
    graph, cluster = random_graph(rng, most_ops=5 if seed < 60 else 16), random_cluster(rng)
    own = random_own(rng, graph, cluster)
    for of_ops, of_edges in (("op_bytes", "edge_bytes"), ("op_s", "edge_s")):
        if own[of_edges]:
            own[of_ops] = {}
    times = np.array([[own["time"][op, d] for d in range(cluster.num_devices)] for op in range(graph.num_ops)])
    roots = graph.view_root
    placement = rng.integers(0, cluster.num_devices, graph.num_ops)[roots]
    timeline = simulate(
        graph, cluster, placement, op_times_s=times,
        tensor_bytes=together(own["op_bytes"], own["edge_bytes"]),
        transfer_s=together(own["op_s"], own["edge_s"]), static_bytes=own["static"],
    )  # fmt: skip
    makespan, peak = own_costs_twin.Step(graph, cluster, own, placement).run()
    assert timeline.makespan_s == makespan
    assert timeline.peak_bytes.tolist() == peak

    problem = gg.make_problem(
        "Placement-v0", graph=graph, cluster=cluster, grouping="op", op_times_s=times,
        tensor_bytes=together(own["op_bytes"], own["edge_bytes"]),
        transfer_s=together(own["op_s"], own["edge_s"]), static_bytes=own["static"],
    )  # fmt: skip
    decision = placement[problem.simulator.tasks.first_op].astype(np.int32)
    (cost,), (valid,) = problem.costs(decision[None])
    assert valid
    assert cost == problem.evaluate(decision).cost == makespan


def test_edges__that_state_the_same_are_sent_together__others_by_themselves():
    graph = fan_out()
    one_transfer = {"op_times_s": np.ones(4), "placement": [0, 1, 1, 1], "graph": graph, "cluster": CLUSTER}
    assert simulate(**one_transfer).makespan_s == 1 + (0.5 + 20 / 10) + 3
    assert simulate(**one_transfer, transfer_s={0: 4.0}).makespan_s == 1 + 4 + 3
    assert simulate(**one_transfer, transfer_s=[(0, 1, 4.0), (0, 2, 4.0), (0, 3, 4.0)]).makespan_s == 1 + 4 + 3
    # the edge to op 3 states nothing: its tensor is sent for itself, after the other on the one link
    timeline = simulate(**one_transfer, transfer_s=[(0, 1, 4.0), (0, 2, 4.0)])
    assert sorted((timeline.transfers[:, 5] - timeline.transfers[:, 4]).tolist()) == [2.5, 4.0]
    timeline = simulate(**one_transfer, tensor_bytes=[(0, 1, 10), (0, 2, 10), (0, 3, 40)])
    assert timeline.transfer_bytes.tolist() == [10, 40]
    assert timeline.makespan_s == 1 + 1.5 + 4.5 + 1


def fan_out() -> ComputationGraph:
    """Op 0, 20 bytes, is read by three."""
    columns = {name: np.zeros((4, MAX_RANK) if name == "output_shape" else 4, np.int64) for name in COLUMNS}
    columns["op_class"][:] = 5
    columns["output_bytes"][0] = 20
    edges = np.array([(0, 1), (0, 2), (0, 3)])
    return ComputationGraph("fan", kinds=["op"], modules=[""], columns=columns, edges=edges)


# ---- forms


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def test_op_times__every_form_says_the_same(tmp_path):
    rng = np.random.default_rng(0)
    by_kind = rng.random((N, 2))  # fast, slow: as they first occur
    by_device = by_kind[:, [0, 0, 1]]
    columns = {"columns": ["op", "fast", "slow"], "rows": [[op, *row] for op, row in enumerate(by_kind.tolist())]}
    labelled = [[GRAPH.label(op), "fast", a] for op, (a, _) in enumerate(by_kind.tolist())]
    labelled += [[op, "cpu", b] for op, (_, b) in enumerate(by_kind.tolist())]
    long = [
        {"op": op, "device": d, "seconds": s} for op, row in enumerate(by_device.tolist()) for d, s in enumerate(row)
    ]
    (tmp_path / "table.json").write_text(json.dumps(columns))
    (tmp_path / "long.json").write_text(json.dumps(long))
    (tmp_path / "vectors.json").write_text(json.dumps({"gpu": by_kind[:, 0].tolist(), "2": by_kind[:, 1].tolist()}))
    forms = [
        by_device, by_device.tolist(), by_kind, by_kind.T, columns, long,
        {"fast": by_kind[:, 0], "slow": by_kind[:, 1].tolist()},
        {0: by_kind[:, 0], "1": by_kind[:, 0], "cpu": by_kind[:, 1]},
        {op: {"fast": a, 2: b} for op, (a, b) in enumerate(by_kind.tolist())},
        write(tmp_path / "wide.csv", [["op", "label", "fast", "slow"],
                                      *([op, GRAPH.label(op), *row] for op, row in enumerate(by_kind.tolist()))]),
        write(tmp_path / "long.csv", [["op", "device", "seconds"], *labelled]),
        tmp_path / "table.json", tmp_path / "long.json", tmp_path / "vectors.json",
    ]  # fmt: skip
    expected = np.where(np.isin(np.arange(N), REAL)[:, None], by_device, 0).T
    for number, form in enumerate(forms):
        own = OwnCosts.of(GRAPH, CLUSTER, op_times_s=form)
        assert np.array_equal(own.op_times_s, expected), number
        again = OwnCosts.of(GRAPH, CLUSTER, **json.loads(json.dumps(own.given, allow_nan=False)))
        assert np.array_equal(again.op_times_s, expected), number
        assert json.dumps(again.given) == json.dumps(own.given), number
    everywhere = OwnCosts.of(GRAPH, CLUSTER, op_times_s=by_kind[:, 0])
    assert np.array_equal(everywhere.op_times_s, np.tile(expected[0], (3, 1)))


def test_op_times__of_some_ops__need_to_be_said_to_be_so():
    base = Simulator(GRAPH, CLUSTER)
    for partial in ({OP: 2.0}, {"columns": ["op", "seconds"], "rows": [[OP, 2.0]]}, {OP: {0: 2.0, 1: 2.0, 2: 2.0}}):
        with pytest.raises(InputError, match=r"is missing; give finite seconds.* or missing_op_times='cost_model'"):
            OwnCosts.of(GRAPH, CLUSTER, op_times_s=partial)
        own = OwnCosts.of(GRAPH, CLUSTER, op_times_s=partial, missing_op_times="cost_model")
        mine = Simulator(GRAPH, CLUSTER, own=own)
        times, before = mine.device_durations_s(), base.device_durations_s()
        task = mine.tasks.task_of_op[OP]
        assert (times[:, task] == 2.0).all()
        assert np.array_equal(np.delete(times, task, 1), np.delete(before, task, 1))
        assert mine.costs_version == base.costs_version != ""
    assert Simulator(GRAPH, CLUSTER, op_times_s=np.ones(N)).costs_version == ""
    one_device = OwnCosts.of(GRAPH, CLUSTER, op_times_s={"slow": np.ones(N)}, missing_op_times="cost_model")
    times = Simulator(GRAPH, CLUSTER, own=one_device).device_durations_s()
    assert np.array_equal(times[:2], base.device_durations_s()[:2])
    assert set(times[2].tolist()) == {0.0, 1.0}


def test_op_times__where_an_op_may_not_be__are_not_needed():
    slow_only = {"columns": ["op", "slow"], "rows": [[int(op), 3.0] for op in REAL]}
    with pytest.raises(InputError, match="is missing"):
        OwnCosts.of(GRAPH, CLUSTER, op_times_s=slow_only)
    own = OwnCosts.of(GRAPH, CLUSTER, op_times_s=slow_only, allowed_devices={"": "cpu"})
    assert set(own.op_times_s.ravel().tolist()) == {0.0, 3.0}


def test_tensors_and_static__every_form_says_the_same(tmp_path):
    values = np.arange(N) + 1
    table = {"columns": ["op", "bytes"], "rows": [[op, int(v)] for op, v in enumerate(values)]}
    path = write(tmp_path / "bytes.csv", [["bytes", "op"], *([v, GRAPH.label(op)] for op, v in enumerate(values))])
    for form in (values, values.tolist(), dict(enumerate(values.tolist())), table, path):
        own = OwnCosts.of(GRAPH, CLUSTER, tensor_bytes=form, static_bytes=form)
        assert np.array_equal(own.op_bytes, values)
        assert np.array_equal(own.static_bytes, values)
        assert own.edge_bytes is None
        again = OwnCosts.of(GRAPH, CLUSTER, **json.loads(json.dumps(own.given)))
        assert np.array_equal(again.op_bytes, values)
    seconds = np.random.default_rng(0).random(len(EDGES))
    rows = [[*edge, float(s)] for edge, s in zip(EDGES, seconds, strict=True)]
    path = write(tmp_path / "edges.csv", [["src", "dst", "seconds"], *rows])
    pairs = {edge: float(s) for edge, s in zip(EDGES, seconds, strict=True)}
    for form in (rows, np.array(rows), pairs, {"columns": ["src", "dst", "seconds"], "rows": rows}, path):
        own = OwnCosts.of(GRAPH, CLUSTER, transfer_s=form)
        assert np.array_equal(own.edge_transfer_s, seconds)
        again = OwnCosts.of(GRAPH, CLUSTER, **json.loads(json.dumps(own.given)))
        assert np.array_equal(again.edge_transfer_s, seconds)


def test_allowed_devices__every_form_says_the_same(tmp_path):
    mask = np.ones((N, 3), bool)
    mask[0] = [False, False, True]
    mask[OP] = [True, True, False]
    rows = [[0, "slow"], [OP, 0], [GRAPH.label(OP), 1]]
    path = write(tmp_path / "allowed.csv", [["op", "device"], *rows])
    forms = (mask, mask.astype(int), {0: "cpu", OP: ["fast"]}, {"0": [2], GRAPH.label(OP): [0, "1"]}, path)
    for form in forms:
        own = OwnCosts.of(GRAPH, CLUSTER, allowed_devices=form)
        assert np.array_equal(own.allowed, mask)
        again = OwnCosts.of(GRAPH, CLUSTER, **json.loads(json.dumps(own.given)))
        assert np.array_equal(again.allowed, mask)


def test_allowed_devices__of_modules__the_innermost_counts():
    graph = gg.load_graph("transformer_xl_2layer")
    paths = sorted({path for path in graph.modules if path.count(".") == 1})
    outer, inner = paths[0].partition(".")[0], paths[0]
    op = int(np.flatnonzero(graph.module == graph.modules.index(inner))[0])
    cluster = gg.load_cluster("v100x4")
    own = OwnCosts.of(graph, cluster, allowed_devices={op: 3, inner: [1, 2], outer: 0})
    is_in = {path: [one == path or one.startswith(f"{path}.") for one in graph.modules] for path in (outer, inner)}
    inside = np.array(is_in[inner])[graph.module]
    around = np.array(is_in[outer])[graph.module] & ~inside
    assert (own.allowed[around] == [True, False, False, False]).all()
    assert own.allowed[op].tolist() == [False, False, False, True]
    inside[op] = False
    assert (own.allowed[inside] == [False, True, True, False]).all()
    assert own.allowed[~(inside | around)].sum() == 4 * (~(inside | around)).sum() - 3


def test_given__a_large_file_is_named_with_its_fingerprint__a_small_one_is_kept(tmp_path):
    small = write(tmp_path / "small.csv", [["op", "bytes"], [0, 5]])
    assert OwnCosts.of(GRAPH, CLUSTER, static_bytes=small).given["static_bytes"] == {
        "columns": ["op", "bytes"],
        "rows": [[0, 5]],
    }
    large = tmp_path / "large.csv"
    large.write_text("op,bytes\n0,5\n" + "\n" * INLINE_BYTES)
    given = OwnCosts.of(GRAPH, CLUSTER, static_bytes=large).given
    assert set(given["static_bytes"]) == {"file", "sha256"}
    assert OwnCosts.of(GRAPH, CLUSTER, **given).static_bytes[0] == 5
    large.write_text("op,bytes\n0,6\n" + "\n" * INLINE_BYTES)
    with pytest.raises(InputError, match=r"large\.csv' has changed since it was solved with: sha256 was .*solve again"):
        OwnCosts.of(GRAPH, CLUSTER, **given)


# ---- what is refused

TIMES = np.ones(N)
WIDE = {"columns": ["op", "fast", "slow"], "rows": [[op, 1.0, 1.0] for op in range(N)]}
LABEL = GRAPH.label(OP).replace("[", r"\[")


def changed(row, cell, value):
    rows = [list(one) for one in WIDE["rows"]]
    rows[row][cell] = value
    return {**WIDE, "rows": rows}


REFUSED = [
    ("op_times_s", np.where(np.arange(N) == OP, math.nan, 1.0), f"the time of {LABEL} is nan s; give finite"),
    ("op_times_s", np.where(np.arange(N) == OP, -1.0, 1.0), f"the time of {LABEL} is -1.0 s; give finite"),
    ("op_times_s", np.where(np.arange(N) == OP, math.inf, 1.0), f"the time of {LABEL} is inf s; give finite"),
    ("op_times_s", np.ones(N + 1), r"op_times_s has shape \(\d+,\), expected \(\d+,\) or"),
    ("op_times_s", np.ones((N, 4)), "op_times_s has shape"),
    ("op_times_s", np.full(N, "a"), "op_times_s has type"),
    ("op_times_s", 3.0, r"op_times_s has shape \(\)"),
    ("op_times_s", "times.txt", "op_times_s must be an array, a mapping, or a .csv or .json file; got 'times.txt'"),
    ("op_times_s", "none.csv", "op_times_s file 'none.csv' cannot be read"),
    ("op_times_s", {"fast": TIMES, "slwo": TIMES}, "unknown device 'slwo'; did you mean 'slow'"),
    ("op_times_s", {"fast": TIMES, 0: TIMES, "slow": TIMES}, r"device 0 \(fast\) is named twice, at last by 0"),
    ("op_times_s", {"fast": TIMES[1:], "slow": TIMES}, r"op_times_s\['fast'\] has shape"),
    ("op_times_s", {N: 1.0}, rf"op is {N}; the graph has ops 0 to {N - 1}"),
    ("op_times_s", {"gemm": 1.0}, "op is 'gemm'; give its index, 0 to"),
    ("op_times_s", {GRAPH.label(OP) + "x": 1.0}, "but op .* of the graph is"),
    ("op_times_s", {OP: -2.0}, "is -2.0; give a number, at least 0"),
    ("op_times_s", {OP: math.nan}, "is nan; give a finite number"),
    ("op_times_s", {OP: "fast"}, "is 'fast'; give a number"),
    ("op_times_s", changed(OP, 1, -1.0), rf"rows\[{OP}\]: fast is -1.0; give a number, at least 0"),
    ("op_times_s", changed(OP, 2, math.inf), rf"rows\[{OP}\]: slow is inf; give a finite number"),
    ("op_times_s", changed(OP, 2, None), f"the time of {LABEL} is missing"),
    ("op_times_s", changed(OP, 0, 1), r"the time of .*\[1\].* is stated twice; leave one out"),
    ("op_times_s", changed(OP, 0, "x"), "op is 'x'; give its index"),
    ("op_times_s", {**WIDE, "rows": [[0, 1.0]]}, r"rows\[0\] is \[0, 1.0\]; give 3 cells"),
    ("op_times_s", {**WIDE, "columns": ["op", "fast", "fast"]}, "column 'fast' is there twice"),
    ("op_times_s", {**WIDE, "columns": ["op", "fast", "seconds"]}, "unknown column 'fast'; "),
    ("op_times_s", {**WIDE, "columns": ["index", "fast", "slow"]}, "column 'op' is missing"),
    ("op_times_s", {**WIDE, "columns": ["op", "label", "slow"]}, "label is 1.0, but op 0 .*another graph"),
    ("op_times_s", {"columns": ["op"], "rows": []}, "give op and seconds, or op and one a device"),
    ("op_times_s", {"columns": "op", "rows": []}, "a table is"),
    ("tensor_bytes", np.ones(N + 1), "tensor_bytes has shape .*one an op, or rows of"),
    ("tensor_bytes", {0: -1}, r"tensor_bytes\[0\]: bytes is -1, less than 0; give more"),
    ("tensor_bytes", {0: 2.0**63}, "2\\*\\*63 bytes or more; give less"),
    ("tensor_bytes", np.full(N, 2**61), "tensor_bytes adds up to 2\\*\\*62 bytes or more"),
    ("tensor_bytes", {0: True}, "bytes is True; give a number"),
    ("tensor_bytes", [(OP, OP, 1)], "there is no edge from .* to .*; leave it out"),
    ("tensor_bytes", [(*EDGES[0], 1), (*EDGES[0], 2)], "is stated twice; leave one out"),
    ("tensor_bytes", {0: 1, EDGES[0]: 1}, "its keys are .*give ops or edges"),
    ("tensor_bytes", "none", "tensor_bytes must be an array, a mapping"),
    ("transfer_s", {EDGES[0]: math.nan}, "seconds is nan; give a finite number"),
    ("transfer_s", {EDGES[0]: -1}, "seconds is -1; give a number, at least 0"),
    ("transfer_s", {"columns": ["src", "seconds"], "rows": []}, "column 'dst' is missing"),
    ("transfer_s", {"columns": ["op", "bytes"], "rows": []}, "unknown column 'bytes'"),
    ("transfer_s", [[1, 2], [1]], "transfer_s is no array"),
    ("static_bytes", {0: math.inf}, "bytes is inf; give a finite number"),
    ("static_bytes", [(*EDGES[0], 1)], "static_bytes has shape"),
    ("static_bytes", {EDGES[0]: 1}, "its keys are .*give ops"),
    ("static_bytes", {"0": 1, 0: 2}, "0 is stated twice; leave one out"),
    ("allowed_devices", np.ones((N, 2), bool), "allowed_devices has shape .*expected true or false"),
    ("allowed_devices", np.full((N, 3), 2), "allowed_devices has shape .*expected true or false"),
    ("allowed_devices", {OP: []}, f"{LABEL} is allowed on no device; name at least one"),
    ("allowed_devices", np.zeros((N, 3), bool), "is allowed on no device"),
    ("allowed_devices", {OP: "tpu"}, "unknown device 'tpu'"),
    ("allowed_devices", {OP: 3}, "device is 3; the cluster has devices 0 to 2"),
    ("allowed_devices", {OP: True}, "device is True; the cluster has devices"),
    ("allowed_devices", {"no.such": 0}, "unknown op or module 'no.such'"),
    ("allowed_devices", {"columns": ["op", "device"], "rows": [[0, 0], [0, "fast"]]}, "is stated twice"),
    ("allowed_devices", {0: 0, "0": 1}, "it is stated twice; leave one out"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "message"), REFUSED)
def test_own_costs__wrong__one_line_names_field_value_and_fix(name, given, message):
    with pytest.raises(InputError, match=message) as caught:
        gg.make_problem("Placement-v0", graph=GRAPH, cluster=CLUSTER, **{name: given})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"times\.csv' is empty"),
        ("op,seconds\n0,1,2\n", r"times\.csv': line 2 has 3 cells; give 2: op, seconds"),
        ("op,seconds\n0,1\n\n0,2\n", r"times\.csv': line 4: the time of .* is stated twice"),
        ("op,seconds\n0,fast\n", r"times\.csv': line 2: seconds is 'fast'; give a number"),
        ("op,seconds\n0,nan\n", r"times\.csv': line 2: seconds is nan; give a finite number"),
        ("op,seconds\n0,\n", r"times\.csv': line 2: seconds is None; give a number"),
        ("op,seconds\n99,1\n", r"times\.csv': line 2: op is 99; the graph has ops"),
        ('op,seconds\n"0,1\n', r"times\.csv': not CSV"),
        ("op,second\n0,1\n", "unknown device 'second'"),
        ("\ufeffop,seconds\n0,1\n", "is missing; give finite seconds"),
    ],
)
def test_own_costs__wrong_file__the_line_is_named(tmp_path, text, message):
    path = tmp_path / "times.csv"
    path.write_text(text, encoding="utf-8")
    graph = layered_dag(12, 3, seed=1)
    if text.startswith("op,seconds\n0"):
        graph = fan_out()
    with pytest.raises(InputError, match=message) as caught:
        OwnCosts.of(graph, CLUSTER, op_times_s=path)
    assert "\n" not in str(caught.value)


def test_missing_op_times__alone_or_misspelt__is_refused():
    with pytest.raises(InputError, match="unknown missing_op_times 'costmodel'; did you mean 'cost_model'"):
        OwnCosts.of(GRAPH, CLUSTER, op_times_s=TIMES, missing_op_times="costmodel")
    with pytest.raises(InputError, match="but there is no op_times_s; leave it out"):
        OwnCosts.of(GRAPH, CLUSTER, missing_op_times="cost_model")
    assert OwnCosts.of(GRAPH, CLUSTER) is None
