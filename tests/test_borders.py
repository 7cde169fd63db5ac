"""Whatever comes from outside gives a result or an InputError of one printable line; never another exception."""

from __future__ import annotations

import contextlib
import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt_gym as gg
from graphopt_gym.envs.rewrite.programs import measure_report
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.io import read_graph
from graphopt_gym.graphs.onnx_import import import_onnx
from graphopt_gym.graphs.tensor_program import program_text
from graphopt_gym.graphs.tensor_program.onnx_io import output_names, read_onnx
from graphopt_gym.graphs.zoo.programs import load_program, program_names
from graphopt_gym.hardware.cluster import parse_cluster
from graphopt_gym.hardware.cost_model import read_fitted
from graphopt_gym.hardware.package import load_package, parse_package
from graphopt_gym.report.files import report_on
from graphopt_gym.solutions import load_solution, load_solutions, validate

READERS = {
    "graph": gg.load_graph,
    "graph file": read_graph,
    "program": load_program,
    "cluster": gg.load_cluster,
    "package": load_package,
    "solution": load_solution,
    "report": report_on,
    "measure": lambda path: measure_report(load_solutions([path])),
    "fitted costs": read_fitted,
    "onnx graph": import_onnx,
    "onnx program": read_onnx,
    "onnx outputs": output_names,
}
ENDINGS = ("", ".npz", ".onnx", ".toml", ".json", ".txt")


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert text.isprintable()
    assert 0 < len(text) < 1000
    return text


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("stem", ["a" * 5000, "a/" * 2500 + "b", "nul\0byte", "\0", "new\nline", "\ud800", "[/x]", "/"])
def test_readers__refuse_paths_that_lead_nowhere(reader, stem):
    for ending in ENDINGS:
        refusal(reader, stem + ending)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_readers__refuse_what_is_no_file(reader, tmp_path):
    for ending in ENDINGS:
        folder = tmp_path / f"folder{ending}"
        folder.mkdir()
        refusal(reader, folder)
        noise = tmp_path / f"noise{ending}"
        noise.write_bytes(bytes(range(256)) * 8)
        refusal(reader, noise)
        refusal(reader, noise / "below")
        noise.write_bytes(b"[" * 200_000)
        refusal(reader, noise)


# -- hardware files ----------------------------------------------------------------------------------------------------

NUMBERS = [
    1e308,
    -1e308,
    5e-324,
    1e-300,
    0,
    0.0,
    -1,
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    -(10**400),
    2**63,
]
OTHERS = [0.5, True, None, "", "x", "nan", "\0", [], {}, [1], [[1]], {"a": 1}, [None], ["v100x4"] * 5000, 4097, 10**6]
NASTY = st.sampled_from([*NUMBERS, *OTHERS])


def places(value, at=()):
    """Every place in nested tables and lists, but the top."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*at, key))


@st.composite
def damaged(draw, value, nasty=NASTY):
    """The value with one to three of its parts replaced by what does not belong there, or left out."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(places(value)) or [(None,)]))
        if last is None:
            return value
        part = value
        for key in way:
            part = part[key]
        if isinstance(part, dict) and draw(st.integers(0, 6)) == 0:
            del part[last]
        else:
            part[last] = copy.deepcopy(draw(nasty))
    return value


CLUSTER = {
    "name": "mine",
    "about": "a cluster",
    "hosts": [
        {"device": "npu", "count": 2, "interconnect": "wire"},
        {"devices": ["npu", "v100_pcie_16gb"], "interconnect": "pcie3_x16"},
    ],
    "network": {"link": "ethernet_25g"},
    "devices": {
        "npu": {
            "kind": "gpu",
            "memory_gib": 16,
            "memory_gb_per_s": 500,
            "peak_tflops": {"float32": 20, "float16": 40},
            "architecture": "volta",
            "compute_units": 80,
            "cache_mib": 4,
            "sources": {"memory_gib": "datasheet"},
        }
    },
    "links": {"wire": {"latency_us": 5, "gb_per_s": 10, "efficiency": 0.9, "shared_by": "pair"}},
}
KINDS = {"small": {"tflops": 4, "memory_gb_per_s": 400, "sram_mib": 32}}
RING = {"topology": "ring", "chips": 4, "chip": "small", "link": {"gb_per_s": 10}, "kinds": KINDS}
MESH = {"topology": "mesh", "rows": 2, "columns": 2, "chip": ["small"] * 4, "link": {"gb_per_s": 10}, "kinds": KINDS}
SMALL_GRAPH = layered_dag(30, 3, seed=1, phases=True)


@pytest.mark.filterwarnings("error")
@settings(max_examples=300, deadline=None)
@given(st.one_of(*(st.tuples(st.just(base), damaged(base)) for base in (CLUSTER, RING, MESH))))
def test_hardware_files__whatever_they_say_give_finite_costs_or_one_line(case):
    base, table = case
    parse, env_id = (parse_cluster, "Placement-v0") if base is CLUSTER else (parse_package, "ChipletPartition-v0")
    try:
        hardware = parse(table, "name", "file.toml")
    except InputError:
        return
    if getattr(hardware, "num_devices", 1) > 16:
        return
    problem = gg.make_problem(env_id, graph=SMALL_GRAPH, cluster=hardware)
    decision = problem.sample(np.random.default_rng(0))
    costs, _ = problem.costs(np.stack([decision]))
    assert np.isfinite(costs).all()
    assert (costs >= 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory_gib = 1e308", "memory_gib is 1e[+]308, 2[*][*]63 bytes or more"),
        ("memory_gib = -1e308", "memory_gib is -1e[+]308, less than a byte; give more"),
        ("memory_gib = nan", "memory_gib is nan; give a finite number"),
        ("memory_gib = 1" + "0" * 400, "memory_gib is a number of 1329 bits; give a finite number"),
        ("memory_gib = 1" + "0" * 5000, "not TOML: Exceeds the limit"),
        ("memory_gib = 0x" + "f" * 5000, "memory_gib is a number of 20000 bits; give a finite number"),
        ("memory_gib = " + "[" * 5000, "not TOML: maximum recursion"),
        ("cache_mib = 1e308", "cache_mib is 1e[+]308, 2[*][*]63 bytes or more"),
        ("memory_gb_per_s = 1e300", "memory_bytes_per_s is inf; give a finite number"),
        ("compute_units = 0x" + "f" * 5000, "compute_units is a number of 20000 bits"),
        ("kind = 0x" + "f" * 5000, "unknown kind .a number of 20000 bits"),
    ],
)
def test_load_cluster__numbers_that_no_device_has__are_refused_in_one_line(tmp_path, text, message):
    name = text.split()[0]
    lines = {
        "kind": 'kind = "gpu"',
        "memory_gib": "memory_gib = 16",
        "memory_gb_per_s": "memory_gb_per_s = 500",
        "peak_tflops": "peak_tflops = {float32 = 20}",
    }
    path = tmp_path / "mine.toml"
    path.write_text('hosts = [{device = "npu"}]\n[devices.npu]\n' + "\n".join({**lines, name: text}.values()))
    with pytest.raises(InputError, match=message):
        gg.load_cluster(path)
    refusal(gg.load_cluster, path)


# -- solutions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solutions(tmp_path_factory):
    """Solution files as JSON: of each form of decision, with a trace, and with what a method says of its run."""
    folder = tmp_path_factory.mktemp("solutions")
    gg.save_graph(SMALL_GRAPH, folder / "graph.npz")
    solved = []
    for env_id, graph, cluster, method in (
        ("Placement-v0", folder / "graph.npz", "toyx2", "random"),
        ("ChipletPartition-v0", folder / "graph.npz", "mcm4", "random"),
        ("RewriteOrder-v0", program_names("small")[0], "t4", "greedy"),
        ("RewriteOrder-v0", program_names("small")[0], "t4", "saturation"),
    ):
        problem = gg.make_problem(env_id, graph=str(graph), cluster=cluster)
        path = gg.solve(problem, method, budget=20).save(folder / "solution.json")
        solved.append(json.loads(path.read_text()))
    return folder, solved


FORMS = [[[[[[[]]]]]] * 3, [["a", 1, 2]], "Placement-v0", "[/x]", "\ud800", 2**31, "random"]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_validate__whatever_a_file_holds__gives_an_answer_or_one_line(solutions, data):
    folder, solved = solutions
    facts = data.draw(damaged(data.draw(st.sampled_from(solved)), NASTY | st.sampled_from(FORMS)))
    path = folder / "damaged.json"
    path.write_text(json.dumps(facts))
    try:
        result = validate(path)
    except InputError:
        return
    json.dumps(result.row(), allow_nan=False)
    assert not result.ok or result.cost == pytest.approx(facts["cost"], rel=1e-9)


@pytest.mark.parametrize("form", range(4))
def test_report__leaves_out_of_its_page_what_a_file_holds_in_vain(solutions, form, tmp_path):
    """Parts that no cost depends on: the page is made without them."""
    facts = solutions[1][form]
    for parts in (
        {"details": {"growth_nodes": "x"}, "trace": [["x"]]},
        {"details": {"growth_nodes": [[1]]}, "trace": [["no-rule", [1], 1e308]], "options": {"": [None]}},
        {"details": {"growth_nodes": [1], "nodes": "x", "classes": {}, "rules_that_entered_the_e_graph": {"x": "y"}}},
        {"history": [[1, 0.1, 1e308], [-1, -1, -1]], "reasons": ["[/x] $\\frac$"], "stopped_by": "<b>"},
    ):
        path = tmp_path / "a.json"
        path.write_text(json.dumps({**facts, **parts}))
        assert all(file.stat().st_size for file in report_on(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cost", "1" + "0" * 400),
        ("cost", "NaN"),
        ("cost", "1e999"),
        ("wall_s", "1" + "0" * 5000),
        ("wall_s", "NaN"),
        ("wall_s", "-1"),
        ("decision", "[1" + "0" * 400 + "]"),
        ("decision", "[" * 100_000),
        ("history", "[[1, 2, 1" + "0" * 400 + "]]"),
        ("fingerprints", '{"graph": 3}'),
        ("reasons", "[3]"),
        ("problem", '{"graph": 3}'),
        ("problem", '{"cluster": {}}'),
        ("env", '"Placement-v9"'),
    ],
)
def test_validate__values_that_no_solution_has__are_refused_in_one_line(solutions, tmp_path, field, value):
    for facts in solutions[1]:
        path = tmp_path / "bad.json"
        path.write_text(json.dumps({**facts, "valid": True, field: "HERE"}).replace('"HERE"', value))
        assert "bad.json" in refusal(validate, path)


# -- ONNX files --------------------------------------------------------------------------------------------------------


def onnx_model():
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["f"]),
        helper.make_node("Softmax", ["f"], ["y"], axis=-1),
    ]
    weights = {"w": np.ones((4, 3, 3, 3), np.float32), "b": np.ones(4, np.float32), "shape": np.array([2, -1])}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", floats, [2, 3, 8, 8])],
        [helper.make_tensor_value_info("y", floats, [2, 256])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


ONNX_DAMAGE = {
    "an unknown type of a weight": lambda g: setattr(g.initializer[0], "data_type", 999),
    "an unknown type of an input": lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 999),
    "a weight of too few values": lambda g: setattr(g.initializer[0], "raw_data", b"1234"),
    "a weight in segments": lambda g: g.initializer[1].segment.SetInParent(),
    "a negative size of a weight": lambda g: g.initializer[0].dims.__setitem__(0, -4),
    "a size past 64 bits": lambda g: g.input[0].type.tensor_type.shape.dim.add(dim_value=2**62),
    "a negative size of an input": lambda g: setattr(g.input[0].type.tensor_type.shape.dim[0], "dim_value", -(2**63)),
    "an attribute that refers to none": lambda g: setattr(g.node[3].attribute[0], "ref_attr_name", "axis"),
    "an attribute of another type": lambda g: setattr(g.node[3].attribute[0], "type", 3),
    "an axis that is none": lambda g: setattr(g.node[3].attribute[0], "i", 2**62),
    "no inputs": lambda g: g.node[0].ClearField("input"),
    "a tensor that nothing makes": lambda g: g.node[1].input.__setitem__(0, "nowhere"),
    "an operator that is none": lambda g: setattr(g.node[1], "op_type", "[/x]"),
    "an output that nothing makes": lambda g: setattr(g.output[0], "name", "nowhere"),
    "a node that reads its own output": lambda g: g.node[1].input.__setitem__(0, "r"),
}
# what a graph's costs do not depend on
UNREAD = (ONNX_DAMAGE["a weight in segments"], ONNX_DAMAGE["an axis that is none"])
RUNS = (*UNREAD, ONNX_DAMAGE["an attribute that refers to none"])  # onnxruntime does not mind


@pytest.mark.parametrize("damage", ONNX_DAMAGE.values(), ids=ONNX_DAMAGE)
@pytest.mark.parametrize("read", [import_onnx, read_onnx])
def test_onnx__damaged_parts_are_refused_in_one_line(read, damage, tmp_path):
    model = onnx_model()
    damage(model.graph)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    if read is import_onnx and damage in UNREAD:
        assert read(path).num_ops > 0
    elif read is read_onnx and damage in RUNS:
        pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
        assert "opaque" in program_text(read(path)[0])
    else:
        assert "net.onnx" in refusal(read, path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_onnx__whatever_bytes_are_changed_gives_a_graph_or_one_line(tmp_path_factory, data):
    content = bytearray(onnx_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / "flipped.onnx"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert import_onnx(path).num_ops > 0
    with contextlib.suppress(InputError):
        assert read_onnx(path)[0].order
