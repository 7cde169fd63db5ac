"""The table of rewrite rules, by family.

The families are TENSAT's (Yang et al., "Equality Saturation for Tensor Graph Superoptimization", MLSys 2021), which
takes its rules from TASO (Jia et al., SOSP 2019, operator properties); they are written down here from their
mathematics, not copied. Rules whose origin is ``ours`` are not in either. All hold up to rounding; every one is checked
by running both sides on random shapes and values (:mod:`graphopt_gym.envs.rewrite.rules.verification`).

A row reads: name, source, target, condition. ``both`` is a rule and its reverse. Families of TENSAT and TASO, and the
families of this table that hold their rules:

=============================================================  =====================================================
associativity, commutativity of element-wise add and multiply  associativity and commutativity
distributivity of multiply and scalar multiply                 distributivity
transposes: own inverse; through add, multiply, matmul, relu,  transposes; matmul (``transpose-of-matmul``)
concat
matmul: associativity, linearity, transposition                matmul
convolution: bilinearity                                       convolution
relu into matmul and convolution, and out again                fused activation
concat of concats; through add, multiply, relu, scalar         concat
multiply, pooling
matmuls that share an operand; matmul of concats               concat and matmul
convolution over concatenated inputs, outputs, both            concat and convolution
split of concat                                                split
identity kernels and matrices, average pooling as convolution  identities
enlarging a kernel with zeros                                  enlarging
merging groups                                                 merging groups
two outputs at once: matmuls and convolutions that share an    two that share an input
input; of kernels of different size
=============================================================  =====================================================

Concats have two operands or more; rules are written for two, and ``concat-of-N-pair-I`` group up to six by pairs.

One rule of TENSAT is not here: ``relu(x), relu(y)`` as the two parts of ``relu(concat(x, y))``, and its like for other
element-wise operators, whose sources share no tensor, so that all pairs match. With them (same shapes but for the last
axis) NasRNN's e-graph at k_multi 1 has 9,202 nodes instead of 3,846, and its sequential search 365 matches beside 555;
greedy extraction finds nothing cheaper on NasRNN, SqueezeNet, BERT and ResNeXt-50, as the concat is a copy. Where the
operands are parts of one tensor it saves, and then ``elementwise on both parts of a split`` does it.

Families beside these (:data:`BESIDE`) hold where they are asked for, by name, as ``rules="all"`` or, with what goes
well with them on a processor, as ``rules="deployed"``:

- ``identity introduction``: a skip connection as a part of the weight beside it, ``x + conv(x, w) = conv(x, w + I)``;
- ``composition``: a 1x1 convolution and the linear operator before or after it as one, by work on weights;
- ``production``: what optimisers of inference runtimes do, in one step each: scales (batch normalisation) into weights,
  parallel branches into one, transposes that move nothing as reshapes;
- ``parts``: where a part of a result is read, only that part is computed, as of a classifier's first token.

Common subexpressions, constant folding and operators that change nothing need no rules: equal nodes of a program are
one, what depends on weights alone costs nothing, and the reader of ONNX files drops the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from graphopt_gym.envs.rewrite.rules.patterns import Rule, make_rule
from graphopt_gym.errors import unknown_name
from graphopt_gym.graphs.tensor_program.ops import PLAIN

TASO, TENSAT, OURS = "TASO", "TENSAT", "ours"
# names for all rules, for those of the published families, and for those that pay on a processor
ALL, PUBLISHED, DEPLOYED = "all", "published", "deployed"
SPLITS = ("split0", "split1")
ACTIVATIONS = ("relu", "sigmoid", "tanh")


class _Table:
    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.family = ""

    def one(
        self,
        name: str,
        source: str | Sequence[str],
        target: str | Sequence[str],
        condition: str = "",
        origin: str = TASO,
        symmetric: bool = False,
    ) -> None:
        self.rules.append(make_rule(name, self.family, source, target, condition, origin=origin, symmetric=symmetric))

    def both(
        self, name: str, left: str, right: str, condition: str = "", origin: str = TASO, back: str | None = None
    ) -> None:
        """``back``: the condition of the reverse, where it is another."""
        self.one(name, left, right, condition, origin)
        self.one(f"{name}-reversed", right, left, condition if back is None else back, origin)


def _single(t: _Table) -> None:
    t.family = "associativity and commutativity"
    for op in ("add", "mul"):
        t.one(f"{op}-commutes", f"{op}(x, y)", f"{op}(y, x)")
        t.both(f"{op}-associates", f"{op}({op}(x, y), z)", f"{op}(x, {op}(y, z))")

    t.family = "distributivity"
    t.both("mul-over-add", "mul(add(x, y), z)", "add(mul(x, z), mul(y, z))")
    t.both("smul-of-smul", "smul(smul(x, s), t)", "smul(x, smul(s, t))")
    t.one("smul-swaps", "smul(smul(x, s), t)", "smul(smul(x, t), s)")
    t.both("smul-over-add", "smul(add(x, y), s)", "add(smul(x, s), smul(y, s))")
    t.both("smul-into-mul", "smul(mul(x, y), s)", "mul(smul(x, s), y)")

    t.family = "transposes"
    t.one("transpose-undone", "transpose(transpose(x, perm=p), perm=q)", "x", "compose(p, q) == identity(rank(x))")
    t.one("transpose-twice", "transpose(transpose(x, perm=p), perm=q)", "transpose(x, perm=compose(p, q))", "", OURS)
    t.one("transpose-identity", "transpose(x, perm=identity(rank(x)))", "x", "", OURS)
    for op in ("add", "mul"):
        through = f"{op}(transpose(x, perm=p), transpose(y, perm=p))"
        t.both(f"transpose-through-{op}", f"transpose({op}(x, y), perm=p)", through, "rank(x) == rank(y)", back="")
    for op in ACTIVATIONS:
        t.both(f"transpose-through-{op}", f"transpose({op}(x), perm=p)", f"{op}(transpose(x, perm=p))")
    t.both("transpose-through-smul", "transpose(smul(x, s), perm=p)", "smul(transpose(x, perm=p), s)")
    t.one(
        "transpose-through-concat",
        "transpose(concat(x, y, axis=k), perm=p)",
        "concat(transpose(x, perm=p), transpose(y, perm=p), axis=index(p, k))",
    )
    t.one(
        "transpose-through-concat-reversed",
        "concat(transpose(x, perm=p), transpose(y, perm=p), axis=k)",
        "transpose(concat(x, y, axis=p[k]), perm=p)",
    )

    t.family = "matmul"
    t.both("matmul-associates", "matmul(matmul(x, y), z)", "matmul(x, matmul(y, z))")
    t.both("matmul-linear-left", "matmul(add(x, y), z)", "add(matmul(x, z), matmul(y, z))", "shape(x) == shape(y)")
    t.both("matmul-linear-right", "matmul(x, add(y, z))", "add(matmul(x, y), matmul(x, z))", "shape(y) == shape(z)")
    t.both("smul-into-matmul-left", "smul(matmul(x, y), s)", "matmul(smul(x, s), y)")
    t.both("smul-into-matmul-right", "smul(matmul(x, y), s)", "matmul(x, smul(y, s))")
    t.both(
        "transpose-of-matmul",
        "transpose(matmul(x, y, act=a), perm=swap_last(rank(x)))",
        "matmul(transpose(y, perm=swap_last(rank(x))), transpose(x, perm=swap_last(rank(x))), act=a)",
        "rank(x) == rank(y)",
    )
    t.one(
        "matmul-by-transposes",
        "matmul(x, y, act=a)",
        "transpose(matmul(transpose(y, perm=swap_last(rank(x))), transpose(x, perm=swap_last(rank(x))), act=a), "
        "perm=swap_last(rank(x)))",
        "rank(x) == rank(y)",
    )

    t.family = "convolution"
    t.both(
        "conv-linear-input",
        "conv2d(add(x, y), w, stride=s, padding=p)",
        "add(conv2d(x, w, stride=s, padding=p), conv2d(y, w, stride=s, padding=p))",
        "shape(x) == shape(y)",
    )
    t.both(
        "conv-linear-weight",
        "conv2d(x, add(v, w), stride=s, padding=p)",
        "add(conv2d(x, v, stride=s, padding=p), conv2d(x, w, stride=s, padding=p))",
        "shape(v) == shape(w)",
    )
    conv = "conv2d(x, w, stride=s, padding=p)"
    t.both("smul-into-conv-input", f"smul({conv}, f)", "conv2d(smul(x, f), w, stride=s, padding=p)")
    t.both("smul-into-conv-weight", f"smul({conv}, f)", "conv2d(x, smul(w, f), stride=s, padding=p)")

    t.family = "fused activation"
    for act in ACTIVATIONS:
        origin = TASO if act == "relu" else OURS
        t.both(f"{act}-into-matmul", f"{act}(matmul(x, y))", f"matmul(x, y, act={act})", "", origin)
        fused = f"conv2d(x, w, stride=s, padding=p, act={act})"
        t.both(f"{act}-into-conv", f"{act}({conv})", fused, "", origin)
    t.one("relu-twice", "relu(relu(x))", "relu(x)", "", OURS)
    t.both(
        "relu-through-maxpool",
        "relu(maxpool(x, kernel=k, stride=s, padding=p))",
        "maxpool(relu(x), kernel=k, stride=s, padding=p)",
        "",
        OURS,
    )

    t.family = "concat"
    t.one(
        "concat-geometry",
        "concat(concat(a, b, axis=j), concat(c, d, axis=j), axis=k)",
        "concat(concat(a, c, axis=k), concat(b, d, axis=k), axis=j)",
        "j != k and same_except(a, c, k) and same_except(b, d, k)",
    )
    for n in (3, 4, 5, 6):
        names = "abcdef"[:n]
        for i in range(n - 1):
            pair = f"concat({names[i]}, {names[i + 1]}, axis=k)"
            grouped = ", ".join([*names[:i], pair, *names[i + 2 :]])
            flat = f"concat({', '.join(names)}, axis=k)"
            t.both(f"concat-of-{n}-pair-{i}", f"concat({grouped}, axis=k)", flat, "", OURS)
    for op in ("add", "mul"):
        t.both(
            f"concat-through-{op}",
            f"concat({op}(a, b), {op}(c, d), axis=k)",
            f"{op}(concat(a, c, axis=k), concat(b, d, axis=k))",
            "shape(a) == shape(b) and shape(c) == shape(d)",
        )
    for op in ACTIVATIONS:
        t.both(f"concat-through-{op}", f"concat({op}(x), {op}(y), axis=k)", f"{op}(concat(x, y, axis=k))")
    t.both("concat-through-smul", "concat(smul(x, s), smul(y, s), axis=k)", "smul(concat(x, y, axis=k), s)")
    for op in ("maxpool", "avgpool"):
        t.both(
            f"concat-through-{op}",
            f"concat({op}(x, kernel=z, stride=s, padding=p), {op}(y, kernel=z, stride=s, padding=p), axis=k)",
            f"{op}(concat(x, y, axis=k), kernel=z, stride=s, padding=p)",
            "k < 2 and same_except(x, y, k)",
        )

    t.family = "concat and matmul"
    t.both(
        "matmul-concat-columns",
        "concat(matmul(x, y, act=a), matmul(x, z, act=a), axis=max(rank(x), rank(y)) - 1)",
        "matmul(x, concat(y, z, axis=rank(y) - 1), act=a)",
        "same_except(y, z, rank(y) - 1)",
    )
    t.both(
        "matmul-concat-rows",
        "concat(matmul(x, z, act=a), matmul(y, z, act=a), axis=k)",
        "matmul(concat(x, y, axis=k), z, act=a)",
        "k < rank(x) - 1 and same_except(x, y, k) and (rank(z) == 2 or (k == rank(x) - 2 and rank(x) >= rank(z)))",
    )
    t.both(
        "matmul-of-concats",
        "matmul(concat(a, b, axis=rank(a) - 1), concat(c, d, axis=rank(c) - 2))",
        "add(matmul(a, c), matmul(b, d))",
        "same_except(a, b, rank(a) - 1) and same_except(c, d, rank(c) - 2) and dim(a, -1) == dim(c, -2)",
    )

    t.family = "concat and convolution"
    t.both(
        "conv-concat-outputs",
        "concat(conv2d(x, v, stride=s, padding=p, act=a), conv2d(x, w, stride=s, padding=p, act=a), axis=1)",
        "conv2d(x, concat(v, w, axis=0), stride=s, padding=p, act=a)",
        "same_except(v, w, 0) and dim(x, 1) == dim(v, 1)",
    )
    t.both(
        "conv-concat-images",
        "concat(conv2d(x, w, stride=s, padding=p, act=a), conv2d(y, w, stride=s, padding=p, act=a), axis=0)",
        "conv2d(concat(x, y, axis=0), w, stride=s, padding=p, act=a)",
        "same_except(x, y, 0)",
        back="",
    )
    t.both(
        "conv-concat-channels",
        "conv2d(concat(x, y, axis=1), concat(v, w, axis=1), stride=s, padding=p)",
        "add(conv2d(x, v, stride=s, padding=p), conv2d(y, w, stride=s, padding=p))",
        "same_except(x, y, 1) and same_except(v, w, 1) and dim(x, 1) == dim(v, 1) and dim(y, 1) == dim(w, 1)",
    )
    t.both(
        "conv-concat-groups",
        "concat(conv2d(x, v, stride=s, padding=p, act=a), conv2d(y, w, stride=s, padding=p, act=a), axis=1)",
        "conv2d(concat(x, y, axis=1), concat(v, w, axis=0), stride=s, padding=p, act=a)",
        "shape(x) == shape(y) and shape(v) == shape(w) and dim(x, 1) % dim(v, 1) == 0 and "
        "dim(v, 0) % groups(x, v) == 0",
    )

    t.family = "split"
    t.one("split0-of-concat", "split0(concat(x, y, axis=k), axis=k, at=dim(x, k))", "x")
    t.one("split1-of-concat", "split1(concat(x, y, axis=k), axis=k, at=dim(x, k))", "y")
    t.one("concat-of-splits", "concat(split0(x, axis=k, at=i), split1(x, axis=k, at=i), axis=k)", "x")

    t.family = "split through transpose and reshape"  # not back: the e-graph grows by that, and no program gains
    for split, size in (("split0", "i"), ("split1", "(dim(x, k) - i)")):
        part = f"{split}(x, axis=k, at=i)"
        t.one(
            f"transpose-of-{split}",
            f"transpose({part}, perm=p)",
            f"{split}(transpose(x, perm=p), axis=index(p, k), at=i)",
            "",
            OURS,
        )
        place = "same_place(x, k, y)"  # where the axis is in the other shape; the part is to be a whole number there
        t.one(
            f"reshape-of-{split}",
            f"reshape({part}, shape=y)",
            f"{split}(reshape(x, shape=resized(y, {place}, y[{place}] * dim(x, k) // {size})), axis={place}, "
            f"at=y[{place}] * i // {size})",
            f"{place} >= 0 and y[{place}] * i % {size} == 0 and y[{place}] * dim(x, k) % {size} == 0",
            OURS,
        )

    t.family = "identities"
    t.one("matmul-by-identity", "matmul(x, eye(n=n))", "x")
    t.one("matmul-identity-by", "matmul(eye(n=n), x)", "x")
    t.one("conv-by-identity", "conv2d(x, identity_kernel(shape=z), padding=same)", "x", "z[0] == dim(x, 1)")
    t.both(
        "avgpool-as-conv",
        "avgpool(x, kernel=k, stride=s, padding=p)",
        "conv2d(x, pool_kernel(channels=dim(x, 1), kernel=k), stride=s, padding=p)",
    )

    t.family = "enlarging"
    enlarged = "conv2d(x, enlarge(w, size={}), stride=s, padding=same, act=a)"
    plain = "conv2d(x, w, stride=s, padding=same, act=a)"
    t.one(
        "enlarge-to-3",
        plain,
        enlarged.format("(3, 3)"),
        "dim(w, 2) <= 3 and dim(w, 3) <= 3 and dim(w, 2) * dim(w, 3) < 9",
    )
    t.one("enlarge-undone", enlarged.format("z"), plain)

    t.family = "merging groups"
    merged = "conv2d(x, merge(w, groups={}, count={}), stride=s, padding=p, act=a)"
    grouped = "conv2d(x, w, stride=s, padding=p, act=a)"
    t.one("merge-groups", grouped, merged.format("groups(x, w)", 2), "groups(x, w) % 2 == 0")
    t.one("merge-undone", merged.format("groups(x, w)", "c"), grouped)

    t.family = "reshape"
    t.one("reshape-twice", "reshape(reshape(x, shape=y), shape=z)", "reshape(x, shape=z)", "", OURS)
    t.one("reshape-identity", "reshape(x, shape=shape(x))", "x", "", OURS)
    t.both("reshape-through-smul", "reshape(smul(x, s), shape=z)", "smul(reshape(x, shape=z), s)", "", OURS)


def _multi(t: _Table) -> None:
    t.family = "two that share an input"
    merged = "matmul(x, concat(v, w, axis=rank(v) - 1), act=a)"
    t.one(
        "merge-matmuls-input",
        ["matmul(x, v, act=a)", "matmul(x, w, act=a)"],
        [f"{split}({merged}, axis=max(rank(x), rank(v)) - 1, at=dim(v, -1))" for split in SPLITS],
        "same_except(v, w, rank(v) - 1)",
        TENSAT,
        symmetric=True,
    )
    merged = "matmul(concat(x, y, axis=rank(x) - 2), w, act=a)"
    t.one(
        "merge-matmuls-weight",
        ["matmul(x, w, act=a)", "matmul(y, w, act=a)"],
        [f"{split}({merged}, axis=rank(x) - 2, at=dim(x, -2))" for split in SPLITS],
        "same_except(x, y, rank(x) - 2) and rank(x) >= rank(w)",
        TENSAT,
        symmetric=True,
    )
    convs = ["conv2d(x, v, stride=s, padding=p, act=a)", "conv2d(x, w, stride=s, padding=p, act=a)"]
    merged = "conv2d(x, concat(v, w, axis=0), stride=s, padding=p, act=a)"
    t.one(
        "merge-convs-input",
        convs,
        [f"{split}({merged}, axis=1, at=dim(v, 0))" for split in SPLITS],
        "same_except(v, w, 0) and dim(x, 1) == dim(v, 1)",
        TENSAT,
        symmetric=True,
    )
    merged = "conv2d(concat(x, y, axis=0), w, stride=s, padding=p, act=a)"
    t.one(
        "merge-convs-weight",
        ["conv2d(x, w, stride=s, padding=p, act=a)", "conv2d(y, w, stride=s, padding=p, act=a)"],
        [f"{split}({merged}, axis=0, at=dim(x, 0))" for split in SPLITS],
        "same_except(x, y, 0)",
        TENSAT,
        symmetric=True,
    )
    convs = ["conv2d(x, v, stride=s, padding=same, act=a)", "conv2d(x, w, stride=s, padding=same, act=a)"]
    merged = "conv2d(x, concat(enlarge(v, size=shape(w)[2:]), w, axis=0), stride=s, padding=same, act=a)"
    t.one(
        "merge-convs-enlarged",
        convs,
        [f"{split}({merged}, axis=1, at=dim(v, 0))" for split in SPLITS],
        "dim(v, 1) == dim(w, 1) and dim(x, 1) == dim(v, 1) and dim(v, 2) <= dim(w, 2) and dim(v, 3) <= dim(w, 3) "
        "and shape(v)[2:] != shape(w)[2:]",
        TENSAT,
    )
    size = "(max(dim(v, 2), dim(w, 2)), max(dim(v, 3), dim(w, 3)))"
    both = f"concat(enlarge(v, size={size}), enlarge(w, size={size}), axis=0)"
    t.one(
        "merge-convs-both-enlarged",
        convs,
        [f"{split}(conv2d(x, {both}, stride=s, padding=same, act=a), axis=1, at=dim(v, 0))" for split in SPLITS],
        "dim(v, 1) == dim(w, 1) and dim(x, 1) == dim(v, 1) and dim(v, 2) < dim(w, 2) and dim(v, 3) > dim(w, 3)",
        OURS,
    )

    t.family = "elementwise on both parts of a split"
    for op in ACTIVATIONS:
        t.one(
            f"{op}-of-splits",
            [f"{op}(split0(x, axis=k, at=i))", f"{op}(split1(x, axis=k, at=i))"],
            [f"split0({op}(x), axis=k, at=i)", f"split1({op}(x), axis=k, at=i)"],
            "",
            OURS,
        )
    for op in ("add", "mul"):
        t.one(
            f"{op}-of-splits",
            [f"{op}({split}(x, axis=k, at=i), {split}(y, axis=k, at=i))" for split in SPLITS],
            [f"{split}({op}(x, y), axis=k, at=i)" for split in SPLITS],
            "shape(x) == shape(y)",
            OURS,
        )

    t.family = "transposes of both parts of a split"
    t.one(
        "transpose-of-splits",
        [f"transpose({split}(x, axis=k, at=i), perm=p)" for split in SPLITS],
        [f"{split}(transpose(x, perm=p), axis=index(p, k), at=i)" for split in SPLITS],
        "",
        OURS,
    )


def _identity(t: _Table) -> None:
    """What an identity joins: a skip connection becomes a part of the weight beside it."""
    t.family = "identity introduction"
    conv, scaled = "conv2d(x, w, padding=same)", "mul({}, f)"
    joined = "conv2d(x, add(w, identity_kernel(shape=shape(w))), padding=same)"
    wide = "dim(w, 0) == dim(x, 1)"
    kernel = "mul(identity_kernel(shape=shape(w)), reshape(f, shape=(dim(w, 0), 1, 1, 1)))"
    by_channel = f"conv2d(x, add(w, {kernel}), padding=same)"
    channels = f"{wide} and scales_channels(shape(f), dim(x, 1))"
    for place in ("first", "second"):

        def two(one: str, other: str, place: str = place) -> str:
            return f"add({one}, {other})" if place == "first" else f"add({other}, {one})"

        bias = "scales_channels(shape(b), dim(w, 0))"
        t.one(f"skip-{place}-into-conv", two("x", conv), joined, wide, OURS)
        t.one(
            f"skip-{place}-into-biased-conv",
            two("x", f"add({conv}, b)"),
            f"add({joined}, b)",
            f"{wide} and {bias}",
            OURS,
        )
        t.one(f"scaled-skip-{place}-into-conv", two(scaled.format("x"), conv), by_channel, channels, OURS)
        t.one(
            f"scaled-skip-{place}-into-biased-conv",
            two(f"add({scaled.format('x')}, c)", f"add({conv}, b)"),
            f"add({by_channel}, add(c, b))",
            f"{channels} and {bias} and shape(c) == shape(b)",
            OURS,
        )
        square = "dim(w, -1) == dim(w, -2)"
        eye = "matmul(x, add(w, eye(n=dim(w, -1))))"
        t.one(f"skip-{place}-into-matmul", two("x", "matmul(x, w)"), eye, square, OURS)


def _composition(t: _Table) -> None:
    """Two linear operators, one after the other, as one: the work that is left is on weights alone."""
    t.family = "composition"
    turned = "transpose({}, perm=(1, 0, 2, 3))"
    plain = "groups(x, {}) == 1"
    # a bias of the inner product would be cut at the border; there is none, so zeros stay zeros
    t.one(
        "conv-of-1x1",
        "conv2d(conv2d(x, v), w, stride=s, padding=p, act=a)",
        f"conv2d(x, conv2d(w, {turned.format('v')}), stride=s, padding=p, act=a)",
        f"dim(v, 2) == 1 and dim(v, 3) == 1 and {plain.format('v')} and dim(w, 1) == dim(v, 0)",
        OURS,
    )
    after = (
        f"conv2d(x, {turned.format('conv2d(' + turned + ', v)')}, stride=(s[0] * t[0], s[1] * t[1]), padding=p, act=a)"
    )
    small = "dim(v, 2) == 1 and dim(v, 3) == 1 and dim(v, 1) == dim(w, 0)"
    t.one(
        "1x1-of-conv",
        "conv2d(conv2d(x, w, stride=s, padding=p), v, stride=t, act=a)",
        after.format("w"),
        f"{small} and groups(x, w) == 1",
        OURS,
    )
    t.one(
        "1x1-of-grouped-conv",
        "conv2d(conv2d(x, w, stride=s, padding=p), v, stride=t, act=a)",
        after.format("merge(w, groups=groups(x, w), count=groups(x, w))"),
        f"{small} and groups(x, w) > 1",
        OURS,
    )
    t.one(
        "grouped-conv-of-1x1",
        "conv2d(conv2d(x, v), w, stride=s, padding=p, act=a)",
        f"conv2d(x, conv2d(merge(w, groups=dim(v, 0) // dim(w, 1), count=dim(v, 0) // dim(w, 1)), "
        f"{turned.format('v')}), stride=s, padding=p, act=a)",
        f"dim(v, 2) == 1 and dim(v, 3) == 1 and {plain.format('v')} and dim(w, 1) < dim(v, 0)",
        OURS,
    )
    pooled = "avgpool({}, kernel=k, stride=s, padding=p)"
    t.both(
        "avgpool-through-1x1",
        pooled.format("conv2d(x, w)"),
        f"conv2d({pooled.format('x')}, w)",
        "dim(w, 2) == 1 and dim(w, 3) == 1",
        OURS,
    )
    t.both(
        "avgpool-through-bias",
        "avgpool(add(x, b), kernel=k, stride=s, padding=valid)",
        "add(avgpool(x, kernel=k, stride=s, padding=valid), b)",
        "rank(x) == 4 and scales_channels(shape(b), dim(x, 1))",
        OURS,
    )


def _production(t: _Table) -> None:
    """What the optimisers of inference runtimes do, in one step each, so that a greedy search finds it."""
    t.family = "production"
    conv = "conv2d(x, w, stride=s, padding=p)"
    by_output = "conv2d(x, mul(w, reshape(f, shape=(dim(w, 0), 1, 1, 1))), stride=s, padding=p)"
    scales = "scales_channels(shape(f), dim(w, 0))"
    bias = "scales_channels(shape(b), dim(w, 0))"
    product = "matmul(x, w)"
    by_column = "matmul(x, mul(w, reshape(f, shape=(dim(w, -1),))))"
    columns = "elements(f) == dim(w, -1) and dim(f, -1) == dim(w, -1) and rank(f) <= max(rank(x), rank(w))"
    row = "elements(b) == dim(w, -1) and dim(b, -1) == dim(w, -1) and rank(b) <= max(rank(x), rank(w))"
    for place in ("first", "second"):

        def times(one: str, place: str = place) -> str:
            return f"mul(f, {one})" if place == "first" else f"mul({one}, f)"

        t.one(f"scale-{place}-into-conv", times(conv), by_output, scales, OURS)
        t.one(
            f"scale-{place}-into-biased-conv",
            times(f"add({conv}, b)"),
            f"add({by_output}, mul(b, f))",
            f"{scales} and {bias}",
            OURS,
        )
        t.one(f"scale-{place}-into-matmul", times(product), by_column, columns, OURS)
        t.one(
            f"scale-{place}-into-biased-matmul",
            times(f"add({product}, b)"),
            f"add({by_column}, mul(b, f))",
            f"{columns} and {row}",
            OURS,
        )
    t.one(
        "scaled-input-into-conv",
        "conv2d(mul(x, f), w, stride=s, padding=p, act=a)",
        "conv2d(x, mul(w, reshape(f, shape=(1, dim(w, 1), 1, 1))), stride=s, padding=p, act=a)",
        "scales_channels(shape(f), dim(x, 1)) and rank(x) == 4 and dim(w, 1) == dim(x, 1)",
        OURS,
    )
    t.one(
        "scaled-input-into-matmul",
        "matmul(mul(x, f), w, act=a)",
        "matmul(x, mul(w, reshape(f, shape=(dim(x, -1), 1))), act=a)",
        "elements(f) == dim(x, -1) and dim(f, -1) == dim(x, -1) and rank(f) <= rank(x)",
        OURS,
    )
    t.one("smul-into-biased-matmul", f"smul(add({product}, b), s)", "add(matmul(x, smul(w, s)), smul(b, s))", "", OURS)
    heads = "transpose(reshape({}, shape=y), perm=p)"
    t.one(
        "smul-into-projection",
        f"smul({heads.format(f'add({product}, b)')}, s)",
        heads.format("add(matmul(x, smul(w, s)), smul(b, s))"),
        "",
        OURS,
    )
    t.one(
        "smul-into-projection-without-bias",
        f"smul({heads.format(product)}, s)",
        heads.format("matmul(x, smul(w, s))"),
        "",
        OURS,
    )
    # branches that read the same image
    v, w = "conv2d(x, v, stride=s, padding={p})", "conv2d(x, w, stride=s, padding={p})"
    both = "conv2d(x, add({}, w), stride=s, padding={})"
    either = "scales_channels(shape(b), dim(v, 0)) and scales_channels(shape(c), dim(w, 0)) and shape(b) == shape(c)"
    larger = (
        "dim(v, 0) == dim(w, 0) and dim(v, 1) == dim(w, 1) and dim(v, 2) <= dim(w, 2) and dim(v, 3) <= dim(w, 3) and "
        "shape(v) != shape(w)"
    )
    enlarged = both.format("enlarge(v, size=shape(w)[2:])", "same")
    plain = both.format("v", "p")
    t.one(
        "biased-branches",
        f"add(add({v.format(p='p')}, b), add({w.format(p='p')}, c))",
        f"add({plain}, add(b, c))",
        f"shape(v) == shape(w) and {either}",
        OURS,
    )
    for place, order in (("first", (v, w)), ("second", (w, v))):
        one, other = (part.format(p="same") for part in order)
        t.one(f"smaller-{place}-branch", f"add({one}, {other})", enlarged, larger, OURS)
        t.one(
            f"smaller-{place}-biased-branch",
            f"add(add({one}, b), add({other}, c))",
            f"add({enlarged}, add(b, c))",
            f"{larger} and {either}",
            OURS,
        )
    t.one(
        "transpose-as-reshape",
        "transpose(x, perm=p)",
        "reshape(x, shape=permuted(shape(x), p))",
        "in_order(shape(x), p)",
        OURS,
    )


def _parts(t: _Table) -> None:
    """What is made of a part alone: where only a part is read, as of a transformer's first token, the rest is not."""
    t.family = "parts"
    unary = {op: f"{op}({{}})" for op in (*ACTIVATIONS, "gelu", *PLAIN)}
    unary |= {"clip": "clip({}, low=l, high=h)", "power": "power({}, exponent=e)"}
    unary |= {"leakyrelu": "leakyrelu({}, alpha=a)", "hardsigmoid": "hardsigmoid({}, alpha=a, beta=b)"}
    for split in SPLITS:

        def part(x: str, axis: str = "k", at: str = "i", split: str = split) -> str:
            return f"{split}({x}, axis={axis}, at={at})"

        for op, text in unary.items():
            t.one(f"{split}-of-{op}", part(text.format("x")), text.format(part("x")), "", OURS)
        for op in ("reducesum", "reducemean"):
            text = f"{op}({{}}, axes=a)"
            t.one(f"{split}-of-{op}", part(text.format("x")), text.format(part("x")), "", OURS)
        t.one(f"{split}-of-smul", part("smul(x, s)"), f"smul({part('x')}, s)", "", OURS)
        t.one(f"{split}-of-softmax", part("softmax(x, axis=j)"), f"softmax({part('x')}, axis=j)", "j != k", OURS)
        t.one(
            f"{split}-of-layernorm",
            part("layernorm(x, g, b, epsilon=e)"),
            f"layernorm({part('x')}, g, b, epsilon=e)",
            "k < rank(x) - 1",
            OURS,
        )
        for op in ("add", "mul", "sub", "div"):
            place = "k - rank(x) + rank(y)"
            t.one(
                f"{split}-of-{op}",
                part(f"{op}(x, y)"),
                f"{op}({part('x')}, {part('y')})",
                "rank(x) == rank(y) and dim(x, k) == dim(y, k)",
                OURS,
            )
            t.one(f"{split}-of-{op}-by-spread", part(f"{op}(x, y)"), f"{op}({part('x')}, y)", "spreads(y, x, k)", OURS)
            t.one(f"{split}-of-{op}-of-spread", part(f"{op}(y, x)"), f"{op}(y, {part('x')})", "spreads(y, x, k)", OURS)
            t.one(
                f"{split}-of-{op}-by-row",
                part(f"{op}(x, y)"),
                f"{op}({part('x')}, {part('y', place)})",
                f"rank(y) < rank(x) and {place} >= 0 and dim(y, {place}) == dim(x, k)",
                OURS,
            )
        product = "matmul(x, w, act=a)"
        t.one(
            f"{split}-of-matmul-rows",
            part(product),
            f"matmul({part('x')}, w, act=a)",
            "rank(x) >= rank(w) and (k == rank(x) - 2 or k < rank(x) - rank(w))",
            OURS,
        )
        t.one(
            f"{split}-of-biased-matmul",
            part("add(matmul(x, w), b)"),
            f"add(matmul({part('x')}, w), b)",
            "k == rank(x) - 2 and rank(x) >= rank(w) and elements(b) == dim(w, -1) and dim(b, -1) == dim(w, -1) and "
            "rank(b) <= rank(x)",
            OURS,
        )
        t.one(
            f"{split}-of-matmul-batch",
            part(product),
            f"matmul({part('x')}, {part('w')}, act=a)",
            "rank(x) == rank(w) and k < rank(x) - 2 and dim(x, k) == dim(w, k)",
            OURS,
        )
        t.one(
            f"{split}-of-matmul-columns",
            part(product),
            f"matmul(x, {part('w', 'rank(w) - 1')}, act=a)",
            "k == max(rank(x), rank(w)) - 1",
            OURS,
        )
        t.one(
            f"{split}-of-conv-outputs",
            part("conv2d(x, w, stride=s, padding=p, act=a)"),
            f"conv2d(x, {part('w', '0')}, stride=s, padding=p, act=a)",
            "k == 1 and groups(x, w) == 1",
            OURS,
        )
        t.one(
            f"{split}-of-transpose", part("transpose(x, perm=p)"), f"transpose({part('x', 'p[k]')}, perm=p)", "", OURS
        )
        place, size = "same_place(y, k, shape(x))", "i" if split == "split0" else "(y[k] - i)"
        t.one(
            f"{split}-of-reshape",
            part("reshape(x, shape=y)"),
            f"reshape({part('x', place, f'i * dim(x, {place}) // y[k]')}, shape=resized(y, k, {size}))",
            f"y[k] > 1 and {place} >= 0 and i * dim(x, {place}) % y[k] == 0",
            OURS,
        )
    t.one("split0-of-split0", "split0(split0(x, axis=k, at=j), axis=k, at=i)", "split0(x, axis=k, at=i)", "", OURS)
    t.one("split1-of-split1", "split1(split1(x, axis=k, at=j), axis=k, at=i)", "split1(x, axis=k, at=i + j)", "", OURS)


# families that stand beside TENSAT's and TASO's: only where they are asked for, or all rules are
BESIDE = ("identity introduction", "composition", "production", "parts")
# what ``rules="deployed"`` stands for: these, and what brings operands together; no rule that merges two operators, as
# runtimes copy the parts of what they made, nor commutativity, so that e-graphs of whole networks stay small
DEPLOYED_PARTS = frozenset((*BESIDE, "split", "reshape", "transposes", "add-associates", "add-associates-reversed"))


@cache
def rules() -> tuple[Rule, ...]:
    """All rules, those of :data:`BESIDE` too: single-pattern ones, then multi-pattern ones."""
    table = _Table()
    _single(table)
    for family in (_identity, _composition, _production, _parts):
        family(table)
    _multi(table)
    names = [rule.name for rule in table.rules]
    assert len(set(names)) == len(names)
    return tuple(table.rules)


def load_rules(names: Iterable[str] | None = None) -> tuple[Rule, ...]:
    """Rules by name or by family, in the table's order; without names those of TENSAT's and TASO's families.

    Args:
        names: ``"all"`` (or a list that holds it) for every rule; ``"published"`` for those of no names;
            ``"deployed"`` for :data:`DEPLOYED_PARTS`.

    Raises:
        InputError: no rule and no family has such a name.
    """
    wanted = [PUBLISHED] if names is None else [names] if isinstance(names, str) else list(names)
    known = {rule.name for rule in rules()} | {rule.family for rule in rules()} | {ALL, PUBLISHED, DEPLOYED}
    for name in wanted:
        if not isinstance(name, str) or name not in known:
            raise unknown_name("rule or family", name if isinstance(name, str) else repr(name), known)
    return tuple(
        rule
        for rule in rules()
        if ALL in wanted
        or rule.name in wanted
        or rule.family in wanted
        or (PUBLISHED in wanted and rule.family not in BESIDE)
        or (DEPLOYED in wanted and not DEPLOYED_PARTS.isdisjoint((rule.name, rule.family)))
    )
