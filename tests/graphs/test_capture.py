"""Capture of small modules: what each column says, and that the captured graph computes what torch computes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, SOURCE, VIEW, ComputationGraph

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from graphopt_gym.graphs.capture import (  # noqa: E402
    OPTIMIZERS,
    CaptureWarning,
    build_graph,
    capture,
    capture_from_spec,
    trace_step,
)
from graphopt_gym.graphs.execute import execute  # noqa: E402


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.act(self.first(x)))


def ops_of(graph: ComputationGraph, kind: str) -> list[int]:
    return [op for op in range(graph.num_ops) if graph.kinds[graph.kind[op]] == kind]


def phase_of(graph: ComputationGraph, op: int) -> str:
    return PHASES[graph.phase[op]]


def run_both(module, inputs, loss=None, order=None):
    """Loss and gradients of eager torch and of the captured graph, op by op."""
    trace = trace_step(module, inputs, loss=loss, target="cpu")
    built = build_graph(trace, "test")
    found = execute(trace, built, module, inputs, order=order(built.graph) if order else None)
    value = module(*inputs)
    value = loss(value) if loss else value.mean() if value.dim() else value
    params = dict(module.named_parameters())
    grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
    expected = {name: grad for name, grad in zip(params, grads, strict=True) if grad is not None}
    assert set(found.grads) == set(expected)
    torch.testing.assert_close(found.outputs[0], value)
    for name, grad in expected.items():
        torch.testing.assert_close(found.grads[name], grad)
    return built.graph


# ---- columns


def test_capture__classes_phases_and_sizes_of_an_mlp():
    graph = capture(Mlp(), torch.randn(5, 6), optimizer="adam")
    first = ops_of(graph, "addmm")[0]
    assert graph.modules[graph.module[first]] == "first"
    assert OP_CLASSES[graph.op_class[first]] == "matmul"
    assert graph.flops[first] == 2 * 5 * 6 * 8
    assert graph.bytes_read[first] == 4 * (5 * 6 + 6 * 8 + 8)
    assert graph.bytes_written[first] == graph.output_bytes[first] == 4 * 5 * 8
    assert graph.shape(first) == (5, 8)
    gelu_backward = ops_of(graph, "gelu_backward")[0]
    assert phase_of(graph, gelu_backward) == "backward"
    assert graph.modules[graph.module[gelu_backward]] == "act"
    # forward before backward before the optimiser
    assert (np.diff(graph.phase[graph.op_class != SOURCE]) >= 0).all()


def test_capture__parameter_sources_hold_the_bytes_and_optimizer_ops_the_state():
    module = Mlp()
    graph = capture(module, torch.randn(5, 6), optimizer="adam")
    total = sum(p.numel() * 4 for p in module.parameters())
    sources = np.array(ops_of(graph, "parameter"))
    assert graph.param_bytes[sources].sum() == graph.param_bytes.sum() == total
    updates = np.array(ops_of(graph, "adam"))
    assert len(updates) == 4
    assert graph.state_bytes[updates].sum() == graph.state_bytes.sum() == 2 * total
    assert (graph.output_bytes[updates] == 0).all()
    for update in updates:
        read = graph.predecessors(update)
        assert sum(graph.op_class[op] == SOURCE for op in read) == 1
        assert len(read) == 2
        assert phase_of(graph, update) == "optimizer"
        assert graph.module[update] == graph.module[read[graph.op_class[read] == SOURCE][0]]


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_capture__optimizer_costs_follow_its_rule(optimizer):
    graph = capture(Mlp(), torch.randn(5, 6), optimizer=optimizer)
    rule, size = OPTIMIZERS[optimizer], 6 * 8
    update = next(op for op in ops_of(graph, optimizer) if graph.shape(op) == (8, 6))
    assert graph.state_bytes[update] == {"adam": 2, "momentum": 1, "sgd": 0}[optimizer] * 4 * size
    assert graph.bytes_read[update] == rule.reads * 4 * size
    assert graph.bytes_written[update] == rule.writes * 4 * size
    assert graph.flops[update] == rule.flops * size


def test_capture__inference_has_one_phase_and_restores_the_module():
    module = nn.Sequential(Mlp(), nn.Dropout(0.5)).train()
    graph = capture(module, torch.randn(5, 6), train=False)
    assert set(graph.phase) == {0}
    assert not ops_of(graph, "native_dropout")
    assert graph.state_bytes.sum() == 0
    assert all(m.training for m in module.modules())


def test_capture__without_optimizer_ends_at_the_gradients():
    graph = capture(Mlp(), torch.randn(5, 6), optimizer=None)
    assert set(graph.phase) == {0, 1}
    assert graph.state_bytes.sum() == 0


def test_capture__tied_weight_counts_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 4)
            self.head = nn.Linear(4, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return F.cross_entropy(self.head(self.embed(tokens)).view(-1, 11), tokens.view(-1))

    graph = run_both(Tied(), (torch.randint(0, 11, (2, 3)),))
    assert graph.param_bytes.sum() == 11 * 4 * 4
    # the sum of its two gradients goes with the parameter
    accumulation = next(op for op in ops_of(graph, "add") if phase_of(graph, op) == "backward")
    (parameter,) = ops_of(graph, "parameter")
    assert graph.colocation[accumulation] == graph.colocation[parameter] == graph.colocation[ops_of(graph, "adam")[0]]
    assert graph.colocation[parameter] == graph.colocation[ops_of(graph, "embedding")[0]]


def test_capture__expanded_operand_is_read_at_its_stored_size():
    class Broadcast(nn.Module):
        def forward(self, x, y):
            return x * y.expand(100, 50)

    graph = capture(Broadcast(), (torch.randn(100, 50), torch.randn(50)), train=False)
    (mul,) = ops_of(graph, "mul")
    assert graph.bytes_read[mul] == 4 * (100 * 50 + 50)


def test_capture__embedding_reads_rows_not_the_table():
    graph = capture(nn.Embedding(10**6, 8), torch.zeros(5, dtype=torch.long), train=False)
    (look_up,) = ops_of(graph, "embedding")
    assert OP_CLASSES[graph.op_class[look_up]] == "gather"
    assert graph.bytes_read[look_up] == 5 * 8 * 4 + 5 * 8
    assert graph.flops[look_up] == 0


def test_capture__several_outputs_become_items():
    graph = capture(nn.LayerNorm(4), torch.randn(3, 4))
    (norm,) = ops_of(graph, "native_layer_norm")
    items = [op for op in graph.successors(norm) if graph.kinds[graph.kind[op]] == "getitem"]
    assert [graph.output_bytes[op] for op in items] == [48, 12, 12]
    assert graph.output_bytes[norm] == 72
    assert all(graph.op_class[op] == VIEW for op in items)


def test_capture__unused_outputs_have_no_item():
    graph = capture(nn.LayerNorm(4), torch.randn(3, 4), train=False)
    (norm,) = ops_of(graph, "native_layer_norm")
    assert len(graph.successors(norm)) == 1
    assert graph.output_bytes[norm] == 48
    assert graph.bytes_written[norm] == 72  # the kernel writes them all the same


def test_capture__dead_code_is_left_out_and_unused_parameters_are_kept():
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            torch.exp(x)
            return self.used(x)

    with pytest.warns(CaptureWarning, match="unused.weight"):
        graph = capture(Dead(), torch.randn(2, 4))
    assert not ops_of(graph, "exp")
    assert graph.param_bytes.sum() == 2 * (16 + 4) * 4
    assert len(ops_of(graph, "adam")) == 2


def test_capture__frozen_parameters_get_no_update():
    module = Mlp()
    module.first.requires_grad_(False)
    graph = capture(module, torch.randn(5, 6))
    assert len(ops_of(graph, "adam")) == 2
    assert graph.param_bytes.sum() == sum(p.numel() * 4 for p in module.parameters())


def test_capture__dropout_is_one_random_kernel():
    graph = capture(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)), torch.randn(2, 4))
    (dropout,) = ops_of(graph, "native_dropout")
    assert OP_CLASSES[graph.op_class[dropout]] == "elementwise"
    assert graph.bytes_written[dropout] == 8 * 4 + 8  # the result and a mask of bytes
    assert len(ops_of(graph, "native_dropout_backward")) == 1
    assert not ops_of(graph, "bernoulli")


def test_capture__attention_kernel_is_a_matmul_with_its_flops():
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    shape = (2, 3, 16, 8)
    graph = capture(Attention(), tuple(torch.randn(shape) for _ in range(3)), train=False)
    (op,) = (op for op in range(graph.num_ops) if "scaled_dot_product" in graph.kinds[graph.kind[op]])
    assert OP_CLASSES[graph.op_class[op]] == "matmul"
    assert graph.flops[op] == 2 * 2 * (2 * 3) * 16 * 16 * 8


def test_capture__true_size_without_its_memory():
    with torch.device("meta"):
        module = nn.Linear(200_000, 200_000, bias=False)  # 160 GB
    graph = capture(module, torch.empty(64, 200_000, device="meta"))
    assert graph.param_bytes.sum() == 160_000_000_000
    assert graph.state_bytes.sum() == 320_000_000_000


def test_capture__is_deterministic():
    one, two = (capture(Mlp(), torch.randn(5, 6)) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert one.metadata == two.metadata


def test_capture__a_tensor_from_outside_is_a_constant_in_every_capture():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(4, 4), torch.arange(4.0)  # no buffer

        def forward(self, x):
            return (self.layer(x) * self.scale).sum()

    module = Scaled()
    one = run_both(module, (torch.randn(2, 4),))
    two = run_both(module, (torch.randn(2, 4),))
    assert len(ops_of(one, "constant")) == 1
    assert one.fingerprint == two.fingerprint


def test_capture__records_what_make_fx_records():
    """torch's own tracer as the reference: the same operators, as many of each."""
    from collections import Counter

    from torch.fx.experimental.proxy_tensor import make_fx

    module, x = nn.Sequential(Mlp(), nn.LayerNorm(3), nn.Softmax(-1), nn.Linear(3, 3)), torch.randn(5, 6)
    params = dict(module.named_parameters())

    def step(params, x):
        value = torch.func.functional_call(module, params, (x,)).mean()
        return value, torch.autograd.grad(value, list(params.values()))

    traced = make_fx(step, tracing_mode="fake")(params, x).graph
    traced.eliminate_dead_code()
    expected = Counter(
        node.target._schema.name.split("::")[1] for node in traced.nodes if hasattr(node.target, "_schema")
    )
    graph = capture(module, x, optimizer=None)
    calls = Counter(graph.kinds[kind] for kind in graph.kind)
    for kind in ("parameter", "input", "getitem"):
        del calls[kind]
    assert calls == expected


def test_capture__metadata_tells_what_it_is():
    graph = capture(Mlp(), torch.randn(5, 6), name="mine", metadata={"family": "mlp"})
    assert graph.name == "mine"
    assert graph.metadata["family"] == "mlp"
    assert graph.metadata["torch"] == torch.__version__.split("+")[0]
    assert graph.metadata["inputs"] == [["float32", [5, 6]]]
    assert [stage["modules"] for stage in graph.metadata["stages"]] == [["first"], ["act"], ["second", "loss"]]


# ---- colocation


def test_colocation__a_leaf_call_with_its_backward_parameters_and_updates():
    graph = capture(Mlp(), torch.randn(5, 6), loss=lambda y: y.square().sum())
    for path in ("first", "second"):
        members = {
            (graph.kinds[graph.kind[op]], phase_of(graph, op))
            for op in range(graph.num_ops)
            if graph.modules[graph.module[op]] == path and graph.op_class[op] != VIEW
        }
        assert {("addmm", "forward"), ("mm", "backward"), ("sum", "backward"), ("adam", "optimizer")} <= members
        groups = {
            int(graph.colocation[op])
            for op in range(graph.num_ops)
            if graph.modules[graph.module[op]] == path and graph.op_class[op] != VIEW
        }
        assert len(groups) == 1
    loss_ops = [op for op in range(graph.num_ops) if graph.modules[graph.module[op]] == "loss"]
    assert {"pow", "sum"} <= {graph.kinds[graph.kind[op]] for op in loss_ops}
    # first, act, second and the loss
    assert graph.statistics()["groups"] == 4
    assert (np.sort(np.unique(graph.colocation)) == np.arange(4)).all()


def test_colocation__views_share_their_producers_group():
    graph = capture(Mlp(), torch.randn(5, 6))
    assert (graph.colocation == graph.colocation[graph.view_root]).all()


def test_colocation__a_recurrent_cell_is_a_group_a_step():
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x, h):
            return torch.tanh(x + F.linear(h, self.weight))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = Cell()

        def forward(self, xs):
            h = xs.new_zeros(xs.shape[1], 4)
            for x in xs.unbind(0):
                h = self.cell(x, h)
            return h.sum()

    graph = run_both(Net(), (torch.randn(7, 2, 4),))
    groups = [graph.colocation[op] for op in ops_of(graph, "tanh")]
    assert len(set(groups)) == 7
    # each step's backward is with its forward, the sums of the weight's gradients with the weight
    assert sorted(groups) == sorted(graph.colocation[op] for op in ops_of(graph, "tanh_backward"))
    sums = [op for op in ops_of(graph, "add") if phase_of(graph, op) == "backward"]
    assert len(sums) == 6
    assert {graph.colocation[op] for op in sums} == {graph.colocation[ops_of(graph, "parameter")[0]]} == {groups[0]}


def test_colocation__a_containers_own_operators_form_runs_between_its_children():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.one(x).sin().cos()
            return self.two(y).exp() + x

    graph = capture(Block(), torch.randn(3, 4), train=False)
    group = {kind: graph.colocation[ops_of(graph, kind)[0]] for kind in ("sin", "cos", "exp", "add")}
    assert group["sin"] == group["cos"] != group["exp"] == group["add"]


def test_colocation__a_fork_sums_its_gradients_where_it_was_produced():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.stem(x)
            return self.left(y) * self.right(y)

    graph = capture(Fork(), torch.randn(3, 4))
    (total,) = (op for op in ops_of(graph, "add") if phase_of(graph, op) == "backward")
    assert graph.modules[graph.module[total]] == "stem"


def test_colocation__backward_of_recomputed_forward_keeps_its_module():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Mlp()

        def forward(self, x):
            from torch.utils.checkpoint import checkpoint

            return checkpoint(self.inner, x, use_reentrant=False).sum()

    graph = run_both(Checkpointed(), (torch.randn(5, 6),))
    again = [op for op in ops_of(graph, "gelu") if phase_of(graph, op) == "backward"]
    assert len(again) == 1
    assert all(graph.modules[graph.module[op]] == "inner.act" for op in ops_of(graph, "gelu"))


# ---- the captured graph computes what torch computes


def random_order(graph: ComputationGraph) -> list[int]:
    """A topological order drawn at random."""
    rng = np.random.default_rng(5)
    waiting, order = np.diff(graph.pred_ptr).copy(), []
    ready = [op for op in range(graph.num_ops) if not waiting[op]]
    while ready:
        op = ready.pop(int(rng.integers(len(ready))))
        order.append(op)
        for reader in graph.successors(op).tolist():
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order


@pytest.mark.parametrize("order", [None, random_order])
def test_execute__an_mlp_gives_eager_loss_and_gradients(order):
    run_both(Mlp(), (torch.randn(5, 6),), loss=lambda y: y.square().mean(), order=order)


def test_execute__writes_in_place_are_followed():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            out = torch.zeros(3, *x.shape)
            y = self.layer(x)
            for i in range(3):
                out[i] = y * i
            out[1].add_(y)
            return (out.mul_(2).view(-1) + 1).sum()

    graph = run_both(InPlace(), (torch.randn(2, 4),))
    copies = ops_of(graph, "copy")
    assert len(copies) >= 3
    # each write depends on the one before, so the last reader depends on all
    reached = set(graph.predecessors(ops_of(graph, "sum")[0]).tolist())
    while True:
        more = {int(p) for op in reached for p in graph.predecessors(op)} - reached
        if not more:
            break
        reached |= more
    forward = [op for op in copies if phase_of(graph, op) == "forward"]
    assert set(forward) <= reached


def test_execute__vendor_lstm_is_captured_as_aten_operators():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 5)

        def forward(self, x):
            return self.lstm(x)[0].sum()

    before = torch.backends.mkldnn.enabled
    graph = capture(Net(), torch.randn(3, 2, 4), target="cpu")
    assert torch.backends.mkldnn.enabled == before
    assert len(ops_of(graph, "sigmoid")) == 3 * 3
    assert len(ops_of(graph, "parameter")) == 4


def test_execute__an_edge_too_few_is_noticed():
    module, inputs = Mlp(), (torch.randn(5, 6),)
    trace = trace_step(module, inputs)
    built = build_graph(trace, "test")
    graph = built.graph
    reader = ops_of(graph, "gelu")[0]
    kept = graph.edges[~(graph.edge_dst == reader)]
    from graphopt_gym.graphs.graph import COLUMNS

    broken = ComputationGraph(
        "broken",
        kinds=graph.kinds,
        modules=graph.modules,
        columns={column: getattr(graph, column) for column in COLUMNS},
        edges=kept,
    )
    with pytest.raises(InputError, match="no predecessor"):
        execute(trace, built._replace(graph=broken), module, inputs)


def test_execute__an_order_that_is_not_topological_is_refused():
    module, inputs = Mlp(), (torch.randn(5, 6),)
    trace = trace_step(module, inputs)
    built = build_graph(trace, "test")
    with pytest.raises(InputError, match="not topological"):
        execute(trace, built, module, inputs, order=list(range(built.graph.num_ops))[::-1])


def test_flops__agree_with_flop_counter_on_matmul_and_convolution():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2, groups=1)
            self.transposed = nn.ConvTranspose2d(4, 2, 2)
            self.rows = nn.Conv1d(2, 3, 3, padding=1)
            self.head = nn.Linear(3, 5)

        def forward(self, x):
            y = self.transposed(self.conv(x)).flatten(2)
            y = self.rows(y).transpose(1, 2)
            return torch.einsum("bic,bjc->bij", self.head(y), self.head(y)).sum()

    module, x = Net(), torch.randn(2, 3, 9, 9)
    graph = capture(module, x)
    with FlopCounterMode(display=False) as counter:
        module(x).backward()
    counted = graph.flops[np.isin(graph.op_class, [OP_CLASSES.index("matmul"), OP_CLASSES.index("conv")])].sum()
    assert counted == counter.get_total_flops() > 0


# ---- bad input


def test_capture__refuses_what_is_no_module():
    with pytest.raises(InputError, match="give a torch"):
        capture("model", torch.randn(1))


def test_capture__names_the_nearest_optimizer():
    with pytest.raises(InputError, match="did you mean 'adam'"):
        capture(Mlp(), torch.randn(5, 6), optimizer="adm")


def test_capture__refuses_a_loss_that_is_no_scalar():
    with pytest.raises(InputError, match="scalar"):
        capture(Mlp(), torch.randn(5, 6), loss=lambda y: y)


def test_capture__refuses_shapes_that_depend_on_values():
    class Sparse(nn.Module):
        def forward(self, x):
            return x[x > 0]

    with pytest.raises(InputError, match=r"Sparse \(.*test_capture.py:\d+\) uses aten.index.Tensor.*on tensor values"):
        capture(Sparse(), torch.randn(4, device="meta"), train=False)


def test_capture__says_in_one_line_what_the_module_raises():
    with pytest.raises(InputError, match="one step of Mlp on the example inputs fails: RuntimeError") as caught:
        capture(Mlp(), torch.randn(5, 7))
    assert "\n" not in str(caught.value)


def test_capture__refuses_strange_inputs():
    with pytest.raises(InputError, match="example_inputs is a int"):
        capture(Mlp(), 3)


SPEC_MODULE = """
import torch
from torch import nn
def pair(): return nn.Linear(3, 2), torch.randn(4, 3)
def named(): return {"module": nn.Linear(3, 2), "example_inputs": torch.randn(4, 3), "train": False, "name": "n"}
def wrong(): return 3
def wrong_key(): return {"module": nn.Linear(3, 2), "example_inputs": torch.randn(4, 3), "optimiser": "sgd"}
def lacking(): return {"module": nn.Linear(3, 2)}
def no_module(): return (3, torch.randn(4, 3))
def needs(x): return x
number = 3
"""


@pytest.fixture
def spec_module(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(SPEC_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_models"
    sys.modules.pop("my_models", None)


def test_spec__a_pair_and_a_dict_are_captured(spec_module):
    assert ops_of(capture_from_spec("my_models:pair"), "adam")
    graph = capture_from_spec("my_models:named")
    assert graph.name == "n"
    assert set(graph.phase) == {0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_models", "not of the form"),
        ("my_models:", "not of the form"),
        ("no_such_module:pair", "no Python module 'no_such_module'"),
        ("my_models.deeper:pair", "my_models.deeper"),
        ("my_models:pairs", "did you mean 'pair'"),
        ("my_models:number", "not a function"),
        ("my_models:needs", "without arguments"),
        ("my_models:wrong", "must return"),
        ("my_models:wrong_key", "did you mean 'optimizer'"),
        ("my_models:lacking", "lacks 'example_inputs'"),
        ("my_models:no_module", "torch.nn.Module"),
    ],
)
def test_spec__bad_ones_are_named(spec_module, spec, message):
    with pytest.raises(InputError, match=message) as caught:
        capture_from_spec(spec)
    assert "\n" not in str(caught.value)
