"""Sharded programs by rule: chains of equal computations, and pipelines of stages over micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import byte_count, choice, whole
from graphopt_gym.simulator.gang.program import Builder, ShardedProgram

FORMS = ("op_by_op", "chained", "fused")
LAYOUTS = ("loop", "vee")


def chain(
    length: int,
    cores: int,
    time_s: float,
    *,
    form: str = "chained",
    nodes: int = 128,
    collective: str = "none",
    collective_bytes: int = 0,
    output_bytes: int = 0,
    stages: int = 1,
    arrival_s: float = 0.0,
    regular: bool = True,
    name: str = "chain",
) -> ShardedProgram:
    """Equal computations, each reading the one before: the programs of the paper's dispatch figures (Barham et al.,
    Pathways, MLSys 2022, §5.1).

    Args:
        length: computations.
        cores: of each slice.
        time_s: of each computation.
        form: ``op_by_op``, a call each; ``chained``, calls of ``nodes`` computations; ``fused``, calls of one
            computation that holds ``nodes`` of them.
        nodes: see ``form``; it divides ``length`` where it is looked at.
        collective, collective_bytes: of each computation, see :meth:`Builder.gang`.
        output_bytes: of each core, also what the next computation reads of it.
        stages: slices that the computations take in turn.
        arrival_s: of all calls.
        regular: whether shapes are known beforehand.
        name: of the program.

    Raises:
        InputError: one line naming the field, the value and the fix.
    """
    choice("form", form, FORMS)
    whole("length", length, 1)
    whole("stages", stages, 1)
    if form != "op_by_op" and length % whole("nodes", nodes, 1):
        raise InputError(f"nodes is {nodes}, which does not divide the length {length}; give one that does")
    build = Builder(name)
    slices = [build.slice(f"stage {number}", cores) for number in range(stages)]
    a_call = 1 if form == "op_by_op" else nodes
    repeats = nodes if form == "fused" else 1
    before = None
    for number in range(length // repeats):
        if number % (a_call // repeats) == 0:
            build.call(arrival_s=arrival_s)
        gang = build.gang(
            f"c{number}", slices[number % stages], time_s, collective=collective, collective_bytes=collective_bytes,
            repeats=repeats, output_bytes=output_bytes, regular=regular,
        )  # fmt: skip
        if before is not None:
            build.edge(before, gang, output_bytes * cores)
        before = gang
    return build.program()


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A pipeline's program, and which gang is what. S slices, V chunks a slice, M micro-batches, N steps.

    ``forward``, ``backward`` and ``weight`` are int32 [N, S * V, M] by stage in the order of the data, ``apply`` is
    int32 [N, S]; ``weight`` and ``apply`` are empty where there are none. ``slice_of`` is int64 [S * V].
    """

    program: ShardedProgram
    slice_of: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    weight: np.ndarray
    apply: np.ndarray

    @property
    def num_slices(self) -> int:
        return self.program.num_slices

    @property
    def micro_batches(self) -> int:
        return int(self.forward.shape[2])


def micro_batch_size(batch: int, micro_batches: int) -> int:
    """Examples of a micro-batch.

    Raises:
        InputError: the micro-batches do not divide the batch.
    """
    whole("batch", batch, 1)
    if batch % whole("micro_batches", micro_batches, 1):
        raise InputError(
            f"micro_batches is {micro_batches}, which does not divide the batch of {batch}; give a divisor"
        )
    return batch // micro_batches


def stage_layers(layers: int, stages: int) -> list[int]:
    """Layers of each of S stages, as even as can be, the larger ones first.

    Raises:
        InputError: more stages than layers.
    """
    whole("layers", layers, 1)
    if whole("stages", stages, 1) > layers:
        raise InputError(f"stages is {stages}, more than the {layers} layers; give at most {layers}")
    return [layers // stages + (number < layers % stages) for number in range(stages)]


def pipeline(
    stages: int,
    micro_batches: int,
    forward_s: float | Sequence[float],
    backward_s: float | Sequence[float],
    *,
    weight_s: float | Sequence[float] | None = None,
    apply_s: float | Sequence[float] = 0.0,
    cores: int | Sequence[int] = 1,
    chunks: int = 1,
    layout: str = "loop",
    steps: int = 1,
    stash_bytes: int | Sequence[int] = 0,
    boundary_bytes: int | Sequence[int] = 0,
    returned_bytes: int | Sequence[int] | None = None,
    forward_temp_bytes: int | Sequence[int] = 0,
    backward_temp_bytes: int | Sequence[int] = 0,
    gradient_bytes: int | Sequence[int] = 0,
    reduce: str = "step",
    tied: Sequence[tuple[int, int, int]] = (),
    resident_bytes: int | Sequence[int] = 0,
    arrival_s: float = 0.0,
    calls: str = "step",
    name: str = "pipeline",
) -> Pipeline:
    """A training step as a pipeline: stages of a model, each on its slice, through which micro-batches go.

    Every stage of every micro-batch is a gang: forward, then backward, and where ``weight_s`` is given the gradient of
    the weights apart from that of the inputs (Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024, §2).

    Args:
        stages: S, one slice each.
        micro_batches: M.
        forward_s, backward_s, weight_s: of a micro-batch in a stage, a number or one for each of the S * chunks stages
            in the order of the data; with ``weight_s`` ``backward_s`` is that of the inputs' gradient alone.
        apply_s: of a slice, once a step: applying its gradients; one for each slice or a number.
        cores: of each slice.
        chunks: stages of each slice: interleaved pipelines have several (Narayanan et al., Megatron-LM, SC 2021, §2.2).
        layout: where the stages lie: ``loop``, stage k on slice k mod S; ``vee``, to the last slice and back.
        steps: how many follow each other; one begins in a slice when the slice has applied its gradients.
        stash_bytes: of each core, what backward needs of forward, for each stage.
        boundary_bytes: what a stage sends to the next one: the whole tensor of a micro-batch, a number or one for each
            of the S * chunks - 1 boundaries.
        returned_bytes: what it gets back, the gradient; as ``boundary_bytes`` where left out.
        forward_temp_bytes, backward_temp_bytes: of each core while it computes, for each stage.
        gradient_bytes: of each core, what a slice reduces over its cores, for each slice; 0: nothing.
        reduce: when: ``step``, once in apply; ``micro_batch``, with the weights' gradient of every micro-batch.
        tied: weights that two slices hold: (slice that applies, slice that holds a copy, bytes of a core). Their
            gradient goes to the first slice after the second applied its own, and comes back applied before the next
            step.
        resident_bytes: of each core of a slice.
        arrival_s: of all calls.
        calls: ``step``, a call each; ``gang``, a call for each gang.
        name: of the program.

    Raises:
        InputError: one line naming the field, the value and the fix.
    """
    whole("stages", stages, 1)
    whole("micro_batches", micro_batches, 1)
    whole("chunks", chunks, 1)
    whole("steps", steps, 1)
    choice("layout", layout, LAYOUTS)
    choice("reduce", reduce, ("step", "micro_batch"))
    choice("calls", calls, ("step", "gang"))
    depth = stages * chunks
    forward_s, backward_s = per_each("forward_s", forward_s, depth), per_each("backward_s", backward_s, depth)
    split = per_each("weight_s", weight_s, depth) if weight_s is not None else []
    applied, sizes = per_each("apply_s", apply_s, stages), per_each("cores", cores, stages)
    stash, boundary = per_each("stash_bytes", stash_bytes, depth), per_each("boundary_bytes", boundary_bytes, depth - 1)
    gradients, resident = (
        per_each("gradient_bytes", gradient_bytes, stages),
        per_each("resident_bytes", resident_bytes, stages),
    )
    returned = boundary if returned_bytes is None else per_each("returned_bytes", returned_bytes, depth - 1)
    forward_temp = per_each("forward_temp_bytes", forward_temp_bytes, depth)
    backward_temp = per_each("backward_temp_bytes", backward_temp_bytes, depth)
    for number, one in enumerate(tied):
        if len(one) != 3:
            raise InputError(f"tied[{number}] has {len(one)} entries; give two slices and bytes")
        home, copy, size = one
        for other in (home, copy):
            whole(f"tied[{number}]: slice", other, 0, stages - 1)
        if home >= copy:  # in one direction, so that no two wait for each other
            raise InputError(f"tied[{number}] goes from slice {copy} to slice {home}; give the lower one first")
        byte_count(f"tied[{number}]: bytes", size)
    slice_of = np.arange(depth) % stages
    if layout == "vee":
        slice_of = np.where(np.arange(depth) // stages % 2, stages - 1 - slice_of, slice_of)
    applies = any(applied) or (reduce == "step" and any(gradients)) or steps > 1 or len(tied) > 0

    build = Builder(name)
    for number in range(stages):
        build.slice(f"stage {number}", sizes[number], resident[number])
    shape = (steps, depth, micro_batches)
    forward, backward = np.empty(shape, np.int32), np.empty(shape, np.int32)
    weight = np.empty(shape if split else (steps, 0, 0), np.int32)
    apply = np.empty((steps, stages if applies else 0), np.int32)

    def add(label: str, stage: int, seconds: float, output: int = 0, temp: int = 0, reduces: bool = False) -> int:
        home = int(slice_of[stage])
        if calls == "gang":
            build.call(arrival_s=arrival_s)
        reduces = reduces and gradients[home] > 0 and sizes[home] > 1
        return build.gang(
            label, home, seconds, output_bytes=output, temp_bytes=temp,
            collective="all_reduce" if reduces else "none", collective_bytes=gradients[home] if reduces else 0,
        )  # fmt: skip

    def copies(home: int, copy: int, size: int) -> int:
        """All that cores send where each has to get the whole."""
        return size * max(sizes[home], sizes[copy])

    for step in range(steps):
        if calls == "step":
            build.call(arrival_s=arrival_s)
        tag = f"{step}:" if steps > 1 else ""
        often = reduce == "micro_batch"
        for batch in range(micro_batches):
            for stage in range(depth):
                gang = add(f"{tag}F{stage}.{batch}", stage, forward_s[stage], stash[stage], forward_temp[stage])
                forward[step, stage, batch] = gang
                if stage:
                    build.edge(int(forward[step, stage - 1, batch]), gang, boundary[stage - 1])
                if step:
                    build.edge(int(apply[step - 1, slice_of[stage]]), gang)
                    for home, copy, size in tied:
                        if copy == slice_of[stage]:  # the first to come brings it for all
                            build.edge(int(apply[step - 1, home]), gang, 0 if batch else copies(home, copy, size))
        for batch in range(micro_batches):
            for stage in reversed(range(depth)):
                home = sizes[int(slice_of[stage])]
                sent = -(-returned[stage - 1] // home) if stage else 0
                temp = backward_temp[stage]
                gang = add(f"{tag}B{stage}.{batch}", stage, backward_s[stage], sent, temp, often and not split)
                backward[step, stage, batch] = gang
                build.edge(int(forward[step, stage, batch]), gang, stash[stage] * home)
                if stage < depth - 1:
                    build.edge(int(backward[step, stage + 1, batch]), gang, returned[stage])
                if split:
                    last = add(f"{tag}W{stage}.{batch}", stage, split[stage], 0, 0, often)
                    weight[step, stage, batch] = last
                    build.edge(gang, last)
                    build.edge(int(forward[step, stage, batch]), last, stash[stage] * home)
        for number in range(stages if applies else 0):
            stage = int(np.flatnonzero(slice_of == number)[0])
            apply[step, number] = add(f"{tag}A{number}", stage, applied[number], 0, 0, reduce == "step")
            for other in np.flatnonzero(slice_of == number).tolist():
                for gang in (weight if split else backward)[step, other].tolist():
                    build.edge(gang, int(apply[step, number]))
        for home, copy, size in tied:
            build.edge(int(apply[step, copy]), int(apply[step, home]), copies(home, copy, size))
    return Pipeline(build.program(), slice_of, forward, backward, weight, apply)


def per_each(name: str, given: Any, size: int) -> list[Any]:
    """A value for each of ``size``, from one for all or from a list of them."""
    if isinstance(given, str | bytes) or not np.iterable(given):
        return [given] * size
    listed = list(given)
    if len(listed) != size:
        raise InputError(f"{name} has {len(listed)} entries, expected {size}: give one each, or a number for all")
    return [one.item() if isinstance(one, np.generic) else one for one in listed]
