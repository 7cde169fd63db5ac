"""Capture as the target device would run it: fake CUDA tensors, autocast, checkpoints, values, one clear line."""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, ComputationGraph

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from graphopt_gym.graphs.capture import CaptureWarning, capture, trace_step  # noqa: E402


class Calls(nn.Module):
    """A module whose forward pass is a function of its children and inputs."""

    def __init__(self, function, *children: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(children)

    def forward(self, *inputs):
        return self.function(*self.parts, *inputs)


def ops_of(graph: ComputationGraph, kind: str) -> list[int]:
    return [op for op in range(graph.num_ops) if graph.kinds[graph.kind[op]] == kind]


def kinds_of(graph: ComputationGraph) -> Counter[str]:
    return Counter(graph.kinds[kind] for kind in graph.kind)


def types_of(graph: ComputationGraph, kind: str) -> set[str]:
    from graphopt_gym.graphs.graph import DTYPES

    return {DTYPES[graph.dtype[op]] for op in ops_of(graph, kind)}


# ---- the target


def test_target__a_gpu_runs_one_kernel_where_a_cpu_runs_several():
    def attend(layer, x):
        return F.scaled_dot_product_attention(layer(x), layer(x), layer(x), dropout_p=0.1)

    module, x = Calls(attend, nn.Linear(32, 32)), torch.randn(2, 4, 16, 32)
    gpu, cpu = (kinds_of(capture(module, x, target=target)) for target in ("gpu", "cpu"))
    assert gpu["_scaled_dot_product_efficient_attention"] == 1
    assert gpu["_scaled_dot_product_efficient_attention_backward"] == 1
    assert not gpu["bmm"]
    assert cpu["bmm"] == 6
    assert capture(module, x).metadata["target"] == "gpu"


@pytest.mark.parametrize(
    ("dtype", "arguments", "shape", "kernel"),
    [
        ("float32", {}, (2, 4, 16, 32), "_scaled_dot_product_efficient_attention"),
        ("bfloat16", {}, (2, 4, 16, 32), "_scaled_dot_product_flash_attention"),
        ("float16", {"is_causal": True}, (2, 4, 16, 32), "_scaled_dot_product_flash_attention"),
        ("bfloat16", {"attn_mask": True}, (2, 4, 16, 32), "_scaled_dot_product_efficient_attention"),
        ("bfloat16", {}, (2, 4, 16, 36), "_scaled_dot_product_flash_attention"),  # padded to 40
        ("float32", {}, (2, 4, 16, 30), "bmm"),  # not aligned
        ("bfloat16", {}, (2, 4, 16, 264), "_scaled_dot_product_efficient_attention"),
        ("float64", {}, (2, 4, 16, 32), "bmm"),
    ],
)
def test_target__attention_kernel_by_type_mask_and_head_size(dtype, arguments, shape, kernel):
    arguments = dict(arguments)
    if "attn_mask" in arguments:
        arguments["attn_mask"] = torch.ones(16, 16).tril().bool()
    q = torch.zeros(shape, dtype=getattr(torch, dtype))
    found = kinds_of(capture(Calls(lambda q: F.scaled_dot_product_attention(q, q, q, **arguments)), q, train=False))
    fused = {kind for kind in found if "attention" in kind} or {"bmm"} & set(found)
    assert fused == {kernel}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = kinds_of(capture(Calls(lambda q: F.scaled_dot_product_attention(q, q, q)), q, train=False))
    assert found["bmm"] == 2


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)], ids=["lstm", "gru", "rnn"])
def test_target__a_recurrent_layer_is_one_kernel_with_its_flops(layer, gates):
    module = Calls(lambda rnn, x: rnn(x)[0], layer(16, 32, 2, bidirectional=True, batch_first=True))
    graph = capture(module, torch.randn(4, 7, 16))
    (forward,), (backward,) = ops_of(graph, "_cudnn_rnn"), ops_of(graph, "_cudnn_rnn_backward")
    # first layer: 16 inputs, second: both directions' 32; each with 32 recurrent ones, for both directions
    flops = 2 * (4 * 7) * 2 * gates * 32 * ((16 + 32) + (64 + 32))
    assert graph.flops[forward] == flops
    assert graph.flops[backward] == 2 * flops
    assert OP_CLASSES[graph.op_class[forward]] == "matmul"
    assert graph.shape(forward) == (4, 7, 64)
    assert len(ops_of(graph, "adam")) == len(list(module.parameters()))


def test_target__recurrent_cells_are_products_and_a_fused_kernel():
    lstm = kinds_of(capture(Calls(lambda cell, x: cell(x)[0], nn.LSTMCell(8, 16)), torch.randn(4, 8)))
    gru = kinds_of(capture(nn.GRUCell(8, 16), torch.randn(4, 8)))
    assert (lstm["_thnn_fused_lstm_cell"], lstm["_thnn_fused_lstm_cell_backward_impl"]) == (1, 1)
    assert (gru["_thnn_fused_gru_cell"], gru["_thnn_fused_gru_cell_backward"]) == (1, 1)
    assert lstm["mm"] == 4  # the input is a leaf without gradient: two forward products, two of weights


def test_target__decomposed_only_for_want_of_a_kernel_is_one_op():
    graph = capture(nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.RMSNorm(8), nn.Mish()), torch.randn(4, 8))
    assert {"silu_backward", "mish_backward", "_fused_rms_norm", "_fused_rms_norm_backward"} <= set(graph.kinds)
    assert "unmodelled_ops" not in graph.metadata


def test_target__tensors_made_anywhere_in_the_model_lie_on_the_gpu():
    constant = torch.randn(8)

    def forward(layer, x):
        assert x.is_cuda
        assert x.device == torch.device("cuda:0")
        y = layer(x)[torch.arange(2)] * torch.ones(8).to(x.device) + constant + torch.tensor(2.0)
        assert y.cpu().cuda().to("cuda") is not None
        return y.to(x.device, torch.float32) + torch.zeros(8, device=x.device) + torch.tensor([1.0] * 8).cuda()

    graph = capture(Calls(forward, nn.Linear(8, 8)), torch.randn(4, 8))
    assert not ops_of(graph, "_to_copy")
    assert len(ops_of(graph, "adam")) == 2


def test_target__leaves_torch_and_the_module_as_they_were():
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    before = (F.scaled_dot_product_attention, torch.get_rng_state, torch.random.fork_rng, torch.autograd.backward)
    weight, modes = module[0].weight, (torch.backends.cudnn.enabled, torch.is_grad_enabled())
    capture(module, torch.randn(4, 8))
    after = (F.scaled_dot_product_attention, torch.get_rng_state, torch.random.fork_rng, torch.autograd.backward)
    assert before == after
    assert module[0].weight is weight
    assert (torch.backends.cudnn.enabled, torch.is_grad_enabled()) == modes
    assert not torch.cuda.is_available() or torch.backends.cuda.is_built()
    module(torch.randn(4, 8)).sum().backward()  # real tensors still work
    assert weight.grad is not None


def test_target__what_a_forward_pass_stores_in_a_module_is_taken_out_again():
    class Caches(nn.Linear):
        cache = None

        def forward(self, x):
            self.cache = super().forward(x)
            return self.cache

    module = Caches(4, 4)
    capture(module, torch.randn(2, 4))
    assert module.cache is None


def test_target__an_unknown_one_is_named():
    with pytest.raises(InputError, match="unknown target 'tpu'"):
        capture(nn.Linear(2, 2), torch.randn(1, 2), target="tpu")


# ---- autocast


@pytest.mark.parametrize("target", ["gpu", "cpu"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast__of_any_device_type_casts_for_the_target(target, device, dtype):
    def forward(linear, norm, x):
        with torch.autocast(device, getattr(torch, dtype)):
            return norm(linear(x)).softmax(-1)

    graph = capture(Calls(forward, nn.Linear(8, 8), nn.LayerNorm(8)), torch.randn(4, 8), target=target)
    assert types_of(graph, "addmm") == types_of(graph, "mm") == {dtype}
    assert types_of(graph, "native_layer_norm") == {"float32" if target == "gpu" else dtype}  # CUDA's list has it
    assert types_of(graph, "adam") == {"float32"}
    if target == "gpu":
        assert graph.bytes_read[ops_of(graph, "addmm")[0]] == 2 * (4 * 8 + 8 * 8 + 8)


def test_autocast__around_the_capture_holds_for_the_forward_pass():
    with torch.autocast("cpu", torch.bfloat16):
        graph = capture(nn.Linear(8, 8), torch.randn(4, 8))
    assert types_of(graph, "addmm") == {"bfloat16"}
    assert not torch.is_autocast_enabled("cuda")


def test_autocast__attention_and_recurrent_kernels_take_its_type():
    def forward(rnn, x):
        with torch.autocast("cuda", torch.bfloat16):
            y = rnn(x)[0].view(4, 2, 8, 8)
            return F.scaled_dot_product_attention(y, y, y)

    graph = capture(Calls(forward, nn.LSTM(8, 16, batch_first=True)), torch.randn(4, 8, 8))
    assert types_of(graph, "_cudnn_rnn") == types_of(graph, "_scaled_dot_product_flash_attention") == {"bfloat16"}


def test_autocast__that_torch_turned_off_for_want_of_cuda_is_told():
    if torch.cuda.is_available():
        pytest.skip("torch has CUDA here, and turns no autocast off")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        early = torch.autocast("cuda", torch.bfloat16)
    with pytest.warns(CaptureWarning, match="made before the capture was off"):
        graph = capture(Calls(early(lambda layer, x: layer(x)), nn.Linear(4, 4)), torch.randn(2, 4))
    assert graph.metadata["autocast_off"]


def test_autocast__as_a_decorator_of_a_model_that_a_spec_imports(tmp_path, monkeypatch):
    from graphopt_gym.graphs.capture import capture_from_spec

    (tmp_path / "decorated_model.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    @torch.autocast('cuda', torch.bfloat16)\n"
        "    def forward(self, x):\n"
        "        return super().forward(x)\n"
        "def step():\n"
        "    return Net(8, 8), torch.zeros(4, 8)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "decorated_model", raising=False)
    assert types_of(capture_from_spec("decorated_model:step"), "addmm") == {"bfloat16"}


# ---- activation checkpoints


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.GELU(), nn.Linear(8, 8))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpoint__recomputes_in_the_backward_pass_and_holds_weights_once(reentrant, device, autocast):
    def forward(first, one, two, x):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            y = checkpoint(one, first(x), use_reentrant=reentrant)
            return checkpoint(two, y, use_reentrant=reentrant)

    def plain(first, one, two, x):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            return two(one(first(x)))

    with torch.device(device):
        module, reference = (Calls(f, nn.Linear(8, 8), block(), block()) for f in (forward, plain))
    graph, other = capture(module, torch.randn(4, 8)), capture(reference, torch.randn(4, 8))
    assert graph.param_bytes.sum() == other.param_bytes.sum() == sum(4 * p.numel() for p in module.parameters())
    assert not ops_of(graph, "constant")
    again = [op for op in ops_of(graph, "gelu") if PHASES[graph.phase[op]] == "backward"]
    assert len(again) == 2
    assert len(ops_of(graph, "gelu")) == 4
    assert len(ops_of(graph, "adam")) == len(ops_of(other, "adam")) == 10
    assert types_of(graph, "addmm") == {"bfloat16" if autocast else "float32"}
    # what is recomputed, and its derivative, belong where the forward pass ran
    groups = {int(graph.colocation[op]) for op in ops_of(graph, "gelu")}
    assert len(groups) == 2
    assert {int(graph.colocation[op]) for op in ops_of(graph, "gelu_backward")} == groups


def test_checkpoint__gradients_of_a_weight_inside_and_outside_are_both_there():
    def forward(layer, x):
        return checkpoint(layer, layer(x), use_reentrant=True)

    graph = capture(Calls(forward, nn.Linear(8, 8, bias=False)), torch.randn(4, 8))
    (update,) = ops_of(graph, "adam")
    sums = [op for op in ops_of(graph, "add") if PHASES[graph.phase[op]] == "backward"]
    assert len(sums) == 1
    assert graph.shape(sums[0]) == (8, 8)
    assert len(graph.predecessors(update)) == 2


# ---- values


def lengths_model(embed, rnn, tokens, lengths):
    packed = pack_padded_sequence(embed(tokens), lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(rnn(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_values__packed_sequences_have_the_lengths_that_are_given(target):
    module = Calls(lengths_model, nn.Embedding(10, 8), nn.LSTM(8, 16, batch_first=True))
    inputs = (torch.zeros(3, 6, dtype=torch.long), torch.tensor([2, 5, 3]))
    graph = capture(module, inputs, target=target)
    (pack,) = ops_of(graph, "_pack_padded_sequence")
    assert graph.shape(pack) == (10, 8)
    if target == "gpu":
        (rnn,) = ops_of(graph, "_cudnn_rnn")
        assert graph.flops[rnn] == 2 * 10 * 4 * 16 * (8 + 16)
    shapes = {graph.shape(op) for op in ops_of(graph, "transpose")}
    assert (3, 5, 16) in shapes  # padded to the longest again


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda layer, x, m: layer(x)[m], (3, 8)),
        (lambda layer, x, m: layer(x)[m.nonzero().squeeze(-1)], (3, 8)),
        (lambda layer, x, m: layer(x).masked_select(m[:, None]), (24,)),
        (lambda layer, x, m: layer(x)[: int(m.sum())], (3, 8)),
        (lambda layer, x, m: layer(x).repeat_interleave(m.long() + 1, dim=0), (7, 8)),
        (lambda layer, x, m: layer(x)[m.tolist()], (3, 8)),
        (lambda layer, x, m: layer(x)[: len(torch.unique(m))], (2, 8)),
        (lambda layer, x, m: layer(x)[: 1 if m.all() else 2], (2, 8)),
    ],
)
def test_values__masks_and_counts_that_are_given_are_used(function, shape):
    def forward(layer, x, mask):
        return function(layer, x, mask).exp()

    mask = torch.tensor([True, False, True, True])
    graph = capture(Calls(forward, nn.Linear(8, 8)), (torch.randn(4, 8), mask))
    assert graph.shape(ops_of(graph, "exp")[0]) == shape
    assert len(ops_of(graph, "adam")) == 2
    assert mask.tolist() == [True, False, True, True]


def test_values__of_single_random_numbers_are_drawn_alike_in_each_capture():
    """Layers that are dropped at random: on meta too, and without a trace in torch's generator."""

    def forward(layers, x):
        for layer in layers:
            if torch.rand([]) < 0.5:
                x = layer(x)
        return x

    with torch.device("meta"):
        module = Calls(forward, nn.ModuleList(nn.Linear(4, 4) for _ in range(8)))
    before = torch.get_rng_state()
    with pytest.warns(CaptureWarning, match="of 16 trainable parameters get no gradient"):
        one, two = (capture(module, torch.empty(2, 4, device="meta")) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert 0 < len(ops_of(one, "addmm")) < 8
    assert torch.equal(before, torch.get_rng_state())


def test_values__of_parameters_are_computed_where_they_decide():
    layer = nn.Linear(8, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(0.0)

    def forward(layer, x):
        scores = layer(x).squeeze(-1)
        return x[scores > 0] * scores[scores > 0][:, None]

    x = torch.tensor([[1.0] * 8, [-1.0] * 8, [2.0] * 8])
    graph = capture(Calls(forward, layer), x)
    assert graph.shape(ops_of(graph, "mul")[0]) == (2, 8)


def test_values__go_through_fused_kernels_in_their_layout():
    """Attention of a GPU has another layout than a CPU's, which a view relies on; then a value decides."""

    def forward(layer, x):
        q = layer(x).view(2, 5, 4, 8).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).view(10, 32)
        return y[y.isfinite().all(-1)].exp()

    graph = capture(Calls(forward, nn.Linear(32, 32)), torch.randn(2, 5, 32))
    assert graph.shape(ops_of(graph, "exp")[0]) == (10, 32)


def test_values__that_are_not_known_are_named_with_the_users_line():
    def forward(layer, x, mask):
        return layer(x)[mask]  # the line

    line = forward.__code__.co_firstlineno + 1
    inputs = (torch.randn(4, 8), torch.ones(4, dtype=torch.bool, device="meta"))
    with pytest.raises(InputError, match=rf"test_dispatch.py:{line}\) uses aten.index.Tensor.*on meta") as caught:
        capture(Calls(forward, nn.Linear(8, 8)), inputs)
    assert "\n" not in str(caught.value)


def test_values__a_large_model_is_not_run_for_them(monkeypatch):
    from graphopt_gym.graphs import capture as module

    monkeypatch.setattr(module, "VALUES_LIMIT_BYTES", 100)
    with pytest.raises(InputError, match="would take running the step"):
        capture(Calls(lambda layer, x: x[layer(x)[:, 0] > 0], nn.Linear(8, 8)), torch.randn(4, 8))


# ---- what else a model may do


def test_step__inference_mode_gives_the_operators_of_inference():
    layers = (nn.Linear(4, 4), nn.Conv1d(4, 4, 1))

    def forward(linear, conv, x):
        return conv(linear(x)[..., None])

    plain = capture(Calls(forward, *layers), torch.randn(2, 4), train=False)
    within = capture(Calls(torch.inference_mode()(forward), *layers), torch.randn(2, 4), train=False)
    with torch.inference_mode():
        around = capture(Calls(forward, *layers), torch.randn(2, 4), train=False)
    assert plain.fingerprint == within.fingerprint == around.fingerprint
    assert "addmm" in plain.kinds
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()  # as it was


def test_step__a_module_may_be_cast_in_its_forward_pass():
    def forward(layer, x):
        return layer.to(torch.bfloat16).to(x.device)(x.bfloat16())

    module = Calls(forward, nn.Linear(4, 4))
    graph = capture(module, torch.randn(2, 4))
    assert types_of(graph, "addmm") == {"bfloat16"}
    assert types_of(graph, "adam") == {"float32"}
    assert module.parts[0].weight.dtype == torch.float32


def test_step__an_operator_without_a_result_is_captured():
    def forward(layer, x):
        torch._assert_async(x.sum() == x.sum())
        return layer(x)

    assert len(ops_of(capture(Calls(forward, nn.Linear(4, 4)), torch.randn(2, 4)), "adam")) == 2


def test_step__an_embedding_bag_reads_the_rows_that_are_asked_for():
    graph = capture(nn.EmbeddingBag(10**6, 8), torch.zeros(4, 5, dtype=torch.long), train=False)
    (bag,) = ops_of(graph, "_embedding_bag_forward_only")
    assert OP_CLASSES[graph.op_class[bag]] == "gather"
    assert graph.bytes_read[bag] == 20 * 8 * 4 + 20 * 8 + 4 * 8  # rows, indices, offsets
    assert graph.flops[bag] == 20 * 8


def test_step__parameters_without_gradient_are_told():
    module = Calls(lambda one, two, x: (one(x), two(x)), nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.warns(CaptureWarning, match=r"2 of 4 trainable parameters get no gradient.*parts.1.weight"):
        graph = capture(module, torch.randn(2, 4))
    assert graph.metadata["parameters_without_gradient"] == {
        "count": 2,
        "of": 4,
        "names": ["parts.1.weight", "parts.1.bias"],
    }
    assert graph.param_bytes.sum() == 2 * (16 + 4) * 4
    module.parts[1].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "parameters_without_gradient" not in capture(module, torch.randn(2, 4)).metadata


def test_step__backward_in_the_forward_pass_is_refused_with_its_line():
    def forward(layer, x):
        layer(x).sum().backward()
        return layer(x)

    line = forward.__code__.co_firstlineno + 1
    with pytest.raises(InputError, match=rf"test_dispatch.py:{line}\) calls backward\(\) in the forward pass"):
        capture(Calls(forward, nn.Linear(4, 4)), torch.randn(2, 4))


def test_step__gradients_within_the_forward_pass_are_captured():
    def penalty(net, x):
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return grad.square().sum()

    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    with pytest.warns(CaptureWarning, match="parts.0.2.bias"):  # which no gradient depends on
        graph = capture(Calls(penalty, net), torch.randn(2, 4))
    assert len(ops_of(graph, "tanh_backward")) >= 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_step__wrappers_are_taken_off_and_scripts_refused():
    plain = capture(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    for wrapped in (nn.DataParallel, torch.compile):
        graph = capture(wrapped(nn.Sequential(nn.Linear(4, 4))), torch.randn(2, 4))
        assert graph.fingerprint == plain.fingerprint
        assert graph.metadata["stages"] == plain.metadata["stages"]
    inner = Calls(lambda net, x: net(x), torch.compile(nn.Sequential(nn.Linear(4, 4))))
    assert kinds_of(capture(inner, torch.randn(2, 4))) == kinds_of(plain)
    with pytest.raises(InputError, match="module is a ScriptModule"):
        capture(torch.jit.script(nn.Linear(4, 4)), torch.randn(2, 4))
    with pytest.raises(InputError, match=r"module 'parts.0' is a ScriptModule"):
        capture(Calls(lambda net, x: net(x), torch.jit.script(nn.Linear(4, 4))), torch.randn(2, 4))


def test_step__a_lazy_module_is_named():
    with pytest.raises(InputError, match=r"weight has no shape yet \(a lazy module\)"):
        capture(nn.LazyLinear(4), torch.randn(2, 4))


def test_step__an_error_names_the_line_and_the_module():
    def forward(layer, x):
        return layer(x[:, :3])

    with pytest.raises(InputError, match=r"RuntimeError: .*\(in parts.0 \(.*test_dispatch.py:\d+\)\)"):
        capture(Calls(forward, nn.Linear(4, 4)), torch.randn(2, 4))


def test_trace__says_what_it_was_traced_for():
    trace = trace_step(nn.Linear(4, 4), torch.randn(2, 4), target="cpu")
    assert trace.target == "cpu"
    assert "target" not in capture(nn.Linear(4, 4), torch.randn(2, 4), target="cpu").metadata
    assert capture(nn.Linear(4, 4), torch.randn(2, 4)).metadata["target"] == "gpu"
