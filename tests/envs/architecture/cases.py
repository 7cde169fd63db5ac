"""Operators of the grammar with parameters, and random architectures, for several tests."""

from __future__ import annotations

import numpy as np

from graphopt_gym.envs.architecture.ops import OPS, PRIMITIVES
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder
from graphopt_gym.errors import InputError

IMAGE, TOKENS, VECTOR = (8, 12, 12), (6, 8), (8,)

# (op, parameters, operand shapes): every operator, every parameter away from its default once at least
CASES = [
    *[
        ("conv", {"features": f, "kernel": k, "stride": s, "groups": g, "dilation": d, "padding": p}, [IMAGE])
        for f, k, s, g, d, p in [
            (8, 1, 1, 1, 1, None),
            (16, 1, 2, 1, 1, None),
            (8, 1, 1, 8, 1, None),
            (16, 1, 1, 8, 1, None),
            (8, 1, 1, 2, 1, None),
            (8, 3, 1, 1, 1, None),
            (4, 3, 1, 2, 1, None),
            (8, 3, 1, 4, 1, None),
            (8, 3, 2, 1, 1, None),
            (8, 3, 3, 1, 1, 0),
            (8, 3, 1, 8, 1, None),
            (16, 3, 1, 8, 2, None),
            (8, 5, 1, 1, 1, None),
            (8, 5, 1, 8, 2, None),
            (2, 3, 1, 1, 4, None),
            (8, 12, 1, 1, 1, 0),
            (8, (1, 12), 1, 8, 1, 0),
            (8, (3, 1), 1, 1, 1, None),
            (8, (1, 5), (1, 5), 8, 1, 0),
            (8, 25, 1, 1, 1, None),
        ]
    ],
    ("dense", {"features": 4}, [IMAGE]),
    ("dense", {"features": 4, "axis": -1}, [IMAGE]),
    ("dense", {"features": 5, "axis": 1, "bias": False}, [IMAGE]),
    ("dense", {"features": 4}, [TOKENS]),
    ("dense", {"features": 4, "axis": 0}, [TOKENS]),
    ("dense", {"features": 16}, [VECTOR]),
    *[(kind, {}, [shape]) for kind in ("relu", "gelu", "silu", "sigmoid") for shape in (IMAGE, TOKENS, VECTOR)],
    *[(kind, {"axis": a}, [IMAGE]) for kind in ("softmax", "layer_norm", "batch_norm") for a in (None, 1, 2)],
    *[(kind, {"axis": a}, [TOKENS]) for kind in ("softmax", "layer_norm", "batch_norm") for a in (None, 0)],
    *[(kind, {}, [VECTOR]) for kind in ("softmax", "layer_norm", "batch_norm")],
    *[("group_norm", {"groups": g}, [IMAGE]) for g in (1, 2, 4, 8)],
    ("dropout", {"rate": 0.3}, [IMAGE]),
    ("smul", {"factor": 0.5}, [TOKENS]),
    *[
        (kind, {"kernel": k, "stride": s, "padding": p}, [IMAGE])
        for kind in ("avg_pool", "max_pool")
        for k, s, p in [(2, None, 0), (3, 1, 1), (3, 2, 1), (1, 1, 0), (12, None, 0), ((1, 12), 1, 0), (5, 1, 2)]
    ],
    ("add", {}, [IMAGE, IMAGE]),
    ("mul", {}, [IMAGE, (8, 1, 1)]),
    ("add", {}, [TOKENS, VECTOR]),
    ("mul", {}, [TOKENS, TOKENS]),
    ("matmul", {}, [(2, 5, 4), (2, 4, 3)]),
    ("matmul", {}, [(5, 4), (4, 3)]),
    ("matmul", {}, [(2, 5, 4), (4, 3)]),
    ("mean", {"axes": (1, 2)}, [IMAGE]),
    ("mean", {"axes": (0,), "keep": True}, [TOKENS]),
    ("mean", {"axes": (0,)}, [TOKENS]),
    ("reshape", {"shape": (8, -1)}, [IMAGE]),
    ("reshape", {"shape": (-1,)}, [IMAGE]),
    ("reshape", {"shape": (2, 4, 12, 12)}, [IMAGE]),
    ("reshape", {"shape": (8, 3)}, [(4, 6)]),
    ("reshape", {"shape": (6, 4)}, [(4, 6)]),
    ("reshape", {"shape": (6, 1, 8)}, [TOKENS]),
    ("transpose", {"perm": (1, 2, 0)}, [IMAGE]),
    ("slice", {"axis": 0, "start": 2, "stop": 5}, [IMAGE]),
    ("slice", {"axis": -1, "start": 0, "stop": 1}, [TOKENS]),
    ("concat", {"axis": 0}, [IMAGE, IMAGE]),
    ("concat", {"axis": 1}, [TOKENS, (6, 3), TOKENS]),
]


def one_op(kind, params, shapes) -> Architecture:
    """An architecture of one op."""
    b = ArchitectureBuilder(kind)
    inputs = [b.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    return b.finish(b.op(kind, *inputs, **params))


def random_architecture(seed: int, ops: int = 12, image=IMAGE) -> Architecture:
    """A connected network of random ops of the grammar, with branches and joins."""
    rng = np.random.default_rng(seed)
    b = ArchitectureBuilder(f"random{seed}")
    b.input("image", image)
    kinds = [*PRIMITIVES, "add", "mul", "reshape", "transpose", "concat", "slice"]
    while len(b.ops) <= ops:
        kind = str(rng.choice(kinds))
        rank_cases = [case for case in CASES if case[0] == kind]
        _, params, shapes = rank_cases[int(rng.integers(len(rank_cases)))]
        picked = [int(rng.integers(max(0, len(b.ops) - 3), len(b.ops))) for _ in shapes]
        try:
            b.block = f"part{len(b.ops) // 4}"
            b.op(kind, *picked, **params)
        except InputError:
            continue
    # join what nothing reads, so that nothing is dropped
    read = {source for op in b.ops for source in op.inputs}
    loose = [index for index in range(1, len(b.ops)) if index not in read]
    total = None
    for index in loose:
        flat = b.op("dense", b.op("reshape", index, shape=(-1,)), features=5)
        total = flat if total is None else b.op("add", total, flat)
    return b.finish(total)


def covered() -> set[str]:
    return {kind for kind, _, _ in CASES} | {"input", "param"}


assert covered() == set(OPS)
