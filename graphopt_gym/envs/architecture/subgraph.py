"""Parts of an architecture that a mutation replaces: connected subgraphs, cut into sequences of one-operand ops."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from graphopt_gym.envs.architecture.ops import OPS, Params, Shape, feature_axis, infer
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder, Op
from graphopt_gym.errors import InputError
from graphopt_gym.fields import whole

Steps = Sequence[tuple[str, Params]]  # operators with their parameters, one after the other


class Piece(NamedTuple):
    """Primitives of an architecture, each of which reads the one before it, and is read by nothing else but the last.

    Attributes:
        source: the op whose tensor the first reads.
        ops: indices, in order.
    """

    source: int
    ops: tuple[int, ...]


def pick_subgraph(
    architecture: Architecture, rng: np.random.Generator, most: int = 8, within: Collection[int] | None = None
) -> tuple[int, ...]:
    """A connected subgraph: it grows from a random primitive by random neighbours to a random number of ops.

    Args:
        most: ops; the number is drawn evenly from 1 to this.
        within: ops that it may hold; all by default.

    Raises:
        InputError: no primitive to start from, or ``most`` below 1.
    """
    most = whole("most", most, 1)
    inside = range(len(architecture)) if within is None else sorted(within)
    starts = [index for index in inside if OPS[architecture.ops[index].kind].role == "primitive"]
    if not starts:
        raise InputError(f"architecture {architecture.name!r} has no primitive to grow a subgraph from")
    size = int(rng.integers(1, most + 1))
    chosen = {starts[int(rng.integers(len(starts)))]}
    while len(chosen) < size:
        border = {
            neighbour
            for index in chosen
            for neighbour in (*architecture.ops[index].inputs, *architecture.readers[index])
            if OPS[architecture.ops[neighbour].kind].role != "source" and neighbour in inside
        } - chosen
        if not border:
            break
        ordered = sorted(border)
        chosen.add(ordered[int(rng.integers(len(ordered)))])
    return tuple(sorted(chosen))


def cut(architecture: Architecture, ops: Collection[int]) -> list[Piece]:
    """The sequences that a subgraph falls into where it is cut at all that is no primitive (ops of several operands,
    reshapes and their like) and where a tensor has several readers; in order.

    Raises:
        InputError: an index that is no op.
    """
    for index in ops:
        if not 0 <= index < len(architecture):
            raise InputError(f"subgraph has op {index}; give 0 to {len(architecture) - 1}")
    chosen = {index for index in ops if OPS[architecture.ops[index].kind].role == "primitive"}
    pieces: dict[int, Piece] = {}  # by the last op so far
    for index in sorted(chosen):
        (source,) = architecture.ops[index].inputs
        before = pieces.pop(source, None) if len(architecture.readers[source]) == 1 else None
        pieces[index] = Piece(before.source, (*before.ops, index)) if before else Piece(source, (index,))
    return sorted(pieces.values())


def free_sizes(architecture: Architecture, piece: Piece) -> tuple[bool, ...]:
    """For each dimension of what a piece gives, whether the architecture takes another size there and gives what it
    gave: twice as many features, an image of a part of the height or width.

    Most often features are free where a dense layer or a convolution takes them up, height and width where a mean does;
    sums and reshapes fix them.
    """
    last = piece.ops[-1]
    shape = architecture.ops[last].shape
    features = feature_axis(shape)
    free = []
    for axis, size in enumerate(shape):
        part = next((size // factor for factor in range(2, size + 1) if size % factor == 0), size)
        other = 2 * size if axis == features else part
        movable = axis == features or (len(shape) == 3 and part != size)
        free.append(movable and _takes(architecture, last, (*shape[:axis], other, *shape[axis + 1 :])))
    return tuple(free)


def _takes(architecture: Architecture, changed: int, shape: Shape) -> bool:
    """Whether all fits, and the output is as it was, where an op gives another shape."""
    shapes = {changed: shape}
    for index in range(changed + 1, len(architecture)):
        op = architecture.ops[index]
        if any(source in shapes for source in op.inputs):
            operands = [shapes.get(source, architecture.ops[source].shape) for source in op.inputs]
            try:
                shapes[index] = infer(op.kind, operands, op.params)[1]
            except InputError:
                return False
    return shapes.get(architecture.output, architecture.ops[-1].shape) == architecture.ops[-1].shape


def sequence(shape: Shape, steps: Steps, name: str = "piece") -> Architecture:
    """An architecture of ops one after the other, on one input.

    Raises:
        InputError: a step that does not fit.
    """
    builder = ArchitectureBuilder(name)
    index = builder.input("x", shape)
    for kind, params in steps:
        index = builder.add(kind, params, [index])
    return builder.finish(index)


def steps_of(architecture: Architecture, piece: Piece) -> list[tuple[str, Params]]:
    return [architecture.ops[index][:2] for index in piece.ops]


def as_architecture(architecture: Architecture, piece: Piece) -> Architecture:
    """A piece on its own."""
    return sequence(architecture.ops[piece.source].shape, steps_of(architecture, piece))


def replace(architecture: Architecture, by: Mapping[Piece, Steps], name: str | None = None) -> Architecture:
    """The architecture with pieces replaced; all shapes are inferred anew. New ops take the block of the piece's first.

    Raises:
        InputError: pieces that overlap, or ops that no longer fit.
    """
    inside: dict[int, Piece] = {}
    for piece in by:
        for index in piece.ops:
            if index in inside:
                raise InputError(f"pieces overlap at op {index}; give pieces of one cut")
            inside[index] = piece
    builder = ArchitectureBuilder(architecture.name if name is None else name)
    number: dict[int, int] = {}
    for index, op in enumerate(architecture.ops):
        if index not in inside:
            builder.block = op.block
            number[index] = builder.add(op.kind, op.params, [number[source] for source in op.inputs])
        elif index == inside[index].ops[-1]:
            piece = inside[index]
            builder.block = architecture.ops[piece.ops[0]].block
            last = number[piece.source]
            for kind, params in by[piece]:
                last = builder.add(kind, params, [last])
            number[index] = last
    return builder.finish(number[architecture.output])


def relative(op: Op, shape: Shape) -> tuple[Any, ...]:
    """What an op does relative to the tensor that it reads: equal for equal layers of different widths."""
    params = dict(zip(OPS[op.kind].params, op.params, strict=True))
    channels = shape[feature_axis(shape)]
    if "features" in params:
        params["features"] = Fraction(params["features"], channels)
    if params.get("groups", 1) > 1:
        params["groups"] = Fraction(params["groups"], channels) if params["groups"] == channels else params["groups"]
    return op.kind, len(shape), tuple(params.items())


def equal_pieces(architecture: Architecture, piece: Piece) -> list[Piece]:
    """All sequences of an architecture that are the same ops relative to their inputs, the given one first; those that
    overlap one before are left out (Jin et al.: a mutation is applied to equal blocks, too)."""

    def key(ops: Sequence[int]) -> list[Any]:
        return [
            relative(architecture.ops[index], architecture.operand_shapes(index)[0])
            if OPS[architecture.ops[index].kind].role == "primitive"
            else None
            for index in ops
        ]

    wanted = key(piece.ops)
    found, taken = [piece], set(piece.ops)
    for whole_piece in cut(architecture, range(len(architecture))):
        ops = whole_piece.ops
        for start in range(len(ops) - len(wanted) + 1):
            part = ops[start : start + len(wanted)]
            if not taken & set(part) and key(part) == wanted:
                found.append(Piece(architecture.ops[part[0]].inputs[0], part))
                taken |= set(part)
    return found
