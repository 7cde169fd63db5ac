"""The step mode's observation in plain Python, worked out anew from the decided ops: slow, and easy to check."""

from __future__ import annotations

import numpy as np

from graphopt_gym.envs.chiplet.features import chip_features, op_features


def squash(ratio):
    return ratio / (1 + ratio)


def transfers(problem, chips):
    """(chip seconds, link bytes, bytes of parameters and buffers a chip) of the first ops, on ``chips``."""
    ops, package = problem.ops, problem.package
    seconds, memory = [0.0] * problem.num_chips, [0] * problem.num_chips
    link_bytes = [0] * package.num_links
    for op, chip in enumerate(chips):
        seconds[chip] += problem.op_seconds[chip, op]
    for size, readers in zip(ops.param_bytes.tolist(), np.split(ops.param_reader, ops.param_ptr[1:-1])):
        for chip in {chips[op] for op in readers.tolist() if op < len(chips)}:
            memory[chip] += size
    for tensor, size in enumerate(ops.tensor_bytes.tolist()):
        readers = ops.reader[ops.reader_ptr[tensor] : ops.reader_ptr[tensor + 1]].tolist()
        producer = int(ops.tensor_op[tensor])
        home = None if producer < 0 else chips[producer] if producer < len(chips) else None
        targets = {chips[op] for op in readers if op < len(chips)} - {home}
        for chip in targets:
            memory[chip] += 2 * size
        if home is not None and targets:
            memory[home] += size
            for link in {link for chip in targets for link in package.route(home, chip)}:
                link_bytes[link] += size
    return seconds, link_bytes, memory


def observe(problem, chips, greedy_s, mask):
    """The observation after the first ops got ``chips``, in the shapes of the table, float64."""
    ops, package = problem.ops, problem.package
    n, count, op = problem.num_ops, problem.num_chips, len(chips)
    seconds, link_bytes, memory = transfers(problem, chips)
    link_s = [size / package.link_bytes_per_s for size in link_bytes]
    work = problem.op_seconds.mean(axis=0)
    total = float(work.sum())
    inputs = [
        tensor
        for tensor in range(len(ops.tensor_bytes))
        if op in ops.reader[ops.reader_ptr[tensor] : ops.reader_ptr[tensor + 1]].tolist()
    ]
    all_bytes = sum(int(ops.tensor_bytes[tensor]) for tensor in inputs)
    rows = []
    for chip in range(count):
        out = [link_s[index] for index, (source, _) in enumerate(package.links) if source == chip]
        here = sum(
            int(ops.tensor_bytes[tensor])
            for tensor in inputs
            if ops.tensor_op[tensor] >= 0 and chips[ops.tensor_op[tensor]] == chip
        )
        time = problem.op_seconds[chip, op] if op < n else 0.0
        rows.append(
            [
                squash(time * n / total),
                squash(seconds[chip] * count / total),
                squash(max(out, default=0.0) * count / total),
                squash(memory[chip] / package.sram_bytes[chip]),
                here / all_bytes if all_bytes else 0.0,
                float(chip in chips),
            ]
        )
    period = max(*seconds, *link_s)
    return {
        "op": op_features(problem)[op] if op < n else np.zeros(op_features(problem).shape[1]),
        "chips": np.hstack([chip_features(problem), np.array(rows)]),
        "progress": np.array(
            [op / n, float(work[:op].sum()) / total, (max(chips, default=-1) + 1) / count, squash(period / greedy_s)]
        ),
        "action_mask": np.asarray(mask),
    }
