"""How an episode is drawn, for the scalar and the vector environments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graphopt_gym.envs.core.episodes import Episodes
    from graphopt_gym.problem import Problem

RENDER_MODES = ("human", "ansi", "rgb_array")
FRAME = (720, 1280)  # height and width of every frame, whatever is drawn: videos need frames of one size


def check_render_mode(render_mode: str | None) -> str | None:
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise unknown_name("render mode", render_mode, RENDER_MODES)
    return render_mode


def render_frame(episodes: Episodes[Any], row: int, render_mode: str | None) -> Any:
    """An episode as it stands: uint8 [*FRAME, 3], text, or None after printing the text."""
    if render_mode is None:
        return None
    if render_mode == "rgb_array":
        return frame_of(episodes.figure(row))
    text = episodes.describe(row)
    if render_mode == "human":
        print(text)
        return None
    return text


def decision_figure(problem: Problem, decision: Any) -> Figure:
    """What a problem draws of a decision; else the timeline of its outcome; else its cost in words."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from graphopt_gym.report.gantt import gantt_figure

    drawn = problem.figure(decision)
    if drawn is not None:
        return drawn
    outcome = problem.evaluate(decision)
    if outcome.timeline is not None:
        return gantt_figure(outcome.timeline, note="; ".join(problem.notes))
    figure = Figure(figsize=(8, 4.5))
    FigureCanvasAgg(figure)
    lines = (problem.title, f"{problem.words.cost}: {outcome.cost:.6g} {outcome.unit}", *problem.notes)
    figure.text(0.5, 0.5, "\n".join(lines), ha="center")
    return figure


def frame_of(figure: Figure) -> np.ndarray:
    """uint8 [*FRAME, 3]: a figure, scaled as a whole to fit, in the middle of a white frame."""
    width_in, height_in = figure.get_size_inches()
    height, width = FRAME
    figure.set_dpi(min(width / width_in, height / height_in))
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[:height, :width, :3]  # type: ignore[attr-defined]
    frame = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - drawn.shape[0]) // 2, (width - drawn.shape[1]) // 2
    frame[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return frame
