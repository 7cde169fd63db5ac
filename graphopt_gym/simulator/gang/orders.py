"""Orders of a pipeline's gangs within each slice, as published.

S slices, V stages a slice (chunks), M micro-batches. Each order takes a :class:`Pipeline` and gives, for each slice,
its gangs in the order in which they run: what ``GangSimulator.lists_of_slices`` takes.

The *bubble* of a slice is the share of the time from its first start to its last finish in which it does not compute;
that of a pipeline is the largest of its slices' (Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024, §5.3). With
equal stages, free transfers and M large enough, F, B, W seconds of forward, backward of the inputs and of the weights:

================ ============================================ =========================== ==========================
order            idle seconds                                 stashes in flight (most)    source
================ ============================================ =========================== ==========================
``gpipe``        (S - 1) (F + B + W)                          M                           Huang et al., NeurIPS 2019
``1f1b``         (S - 1) (F + B + W)                          S                           Narayanan et al., SOSP 2019
``interleaved``  (S - 1) (F + B + W), F, B, W of a chunk      S V + S - 1                 Narayanan et al., SC 2021
``zb_h1``        (S - 1) (F + B - W), where F = B = W         S                           Qi et al., ICLR 2024
``zb_h2``        0, where F = B = W                           2 S - 1                     Qi et al., ICLR 2024
``zb_v``         max(S - 2, 0) F, where F = B = W, of a chunk 2 S, of a chunk             after Qi et al., ICLR 2024
================ ============================================ =========================== ==========================

ZB-V is not the published sequence, which has no bubble, but a greedy one of the same form and memory: two chunks a
slice that lie to the last slice and back, and 2 S stashes of chunks (as many bytes as S of 1F1B).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice
from graphopt_gym.simulator.gang.programs import Pipeline
from graphopt_gym.simulator.gang.timeline import GangTimeline

Step = list[tuple[str, int, int]]  # ("F", "B" or "W", stage, micro-batch)


def pipeline_lists(pipeline: Pipeline, order: str) -> list[list[int]]:
    """S lists of gangs: the order of each slice, step after step, each with its gradients applied at the end.

    Args:
        pipeline: what is ordered.
        order: one of :data:`PIPELINE_ORDERS`.

    Raises:
        InputError: an unknown order, or a pipeline that it is not for.
    """
    choice("order", order, PIPELINE_ORDERS)
    chunks, split = len(pipeline.slice_of) // pipeline.num_slices, pipeline.weight.size > 0
    if order == "interleaved":
        if pipeline.micro_batches % pipeline.num_slices:
            raise InputError(
                f"micro_batches is {pipeline.micro_batches}, which {pipeline.num_slices} stages do not divide; give a "
                "multiple for order 'interleaved'"
            )
        if (np.diff(pipeline.slice_of) % pipeline.num_slices != 1 % pipeline.num_slices).any():
            raise InputError("order 'interleaved' is for layout 'loop', and the pipeline is a 'vee'; give another")
    elif order == "zb_v":
        if chunks != 2 or pipeline.slice_of[-1] != 0:
            raise InputError("order 'zb_v' is for two chunks a slice; give pipeline(..., chunks=2, layout='vee')")
    elif chunks > 1 and order != "gpipe":
        raise InputError(f"order {order!r} is for one chunk a slice, and the pipeline has {chunks}; give 'interleaved'")
    if order.startswith("zb_") and not split:
        raise InputError(f"order {order!r} needs the weights' gradient apart; give pipeline(..., weight_s=...)")
    make = PIPELINE_ORDERS[order]
    gangs = {"F": pipeline.forward, "B": pipeline.backward, "W": pipeline.weight}
    lists: list[list[int]] = []
    for number in range(pipeline.num_slices):
        row: list[int] = []
        steps = _with_weights(make(pipeline, number), split)
        for step in range(len(pipeline.forward)):
            row += [int(gangs[kind][step, stage, batch]) for kind, stage, batch in steps]
            row += [int(pipeline.apply[step, number])] if pipeline.apply.size else []
        lists.append(row)
    return lists


def bubble(timeline: GangTimeline) -> float:
    """The largest share of its time from first start to last finish in which a core class does not compute."""
    worst = 0.0
    for number in range(timeline.classes.num_classes):
        tasks = timeline.resource_tasks(number)
        if len(tasks):
            span = timeline.finish_s[tasks[-1]] - timeline.start_s[tasks[0]]
            worst = max(worst, 1 - timeline.busy_s[number] / span if span > 0 else 0.0)
    return float(worst)


def _with_weights(steps: Step, split: bool) -> Step:
    """Of an order that knows none, the weights' gradient right after the inputs'."""
    if not split or any(kind == "W" for kind, _, _ in steps):
        return steps
    found: Step = []
    for kind, stage, batch in steps:
        found.append((kind, stage, batch))
        if kind == "B":
            found.append(("W", stage, batch))
    return found


def _gpipe(pipeline: Pipeline, number: int) -> Step:
    """All forward, then all backward, the last micro-batch first."""
    mine = np.flatnonzero(pipeline.slice_of == number).tolist()
    batches = range(pipeline.micro_batches)
    forward = [("F", stage, batch) for stage in mine for batch in batches]
    return forward + [("B", stage, batch) for stage in reversed(mine) for batch in reversed(batches)]


def _alternating(pipeline: Pipeline, number: int) -> Step:
    """S - s forward on slice s, then one backward and one forward in turn."""
    count = pipeline.micro_batches
    ahead = min(pipeline.num_slices - number, count)
    steps: Step = [("F", number, batch) for batch in range(ahead)]
    for batch in range(count):
        steps.append(("B", number, batch))
        if batch + ahead < count:
            steps.append(("F", number, batch + ahead))
    return steps


def _interleaved(pipeline: Pipeline, number: int) -> Step:
    """As Megatron-LM: groups of S micro-batches go through a chunk, then through the next."""
    slices, count = pipeline.num_slices, pipeline.micro_batches
    chunks = len(pipeline.slice_of) // slices
    total = count * chunks

    def at(index: int, backward: bool) -> tuple[str, int, int]:
        group, within = divmod(index, slices * chunks)
        chunk = within // slices
        stage = (chunks - 1 - chunk if backward else chunk) * slices + number
        return "B" if backward else "F", stage, group * slices + within % slices

    ahead = min((slices - number - 1) * 2 + (chunks - 1) * slices, total)
    steps = [at(index, False) for index in range(ahead)]
    for index in range(total):
        if index + ahead < total:
            steps.append(at(index + ahead, False))
        steps.append(at(index, True))
    return steps


def _zero_bubble(ahead_of: Callable[[int, int], int], behind_of: Callable[[int, int], int]):  # type: ignore[no-untyped-def]
    """Backward, the weights' gradient of so many micro-batches before, and forward in turn."""

    def order(pipeline: Pipeline, number: int) -> Step:
        count = pipeline.micro_batches
        ahead = min(ahead_of(pipeline.num_slices, number), count)
        behind = behind_of(pipeline.num_slices, number)
        steps: Step = [("F", number, batch) for batch in range(ahead)]
        for batch in range(count):
            steps.append(("B", number, batch))
            if batch >= behind:
                steps.append(("W", number, batch - behind))
            if batch + ahead < count:
                steps.append(("F", number, batch + ahead))
        return steps + [("W", number, batch) for batch in range(max(count - behind, 0), count)]

    return order


_VEE = {"F1": 0, "B0": 1, "F0": 2, "W0": 3, "B1": 4, "W1": 5}  # what a slice takes first, by chunk


@lru_cache(maxsize=32)
def _vee_steps(slices: int, count: int) -> list[Step]:
    """Greedy: each slice takes the first that it can by :data:`_VEE`, all of one second, 2 S stashes at most."""
    stages = [[number, 2 * slices - 1 - number] for number in range(slices)]
    done = {kind: [0] * (2 * slices) for kind in "FBW"}  # of each stage
    found: list[Step] = [[] for _ in range(slices)]
    while any(done["W"][stage] < count for stage in range(2 * slices)):
        now = {kind: list(row) for kind, row in done.items()}  # what finished before this second
        for number, mine in enumerate(stages):
            live = sum(now["F"][stage] - now["W"][stage] for stage in mine)
            options = []
            for chunk, stage in enumerate(mine):
                forward, backward, weight = (now[kind][stage] for kind in "FBW")
                if forward < count and live < 2 * slices and (stage == 0 or now["F"][stage - 1] > forward):
                    options.append((_VEE[f"F{chunk}"], "F", stage))
                last = stage == 2 * slices - 1
                if backward < forward and (last or now["B"][stage + 1] > backward):
                    options.append((_VEE[f"B{chunk}"], "B", stage))
                if weight < backward:
                    options.append((_VEE[f"W{chunk}"], "W", stage))
            if options:
                _, kind, stage = min(options)
                found[number].append((kind, stage, done[kind][stage]))
                done[kind][stage] += 1
    return found


def _vee(pipeline: Pipeline, number: int) -> Step:
    return _vee_steps(pipeline.num_slices, pipeline.micro_batches)[number]


PIPELINE_ORDERS: dict[str, Callable[[Pipeline, int], Step]] = {
    "gpipe": _gpipe,
    "1f1b": _alternating,
    "interleaved": _interleaved,
    "zb_h1": _zero_bubble(lambda slices, number: slices - number, lambda slices, number: number),
    "zb_h2": _zero_bubble(lambda slices, number: 2 * (slices - number) - 1, lambda slices, number: 2 * number),
    "zb_v": _vee,
}
