"""How an episode is drawn, for the scalar and the vector environments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import unknown_name

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.episodes import Episodes

RENDER_MODES = ("human", "ansi", "rgb_array")


def check_render_mode(render_mode: str | None) -> str | None:
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise unknown_name("render mode", render_mode, RENDER_MODES)
    return render_mode


def render_frame(episodes: Episodes, row: int, render_mode: str | None) -> Any:
    """The complete placement of an episode now: uint8 [height, width, 3], text, or None after printing the text."""
    if render_mode is None:
        return None
    if render_mode == "rgb_array":
        from graphopt_gym.report.gantt import gantt_figure

        timeline = episodes.outcome(row).timeline
        assert timeline is not None
        figure = gantt_figure(timeline)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    text = describe(episodes, row)
    if render_mode == "human":
        print(text)
        return None
    return text


def describe(episodes: Episodes, row: int) -> str:
    """The complete placement as a small table: a line a device."""
    problem, outcome = episodes.instance(row).problem, episodes.outcome(row)
    metrics = outcome.metrics
    step_s = metrics["step_time_s"]
    decided = int(episodes.state.current[row])
    lines = [
        f"{problem.graph.name} on {problem.cluster.name}: {decided} of {problem.num_groups} groups decided, "
        f"step time {step_s * 1e3:.3f} ms" + ("" if outcome.valid else ", out of memory")
    ]
    for device in range(problem.num_devices):
        busy = metrics["busy_s"][device] / step_s if step_s else 0.0
        lines.append(
            f"  {device} {problem.cluster.devices[device].name:<18} {metrics['ops_per_device'][device]:>7} ops  "
            f"busy {busy:>4.0%}  peak {metrics['peak_bytes'][device] / 2**30:.2f} of "
            f"{metrics['capacity_bytes'][device] / 2**30:.2f} GiB"
        )
    return "\n".join(lines)
