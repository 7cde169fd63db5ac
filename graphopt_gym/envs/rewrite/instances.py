"""The programs and devices that a rewrite environment draws from, each pair with its constants."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property

from graphopt_gym.envs.core.roster import Roster, padded_size
from graphopt_gym.envs.rewrite.features import growth
from graphopt_gym.envs.rewrite.problem import ProgramLike, RewriteProblem, Rewritten, load_target
from graphopt_gym.fields import whole
from graphopt_gym.hardware.cluster import Cluster, Device
from graphopt_gym.hardware.cost_model import CostModel

DeviceLike = str | os.PathLike[str] | Device | Cluster
ROOM = 1.5  # nodes and edges that there is room for, to those of the largest program


class Instance:
    """One program on one device: the problem, and what is the same in all of its episodes."""

    def __init__(self, problem: RewriteProblem) -> None:
        self.problem = problem
        self.num_nodes = len(problem.program)
        self.num_edges = count_edges(problem.original)
        found = [growth(rule) for rule in problem.matcher.rules]
        self.grown = [ops for ops, _, _ in found]
        self.new_nodes = [nodes for _, nodes, _ in found]
        self.new_edges = [edges for _, _, edges in found]

    @cached_property
    def original_s(self) -> float:
        return self.problem.original_s


def count_edges(state: Rewritten) -> int:
    """Operands of all nodes of a program."""
    return sum([len(node.inputs) for node in state.program.nodes.values()])


class RewriteRoster(Roster[Instance]):
    """All programs on all devices that an environment may be asked for, and the padded sizes they share.

    Args:
        graph, cluster: see :class:`Roster`; a graph here is a program, a cluster a device.
        cost, rules, cost_model: see :class:`RewriteProblem`.
        max_matches: matches that are shown at most.
        max_nodes, max_edges: sizes to pad to and to grow to; None: half as many again as the largest program has.

    Raises:
        InputError: as :class:`Roster`, or a size smaller than what is there.
    """

    def __init__(
        self,
        graph: ProgramLike | Sequence[ProgramLike],
        cluster: DeviceLike | Sequence[DeviceLike],
        cost: str,
        rules: str | Iterable[str] | None,
        max_matches: int,
        max_nodes: int | None,
        max_edges: int | None,
        cost_model: str | CostModel | None = None,
    ) -> None:
        if rules is not None and not isinstance(rules, str) and isinstance(rules, Iterable):
            rules = tuple(rules)
        super().__init__(
            RewriteProblem,
            Instance,
            graph,
            cluster,
            {"cluster": load_target},
            cost=cost,
            rules=rules,
            cost_model=cost_model,
        )
        self.max_matches = whole("max_matches", max_matches, 1)
        nodes = max(one.num_nodes for one in self.flat)
        edges = max(1, *(one.num_edges for one in self.flat))
        self.max_nodes = padded_size("max_nodes", int(ROOM * nodes) if max_nodes is None else max_nodes, nodes)
        self.max_edges = padded_size("max_edges", int(ROOM * edges) if max_edges is None else max_edges, edges)
        self.num_rules = len(self.flat[0].problem.matcher.rules)
        self.sizes = {"N": self.max_nodes, "E": self.max_edges, "M": self.max_matches, "R": self.num_rules}
