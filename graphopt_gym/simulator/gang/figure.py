"""Cores over time: of several clients in their colours, as Pathways' traces of tenants (MLSys 2022, figure 11), of one
client gang by gang.

There are two figures, as thousands of calls want to be averaged, and the gangs of a pipeline to be told apart.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.files import write_file
from graphopt_gym.simulator.drawing import drawable, figure_bytes
from graphopt_gym.simulator.gang.timeline import GangTimeline
from graphopt_gym.units import format_seconds, time_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#dd8833", "#888888", "#44aa99", "#882255",
    "#999933", "#332288", "#cc6677", "#117733", "#ddcc77", "#88ccee",
)  # fmt: skip
PIXELS = 1600  # steps of time and
ROWS = 480  # of cores that are drawn; in each, who computed longest
WINDOWS = 20  # of time, in each of which clients have their shares
IDLE = "#ffffff"
MOST_NAMED = 16
KINDS = {"F": "forward", "B": "backward", "A": "apply gradients", "W": "gradient of weights"}  # of a pipeline's gangs
MOST_BARS = 20_000
MOST_LABELS = 32


def run_figure(timeline: GangTimeline, *, title: str = "") -> Figure:
    """The figure for a run: :func:`pipeline_figure` of one client, :func:`tenants_figure` of several."""
    draw = pipeline_figure if len(timeline.program.clients) == 1 else tenants_figure
    return draw(timeline, title=title)


def pipeline_figure(timeline: GangTimeline, *, title: str = "") -> Figure:
    """Draw each gang as a bar on its core classes, which are as high as their cores are many.

    Those of a pipeline are in the colours of forward, backward, the gradient of weights and applying gradients.

    Args:
        timeline: of a run; of very many gangs the first of each class are drawn.
        title: before the makespan; the program's name where left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    program, classes = timeline.program, timeline.classes
    figure = Figure(figsize=(13.0, 6.6), facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    last = _last_s(timeline)
    scale_s, unit = time_unit(last)
    tops = np.concatenate([[0], np.cumsum(classes.class_size)]).astype(np.float64)
    colour_of = dict(zip(KINDS, COLOURS, strict=False))
    boxes, colours, seen = [], [], set()
    for number in range(classes.num_classes):
        for gang in timeline.resource_tasks(number)[: max(1, MOST_BARS // classes.num_classes)].tolist():
            kind = program.names[gang].split(":")[-1][:1]
            begin, end = timeline.start_s[gang] / scale_s, timeline.finish_s[gang] / scale_s
            low, high = tops[number], tops[number + 1]
            boxes.append([(begin, low), (end, low), (end, high), (begin, high)])
            colours.append(colour_of.get(kind, COLOURS[0]))
            seen.add(kind)
    axis.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors=[(1.0, 1.0, 1.0, 0.6)], linewidths=0.3))
    axis.set_xlim(0, last / scale_s)
    axis.set_ylim(tops[-1], 0)
    axis.set_xlabel(f"time ({unit})", fontsize=12)
    if classes.num_classes <= MOST_LABELS:
        labels = [drawable(classes.label(number), 30) for number in range(classes.num_classes)]
        axis.set_yticks((tops[:-1] + tops[1:]) / 2, labels)
    else:
        axis.set_ylabel("core", fontsize=12)
    axis.spines[["top", "right"]].set_visible(False)
    if seen <= set(KINDS):
        handles = [Patch(color=colour_of[kind], label=label) for kind, label in KINDS.items() if kind in seen]
        figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=10, frameon=False)
    figure.suptitle(drawable(_said(timeline, title), 130), x=0.06, ha="left", fontsize=14, y=0.975)
    figure.subplots_adjust(left=0.12, right=0.985, top=0.92, bottom=0.15)
    return figure


def tenants_figure(
    timeline: GangTimeline,
    *,
    begin_s: float = 0.0,
    end_s: float | None = None,
    title: str = "",
    note: str = "",
    width_in: float = 13.0,
) -> Figure:
    """Draw which client each core computes for, and below it the share of the cores that each client has.

    Where many gangs fall on one pixel, a core has there the colour of the client that it computed for longest, and the
    paler, the less it computed at all.

    Args:
        timeline: of a run.
        begin_s, end_s: the part that is drawn; to its end where left out.
        title: before the makespan; the program's name where left out.
        note: small, below everything.
        width_in: of the figure, in inches.

    Raises:
        InputError: a part without a length.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    last = _last_s(timeline) if end_s is None else float(end_s)
    if not (np.isfinite(last) and 0 <= begin_s < last):
        raise InputError(f"begin_s is {begin_s} and end_s is {last}; give a part of the run with a length")
    clients = timeline.program.clients
    share = _shares(timeline, begin_s, last)  # [P, C, PIXELS]
    colours = np.array([to_rgb(COLOURS[number % len(COLOURS)]) for number in range(len(clients))])
    most, busy = share.argmax(axis=1), share.sum(axis=1)[..., None]
    picture = colours[most] * busy + np.array(to_rgb(IDLE)) * (1 - busy)
    classes = timeline.classes
    used = np.flatnonzero(classes.core_class >= 0)
    rows = used[np.linspace(0, len(used) - 1, min(len(used), ROWS)).astype(np.int64)]
    picture = picture[classes.core_class[rows]]

    figure = Figure(figsize=(width_in, 6.6), facecolor="white")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1.0))
    scale_s, unit = time_unit(last - begin_s)
    span = (begin_s / scale_s, last / scale_s)
    edges = np.arange(len(rows) + 1)
    top.imshow(picture, aspect="auto", extent=(*span, edges[-1], 0), interpolation="nearest")
    at = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 9)).astype(np.int64))
    top.set_yticks(at + 0.5, [str(rows[one]) for one in at])
    top.set_ylabel("core", fontsize=12)
    if len(rows) <= 64:
        top.hlines(edges[1:-1], *span, color="white", linewidth=0.6)
    weight = classes.class_size[:, None, None] / classes.class_size.sum()
    parts = (share * weight).sum(axis=0)
    parts = parts.reshape(len(clients), WINDOWS, -1).mean(axis=2)
    times = np.linspace(*span, WINDOWS + 1)
    stacked = np.concatenate([parts, parts[:, -1:]], axis=1)
    bottom.stackplot(times, stacked, colors=[colours[number] for number in range(len(clients))], step="post")
    bottom.set_ylim(0, 1)
    bottom.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    bottom.set_ylabel("busy cores", fontsize=12)
    bottom.set_xlabel(f"time ({unit})", fontsize=12)
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=10)
    computed = timeline.shares(begin_s, last)
    total = max(float(computed.sum()), 1e-30)
    handles: list[Any] = [
        Patch(color=colours[number], label=drawable(
            f"{one.name}, weight {one.weight:g}: {computed[number] / total:.1%}" if len(clients) > 1 else one.name, 60))
        for number, one in enumerate(clients[:MOST_NAMED])
    ]  # fmt: skip
    more = f" (+ {len(clients) - MOST_NAMED} more clients)" if len(clients) > MOST_NAMED else ""
    columns = min(4, len(handles))
    lines = -(-len(handles) // columns)
    low = 0.1 + 0.036 * lines + 0.03 * bool(note)
    figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=10, frameon=False,
                  bbox_to_anchor=(0.5, 0.03 * bool(note)))  # fmt: skip
    figure.suptitle(drawable(_said(timeline, title) + more, 130), x=0.06, ha="left", fontsize=14, y=0.975)
    if note:
        figure.text(0.06, 0.015, drawable(note, 200), fontsize=9, color="#666666")
    figure.subplots_adjust(left=0.07, right=0.985, top=0.92, bottom=low, hspace=0.1)
    return figure


def _last_s(timeline: GangTimeline) -> float:
    """When the last gang finished; a second where none did."""
    ran = timeline.gang_finish_s[~np.isnan(timeline.gang_finish_s)]
    return float(ran.max(initial=0.0)) or 1.0


def _said(timeline: GangTimeline, title: str) -> str:
    whole = f"{format_seconds(timeline.makespan_s)}, {timeline.utilisation:.1%} busy" if timeline.valid else "invalid"
    return f"{title or f'{timeline.program.name} on {timeline.machine.name}'}: {whole}"


def save_tenants(timeline: GangTimeline, path: str | os.PathLike[str], *, dpi: int = 110, **options: Any) -> Path:
    """Write a figure of :func:`tenants_figure`; the ending of ``path`` names the format. Whole or not at all.

    Raises:
        InputError: a format that is not known, or a folder that cannot be written.
    """
    path = Path(path)
    figure = tenants_figure(timeline, **options)
    kind = path.suffix.lstrip(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"cannot draw {str(path)!r}: unknown picture format {kind!r}; end the name in .png or .svg")
    write_file(path, figure_bytes(figure, kind, dpi), make_folders=True)
    return path


def _shares(timeline: GangTimeline, begin_s: float, end_s: float) -> np.ndarray:
    """float64 [P, C, PIXELS]: of each step of time, the share in which a core class computed for a client."""
    program, classes = timeline.program, timeline.classes
    width = (end_s - begin_s) / PIXELS
    found = np.zeros((classes.num_classes, len(program.clients), PIXELS))
    for number in range(classes.num_classes):
        gangs = timeline.resource_tasks(number)
        start = (timeline.start_s[gangs] - begin_s) / width
        finish = np.where(np.isnan(timeline.finish_s[gangs]), start, (timeline.finish_s[gangs] - begin_s) / width)
        start, finish = np.clip(start, 0, PIXELS), np.clip(finish, 0, PIXELS)
        for client in np.unique(program.client[gangs]).tolist():
            mine = program.client[gangs] == client
            found[number, client] = _covered(start[mine], finish[mine])
    return found


def _covered(start: np.ndarray, finish: np.ndarray) -> np.ndarray:
    """float64 [PIXELS]: how much of each unit step intervals cover that do not overlap."""
    level = np.zeros(PIXELS + 2)  # differences of what intervals cover wholly, and parts of steps at their ends
    extra = np.zeros(PIXELS + 2)
    first, last = np.floor(start).astype(np.int64), np.floor(finish).astype(np.int64)
    inside = first == last
    np.add.at(extra, first[inside], (finish - start)[inside])
    a, b = first[~inside], last[~inside]
    np.add.at(extra, a, a + 1 - start[~inside])
    np.add.at(extra, b, finish[~inside] - b)
    np.add.at(level, a + 1, 1.0)
    np.subtract.at(level, b, 1.0)
    return np.clip((np.cumsum(level) + extra)[:PIXELS], 0.0, 1.0)
