"""Micro-batches: shares add up, what is shared is there once, and program order makes a pipeline of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import PHASES, SOURCE, ComputationGraph
from graphopt_gym.graphs.microbatches import SCHEDULES, micro_batch, microbatched
from graphopt_gym.graphs.random_graphs import FAMILIES, RandomGraphs
from graphopt_gym.graphs.zoo import load_graph
from graphopt_gym.search.solve import solve

FORWARD, BACKWARD, UPDATE = range(len(PHASES))
SMALL = RandomGraphs(num_ops=600, families="transformer", optimizer="adam")


def _on_groups(graph: ComputationGraph, devices: dict[int, int], order: str) -> float:
    """The step time of a graph whose colocation groups are on devices."""
    problem = PlacementProblem(graph, "v100x4", order=order)
    decision = np.zeros(problem.num_groups, np.int32)
    decision[problem.group_of_op] = [devices[group] for group in graph.colocation.tolist()]
    return problem.evaluate(decision).cost


def _expert(graph: ComputationGraph) -> dict[int, int]:
    problem = PlacementProblem(graph, "v100x4")
    decision = solve(problem, "expert").decision
    return dict(zip(graph.colocation.tolist(), decision[problem.group_of_op].tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(FAMILIES)), st.integers(2, 5), st.sampled_from(SCHEDULES), st.integers(1, 6), st.data())
def test_micro_batches__have_their_share(family: str, count: int, schedule: str, stages: int, data: Any) -> None:
    graph = RandomGraphs(num_ops=(128, 400), families=family).make(data.draw(st.integers(0, 1000)))
    made = microbatched(graph, count, schedule, stages)
    assert made.param_bytes.sum() == graph.param_bytes.sum()
    assert made.state_bytes.sum() == graph.state_bytes.sum()
    assert set(made.colocation) == set(graph.colocation)
    for phase in (FORWARD, BACKWARD):
        mine, theirs = (int(one.flops[one.phase == phase].sum()) for one in (graph, made))
        sums = sum(int(graph.output_bytes[op]) for op in _gradients(graph)) // 4 * (count - 1)
        extra = sums if phase == BACKWARD else 0
        assert mine <= theirs - extra <= mine + count * graph.num_ops
    assert (made.phase == UPDATE).sum() == (graph.phase == UPDATE).sum()
    # each micro-batch computes what the batch does: as many forward ops that compute, `count` times
    for phase in (FORWARD, BACKWARD):
        mine, theirs = (int(((one.phase == phase) & (one.op_class > 1)).sum()) for one in (graph, made))
        assert theirs == count * mine + (len(_gradients(graph)) * (count - 1) if phase == BACKWARD else 0)


def _gradients(graph: ComputationGraph) -> set[int]:
    return {
        int(op)
        for update in np.flatnonzero(graph.phase == UPDATE)
        for op in graph.predecessors(update)
        if graph.phase[op] == BACKWARD
    }


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_update__waits_for_the_gradients_of_all(schedule: str) -> None:
    graph, count = SMALL.make(0), 4
    made = microbatched(graph, count, schedule, 2)
    losses = np.flatnonzero([made.kinds[kind].startswith("nll_loss_backward") for kind in made.kind])
    assert len(losses) == count
    reaches = np.zeros((made.num_ops, count), bool)
    reaches[losses, np.arange(count)] = True
    for op in range(made.num_ops):
        if made.op_class[op] != SOURCE and (found := made.predecessors(op)).size:
            reaches[op] |= reaches[found].any(axis=0)
    assert reaches[made.phase == UPDATE].all()


@pytest.mark.parametrize(("schedule", "before"), [("gpipe", 4), ("1f1b", 2)])
def test_schedule__is_the_captured_order(schedule: str, before: int) -> None:
    made = microbatched(SMALL.make(0), 4, schedule, 2)
    kinds = [made.kinds[kind] for kind in made.kind]
    passes = [kind for kind in kinds if kind in ("nll_loss_forward", "nll_loss_backward")]
    assert passes.index("nll_loss_backward") == before
    if schedule == "1f1b":
        forward, backward = "nll_loss_forward", "nll_loss_backward"
        assert passes == [forward, forward, backward, forward, backward, forward, backward, backward]


def test_program_order__makes_a_pipeline_and_fifo_does_not() -> None:
    graph = load_graph("transformer_xl_4layer")
    devices = _expert(graph)
    whole, parts = microbatched(graph, 1), microbatched(graph, 4)
    assert whole is graph
    assert len(set(devices.values())) == 4
    fifo, program = _on_groups(parts, devices, "fifo"), _on_groups(parts, devices, "program")
    assert program < 0.7 * fifo
    assert fifo > 0.8 * _on_groups(whole, devices, "fifo")


def test_refused__what_is_no_step() -> None:
    with pytest.raises(InputError, match="no training step"):
        microbatched(layered_dag(50, seed=0), 2)
    for arguments in ((0,), (2, "gpip"), (2, "1f1b", 0)):
        with pytest.raises(InputError):
            microbatched(SMALL.make(0), *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_micro_batch__is_one_of_those_of_the_step(count: int) -> None:
    graph = SMALL.make(0)
    one, of = micro_batch(graph, count, sums=count > 1)
    step = microbatched(graph, count)
    for phase in (FORWARD, BACKWARD):
        mine, all_of_them = (int(made.flops[made.phase == phase].sum()) for made in (one, step))
        first = sum(int(graph.output_bytes[op]) for op in _gradients(graph)) // 4 if count > 1 else 0
        extra = first if phase == BACKWARD else 0  # of the first one nothing is added up
        assert count * mine == all_of_them + extra
    assert (one.flops[one.phase == UPDATE]).sum() == graph.flops[graph.phase == UPDATE].sum()
    sums = np.flatnonzero(np.diff(of) == 0) + 1
    assert len(sums) == (len(_gradients(graph)) if count > 1 else 0)
    assert all(one.predecessors(op).tolist() == [op - 1] for op in sums)
