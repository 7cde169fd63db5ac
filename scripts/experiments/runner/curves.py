"""Figures of pages."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.runner import Experiment
from experiments.runner.tables import Runs, cost_after
from graphopt_gym.files import write_file


def panels(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Any]]:
    """A figure of as many panels, each of that size in inches."""
    figure = Figure(figsize=(size[0] * columns, size[1] * -(-count // columns)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-count // columns), columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


def save(figure: Figure, path: Path, dpi: int) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    write_file(path, image.getvalue(), make_folders=True)


def draw_curves(experiment: Experiment, runs: Runs, folder: Path) -> None:
    """The figure of ``Experiment.curves``, in the folder of the page."""
    curves, unit = experiment.curves, experiment.cost[2]
    assert curves is not None
    every = curves.graphs or experiment.graphs
    graphs = [graph for graph in every if any(job[0] == graph for job in runs)] or every
    figure, axes = panels(len(graphs), curves.columns, (3.75, 3))
    at = np.unique(np.geomspace(1, experiment.budget, 80).astype(int))
    for axis, graph in zip(axes, graphs, strict=True):
        for name, colour in curves.methods.items():
            mine = runs.of(graph, name)
            if not mine:
                continue
            here = at[at <= max(run["evaluations"] for run in mine)]
            costs = np.array([[cost_after(run, call) for call in here] for run in mine]) * unit
            label = curves.called.get(name, experiment.entries[name].label)
            known = np.isfinite(costs).all(axis=0)
            axis.plot(here[known], costs[:, known].mean(axis=0), color=colour, label=label)
            axis.fill_between(here[known], *np.quantile(costs[:, known], (0, 1), axis=0), color=colour, alpha=0.2)
        level = runs.get((graph, curves.line, 0))
        if level and level["valid"]:
            label = experiment.entries[curves.line].label
            axis.axhline(level["cost"] * unit, color="black", linestyle=":", label=label)
        axis.set_xscale("log")
        axis.set_title(graph, fontsize=10)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=8)
    figure.supxlabel(curves.labels[0])
    figure.supylabel(curves.labels[1])
    figure.tight_layout(rect=(0.02, 0, 1, 1))  # beside the label of all
    save(figure, folder / curves.image, 80)
