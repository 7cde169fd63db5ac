"""A run of gangs as a picture: cores over time, by client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.units import format_bytes, format_seconds, time_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graphopt_gym.simulator.gang.timeline import GangTimeline

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb5566", "#999933", "#44aa99", "#ddaa33")
MOST_BARS = 20_000


def gang_figure(timeline: GangTimeline, *, title: str = "") -> Figure:
    """Core classes as rows, as high as their cores are many, each gang in the colour of its client; of a pipeline's one
    client, forward light, backward dark.

    Args:
        timeline: of a run.
        title: what it is of.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    program, classes = timeline.program, timeline.classes
    figure = Figure(figsize=(12, 6.75))
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    ran = timeline.gang_finish_s[~np.isnan(timeline.gang_finish_s)]
    end_s = float(ran.max()) if len(ran) else 1.0
    scale_s, unit = time_unit(end_s or 1.0)
    single = len(program.clients) == 1
    tops = np.concatenate([[0], np.cumsum(classes.class_size)]).astype(np.float64)
    boxes, colours, shown = [], [], set()
    for number in range(classes.num_classes):
        tasks = timeline.resource_tasks(number)
        for gang in tasks[: MOST_BARS // max(1, classes.num_classes)].tolist():
            kind = program.names[gang].split(":")[-1][:1] if single else ""
            colour = {"F": COLOURS[0], "B": COLOURS[1], "W": COLOURS[3], "A": COLOURS[2]}.get(
                kind, COLOURS[int(program.client[gang]) % len(COLOURS)]
            )
            a, b = timeline.start_s[gang] / scale_s, timeline.finish_s[gang] / scale_s
            low, high = tops[number], tops[number + 1]
            boxes.append([(a, low), (b, low), (b, high), (a, high)])
            colours.append(colour)
            shown.add(kind if kind in "FBWA" and kind else int(program.client[gang]))
    edges = (1.0, 1.0, 1.0, 0.6)
    axis.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors=[edges], linewidths=0.3))
    axis.set_xlim(0, max(end_s / scale_s, 1e-12))
    axis.set_ylim(tops[-1], 0)
    axis.set_xlabel(f"time ({unit})")
    axis.set_yticks((tops[:-1] + tops[1:]) / 2 if classes.num_classes <= 32 else [])
    if classes.num_classes <= 32:
        axis.set_yticklabels([classes.label(number) for number in range(classes.num_classes)], fontsize=8)
    else:
        axis.set_ylabel("cores")
    names = {"F": "forward", "B": "backward", "W": "gradient of weights", "A": "apply gradients"}
    patches = [
        Patch(color={"F": COLOURS[0], "B": COLOURS[1], "W": COLOURS[3], "A": COLOURS[2]}[kind], label=label)
        for kind, label in names.items() if kind in shown
    ]  # fmt: skip
    patches += [
        Patch(color=COLOURS[index % len(COLOURS)], label=f"{one.name}, weight {one.weight:g}")
        for index, one in enumerate(program.clients[:12]) if index in shown
    ]  # fmt: skip
    if patches:
        axis.legend(
            handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=4, fontsize=8, frameon=False
        )
    said = format_seconds(timeline.makespan_s) if timeline.valid else timeline.reasons[0][:90]
    peak = format_bytes(int(timeline.peak_bytes.max(initial=0)))
    axis.set_title(f"{title or program.name}: {said}, peak {peak} a core", fontsize=10, loc="left")
    figure.subplots_adjust(left=0.12, right=0.98, top=0.94, bottom=0.17)
    return figure
