"""The architecture: a network whose ops own their trainable parameters.

Why not a :class:`~graphopt_gym.graphs.tensor_program.TensorProgram`, the suite's other executable IR: there two nodes
that compute the same op of the same operands are one node, and weights are leaves of a fixed shape. Rewriting needs
both. A search over architectures needs the opposite: two equal convolutions of one tensor are two layers that learn
different things, and the shapes of an op's weights follow from whatever comes before it, so that a changed subgraph
needs no new weights by name. It also needs ops that differ between training and inference (batch norm, dropout). So an
architecture is a list of ops above torch, and lowers to a ``torch.nn.Module`` (:mod:`.torch_module`), from which the
suite's capture makes the ComputationGraph that cost models price.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from graphopt_gym.catalog import stored_whole
from graphopt_gym.envs.architecture.ops import INITS, OPS, Params, Shape, infer, make_params
from graphopt_gym.errors import InputError, unknown_name

if TYPE_CHECKING:
    from graphopt_gym.envs.architecture.torch_module import ArchitectureModule
    from graphopt_gym.graphs.graph import ComputationGraph


class Op(NamedTuple):
    """One op: what it does, with which parameters (in the operator's order), on the tensors of which ops, the shape of
    the tensor that it gives (one sample), and the block that it belongs to ("" for none)."""

    kind: str
    params: Params
    inputs: tuple[int, ...]
    shape: Shape
    block: str = ""

    def param(self, name: str) -> Any:
        return self.params[list(OPS[self.kind].params).index(name)]


class Architecture:
    """A network that cannot be changed: ops in topological order, the last of which is the output.

    Attributes:
        name: what it is called.
        ops: every one an input, or one that the output depends on; inputs first, in the order of the arguments.

    Architectures are equal, and hash equal, where their fingerprints are.

    Raises:
        InputError: ops out of order, an op that the output does not depend on, an input after other ops.
    """

    def __init__(self, name: str, ops: Sequence[Op]) -> None:
        self.name, self.ops = name, tuple(ops)
        if not self.ops:
            raise InputError(f"architecture {name!r} has no ops; give one at least")
        for index, op in enumerate(self.ops):
            if any(not 0 <= source < index for source in op.inputs):
                raise InputError(f"architecture {name!r}: op {index} ({op.kind}) reads {op.inputs}; give earlier ops")
            if op.kind == "input" and index >= len(self.inputs):
                raise InputError(f"architecture {name!r}: input {op.params[0]!r} is op {index}; give inputs first")
        names = [self.ops[index].params[0] for index in self.inputs]
        if len(set(names)) < len(names):
            raise InputError(f"architecture {name!r}: inputs {names} share a name; give each its own")
        unread = [i for i in range(len(self.inputs), len(self.ops) - 1) if not self.readers[i]]
        if unread:
            raise InputError(f"architecture {name!r}: nothing reads op {unread[0]} ({self.ops[unread[0]].kind})")

    def __len__(self) -> int:
        return len(self.ops)

    def __repr__(self) -> str:
        return f"Architecture({self.name!r}, ops={len(self)}, parameters={self.parameters})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __deepcopy__(self, memo: dict[int, Any]) -> Architecture:
        return self  # it cannot be changed

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the input ops."""
        return tuple(range(sum(op.kind == "input" for op in self.ops)))

    @property
    def output(self) -> int:
        return len(self.ops) - 1

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        return tuple(self.ops[index].shape for index in self.inputs)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each op, the ops that read its tensor, in order; one that reads it twice stands once."""
        readers: list[list[int]] = [[] for _ in self.ops]
        for index, op in enumerate(self.ops):
            for source in dict.fromkeys(op.inputs):
                readers[source].append(index)
        return tuple(map(tuple, readers))

    def operand_shapes(self, index: int) -> list[Shape]:
        return [self.ops[source].shape for source in self.ops[index].inputs]

    def trainable(self, index: int) -> dict[str, Shape]:
        """Shapes of the trainable tensors of an op, by name."""
        op = self.ops[index]
        return OPS[op.kind].trainable(self.operand_shapes(index), *op.params)

    @cached_property
    def parameters(self) -> int:
        """How many trainable numbers."""
        return sum(math.prod(shape) for index in range(len(self)) for shape in self.trainable(index).values())

    @cached_property
    def op_flops(self) -> tuple[int, ...]:
        """Of each op, floating-point operations of inference on one sample; a multiply-add counts as two."""
        return tuple(
            OPS[op.kind].flops(self.operand_shapes(index), op.shape, *op.params) for index, op in enumerate(self.ops)
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of inference on one sample."""
        return sum(self.op_flops)

    @property
    def multiply_adds(self) -> int:
        """Of the dense layers, convolutions and matrix products alone: what papers print as "FLOPs"."""
        return (
            sum(
                flops
                for op, flops in zip(self.ops, self.op_flops, strict=True)
                if op.kind in ("dense", "conv", "matmul")
            )
            // 2
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal hash of the structure (128 bits), stable between runs.

        It covers every op with all its parameters and the order of its operands, and which tensors are shared: one
        layer that two ops read differs from two equal layers. The order in which independent ops are listed, block
        labels and names (also those of inputs) do not matter.
        """
        number: dict[int, int] = {}  # ops as they are first met, depth first from the output
        stack = [self.output]
        lines = [repr(self.input_shapes)]
        while stack:
            index = stack.pop()
            op = self.ops[max(index, ~index)]
            if index < 0:  # ~index: all that it reads is numbered
                params = ~index if op.kind == "input" else op.params
                lines.append(f"{number[~index]} {op.kind} {params!r} {[number[source] for source in op.inputs]}")
            elif index not in number:
                number[index] = len(number)
                stack.append(~index)
                stack.extend(reversed(op.inputs))
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()

    @cached_property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        """The ops of each block, by its label, in order."""
        found: dict[str, list[int]] = {}
        for index, op in enumerate(self.ops):
            if op.block:
                found.setdefault(op.block, []).append(index)
        return {block: tuple(indices) for block, indices in found.items()}

    def renamed(self, name: str) -> Architecture:
        return Architecture(name, self.ops)

    def text(self) -> str:
        """The text form, which :func:`parse_architecture` reads."""
        return architecture_text(self)

    def to_json(self) -> dict[str, str]:
        """As a problem stores it where no catalog has it; :meth:`from_json` reads it."""
        return {"text": self.text()}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Architecture:
        with stored_whole("architecture"):
            return parse_architecture(given["text"], "stored architecture")

    def to_module(self, seed: int | None = 0, device: str = "cpu") -> ArchitectureModule:
        """As :func:`graphopt_gym.envs.architecture.torch_module.to_module`; imports torch."""
        from graphopt_gym.envs.architecture.torch_module import to_module

        return to_module(self, seed, device)

    def to_graph(self, batch: int = 1, train: bool = False, optimizer: str | None = "momentum") -> ComputationGraph:
        """As :func:`graphopt_gym.envs.architecture.convert.to_computation_graph`; imports torch."""
        from graphopt_gym.envs.architecture.convert import to_computation_graph

        return to_computation_graph(self, batch, train, optimizer)


class ArchitectureBuilder:
    """Builds an architecture::

    b = ArchitectureBuilder("linear classifier")
    x = b.input("image", (1, 8, 8))
    architecture = b.finish(b.op("dense", b.op("reshape", x, shape=(-1,)), features=10))
    """

    def __init__(self, name: str = "architecture") -> None:
        self.name = name
        self.block = ""  # the label that ops get which are added now
        self.ops: list[Op] = []

    def shape(self, index: int) -> Shape:
        return self.ops[index].shape

    def input(self, name: str, shape: Sequence[int]) -> int:
        return self.op("input", name=name, shape=tuple(shape))

    def op(self, kind: str, *inputs: int, **params: Any) -> int:
        """Adds an op with parameters by name; returns its index.

        Raises:
            InputError: unknown operator or parameter, or shapes that do not fit.
        """
        return self.add(kind, make_params(kind, params), inputs)

    def add(self, kind: str, params: Params, inputs: Sequence[int]) -> int:
        """As :meth:`op`, with the parameters as a tuple in the operator's order."""
        params, shape = infer(kind, [self.ops[source].shape for source in inputs], params)
        self.ops.append(Op(kind, params, tuple(inputs), shape, self.block))
        return len(self.ops) - 1

    def finish(self, output: int | None = None) -> Architecture:
        """The architecture that ends in an op, by default the last. What it does not depend on is dropped, inputs not.

        Raises:
            InputError: there are no ops.
        """
        if not self.ops:
            raise InputError(f"architecture {self.name!r} has no ops; give one at least")
        output = len(self.ops) - 1 if output is None else output
        kept = {output, *(index for index, op in enumerate(self.ops) if op.kind == "input")}
        for index in range(output, -1, -1):
            if index in kept:
                kept.update(self.ops[index].inputs)
        inputs = [index for index in sorted(kept) if self.ops[index].kind == "input"]
        others = [index for index in sorted(kept) if self.ops[index].kind != "input" and index != output]
        order = dict.fromkeys([*inputs, *others, output])
        number = {index: position for position, index in enumerate(order)}
        ops = [self.ops[index] for index in order]
        return Architecture(self.name, [op._replace(inputs=tuple(number[i] for i in op.inputs)) for op in ops])


def architecture_text(architecture: Architecture) -> str:
    """The text form: one op a line, in a small part of Python's syntax, so that it round-trips::

    "linear classifier"
    x0 = input(name="image", shape=(1, 8, 8))
    block("head")
    x1 = reshape(x0, shape=(64,))
    x2 = dense(x1, features=10)
    return x2

    ``block(...)`` labels the ops below it.
    """

    def literal(value: Any) -> str:
        return json.dumps(value) if isinstance(value, str) else repr(value)

    lines, block = [literal(architecture.name)], ""
    for index, op in enumerate(architecture.ops):
        if op.block != block:
            block = op.block
            lines.append(f"block({literal(block)})")
        given = [f"x{source}" for source in op.inputs]
        for (name, (_, default)), value in zip(OPS[op.kind].params.items(), op.params, strict=True):
            if value != default:
                given.append(f"{name}={literal(value)}")
        lines.append(f"x{index} = {op.kind}({', '.join(given)})")
    return "\n".join([*lines, f"return x{architecture.output}"]) + "\n"


def parse_architecture(text: str, where: str = "architecture") -> Architecture:
    """The architecture that a text describes; see :func:`architecture_text`. Nothing in it is executed.

    Args:
        where: what error messages call the text, such as its file.

    Raises:
        InputError: bad syntax, an unknown operator, parameter or name, or shapes that do not fit; with the line.
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        number = getattr(problem, "lineno", None) or 1
        raise InputError(f"{where}: line {number}: {getattr(problem, 'msg', None) or problem}") from None
    builder = ArchitectureBuilder()
    names: dict[str, int] = {}
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        builder.name = str(body.pop(0).value.value)  # type: ignore[attr-defined]
    for line in body:
        try:
            if isinstance(line, ast.Return) and line is body[-1]:
                return builder.finish(_known(names, line.value))
            _read_line(builder, names, line)
        except InputError as problem:
            raise InputError(f"{where}: line {line.lineno}: {problem}") from None
        except (ValueError, TypeError, SyntaxError, RecursionError):
            words = f"parameters must be numbers, tuples of numbers, True, False, or one of {', '.join(INITS)}"
            raise InputError(f"{where}: line {line.lineno}: {words}") from None
    raise InputError(f"{where}: it has no `return name` at its end")


def _read_line(builder: ArchitectureBuilder, names: dict[str, int], line: ast.stmt) -> None:
    value = line.value if isinstance(line, ast.Assign | ast.Expr) else None
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name):
        raise InputError("expected `name = op(...)`, `block(...)`, and `return name` as the last line")
    if isinstance(line, ast.Expr):
        if value.func.id != "block" or len(value.args) != 1 or value.keywords:
            raise InputError('expected `name = op(...)` or `block("label")`')
        builder.block = str(ast.literal_eval(value.args[0]))
    elif isinstance(line, ast.Assign):
        target = line.targets[0]
        if len(line.targets) != 1 or not isinstance(target, ast.Name) or target.id in names:
            raise InputError("expected one new name on the left")
        if any(keyword.arg is None for keyword in value.keywords):
            raise InputError("expected `parameter=value`")
        operands = [_known(names, operand) for operand in value.args]
        given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in value.keywords}
        names[target.id] = builder.op(value.func.id, *operands, **given)


def _known(names: dict[str, int], operand: ast.expr | None) -> int:
    if not isinstance(operand, ast.Name) or operand.id not in names:
        raise unknown_name("name", ast.unparse(operand) if operand is not None else "", names)
    return names[operand.id]
