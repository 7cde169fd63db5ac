"""A timeline as a Gantt chart: devices and links as rows, what each device holds in memory below.

The figure belongs to nobody's global state: it is a ``matplotlib.figure.Figure`` on its own canvas, so it can be drawn
in threads, in environments that render, and without a display.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.files import write_file
from graphopt_gym.graphs.graph import PHASES
from graphopt_gym.simulator.drawing import drawable, figure_bytes
from graphopt_gym.units import format_bytes, format_seconds, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from graphopt_gym.simulator.timeline import Timeline

PHASE_COLOURS = {"forward": "#4c78a8", "backward": "#f28e2b", "optimizer": "#59a14f"}
TRANSFER_COLOUR, IDLE_COLOUR, MEMORY_COLOUR, OVERFLOW_COLOUR = "#9467bd", "#f0f0f0", "#9aaebf", "#d62728"
CAPACITY_COLOUR, CAPACITY_DASH = "#444444", (0, (4, 3))
MOST_LINK_ROWS = 12  # the busiest links get a row each; how many are left out stands beside them
MOST_LABELLED_TASKS = 60  # names inside the bars, where there are few enough to be read
_PIXELS = 2400  # gaps narrower than the axes' width over this are not seen


@dataclass(frozen=True)
class Bars:
    """Intervals of one row, in order of start: float64 [B] seconds, and the category of each, int [B]."""

    start_s: np.ndarray
    finish_s: np.ndarray
    category: np.ndarray


def merge_bars(start_s: np.ndarray, finish_s: np.ndarray, category: np.ndarray, gap_s: float) -> Bars:
    """Join neighbours of one category whose gap is at most ``gap_s``, so that thousands of ops stay drawable."""
    order = np.argsort(start_s, kind="stable")
    start, finish, category = start_s[order], finish_s[order], category[order]
    if not len(start):
        return Bars(start, finish, category)
    new = np.ones(len(start), bool)
    new[1:] = (category[1:] != category[:-1]) | (start[1:] - finish[:-1] > gap_s)
    first = np.flatnonzero(new)
    return Bars(start[first], np.maximum.reduceat(finish, first), category[first])


def _close_seams(bars: Bars, gap_s: float) -> Bars:
    """Bars that touch overlap by half a pixel: two smoothed edges side by side would let the ground shine through."""
    finish = bars.finish_s.copy()
    touches = np.flatnonzero(bars.start_s[1:] - finish[:-1] <= gap_s)
    finish[touches] = np.maximum(finish[touches], bars.start_s[touches + 1] + gap_s / 2)
    return Bars(bars.start_s, finish, bars.category)


def gantt_figure(
    timeline: Timeline, *, title: str = "", note: str = "", width_in: float = 16.0, memory: bool = True
) -> Figure:
    """Draw a timeline.

    Args:
        timeline: one simulated step.
        title: goes before the step time, e.g. the method's name; graph and cluster where left out.
        note: small, below everything, e.g. what the times rest on.
        width_in: width of the figure in inches; its height follows from the rows.
        memory: whether to draw what each device holds over time against its capacity.

    Returns:
        A figure with an Agg canvas: ``figure.savefig(path)``, or ``figure.canvas.buffer_rgba()`` after ``draw()``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    devices = timeline.cluster.num_devices
    links = sorted(timeline.link_transfers, key=lambda link: -_busy_s(timeline.link_transfers[link]))
    shown = sorted(links[:MOST_LINK_ROWS])
    device_in = 0.62 if devices <= 4 else 0.42
    strip_in = (0.5 if devices <= 4 else 0.36) * memory
    heights = [device_in * devices + 0.24 * len(shown), *[strip_in] * (devices * memory)]
    top_in, bottom_in, gap_in = 0.95, 0.75, 0.12
    height_in = top_in + bottom_in + sum(heights) + gap_in * (len(heights) - 1) + 0.25 * memory
    figure = Figure(figsize=(width_in, height_in), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(heights),
        1,
        height_ratios=heights,
        left=2.0 / width_in,
        right=1 - 1.35 / width_in,
        top=1 - top_in / height_in,
        bottom=bottom_in / height_in,
        hspace=gap_in * len(heights) / sum(heights),
    )
    rows = figure.add_subplot(grid[0])
    scale_s, unit = time_unit(timeline.makespan_s or 1.0)
    _draw_rows(rows, timeline, shown, len(links) - len(shown), scale_s)
    axes = [rows]
    if memory:
        strips = [figure.add_subplot(grid[1 + device], sharex=rows) for device in range(devices)]
        _draw_memory(strips, timeline, scale_s)
        axes += strips
    for axis in axes[:-1]:
        axis.tick_params(axis="x", labelbottom=False, length=0)
    axes[-1].set_xlabel(f"time ({unit})", fontsize=13)
    axes[-1].tick_params(axis="x", labelsize=12)
    rows.set_xlim(0, (timeline.makespan_s or 1.0) / scale_s)
    _draw_head(figure, timeline, title, memory, height_in, width_in)
    if note:
        figure.text(0.25 / width_in, 0.14 / height_in, drawable(note, 200), fontsize=10, va="center", color="#666666")
    return figure


def save_gantt(
    timeline: Timeline, path: str | os.PathLike[str], *, title: str = "", note: str = "", dpi: int = 110
) -> Path:
    """Write a Gantt chart; the ending of ``path`` names the format (png, svg, pdf). Whole or not at all.

    Raises:
        InputError: a format that is not known, or a folder that cannot be written.
    """
    path = Path(path)
    figure = gantt_figure(timeline, title=title, note=note)
    kind = path.suffix.lstrip(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"cannot draw {str(path)!r}: unknown picture format {kind!r}; end the name in .png or .svg")
    write_file(path, figure_bytes(figure, kind, dpi), make_folders=True)
    return path


def _busy_s(transfers: np.ndarray) -> float:
    return float((transfers[:, 5] - transfers[:, 4]).sum())


def _bar_rows(axis: Axes, bars: Bars, y: float, height: float, colours: list[str], scale_s: float) -> None:
    for category in np.unique(bars.category).tolist():
        mine = bars.category == category
        left, width = bars.start_s[mine] / scale_s, (bars.finish_s[mine] - bars.start_s[mine]) / scale_s
        axis.broken_barh(
            list(zip(left.tolist(), width.tolist(), strict=True)),
            (y, height),
            facecolors=colours[category],
            linewidth=0,
        )


def _draw_rows(axis: Axes, timeline: Timeline, links: list[int], left_out: int, scale_s: float) -> None:
    cluster, tasks = timeline.cluster, timeline.tasks
    phase = timeline.graph.phase[tasks.first_op]
    runs = ~tasks.is_source
    gap_s = timeline.makespan_s / _PIXELS
    end = (timeline.makespan_s or 1.0) / scale_s
    labels: list[tuple[float, str, int]] = []
    y = 0.0
    for device in range(cluster.num_devices):
        mine = np.flatnonzero(runs & (timeline.task_device == device))
        axis.broken_barh([(0, end)], (y, 0.82), facecolors=IDLE_COLOUR, linewidth=0)
        bars = merge_bars(timeline.start_s[mine], timeline.finish_s[mine], phase[mine], gap_s)
        bars = _close_seams(bars, gap_s)
        _bar_rows(axis, bars, y, 0.82, [PHASE_COLOURS[name] for name in PHASES], scale_s)
        if runs.sum() <= MOST_LABELLED_TASKS:
            _label_bars(axis, timeline, mine, y + 0.41, scale_s)
        labels.append((y + 0.41, drawable(f"{device}: {cluster.devices[device].name}", 28), 12))
        share = timeline.busy_s[device] / timeline.makespan_s if timeline.makespan_s else 0.0
        _beside(axis, y + 0.41, f"{share:.0%} busy")
        y += 1.0
    for link in links:
        rows = timeline.link_transfers[link]
        axis.broken_barh([(0, end)], (y + 0.05, 0.28), facecolors="#f7f7f7", linewidth=0)
        bars = merge_bars(rows[:, 4], rows[:, 5], np.zeros(len(rows), int), gap_s)
        _bar_rows(axis, bars, y + 0.05, 0.28, [TRANSFER_COLOUR], scale_s)
        labels.append((y + 0.19, drawable(cluster.links[link].name, 36), 9))
        share = _busy_s(rows) / timeline.makespan_s if timeline.makespan_s else 0.0
        _beside(axis, y + 0.19, f"{share:.0%}", 9)
        y += 0.38
    if left_out:
        _beside(axis, y, f"+ {left_out} quieter links", 9)
    axis.set_ylim(y, -0.1)
    axis.set_yticks([at for at, _, _ in labels], [text for _, text, _ in labels])
    for tick, (_, _, size) in zip(axis.get_yticklabels(), labels, strict=True):
        tick.set_fontsize(size)
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)


def _label_bars(axis: Axes, timeline: Timeline, mine: np.ndarray, y: float, scale_s: float) -> None:
    """The op's kind inside each bar that is wide enough for it."""
    graph = timeline.graph
    for task in mine.tolist():
        kind = graph.kinds[graph.kind[timeline.tasks.first_op[task]]]
        width = timeline.finish_s[task] - timeline.start_s[task]
        if width * 110 >= len(kind) * timeline.makespan_s:
            x = (timeline.start_s[task] + width / 2) / scale_s
            axis.text(x, y, drawable(kind), ha="center", va="center", fontsize=10, color="#101010", clip_on=True)


def _draw_memory(strips: list[Axes], timeline: Timeline, scale_s: float) -> None:
    """One strip a device, all to one scale: up to the capacity, or less where all devices hold far less."""
    end = timeline.makespan_s or 1.0
    capacities = [device.memory_bytes for device in timeline.cluster.devices]
    highest = max(int(timeline.peak_bytes.max()), 1)
    top = max(highest, max(capacities)) * 1.12 if max(capacities) < 3 * highest else highest * 1.6
    for device, axis in enumerate(strips):
        capacity, peak = capacities[device], int(timeline.peak_bytes[device])
        times, level = timeline.memory(device)
        times, level = _thin(np.append(times, end), np.append(level, level[-1:] if len(level) else 0), end / _PIXELS)
        over = peak > capacity
        colour = OVERFLOW_COLOUR if over else MEMORY_COLOUR
        axis.fill_between(times / scale_s, level, step="post", color=colour, linewidth=0)
        if capacity <= top:
            axis.axhline(capacity, color=CAPACITY_COLOUR, linewidth=1.2, linestyle=CAPACITY_DASH)
        axis.set_ylim(0, top)
        axis.set_yticks([top / 2], [f"memory {device}"])
        axis.tick_params(axis="y", labelsize=11, length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.spines["bottom"].set_color("#888888")
        note = f"{format_bytes(peak)}\nof {format_bytes(capacity)}"
        _beside(axis, top / 2, note, 9, OVERFLOW_COLOUR if over else "#333333")


def _thin(times: np.ndarray, level: np.ndarray, step_s: float) -> tuple[np.ndarray, np.ndarray]:
    """A step function with at most one point a step of time: the highest level in it, so that peaks stay."""
    if len(times) < _PIXELS:
        return times, level
    first = np.flatnonzero(np.diff(np.floor(times / step_s), prepend=-1.0))
    return times[first], np.maximum.reduceat(level, first)


def _beside(axis: Axes, y: float, text: str, size: int = 11, colour: str = "#333333") -> None:
    """Text right of the axes, at a height in data coordinates."""
    axis.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
        va="center", ha="left", fontsize=size, color=colour, annotation_clip=False,
    )  # fmt: skip


def _draw_head(figure: Figure, timeline: Timeline, title: str, memory: bool, height_in: float, width_in: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    name = title or f"{timeline.graph.name} on {timeline.cluster.name}"
    over = [
        device
        for device in range(timeline.cluster.num_devices)
        if timeline.peak_bytes[device] > timeline.cluster.devices[device].memory_bytes
    ]
    text = f"{drawable(name, 90)}: step time {format_seconds(timeline.makespan_s)}"
    if over:
        text += f" — out of memory on device {', '.join(map(str, over))}"
    colour = OVERFLOW_COLOUR if over else "black"
    y = 1 - 0.32 / height_in
    figure.text(0.25 / width_in, y, text, fontsize=18, fontweight="bold", va="center", color=colour)
    present = np.unique(timeline.graph.phase[timeline.tasks.first_op[~timeline.tasks.is_source]]).tolist()
    patches: list[Any] = [Patch(color=PHASE_COLOURS[PHASES[code]], label=PHASES[code]) for code in present]
    if len(timeline.transfers):
        patches.append(Patch(color=TRANSFER_COLOUR, label="transfer"))
    patches.append(Patch(color=IDLE_COLOUR, label="idle"))
    if memory:
        patches.append(Patch(color=MEMORY_COLOUR, label="memory held"))
        patches.append(Line2D([], [], color=CAPACITY_COLOUR, linestyle=CAPACITY_DASH, label="capacity"))
    figure.legend(
        handles=patches,
        loc="upper left",
        bbox_to_anchor=(1.87 / width_in, 1 - 0.5 / height_in),
        ncols=len(patches),
        fontsize=12,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.4,
    )
