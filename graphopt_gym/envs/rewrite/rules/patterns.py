"""Patterns of rewrite rules: expressions of the text form with variables, and conditions on shapes.

``matmul(x, concat(y, z, axis=rank(y) - 1), act=a)``: a name that stands as an operand is a tensor variable, one that
stands as a parameter is a parameter variable (except the words ``none relu sigmoid tanh same valid``). A parameter
that is left out has its default, as in programs. Any other parameter is computed by an expression over the variables:
numbers, tuples, arithmetic, comparisons, ``and or not``, subscripts, and the functions of :data:`FUNCTIONS`, where a
tensor variable stands for its shape. Conditions are such expressions.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.graphs.tensor_program.ops import NAMES, OPS, REQUIRED
from graphopt_gym.graphs.tensor_program.text import at, called, parse_python


def _compose(p: Sequence[int], q: Sequence[int]) -> tuple[int, ...]:
    return tuple(p[axis] for axis in q) if len(p) == len(q) else ()


def _same_except(x: Sequence[int], y: Sequence[int], axis: int) -> bool:
    return len(x) == len(y) and all(i == axis or a == b for i, (a, b) in enumerate(zip(x, y, strict=True)))


def _swap_last(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def _same_place(x: Sequence[int], axis: int, shape: Sequence[int]) -> int:
    """The axis of a reshaped tensor before which there are as many elements as before ``axis``; -1: there is none."""
    before, product = math.prod(x[:axis]), 1
    for place, size in enumerate(shape):
        if product == before and size > 1:
            return place
        product *= size
    return -1


def _in_order(x: Sequence[int], p: Sequence[int]) -> bool:
    """Whether a permutation moves axes of size 1 alone, so that it is a reshape."""
    kept = [axis for axis in p if x[axis] > 1]
    return len(p) == len(x) and kept == sorted(kept)


def _spreads(y: Sequence[int], x: Sequence[int], axis: int) -> bool:
    """Whether ``y``, broadcast to ``x``, is the same all along an axis of ``x``."""
    place = axis - len(x) + len(y)
    return len(y) <= len(x) and (place < 0 or (y[place] == 1 and x[axis] > 1))


def _scales_channels(f: Sequence[int], channels: int) -> bool:
    """Whether a tensor has a number for each channel of images [N, C, H, W]."""
    return len(f) in (3, 4) and math.prod(f) == channels and tuple(f[-3:]) == (channels, 1, 1)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "shape": lambda x: x,
    "elements": math.prod,
    "in_order": _in_order,  # the permutation is a reshape
    "spreads": _spreads,  # of the first, broadcast to the second, all is the same along the axis
    "scales_channels": _scales_channels,  # of shape [C, 1, 1], with a leading 1 or without
    "permuted": lambda x, p: tuple(x[axis] for axis in p),
    "rank": len,
    "dim": lambda x, axis: x[axis],
    "groups": lambda x, w: x[1] // w[1],  # of the convolution of x by w
    "same_except": _same_except,  # shapes equal but for one axis
    "identity": lambda rank: tuple(range(rank)),  # the permutation that changes nothing
    "swap_last": _swap_last,  # the permutation that swaps the last two axes
    "compose": _compose,  # the permutation that is p, then q
    "index": lambda p, axis: p.index(axis),  # where an axis goes under a permutation
    "same_place": _same_place,  # where an axis is in a reshaped tensor
    "resized": lambda x, axis, size: (*x[:axis], size, *x[axis + 1 :]),
    "max": max,
    "min": min,
}
_ALLOWED = (
    ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.Call, ast.Subscript, ast.Slice, ast.BoolOp, ast.And, ast.Or,
    ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Compare,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip


@dataclass(frozen=True)
class Var:
    """A tensor variable of a pattern."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Expr:
    """An expression over variables: a parameter, or a condition.

    ``kind`` is ``literal``, ``name`` (one parameter variable), or ``computed``; a literal's ``value`` is what it says.
    """

    text: str
    kind: str
    value: Any = None

    @cached_property
    def tree(self) -> ast.expr:
        return ast.parse(self.text, mode="eval").body

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The variables that it reads, in order of first occurrence."""
        if self.kind == "literal":
            return ()
        found = [node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)]
        return tuple(dict.fromkeys(name for name in found if name not in NAMES and name not in FUNCTIONS))

    def source(self, names: Mapping[str, str]) -> str:
        """As Python, each variable under the name given for it."""
        if self.kind == "literal":
            return repr(self.value)

        class Rename(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:
                if node.id in NAMES and node.id not in names:
                    return ast.Constant(node.id)
                return ast.Name(names.get(node.id, node.id))

        return ast.unparse(Rename().visit(ast.parse(self.text, mode="eval").body))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Pattern:
    """An op of a pattern; ``params`` are in the operator's order."""

    op: str
    operands: tuple[Pattern | Var, ...]
    params: tuple[Expr, ...]

    def __str__(self) -> str:
        given = [str(operand) for operand in self.operands]
        for (name, (_, default)), value in zip(OPS[self.op].params.items(), self.params, strict=True):
            if not (value.kind == "literal" and value.value == default):
                given.append(f"{name}={value}")
        return f"{self.op}({', '.join(given)})"

    def ops(self) -> Iterator[Pattern]:
        """This op and those below, from the root."""
        yield self
        for operand in self.operands:
            if isinstance(operand, Pattern):
                yield from operand.ops()

    @property
    def depth(self) -> int:
        return 1 + max((part.depth for part in self.operands if isinstance(part, Pattern)), default=0)

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Tensor variables in order of first occurrence."""
        return tuple(dict.fromkeys(_tensors(self)))

    @cached_property
    def bound(self) -> tuple[str, ...]:
        """Parameter variables that it binds (those that stand alone as a parameter), in order."""
        found = [value.text for part in self.ops() for value in part.params if value.kind == "name"]
        return tuple(dict.fromkeys(found))


def _tensors(pattern: Pattern | Var) -> list[str]:
    if isinstance(pattern, Var):
        return [pattern.name]
    return [name for operand in pattern.operands for name in _tensors(operand)]


def tensors_of(pattern: Pattern | Var) -> tuple[str, ...]:
    """Tensor variables of a pattern or of a bare variable."""
    return tuple(dict.fromkeys(_tensors(pattern)))


def parse_pattern(text: str, where: str) -> Pattern | Var:
    """A pattern from its text.

    Raises:
        InputError: bad syntax, an unknown operator, parameter or function; with line and column.
    """
    body = parse_python(text, where)
    if len(body) != 1 or not isinstance(body[0], ast.Expr):
        raise InputError(f"{where}: line 1, column 1: expected one pattern `op(...)`, got {text!r}")
    return _pattern(body[0].value, where)


def parse_condition(text: str, where: str) -> Expr | None:
    """A condition from its text; None where there is none."""
    if not text:
        return None
    body = parse_python(text, where)
    if len(body) != 1 or not isinstance(body[0], ast.Expr):
        raise InputError(f"{where}: line 1, column 1: expected one condition, got {text!r}")
    return _expression(body[0].value, where)


def _pattern(node: ast.expr, where: str) -> Pattern | Var:
    if isinstance(node, ast.Name):
        return Var(node.id)
    op, operands, params = called(node, where)
    spec = OPS[op]
    if len(operands) != spec.operands and not (spec.operands < 0 and len(operands) >= 2):
        raise at(where, node, f"{op} takes {max(spec.operands, 2)} operands, got {len(operands)}")
    values = []
    for name, (_, default) in spec.params.items():
        if name in params:
            values.append(_expression(params[name], where))
        elif default is REQUIRED:
            raise at(where, node, f"{op}: parameter {name!r} is missing")
        else:
            values.append(Expr(str(default), "literal", default))
    return Pattern(op, tuple(_pattern(operand, where) for operand in operands), tuple(values))


def _expression(node: ast.expr, where: str) -> Expr:
    text = ast.unparse(node)
    if isinstance(node, ast.Name):
        return Expr(text, "literal", node.id) if node.id in NAMES else Expr(text, "name")
    try:
        return Expr(text, "literal", ast.literal_eval(node))
    except ValueError:
        pass
    for part in ast.walk(node):
        if not isinstance(part, _ALLOWED):
            raise at(where, part, f"{type(part).__name__} is not allowed in an expression of shapes")
        if isinstance(part, ast.Call) and (ast.unparse(part.func) not in FUNCTIONS or part.keywords):
            raise at(where, part, unknown_name("function", ast.unparse(part.func), FUNCTIONS))
    return Expr(text, "computed")


@dataclass(frozen=True)
class Rule:
    """A rewrite rule: where all source patterns match and the condition holds, each root becomes its target's value.

    Attributes:
        family: the family it belongs to.
        source, target: one pattern each; two in a multi-pattern rule, which share a variable.
        condition: on the shapes of the tensor variables and on parameters; together with the computed parameters of
            the source it makes the target fit, and give the same shape. None: always.
        origin: where the rule comes from.
        symmetric: the two source patterns are the same but for the names, and either order gives the same but for the
            order of a concat; so each pair of roots is taken once.

    Raises:
        InputError: a variable of the target, of the condition, or of a computed parameter is bound by no source
            pattern; a name is both a tensor and a parameter; numbers of sources and targets differ.
    """

    name: str
    family: str
    source: tuple[Pattern, ...]
    target: tuple[Pattern | Var, ...]
    condition: Expr | None = None
    origin: str = ""
    symmetric: bool = False
    tensors: tuple[str, ...] = field(init=False)  # tensor variables, in the order of bindings
    params: tuple[str, ...] = field(init=False)  # parameter variables, which follow them

    def __post_init__(self) -> None:
        where = f"rule {self.name!r}"
        if len(self.source) != len(self.target) or len(self.source) not in (1, 2):
            raise InputError(f"{where} has {len(self.source)} sources and {len(self.target)} targets; one or two each")
        if not all(isinstance(source, Pattern) for source in self.source):
            raise InputError(f"{where}: its source is a bare variable, which matches everything; start it with an op")
        tensors = tuple(dict.fromkeys(name for source in self.source for name in source.tensors))
        params = tuple(dict.fromkeys(name for source in self.source for name in source.bound))
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "params", params)
        for name in tensors:
            if name in params:
                raise InputError(f"{where}: {name!r} is both a tensor and a parameter; rename one")
        used = [name for target in self.target for name in tensors_of(target)]
        for name in used:
            if name not in tensors:
                raise InputError(f"{where}: variable {name!r} of the target is not bound by the source")
        for place, names in self._reads():
            for name in names:
                if name not in tensors and name not in params:
                    raise InputError(f"{where}: variable {name!r} of {place} is not bound by the source")
        if self.multi and not set(self.source[0].tensors) & set(self.source[1].tensors):
            raise InputError(
                f"{where}: its two source patterns share no tensor variable; they must, to be searched for"
            )

    def _reads(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for place, patterns in (("the source", self.source), ("the target", self.target)):
            for pattern in patterns:
                if isinstance(pattern, Pattern):
                    for part in pattern.ops():
                        for value in part.params:
                            yield f"{place} ({part.op})", value.names
        if self.condition is not None:
            yield "the condition", self.condition.names

    @property
    def multi(self) -> bool:
        return len(self.source) > 1

    @property
    def merges(self) -> bool:
        """Whether it joins any two matches that share a tensor, so that each use of it may make many more matches.

        The other multi-pattern rules match the two parts of a split, one match for each.
        """
        return self.multi and str(self.source[0]).replace("split0", "split1") != str(self.source[1])

    def __str__(self) -> str:
        sides = [" | ".join(map(str, side)) for side in (self.source, self.target)]
        return " => ".join(sides) + (f"  if {self.condition}" if self.condition else "")


def make_rule(
    name: str,
    family: str,
    source: str | Sequence[str],
    target: str | Sequence[str],
    condition: str = "",
    *,
    origin: str = "",
    symmetric: bool = False,
) -> Rule:
    """A rule from texts; a multi-pattern rule gives two a side.

    Raises:
        InputError: bad syntax (with line and column), or what :class:`Rule` refuses.
    """
    where = f"rule {name!r}"
    sides = [[text] if isinstance(text, str) else list(text) for text in (source, target)]
    parsed = [tuple(parse_pattern(text, where) for text in side) for side in sides]
    return Rule(name, family, parsed[0], parsed[1], parse_condition(condition, where), origin, symmetric)  # type: ignore[arg-type]
