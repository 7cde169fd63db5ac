"""Placements that are given to problems which decide on something else: by the name of a method, or by devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_integers

if TYPE_CHECKING:
    from graphopt_gym.simulator.simulator import Simulator


class UnfitError(InputError):
    """No decision can keep a limit on this graph and cluster: environments that draw them draw others."""


def fixed_placement(simulator: Simulator, given: str | Sequence[int] | np.ndarray) -> np.ndarray:
    """int32 [K]: the device of each task, of the name of a placement method or of devices int [N].

    Raises:
        InputError: an unknown method, devices that there are not; :class:`UnfitError`: the method finds nothing valid.
    """
    tasks = simulator.tasks
    if not isinstance(given, str):
        devices = check_integers(given, (simulator.graph.num_ops,), simulator.num_devices, "device", "placement")
        return devices[tasks.first_op].astype(np.int32)
    if simulator.num_devices == 1:
        from graphopt_gym.search.solve import find_method

        find_method("Placement-v0", given)
        return np.zeros(tasks.num_tasks, np.int32)
    from graphopt_gym.envs.placement.problem import PlacementProblem
    from graphopt_gym.search.solve import solve

    problem = PlacementProblem(simulator.graph, simulator.cluster, cost_model=simulator.cost_model)
    solution = solve(problem, given, budget=1000, seed=0)
    if not solution.outcome.valid:
        raise UnfitError(
            f"placement {given!r} finds nothing valid for {simulator.graph.name!r} on {simulator.cluster.name!r}: "
            f"{solution.outcome.reasons[0]}; name another method"
        )
    return problem.lowering.placement(solution.decision).astype(np.int32)
