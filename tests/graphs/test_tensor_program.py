"""The tensor IR: shapes, structure, text, execution, edits, conversion."""

import random

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import (
    OPS,
    ProgramBuilder,
    execute,
    parse_program,
    program_text,
    random_values,
    to_computation_graph,
)
from graphopt_gym.graphs.tensor_program.execute import RandomValues, compile_torch
from tests.graphs.tensor_programs import EVERY_OP, TEXTS


def test_every_op__is_in_the_test_program():
    used = {node.op for text in (EVERY_OP, TEXTS["opaque"]) for node in parse_program(text).nodes.values()}
    assert used == set(OPS)


@pytest.mark.parametrize("text", [EVERY_OP, *TEXTS.values()], ids=["every op", *TEXTS])
def test_text__round_trips(text):
    program = parse_program(text)
    again = parse_program(program_text(program))
    assert again == program
    assert program_text(again) == program_text(program)
    assert [again.shape(node) for node in again.order] == [program.shape(node) for node in program.order]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", r"line 1, column 5: '\(' was never closed"),
        ("x = inputs(name='x', shape=(1,))", "line 1, column 5: unknown operator 'inputs'; did you mean 'input'"),
        ("x = input(name='x', shape=(1, 2))\ny = relu(z)", "line 2, column 10: unknown name 'z'; known: x"),
        ("x = input(name='x', size=1)", "line 1, column 21: unknown parameter 'size'"),
        ("x = input(name='x', shape=(1, 2))\nreturn transpose(x, perm=[x])", "perm must be a number"),
        ("x = input(name='x', shape=(1, 2))", "line 2, column 1: it has no `return"),
        ("x = input(name='x', shape=(1,))\nx = relu(x)\nreturn x", "line 2, column 1: 'x' is defined a second time"),
        ("for x in y: pass", "line 1, column 1: expected `name = op"),
        ("return 3", "line 1, column 8: expected `op"),
        ("x = 1 + \0", "line 1"),
        ("return relu(" * 500, "line 1"),
    ],
)
def test_parse_program__names_line_and_column(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_program(text, "p.txt")
    assert str(caught.value).startswith("p.txt: line ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("op", "shapes", "params", "message"),
    [
        ("matmul", [(2, 3), (4, 5)], {}, r"inner sizes 3 and 4, which differ; operand shapes \(2, 3\) and \(4, 5\)"),
        ("matmul", [(3,), (3, 4)], {}, "at least two dimensions"),
        ("matmul", [(2, 3), (3, 4)], {"act": "gelu"}, "act is 'gelu'; expected one of none, relu, sigmoid, tanh"),
        ("add", [(2, 3), (2, 4)], {}, r"add\(\) does not broadcast; operand shapes \(2, 3\) and \(2, 4\)"),
        ("smul", [(2,), (1,)], {}, r"factor of shape \(\)"),
        ("conv2d", [(1, 4, 5, 5), (4, 3, 3, 3)], {}, "4 input channels, which do not divide into groups of 3"),
        ("conv2d", [(1, 4, 5, 5), (4, 4, 2, 2)], {}, "odd kernels only"),
        ("conv2d", [(1, 4, 2, 2), (4, 4, 3, 3)], {"padding": "valid"}, "larger than the input"),
        ("transpose", [(2, 3)], {"perm": (0, 0)}, "permutation of 0 to 1"),
        ("concat", [(2, 3), (3, 3)], {"axis": 1}, "equal except along axis 1"),
        ("concat", [(2, 3), (3, 3)], {"axis": 2}, "has axis 2, but the operand has 2 dimensions"),
        ("split0", [(2, 3)], {"axis": 1, "at": 3}, "not inside 0 to 3"),
        ("reshape", [(2, 3)], {"shape": (4, -1)}, "number of elements"),
        ("reshape", [(2, 3)], {"shape": (6,), "size": 1}, "unknown parameter 'size'"),
        ("enlarge", [(1, 1, 3, 3)], {"size": (4, 5)}, "even number"),
        ("merge", [(4, 2, 1, 1)], {"groups": 3, "count": 2}, "divide"),
        ("maxpool", [(2, 3)], {"kernel": (2, 2)}, "needs an input"),
        ("layernorm", [(2, 3), (2,), (3,)], {}, "last dimension"),
        ("layernorm", [(2, 3), (3,), (3,)], {"epsilon": "small"}, "epsilon is 'small'; expected a number"),
        ("layernorm", [(2, 3), (3,), (3,)], {"epsilon": -1.0}, "epsilon of 0 or more"),
        ("conv2d", [(1, 4, 5, 5), (4, 4, 3, 3)], {"padding": (0, 1, -1, 0)}, "none negative, as padding"),
        ("conv2d", [(1, 4, 5, 5), (4, 4, 3, 3)], {"padding": (0, 1)}, "padding is"),
        ("reducesum", [(2, 3)], {"axes": (2,)}, "has axis 2"),
        ("reducesum", [(2, 3)], {"axes": ()}, "an axis or more"),
        ("relu", [(2,), (2,)], {}, "takes 1 operands, got 2"),
        (
            "opaque",
            [(2,)],
            {"kind": "A", "name": "a", "shape": (2,), "op_class": "relu"},
            "op_class 'relu'; known: sou",
        ),
        ("opaque", [], {"kind": "A", "name": "a", "shape": (2,), "op_class": "view"}, "a view of 0 tensors"),
        ("opaque", [(2,)], {"kind": "A", "name": "a", "shape": (-1,)}, "sizes must be positive"),
        ("opaque", [(2,)], {"kind": "A", "name": "a", "shape": (1,), "flops": -1}, "negative flops"),
        ("getitem", [(2,)], {"index": -1, "shape": (1,)}, "counts results from 0"),
        ("transpose", [(2, 3)], {}, "parameter 'perm' is missing"),
        ("conv3d", [(2, 3)], {}, "unknown operator 'conv3d'; did you mean 'conv2d'"),
    ],
)
def test_op__refuses_shapes_that_do_not_fit(op, shapes, params, message):
    builder = ProgramBuilder()
    inputs = [builder.input(f"x{index}", shape) for index, shape in enumerate(shapes)]
    with pytest.raises(InputError, match=message):
        builder.op(op, *inputs, **params)


def test_finish__refuses_no_outputs_and_names_used_twice():
    builder = ProgramBuilder("p")
    x, y = builder.input("x", (1,)), builder.weight("x", (1,))
    with pytest.raises(InputError, match="has no outputs"):
        ProgramBuilder("p").finish()
    with pytest.raises(InputError, match="'x' names both"):
        builder.finish([builder.op("add", x, y)])


def test_shapes__are_those_that_execution_gives():
    program = parse_program(EVERY_OP)
    nodes = [node for node in program.order if program.nodes[node].op not in ("input", "weight")]
    every = program.edit().finish(nodes)
    for node, result in zip(nodes, execute(every, random_values(program)), strict=True):
        assert result.shape == program.shape(node), program.nodes[node].op


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_execute__torch_agrees_with_numpy_on_every_op(dtype, tolerance):
    pytest.importorskip("torch")
    program = parse_program(EVERY_OP)
    every = program.edit().finish(program.order)
    values = random_values(program)
    results = [execute(every, values, dtype=dtype, backend=backend) for backend in ("numpy", "torch")]
    for node, mine, other in zip(program.order, *results, strict=True):
        assert mine.dtype == other.dtype == dtype
        np.testing.assert_allclose(other, mine, rtol=0, atol=tolerance * 10, err_msg=program.nodes[node].op)


def test_compile_torch__runs_with_weights_folded():
    torch = pytest.importorskip("torch")
    program = parse_program(EVERY_OP)
    values = random_values(program)
    results = compile_torch(program, values, dtype="float64")([torch.tensor(values["x"])])
    for mine, other in zip(execute(program, values), results, strict=True):
        np.testing.assert_allclose(other.numpy(), mine, rtol=0, atol=1e-12)


def test_execute__names_a_missing_or_misshapen_value():
    program = parse_program(TEXTS["constant"])
    with pytest.raises(InputError, match=r"leaf 'x' has no value; pass an array of shape \(2, 3\)"):
        execute(program, {"w": np.ones((3, 2))})
    with pytest.raises(InputError, match=r"leaf 'w' has a value of shape \(2,\)"):
        execute(program, {"x": np.ones((2, 3)), "w": np.ones(2)})
    with pytest.raises(InputError, match="unknown dtype 'float16'"):
        execute(program, {}, dtype="float16")


def shuffled(program, seed):
    """The same program built in another order, with other ids."""
    chance = random.Random(seed)
    builder, ids, left = ProgramBuilder("other"), {}, list(program.nodes)
    for index in range(seed):
        builder.input(f"unused{index}", (1,))
    while left:
        ready = [node for node in left if all(source in ids for source in program.nodes[node].inputs)]
        node = chance.choice(ready)
        op, params, inputs, _ = program.nodes[node]
        ids[node] = builder.add(op, params, [ids[source] for source in inputs])
        left.remove(node)
    return builder.finish([ids[output] for output in program.outputs])


def test_fingerprint__is_equal_for_isomorphic_programs():
    program = parse_program(EVERY_OP)
    for seed in range(5):
        other = shuffled(program, seed)
        assert other == program
        assert hash(other) == hash(program)
        assert program_text(other).splitlines()[1:] == program_text(program).splitlines()[1:]
    assert program.fingerprint == "117b512d04751a0820ca112cf84746e8"  # stable between runs


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("split1(h, axis=2, at=3), relu", "split1(h, axis=2, at=4), relu"),
        ("mul(n, tanh(sigmoid(n)))", "mul(tanh(sigmoid(n)), n)"),
        ("act=sigmoid", "act=tanh"),
        ('"scale"', '"other"'),
        ("axis=-1), m", "axis=-1), c"),
    ],
)
def test_fingerprint__differs_by_operand_order_parameters_names_and_outputs(old, new):
    assert old in EVERY_OP
    changed = EVERY_OP.replace(old, new)
    assert parse_program(changed) != parse_program(EVERY_OP)


def test_builder__common_subexpressions_are_one_node():
    builder = ProgramBuilder()
    x = builder.input("x", (2, 3))
    assert builder.op("softmax", x, axis=-1) == builder.op("softmax", x, axis=1) == builder.op("softmax", x)
    assert builder.op("add", x, builder.input("x", (2, 3))) == builder.op("add", x, x)


def test_edit__shares_ids_and_leaves_the_program_alone():
    program = parse_program(EVERY_OP)
    text, print_ = program_text(program), program.fingerprint
    edit = program.edit()
    gelu = next(node for node in program.nodes if program.nodes[node].op == "gelu")
    new = edit.op("relu", program.nodes[gelu].inputs[0])
    edit.replace({gelu: new})
    after, change = edit.finish_change()
    assert (change.added, change.removed, len(change.rewired)) == ({new}, {gelu}, 1)
    assert program_text(program) == text
    assert after.fingerprint == parse_program(EVERY_OP.replace("gelu", "relu")).fingerprint != print_
    with pytest.raises(InputError, match="cannot replace"):
        program.edit().replace({gelu: program.order[0]})


def test_to_computation_graph__folds_weights_and_counts():
    text = """
x = input(name="x", shape=(8, 64))
w = weight(name="w", shape=(64, 32))
v = weight(name="v", shape=(64, 32))
m = matmul(x, concat(w, v, axis=1), act=relu)
return split0(m, axis=1, at=32), split1(m, axis=1, at=32)
"""
    program = parse_program(text)
    graph = to_computation_graph(program)
    kinds = [graph.kinds[kind] for kind in graph.kind]
    assert kinds == ["input", "parameter", "matmul", "split0", "split1"]
    assert graph.flops.sum() == 2 * 8 * 64 * 64
    assert graph.bytes_read[2] == 4 * (8 * 64 + 64 * 64)
    assert graph.param_bytes.sum() == 4 * 64 * 64
    named = [program.nodes[program.order[position]].op for position in graph.metadata["program_nodes"]]
    assert named == ["input", "concat", "matmul", "split0", "split1"]
    assert program.statistics()["computed"] == 3


def test_random_values__are_made_when_asked_for_and_the_same_every_time():
    program = parse_program(
        'x = input(name="x", shape=(2, 3))\nw = weight(name="w", shape=(3, 3))\nreturn matmul(matmul(x, w), w), x'
    )
    asked = []

    class Watched(RandomValues):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    kept = random_values(program)
    for backend in ("numpy", "torch"):
        asked.clear()
        results = execute(program, Watched(program), backend=backend)
        assert sorted(asked) == ["w", "x"]  # each once
        for result, expected in zip(results, execute(program, kept), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_opaque__depends_on_every_element_of_every_operand_and_on_its_name():
    rng = np.random.default_rng(0)
    for shape in ((3, 4), (2,), (7, 9)):
        operands = [rng.standard_normal((4, 5)), rng.standard_normal(3)]

        def run(values, name="n", shape=shape):
            builder = ProgramBuilder()
            inputs = [builder.input(f"x{place}", value.shape) for place, value in enumerate(values)]
            program = builder.finish([builder.op("opaque", *inputs, kind="A", name=name, shape=shape)])
            return execute(program, {f"x{place}": value for place, value in enumerate(values)})[0]

        before = run(operands)
        assert before.shape == shape
        for place, operand in enumerate(operands):
            for index in np.ndindex(operand.shape):
                changed = [value.copy() for value in operands]
                changed[place][index] += 1e-3
                assert 1e-5 < np.abs(run(changed) - before).max() < 1e-1
        assert np.abs(run(operands, "m") - before).max() > 0.1


def test_opaque__costs_what_it_says():
    program = parse_program(TEXTS["opaque"])
    graph = to_computation_graph(program)
    kinds = [graph.kinds[kind] for kind in graph.kind]
    assert kinds == ["input", "relu", "LSTM", "getitem", "add", "Cast", "parameter"]
    assert graph.flops.tolist() == [0, 6, 9, 0, 5, 0, 0]
    assert graph.bytes_read.tolist() == [0, 24, 4, 0, 20, 0, 0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_dtype__is_what_tensors_are_priced_as(dtype):
    text = f"""
i = input(name="i", shape=(64,), dtype="int64")
x = input(name="x", shape=(4, 8), dtype="{dtype}")
return relu(matmul(x, weight(name="w", shape=(8, 8), dtype="{dtype}"))), i
"""
    program = parse_program(text)
    assert program.dtype == dtype
    assert parse_program(program_text(program)) == program
    graph = to_computation_graph(program)
    item = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}[dtype]
    assert graph.bytes_written.sum() == 2 * item * 4 * 8
    other = parse_program(text.replace(f'"{dtype}"', '"float32"'))
    assert (other == program) == (dtype == "float32")


def test_dtype__unknown_ones_are_refused():
    with pytest.raises(InputError, match="is of dtype 'float31'; known: float32"):
        parse_program('return input(name="x", shape=(1,), dtype="float31")')
