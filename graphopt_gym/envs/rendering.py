"""How an episode is drawn, for the scalar and the vector environments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import unknown_name

if TYPE_CHECKING:
    from graphopt_gym.envs.episodes import Episodes

RENDER_MODES = ("human", "ansi", "rgb_array")


def check_render_mode(render_mode: str | None) -> str | None:
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise unknown_name("render mode", render_mode, RENDER_MODES)
    return render_mode


def render_frame(episodes: Episodes[Any], row: int, render_mode: str | None) -> Any:
    """An episode as it stands: uint8 [height, width, 3], text, or None after printing the text."""
    if render_mode is None:
        return None
    if render_mode == "rgb_array":
        figure = episodes.figure(row)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    text = episodes.describe(row)
    if render_mode == "human":
        print(text)
        return None
    return text
