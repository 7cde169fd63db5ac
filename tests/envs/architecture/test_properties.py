from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphopt_gym.envs.architecture import properties
from graphopt_gym.envs.architecture.ops import OPS, PRIMITIVES
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder
from graphopt_gym.envs.architecture.properties import (
    Requirement,
    append_depth,
    compose,
    identity,
    infer,
    join,
    join_depth,
    mixing_of_text,
    mixing_text,
    op_mixing,
    shape_distance,
)
from graphopt_gym.envs.architecture.seeds import load_seed
from graphopt_gym.errors import InputError
from tests.envs.architecture.cases import CASES, IMAGE, one_op, random_architecture

X, O, M, A = range(4)  # noqa: E741


def matrices(rows=4, columns=4):
    return arrays.arrays(np.uint8, (rows, columns), elements=st.integers(0, 3))


def chain(*ops, image=IMAGE):
    b = ArchitectureBuilder()
    x = b.input("image", image)
    for kind, params in ops:
        x = b.op(kind, x, **params)
    return b.finish()


# -- the semiring and the lattice --------------------------------------------------------------------------------------


def plain_compose(outer, inner):
    """The product, an entry at a time."""
    out = np.zeros((outer.shape[0], inner.shape[1]), np.uint8)
    for i in range(outer.shape[0]):
        for j in range(inner.shape[1]):
            for k in range(outer.shape[1]):
                y, z = int(outer[i, k]), int(inner[k, j])
                out[i, j] = max(out[i, j], 0 if y == 0 or z == 0 else max(y, z))
    return out


@given(matrices(3, 4), matrices(4, 2))
def test_compose__is_the_product_of_the_semiring(outer, inner):
    assert np.array_equal(compose(outer, inner), plain_compose(outer, inner))


@given(matrices(), matrices(), matrices())
def test_compose__laws_of_a_semiring(a, b, c):
    one, zero = identity(3), np.zeros((4, 4), np.uint8)
    assert np.array_equal(compose(a, compose(b, c)), compose(compose(a, b), c))
    assert np.array_equal(compose(a, join(b, c)), join(compose(a, b), compose(a, c)))
    assert np.array_equal(compose(join(a, b), c), join(compose(a, c), compose(b, c)))
    assert np.array_equal(compose(one, a), a)
    assert np.array_equal(compose(a, one), a)
    assert not compose(zero, a).any()
    assert not compose(a, zero).any()
    assert np.array_equal(join(a, zero), a)


@given(matrices(), matrices(), matrices())
def test_lattice__join_is_the_least_upper_bound_and_compose_is_monotone(a, b, c):
    both = join(a, b)
    assert (both >= a).all()
    assert (both >= b).all()
    assert not ((c >= a) & (c >= b) & ~(c >= both)).any()
    assert np.array_equal(join(a, a), a)
    assert np.array_equal(join(a, b), join(b, a))
    assert np.array_equal(join(a, join(b, c)), join(join(a, b), c))
    assert (compose(c, both) >= compose(c, a)).all()
    assert (compose(both, c) >= compose(a, c)).all()


depths = st.tuples(st.integers(0, 9), st.integers(0, 9))
segments = st.sampled_from(["linear", "nonlinear", "neither"])


@given(depths, depths, segments)
def test_depth__monotone_and_over_paths(one, other, segment):
    assert max(append_depth(one, segment)) >= max(one)
    assert append_depth(join_depth(one, other), segment) == join_depth(
        append_depth(one, segment), append_depth(other, segment)
    )


@given(st.lists(segments, max_size=12))
def test_depth__counts_alternating_segments(path):
    counted = [segment for segment in path if segment != "neither"]
    runs = sum(i == 0 or counted[i] != counted[i - 1] for i in range(len(counted)))
    depth = properties.NO_OP
    for segment in path:
        depth = append_depth(depth, segment)
    assert max(0, *depth) == runs


# -- one op ------------------------------------------------------------------------------------------------------------


def channels_last(matrix):
    """Ours is (batch, channels, height, width), the paper's (batch, height, width, channels)."""
    return matrix[np.ix_([0, 2, 3, 1], [0, 2, 3, 1])]


def test_mixing__of_a_convolution_is_the_papers():
    found = infer(chain(("conv", {"features": 16, "kernel": 3}))).mixing[0]
    assert mixing_text(channels_last(found)) == "oxxa xmxa xxma xxxa"
    found = infer(chain(("dense", {"features": 16}))).mixing[0]
    assert mixing_text(channels_last(found)) == "oxxa xoxa xxoa xxxa"


def test_trap__all_of_what_is_unpaired_is_unpaired():
    assert compose(np.array([[A]], np.uint8), np.array([[X]], np.uint8)) == X
    assert compose(np.array([[X]], np.uint8), np.array([[A]], np.uint8)) == X
    # (batch, channels) after the mean over the image: a dense layer sees all channels, no channel of another sample
    found = infer(chain(("mean", {"axes": (1, 2)}), ("dense", {"features": 3}))).mixing[0]
    assert mixing_text(found) == "oaaa xaaa"


def test_trap__kernels_do_not_collide_in_a_cache():
    for _ in range(2):
        one = infer(chain(("conv", {"features": 8, "kernel": 1}))).mixing[0]
        three = infer(chain(("conv", {"features": 8, "kernel": 3}))).mixing[0]
        assert one[2, 2] == O
        assert three[2, 2] == M
        grouped = infer(chain(("conv", {"features": 8, "kernel": 1, "groups": 8}))).mixing[0]
        assert grouped[1, 1] == O
        softmax = [infer(chain(("softmax", {"axis": axis}))).mixing[0] for axis in (0, 1, 2)]
        assert [[int(m[i + 1, i + 1]) for i in range(3)] for m in softmax] == [[A, O, O], [O, A, O], [O, O, A]]


@pytest.mark.parametrize(("kind", "params", "shapes"), CASES)
def test_mixing__the_stated_table_is_the_measured_one(kind, params, shapes):
    pytest.importorskip("torch")
    from graphopt_gym.envs.architecture.measure import UNKNOWN, measure_mixing

    one = one_op(kind, params, shapes)
    draws = 200 if kind == "max_pool" else 6
    measured = measure_mixing(one, draws=draws, points=8 if kind == "concat" else 3)
    for stated, found in zip(infer(one).mixing, measured, strict=True):
        assert stated.shape == found.shape
        known = found != UNKNOWN
        assert np.array_equal(stated[known], found[known]), mixing_text(stated)
        assert known.sum() >= 4


def window_table(size, kernel, stride, padding, dilation):
    """What windows along one dimension see, a position at a time."""
    places = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    seen = [{p * stride - padding + t * dilation for t in range(kernel)} & set(range(size)) for p in range(places)]
    if size > 1 and all(len(s) == size for s in seen):
        return A
    return M if max(map(len, seen)) > 1 else O


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 4), st.integers(0, 5), st.integers(1, 3))
def test_windows__are_classified_as_by_counting(size, kernel, stride, padding, dilation):
    if size + 2 * padding < dilation * (kernel - 1) + 1 or padding > dilation * (kernel - 1):
        return
    b = ArchitectureBuilder()
    x = b.input("image", (2, size, 20))
    b.op("conv", x, features=2, kernel=(kernel, 1), stride=(stride, 1), padding=(padding, 0), dilation=(dilation, 1))
    dilation = 1 if kernel == 1 else dilation
    assert infer(b.finish()).mixing[0][2, 2] == window_table(size, kernel, stride, padding, dilation)


@st.composite
def reshapes(draw):
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5))

    def grouped(order):
        sizes, current = [], 1
        for factor in order:
            current *= factor
            if draw(st.booleans()):
                sizes.append(current)
                current = 1
        return (*sizes, current)

    return grouped(factors)[:6], grouped(draw(st.permutations(factors)))[:6]


@settings(max_examples=300, deadline=None)
@given(reshapes())
def test_reshape__pairs_what_changes_together(shapes):
    x, shape = shapes
    if math.prod(x) != math.prod(shape):
        return
    (table,) = op_mixing("reshape", (shape,), (x,), shape)
    index = np.stack(np.unravel_index(np.arange(math.prod(x)), x), -1).reshape(*shape, len(x))
    for i in range(len(shape)):
        for j in range(len(x)):
            if x[j] > 1:
                changes = (np.diff(index[..., j], axis=i) != 0).any()
                assert table[i + 1, j + 1] == (O if changes else X), (x, shape, i, j)


# -- networks ----------------------------------------------------------------------------------------------------------


def test_monotone__a_primitive_that_keeps_the_rank_lowers_neither_mixing_nor_depth():
    for kind, params, shapes in CASES:
        if kind not in PRIMITIVES:
            continue
        (table,) = infer(one_op(kind, params, shapes)).mixing
        assert (table >= identity(len(shapes[0]))).all(), kind


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([c for c in CASES if c[0] in PRIMITIVES and c[2] == [IMAGE]]), max_size=6))
def test_monotone__along_a_chain(cases):
    b = ArchitectureBuilder()
    b.input("image", IMAGE)
    before = None
    for kind, params, _ in cases:
        try:
            b.op(kind, len(b.ops) - 1, **params)
        except InputError:
            continue
        now = infer(Architecture("chain", b.ops))
        if before is not None:
            assert (now.mixing[0] >= before.mixing[0]).all()
            assert now.depth[0] >= before.depth[0]
        before = now


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([c for c in CASES if c[0] in PRIMITIVES and c[2] == [IMAGE]]), max_size=6), st.data())
def test_infer__of_two_parts_composes(cases, data):
    ops = []
    for kind, params, _ in cases:
        try:
            chain(*ops, (kind, params))
        except InputError:
            continue
        ops.append((kind, params))
    if len(ops) < 2:
        return
    cut = data.draw(st.integers(1, len(ops) - 1))
    first = chain(*ops[:cut])
    second = chain(*ops[cut:], image=first.ops[-1].shape)
    whole = infer(chain(*ops))
    assert np.array_equal(whole.mixing[0], compose(infer(second).mixing[0], infer(first).mixing[0]))
    assert whole.shape == infer(second).shape
    parts = infer(first).depth[0] + infer(second).depth[0]
    assert parts - 1 <= whole.depth[0] <= parts


def test_infer__the_skip_path_and_the_other_add_up():
    b = ArchitectureBuilder()
    x = b.input("image", IMAGE)
    y = b.op("relu", b.op("conv", x, features=8, kernel=3))
    y = b.op("conv", y, features=8, kernel=3)
    found = infer(b.finish(b.op("add", y, x)))
    assert mixing_text(channels_last(found.mixing[0])) == "oxxa xmxa xxma xxxa"
    assert found.depth == (3,)  # conv, relu, conv and add
    assert infer(chain(("relu", {}), ("reshape", {"shape": (-1,)}), ("gelu", {}))).depth == (1,)


def test_infer__two_inputs_and_one_that_is_not_read():
    b = ArchitectureBuilder()
    x, y = b.input("x", (4, 6)), b.input("y", (6, 3))
    b.input("z", (5,))
    found = infer(b.finish(b.op("relu", b.op("matmul", x, y))))
    assert [mixing_text(m) for m in found.mixing] == ["oxa xoa xxa", "oax xax xao", "xx xx xx"]
    assert found.depth == (2, 2, 0)


def test_infer__is_a_lower_bound_of_what_is_measured():
    pytest.importorskip("torch")
    from graphopt_gym.envs.architecture.measure import UNKNOWN, measure_mixing

    def leaves_out(architecture, index):
        """Whether positions of what an op reads reach nothing."""
        op = architecture.ops[index]
        if op.kind in ("conv", "avg_pool", "max_pool"):
            size, kernel, stride = architecture.operand_shapes(index)[0][1:], op.param("kernel"), op.param("stride")
            return any(s > k or n % s for n, k, s in zip(size, kernel, stride, strict=True))
        return op.kind == "slice"

    checked = 0
    for seed in range(40):
        architecture = random_architecture(seed, ops=6, image=(8, 6, 6))
        if any(leaves_out(architecture, index) for index in range(1, len(architecture))):
            continue
        stated = infer(architecture).mixing[0]
        (found,) = measure_mixing(architecture, draws=20)
        known = found != UNKNOWN
        assert (stated[known] <= found[known]).all(), architecture.text()
        checked += int(known.sum())
    assert checked > 100


def test_seeds__depth_and_mixing():
    resnet = infer(load_seed("resnet34"))
    assert resnet.depth == (67,)  # 33 convolutions and as many ReLUs, alternating, and the head
    assert resnet.shape == (1000,)
    assert mixing_text(resnet.mixing[0]) == "oaaa xaaa"
    assert mixing_text(infer(load_seed("vit_8")).mixing[0])[0] == "o"


# -- requirements ------------------------------------------------------------------------------------------------------


def test_requirement__distance_is_0_exactly_where_all_is_satisfied():
    block = chain(("conv", {"features": 8, "kernel": 3}), ("batch_norm", {}), ("relu", {}))
    asked = Requirement.of(infer(block))
    assert asked.distance(infer(block)) == 0
    weaker = infer(chain(("conv", {"features": 8, "kernel": 1}), ("relu", {})))
    assert asked.mixing_distance(weaker) == 2  # height and width
    assert asked.distance(weaker) == 2
    assert asked.distance(infer(chain(("conv", {"features": 8, "kernel": 3})))) == 1  # no ReLU
    assert asked.only("mixing", "shape").distance(infer(chain(("conv", {"features": 8, "kernel": 3})))) == 0
    assert asked.distance(infer(chain(("conv", {"features": 4, "kernel": 5}), ("relu", {})))) == 1
    with pytest.raises(InputError, match="give mixing, depth or shape"):
        asked.only("width")


def test_shape_distance__counts_mismatches_and_knows_what_cannot_be_mended():
    assert shape_distance((8, 4, 4), (8, 4, 4)) == 0  # the paper's printed formula is not 0 here
    assert shape_distance((8, 4, 4), (16, 8, 4)) == 2
    assert shape_distance((8, 4, 4), (8, 2, 4)) == math.inf  # nothing enlarges an image
    assert shape_distance((8, 4, 4), (8, 6, 4)) == math.inf
    assert shape_distance((None, None, None), (3, 3, 3)) == 0
    assert shape_distance((None,) * 3, (3, 3)) == math.inf
    assert shape_distance((5, 8), (5, 4)) == 1
    assert shape_distance((5, 8), (4, 8)) == math.inf


def test_requirement__mutations_are_those_of_the_paper():
    asked = Requirement.of(infer(chain(("conv", {"features": 8, "kernel": 3}), ("relu", {}), ("relu", {}))))
    rng = np.random.default_rng(0)
    found = [asked.mutated(rng) for _ in range(4000)]
    moved = [one.depth[0] - 2 for one in found]
    assert set(moved) == {-2, -1, 0, 1, 2}
    assert abs(np.mean([m == 0 for m in moved]) - 0.5) < 0.03
    assert abs(np.mean([one.shape == (None,) * 3 for one in found]) - 0.5) < 0.03
    assert abs(np.mean([one.mixing[0] is None for one in found]) - 0.5) < 0.03
    assert all(one.mixing[0] is None or one.mixing[0] is asked.mixing[0] for one in found)
    assert all(one.shape in ((None,) * 3, asked.shape) for one in found)
    nothing = Requirement.of(infer(chain(("dropout", {}))))
    assert min(nothing.mutated(rng).depth[0] for _ in range(50)) == 0


@given(matrices(3, 4))
def test_text__of_mixing_round_trips(matrix):
    assert np.array_equal(mixing_of_text(mixing_text(matrix)), matrix)


@pytest.mark.parametrize("text", ["", "oxz", "ox o"])
def test_text__bad_mixing_is_refused(text):
    with pytest.raises(InputError, match="give rows of equal length of the letters xoma"):
        mixing_of_text(text)


def test_primitives__all_have_a_segment():
    assert all(OPS[kind].segment in ("linear", "nonlinear", "neither") for kind in OPS)
