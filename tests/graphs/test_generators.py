"""Generators: the same seed gives the same graph, the nasty cases occur, the optima are optimal."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, fork_join, known_optimum_s, layered_dag, uniform_op_times_s
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, SOURCE, VIEW


def test_layered_dag__depends_on_the_seed_alone() -> None:
    first, again, other = (layered_dag(200, 5, seed=seed, zeros=0.1, colocated=0.5) for seed in (7, 7, 8))
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("num_ops", [1, 2, 3, 10, 500])
@pytest.mark.parametrize("width", [1, 4, 50])
def test_layered_dag__has_the_ops_asked_for(num_ops: int, width: int) -> None:
    graph = layered_dag(num_ops, width, seed=0, fan_in=4)
    assert graph.num_ops == num_ops
    assert np.diff(graph.pred_ptr).max() <= 4
    reads = np.diff(graph.pred_ptr)
    assert ((reads == 0) == (graph.op_class == SOURCE)).all()


def test_layered_dag__spreads_as_training_graphs_do() -> None:
    graph = layered_dag(5000, 10, seed=1)
    computes = graph.op_class > VIEW
    assert np.log10(graph.flops[computes]).std() > 1.5
    assert np.log10(graph.output_bytes[computes]).std() > 1.0
    readers = np.diff(graph.succ_ptr)
    assert readers[graph.op_class == SOURCE].max() >= 20
    assert (readers[computes] >= 3).sum() > 100
    assert (readers == 0).sum() > 0  # several ops that nobody reads
    views = graph.op_class == VIEW
    assert 0.1 < views.mean() < 0.2
    assert views[graph.pred[graph.pred_ptr[:-1][views]]].any()  # views of views
    assert (graph.output_shape[:, 0] * 4 == graph.output_bytes).all()
    assert not graph.flops[~computes].any()
    assert not graph.bytes_read[~computes].any()


def test_layered_dag__reads_the_bytes_of_its_inputs() -> None:
    graph = layered_dag(300, seed=2)
    for op in np.flatnonzero(graph.op_class > VIEW):
        assert graph.bytes_read[op] == graph.output_bytes[graph.predecessors(op)].sum()


def test_layered_dag__zeros_make_free_ops_and_empty_tensors() -> None:
    graph = layered_dag(400, seed=3, zeros=0.3)
    computes = graph.op_class > VIEW
    assert 0.2 < (graph.flops[computes] == 0).mean() < 0.4
    assert 0.2 < (graph.output_bytes[computes] == 0).mean() < 0.4
    assert not layered_dag(50, seed=3, zeros=1.0).flops.any()


def test_layered_dag__equal_ties_everything() -> None:
    graph = layered_dag(200, seed=4, equal=True)
    computes = graph.op_class > VIEW
    for column in ("op_class", "flops", "bytes_written", "output_bytes"):
        assert len(np.unique(getattr(graph, column)[computes])) == 1


def test_layered_dag__phases_come_in_order_with_optimizer_state() -> None:
    graph = layered_dag(500, seed=5, phases=True)
    computing = graph.phase[graph.op_class != SOURCE]
    assert (np.diff(computing) >= 0).all()
    assert set(computing) == {0, 1, 2}
    updates = (graph.phase == PHASES.index("optimizer")) & (graph.op_class > VIEW)
    assert (graph.op_class[updates] == OP_CLASSES.index("optimizer")).all()
    assert not graph.output_bytes[updates].any()
    assert (graph.state_bytes == 2 * graph.param_bytes).all()
    assert graph.param_bytes.any()
    assert not layered_dag(500, seed=5).state_bytes.any()


def test_layered_dag__colocates_views_with_their_input() -> None:
    graph = layered_dag(500, seed=6, colocated=0.6)
    views = graph.op_class == VIEW
    assert (graph.colocation[views] == graph.colocation[graph.view_root[views]]).all()
    assert 0.4 < (graph.colocation >= 0).mean() < 0.8
    assert (layered_dag(50, seed=6).colocation == -1).all()


@pytest.mark.parametrize(
    "arguments",
    [{"num_ops": 0}, {"width": 0}, {"fan_in": 0}, {"views": 1.5}, {"sources": -0.1}, {"zeros": 2}, {"colocated": -1}],
)
def test_layered_dag__refuses_arguments_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"layered_dag: .*{next(iter(arguments))}="):
        layered_dag(**({"num_ops": 10, "seed": 0} | arguments))


def test_chain__is_one_path() -> None:
    graph = chain(5, flops=7, output_bytes=8)
    assert graph.edges.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert graph.flops.tolist() == [7] * 5
    assert graph.bytes_read.tolist() == [0, 8, 8, 8, 8]
    assert known_optimum_s(graph, 3, op_time_s=0.5) == 2.5
    assert known_optimum_s(chain(1), 1) == 1.0


def test_fork_join__has_its_shape() -> None:
    graph = fork_join(2, 3)
    assert graph.edges.tolist() == [[0, 1], [0, 4], [1, 2], [2, 3], [3, 7], [4, 5], [5, 6], [6, 7]]
    assert not graph.output_bytes.any()
    assert graph.name == "fork_join_2x3"


def exact_rounds(branches: int, length: int, devices: int) -> int:
    """Least rounds for chains of unit ops on equal devices, by trying every choice in every round."""

    @cache
    def rounds(left: tuple[int, ...]) -> int:
        open_chains = [index for index, ops in enumerate(left) if ops]
        if not open_chains:
            return 0
        best = sum(left)
        for chosen in combinations(open_chains, min(devices, len(open_chains))):  # more at once is never worse
            after = [ops - (index in chosen) for index, ops in enumerate(left)]
            best = min(best, 1 + rounds(tuple(sorted(after))))
        return best

    return rounds((length,) * branches)


@pytest.mark.parametrize("branches", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_fork_join__optimum_agrees_with_exhaustive_search(branches: int, length: int, devices: int) -> None:
    expected = 2 + exact_rounds(branches, length, devices)
    assert known_optimum_s(fork_join(branches, length), devices) == expected


@pytest.mark.parametrize(("branches", "devices"), [(4, 2), (6, 3), (4, 4), (3, 1)])
def test_fork_join__whole_branches_reach_the_optimum(branches: int, devices: int) -> None:
    """Each device runs its branches one after the other; start times are worked out by hand, no simulator."""
    length, graph = 3, fork_join(branches, 3)
    finish = np.ones(graph.num_ops)
    free = np.ones(devices)  # after the fork
    for branch in range(branches):
        for position in range(length):
            free[branch % devices] += 1
            finish[1 + branch * length + position] = free[branch % devices]
    makespan = max(finish[graph.predecessors(graph.num_ops - 1)]) + 1
    assert makespan == known_optimum_s(graph, devices)


def test_known_optimum__refuses_other_graphs() -> None:
    with pytest.raises(InputError, match="has no known optimum"):
        known_optimum_s(layered_dag(5, seed=0), 2)
    with pytest.raises(InputError, match="num_devices=0"):
        known_optimum_s(chain(3), 0)


def test_generators__refuse_arguments_out_of_range() -> None:
    with pytest.raises(InputError, match="chain: num_ops=0"):
        chain(0)
    with pytest.raises(InputError, match="fork_join: branches=0"):
        fork_join(0, 1)
    with pytest.raises(InputError, match="output_bytes=-1 must not be negative"):
        chain(3, output_bytes=-1)


def test_uniform_op_times__leave_sources_and_views_free() -> None:
    graph = layered_dag(100, seed=1)
    times = uniform_op_times_s(graph, 2.5)
    assert times.dtype == np.float64
    assert (times == np.where(graph.op_class <= VIEW, 0, 2.5)).all()
