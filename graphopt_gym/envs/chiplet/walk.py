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
from graphopt_gym.envs.chiplet.propagator import conclude, make_rules, probe, restore, state_at
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
    """Constants of one graph on one package. N ops, C chips, L links, P parameters, T tensors, F and K features."""

    op_features: np.ndarray  # float32 [N+1, F]; the last row is 0
    chip_features: np.ndarray  # float32 [C, K]
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


def make_tables(problem: ChipletProblem, greedy_s: float, op_features: np.ndarray, chip_features: np.ndarray) -> Tables:
    """Constants of a problem; ``greedy_s``: the period of the greedy heuristic; the features as :class:`Tables` has
    them."""
    package, ops, n = problem.package, problem.ops, problem.num_ops
    facts = make_rules(n, problem.num_chips, ops.edges, chain=True, memory=memory_facts(problem, 1.0)).memory
    work = problem.op_seconds.mean(axis=0)
    total = float(work.sum())
    share = work / total if total > 0 else np.full(n, 1.0 / n)
    return Tables(
        op_features=op_features,
        chip_features=chip_features,
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
    """What changes in E episodes, what of it is seen, and room. Rows are padded to the largest graph and package."""

    current: np.ndarray  # int32 [E] the op to decide
    chip_of: np.ndarray  # int32 [E, max_ops]; -1: undecided, or padding
    seconds: np.ndarray  # float64 [E, max_chips] of the ops so far
    link_bytes: np.ndarray  # float64 [E, max_links]
    memory: np.ndarray  # int64 [E, max_chips]
    param_chips: np.ndarray  # int64 [E, max_params] chips that hold each parameter, as bits
    tensor_chips: np.ndarray  # int64 [E, max_tensors] chips that buffer each tensor, as bits
    allowed: np.ndarray  # bool [E, max_chips] chips that the current op may get; all at the end of an episode
    dead_end: np.ndarray  # bool [E] whether there is none
    # the observation, float32: [E, F], [E, max_chips, K + STEP_CHIP_FEATURES], [E, PROGRESS_FEATURES]
    seen_op: np.ndarray
    seen_chips: np.ndarray
    seen_progress: np.ndarray
    link_seen: np.ndarray  # bool [E, max_links], room
    chip_room: np.ndarray  # float64 [E, 2, max_chips], room


def new_walk(episodes: int, problems: Sequence[ChipletProblem], max_ops: int, max_chips: int) -> Walk:
    """Room for episodes on any of the problems."""

    def most(sizes: Iterable[int]) -> int:
        return max(1, *sizes)

    links = most(one.package.num_links for one in problems)
    return Walk(
        current=np.zeros(episodes, np.int32),
        chip_of=np.full((episodes, max_ops), -1, np.int32),
        seconds=np.zeros((episodes, max_chips)),
        link_bytes=np.zeros((episodes, links)),
        memory=np.zeros((episodes, max_chips), np.int64),
        param_chips=np.zeros((episodes, most(len(one.ops.param_bytes) for one in problems)), np.int64),
        tensor_chips=np.zeros((episodes, most(len(one.ops.tensor_bytes) for one in problems)), np.int64),
        allowed=np.zeros((episodes, max_chips), np.bool_),
        dead_end=np.zeros(episodes, np.bool_),
        seen_op=np.zeros((episodes, len(OP_FEATURES)), np.float32),
        seen_chips=np.zeros((episodes, max_chips, len(CHIP_FEATURES) + len(STEP_CHIP_FEATURES)), np.float32),
        seen_progress=np.zeros((episodes, len(PROGRESS_FEATURES)), np.float32),
        link_seen=np.zeros((episodes, links), np.bool_),
        chip_room=np.zeros((episodes, 2, max_chips)),
    )


# A view of a row of a table creates no array; loops stand where an assignment of slices would take seconds to
# compile.
_kernel = kernel(allocates=False)
_inner = kernel(inner=True, allocates=False)


@_inner
def _clear(array, value):
    for k in range(array.shape[0]):
        array[k] = value


@_inner
def _forget(w, row):
    """Nothing decided."""
    w.current[row] = 0
    _clear(w.chip_of[row], -1)
    _clear(w.seconds[row], 0.0)
    _clear(w.link_bytes[row], 0.0)
    _clear(w.memory[row], 0)
    _clear(w.param_chips[row], 0)
    _clear(w.tensor_chips[row], 0)


@_inner
def _give(t, w, row, chip):
    """Give the next op of an episode a chip."""
    num_chips = t.op_seconds.shape[0]
    one = np.int64(1)
    link_seen = w.link_seen[row]
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
        _clear(link_seen, False)
        for other in range(num_chips):
            if there >> other & 1:
                for way in range(t.route_ptr[home * num_chips + other], t.route_ptr[home * num_chips + other + 1]):
                    link_seen[t.route_link[way]] = True
        for way in range(t.route_ptr[home * num_chips + chip], t.route_ptr[home * num_chips + chip + 1]):
            if not link_seen[t.route_link[way]]:
                w.link_bytes[row, t.route_link[way]] += t.tensor_bytes[tensor]


@_inner
def _look(t, w, row):
    """Fill in what is seen of an episode but the chips' own features."""
    num_chips, num_ops = t.op_seconds.shape
    first = t.chip_features.shape[1]  # then STEP_CHIP_FEATURES
    bytes_in, link_s = w.chip_room[row, 0], w.chip_room[row, 1]
    out = w.seen_chips[row]
    op = w.current[row]
    for k in range(t.op_features.shape[1]):
        w.seen_op[row, k] = t.op_features[op, k]
    _clear(bytes_in, 0.0)
    all_bytes = 0.0
    if op < num_ops:
        for k in range(t.input_ptr[op], t.input_ptr[op + 1]):
            tensor = t.input_tensor[k]
            all_bytes += t.tensor_bytes[tensor]
            if t.tensor_op[tensor] >= 0:
                bytes_in[w.chip_of[row, t.tensor_op[tensor]]] += t.tensor_bytes[tensor]
    _clear(link_s, 0.0)
    period = 0.0
    for link in range(t.link_from.shape[0]):
        seconds = w.link_bytes[row, link] / t.link_bytes_per_s
        link_s[t.link_from[link]] = max(link_s[t.link_from[link]], seconds)
        period = max(period, seconds)
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
    highest = -1
    for before in range(op):
        chip = w.chip_of[row, before]
        out[chip, first + 5] = 1.0
        highest = max(highest, chip)
    ratio = period * t.period_scale
    w.seen_progress[row, 0] = op / num_ops
    w.seen_progress[row, 1] = t.decided_work[op]
    w.seen_progress[row, 2] = (highest + 1) / num_chips
    w.seen_progress[row, 3] = ratio / (1.0 + ratio)


@_inner
def _single(domain):
    """Whether a domain has one chip."""
    return domain != 0 and domain & (domain - 1) == 0


@_inner
def _look_ahead(rules, state, snapshot, w, row):
    """Find the chips that the current op may get, or a dead end."""
    allowed, op = w.allowed[row], np.int64(w.current[row])
    if _single(state.store[op]):  # as most are: all conclusions are drawn, and hold
        for chip in range(rules.graph.num_chips):
            allowed[chip] = state.store[op] >> chip & 1 != 0
        w.dead_end[row] = False
        return
    probe(rules, state, op, snapshot, allowed)
    dead = True
    for chip in range(rules.graph.num_chips):
        dead = dead and not allowed[chip]
    w.dead_end[row] = dead


@_kernel
def begin_walks(rules, t, feasible, store, chips, states, snapshots, w, rows, slots, low, high):
    """Start the episodes ``rows[low:high]``; the propagator of each is the state of its slot.

    Args:
        feasible, store, chips: the propagator with nothing assigned.
    """
    for i in range(low, high):
        row = rows[i]
        _forget(w, row)
        _clear(w.allowed[row], False)
        w.dead_end[row] = True
        if feasible:
            state = state_at(states, slots[row])
            restore(state, store, chips)
            _look_ahead(rules, state, snapshots[slots[row]], w, row)
        out = w.seen_chips[row]
        for chip in range(out.shape[0]):
            for k in range(t.chip_features.shape[1]):
                out[chip, k] = t.chip_features[chip, k] if chip < t.chip_features.shape[0] else 0.0
            for k in range(t.chip_features.shape[1], out.shape[1]):
                out[chip, k] = 0.0
        _look(t, w, row)


@_kernel
def step_walks(rules, t, states, snapshots, w, rows, slots, at, actions, illegal, done, low, high):
    """Give the current op of each episode ``rows[low:high]`` the chip ``actions[at[i]]``, or the nearest allowed one
    (the lower of two). Fills rows ``at`` of ``illegal`` and ``done``: whether that was the last op, or a dead end came
    or was there, where nothing is given."""
    num_ops = t.op_seconds.shape[1]
    for i in range(low, high):
        row, action = rows[i], actions[at[i]]
        allowed = w.allowed[row]
        illegal[at[i]] = not (0 <= action < allowed.shape[0] and allowed[action])
        done[at[i]] = True
        if w.dead_end[row]:
            continue
        chip = np.int64(-1)
        for other in range(allowed.shape[0]):
            if allowed[other] and (chip < 0 or abs(other - action) < abs(chip - action)):
                chip = np.int64(other)
        state = state_at(states, slots[row])
        op = np.int64(w.current[row])
        if not _single(state.store[op]):
            conclude(rules, state, op, np.int64(1) << chip)
        _give(t, w, row, chip)
        if w.current[row] < num_ops:
            _look_ahead(rules, state, snapshots[slots[row]], w, row)
            done[at[i]] = w.dead_end[row]
        _look(t, w, row)


@_kernel
def end_walk(t, w, row, chips):
    """Give all ops of an episode the chips ``chips``, int32 [N]."""
    _forget(w, row)
    for chip in chips:
        _give(t, w, row, np.int64(chip))
    _look(t, w, row)
