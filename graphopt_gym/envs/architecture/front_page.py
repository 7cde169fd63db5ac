"""A Pareto front as one HTML file: every point opens its network, drawn beside the seed."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.envs.architecture.rendering import comparison_markup
from graphopt_gym.errors import InputError
from graphopt_gym.units import format_count

WIDTH, HEIGHT, MARGIN = 760.0, 420.0, 56.0  # of the plot, in pixels
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#333333")


class Point(NamedTuple):
    """A network: what found it, and its quality, 0 to 1."""

    network: Architecture
    quality: float
    method: str = ""


def front_of(points: Sequence[Point]) -> list[Point]:
    """Those that no other has fewer parameters and no lower quality than, the smallest first; of twins the first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.network.parameters, -one.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def front_page(seed: Architecture, points: Sequence[Point], title: str, quality: str = "validation accuracy") -> str:
    """The page, which needs no other file: parameters against quality, the seed a star, the front joined by a line.

    Args:
        points: all networks that were met.
        quality: what it is, for people.

    Raises:
        InputError: no points.
    """
    if not points:
        raise InputError("a front has no points; give at least one network")
    front = front_of(points)
    number = {point.network.fingerprint: index for index, point in enumerate(front)}
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>{_STYLE}",
        f"<h1>{html.escape(title)}</h1>{_plot(seed, points, front, number, quality)}<h2>The front</h2>",
        '<p class="note">Click a large point, or a line here: the network beside the seed.</p>',
    ]
    for index, point in enumerate(front):
        one = point.network
        line = f"{format_count(one.parameters)} parameters, {format_count(one.flops)} FLOPs, {point.quality:.4f}"
        found = f" ({html.escape(point.method)})" if point.method else ""
        parts.append(f'<details id="n{index}"><summary>{line}{found}</summary>{comparison_markup(seed, one)}</details>')
    parts.append(_SCRIPT + "</body></html>")
    return "\n".join(parts) + "\n"


_STYLE = """<style>
:root { --line: #c8d0d8 }
body { font-family: system-ui, sans-serif; margin: 24px; color: #1c2430 }
.note { color: #5b6675 }
table { border-collapse: collapse }
td, th { padding: 2px 10px; text-align: left }
pre { overflow: auto }
details { margin: 10px 0 }
summary { cursor: pointer; font-weight: 600 }
</style></head><body>"""
_SCRIPT = """<script>
function show() {
  const one = document.getElementById(location.hash.slice(1));
  if (one) { one.open = true; one.scrollIntoView(); }
}
addEventListener("hashchange", show); show();
</script>"""


def _plot(
    seed: Architecture, points: Sequence[Point], front: Sequence[Point], number: dict[str, int], quality: str
) -> str:
    sizes = np.log10([max(1, point.network.parameters) for point in points] + [max(1, seed.parameters)])
    low, high = sizes.min() - 0.05, sizes.max() + 0.05
    values = [point.quality for point in points]
    bottom, top = max(0.0, min(values) - 0.02), min(1.0, max(values) + 0.02)

    def place(parameters: int, value: float) -> tuple[float, float]:
        x = MARGIN + (math.log10(max(1, parameters)) - low) / (high - low) * (WIDTH - 2 * MARGIN)
        return x, HEIGHT - MARGIN - (value - bottom) / max(1e-9, top - bottom) * (HEIGHT - 2 * MARGIN)

    methods = list(dict.fromkeys(point.method for point in points))
    colour = {method: COLOURS[at % len(COLOURS)] for at, method in enumerate(methods)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#5b6675"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">parameters (log scale)</text>',
        f'<text x="14" y="{HEIGHT / 2}" transform="rotate(-90 14 {HEIGHT / 2})" text-anchor="middle">'
        f"{html.escape(quality)}</text>",
    ]
    for share in np.linspace(0, 1, 5).tolist():
        at, value = 10 ** (low + share * (high - low)), bottom + share * (top - bottom)
        parts.append(
            f'<text x="{MARGIN + share * (WIDTH - 2 * MARGIN):.0f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">'
            f'{format_count(int(at))}</text><text x="{MARGIN - 6}" '
            f'y="{HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN) + 4:.0f}" text-anchor="end">{value:.3f}</text>'
        )
    for point in points:
        x, y = place(point.network.parameters, point.quality)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour[point.method]}" opacity="0.45"/>')
    steps = [place(point.network.parameters, point.quality) for point in front]
    path = "".join(f"{'H' if at else 'M'}{x:.1f} {'V' if at else ''}{y:.1f}" for at, (x, y) in enumerate(steps))
    parts.append(f'<path d="{path}" fill="none" stroke="#1c2430"/>')
    for point, (x, y) in zip(front, steps, strict=True):
        hover = f"{point.network.parameters:,} parameters, {point.quality:.4f}"
        parts.append(
            f'<a href="#n{number[point.network.fingerprint]}"><circle cx="{x:.1f}" cy="{y:.1f}" r="6" '
            f'fill="{colour[point.method]}" stroke="#1c2430"><title>{hover}</title></circle></a>'
        )
    own = next((point.quality for point in points if point.network == seed), None)
    if own is not None:
        x, y = place(seed.parameters, own)
        parts.append(f'<text x="{x:.1f}" y="{y + 6:.1f}" text-anchor="middle" font-size="20">★</text>')
    for at, method in enumerate(methods):
        parts.append(
            f'<circle cx="{WIDTH - 170}" cy="{HEIGHT - MARGIN - 14 - 16 * at}" r="4" fill="{colour[method]}"/>'
            f'<text x="{WIDTH - 160}" y="{HEIGHT - MARGIN - 10 - 16 * at}">{html.escape(method)}</text>'
        )
    return "".join([*parts, "</svg>"])
