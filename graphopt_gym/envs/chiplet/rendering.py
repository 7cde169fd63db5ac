"""A partition as it stands: a picture of the pipeline, or a small table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.units import format_bytes, format_seconds, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from graphopt_gym.envs.chiplet.problem import ChipletProblem

    SoFar = tuple[np.ndarray, np.ndarray, np.ndarray]  # seconds [C], link bytes [L], memory [C]


@dataclass(frozen=True)
class Load:
    """What C chips and L links do for one sample, as far as it is decided."""

    problem: ChipletProblem
    decided: int  # ops
    chip_s: np.ndarray  # float64 [C]
    link_s: np.ndarray  # float64 [L]
    memory_bytes: np.ndarray  # int64 [C]
    ops: np.ndarray  # int64 [C]

    @property
    def period_s(self) -> float:
        return max(float(self.chip_s.max()), float(self.link_s.max(initial=0.0)))

    @property
    def complete(self) -> bool:
        return self.decided == self.problem.num_ops

    def title(self) -> str:
        """The graph, the package, how far it is and what it comes to."""
        name = self.problem.title
        if not self.complete:
            return f"{name}: {self.decided} of {self.problem.num_ops} ops decided"
        over = bool((self.memory_bytes > self.problem.package.sram_bytes).any())
        return f"{name}: a sample every {format_seconds(self.period_s)}" + (", out of memory" if over else "")


def load_of(problem: ChipletProblem, decision: np.ndarray, so_far: SoFar | None = None) -> Load:
    """The load of a partition; of one whose last ops are undecided (-1), what is given: ``so_far``, else nothing."""
    decided = int((decision >= 0).sum())
    ops = np.bincount(decision[:decided], minlength=problem.num_chips)
    if decided == len(decision):
        seconds, link_bytes, memory, _ = problem.measure(decision)
    elif so_far is not None:
        seconds, link_bytes, memory = so_far
    else:
        seconds, link_bytes = np.zeros(problem.num_chips), np.zeros(problem.package.num_links)
        memory = np.zeros(problem.num_chips, np.int64)
    return Load(problem, decided, seconds, link_bytes / problem.package.link_bytes_per_s, memory, ops)


def bottleneck(load: Load) -> tuple[str, int]:
    """("chip" or "link", its number): what the period is the time of."""
    if load.chip_s.max() >= load.link_s.max(initial=0.0):
        return "chip", int(load.chip_s.argmax())
    return "link", int(load.link_s.argmax())


def pipeline_figure(load: Load) -> Figure:
    """Two bars a chip: the time of its ops and of the busiest link that leaves it; below, its memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from graphopt_gym.report.gantt import drawable

    chips = load.problem.num_chips
    figure = Figure(figsize=(max(7.0, 0.36 * chips + 2.5), 5.6), facecolor="white")
    FigureCanvasAgg(figure)
    times, memory = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_times(times, load)
    _draw_memory(memory, load)
    over = load.complete and (load.memory_bytes > load.problem.package.sram_bytes).any()
    figure.suptitle(
        drawable(load.title()), x=0.02, ha="left", fontsize=14, fontweight="bold", color="#d62728" if over else "black"
    )
    figure.subplots_adjust(left=0.1, right=0.98, top=0.83, bottom=0.1, hspace=0.12)
    return figure


def _draw_times(axis: Axes, load: Load) -> None:
    from matplotlib.patches import Patch

    from graphopt_gym.report.gantt import CAPACITY_COLOUR, CAPACITY_DASH, PHASE_COLOURS, TRANSFER_COLOUR

    package = load.problem.package
    chips = np.arange(package.num_chips)
    scale_s, unit = time_unit(load.period_s or 1.0)
    kind, number = bottleneck(load)
    busiest = np.zeros(len(chips))
    np.maximum.at(busiest, [source for source, _ in package.links], load.link_s)
    axis.bar(chips - 0.2, load.chip_s / scale_s, 0.4, color=PHASE_COLOURS["forward"])
    axis.bar(chips + 0.2, busiest / scale_s, 0.4, color=TRANSFER_COLOUR)
    if load.period_s > 0:
        at = number if kind == "chip" else package.links[number][0]
        name = f"chip {number}" if kind == "chip" else "link {} -> {}".format(*package.links[number])
        height = load.period_s / scale_s
        axis.bar(at + (-0.2 if kind == "chip" else 0.2), height, 0.4, fill=False, edgecolor="#101010", linewidth=1.6)
        axis.axhline(height, color=CAPACITY_COLOUR, linewidth=1.0, linestyle=CAPACITY_DASH)
        axis.set_ylim(0, height * 1.25)
        side = "left" if at < len(chips) / 2 else "right"
        axis.text(at, height * 1.04, f"bottleneck: {name}", ha=side, va="bottom", fontsize=11)
    axis.set_ylabel(f"time a sample ({unit})", fontsize=11)
    patches = [
        Patch(color=PHASE_COLOURS["forward"], label="ops"),
        Patch(color=TRANSFER_COLOUR, label="busiest link out"),
    ]
    axis.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=11, frameon=False,
        handlelength=1.2, borderaxespad=0.2,
    )  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)


def _draw_memory(axis: Axes, load: Load) -> None:
    from graphopt_gym.report.gantt import CAPACITY_COLOUR, CAPACITY_DASH, MEMORY_COLOUR, OVERFLOW_COLOUR

    capacity = load.problem.package.sram_bytes
    chips = np.arange(len(capacity))
    share = 100 * load.memory_bytes / capacity
    colours = [OVERFLOW_COLOUR if over else MEMORY_COLOUR for over in (load.memory_bytes > capacity).tolist()]
    axis.bar(chips, share, 0.8, color=colours)
    axis.axhline(100, color=CAPACITY_COLOUR, linewidth=1.2, linestyle=CAPACITY_DASH)
    axis.set_ylim(0, max(115.0, float(share.max()) * 1.1))
    axis.set_ylabel("memory (%)", fontsize=11)
    axis.set_xlabel("chip", fontsize=11)
    axis.set_xticks(chips[:: 1 + len(chips) // 40])
    axis.set_xlim(-0.7, len(chips) - 0.3)
    axis.spines[["top", "right"]].set_visible(False)


def describe(load: Load) -> str:
    """A line a chip that holds an op; the bottleneck is marked."""
    package = load.problem.package
    kind, number = bottleneck(load)
    lines = [load.title()]
    for chip in np.flatnonzero(load.ops).tolist():
        links = [index for index, (source, _) in enumerate(package.links) if source == chip]
        link_s = max((float(load.link_s[index]) for index in links), default=0.0)
        marked = number == chip if kind == "chip" else number in links
        lines.append(
            f"  {chip:>2} {load.ops[chip]:>5} ops  {format_seconds(load.chip_s[chip]):>8}  "
            f"link {format_seconds(link_s):>8}  {format_bytes(load.memory_bytes[chip])} of "
            f"{format_bytes(package.sram_bytes[chip])}" + (f"  <- {kind} is the bottleneck" if marked else "")
        )
    return "\n".join(lines)
