"""The scorer: groups are placed one after the other, each on the device of the highest score.

A score is a weighted sum of features of (group, device, what is placed so far), none of which names a device by its
number or a graph by its size: they are shares and ratios, so that one set of weights serves all graphs and clusters.
Nothing is simulated. A second pass, backwards, decides each group again with all others placed.
"""

from __future__ import annotations

import numpy as np

from graphopt_agents.placer.arrays import Arrays, transfer_s
from graphopt_gym.compiled import kernel

# Of a group g on a device d. A ratio that has no bound is squashed, x / (1 + |x|); what is compared with other devices
# is the difference to the best of them. "share": the work of all groups, by device; "mean": by group.
FEATURES = (
    "share of what it reads that comes from there",
    "share of what it sends that is read there",
    "seconds of transfers it causes, to its work",
    "to the mean work",
    "of parameters and inputs, to its work",
    "of parameters and inputs, to the mean work",
    "of transfers, to the share",
    "load there, to the share",
    "load there with it",
    "load beyond the least loaded, to the mean",
    "to the share",
    "load below the most loaded, to the share",
    "load there, to what all have on average so far",
    "share of its module that is there",
    "share of its layer that is there",
    "the group before it is there",
    "the group after it is there",
    "the one before it in its module",
    "the one after it in its module",
    "earliest finish there, to the mean",
    "to its work",
    "to the share",
    "none finishes it earlier",
    "memory there with it, to the capacity",
    "above nine tenths of it",
    "above all of it",
    "nothing is there yet",
    "its work there, to its mean work",
)
NUM_FEATURES = len(FEATURES)
FULL = 1000.0  # what a score loses for memory beyond the limit, by share of the capacity

# Where training begins: with traffic and load, as one would by hand; the rest is 0.
BY_HAND = np.zeros(NUM_FEATURES)
for _feature, _weight in ((0, 0.3), (1, 0.3), (2, -1.0), (6, -1.0), (7, -1.0), (13, 0.3), (15, 0.3), (21, -1.0),
                          (24, -1.0), (25, -3.0)):  # fmt: skip
    BY_HAND[_feature] = _weight


@kernel(inner=True, allocates=False)
def _squash(value):
    return value / (1.0 + abs(value))


@kernel(inner=True, allocates=False)
def _memory_limit(arrays):
    """The share of a device's memory that may be planned: more where the graph hardly fits at all."""
    held, capacity = 0.0, 0.0
    for group in range(arrays.held_bytes.shape[0]):
        held += arrays.held_bytes[group]
    for device in range(arrays.capacity_bytes.shape[0]):
        capacity += arrays.capacity_bytes[device]
    return min(0.95, max(0.8, 1.15 * held / capacity))


@kernel(inner=True, allocates=False)
def _take(arrays, group, device, sign, home, mean_s, load_s, memory, groups, readers, in_module, in_layer):
    """Put a group on a device (1) or take it from there (-1), in what is kept of devices.

    ``memory``: what its groups hold, and copies of the parameters and inputs that they read and another device has.
    """
    load_s[device] += sign * arrays.work_s[device, group]
    memory[device] += sign * arrays.held_bytes[group]
    groups[device] += sign
    in_module[arrays.part[0, group], device] += sign * mean_s[group]
    in_layer[arrays.part[1, group], device] += sign * mean_s[group]
    for place in range(arrays.reads_ptr[group], arrays.reads_ptr[group + 1]):
        tensor = arrays.reads[place]
        others = readers[tensor, device] - (1 if sign < 0 else 0)
        readers[tensor, device] += sign
        if arrays.of_source[tensor] and others == 0 and home[arrays.sender[tensor]] != device:
            memory[device] += sign * arrays.tensor_bytes[arrays.sent[tensor]]
    for place in range(arrays.sends_ptr[group], arrays.sends_ptr[group + 1]):
        tensor = arrays.sends[place]
        if arrays.of_source[tensor] and readers[tensor, device] > 0:
            memory[device] -= sign * arrays.tensor_bytes[arrays.sent[tensor]]


@kernel
def construct(arrays: Arrays, weights, passes, features):
    """Place all groups.

    Args:
        arrays: the problem.
        weights: float64 [features].
        passes: how often each group is decided.
        features: float64 [passes * G, D, features], filled with what was seen; [0, D, features] where nobody asks.

    Returns:
        int32 [G].
    """
    devices, groups = arrays.work_s.shape
    tensors, tasks = arrays.sent.shape[0], arrays.is_source.shape[0]
    home = np.full(groups, -1, np.int32)
    readers = np.zeros((tensors, devices), np.int32)
    load_s, memory, count = np.zeros(devices), np.zeros(devices), np.zeros(devices)
    in_module = np.zeros((arrays.part[0].max() + 1, devices))
    in_layer = np.zeros((arrays.part[1].max() + 1, devices))
    mean_s = np.zeros(groups)
    for group in range(groups):
        for device in range(devices):
            mean_s[group] += arrays.work_s[device, group] / devices
    tiny = 1e-9 * mean_s.sum() / groups + 1e-30
    mean, share = mean_s.sum() / groups + tiny, mean_s.sum() / devices + tiny
    limit = _memory_limit(arrays)
    finish_s, free_s = np.full(tasks, -1.0), np.zeros(devices)
    longest = np.diff(arrays.group_ptr).max()
    planned_s, planned = np.zeros((devices, longest)), np.zeros(longest, np.int64)
    earliest_s = np.zeros(devices)
    acts_s, sources_s, reads_s, sent_s = np.zeros(devices), np.zeros(devices), np.zeros(devices), np.zeros(devices)
    copies = np.zeros(devices)  # bytes of copies that would come, less those that would go
    seen = np.zeros((devices, weights.shape[0]))
    placed_s, row = 0.0, 0
    for turn in range(passes):
        first = turn == 0
        for step in range(groups):
            group = arrays.order[0, step] if turn % 2 == 0 else arrays.order[0, groups - 1 - step]
            if home[group] >= 0:
                at, home[group] = home[group], -1
                _take(arrays, group, at, -1, home, mean_s, load_s, memory, count, readers, in_module, in_layer)
            # traffic
            acts_s[:], sources_s[:], reads_s[:], sent_s[:], copies[:] = 0.0, 0.0, 0.0, 0.0, 0.0
            all_reads, all_sent = 0.0, 0.0
            for place in range(arrays.reads_ptr[group], arrays.reads_ptr[group + 1]):
                tensor = arrays.reads[place]
                sender, seconds = home[arrays.sender[tensor]], arrays.sent_s[tensor]
                if not arrays.of_source[tensor]:
                    all_reads += seconds
                    if sender >= 0:
                        reads_s[sender] += seconds
                for device in range(devices):
                    if device == sender or readers[tensor, device] > 0:
                        continue
                    if arrays.of_source[tensor]:
                        copies[device] += arrays.tensor_bytes[arrays.sent[tensor]]
                        # where it will be is not known: it may come to be here
                        sources_s[device] += (
                            transfer_s(arrays, arrays.sent[tensor], sender, device) if sender >= 0 else 0.5 * seconds
                        )
                    elif sender >= 0:
                        acts_s[device] += transfer_s(arrays, arrays.sent[tensor], sender, device)
            for place in range(arrays.sends_ptr[group], arrays.sends_ptr[group + 1]):
                tensor = arrays.sends[place]
                for other in range(devices):
                    if readers[tensor, other] == 0:
                        continue
                    if not arrays.of_source[tensor]:
                        all_sent += arrays.sent_s[tensor]
                        sent_s[other] += arrays.sent_s[tensor]
                    if arrays.of_source[tensor]:
                        copies[other] -= arrays.tensor_bytes[arrays.sent[tensor]]
                    for device in range(devices):
                        seconds = transfer_s(arrays, arrays.sent[tensor], device, other)
                        if arrays.of_source[tensor]:
                            sources_s[device] += seconds
                        else:
                            acts_s[device] += seconds
            # when its tasks whose inputs are all planned would be done
            found = 0
            if first:
                for device in range(devices):
                    earliest_s[device] = free_s[device]
                for place in range(arrays.group_ptr[group], arrays.group_ptr[group + 1]):
                    task = arrays.group_task[place]
                    if arrays.is_source[task]:
                        finish_s[task] = 0.0
                        continue
                    known = True
                    for read in range(arrays.input_ptr[task], arrays.input_ptr[task + 1]):
                        producer = arrays.tensor_task[arrays.input_tensor[read]]
                        known = known and (finish_s[producer] >= 0.0 or arrays.is_source[producer])
                    if not known:
                        continue
                    for device in range(devices):
                        start = earliest_s[device]
                        for read in range(arrays.input_ptr[task], arrays.input_ptr[task + 1]):
                            tensor = arrays.input_tensor[read]
                            producer = arrays.tensor_task[tensor]
                            at = home[arrays.group_of_task[producer]]
                            if arrays.group_of_task[producer] != group and not arrays.is_source[producer]:
                                start = max(start, finish_s[producer] + transfer_s(arrays, tensor, at, device))
                        earliest_s[device] = start + arrays.duration_s[device, task]
                        planned_s[device, found] = earliest_s[device]
                    planned[found] = task
                    finish_s[task] = 0.0  # known, from here on; when exactly, its device will say
                    found += 1
            least_act, least_source, least_load, most_load = np.inf, np.inf, np.inf, 0.0
            least_finish = np.inf
            module_s, layer_s = 0.0, 0.0
            for device in range(devices):
                least_act, least_source = min(least_act, acts_s[device]), min(least_source, sources_s[device])
                least_load, most_load = min(least_load, load_s[device]), max(most_load, load_s[device])
                least_finish = min(least_finish, earliest_s[device])
                module_s += in_module[arrays.part[0, group], device]
                layer_s += in_layer[arrays.part[1, group], device]
            best, best_score = -1, -np.inf
            for device in range(devices):
                f, work = seen[device], arrays.work_s[device, group]
                own = work + tiny
                f[0] = reads_s[device] / (all_reads + tiny)
                f[1] = sent_s[device] / (all_sent + tiny)
                f[2] = _squash((acts_s[device] - least_act) / own)
                f[3] = _squash((acts_s[device] - least_act) / mean)
                f[4] = _squash((sources_s[device] - least_source) / own)
                f[5] = _squash((sources_s[device] - least_source) / mean)
                f[6] = _squash(20.0 * (acts_s[device] - least_act) / share)
                f[7] = load_s[device] / share
                f[8] = (load_s[device] + work) / share
                f[9] = _squash((load_s[device] - least_load) / mean)
                f[10] = (load_s[device] - least_load) / share
                f[11] = (load_s[device] - most_load) / share
                f[12] = min(4.0, load_s[device] / (placed_s / devices + 0.02 * share)) if first else f[7]
                f[13] = in_module[arrays.part[0, group], device] / (module_s + tiny)
                f[14] = in_layer[arrays.part[1, group], device] / (layer_s + tiny)
                for number in range(2):
                    at = arrays.position[number, group]
                    f[15 + 2 * number] = at > 0 and home[arrays.order[number, at - 1]] == device
                    f[16 + 2 * number] = at + 1 < groups and home[arrays.order[number, at + 1]] == device
                f[19], f[20], f[21], f[22] = 0.0, 0.0, 0.0, 0.0
                if found > 0:
                    later = earliest_s[device] - least_finish
                    f[19], f[20], f[21] = _squash(later / mean), _squash(later / own), _squash(10.0 * later / share)
                    f[22] = later <= 0.0
                held = (memory[device] + arrays.held_bytes[group] + copies[device]) / arrays.capacity_bytes[device]
                f[23], f[24], f[25] = min(held, 2.0), held > 0.9, held > 1.0
                f[26] = count[device] == 0
                f[27] = (work - mean_s[group]) / (mean_s[group] + tiny)
                score = -FULL * max(0.0, held - limit)
                for number in range(weights.shape[0]):
                    score += f[number] * weights[number]
                if arrays.allowed[group, device] and score > best_score:
                    best, best_score = device, score
            if features.shape[0] > 0:
                features[row] = seen
            row += 1
            _take(arrays, group, best, 1, home, mean_s, load_s, memory, count, readers, in_module, in_layer)
            home[group] = best
            if first:
                placed_s += arrays.work_s[best, group]
                for number in range(found):
                    finish_s[planned[number]] = planned_s[best, number]
                if found > 0:
                    free_s[best] = planned_s[best, found - 1]
    return home


def place(arrays: Arrays, weights: np.ndarray, passes: int = 1) -> np.ndarray:
    """int32 [G]: the placement of a set of weights, float64 [features]."""
    nothing = np.empty((0, *arrays.work_s.shape[:1], NUM_FEATURES))
    return construct(arrays, np.ascontiguousarray(weights, np.float64), passes, nothing)  # type: ignore[no-any-return]
