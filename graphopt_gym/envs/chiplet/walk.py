"""A partition that is made op after op: what it has come to, and the kernels that keep and show it.

Memory here is what certainly stays: parameters, two buffers for each tensor from elsewhere, one for each that is sent.
What lives and dies within a chip depends on ops still to come and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.chiplet.corrector import memory_facts
from graphopt_gym.envs.chiplet.features import CHIP_FEATURES, OP_FEATURES
from graphopt_gym.envs.chiplet.propagator import make_rules
from graphopt_gym.envs.core.observation import ObservationTable, Part

if TYPE_CHECKING:
    from graphopt_gym.envs.chiplet.problem import ChipletProblem

# name: meaning. Squashed: x / (1 + x). "So far": of the ops that have a chip.
STEP_CHIP_FEATURES = {
    "time": "time of the current op here to that of an average op, squashed",
    "load": "time of the ops here so far to an even share of the work, squashed",
    "link_load": "time that the busiest link leaving the chip carries so far to an even share of the work, squashed",
    "memory": "parameters and buffers here so far to the chip's memory, squashed",
    "bytes_in": "share of the current op's input bytes that ops here have made",
    "used": "1: holds an op",
}
PROGRESS_FEATURES = {
    "ops_decided": "share",
    "work_decided": "share of the time on an average chip",
    "chips_used": "share of the chips up to the highest that holds an op",
    "period": "time of the slowest chip or link so far to the greedy heuristic's period, squashed",
}
# N ops, C chips, E edges: the roster's padded sizes
ONE_SHOT = ObservationTable(
    (
        Part("nodes", ("N", len(OP_FEATURES)), "share", "the features of every op"),
        Part("node_mask", ("N",), "mask", "1: an op"),
        Part("edge_index", (2, "E"), "index", "producer and consumer of each edge", "-1", "N"),
        Part(
            "edge_bytes",
            ("E",),
            "share",
            "time on a link of what an edge carries, to a chip's even share of the work, squashed",
        ),
        Part("chips", ("C", len(CHIP_FEATURES)), "share", "the features of every chip"),
        Part("action_mask", ("C",), "mask", "1: a chip of the episode's package"),
    )
)
STEP = ObservationTable(
    (
        Part("op", (len(OP_FEATURES),), "share", "the features of the current op", "0 at the end of an episode"),
        Part(
            "chips",
            ("C", len(CHIP_FEATURES) + len(STEP_CHIP_FEATURES)),
            "share",
            "the features of every chip; the current op's time there; load, link and memory so far",
        ),
        Part("progress", (len(PROGRESS_FEATURES),), "share", "shares decided, chips in use, period so far", "none"),
        Part("action_mask", ("C",), "mask", "1: the action is legal; all chips at the end of an episode"),
    )
)


class Tables(NamedTuple):
    """Constants of one graph on one package. N ops, C chips, L links, P parameters, T tensors."""

    op_seconds: np.ndarray  # float64 [C, N]
    op_param_ptr: np.ndarray  # int32 [N+1] parameters that each op reads
    op_param: np.ndarray  # int32
    param_bytes: np.ndarray  # int64 [P]
    input_ptr: np.ndarray  # int32 [N+1] tensors that each op reads
    input_tensor: np.ndarray  # int32
    tensor_op: np.ndarray  # int32 [T] or -1
    tensor_bytes: np.ndarray  # int64 [T]
    route_ptr: np.ndarray  # int32 [C*C+1]
    route_link: np.ndarray  # int32
    link_from: np.ndarray  # int32 [L] the chip that each link leaves
    capacity: np.ndarray  # int64 [C]
    decided_work: np.ndarray  # float64 [N+1]: share of the work in the ops before each
    link_bytes_per_s: float
    op_scale: float  # 1 / time of an average op
    load_scale: float  # 1 / an even share of the work
    period_scale: float  # 1 / the greedy heuristic's period


def make_tables(problem: ChipletProblem, greedy_s: float) -> Tables:
    """Constants of a problem; ``greedy_s``: the period of the greedy heuristic."""
    package, ops, n = problem.package, problem.ops, problem.num_ops
    facts = make_rules(n, problem.num_chips, ops.edges, chain=True, memory=memory_facts(problem, 1.0)).memory
    work = problem.op_seconds.mean(axis=0)
    total = float(work.sum())
    share = work / total if total > 0 else np.full(n, 1.0 / n)
    return Tables(
        op_seconds=problem.op_seconds,
        op_param_ptr=facts.op_param_ptr,
        op_param=facts.op_param,
        param_bytes=facts.param_bytes,
        input_ptr=facts.input_ptr,
        input_tensor=facts.input_tensor,
        tensor_op=facts.tensor_op,
        tensor_bytes=facts.tensor_bytes,
        route_ptr=package.routes[0],
        route_link=package.routes[1],
        link_from=np.asarray([source for source, _ in package.links], np.int32),
        capacity=package.sram_bytes,
        decided_work=np.minimum(1.0, np.append(0.0, np.cumsum(share))),
        link_bytes_per_s=float(package.link_bytes_per_s),
        op_scale=n / total if total > 0 else 0.0,
        load_scale=problem.num_chips / total if total > 0 else 0.0,
        period_scale=1.0 / greedy_s if greedy_s > 0 else 0.0,
    )


class Walk(NamedTuple):
    """What changes in E episodes. Rows are padded to the largest graph and package."""

    current: np.ndarray  # int32 [E] the op to decide
    chip_of: np.ndarray  # int32 [E, max_ops]; -1: undecided, or padding
    seconds: np.ndarray  # float64 [E, max_chips] of the ops so far
    link_bytes: np.ndarray  # float64 [E, max_links]
    memory: np.ndarray  # int64 [E, max_chips]
    param_chips: np.ndarray  # int64 [E, max_params] chips that hold each parameter, as bits
    tensor_chips: np.ndarray  # int64 [E, max_tensors] chips that buffer each tensor, as bits


def new_walk(episodes: int, problems: Sequence[ChipletProblem], max_ops: int, max_chips: int) -> Walk:
    """Room for episodes on any of the problems."""

    def most(sizes: Iterable[int]) -> int:
        return max(1, *sizes)

    return Walk(
        current=np.zeros(episodes, np.int32),
        chip_of=np.full((episodes, max_ops), -1, np.int32),
        seconds=np.zeros((episodes, max_chips)),
        link_bytes=np.zeros((episodes, most(one.package.num_links for one in problems))),
        memory=np.zeros((episodes, max_chips), np.int64),
        param_chips=np.zeros((episodes, most(len(one.ops.param_bytes) for one in problems)), np.int64),
        tensor_chips=np.zeros((episodes, most(len(one.ops.tensor_bytes) for one in problems)), np.int64),
    )


@kernel(allocates=False)
def begin_walk(w, row):
    """Nothing decided."""
    w.current[row] = 0
    w.chip_of[row] = -1
    w.seconds[row] = 0.0
    w.link_bytes[row] = 0.0
    w.memory[row] = 0
    w.param_chips[row] = 0
    w.tensor_chips[row] = 0


@kernel
def take(t, w, row, chips):
    """Give the next ops of an episode the chips ``chips``, int32."""
    num_chips = t.op_seconds.shape[0]
    link_seen = np.zeros(t.link_from.shape[0], np.bool_)
    one = np.int64(1)
    for chip in chips:
        op = w.current[row]
        w.current[row] = op + 1
        w.chip_of[row, op] = chip
        w.seconds[row, chip] += t.op_seconds[chip, op]
        for k in range(t.op_param_ptr[op], t.op_param_ptr[op + 1]):
            param = t.op_param[k]
            if not w.param_chips[row, param] >> chip & 1:
                w.param_chips[row, param] |= one << chip
                w.memory[row, chip] += t.param_bytes[param]
        for k in range(t.input_ptr[op], t.input_ptr[op + 1]):
            tensor = t.input_tensor[k]
            producer = t.tensor_op[tensor]
            home = w.chip_of[row, producer] if producer >= 0 else -1
            there = w.tensor_chips[row, tensor]
            if home == chip or there >> chip & 1:
                continue
            w.tensor_chips[row, tensor] = there | one << chip
            w.memory[row, chip] += 2 * t.tensor_bytes[tensor]
            if home < 0:
                continue
            if there == 0:
                w.memory[row, home] += t.tensor_bytes[tensor]
            # a tensor passes a link once, however many chips beyond it read it
            link_seen[:] = False
            for other in range(num_chips):
                if there >> other & 1:
                    for way in range(t.route_ptr[home * num_chips + other], t.route_ptr[home * num_chips + other + 1]):
                        link_seen[t.route_link[way]] = True
            for way in range(t.route_ptr[home * num_chips + chip], t.route_ptr[home * num_chips + chip + 1]):
                if not link_seen[t.route_link[way]]:
                    w.link_bytes[row, t.route_link[way]] += t.tensor_bytes[tensor]


@kernel
def look(t, w, rows, at, chips_out, progress_out):
    """Fill rows ``at`` of float32 [B, C, K] (its last columns: STEP_CHIP_FEATURES) and [B, len(PROGRESS_FEATURES)]."""
    num_chips, num_ops = t.op_seconds.shape
    first = chips_out.shape[2] - 6
    bytes_in = np.empty(num_chips)
    link_s = np.empty(num_chips)
    for i in range(rows.shape[0]):
        row = rows[i]
        out = chips_out[at[i]]
        op = w.current[row]
        bytes_in[:] = 0.0
        all_bytes = 0.0
        if op < num_ops:
            for k in range(t.input_ptr[op], t.input_ptr[op + 1]):
                tensor = t.input_tensor[k]
                all_bytes += t.tensor_bytes[tensor]
                if t.tensor_op[tensor] >= 0:
                    bytes_in[w.chip_of[row, t.tensor_op[tensor]]] += t.tensor_bytes[tensor]
        link_s[:] = 0.0
        period = 0.0
        for link in range(t.link_from.shape[0]):
            seconds = w.link_bytes[row, link] / t.link_bytes_per_s
            link_s[t.link_from[link]] = max(link_s[t.link_from[link]], seconds)
            period = max(period, seconds)
        highest = -1
        for chip in range(num_chips):
            time = t.op_seconds[chip, op] * t.op_scale if op < num_ops else 0.0
            load = w.seconds[row, chip] * t.load_scale
            carried = link_s[chip] * t.load_scale
            held = w.memory[row, chip] / t.capacity[chip]
            period = max(period, w.seconds[row, chip])
            out[chip, first] = time / (1.0 + time)
            out[chip, first + 1] = load / (1.0 + load)
            out[chip, first + 2] = carried / (1.0 + carried)
            out[chip, first + 3] = held / (1.0 + held)
            out[chip, first + 4] = min(1.0, bytes_in[chip] / all_bytes) if all_bytes > 0 else 0.0
            out[chip, first + 5] = 0.0
        for before in range(op):
            chip = w.chip_of[row, before]
            out[chip, first + 5] = 1.0
            highest = max(highest, chip)
        ratio = period * t.period_scale
        progress_out[at[i], 0] = op / num_ops
        progress_out[at[i], 1] = t.decided_work[op]
        progress_out[at[i], 2] = (highest + 1) / num_chips
        progress_out[at[i], 3] = ratio / (1.0 + ratio)
