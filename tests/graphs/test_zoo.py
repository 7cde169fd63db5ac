"""The zoo: each family computes what eager torch computes, and each shipped graph is what its registry row says."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.graphs.io import save_graph
from graphopt_gym.graphs.zoo import graph_names, load_graph
from graphopt_gym.graphs.zoo.registry import MEASURED, PAPERS, SPLIT_OF_FAMILY, SPLITS, ZOO, held_out

REQUIRED = ("bert_base", "gpt2_small", "resnet50", "inception_v3_b32", "rnnlm_2layer", "transformer_xl_2layer")
ENTRIES = ZOO | MEASURED
ROOT = Path(__file__).resolve().parents[2]

# a small instance of every family
_TEXT = {"width": 16, "heads": 2, "vocabulary": 30, "dropout": 0.0, "batch": 2}
SMALL = {
    "bert": _TEXT | {"layers": 2, "inner": 32, "positions": 8, "sequence": 6},
    "gpt2": _TEXT | {"layers": 2, "positions": 8, "sequence": 6},
    "opt": _TEXT | {"layers": 2, "inner": 32, "positions": 8, "sequence": 6, "train": True},
    "switch": _TEXT | {"layers": 2, "head_width": 8, "inner": 32, "capacity": 3, "sequence": 6, "train": True},
    "resnet": {"blocks": (1, 2), "width": 8, "classes": 5, "size": 32, "batch": 3},
    "inception": {"width": 1, "classes": 5, "size": 299, "batch": 2, "dropout": 0.0},
    "rnnlm": {"layers": 2, "width": 8, "vocabulary": 30, "steps": 4, "batch": 3},
    "gnmt": {"layers": 3, "width": 8, "vocabulary": 30, "source_steps": 4, "target_steps": 3, "batch": 3}
    | {"dropout": 0.0},
    "wavenet": {"stacks": 2, "layers": 3, "cycle": 2, "width": 4, "skip": 6, "levels": 10, "length": 9, "batch": 2},
    "amoebanet": {"cells": 3, "width": 16, "stem": 6, "classes": 5, "size": 73, "batch": 2, "dropout": 0.0},
    "transformer_xl": _TEXT | {"layers": 2, "head_width": 8, "inner": 32, "length": 5, "memory": 6},
}


def classes(graph: ComputationGraph, *names: str) -> np.ndarray:
    return np.isin(graph.op_class, [OP_CLASSES.index(name) for name in names])


# ---- small instances against eager torch


@pytest.fixture(scope="module", params=sorted(SMALL))
def small(request):
    """(family, capture's arguments, trace, built graph, eager loss, eager gradients, FLOPs counted by torch)."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from graphopt_gym.graphs.capture import build_graph, trace_step

    family = importlib.import_module(f"graphopt_gym.graphs.zoo.{request.param}")
    torch.manual_seed(1)
    arguments = family.build(**SMALL[request.param], device="cpu")
    module, inputs, loss = arguments["module"], arguments["example_inputs"], arguments.get("loss")
    trace = trace_step(module, inputs, loss=loss, optimizer="adam", target="cpu")
    with FlopCounterMode(display=False) as counter:
        output = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
        value = loss(output) if loss else output
        params = dict(module.named_parameters())
        grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
    eager = {name: grad for name, grad in zip(params, grads, strict=True) if grad is not None}
    return request.param, arguments, trace, build_graph(trace, request.param), value, eager, counter.get_total_flops()


@pytest.mark.parametrize("order", ["recorded", "random"])
def test_family__op_by_op_gives_eager_loss_and_gradients(small, order):
    import torch

    from graphopt_gym.graphs.execute import execute

    _, arguments, trace, built, value, eager, _ = small
    given = arguments["example_inputs"]
    inputs = list(given.values()) if isinstance(given, dict) else list(given)
    draw = None
    if order == "random":
        from tests.graphs.test_capture import random_order

        draw = random_order(built.graph)
    found = execute(trace, built, arguments["module"], inputs, order=draw)
    torch.testing.assert_close(found.outputs[0], value)
    assert set(found.grads) == set(eager)
    for name, grad in eager.items():
        torch.testing.assert_close(found.grads[name], grad, msg=lambda text, name=name: f"{name}: {text}")


def test_family__flops_and_parameter_bytes(small):
    _, arguments, _, built, _, _, counted = small
    graph = built.graph
    assert graph.flops[classes(graph, "matmul", "conv")].sum() == pytest.approx(counted, rel=0.01)
    assert graph.param_bytes.sum() == sum(p.numel() * p.itemsize for p in arguments["module"].parameters())


def test_family__phases_and_updates(small):
    _, _, trace, built, _, eager, _ = small
    graph = built.graph
    computed = graph.op_class != SOURCE
    assert (np.diff(graph.phase[computed]) >= 0).all()
    assert (graph.phase == 2).sum() == len(eager) == len(trace.grads)
    backward = [graph.kinds[k] for k in graph.kind[(graph.phase == 0) & computed]]
    assert not [kind for kind in backward if kind.endswith("backward")]


def test_family__every_stage_is_met_and_groups_are_sane(small):
    family, arguments, _, built, _, _, _ = small
    graph = built.graph
    for stage in arguments["metadata"]["stages"]:
        assert any(
            path == prefix or path.startswith(prefix + ".") for path in graph.modules for prefix in stage["modules"]
        ), (family, stage)
    assert (graph.colocation >= 0).all()
    assert (graph.colocation == graph.colocation[graph.view_root]).all()
    assert not classes(graph, "other").any()
    for op in np.flatnonzero(graph.phase == 2):  # an update is with its parameter
        assert (
            graph.colocation[[p for p in graph.predecessors(op) if graph.op_class[p] == SOURCE]] == graph.colocation[op]
        ).all()
    # a backward operator lies with the forward one that it is derived from
    forward = set(graph.colocation[(graph.phase == 0) & (graph.op_class != VIEW)].tolist())
    assert set(graph.colocation.tolist()) == forward


# ---- what an architecture must be, beyond what eager torch computes of it


def test_gnmt__residual_connections_start_at_the_third_layer_and_the_first_is_bidirectional():
    pytest.importorskip("torch")
    module = importlib.import_module("graphopt_gym.graphs.zoo.gnmt").build(layers=4, width=8, vocabulary=9)["module"]
    for cells in (module.encoder, module.decoder):
        assert [cell.residual for cell in cells] == [False, False, True, True]
    assert [cell.weight_input.shape[1] for cell in module.encoder] == [8, 16, 8, 8]
    assert [cell.weight_input.shape[1] for cell in module.decoder] == [16] * 4  # with the attention's context


def test_wavenet__a_prediction_sees_exactly_its_receptive_field():
    torch = pytest.importorskip("torch")
    family = importlib.import_module("graphopt_gym.graphs.zoo.wavenet")
    arguments = family.build(stacks=2, layers=3, cycle=3, width=4, skip=4, levels=9, length=40, batch=1, device="cpu")
    module, samples = arguments["module"], arguments["example_inputs"]["samples"]
    embedded: list[torch.Tensor] = []
    module.embedding.register_forward_hook(lambda _m, _a, out: embedded.append(out.requires_grad_()) or out)
    logits: list[torch.Tensor] = []
    module.head_out.register_forward_hook(lambda _m, _a, out: logits.append(out))
    module(samples)
    at = 30
    (grad,) = torch.autograd.grad(logits[0][0, :, at].sum(), embedded[0])
    seen = grad[0].abs().sum(1).nonzero().flatten()
    assert seen.max() == at  # sample `at` is the last given to the prediction of the next
    assert at - seen.min() == 1 + 2 * (1 + 2 + 4)  # the first convolution, and two cycles of dilations 1, 2, 4


@pytest.mark.parametrize(("width", "millions"), [(208, 82), (416, 318)])
def test_amoebanet__has_the_parameters_of_gpipe_table_1(width, millions):
    """AmoebaNet-D (18, 208) and (18, 416), Huang et al., NeurIPS 2019 (recalled)."""
    pytest.importorskip("torch")
    module = importlib.import_module("graphopt_gym.graphs.zoo.amoebanet").build(cells=18, width=width)["module"]
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)


# ---- shipped files


@pytest.fixture(scope="module")
def shipped():
    return {name: load_graph(name) for name in ENTRIES}


def test_zoo__has_the_required_graphs():
    assert set(REQUIRED) | set(PAPERS) <= set(graph_names())
    assert not set(graph_names()) & set(graph_names("measured"))


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_shipped__is_what_its_row_says(shipped, name):
    graph, entry = shipped[name], ENTRIES[name]
    assert graph.name == name
    facts = graph.metadata
    assert facts["family"] == entry.family
    assert facts["source"] == entry.source
    assert "Apache-2.0" in facts["licence"]
    assert facts["torch"]
    as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in entry.config.items()}
    assert facts["configuration"] == as_json
    assert not classes(graph, "other").any()
    assert (graph.colocation >= 0).all()
    assert (graph.output_bytes[graph.phase == 2] == 0).all()
    assert graph.flops[classes(graph, "view", "source")].sum() == 0
    kernels = ~classes(graph, "view", "source")
    assert (graph.bytes_written[kernels] > 0).all()
    assert entry.path(name).stat().st_size < 100_000


@pytest.mark.parametrize(
    ("name", "millions"),
    # published parameter counts
    [
        ("bert_base", 110.1),
        ("gpt2_small", 124.4),
        ("resnet50", 25.6),
        ("inception_v3_b32", 27.2),
        ("opt_13_inf_s2048_b2", 1315.8),
        ("gpt2_large_inf_s1024_b4", 774.0),
        ("bert_large_train_s512_b2", 336.2),
    ],
)
def test_shipped__has_the_published_number_of_parameters(shipped, name, millions):
    assert shipped[name].param_bytes.sum() / 4e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", [*REQUIRED, "wavenet_2x18", "amoebanet"])
def test_shipped__flops_and_parameters_of_the_module_at_full_size(shipped, name):
    """torch's own counter, on meta tensors, over eager forward and backward."""
    pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    arguments = ZOO[name].arguments()
    module, inputs = arguments["module"], arguments["example_inputs"]
    with FlopCounterMode(display=False) as counter:
        loss = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
        loss.backward()
    graph = shipped[name]
    assert graph.flops[classes(graph, "matmul", "conv")].sum() == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert graph.param_bytes.sum() == sum(p.numel() * p.itemsize for p in module.parameters())


def test_shipped__bert_base_is_a_training_step_of_at_least_2000_ops(shipped):
    graph = shipped["bert_base"]
    assert graph.num_ops >= 2000
    assert set(PHASES) == {PHASES[code] for code in set(graph.phase.tolist())}
    assert graph.state_bytes.sum() == 2 * graph.param_bytes.sum()
    assert 100 <= graph.statistics()["groups"] <= 1500


def test_shipped__rnnlm_has_a_group_a_cell_and_step(shipped):
    graph = shipped["rnnlm_2layer"]
    cells = [op for op in range(graph.num_ops) if graph.modules[graph.module[op]].startswith("cells.")]
    sigmoids = [op for op in cells if graph.kinds[graph.kind[op]] == "sigmoid"]
    assert len(sigmoids) == 3 * 60 * 2
    assert len({int(graph.colocation[op]) for op in sigmoids}) == 60 * 2


def test_shipped__gnmt_has_a_group_a_cell_and_step_and_a_group_an_attention_step(shipped):
    graph = shipped["gnmt_8layer"]
    assert 50_000 < graph.num_ops < 80_000
    assert graph.num_ops == max(one.num_ops for one in shipped.values())
    steps = ZOO["gnmt_8layer"].config["source_steps"]

    def groups(prefixes: tuple[str, ...]) -> int:
        at = [i for i, path in enumerate(graph.modules) if path.startswith(prefixes)]
        tanh = graph.kinds.index("tanh")
        return len(np.unique(graph.colocation[np.isin(graph.module, at) & (graph.kind == tanh)]))

    assert groups(("encoder.", "decoder.", "backward_cell")) == (8 + 1 + 8) * steps
    assert groups(("attention",)) == steps


@pytest.mark.parametrize("name", PAPERS)
def test_shipped__fits_on_the_papers_devices_in_consecutive_blocks(shipped, name):
    from graphopt_gym.envs.placement.partition import make_group_graph
    from graphopt_gym.envs.placement.problem import PlacementProblem

    cluster = ZOO[name].cluster
    assert shipped[name].metadata["cluster"] == cluster
    problem = PlacementProblem(shipped[name], cluster)
    assert problem.num_devices == ZOO[name].devices
    groups = make_group_graph(problem)
    order = np.argsort(groups.position, kind="stable")
    filled = np.cumsum(groups.total_bytes[order])
    decision = np.empty(problem.num_groups, np.int32)
    decision[order] = np.minimum(problem.num_devices - 1, filled / filled[-1] * problem.num_devices)
    _, valid = problem.costs(decision[None])
    assert valid[0]


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "transformer_xl_2layer",
        "wavenet_2x18",
        "amoebanet",
        "switchxl4_inf_s512_b1",
    ],
)
def test_shipped__rebuilding_gives_the_same_bytes(name, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.__version__.split("+")[0] != load_graph(name).metadata["torch"]:
        pytest.skip("another torch may dispatch other operators")
    save_graph(ENTRIES[name].capture(name), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == ENTRIES[name].path(name).read_bytes()


def test_readme__table_is_that_of_the_shipped_files():
    spec = importlib.util.spec_from_file_location("build_graphs", ROOT / "scripts" / "build_graphs.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    readme = (ROOT / "envs_data" / "graphs" / "README.md").read_text()
    assert "\n".join(script.table()) in readme


# ---- splits


def test_splits__are_by_family_and_cover_the_zoo():
    parts = [SPLITS[split] for split in ("train", "validation", "test")]
    assert sorted(name for part in parts for name in part) == sorted(ZOO) == sorted(SPLITS["all"])
    assert all(parts)
    assert {entry.family for entry in ZOO.values()} == set(SPLIT_OF_FAMILY)
    assert not set(SPLITS) & set(ENTRIES)  # a split's name is no graph's
    assert len(PAPERS) == 14


def test_held_out__is_every_graph_of_the_papers_once():
    for family in {ZOO[name].family for name in PAPERS}:
        others, held = held_out(family)
        assert set(others) | set(held) == set(PAPERS)
        assert {ZOO[name].family for name in held} == {family}
        assert family not in {ZOO[name].family for name in others}
    with pytest.raises(InputError, match="unknown family 'gmnt'; did you mean 'gnmt'"):
        held_out("gmnt")


# ---- loading


def test_load_graph__returns_a_graph_as_it_is(shipped):
    assert load_graph(shipped["resnet50"]) is shipped["resnet50"]


def test_load_graph__takes_a_path(shipped, tmp_path):
    path = tmp_path / "mine.npz"
    save_graph(shipped["resnet50"], path)
    assert load_graph(str(path)).fingerprint == load_graph(path).fingerprint == shipped["resnet50"].fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("bert_bse", "unknown graph 'bert_bse'; did you mean 'bert_base'"),
        ("nowhere/graph.npz", "does not exist"),
        ("nowhere/graph.onnx", "does not exist"),
        (3, "graph is a int"),
    ],
)
def test_load_graph__bad_names_are_explained(given, message):
    with pytest.raises(InputError, match=message):
        load_graph(given)


def test_load_graph__a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no graph")
    with pytest.raises(InputError, match="not a graph of ours"):
        load_graph(path)


def test_zoo__import_needs_no_torch():
    code = "import sys, graphopt_gym.graphs.zoo as z; z.load_graph('resnet50'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
