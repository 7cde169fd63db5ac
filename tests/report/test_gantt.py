from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import PHASES
from graphopt_gym.report.gantt import (
    MOST_LINK_ROWS,
    OVERFLOW_COLOUR,
    PHASE_COLOURS,
    figure_bytes,
    gantt_figure,
    merge_bars,
    save_gantt,
)
from tests.report.cases import make_timeline


def test_merge_bars__joins_neighbours_of_one_category_only():
    start, finish = np.array([5.0, 0.0, 1.0, 2.05, 9.0]), np.array([6.0, 1.0, 2.0, 3.0, 9.5])
    bars = merge_bars(start, finish, np.array([1, 0, 0, 0, 1]), gap_s=0.1)
    assert bars.start_s.tolist() == [0.0, 5.0, 9.0]
    assert bars.finish_s.tolist() == [3.0, 6.0, 9.5]
    assert bars.category.tolist() == [0, 1, 1]
    apart = merge_bars(start, finish, np.array([1, 0, 1, 0, 1]), gap_s=0.1)
    assert apart.category.tolist() == [0, 1, 0, 1, 1]


def test_merge_bars__without_a_gap_keeps_the_covered_time():
    rng = np.random.default_rng(0)
    start = np.sort(rng.uniform(0, 100, 500))
    finish = np.minimum(start + rng.uniform(0, 0.4, 500), np.append(start[1:], 101.0))
    bars = merge_bars(start, finish, rng.integers(0, 3, 500), gap_s=0.0)
    assert (bars.finish_s - bars.start_s).sum() == pytest.approx((finish - start).sum(), rel=1e-12)


def test_gantt_figure__draws_the_busy_time_of_each_device(timeline):
    axis = gantt_figure(timeline).axes[0]
    scale = timeline.makespan_s / axis.get_xlim()[1]
    drawn = dict.fromkeys(range(2), 0.0)
    colours = {PHASE_COLOURS[phase] for phase in PHASES}
    for bars in axis.collections:
        if to_hex(bars.get_facecolor()[0]) not in colours:
            continue
        for path in bars.get_paths():
            (left, bottom), (right, _) = path.vertices.min(axis=0), path.vertices.max(axis=0)
            drawn[int(bottom)] += (right - left) * scale
    for device, seconds in drawn.items():
        # up to what merging and closed seams add: less than a pixel a bar
        assert timeline.busy_s[device] <= seconds <= timeline.busy_s[device] + timeline.makespan_s * 0.05


def test_gantt_figure__names_devices_links_phases_and_step_time(timeline):
    text = figure_bytes(gantt_figure(timeline, title="some method"), "svg").decode()
    words = re.findall(r">([^<>]+)</text>", text)
    assert any(word.startswith("some method: step time ") for word in words)
    assert {"0: toy", "1: toy", "wire:0-&gt;1", *PHASES, "transfer", "capacity"} <= set(words)


def test_gantt_figure__shows_an_overflow():
    small = make_timeline(300, 2, memory_bytes=2**29)
    assert (small.peak_bytes > 2**29).any()
    figure = gantt_figure(small)
    texts = {text.get_text(): text.get_color() for text in figure.texts}
    heading = next(text for text in texts if "out of memory on device" in text)
    assert texts[heading] == OVERFLOW_COLOUR
    assert "out of memory" not in str([text.get_text() for text in gantt_figure(make_timeline(300, 2)).texts])


def test_gantt_figure__many_links__shows_the_busiest_and_counts_the_rest():
    nine = make_timeline(400, 9)
    links = len(nine.link_transfers)
    assert links > MOST_LINK_ROWS
    axis = gantt_figure(nine).axes[0]
    assert len(axis.get_yticks()) == 9 + MOST_LINK_ROWS
    assert any(f"+ {links - MOST_LINK_ROWS} quieter links" in text.get_text() for text in axis.texts)


def test_gantt_figure__renders_to_pixels_of_fixed_size(timeline):
    figure = gantt_figure(timeline)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    assert pixels.shape[2] == 4
    assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 10
    other = gantt_figure(timeline, title="x")
    other.canvas.draw()
    assert np.asarray(other.canvas.buffer_rgba()).shape == pixels.shape


def test_save_gantt__same_timeline__same_svg(timeline, tmp_path):
    first, second = save_gantt(timeline, tmp_path / "a.svg"), save_gantt(timeline, tmp_path / "b.svg")
    assert first.read_bytes() == second.read_bytes()
    assert save_gantt(timeline, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_save_gantt__unknown_ending__is_refused_and_nothing_written(timeline, tmp_path):
    with pytest.raises(InputError, match=r"unknown picture format 'gif2'; end the name in \.png or \.svg"):
        save_gantt(timeline, tmp_path / "a.gif2")
    assert list(tmp_path.iterdir()) == []


def test_gantt__leaves_pyplot_alone():
    code = (
        "import sys; from tests.report.cases import make_timeline; from graphopt_gym.report.gantt import gantt_figure;"
        "gantt_figure(make_timeline(50, 2)).canvas.draw(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
