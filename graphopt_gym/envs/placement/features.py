"""What the agent sees: the features, how they are scaled, and the kernels that fill them.

Every value lies in 0 to 1, on any graph and cluster. Ratios r >= 0 without a bound are squashed, r / (1 + r), so 0.5
is "equal"; sizes are logarithms, log(1 + x) / log(1 + 1e15), at most 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.core.observation import ObservationTable, Part
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, SOURCE, VIEW

_CLASSES = [name for code, name in enumerate(OP_CLASSES) if code not in (SOURCE, VIEW)]

NODE_FEATURES = (
    "log_flops",
    "log_bytes",  # that its ops read and write
    "log_param_bytes",
    "log_state_bytes",
    "log_activation_bytes",
    "log_bytes_in",  # from other groups, each tensor once
    "log_bytes_out",  # to other groups, each tensor once a group
    "log_ops",
    "time",  # squashed: its time on its fastest device to that of an average group
    "first_level",  # of its ops in the graph, as a share of the depth
    "last_level",
    "time_place",  # share of the time in the groups before it, and half of its own
    "module_time_place",  # the same of its module among the modules, in the order in which they occur
    *(f"time_{phase}" for phase in PHASES),  # share of its time
    *(f"time_{name}" for name in _CLASSES),  # share of its time
)
# an agent that decides one group after the other knows how far it is
GROUP_COLUMNS = [column for column, name in enumerate(NODE_FEATURES) if not name.endswith("time_place")]
GROUP_FEATURES = tuple(NODE_FEATURES[column] for column in GROUP_COLUMNS)
DEVICE_FEATURES = (
    "exists",  # 1, or 0 for padding
    "speed",  # time of the whole graph on its fastest devices to that on this one
    "capacity",  # of memory, to the largest of the cluster
    "bandwidth",  # mean over the links to the other devices, to the fastest link of the cluster
    "time",  # squashed: the current group's time here to that of an average group
    "group_memory",  # squashed: what the current group holds to the capacity
    "load",  # squashed: time of the groups decided so far to an even share of all
    "whole_load",  # squashed: the same, with the undecided groups where they are
    "persistent_memory",  # squashed: parameters and state of the groups decided so far to the capacity
    "activation_memory",  # squashed: their activations, as if all were held at once, to the capacity
    "peak_memory",  # squashed: simulated peak to the capacity, with the undecided groups where they are
    "bytes_in",  # share of the current group's traffic that comes from decided groups here
    "bytes_out",  # share that goes to decided groups here
    "transfer_time",  # squashed: to and from decided groups elsewhere if placed here, to an average group's time
    "here_now",  # 1 where the current group is as long as it is undecided
)
PROGRESS_FEATURES = (
    "groups_decided",  # share
    "time_decided",  # share
    "traffic_undecided",  # share of the current group's traffic that is with undecided groups
    "cost",  # squashed: square root of the cost now to that at the start
    "valid",  # 1 where the complete placement fits in memory now
)
STATIC_DEVICE_FEATURES = (
    *DEVICE_FEATURES[:4],
    "whole_graph_memory",  # squashed: what all groups together hold to the capacity
)

# D devices, G groups, E edges between groups: the roster's padded sizes
GRAPH = ObservationTable(
    (
        Part("nodes", ("G", len(NODE_FEATURES)), "share", "the features of every group (`NODE_FEATURES`)"),
        Part("node_mask", ("G",), "mask", "1: a group"),
        Part("times", ("G", "D"), "share", "time of each group on each device, to that of an average group, squashed"),
        Part(
            "memory",
            ("G", "D"),
            "share",
            "groups times what each group holds (parameters, state, activations) to the device's capacity, squashed",
        ),
        Part("edge_index", (2, "E"), "index", "sending and reading group of each edge between groups", "-1", "G"),
        Part("edge_bytes", ("E",), "share", "logarithm of the bytes that cross"),
        Part("links", ("D", "D"), "share", "bandwidth from each device (row) to each other, to the fastest link"),
    )
)
STEP = ObservationTable(
    (
        Part(
            "group",
            (len(GROUP_FEATURES),),
            "share",
            "the current group: sizes, time, place in the graph, kinds of its ops",
            "0 at the end of an episode",
        ),
        Part(
            "devices",
            ("D", len(DEVICE_FEATURES)),
            "share",
            "each device: speed, capacity, links, load and memory so far, bytes exchanged with the current group",
            "0 for devices that are not there",
        ),
        Part("progress", (len(PROGRESS_FEATURES),), "share", "share decided, cost of the placement now", "none"),
        Part("action_mask", ("D",), "mask", "1: the action is legal", "0 for devices that are not there"),
    )
)
STEP_GRAPH = ObservationTable(
    (
        *GRAPH,
        Part("placement", ("G",), "index", "device of each group now", "-1", "D"),
        Part("current", (1,), "index", "the group to decide; the number of groups at the end", "none", "G + 1", 0),
    )
)
ONE_SHOT = ObservationTable(
    (
        *GRAPH,
        Part(
            "devices",
            ("D", len(STATIC_DEVICE_FEATURES)),
            "share",
            "each device: exists, speed, capacity, bandwidth, memory that the whole graph would take "
            "(`STATIC_DEVICE_FEATURES`)",
        ),
        Part("action_mask", ("D",), "mask", "1: a device of the episode's cluster"),
    )
)


ALLOWED = Part("allowed", ("G", "D"), "mask", "1: the group may be on the device (only with `allowed_devices`)")
EACH_MASK = Part(
    "action_mask", ("G", "D"), "mask", "1: the action is legal for the group (only with `allowed_devices`)"
)
EXCHANGED = 4  # bytes; tensors, and their bytes, that take what the link takes; seconds of the others


class Tables(NamedTuple):
    """Constants of one graph on one cluster. G groups, D devices, K tasks."""

    node_features: np.ndarray  # float32 [G, len(NODE_FEATURES)]
    group_features: np.ndarray  # float32 [G+1, len(GROUP_FEATURES)]; the last row is 0, for the end of an episode
    device_features: np.ndarray  # float32 [D, len(STATIC_DEVICE_FEATURES)]
    duration_s: np.ndarray  # float64 [D, G+1]
    persistent_bytes: np.ndarray  # float64 [G+1]
    activation_bytes: np.ndarray  # float64 [G+1]
    capacity_bytes: np.ndarray  # float64 [D]
    allowed: np.ndarray  # bool [G+1, D] the devices that a group may be on
    traffic_bytes: np.ndarray  # float64 [G+1] in and out
    decided_share: np.ndarray  # float64 [G+1]: share of the time in the groups before each
    task_ptr: np.ndarray  # int32 [G+1] tasks of a group
    task: np.ndarray  # int32 [K]
    neighbour_ptr: np.ndarray  # int32 [G+2] groups that exchange tensors with a group
    neighbour: np.ndarray  # int32
    exchange: np.ndarray  # float64 [*, 2 * EXCHANGED]: what comes in, what goes out
    latency_s: np.ndarray  # float64 [D, D]
    s_per_byte: np.ndarray  # float64 [D, D]
    group_scale: float  # 1 / time of an average group
    load_scale: float  # 1 / an even share of all time


class State(NamedTuple):
    """What changes in E episodes. Rows are padded to the largest graph and cluster (decision: -1)."""

    current: np.ndarray  # int32 [E] the group to decide
    decision: np.ndarray  # int32 [E, max_groups]; undecided groups: where they start
    task_device: np.ndarray  # int32 [E, max_tasks]
    load_s: np.ndarray  # float64 [E, max_devices] of decided groups
    whole_load_s: np.ndarray  # float64 [E, max_devices]
    persistent: np.ndarray  # float64 [E, max_devices] bytes of decided groups
    activation: np.ndarray  # float64 [E, max_devices]
    cost: np.ndarray  # float64 [E] of the complete placement; 0 where it is not simulated
    start_cost: np.ndarray  # float64 [E]
    valid: np.ndarray  # bool [E]
    peak_bytes: np.ndarray  # int64 [E, max_devices]


def new_state(episodes: int, max_groups: int, max_tasks: int, max_devices: int) -> State:
    return State(
        current=np.zeros(episodes, np.int32),
        decision=np.full((episodes, max_groups), -1, np.int32),
        task_device=np.zeros((episodes, max_tasks), np.int32),
        load_s=np.zeros((episodes, max_devices)),
        whole_load_s=np.zeros((episodes, max_devices)),
        persistent=np.zeros((episodes, max_devices)),
        activation=np.zeros((episodes, max_devices)),
        cost=np.zeros(episodes),
        start_cost=np.zeros(episodes),
        valid=np.zeros(episodes, np.bool_),
        peak_bytes=np.zeros((episodes, max_devices), np.int64),
    )


@kernel(allocates=False)
def begin(t, s, rows, start):
    """Start an episode in each of ``rows`` from the placements ``start``, int32 [rows, G]."""
    groups = start.shape[1]
    for i in range(rows.shape[0]):
        row = rows[i]
        s.current[row] = 0
        s.decision[row, groups:] = -1
        s.load_s[row] = 0.0
        s.whole_load_s[row] = 0.0
        s.persistent[row] = 0.0
        s.activation[row] = 0.0
        s.cost[row] = 0.0
        s.start_cost[row] = 0.0
        s.valid[row] = False
        s.peak_bytes[row] = 0
        for group in range(groups):
            device = start[i, group]
            s.decision[row, group] = device
            s.whole_load_s[row, device] += t.duration_s[device, group]
            for position in range(t.task_ptr[group], t.task_ptr[group + 1]):
                s.task_device[row, t.task[position]] = device


@kernel(allocates=False)
def decide(t, s, rows, at, actions, illegal, changed):
    """Take action ``actions[at[i]]`` in episode ``rows[i]``; an illegal one leaves the group where it is.

    ``illegal`` and ``changed`` (the placement is another one now) are bool, filled at ``at``.
    """
    devices = t.duration_s.shape[0]
    for i in range(rows.shape[0]):
        row = rows[i]
        group = s.current[row]
        before = s.decision[row, group]
        device = actions[at[i]]
        illegal[at[i]] = device < 0 or device >= devices or not t.allowed[group, device]
        if illegal[at[i]]:
            device = before
        changed[at[i]] = device != before
        if device != before:
            s.decision[row, group] = device
            s.whole_load_s[row, before] -= t.duration_s[before, group]
            s.whole_load_s[row, device] += t.duration_s[device, group]
            for position in range(t.task_ptr[group], t.task_ptr[group + 1]):
                s.task_device[row, t.task[position]] = device
        s.load_s[row, device] += t.duration_s[device, group]
        s.persistent[row, device] += t.persistent_bytes[group]
        s.activation[row, device] += t.activation_bytes[group]
        s.current[row] = group + 1


@kernel(allocates=False)
def observe(t, s, rows, at, exchanged, groups_out, devices_out, progress_out, mask_out):
    """Fill rows ``at`` of the observation arrays for the episodes ``rows``; padding stays as it is.

    ``exchanged``, float64 [devices, 2 * EXCHANGED], is room for the current group's traffic with each device.
    """
    groups = t.group_features.shape[0] - 1
    devices = t.duration_s.shape[0]
    for i in range(rows.shape[0]):
        row = rows[i]
        out = at[i]
        group = s.current[row]
        exchanged[:] = 0.0
        undecided_bytes = 0.0
        for position in range(t.neighbour_ptr[group], t.neighbour_ptr[group + 1]):
            other = t.neighbour[position]
            if other < group:
                device = s.decision[row, other]
                for column in range(t.exchange.shape[1]):
                    exchanged[device, column] += t.exchange[position, column]
            else:
                undecided_bytes += t.exchange[position, 0] + t.exchange[position, 4]
        traffic = t.traffic_bytes[group]
        per_byte = 1.0 / traffic if traffic > 0 else 0.0
        for feature in range(t.group_features.shape[1]):
            groups_out[out, feature] = t.group_features[group, feature]
        for device in range(devices):
            transfer_s = 0.0
            for other in range(devices):
                if other != device:
                    transfer_s += (
                        exchanged[other, 2] * t.s_per_byte[other, device]
                        + exchanged[other, 1] * t.latency_s[other, device]
                        + exchanged[other, 6] * t.s_per_byte[device, other]
                        + exchanged[other, 5] * t.latency_s[device, other]
                        + (exchanged[other, 3] + exchanged[other, 7])
                    )
            capacity = t.capacity_bytes[device]
            time = t.duration_s[device, group] * t.group_scale
            held = (t.persistent_bytes[group] + t.activation_bytes[group]) / capacity
            load = s.load_s[row, device] * t.load_scale
            whole = s.whole_load_s[row, device] * t.load_scale
            persistent = s.persistent[row, device] / capacity
            activation = s.activation[row, device] / capacity
            peak = s.peak_bytes[row, device] / capacity
            transfer = transfer_s * t.group_scale
            for feature in range(4):
                devices_out[out, device, feature] = t.device_features[device, feature]
            devices_out[out, device, 4] = time / (1.0 + time)
            devices_out[out, device, 5] = held / (1.0 + held)
            devices_out[out, device, 6] = load / (1.0 + load)
            devices_out[out, device, 7] = whole / (1.0 + whole)
            devices_out[out, device, 8] = persistent / (1.0 + persistent)
            devices_out[out, device, 9] = activation / (1.0 + activation)
            devices_out[out, device, 10] = peak / (1.0 + peak)
            devices_out[out, device, 11] = min(1.0, exchanged[device, 0] * per_byte)
            devices_out[out, device, 12] = min(1.0, exchanged[device, 4] * per_byte)
            devices_out[out, device, 13] = transfer / (1.0 + transfer)
            devices_out[out, device, 14] = 1.0 if group < groups and s.decision[row, group] == device else 0.0
            mask_out[out, device] = t.allowed[group, device]
        progress_out[out, 0] = group / groups
        progress_out[out, 1] = t.decided_share[group]
        progress_out[out, 2] = min(1.0, undecided_bytes * per_byte)
        ratio = np.sqrt(s.cost[row] / s.start_cost[row]) if s.start_cost[row] > 0 else 0.0
        progress_out[out, 3] = ratio / (1.0 + ratio)
        progress_out[out, 4] = 1.0 if s.valid[row] else 0.0
