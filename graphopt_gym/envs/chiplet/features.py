"""What an agent sees of a graph and a package: features of ops, chips and edges, all in 0 to 1 on any input.

Sizes are relative to the instance (an op's time to a chip's even share of the work), so that what is learned on one
graph and package means the same on another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.chiplet.ops import HOST
from graphopt_gym.graphs.graph import OP_CLASSES, SOURCE, VIEW

if TYPE_CHECKING:
    from graphopt_gym.envs.chiplet.problem import ChipletProblem

_CLASSES = [code for code in range(len(OP_CLASSES)) if code not in (SOURCE, VIEW)]

# name: meaning. Squashed: x / (1 + x). "Work" is time on an average chip.
OP_FEATURES = {
    "time_to_average": "time to that of an average op, squashed",
    "time_to_share": "time to a chip's even share of the work, squashed",
    "work_before": "share of the work before the op in topological order, with half its own",
    "work_above": "share of the work of the op's ancestors: what must run before it",
    "work_below": "share of the work of its descendants: what must run after it",
    "level": "longest way from an op without inputs, to the longest way",
    "height": "longest way to an op without outputs, to the longest way",
    "parameters": "bytes of its parameters to an average chip's memory, times chips, squashed",
    "parameters_before": "share of the parameters' bytes before the op, with half its own",
    "output": "time of its output on a link to a chip's even share of the work, squashed",
    "input": "time of its inputs on a link to a chip's even share of the work, squashed",
    "crossing": "time on a link of what crosses a cut before the op to a chip's even share of the work, squashed",
    "fan_in": "producers that it reads from, squashed",
    "fan_out": "ops that read its output, squashed",
    "reach_work": "share of the work between the op and the last op that reads its output",
    "need_work": "share of the work between the earliest op that it reads from and the op",
    **{f"is_{OP_CLASSES[code]}": "1: an op of this class" for code in _CLASSES},
}
CHIP_FEATURES = {
    "exists": "1: a chip of the package",
    "place": "its place in the package: 0 the first, 1 the last",
    "speed": "its speed on this graph to the fastest chip's",
    "sram": "its memory to the largest",
    "parameters": "bytes of all parameters to the memory of all chips, squashed",
    "heaviest": "time of the heaviest op to a chip's even share of the work, squashed",
    "transfer": "time of all tensors on one link to the whole work, squashed",
    "chips": "chips to ops, squashed",
    "carried": "bytes that a link carries in a chip's even share of the work to an average chip's memory, squashed",
}


def op_features(problem: ChipletProblem) -> np.ndarray:
    """float32 [N, F] in 0..1: a row an op, its columns named in OP_FEATURES."""
    ops, n, chips = problem.ops, problem.num_ops, problem.num_chips
    graph, root = ops.tasks.graph, ops.tasks.first_op[ops.task]
    work = problem.op_seconds.mean(axis=0)
    total = float(work.sum()) or 1.0
    share = work / total if work.sum() > 0 else np.full(n, 1.0 / n)
    middle = np.cumsum(share) - share / 2
    per_chip = total / chips
    above, below, level, height = _relatives(ops.edges, share)

    parameters = np.zeros(n)
    readers = np.diff(ops.param_ptr)
    np.add.at(parameters, ops.param_reader, np.repeat(ops.param_bytes / np.maximum(readers, 1), readers))
    all_parameters = float(parameters.sum()) or 1.0
    held = np.cumsum(parameters) - parameters / 2

    link_s = ops.tensor_bytes / problem.package.link_bytes_per_s
    made = ops.tensor_op != HOST
    output, entered = np.zeros(n), np.zeros(n)
    np.add.at(output, ops.tensor_op[made], link_s[made])
    np.add.at(entered, ops.reader, np.repeat(link_s, np.diff(ops.reader_ptr)))
    crossing = np.zeros(n + 1)
    farthest = np.arange(n)
    earliest = np.arange(n)
    if len(ops.edges):
        np.maximum.at(farthest, ops.edges[:, 0], ops.edges[:, 1])
        np.minimum.at(earliest, ops.edges[:, 1], ops.edges[:, 0])
    np.add.at(crossing, np.arange(n) + 1, output)
    np.add.at(crossing, farthest + 1, -output)

    columns = [
        _squash(share * n),
        _squash(work / per_chip),
        middle,
        above,
        below,
        level,
        height,
        _squash(parameters * chips / problem.package.sram_bytes.mean()),
        held / all_parameters,
        _squash(output / per_chip),
        _squash(entered / per_chip),
        _squash(np.maximum(np.cumsum(crossing)[:n], 0.0) / per_chip),
        _squash(np.bincount(ops.edges[:, 1], minlength=n)),
        _squash(np.bincount(ops.edges[:, 0], minlength=n)),
        middle[farthest] - middle,
        middle - middle[earliest],
        *(graph.op_class[root] == code for code in _CLASSES),
    ]
    features = np.column_stack(columns).clip(0.0, 1.0).astype(np.float32)
    assert features.shape == (n, len(OP_FEATURES))
    return features


def chip_features(problem: ChipletProblem) -> np.ndarray:
    """float32 [C, K] in 0..1: a row a chip, its columns named in CHIP_FEATURES."""
    package, chips = problem.package, problem.num_chips
    seconds = problem.op_seconds.sum(axis=1)
    work = problem.op_seconds.mean(axis=0)
    total = float(work.sum()) or 1.0
    fastest = float(seconds.min())
    out = np.ones((chips, len(CHIP_FEATURES)))
    out[:, 1] = np.arange(chips) / max(chips - 1, 1)
    out[:, 2] = fastest / seconds if fastest > 0 else 1.0
    out[:, 3] = package.sram_bytes / package.sram_bytes.max()
    out[:, 4] = _squash(float(problem.ops.param_bytes.sum()) / package.sram_bytes.sum())
    out[:, 5] = _squash(float(work.max()) * chips / total)
    out[:, 6] = _squash(float(problem.ops.tensor_bytes.sum()) / package.link_bytes_per_s / total)
    out[:, 7] = _squash(chips / problem.num_ops)
    out[:, 8] = _squash(total / chips * package.link_bytes_per_s / package.sram_bytes.mean())
    return out.clip(0.0, 1.0).astype(np.float32)


def edge_features(problem: ChipletProblem) -> np.ndarray:
    """float32 [E] in 0..1: time on a link of what each edge of ``problem.ops.edges`` carries, to a chip's even share of
    the work, squashed."""
    ops = problem.ops
    total = float(problem.op_seconds.mean(axis=0).sum()) or 1.0
    producer = np.repeat(ops.tensor_op, np.diff(ops.reader_ptr)).astype(np.int64)
    carried = np.repeat(ops.tensor_bytes, np.diff(ops.reader_ptr)) / problem.package.link_bytes_per_s
    inside = producer != HOST
    keys = ops.edges[:, 0].astype(np.int64) * problem.num_ops + ops.edges[:, 1]
    seconds = np.zeros(len(keys))
    np.add.at(seconds, np.searchsorted(keys, producer[inside] * problem.num_ops + ops.reader[inside]), carried[inside])
    return _squash(seconds * problem.num_chips / total).astype(np.float32)


def _squash(ratio: np.ndarray | float) -> np.ndarray:
    return np.asarray(ratio, np.float64) / (1.0 + np.asarray(ratio, np.float64))


def _relatives(edges: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(shares of the work of ancestors and of descendants, level and height to the longest way), float64 [N] each."""
    n = len(share)
    above, level = _one_way(edges, share)
    below, height = _one_way(np.ascontiguousarray(n - 1 - edges[:, ::-1])[::-1], share[::-1].copy())
    longest = max(1.0, level.max())
    return above, below[::-1], level / longest, height[::-1] / longest


def _one_way(edges: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    by_consumer = edges[np.argsort(edges[:, 1], kind="stable")]
    pointers = np.append(0, np.cumsum(np.bincount(by_consumer[:, 1], minlength=len(share))))
    return _ancestors(pointers, np.ascontiguousarray(by_consumer[:, 0]), share)  # type: ignore[no-any-return]


@kernel
def _ancestors(pred_ptr, pred, share):
    """(share of all ancestors, longest way from an op without producers) of each op; reachability as bits."""
    n = share.shape[0]
    words = (n + 63) // 64
    reached = np.zeros((n, words), np.uint64)
    above, level = np.zeros(n), np.zeros(n)
    for op in range(n):
        for position in range(pred_ptr[op], pred_ptr[op + 1]):
            producer = pred[position]
            level[op] = max(level[op], level[producer] + 1.0)
            for word in range(words):
                reached[op, word] |= reached[producer, word]
            reached[op, producer // 64] |= np.uint64(1) << np.uint64(producer % 64)
        for word in range(words):
            if reached[op, word]:
                for bit in range(64):
                    if reached[op, word] >> np.uint64(bit) & np.uint64(1):
                        above[op] += share[word * 64 + bit]
    return above, level
