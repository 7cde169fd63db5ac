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
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from graphopt_gym.envs.rewrite.rules.patterns import Rule, make_rule
from graphopt_gym.errors import unknown_name

TASO, TENSAT, OURS = "TASO", "TENSAT", "ours"
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


@cache
def rules() -> tuple[Rule, ...]:
    """All rules: single-pattern ones, then multi-pattern ones."""
    table = _Table()
    _single(table)
    _multi(table)
    names = [rule.name for rule in table.rules]
    assert len(set(names)) == len(names)
    return tuple(table.rules)


def load_rules(names: Iterable[str] | None = None) -> tuple[Rule, ...]:
    """Rules by name or by family, in the table's order; all where ``names`` is None.

    Raises:
        InputError: no rule and no family has such a name.
    """
    if names is None:
        return rules()
    wanted = [names] if isinstance(names, str) else list(names)
    known = {rule.name for rule in rules()} | {rule.family for rule in rules()}
    for name in wanted:
        if name not in known:
            raise unknown_name("rule or family", name, known)
    return tuple(rule for rule in rules() if rule.name in wanted or rule.family in wanted)
