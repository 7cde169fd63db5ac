"""The graphs and packages that a chiplet environment draws from, each pair with its constants."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.envs.chiplet.corrector import Corrector
from graphopt_gym.envs.chiplet.features import chip_features, edge_features, op_features
from graphopt_gym.envs.chiplet.methods import greedy_decision
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.envs.chiplet.propagator import State, begin, make_state
from graphopt_gym.envs.chiplet.walk import Tables, make_tables
from graphopt_gym.envs.core.roster import Roster
from graphopt_gym.units import format_bytes

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.package import Package

    GraphLike = str | os.PathLike[str] | ComputationGraph
    PackageLike = str | os.PathLike[str] | Package

_MOST_REASONS = 5


class Instance:
    """One graph on one package: the problem, its features, what its rewards are relative to."""

    def __init__(self, problem: ChipletProblem) -> None:
        self.problem = problem
        self.num_ops = problem.num_ops
        self.num_chips = problem.num_chips
        self.num_edges = len(problem.ops.edges)
        self._correctors: list[Corrector] = []  # not in use just now

    @cached_property
    def greedy_s(self) -> float:
        """The period of the greedy compiler heuristic's partition (even where that does not fit the memory)."""
        return period_s(self.problem, greedy_decision(self.problem))

    @cached_property
    def op_features(self) -> np.ndarray:
        """float32 [N+1, F]; the last row is 0, for the end of an episode."""
        own = op_features(self.problem)
        return np.vstack([own, np.zeros((1, own.shape[1]), np.float32)])

    @cached_property
    def chip_features(self) -> np.ndarray:
        """float32 [C, K]"""
        return chip_features(self.problem)

    @cached_property
    def edge_features(self) -> np.ndarray:
        """float32 [E]"""
        return edge_features(self.problem)

    @cached_property
    def tables(self) -> Tables:
        """For episodes of one op a step."""
        return make_tables(self.problem, self.greedy_s, self.op_features, self.chip_features)

    @cached_property
    def begun(self) -> tuple[bool, np.ndarray, np.ndarray]:
        """The propagator with nothing assigned: whether there may be a partition, its store, its chips' table."""
        state = self.new_state()
        feasible = begin(self.problem.corrector.rules, state)
        return bool(feasible), state.store.copy(), state.chips.copy()

    def new_state(self) -> State:
        """Room for one propagator."""
        return make_state(self.problem.corrector.rules)

    @contextmanager
    def corrector(self) -> Iterator[Corrector]:
        """A corrector that no other thread uses meanwhile; what it gives depends on the generator alone."""
        try:
            corrector = self._correctors.pop()
        except IndexError:
            corrector = Corrector.of(self.problem)
        try:
            yield corrector
        finally:
            self._correctors.append(corrector)


def period_s(problem: ChipletProblem, decision: np.ndarray) -> float:
    """The time of the slowest chip or link, whatever the rules say."""
    seconds, link_bytes, _, _ = problem.measure(decision)
    return max(float(seconds.max()), float(link_bytes.max(initial=0.0)) / problem.package.link_bytes_per_s)


def memory_reasons(problem: ChipletProblem, decision: np.ndarray) -> tuple[str, ...]:
    """A line for each chip that holds more than its memory, and how many more there are."""
    need, capacity = problem.memory_bytes(decision), problem.package.sram_bytes
    over = np.flatnonzero(need > capacity).tolist()
    lines = [
        f"memory: chip {chip} needs {format_bytes(need[chip])} and has {format_bytes(capacity[chip])}"
        for chip in over[:_MOST_REASONS]
    ]
    if len(over) > _MOST_REASONS:
        lines.append(f"memory: {len(over) - _MOST_REASONS} more chips")
    return tuple(lines)


class ChipletRoster(Roster[Instance]):
    """All graphs on all packages that an environment may be asked for, and the padded sizes they share.

    Args:
        graph, cluster: see :class:`Roster`; a cluster here is a package.
        memory_rule: see :class:`ChipletProblem`.
        max_ops, max_chips, max_edges: sizes to pad to, None: the largest of the roster.

    Raises:
        InputError: as :class:`Roster`, or a size smaller than what is there.
    """

    measures = MappingProxyType({"max_ops": "num_ops", "max_chips": "num_chips", "max_edges": "num_edges"})

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike],
        cluster: PackageLike | Sequence[PackageLike],
        memory_rule: bool,
        max_ops: int | None,
        max_chips: int | None,
        max_edges: int | None,
    ) -> None:
        super().__init__(ChipletProblem, Instance, graph, cluster, memory_rule=memory_rule)
        self.max_ops = self.room("max_ops", max_ops, "graph", "ops")
        self.max_chips = self.room("max_chips", max_chips, "cluster", "devices")
        self.max_edges = self.room("max_edges", max_edges, "graph", "edges")
        self.sizes = {"N": self.max_ops, "C": self.max_chips, "E": self.max_edges}
