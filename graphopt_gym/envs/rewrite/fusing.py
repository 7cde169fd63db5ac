"""Which operators of a program onnxruntime runs inside the kernel of another one: they take no time of their own.

What its CPU provider fuses (version 1.20 to 1.32, all optimisations): into a convolution a constant for each channel
that is added or multiplied, then one sum with another image, then an activation; into a product with a constant matrix
a bias, and into one of matrices an activation; a scale by one number into the product before or behind it, and a
transposition of the last two axes into the product behind it; a constant that is added after one that is multiplied
(batch normalisation, which runs as a convolution of one pixel a channel); a sum of [N, S, C] into the layer
normalisation that alone reads it. Each only where nothing else reads what is between.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from graphopt_gym.graphs.tensor_program.ops import Params, Shape
from graphopt_gym.graphs.tensor_program.program import Change, TensorProgram

if TYPE_CHECKING:
    from graphopt_gym.envs.rewrite.saturation.egraph import EGraph, ENode

COPIES = ("split0", "split1")  # views of a program that onnxruntime copies
IMAGE_COPIES = 3  # times that it moves a part of an image: it leaves its own layout, is cut, and goes back
ACTIVATIONS = ("relu", "sigmoid", "tanh", "clip", "hardsigmoid", "leakyrelu")
DEEPEST = 4  # operators that one kernel holds at most, beside the first
KERNEL, CONSTANTS, SUM, ACTIVATED = range(4)  # how far a kernel has come
_AFTER_CONV = frozenset(("conv2d", "matmul", "add", "mul"))


def by_channel(constant: Shape, image: Shape) -> bool:
    """Whether a constant has one number for each channel of an image [N, C, H, W], or one for all."""
    if len(image) != 4 or len(constant) > 4:
        return False
    full = (1,) * (4 - len(constant)) + tuple(constant)
    return full[0] == full[2] == full[3] == 1 and full[1] in (1, image[1])


def by_column(constant: Shape, product: Shape) -> bool:
    """Whether a constant has one number for each column of a product."""
    return math.prod(constant) == product[-1] and constant[-1:] == product[-1:]


def swaps_last(perm: Shape) -> bool:
    """Whether a permutation exchanges the last two axes and nothing else."""
    rank = len(perm)
    return rank >= 2 and tuple(perm) == (*range(rank - 2), rank - 1, rank - 2)


def is_absorbed(program: TensorProgram, node: int) -> bool:
    """Whether an operator that is not constant takes no time of its own."""
    op, params, inputs, shape = program.nodes[node]
    if op == "smul":
        product = program.nodes[inputs[0]]
        if product.op == "matmul" and product.params == ("none",) and _alone(program, inputs[0], node):
            return True
        return _all_read_by(program, node, "matmul")
    if op == "transpose":
        return swaps_last(params[0]) and _all_read_by(program, node, "matmul")
    if op in ("conv2d", "matmul"):
        return False
    stage = _stage(program, node, DEEPEST)
    if stage is not None and stage[1] > KERNEL:
        return True
    return (
        op == "add"
        and len(shape) == 3
        and all(program.shape(source) == shape for source in inputs)
        and len(program.users(node)) == 1
        and _all_read_by(program, node, "layernorm")
    )


def _alone(program: TensorProgram, node: int, user: int) -> bool:
    return program.users(node) == (user,) and node not in program.outputs


def _all_read_by(program: TensorProgram, node: int, op: str) -> bool:
    users = program.users(node)
    return bool(users) and node not in program.outputs and all(program.nodes[user].op == op for user in users)


def _stage(program: TensorProgram, node: int, deepest: int) -> tuple[str, int] | None:
    """The kernel that an operator belongs to (of a convolution, or a product), and how far it has come; or None."""
    op, params, inputs, shape = program.nodes[node]
    if program.is_static(node):
        return None
    if op == "conv2d":
        return "conv", KERNEL if params[-1] == "none" else ACTIVATED
    if op == "matmul":
        return ("matmul", KERNEL if params[-1] == "none" else ACTIVATED) if program.is_static(inputs[1]) else None
    if not deepest:
        return None
    if op in ACTIVATIONS:
        below = _below(program, inputs[0], node, deepest)
        fits = below is not None and (below[0] == "conv" or (len(shape) == 2 and below[1] <= CONSTANTS))
        return (below[0], ACTIVATED) if below is not None and fits and below[1] < ACTIVATED else None
    if op not in ("add", "mul"):
        return None
    for x, other in (inputs, inputs[::-1]):
        if program.is_static(x) or program.shape(x) != shape:
            continue
        below = _below(program, x, node, deepest)
        if program.is_static(other):
            size = program.shape(other)
            if below is not None and below[0] == "conv" and below[1] <= CONSTANTS and by_channel(size, shape):
                return "conv", CONSTANTS
            if below == ("matmul", KERNEL) and op == "add" and by_column(size, shape):
                return "matmul", CONSTANTS
            if op == "mul" and by_channel(size, shape):
                return "conv", KERNEL  # a batch normalisation that nothing takes in
        elif op == "add" and program.shape(other) == shape and below in (("conv", KERNEL), ("conv", CONSTANTS)):
            return "conv", SUM
    return None


def _below(program: TensorProgram, node: int, user: int, deepest: int) -> tuple[str, int] | None:
    return _stage(program, node, deepest - 1) if _alone(program, node, user) else None


def as_run(operation: Any) -> Any:
    """What onnxruntime runs an operation as: a product with one matrix as one of two matrices, and an image's constants
    by channel as a convolution of one pixel a channel."""
    op, shape, inputs = operation.op, operation.shape, operation.inputs
    if op == "matmul" and len(inputs[1]) == 2 and len(shape) > 2:
        rows = math.prod(shape[:-1])
        return operation._replace(shape=(rows, shape[-1]), inputs=((rows, inputs[0][-1]), inputs[1]))
    if op == "mul" and any(operation.static):
        constant = operation.static.index(True)
        if inputs[1 - constant] == shape and by_channel(inputs[constant], shape):
            params = ((1, 1), "same", "none")
            return operation._replace(
                op="conv2d", params=params, inputs=(shape, (shape[1], 1, 1, 1)), static=(False, True), same=(0, 1)
            )
    return operation


def touched(before: TensorProgram, program: TensorProgram, change: Change) -> set[int]:
    """The nodes of an edited program that may be absorbed otherwise than before."""
    nodes = program.nodes
    near = set(change.added | change.rewired | change.folded)
    near |= {source for node in near for source in nodes[node].inputs}
    gone = change.removed | change.rewired
    near |= {source for node in gone for source in before.nodes[node].inputs if source in nodes}
    near |= {*program.outputs} | {output for output in before.outputs if output in nodes}
    fringe = near
    for _ in range(DEEPEST + 1):
        fringe = {user for node in fringe for user in program.users(node)} - near
        near |= fringe
    return near


def may_be_absorbed(graph: EGraph, node: ENode, users: Collection[str]) -> bool:
    """Whether an e-node might take no time of its own in some program, so that a bound stays one.

    Args:
        users: operators that read its class.
    """
    op = node.op
    if op == "transpose":
        return swaps_last(node.params[0]) and "matmul" in users
    if op == "smul":
        return "matmul" in users or _holds(graph, node.children[0], ("matmul",))
    if op in ACTIVATIONS or op in ("add", "mul"):
        dynamic = [child for child in node.children if not graph.static[child]]
        if any(_holds(graph, child, _AFTER_CONV) for child in dynamic):
            return True
        return op == "add" and "layernorm" in users
    return False


def _holds(graph: EGraph, cls: int, ops: Collection[str]) -> bool:
    return any(op in ops and nodes for op, nodes in graph.by_op[graph.find(cls)].items())  # type: ignore[union-attr]


def copied(op: str, params: Params, shape: Shape) -> float:
    """How often a view of a program is moved; 0 for one that is a view in onnxruntime, too."""
    return 0.0 if op not in COPIES else IMAGE_COPIES if len(shape) == 4 else 1.0
