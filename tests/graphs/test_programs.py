"""The zoo's tensor programs: they compute what torch computes, have the published sizes, and their best is the best."""

from __future__ import annotations

import math
import runpy

import numpy as np
import pytest

from graphopt_gym.data import data_path
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import execute, program_text, random_values, to_computation_graph
from graphopt_gym.graphs.zoo.programs import (
    PROGRAMS,
    WORKLOADS,
    build_program,
    known_best,
    load_program,
    program_names,
)
from graphopt_gym.graphs.zoo.registry import INFERENCE, MEASURED, ZOO
from graphopt_gym.search.solve import solve

torch = pytest.importorskip("torch")
NETWORKS = program_names("network")
# torchvision's documentation of its weights: parameters, and work in 10^9 multiply-adds
PUBLISHED = {
    "resnext50": (25_028_904, 4.23),
    "inception_v3": (27_161_264, 5.71),
    "squeezenet": (1_235_496, 0.35),
    "vgg19": (143_667_240, 19.63),
}


def parameters(program):
    return sum(math.prod(shape) for shape in program.leaves("weight").values())


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_work__are_the_published_ones(name):
    published, multiply_adds = PUBLISHED[name]
    with_biases = build_program(name, biases=True)
    if name in ("resnext50", "inception_v3"):  # a batch norm has a scale beside what a folded one leaves, its bias
        biases = with_biases.leaves("weight").items()
        published -= sum(math.prod(shape) for leaf, shape in biases if leaf.endswith(".bias") and len(shape) == 4)
    if name == "inception_v3":
        from graphopt_gym.graphs.zoo.inception import Auxiliary

        with torch.device("meta"):
            published -= sum(weight.numel() for weight in Auxiliary(768, 1000, 16).parameters())  # of training alone
    assert parameters(with_biases) == published
    work = to_computation_graph(load_program(name)).statistics()["flops"] / 2e9
    assert work == pytest.approx(multiply_adds, rel=0.015)


def test_bert__has_the_layers_of_bert_large():
    one, two = (parameters(build_program("bert", layers=layers, biases=True)) for layers in (1, 2))
    assert two - one == 12_596_224  # 24 of them: 302 of BERT-large's 335 million parameters


def test_nasrnn__has_sixteen_matrices_a_cell():
    assert parameters(load_program("nasrnn")) == 16 * 512**2
    assert parameters(load_program("nasrnn_tensat")) == 5 * 16 * 512**2


def test_shapes_of_outputs():
    shapes = {name: [load_program(name).shape(output) for output in load_program(name).outputs] for name in NETWORKS}
    assert shapes == {
        "bert": [(64, 1024)],
        "nasrnn": [(1, 512)],
        "nasnet_a": [(1, 5120, 7, 7)],
        **{name: [(1, 1000)] for name in PUBLISHED},
        "bert_tensat": [(64, 1024)] * 9,
        "nasrnn_tensat": [(1, 512)],
    }


# -- execution against torch -------------------------------------------------------------------------------------------


def run(program, values):
    return execute(program, values)[0]


def tensors(values):
    return {name: torch.tensor(value) for name, value in values.items()}


def load_conv(module, norm, values, name):
    """Weight and bias into a convolution, or, where a batch norm follows it, the bias into that, made an identity."""
    module.weight.data = values[f"{name}.weight"]
    bias = values[f"{name}.bias"].reshape(-1)
    if norm is None:
        module.bias.data = bias
        return
    norm.weight.data, norm.bias.data = torch.ones_like(bias), bias
    norm.running_mean, norm.running_var, norm.eps = torch.zeros_like(bias), torch.ones_like(bias), 0.0


def load_linear(module, values, name):
    module.weight.data, module.bias.data = values[f"{name}.weight"].T, values[f"{name}.bias"]


def squeezenet_in_torch(sizes, values):
    from graphopt_gym.graphs.zoo.squeezenet import Fire

    c = 4 * sizes["width"]
    layers = [torch.nn.Conv2d(3, c, 3, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2)]
    load_conv(layers[0], None, values, "stem")
    for index, factor in enumerate((1, 1, 2, 2, 3, 3, 4, 4)):
        if index in (2, 4):
            layers.append(torch.nn.MaxPool2d(3, 2))
        fire = Fire(c, factor * sizes["width"], 4 * factor * sizes["width"])
        c = 8 * factor * sizes["width"]
        for part, module in (("squeeze", fire.squeeze), ("expand1", fire.expand1), ("expand3", fire.expand3)):
            load_conv(module, None, values, f"fire{index}.{part}")
        layers.append(fire)
    layers += [torch.nn.Conv2d(c, sizes["classes"], 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)]
    load_conv(layers[-3], None, values, "classifier")
    return torch.nn.Sequential(*layers, torch.nn.Flatten())(values["image"])


def resnext50_in_torch(sizes, values):
    from graphopt_gym.graphs.zoo.resnet import ResNet

    net = ResNet(sizes["blocks"], sizes["width"], sizes["classes"], False, sizes["groups"]).double().eval()
    load_conv(net.conv1, net.bn1, values, "stem")
    for i, stage in enumerate(net.stages):
        for j, block in enumerate(stage):
            layers = [("reduce", "1"), ("grouped", "2"), ("expand", "3")]
            for name, number in layers:
                load_conv(getattr(block, f"conv{number}"), getattr(block, f"bn{number}"), values, f"{i}.{j}.{name}")
            if block.project:
                load_conv(block.down_conv, block.down_bn, values, f"{i}.{j}.project")
    load_linear(net.fc, values, "classifier")
    return net(values["image"])


def inception_v3_in_torch(sizes, values):
    from graphopt_gym.graphs.zoo.inception import InceptionV3

    net = InceptionV3(sizes["classes"], sizes["width"], 0.0, False).double().eval()
    for index, layer in enumerate(net.stem):
        load_conv(layer.conv, layer.bn, values, f"stem{index}")
    branches = {
        "a": ["one0", "five0 five1", "double0 double1 double2", "- pool0"],
        "b": ["three", "double0 double1 double2", "-"],
        "c": ["one0", "seven0 seven1 seven2", "double0 double1 double2 double3 double4", "- pool0"],
        "d": ["three0 three1", "seven0 seven1 seven2 seven3", "-"],
        "e": ["one0", "three0 three.", "double0 double1 double.", "- pool0"],
    }
    names = ["a0", "a1", "a2", "b", "c0", "c1", "c2", "c3", "d", "e0", "e1"]
    for block, name in zip(net.blocks, names, strict=True):
        for branch, parts in zip(block.branches, branches[name[0]], strict=True):
            for layer, part in zip(branch, parts.split(), strict=True):
                if part.endswith("."):
                    for side in ("row", "column"):
                        load_conv(getattr(layer, side).conv, getattr(layer, side).bn, values, f"{name}.{part}{side}")
                elif part != "-":
                    load_conv(layer.conv, layer.bn, values, f"{name}.{part}")
    load_linear(net.fc, values, "classifier")
    return net(values["image"])


def vgg19_in_torch(sizes, values):
    layers, inputs = [], 3
    for stage, count in enumerate((2, 2, 4, 4, 4)):
        for layer in range(count):
            outputs = sizes["width"] * (1, 2, 4, 8, 8)[stage]
            layers += [torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.ReLU()]
            load_conv(layers[-2], None, values, f"{stage}.{layer}")
            inputs = outputs
        layers.append(torch.nn.MaxPool2d(2))
    layers.append(torch.nn.Flatten())
    for index in range(3):
        layers += [torch.nn.Linear(1, 1), torch.nn.ReLU()]
        load_linear(layers[-2], values, f"fc{index}")
    return torch.nn.Sequential(*layers[:-1])(values["image"])


def bert_in_torch(sizes, values):
    width = sizes["width"]
    values["scale"] = torch.tensor((width // sizes["heads"]) ** -0.5)
    x = values["tokens"][None]
    for i in range(sizes["layers"]):
        layer = torch.nn.TransformerEncoderLayer(
            width, sizes["heads"], sizes["inner"], 0.0, "gelu", batch_first=True, dtype=torch.float64
        )
        own = layer.self_attn
        parts = [f"{i}.{part}" for part in ("query", "key", "value")]
        own.in_proj_weight.data = torch.cat([values[f"{part}.weight"].T for part in parts])
        own.in_proj_bias.data = torch.cat([values[f"{part}.bias"] for part in parts])
        load_linear(own.out_proj, values, f"{i}.output")
        load_linear(layer.linear1, values, f"{i}.up")
        load_linear(layer.linear2, values, f"{i}.down")
        for norm, name in ((layer.norm1, "attention_norm"), (layer.norm2, "norm")):
            norm.weight.data, norm.bias.data = values[f"{i}.{name}.scale"], values[f"{i}.{name}.shift"]
        x = layer(x)
    return x[0]


IN_TORCH = {
    "squeezenet": squeezenet_in_torch,
    "resnext50": resnext50_in_torch,
    "inception_v3": inception_v3_in_torch,
    "vgg19": vgg19_in_torch,
    "bert": bert_in_torch,
}


@pytest.mark.parametrize("name", IN_TORCH)
def test_network__computes_what_torch_modules_compute(name):
    sizes = PROGRAMS[name].small
    program = build_program(name, **sizes, biases=True)
    values = tensors(random_values(program, seed=3))
    if name == "inception_v3":
        values["image"] *= 3  # so that what is left after 48 layers is not tiny
    with torch.no_grad():
        expected = IN_TORCH[name](sizes, values).numpy()
    got = run(program, {leaf: value.numpy() for leaf, value in values.items()})
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("name", ["nasrnn", "nasrnn_tensat"])
def test_nasrnn__is_the_tree_of_the_paper(name):
    program = build_program(name, **PROGRAMS[name].small)
    v = tensors(random_values(program))
    h, sigmoid, tanh, relu = v["state"], torch.sigmoid, torch.tanh, torch.relu
    for step in range(2):
        cell = "cell" if name == "nasrnn" else f"cell{step}"
        t = [v[f"x{step}"] @ v[f"{cell}.w{i}"] + h @ v[f"{cell}.u{i}"] for i in range(8)]
        left = tanh(sigmoid(sigmoid(t[1]) + tanh(t[2])) + tanh(sigmoid(t[4]) * tanh(t[5])))
        right = tanh(tanh(relu(t[0]) + sigmoid(t[3])) * tanh(sigmoid(t[6]) * relu(t[7])))
        h = tanh(left * right)
    np.testing.assert_allclose(run(program, random_values(program)), h.numpy(), rtol=1e-10, atol=1e-14)


def nasnet_in_torch(sizes, v):
    from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, relu

    def conv(x, name, stride=1, groups=1):
        w = v[f"{name}.weight"]
        return conv2d(x, w, None, stride, w.shape[2] // 2, 1, groups)

    def separable(x, name, stride=1):
        return conv(conv(x, f"{name}.depthwise", stride, x.shape[1]), f"{name}.pointwise")

    def fit(previous, current, name):
        stride = previous.shape[2] // current.shape[2]
        return relu(conv(previous, f"{name}.previous", stride)), relu(conv(current, f"{name}.current"))

    x = max_pool2d(relu(conv(v["image"], "stem", 2)), 3, 2, 1)
    for stage in range(sizes["stages"]):
        previous = current = x
        for cell in range(sizes["cells"]):
            p, c = fit(previous, current, f"{stage}.{cell}")
            a, b, g, d, e = (
                separable(source, f"{stage}.{cell}.{name}")
                for name, source in zip("abcde", (c, p, c, p, p), strict=True)
            )
            averages = avg_pool2d(c, 3, 1, 1), avg_pool2d(p, 3, 1, 1)
            following = torch.cat([a + c, b + g, averages[0] + p, 2 * averages[1], d + e], 1)
            previous, current = current, following
        name = f"{stage}.reduce"
        p, c = fit(previous, current, name)
        first = separable(p, f"{name}.a", 2) + separable(c, f"{name}.b", 2)
        second = max_pool2d(c, 3, 2, 1) + separable(p, f"{name}.c", 2)
        third = avg_pool2d(c, 3, 2, 1) + separable(p, f"{name}.d", 2)
        fourth = max_pool2d(c, 3, 2, 1) + separable(first, f"{name}.e")
        x = torch.cat([first, second, third, fourth, avg_pool2d(first, 3, 1, 1) + second], 1)
    return x


def test_nasnet_a__has_the_wiring_of_the_cells():
    sizes = PROGRAMS["nasnet_a"].small
    program = build_program("nasnet_a", **sizes)
    values = random_values(program)
    expected = nasnet_in_torch(sizes, tensors(values)).numpy()
    np.testing.assert_allclose(run(program, values), expected, rtol=1e-9, atol=1e-12)


def test_bert_tensat__is_a_chain_of_projections_beside_heads():
    program = build_program("bert_tensat", **PROGRAMS["bert_tensat"].small)
    values = random_values(program)
    v = tensors(values)
    x, expected = torch.relu(v["tokens"]), []
    for layer in range(2):
        q, k, w = (
            (x @ v[f"{layer}.{part}.weight"]).view(4, 4, 4).transpose(0, 1) for part in ("query", "key", "value")
        )
        expected.append((q @ k @ w).transpose(0, 1).reshape(4, 16))
        x = x @ v[f"{layer}.output.weight"]
    for got, wanted in zip(execute(program, values), [*expected, x], strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-10, atol=1e-13)


# -- rewriting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_rewriting__makes_each_network_cheaper_at_its_published_size(name):
    state = original = RewriteProblem(name).original
    for _ in range(2):
        state = min((state.apply(match) for match in state.matches), key=lambda child: child.cost)
    assert state.cost < original.cost


@pytest.mark.parametrize("name", NETWORKS)
def test_rewriting__keeps_what_a_network_computes(name):
    program = build_program(name, **PROGRAMS[name].small)
    problem, random = RewriteProblem(program), np.random.default_rng(5)
    cheapest = problem.original
    for _ in range(4):
        cheapest = min((cheapest.apply(match) for match in cheapest.matches), key=lambda child: child.cost)
    walked = problem.original
    for _ in range(30):
        walked = problem.neighbour(walked, random)
    values = random_values(program)
    for state in (cheapest, walked):
        assert state.program != program
        for got, wanted in zip(execute(state.program, values), execute(program, values), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", program_names("small"))
def test_small_program__has_the_stored_best(name):
    best = known_best(name)
    problem = RewriteProblem(name)
    solution = solve(problem, "exhaustive", budget=100_000)
    assert solution.stopped_by == "finished"
    assert solution.outcome.valid
    assert solution.evaluations == best["programs"]
    assert problem.original_s == pytest.approx(best["original_s"], rel=1e-12)
    assert solution.outcome.cost == pytest.approx(best["best_s"], rel=1e-12)
    assert problem.evaluate(best["best"]).cost == solution.outcome.cost < problem.original_s
    assert 7 <= len(problem.program) <= 15


# -- names and files ---------------------------------------------------------------------------------------------------


def test_names__do_not_clash_with_graphs():
    assert set(WORKLOADS) <= set(NETWORKS)
    assert len(program_names("small")) == 10
    assert program_names() == list(PROGRAMS)
    assert not set(program_names()) & {*ZOO, *INFERENCE, *MEASURED}


def test_load_program__takes_names_texts_and_programs(tmp_path):
    program = load_program("small_fire")
    assert load_program("small_fire") is program
    assert load_program(program) is program
    path = tmp_path / "fire.txt"
    path.write_text(program_text(program))
    assert load_program(path) == program


def test_load_program__takes_onnx_files(tmp_path):
    pytest.importorskip("onnx")
    from graphopt_gym.graphs.tensor_program.onnx_io import write_onnx

    program = build_program("squeezenet", **PROGRAMS["squeezenet"].small)
    path = tmp_path / "squeezenet.onnx"
    write_onnx(program, path)
    values = random_values(program)
    loaded = load_program(path)
    np.testing.assert_allclose(run(loaded, values), run(program, values), rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("brt", "did you mean 'bert'"),
        ("no/such/file.txt", "does not exist"),
        (3, "give a name, a path or a TensorProgram"),
    ],
)
def test_load_program__says_what_is_wrong(given, said):
    with pytest.raises(InputError, match=said):
        load_program(given)


def test_load_program__names_line_and_column_of_an_error(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text('x = input(name="x", shape=(2, 2))\nreturn rleu(x)\n')
    with pytest.raises(InputError, match=r"bad\.txt.*line 2, column 8.*did you mean 'relu'"):
        load_program(path)


def test_build_program__refuses_sizes_that_it_has_not():
    with pytest.raises(InputError, match=r"program 'bert' has no such size.*depth"):
        build_program("bert", depth=3)


def test_readme__is_what_the_script_writes():
    script = runpy.run_path(str(data_path().parent / "scripts" / "build_programs.py"))
    assert data_path("programs", "README.md").read_text(encoding="utf-8") == script["readme"]()
