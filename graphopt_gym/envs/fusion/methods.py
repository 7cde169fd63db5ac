"""Classical fusion methods: each says by its levels which producers are tried, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from graphopt_gym.envs.fusion import exact
from graphopt_gym.envs.fusion.problem import FusionProblem
from graphopt_gym.search.evaluator import Evaluator, Method
from graphopt_gym.simulator.fusing import PRODUCT

if TYPE_CHECKING:
    from graphopt_gym.simulator.fused import FusedSimulator
    from graphopt_gym.simulator.simulator import Simulator

XLA = "XLA's instruction fusion, xla/service/instruction_fusion.cc of OpenXLA (recalled)"


def _problem(evaluator: Evaluator) -> FusionProblem:
    assert isinstance(evaluator.problem, FusionProblem)
    return evaluator.problem


class Fusible(Protocol):
    """What the methods look at: K tasks on devices that are given."""

    num_tasks: int
    levels: int
    simulator: Simulator
    fused: FusedSimulator
    placement: np.ndarray  # int32 [K]


def none(problem: Fusible) -> np.ndarray:
    """int32 [K]: every op a kernel by itself."""
    return np.zeros(problem.num_tasks, np.int32)


def greedy(problem: Fusible) -> np.ndarray:
    """int32 [K]: every producer, the last first."""
    return np.ones(problem.num_tasks, np.int32)


def vertical(problem: Fusible) -> np.ndarray:
    """int32 [K]: producers with one consumer only, so that kernels are chains and trees."""
    return (np.diff(problem.fused.tables.succ_ptr) == 1).astype(np.int32)


def epilogues(problem: Fusible) -> np.ndarray:
    """int32 [K]: matmuls and convolutions first, then the loops that only follow on such epilogues."""
    tables = problem.fused.tables
    product = tables.fusion_class == PRODUCT
    behind = product.copy()  # ops whose level lets an epilogue grow: loops that read a product, or what does
    for task in range(problem.num_tasks):
        reads = tables.pred[tables.pred_ptr[task] : tables.pred_ptr[task + 1]]
        ok = tables.pred_ok[tables.pred_ptr[task] : tables.pred_ptr[task + 1]]
        behind[task] |= bool(behind[reads[ok]].any())
    return np.where(product, 2 if problem.levels > 2 else 1, behind).astype(np.int32)


def savings_s(problem: Fusible) -> np.ndarray:
    """float64 [K]: seconds that fusing each task into all of its fusible consumers saves, by itself: its launch, the
    bytes that these no longer read, and, where nobody else reads them, those that it no longer writes."""
    tables, parts = problem.fused.tables, problem.fused.task_tables
    kind, every = problem.simulator.device_type[problem.placement], np.arange(problem.num_tasks)
    per_byte = 1.0 / parts.bytes_per_s[kind, every]
    producer = np.repeat(every, np.diff(tables.succ_ptr))
    together = tables.succ_ok & (problem.placement[producer] == problem.placement[tables.succ])
    saved = np.bincount(producer, together * per_byte[tables.succ], problem.num_tasks) * tables.output_bytes
    all_in = np.bincount(producer, ~together, problem.num_tasks) == 0
    saved += np.where(all_in, parts.bytes_written * per_byte, 0.0)
    any_in = np.bincount(producer, together, problem.num_tasks) > 0
    return np.where(any_in, saved + parts.launch_s[kind, every], 0.0)


def benefit(problem: Fusible) -> np.ndarray:
    """int32 [K]: by what fusing saves, the most first; as many producers a level as there are levels."""
    saved = savings_s(problem)
    useful = np.flatnonzero(saved > 0)
    levels = np.zeros(problem.num_tasks, np.int32)
    order = useful[np.argsort(saved[useful], kind="stable")]
    levels[order] = 1 + np.arange(len(order)) * (problem.levels - 1) // max(1, len(order))
    return levels


def _proposes(*proposals: Any) -> Any:
    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = _problem(evaluator)
        evaluator.costs(np.stack([propose(problem) for propose in proposals]))

    return run


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("none", _proposes(none), "every op a kernel by itself", "eager execution"),
        Method("greedy", _proposes(greedy), "every producer into all of its consumers, the last first", XLA),
        Method("vertical", _proposes(vertical), "producers with one consumer only", "the usual baseline"),
        Method(
            "epilogues",
            _proposes(epilogues),
            "matmuls and convolutions with the elementwise ops behind them only",
            "Chetlur et al., cuDNN, 2014, and CUTLASS's epilogues",
        ),
        Method(
            "benefit", _proposes(benefit), "the most saving producers first", XLA.replace("instruction", "priority")
        ),
        Method(
            "cp_sat",
            exact.cp_sat,
            "the best legal fusion of a small graph, with the bound that proves it",
            "set partition by OR-tools' CP-SAT",
            random=True,
            options={"time_limit_s": exact.SECONDS, "workers": 0},
            needs=("ortools",),
        ),
    )
}
