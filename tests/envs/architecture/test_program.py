from __future__ import annotations

import numpy as np
import pytest

from graphopt_gym.envs.architecture.ops import OPS, PRIMITIVES
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder, Op, parse_architecture
from graphopt_gym.envs.architecture.seeds import SEEDS, load_seed
from graphopt_gym.errors import InputError
from tests.envs.architecture.cases import CASES, one_op, random_architecture

torch = pytest.importorskip("torch")

X = 'x = input(name="x", shape=(3, 8, 8))\n'

# published: torchvision's model cards (parameters, GFLOPs, which are multiply-adds); DeiT-S: Touvron et al., table 1,
# and timm; ResNet-34 for CIFAR-10: 21.3 M parameters in alpha-NAS
PUBLISHED = {
    "resnet34": (21_797_672, 3.66),
    "resnet50": (25_557_032, 4.09),
    "vit_s16": (22_050_664, 4.6),
    "efficientnet_b0": (5_288_548, 0.39),
    "resnet34_cifar": (21_282_122, 1.16),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_seeds__have_the_published_parameters_and_work(name):
    parameters, giga = PUBLISHED[name]
    seed = load_seed(name)
    assert seed.parameters == parameters
    digits = 1 if giga == 4.6 else 2
    assert round(seed.multiply_adds / 1e9, digits) == giga
    module = seed.to_module(None, "meta")
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_seeds__work_agrees_with_what_torch_runs():
    for name in ("resnet_28", "vit_8", "efficientnet_8", "cnn_28"):
        seed = load_seed(name)
        graph = seed.to_graph(batch=4)
        products = np.isin(graph.op_class, [2, 3])  # matmul and conv: counted by capture's own formulas
        assert graph.flops[products].sum() == 4 * 2 * seed.multiply_adds
        assert abs(graph.flops.sum() / 4 / seed.flops - 1) < 0.1
        assert graph.param_bytes.sum() >= 4 * seed.parameters
        train = seed.to_graph(batch=4, train=True)
        assert {0, 1, 2} == set(train.phase.tolist())
        assert train.metadata["fingerprint"] == seed.fingerprint


@pytest.mark.parametrize("name", [name for name in SEEDS if name not in PUBLISHED])
def test_small_seeds__run_and_every_tensor_gets_a_gradient(name):
    seed = load_seed(name)
    module = seed.to_module(seed=1)
    image = torch.randn(3, *seed.input_shapes[0])
    output = module(image)
    assert tuple(output.shape) == (3, 10)
    output.log_softmax(-1)[:, 0].sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    again = seed.to_module(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "params", "shapes"), CASES)
def test_ops__the_stated_shape_and_tensors_are_those_of_torch(kind, params, shapes):
    one = one_op(kind, params, shapes)
    module = one.to_module().eval()
    values = [torch.randn(2, *shape) for shape in shapes]
    assert tuple(module(*values).shape) == (2, *one.ops[-1].shape)
    assert sum(p.numel() for p in module.parameters()) == one.parameters
    assert parse_architecture(one.text()) == one


def test_ops__a_batch_is_its_samples_one_by_one():
    for seed in range(6):
        architecture = random_architecture(seed)
        module = architecture.to_module().eval()
        batch = torch.randn(3, *architecture.input_shapes[0])
        alone = torch.cat([module(batch[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(module(batch), alone, rtol=1e-4, atol=1e-5)


def test_text__round_trips():
    for architecture in [*(random_architecture(seed) for seed in range(20)), load_seed("efficientnet_8")]:
        again = parse_architecture(architecture.text())
        assert again.text() == architecture.text()
        assert again.ops == architecture.ops  # blocks too
        assert again == architecture
        assert hash(again) == hash(architecture)


def _two(kind="add", order=(0, 1), **conv):
    b = ArchitectureBuilder()
    x = b.input("x", (4, 8, 8))
    sides = [b.op("conv", x, **{"features": 4, "kernel": 1, **conv}), b.op("relu", x)]
    return b.finish(b.op(kind, *[sides[i] for i in order], **({"axis": 0} if kind == "concat" else {})))


def test_fingerprint__respects_operand_order_and_every_parameter():
    assert _two() == _two()
    assert _two(order=(0, 1)) != _two(order=(1, 0))
    assert _two("concat", (0, 1)) != _two("concat", (1, 0))
    base = {"features": 8, "kernel": 3, "stride": 1, "padding": 2, "dilation": 1, "groups": 1, "bias": True}
    other = {"features": 4, "kernel": 1, "stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False}
    found = {one_op("conv", base, [(4, 8, 8)]).fingerprint}
    found |= {one_op("conv", {**base, key: value}, [(4, 8, 8)]).fingerprint for key, value in other.items()}
    assert len(found) == 1 + len(other)
    assert one_op("relu", {}, [(4,)]) != one_op("relu", {}, [(5,)])


def test_fingerprint__a_shared_layer_is_not_two_equal_ones():
    def twice(shared: bool) -> Architecture:
        b = ArchitectureBuilder()
        x = b.input("x", (4,))
        first = b.op("dense", x, features=4)
        second = first if shared else b.op("dense", x, features=4)
        return b.finish(b.op("add", b.op("relu", first), b.op("relu", second)))

    assert twice(True) != twice(False)
    assert twice(True).parameters == 20
    assert twice(False).parameters == 40


def test_fingerprint__does_not_depend_on_names_blocks_and_the_order_of_independent_ops():
    def built(swapped: bool) -> Architecture:
        b = ArchitectureBuilder("b" if swapped else "a")
        x = b.input("image" if swapped else "x", (4,))
        b.block = "one" if swapped else ""
        if swapped:
            right = b.op("gelu", x)
            left = b.op("relu", x)
        else:
            left = b.op("relu", x)
            right = b.op("gelu", x)
        return b.finish(b.op("add", left, right))

    assert built(True) == built(False)
    assert parse_architecture(built(True).text()) == built(False)


def test_architecture__cannot_be_built_wrong():
    x = Op("input", ("x", (4,)), (), (4,))
    relu = Op("relu", (), (0,), (4,))
    for ops, words in [
        ([], "no ops"),
        ([x, relu._replace(inputs=(1,))], "reads"),
        ([x, relu, relu], "nothing reads op 1"),
        ([x, relu, x, relu._replace(inputs=(2,))], "inputs first"),
        ([x, x, Op("add", (), (0, 1), (4,))], "share a name"),
    ]:
        with pytest.raises(InputError, match=words):
            Architecture("wrong", ops)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (X + "y = dance(x)\nreturn y", r"line 2: unknown operator 'dance'; did you"),
        (
            'x = input(name="x", shape=(3, 8, 8))\ny = conv(x, features=4)\nreturn y',
            "line 2: conv: .*'kernel' is missing",
        ),
        (X + "y = conv(x, features=4, kernel=9, padding=0)\nreturn y", "larger than"),
        (
            'x = input(name="x", shape=(3, 8, 8))\ny = conv(x, features=4, kernel=1, groups=2)\nreturn y',
            "do not divide",
        ),
        (X + "y = relu(z)\nreturn y", "line 2: unknown name 'z'"),
        (X + "y = dropout(x, rate=1.5)\nreturn y", "rate is 1.5; give a number"),
        (X + 'y = smul(x, factor=open("f"))\nreturn y', "parameters must be numbers"),
        (X + "x = relu(x)\nreturn x", "line 2: expected one new name"),
        (X + "y = dense(x, features=2**50)\nreturn y", "parameters must be"),
        (X + "y = dense(x, features=9999999999999)\nreturn y", "above 2\\*\\*40"),
        (X, "no `return"),
        ("import os", "line 1: expected"),
        ("x = (", "line 1"),
        ('x = input(name="x", shape=(3, 0, 8))\nreturn x', "sizes must be positive"),
    ],
)
def test_text__bad_input_names_the_line_and_the_fix(text, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_architecture(text)
    assert "\n" not in str(caught.value)


def test_seeds__bad_names_and_sizes_are_refused():
    with pytest.raises(InputError, match="did you mean 'resnet34_cifar'"):
        load_seed("resnet34_cifr")
    with pytest.raises(InputError, match="no such size"):
        load_seed("resnet34", widht=3)
    with pytest.raises(InputError, match="patch 16 must divide"):
        load_seed("vit_s16", image=(3, 30, 30))


def test_module__wrong_tensors_are_refused():
    module = load_seed("cnn_8").to_module()
    with pytest.raises(InputError, match=r"expected \(batch, 1, 8, 8\)"):
        module(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match="has 1 inputs, got 2"):
        module(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))


def test_grammar__has_the_operators_of_the_paper():
    assert set(PRIMITIVES) == {
        "dense", "conv", "smul", "relu", "gelu", "silu", "sigmoid", "softmax", "batch_norm", "layer_norm",
        "group_norm", "dropout", "avg_pool", "max_pool",
    }  # fmt: skip
    assert {"add", "reshape", "mean"} <= set(OPS)


def test_segments__linear_is_affine_as_measured():
    """But for norms over a sample and max pooling, which the paper's release counts as linear, and mul and matmul,
    which are linear in each operand."""
    generator = torch.Generator().manual_seed(0)
    for kind, params, shapes in CASES:
        module = one_op(kind, params, shapes).to_module().eval().double()
        values = [torch.randn(1, *shape, dtype=torch.float64, generator=generator) for shape in shapes]
        zero = [torch.zeros_like(value) for value in values]
        f = module(*values)
        affine = torch.allclose(
            module(*[3 * value for value in values]) - module(*zero), 3 * (f - module(*zero)), atol=1e-9
        ) and torch.allclose(module(*[-value for value in values]) - module(*zero), module(*zero) - f, atol=1e-9)
        exceptions = ("layer_norm", "group_norm", "max_pool", "mul", "matmul")
        if kind not in exceptions:
            assert affine == (OPS[kind].segment != "nonlinear"), kind
        else:
            assert OPS[kind].segment == "linear", kind
        if OPS[kind].segment == "neither":  # values pass as they are
            assert set(f.flatten().tolist()) <= {number for value in values for number in value.flatten().tolist()}


def test_onnx__gives_what_torch_gives(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from graphopt_gym.envs.architecture.onnx_export import export_onnx

    architectures = [load_seed("vit_8"), load_seed("efficientnet_8"), *(random_architecture(s) for s in range(3))]
    for case in CASES:
        architectures.append(one_op(*case))
    for number, architecture in enumerate(architectures):
        module = architecture.to_module(seed=number).eval()
        path = tmp_path / "network.onnx"
        export_onnx(architecture, path, module)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        values = [torch.randn(2, *shape) for shape in architecture.input_shapes]
        given = {f"input{i}": value.numpy() for i, value in enumerate(values)}
        (found,) = session.run(None, given)
        expected = module(*values).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=architecture.text())


def test_import__needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import graphopt_gym.envs.architecture.benchmarks\n"
        "from graphopt_gym.envs.architecture import infer, load_seed\n"
        "assert infer(load_seed('resnet34')).shape == (1000,)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("cluster", ["v100x2", "t4x4"])
def test_graph__is_priced_by_the_cost_model(cluster):
    import graphopt_gym as gg
    from graphopt_gym.hardware.cost_model import load_cost_model

    device, model = gg.load_cluster(cluster).devices[0], load_cost_model()
    seconds = {}
    for name in ("resnet_28", "cnn_28"):
        for train in (False, True):
            times = model.op_times(load_seed(name).to_graph(batch=32, train=train), device)
            assert np.isfinite(times).all()
            seconds[name, train] = times.sum()
    assert seconds["resnet_28", False] > seconds["cnn_28", False] > 0
    assert seconds["resnet_28", True] > 2 * seconds["resnet_28", False]
