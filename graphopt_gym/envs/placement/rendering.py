"""A placement in progress as a small table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt_gym.errors import printable
from graphopt_gym.units import format_bytes

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.episodes import PlacementEpisodes


def describe(episodes: PlacementEpisodes, row: int) -> str:
    """The complete placement as a small table: a line a device."""
    problem, outcome = episodes.instance(row).problem, episodes.outcome(row)
    metrics = outcome.metrics
    step_s = metrics["step_time_s"]
    decided = int(episodes.state.current[row])
    lines = [
        f"{problem.title}: {decided} of {problem.num_groups} groups decided, "
        f"step time {step_s * 1e3:.3f} ms" + ("" if outcome.valid else ", out of memory")
    ]
    for device in range(problem.num_devices):
        busy = metrics["busy_s"][device] / step_s if step_s else 0.0
        lines.append(
            f"  {device} {printable(problem.cluster.devices[device].name):<18} "
            f"{metrics['ops_per_device'][device]:>7} ops  "
            f"busy {busy:>4.0%}  peak {format_bytes(metrics['peak_bytes'][device])} of "
            f"{format_bytes(metrics['capacity_bytes'][device])}"
        )
    return "\n".join([*lines, *(f"  {note}" for note in problem.notes)])
