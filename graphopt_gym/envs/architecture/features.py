"""What an agent sees of a network, as arrays; all floats lie in 0 to 1."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.envs.architecture import nasbench
from graphopt_gym.envs.architecture.moves import BLOCK_MUTATIONS, MUTATIONS, border, can_delete
from graphopt_gym.envs.architecture.ops import OPS, feature_axis
from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.envs.core.observation import ObservationTable, Part

if TYPE_CHECKING:
    from graphopt_gym.envs.architecture.problem import ArchitectureProblem

KINDS = {  # what a block's ops are counted as
    "window": "convolutions over several pixels",
    "point": "dense layers and 1x1 convolutions",
    "grouped": "convolutions in groups",
    "activation": "activations",
    "norm": "norms",
    "pool": "pools",
    "join": "sums, products, concatenations",
}
BLOCK_FEATURES = {
    "there": "1: a block",
    "ops": "its ops, squashed",
    "parameters": "its share of all trainable numbers",
    "flops": "its share of all FLOPs",
    "features": "features of what it gives: log2 to 12",
    "pixels": "height of the image that it gives: log2 to 8",
    "can_delete": "1: it gives the shape that it reads",
    **{name: f"share of its ops: {meaning}" for name, meaning in KINDS.items()},
    **{f"is_{name}": "1: this operation of a cell's edge" for name in nasbench.OPERATIONS},
    "live": "1: the cell's edge carries something",
}
PROGRESS_FEATURES = {
    "cost": "the network's objective to the seed's, squashed: 0.5 as much",
    "quality": "its quality, 0 to 1",
    "spare": "quality above what it has to be, squashed: 0.5 just so much",
    "valid": "1: it is a valid decision",
    "best": "the least cost of a valid network so far, squashed",
    "failed": "1: the last action changed nothing",
    "left": "share of the steps that are left",
}
# B blocks that there is room for, K mutations
TABLE = ObservationTable(
    (
        Part("blocks", ("B", len(BLOCK_FEATURES)), "share", "the features of every block, or of a cell's edge"),
        Part("progress", (len(PROGRESS_FEATURES),), "share", "the network and the episode so far", "none"),
        Part("action_mask", ("A",), "mask", "1: the action is legal"),
    )
)


def mutation_names(problem: ArchitectureProblem) -> tuple[str, ...]:
    """What may be done to a block; on the track ``table``, the operations that an edge may be given."""
    return nasbench.OPERATIONS if problem.track == "table" else MUTATIONS


def blocks_of(problem: ArchitectureProblem, decision: object) -> list[str]:
    """The blocks of a network by their labels, in order; a cell's edges."""
    if isinstance(decision, Architecture):
        return list(decision.blocks)
    return [f"{source}>{target}" for source, target in nasbench.EDGES]


@lru_cache(maxsize=2048)
def block_features(architecture: Architecture) -> np.ndarray:
    """float32 [blocks, F]: :data:`BLOCK_FEATURES` of a network."""
    out = np.zeros((len(architecture.blocks), len(BLOCK_FEATURES)), np.float32)
    at = {name: column for column, name in enumerate(BLOCK_FEATURES)}
    whole = max(1, architecture.parameters), max(1, architecture.flops)
    for row, (block, ops) in enumerate(architecture.blocks.items()):
        last = architecture.ops[ops[-1]].shape
        weights = sum(math.prod(shape) for index in ops for shape in architecture.trainable(index).values())
        values = {
            "there": 1.0,
            "ops": len(ops) / (8 + len(ops)),
            "parameters": weights / whole[0],
            "flops": sum(architecture.op_flops[index] for index in ops) / whole[1],
            "features": min(1.0, math.log2(last[feature_axis(last)]) / 12) if last else 0.0,
            "pixels": min(1.0, math.log2(last[1]) / 8) if len(last) == 3 else 0.0,
            "can_delete": float(can_delete(architecture, block)),
        }
        for index in ops:
            kind = _kind(architecture, index)
            if kind:
                values[kind] = values.get(kind, 0.0) + 1 / len(ops)
        for name, value in values.items():
            out[row, at[name]] = value
    out.flags.writeable = False
    return out


def _kind(architecture: Architecture, index: int) -> str:
    op = architecture.ops[index]
    if op.kind == "conv":
        if op.param("groups") > 1:
            return "grouped"
        return "window" if max(op.param("kernel")) > 1 else "point"
    if op.kind in ("add", "mul", "matmul", "concat"):
        return "join"
    if op.kind == "dense":
        return "point"
    if OPS[op.kind].segment == "nonlinear":
        return "activation"
    return "norm" if op.kind.endswith("norm") else "pool" if op.kind.endswith("pool") or op.kind == "mean" else ""


def edge_features(cell: nasbench.Cell) -> np.ndarray:
    """float32 [6, F]: :data:`BLOCK_FEATURES` of a cell's edges."""
    names = list(BLOCK_FEATURES)
    out = np.zeros((len(nasbench.EDGES), len(names)), np.float32)
    out[:, names.index("there")] = 1.0
    out[:, names.index("live")] = nasbench.live_edges(cell)
    out[np.arange(len(cell)), names.index(f"is_{nasbench.OPERATIONS[0]}") + np.array(cell)] = 1.0
    return out


@lru_cache(maxsize=2048)
def legal(architecture: Architecture, room: int) -> np.ndarray:
    """bool [blocks, K]: which mutations of which blocks may come to something; ``room``: for blocks."""
    out = np.zeros((len(architecture.blocks), len(MUTATIONS)), np.bool_)
    properties = len(MUTATIONS) - len(BLOCK_MUTATIONS)
    for row, (block, ops) in enumerate(architecture.blocks.items()):
        ends = border(architecture, block)
        out[row, :properties] = any(OPS[architecture.ops[index].kind].role == "primitive" for index in ops)
        out[row, MUTATIONS.index("delete")] = can_delete(architecture, block) and len(architecture.blocks) > 1
        # where it does not give what it reads, its copy may yet fit; that is tried
        out[row, MUTATIONS.index("duplicate")] = (
            ends is not None and ends[1] != architecture.output and len(architecture.blocks) < room
        )
    out.flags.writeable = False
    return out
