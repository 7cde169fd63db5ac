"""FLOPs of matrix-like operators: by counting the multiplications of small cases, and over all of aten."""

from __future__ import annotations

import re

import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.flops import FORMULAS, causal_pairs

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from graphopt_gym.graphs.aten import describe  # noqa: E402
from graphopt_gym.graphs.capture import CaptureWarning, capture  # noqa: E402
from graphopt_gym.graphs.graph import OP_CLASSES  # noqa: E402

aten = torch.ops.aten
BF16, INT8, FP8 = torch.bfloat16, torch.int8, torch.float8_e4m3fn


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def flops_of(kind: str, function, *inputs) -> int:
    """Of the one op of that kind in what a function runs."""
    graph = capture(Function(function), inputs, train=False)
    (op,) = (op for op in range(graph.num_ops) if graph.kinds[graph.kind[op]] == kind)
    return int(graph.flops[op])


def zeros(*shape: int, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


OFFSETS = torch.tensor([3, 7, 12], dtype=torch.int32)


@pytest.mark.parametrize(
    ("kind", "function", "inputs", "multiplications"),
    [
        ("mv", torch.mv, (zeros(5, 7), zeros(7)), 35),
        ("addmv", torch.addmv, (zeros(5), zeros(5, 7), zeros(7)), 35),
        ("dot", torch.dot, (zeros(7), zeros(7)), 7),
        ("addmm", lambda c, a, b: c.clone().addmm_(a, b), (zeros(5, 6), zeros(5, 7), zeros(7, 6)), 5 * 6 * 7),
        ("addbmm", torch.addbmm, (zeros(5, 6), zeros(3, 5, 7), zeros(3, 7, 6)), 3 * 5 * 6 * 7),
        ("baddbmm", torch.baddbmm, (zeros(3, 5, 6), zeros(3, 5, 7), zeros(3, 7, 6)), 3 * 5 * 6 * 7),
        ("_int_mm", torch._int_mm, (zeros(32, 16, dtype=INT8), zeros(16, 24, dtype=INT8)), 32 * 16 * 24),
        # twelve rows in three groups, each row with its own group's matrix
        (
            "_grouped_mm",
            lambda a, b, o: torch._grouped_mm(a, b, offs=o),
            (zeros(12, 16, dtype=BF16), zeros(3, 16, 24, dtype=BF16), OFFSETS),
            12 * 16 * 24,
        ),
        (  # float32, which torch's own rule of shapes refuses
            "_grouped_mm",
            lambda a, b, o: torch._grouped_mm(a, b, offs=o),
            (zeros(12, 16), zeros(3, 16, 24), OFFSETS),
            12 * 16 * 24,
        ),
        (  # the gradient of the matrices: a product of each group's own rows
            "_grouped_mm",
            lambda a, b, o: torch._grouped_mm(a, b, offs=o),
            (zeros(16, 12, dtype=BF16), zeros(12, 24, dtype=BF16), OFFSETS),
            16 * 12 * 24,
        ),
        (
            "_grouped_mm",
            lambda a, b: torch._grouped_mm(a, b),
            (zeros(3, 8, 16, dtype=BF16), zeros(3, 16, 24, dtype=BF16)),
            3 * 8 * 16 * 24,
        ),
        (
            "_scaled_mm",
            lambda a, b, s: torch._scaled_mm(a, b.t(), s, s, out_dtype=BF16),
            (zeros(32, 16).to(FP8), zeros(48, 16).to(FP8), torch.ones(())),
            32 * 16 * 48,
        ),
        (
            "_weight_int8pack_mm",
            torch._weight_int8pack_mm,
            (zeros(32, 16, dtype=BF16), zeros(24, 16, dtype=INT8), zeros(24, dtype=BF16)),
            32 * 16 * 24,
        ),
        ("_trilinear", F.bilinear, (zeros(5, 3), zeros(5, 4), zeros(2, 3, 4)), 5 * 3 * 4 * 2 * 3 / 2),
        (
            "convolution",
            lambda x, w: F.conv2d(x, w, groups=2),
            (zeros(2, 4, 8, 8), zeros(6, 2, 3, 3)),
            2 * 6 * 6 * 6 * 2 * 9,
        ),
        ("convolution", F.conv_transpose2d, (zeros(2, 4, 8, 8), zeros(4, 6, 3, 3)), 2 * 4 * 64 * 6 * 9),
        ("linalg_inv_ex", torch.linalg.inv, (zeros(2, 6, 6),), 2 * 6**3),
        ("linalg_cholesky_ex", torch.linalg.cholesky, (zeros(6, 6),), 6**3 / 6),
        ("_linalg_solve_ex", torch.linalg.solve, (zeros(6, 6), zeros(6, 2)), (2 * 6**3 / 3 + 2 * 36 * 2) / 2),
        ("linalg_solve_triangular", lambda a, b: torch.linalg.solve_triangular(a, b, upper=True),
         (zeros(6, 6), zeros(6, 2)), 36 * 2 / 2),
        ("_fft_r2c", torch.fft.rfft, (zeros(3, 16),), 2.5 * 3 * 16 * 4 / 2),
        ("_cdist_forward", torch.cdist, (zeros(5, 7), zeros(6, 7)), 3 * 5 * 6 * 7 / 2),
    ],
)  # fmt: skip
def test_flops__of_a_product(kind, function, inputs, multiplications):
    assert flops_of(kind, function, *inputs) == int(2 * multiplications)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (8, 3), (3, 8)])
def test_flops__causal_attention_counts_the_pairs_that_are_looked_at(queries, keys):
    mask = torch.ones(queries, keys, dtype=torch.bool).tril()
    assert causal_pairs(queries, keys) == int(mask.sum())


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("causal", [False, True])
def test_flops__of_attention_forward_and_backward(dtype, causal):
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32, dtype=dtype)

        def forward(self, x):
            q = self.layer(x)
            return F.scaled_dot_product_attention(q, q, q, is_causal=causal)

    graph = capture(Attend(), torch.zeros(2, 3, 16, 32, dtype=dtype))
    ops = [op for op in range(graph.num_ops) if "attention" in graph.kinds[graph.kind[op]]]
    pairs = 16 * 17 // 2 if causal else 16 * 16
    assert graph.flops[ops].tolist() == [2 * 2 * 3 * pairs * 64, 2 * 2 * 3 * pairs * 160]
    assert {OP_CLASSES[graph.op_class[op]] for op in ops} == {"matmul"}


def test_flops__grouped_queries_count_each_head():
    q, kv = zeros(2, 8, 16, 32, dtype=BF16), zeros(2, 2, 16, 32, dtype=BF16)
    found = flops_of(
        "_scaled_dot_product_flash_attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        q, kv, kv,
    )  # fmt: skip
    assert found == 2 * 2 * 8 * 16 * 16 * 64


# Names that look like products, and are none, or whose FLOPs depend on values: sparse and packed operands.
NOT_MODELLED = re.compile(
    r"_sparse_addmm|hspmm|sspaddmm|_sparse_sparse_matmul|sparse_sampled_addmm|_sparse_mm_reduce_impl(_backward)?|"
    r"quantized_(lstm|gru)|_cslt_sparse_mm_search|mkldnn_linear_backward_(input|weights)|"
    r"_addmm_dtype|mkldnn_reorder_conv.*|_fused_sdp_choice|_cudnn_rnn_flatten_weight|_linalg_check_errors"
)
LIKE_A_PRODUCT = re.compile(
    r"mm(_|\d|$)|mv(_|$)|attention|conv(?!ert)|rnn|lstm|gru|matmul|linear(?!1d)|einsum|^v?dot$|linalg|fft_c|fft_r2"
)


def test_flops__every_matrix_like_operator_of_aten_has_a_formula():
    names = {full for full in torch._C._dispatch_get_all_op_names() if full.startswith("aten::")}
    missing, checked = set(), 0
    for full in sorted(names):
        name, _, overload = full.removeprefix("aten::").partition(".")
        if overload.endswith("out") or not LIKE_A_PRODUCT.search(name) or NOT_MODELLED.fullmatch(name):
            continue
        if torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd"):
            continue  # taken apart before it is recorded
        checked += 1
        operator = describe(getattr(getattr(aten, name), overload or "default"))
        counted = operator.formula is not None or OP_CLASSES[operator.op_class] not in ("matmul", "conv", "other")
        if operator.unmodelled or not counted:
            missing.add(name)
    assert checked > 100
    assert missing == set()


def test_flops__formulas_are_of_operators_that_are_there():
    assert [name for name in FORMULAS if not hasattr(aten, name)] == []


# ---- what has no formula


@pytest.fixture
def fancy():
    """An operator of one's own, without FLOPs."""
    with torch.library._scoped_library("graphopt_test", "FRAGMENT") as library:
        library.define("fancy(Tensor x) -> Tensor")
        library.impl("fancy", torch.clone, "CompositeExplicitAutograd")
        library._register_fake("fancy", torch.empty_like)
        yield torch.ops.graphopt_test.fancy


def test_unmodelled__operators_are_named_and_counted(fancy):
    with pytest.warns(CaptureWarning, match="2 ops have no formula.*graphopt_test.fancy ×2"):
        graph = capture(Function(lambda x: fancy(fancy(x)).exp()), torch.zeros(3, 4), train=False)
    assert graph.metadata["unmodelled_ops"] == {"graphopt_test.fancy": 2}
    op = graph.kinds.index("fancy")
    assert set(graph.flops[graph.kind == op]) == {12}


def test_unmodelled__not_where_a_formula_is_registered(fancy):
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    register_flop_formula(fancy)(lambda x_shape, *_, out_shape=None, **__: 1000 * x_shape[0])
    try:
        graph = capture(Function(lambda x: fancy(x)), torch.zeros(3, 4), train=False)
    finally:
        del flop_registry[fancy]
    assert "unmodelled_ops" not in graph.metadata
    assert graph.flops.sum() == 3000


def test_unmodelled__an_operator_without_a_rule_of_shapes_is_refused_by_name():
    with torch.library._scoped_library("graphopt_test", "FRAGMENT") as library:
        library.define("shapeless(Tensor x) -> Tensor")
        library.impl("shapeless", torch.clone, "CUDA")
        with pytest.raises(InputError, match=r"graphopt_test.shapeless.default, for whose result torch has no rule"):
            capture(Function(lambda x: torch.ops.graphopt_test.shapeless(x)), torch.zeros(3, 4), train=False)
