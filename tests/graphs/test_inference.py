"""The inference graphs: what their rows say, split by family, and each with a partition onto its package."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from graphopt_gym.envs.chiplet.methods import contiguous_decision, greedy_decision
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES
from graphopt_gym.graphs.io import save_graph
from graphopt_gym.graphs.zoo import GRAPHS, graph_names, load_graph
from graphopt_gym.graphs.zoo.entry import INFERENCE_SPLIT_OF_FAMILY
from graphopt_gym.graphs.zoo.registry import INFERENCE, MEASURED, SPLITS, ZOO

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("inference_train", "inference_validation", "inference_test")
LARGE = "bert_primitive"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_graphs", ROOT / "scripts" / "build_graphs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def problems():
    return {name: ChipletProblem(name, "mcm36") for name in INFERENCE}


# ---- the set


def test_inference__sizes_and_names():
    assert sorted(graph_names("inference_all")) == sorted(INFERENCE)
    assert len(SPLITS["inference"]) >= 60
    assert not set(INFERENCE) & (set(ZOO) | set(MEASURED) | set(SPLITS))
    assert sum(entry.path(name).stat().st_size for name, entry in INFERENCE.items()) < 1_000_000


def test_inference__every_family_is_in_one_part():
    families = [{INFERENCE[name].family for name in SPLITS[part]} for part in PARTS]
    assert sum(map(len, families)) == len(set.union(*families)) == len(INFERENCE_SPLIT_OF_FAMILY)
    assert sorted(name for part in PARTS for name in SPLITS[part]) == sorted({*INFERENCE} - {LARGE})
    assert sorted(SPLITS["inference"]) == sorted({*INFERENCE} - {LARGE})
    assert [len(SPLITS[part]) for part in PARTS] == [66, 5, 16]  # as in Xie et al. 2022
    assert GRAPHS.expand(["inference_validation", LARGE]) == (*SPLITS["inference_validation"], LARGE)


def test_inference__the_primitive_bert_has_the_papers_number_of_nodes_nearly(problems):
    assert problems[LARGE].num_ops == pytest.approx(2138, rel=0.005)


@pytest.mark.parametrize("name", sorted(INFERENCE))
def test_inference__is_what_its_row_says(problems, name):
    graph, entry = problems[name].graph, INFERENCE[name]
    assert graph.name == name
    facts = graph.metadata
    assert (facts["family"], facts["source"], facts["note"]) == (entry.family, entry.source, entry.note)
    as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in entry.config.items()}
    assert facts["configuration"] == as_json
    assert facts["train"] is False
    floats = {given for given, _ in facts["inputs"] if "int" not in given}
    assert floats <= {entry.dtype}
    assert set(graph.phase.tolist()) == {PHASES.index("forward")}
    assert not (graph.op_class == OP_CLASSES.index("other")).any()
    assert name == LARGE or 10 <= problems[name].num_ops <= 600


# ---- partitions


@pytest.mark.parametrize("name", sorted(INFERENCE))
def test_inference__has_a_valid_partition_on_36_chips_and_on_its_package(problems, script, name):
    for package in dict.fromkeys(("mcm36", script.package_for(problems[name].num_ops))):
        problem = problems[name] if package == "mcm36" else ChipletProblem(problems[name].graph, package)
        decision = contiguous_decision(problem)
        if decision is None:
            decision = greedy_decision(problem)
        assert problem.violations(decision) == []


# ---- architectures


@pytest.mark.parametrize(
    ("name", "millions"),
    # published, or those of the authors' or torchvision's and timm's implementations (recalled)
    [
        ("resnet18_b1", 11.69),
        ("resnet34_b1", 21.80),
        ("resnet50_b1", 25.56),
        ("resnet101_b2", 44.55),
        ("resnext50_b1", 25.03),
        ("squeezenet10_b1", 1.25),
        ("squeezenet11_b4", 1.24),
        ("mobilenet_v2_b1", 3.50),
        ("mobilenet_v2_w140_b1", 6.11),
        ("efficientnet_b0_b1", 5.29),
        ("efficientnet_b2_b1", 9.11),
        ("googlenet_b1", 6.998552 + 0.007280),  # and a batch norm's second parameter a channel
        ("inception_v3_b1", 23.83),
        ("convnext_tiny_b1", 28.59),
        ("yolov3_tiny_b1", 8.85),
        ("vit_tiny_b1", 5.72),
        ("vit_small_b4", 22.05),
        ("vit_base_b1", 86.57),
        ("swin_tiny_b1", 28.29),
        ("dcgan_generator_b16", 3.58),
        ("shufflenet_v2_b1", 2.28),
        ("shufflenet_v2_w50_b8", 1.37),
        ("densenet121_b1", 7.98),
        ("bert_base_b1", 109.48),
        ("mixer_small_b4", 18.53),
        ("gmlp_tiny_b1", 5.87),
    ],
)
def test_inference__has_the_published_number_of_parameters(problems, name, millions):
    graph = problems[name].graph
    size = {"float32": 4, "bfloat16": 2}[INFERENCE[name].dtype]
    assert graph.param_bytes.sum() / size / 1e6 == pytest.approx(millions, abs=0.011)


SMALL = {
    "squeezenet": {"size": 64, "classes": 5},
    "mobilenet_v2": {"size": 32, "classes": 5, "width": 0.35},
    "efficientnet": {"size": 32, "classes": 5, "width": 0.3},
    "googlenet": {"size": 64, "classes": 5},
    "convnext": {"size": 32, "classes": 5, "blocks": (1, 1), "widths": (8, 16)},
    "deeplab": {"size": 32, "classes": 5, "blocks": (1, 1, 1, 1), "width": 16},
    "ssd": {"size": 64, "classes": 5, "backbone": "mobilenet_v2"},
    "yolo": {"size": 32, "classes": 5, "blocks": (1, 1, 1, 1, 1), "width": 2},
    "vit": {"size": 32, "classes": 5, "layers": 2, "width": 16, "heads": 2},
    "swin": {"size": 32, "classes": 5, "blocks": (2, 2), "width": 8, "heads": (2, 4), "window": 2},
    "t5": {"layers": 2, "width": 16, "heads": 2, "head_width": 8, "inner": 32, "vocabulary": 30}
    | {"source": 6, "target": 5, "buckets": 4, "batch": 2},
    "gru": {"layers": 2, "width": 8, "vocabulary": 30, "steps": 4, "batch": 3},
    "tagger": {"layers": 2, "width": 8, "vocabulary": 30, "tags": 5, "steps": 4, "batch": 3},
    "dlrm": {"tables": 3, "rows": 10, "bottom": (8, 4), "top": (8, 1), "batch": 3},
    "tcn": {"layers": 3, "inputs": 4, "width": 6, "outputs": 3, "length": 20, "batch": 2},
    "dcgan": {"noise": 5, "width": 4, "stages": 3, "discriminator": False, "batch": 2},
    "shufflenet_v2": {"size": 32, "classes": 5, "width": "0.5"},
    "densenet": {"size": 32, "classes": 5, "blocks": (2, 3), "growth": 4, "first": 8},
    "mixer": {"size": 32, "classes": 5, "layers": 2, "width": 8, "token_inner": 6, "inner": 16, "gated": True},
    "retinanet": {"channels": (4, 6, 8), "width": 8, "depth": 1, "anchors": 2, "classes": 5, "size": 64},
    "unet": {"size": 32, "levels": 3, "width": 4},
    "vgg": {"depth": 11, "size": 32, "classes": 5, "norm": True},
    "bert_primitive": {"layers": 2, "width": 16, "heads": 2, "inner": 32, "vocabulary": 30, "sequence": 5, "batch": 2},
}


@pytest.mark.parametrize("family", sorted(SMALL))
def test_family__op_by_op_gives_eager_outputs(family):
    torch = pytest.importorskip("torch")
    from torch.utils import _pytree as pytree

    from graphopt_gym.graphs.capture import build_graph, trace_step
    from graphopt_gym.graphs.execute import execute

    torch.manual_seed(2)
    arguments = importlib.import_module(f"graphopt_gym.graphs.zoo.{family}").build(**SMALL[family], device="cpu")
    module, inputs = arguments["module"].eval(), arguments["example_inputs"]
    trace = trace_step(module, inputs, train=False, target="cpu")
    given = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    with torch.no_grad():
        found = execute(trace, build_graph(trace, family), module, given).outputs
        eager = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    expected = [leaf for leaf in pytree.tree_leaves(eager) if isinstance(leaf, torch.Tensor)]
    assert len(found) == len(expected)
    assert any(leaf.std() > 0 for leaf in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_bert_primitive__a_layer_is_attention_gelu_and_layer_norm_of_torch():
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    torch.manual_seed(3)
    family = importlib.import_module("graphopt_gym.graphs.zoo.bert_primitive")
    layer = family.Layer(width=12, heads=3, inner=20)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2 * 5, 12)

    def linear(part, y):
        return F.linear(y, part.weight.T, part.bias)

    def norm(part, y):
        return F.layer_norm(y, (12,), part.gamma, part.beta, 1e-12)

    query, key, value = (linear(p, x).view(2, 5, 3, 4).transpose(1, 2) for p in (layer.query, layer.key, layer.value))
    context = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(10, 12)
    y = norm(layer.output_norm, linear(layer.output, context) + x)
    expected = norm(layer.norm, linear(layer.project, F.gelu(linear(layer.expand, y), approximate="tanh")) + y)
    torch.testing.assert_close(layer(x, 2), expected, rtol=1e-4, atol=1e-5)


# ---- files


@pytest.mark.parametrize("name", ["resnet18_b4", "lstm_l2_w650_t5_b1", "t5_mini_b1", "retinanet_fpn_b1", LARGE])
def test_inference__rebuilding_gives_the_same_bytes(name, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.__version__.split("+")[0] != load_graph(name).metadata["torch"]:
        pytest.skip("another torch may dispatch other operators")
    save_graph(INFERENCE[name].capture(name), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == INFERENCE[name].path(name).read_bytes()


def test_readme__inference_table_is_that_of_the_shipped_files(script):
    assert "\n".join(script.inference_table()) in (ROOT / "envs_data" / "graphs" / "README.md").read_text()


def test_load_graph__a_split_of_inference_graphs_is_no_graph():
    with pytest.raises(InputError, match="a split of several graphs"):
        load_graph("inference_test")
    with pytest.raises(InputError, match="unknown graph 'bert_primitiv'; did you mean 'bert_primitive'"):
        load_graph("bert_primitiv")


def test_splits__of_training_steps_hold_no_inference_graph():
    for split in ("train", "validation", "test", "papers", "all"):
        assert not set(SPLITS[split]) & set(INFERENCE)
    assert np.all([entry.folder == ("graphs", "inference") for entry in INFERENCE.values()])
