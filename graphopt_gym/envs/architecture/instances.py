"""The seeds and devices that an environment draws from."""

from __future__ import annotations

from typing import Any

from graphopt_gym.envs.architecture.features import blocks_of, mutation_names
from graphopt_gym.envs.architecture.problem import ArchitectureProblem
from graphopt_gym.envs.core.roster import Roster, padded_size
from graphopt_gym.hardware.cluster import load_one_device

SPARE_BLOCKS = 4  # room for duplicates


class Instance:
    """One seed on one device."""

    def __init__(self, problem: ArchitectureProblem) -> None:
        self.problem = problem
        self.num_blocks = len(blocks_of(problem, problem.seed_decision))
        self.spare = 0 if problem.track == "table" else SPARE_BLOCKS
        self.num_mutations = len(mutation_names(problem))


def _device(cluster: Any) -> Any:
    return load_one_device(cluster, "a network is found")


class ArchitectureRoster(Roster[Instance]):
    """All seeds on all devices that an environment may be asked for, and the padded sizes they share.

    Args:
        graph, cluster: see :class:`Roster`; a graph here is the seed, a cluster a device.
        max_blocks: blocks to pad to, which a network cannot outgrow; None: some more than the largest seed has.
        options: of the problem; those that are None are left out.

    Raises:
        InputError: as :class:`Roster`; a size smaller than what is there.
    """

    def __init__(self, graph: Any, cluster: Any, max_blocks: int | None = None, **options: Any) -> None:
        stated = {name: value for name, value in options.items() if value is not None}
        super().__init__(ArchitectureProblem, Instance, graph, cluster, {"cluster": _device}, **stated)
        most = max(one.num_blocks for one in self.flat)
        wanted = max(one.num_blocks + one.spare for one in self.flat) if max_blocks is None else max_blocks
        self.max_blocks = padded_size("max_blocks", wanted, most)
        self.mutations = max(one.num_mutations for one in self.flat)
        self.sizes = {"B": self.max_blocks, "K": self.mutations, "A": 1 + self.max_blocks * self.mutations}
