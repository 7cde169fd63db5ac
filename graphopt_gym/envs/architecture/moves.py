"""What a search does to an architecture in one step: mutations of blocks, directed by properties or not.

alpha-NAS mutates the properties of a subgraph and synthesises one that has them, or deletes or duplicates a block (Jin,
Phothilimthana, Roy, OOPSLA 2022). Beside these stand the mutations that the paper compares with inside the same loop:
ops deleted, inserted and swapped (after So et al., Primer, NeurIPS 2021), and random components (after Real et al.,
AutoML-Zero, ICML 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from graphopt_gym.envs.architecture.ops import OPS, Params, Shape, infer
from graphopt_gym.envs.architecture.primitives import Primitive, classes_by_kind
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder
from graphopt_gym.envs.architecture.properties import Requirement
from graphopt_gym.envs.architecture.subgraph import Piece, Steps, pick_subgraph, replace
from graphopt_gym.envs.architecture.synthesis import Mutate, mutate_subgraph
from graphopt_gym.errors import InputError

MOST_OPS = 8  # of a subgraph that is mutated
PART = 8  # ops of a block where an architecture names none
ATTEMPTS = 3  # of a synthesis
Move = Callable[[Architecture, np.random.Generator], Architecture | None]


def labelled(architecture: Architecture) -> Architecture:
    """An architecture all of whose ops belong to blocks: where it names none, every :data:`PART` ops are one."""
    if architecture.blocks:
        return architecture
    first = len(architecture.inputs)
    ops = [
        op if index < first else op._replace(block=f"part{(index - first) // PART}")
        for index, op in enumerate(architecture.ops)
    ]
    return Architecture(architecture.name, ops)


# -- mutated properties ------------------------------------------------------------------------------------------------


def _deeper(by: Sequence[int]) -> Mutate:
    def mutate(asked: Requirement, rng: np.random.Generator) -> Requirement:
        moved = int(rng.choice(by))
        return Requirement(asked.mixing, tuple(max(0, one + moved) for one in asked.depth), asked.shape)

    return mutate


def _free(*names: str, depth: Sequence[int] = (0,)) -> Mutate:
    """Some properties are not asked for, the depth moved by one of ``depth``."""
    deeper = _deeper(depth)

    def mutate(asked: Requirement, rng: np.random.Generator) -> Requirement:
        return deeper(asked, rng).only(*[one for one in ("mixing", "depth", "shape") if one not in names])

    return mutate


# what may be asked of a block in place of all that it is
PROPERTY_MUTATIONS: dict[str, Mutate] = {
    "same": _free(),
    "shallower": _deeper((-2, -1)),
    "deeper": _deeper((1, 2)),
    "free_shape": _free("shape"),
    "free_mixing": _free("mixing"),
    "free_shape_shallower": _free("shape", depth=(-2, -1)),
    "free_mixing_shallower": _free("mixing", depth=(-2, -1)),
    "random": Requirement.mutated,
}
BLOCK_MUTATIONS = ("delete", "duplicate")
MUTATIONS = (*PROPERTY_MUTATIONS, *BLOCK_MUTATIONS)


def mutate_block(
    architecture: Architecture,
    block: str,
    mutation: str,
    rng: np.random.Generator,
    *,
    method: str = "progressive",
    properties: Sequence[str] | None = None,
) -> Architecture | None:
    """A child whose block, and all that equals what is changed of it, is another; None where that fails.

    Args:
        mutation: one of :data:`MUTATIONS`.
        method, properties: as for :func:`mutate_subgraph`.
    """
    if mutation == "delete":
        return delete_block(architecture, block)
    if mutation == "duplicate":
        return duplicate_block(architecture, block)
    ops = architecture.blocks[block]
    if not any(OPS[architecture.ops[index].kind].role == "primitive" for index in ops):
        return None
    chosen = pick_subgraph(architecture, rng, MOST_OPS, ops)
    options: dict[str, Any] = {} if method == "enumerative" else {"attempts": ATTEMPTS}
    made = mutate_subgraph(
        architecture, chosen, rng, method=method, properties=properties, mutate=PROPERTY_MUTATIONS[mutation], run=False,
        **options,
    )  # fmt: skip
    return made.architecture


# -- whole blocks ------------------------------------------------------------------------------------------------------


def border(architecture: Architecture, block: str) -> tuple[int, int] | None:
    """(the one op outside that a block reads, the one op of it that is read outside); None where there are several."""
    inside = set(architecture.blocks.get(block, ()))
    sources = {
        source
        for index in inside
        for source in architecture.ops[index].inputs
        if source not in inside and architecture.ops[source].kind != "param"
    }
    ends = {
        index for index in inside if index == architecture.output or not inside.issuperset(architecture.readers[index])
    }
    return (sources.pop(), ends.pop()) if len(sources) == len(ends) == 1 else None


def can_delete(architecture: Architecture, block: str) -> bool:
    """Whether a block gives what it reads in shape, so that the network can do without it."""
    ends = border(architecture, block)
    return ends is not None and architecture.ops[ends[0]].shape == architecture.ops[ends[1]].shape


def delete_block(architecture: Architecture, block: str) -> Architecture | None:
    """The architecture without a block: what read it reads what it read. None where that does not fit."""
    ends = border(architecture, block)
    if ends is None or not can_delete(architecture, block):
        return None
    builder, number = ArchitectureBuilder(architecture.name), dict[int, int]()
    inside = set(architecture.blocks[block])
    for index, op in enumerate(architecture.ops):
        if index in inside:
            number[index] = number.get(ends[0], -1)  # of those only the last is read, behind what the block reads
        else:
            builder.block = op.block
            number[index] = builder.add(op.kind, op.params, [number[source] for source in op.inputs])
    return builder.finish(number[architecture.output])


def duplicate_block(architecture: Architecture, block: str) -> Architecture | None:
    """The architecture with a block twice, the second behind the first. None where that does not fit, as where the
    network no longer gives what it gave."""
    ends = border(architecture, block)
    if ends is None or ends[1] == architecture.output:
        return None
    builder, number = ArchitectureBuilder(architecture.name), dict[int, int]()
    inside = architecture.blocks[block]
    label = next(name for copy in range(2, 10**6) if (name := f"{block}~{copy}") not in architecture.blocks)
    try:
        for index, op in enumerate(architecture.ops):
            builder.block = op.block
            number[index] = builder.add(op.kind, op.params, [number[source] for source in op.inputs])
            if index == ends[1]:
                again = {ends[0]: number[index]}
                builder.block = label
                for inner in inside:
                    one = architecture.ops[inner]
                    operands = [again.get(source, number.get(source, -1)) for source in one.inputs]
                    again[inner] = builder.add(one.kind, one.params, operands)
                number[index] = again[ends[1]]
        child = builder.finish(number[architecture.output])
    except InputError:
        return None
    return child if child.ops[-1].shape == architecture.ops[-1].shape else None


# -- a step of a search ------------------------------------------------------------------------------------------------


def alpha_nas(
    architecture: Architecture,
    rng: np.random.Generator,
    *,
    method: str = "progressive",
    properties: Sequence[str] | None = None,
) -> Architecture | None:
    """A block, each evenly, mutated: two times in three its properties at random, else deleted or duplicated."""
    blocks = list(architecture.blocks)
    block = blocks[int(rng.integers(len(blocks)))]
    mutation = ("random", "random", "random", "random", "delete", "duplicate")[int(rng.integers(6))]
    return mutate_block(architecture, block, mutation, rng, method=method, properties=properties)


def primer_like(architecture: Architecture, rng: np.random.Generator) -> Architecture | None:
    """One op deleted, inserted or swapped for another, without properties (after So et al., Primer, NeurIPS 2021)."""
    piece = _random_piece(architecture, rng)
    if piece is None:
        return None
    op, kind = architecture.ops[piece.ops[0]], ("delete", "insert", "swap")[int(rng.integers(3))]
    kept = [(op.kind, op.params)] if kind == "insert" else []
    return _replaced(architecture, piece, _random_ops(architecture, piece, kept, int(kind != "delete"), rng))


def automl_zero_like(architecture: Architecture, rng: np.random.Generator) -> Architecture | None:
    """A random op inserted or removed, or a component of up to :data:`MOST_OPS` random ops in the place of an op (after
    Real et al., AutoML-Zero, ICML 2020)."""
    piece = _random_piece(architecture, rng)
    if piece is None:
        return None
    op, kind = architecture.ops[piece.ops[0]], ("insert", "remove", "component")[int(rng.integers(3))]
    count = {"insert": 1, "remove": 0, "component": int(rng.integers(1, MOST_OPS + 1))}[kind]
    kept = [(op.kind, op.params)] if kind == "insert" else []
    return _replaced(architecture, piece, _random_ops(architecture, piece, kept, count, rng))


def _random_piece(architecture: Architecture, rng: np.random.Generator) -> Piece | None:
    """A primitive by itself, each evenly, the output aside."""
    ops = [
        index
        for index, op in enumerate(architecture.ops)
        if OPS[op.kind].role == "primitive" and index != architecture.output
    ]
    if not ops:
        return None
    index = ops[int(rng.integers(len(ops)))]
    return Piece(architecture.ops[index].inputs[0], (index,))


def _random_ops(
    architecture: Architecture, piece: Piece, kept: Steps, count: int, rng: np.random.Generator
) -> Steps | None:
    """``kept``, and so many random ops behind them; None where nothing fits."""
    steps, shape = [*kept], architecture.ops[piece.ops[0] if kept else piece.source].shape
    for _ in range(count):
        drawn = _random_op(shape, rng)
        if drawn is None:
            return None
        steps.append(drawn)
        shape = infer(drawn[0], [shape], drawn[1])[1]
    return steps


def _random_op(shape: Shape, rng: np.random.Generator) -> tuple[str, Params] | None:
    """An operator, each evenly, then one of its primitives that fit."""
    members: dict[str, list[Primitive]] = {}
    for one in classes_by_kind(shape, None):
        members.setdefault(one.members[0].kind, []).extend(one.members)
    if not members:
        return None
    kind = list(members)[int(rng.integers(len(members)))]
    member = members[kind][int(rng.integers(len(members[kind])))]
    fits = member.on(shape)
    return None if fits is None else (kind, fits[0])


def _replaced(architecture: Architecture, piece: Piece, steps: Steps | None) -> Architecture | None:
    """None where it does not fit, or the network no longer gives what it gave."""
    if steps is None:
        return None
    try:
        child = replace(architecture, {piece: steps})
    except InputError:
        return None
    same = child.ops[-1].shape == architecture.ops[-1].shape
    return child if same and child != architecture else None


MOVES: dict[str, Move] = {
    "alpha_nas": alpha_nas,
    "mixing_only": partial(alpha_nas, properties=("mixing",)),
    "depth_only": partial(alpha_nas, properties=("depth",)),
    "shape_only": partial(alpha_nas, properties=("shape",)),
    "undirected": partial(alpha_nas, method="undirected"),
    "primer_like": primer_like,
    "automl_zero_like": automl_zero_like,
}
