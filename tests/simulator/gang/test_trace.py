"""What is seen of a run: its trace, its figure, and who waits for whom."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.machine import load_machine
from graphopt_gym.simulator.gang import GangSimulator, chain, pipeline, pipeline_lists, simulate_gangs, together
from graphopt_gym.simulator.gang.figure import PIXELS, _covered, _shares, save_tenants, tenants_figure
from graphopt_gym.simulator.gang.trace import gang_trace_bytes, write_gang_trace
from graphopt_gym.simulator.gang.waiting import clients_behind, control_s, idle_cores, waiting_html, waiting_lines
from tests.report.test_perfetto import Trace, arguments
from tests.simulator.gang.cases import random_simulator

MACHINE = load_machine("pathways_b").resized(2)


def tenants(weights=(1, 2, 4, 8), length=100):
    parts = [chain(length, 16, 0.33e-3, nodes=10, name=f"tenant {number}") for number in range(len(weights))]
    return simulate_gangs(together(parts, weights), MACHINE, first_core=[0] * len(weights), policy="stride")


@pytest.fixture(scope="module")
def piped():
    made = pipeline(4, 8, 1e-3, 2e-3, apply_s=1e-4, stash_bytes=2**20, boundary_bytes=2**22)
    simulator = GangSimulator(made.program, MACHINE)
    return simulator.run("lists", lists=simulator.lists_of_slices(pipeline_lists(made, "1f1b")))


def test_trace__has_a_track_for_every_resource_and_a_slice_for_every_task_on_it(piped):
    trace = Trace(gang_trace_bytes(piped, name="1f1b"))
    processes = [one.process.process_name for one in trace.tracks.values() if one.HasField("process")]
    assert processes == [
        f"1f1b: {kind}" for kind in ("cores", "links", "hosts", "schedulers", "controllers", "clients")
    ]
    groups = {"core": "cores", "executor": "hosts", "scheduler": "schedulers", "controller": "controllers",
              "client": "clients"}  # fmt: skip
    for track in piped.tracks():
        uuid = trace.named(f"1f1b: {groups.get(track.kind, 'links')}", track.name)
        found = trace.slices[uuid]
        assert [(start, end) for start, end, _ in found] == [
            (round(piped.start_s[task] * 1e9), round(piped.finish_s[task] * 1e9)) for task in track.tasks.tolist()
        ]
        assert [event.name for *_, event in found] == [piped.task(task) for task in track.tasks.tolist()]
    for number in range(piped.classes.num_classes):
        counter = trace.named("1f1b: cores", f"memory of {piped.classes.label(number)}")
        assert max(level for _, level in trace.counters[counter]) == piped.peak_bytes[number]


def test_trace__arrows_go_over_transfers_and_arguments_say_what_was_waited_for(piped):
    trace = Trace(gang_trace_bytes(piped))
    begins = [event for found in trace.slices.values() for *_, event in found]
    starts = [flow for event in begins for flow in event.flow_ids]
    ends = [flow for event in begins for flow in event.terminating_flow_ids]
    assert sorted(starts) == sorted(ends) == list(range(1, len(starts) + 1))
    transfer = next(event for event in begins if event.name == "transfer of F0.0 to stage 1")
    assert len(transfer.terminating_flow_ids) >= 1
    assert arguments(transfer)["bytes"] == 2**22
    reader = next(event for event in begins if event.name == "F1.0")
    assert set(reader.terminating_flow_ids) & set(transfer.flow_ids)
    assert arguments(reader)["waited_for"] == "transfers from stage 0"
    assert arguments(reader)["slice"] == "stage 1"


def test_trace__of_a_run_that_ends_in_a_deadlock_holds_what_ended(tmp_path):
    made = pipeline(2, 1, 1e-3, 1e-3, stash_bytes=2**20)
    simulator = GangSimulator(made.program, MACHINE, first_core=[0, 0])
    forward, backward = made.forward[0, :, 0], made.backward[0, :, 0]
    found = simulator.run("lists", lists=[[int(forward[0]), int(backward[0]), int(forward[1]), int(backward[1])]])
    assert not found.valid
    trace = Trace(write_gang_trace(found, tmp_path / "a" / "stuck.pftrace").read_bytes())
    assert [event.name for *_, event in trace.slices[trace.named("cores", "core 0")]] == ["F0.0"]
    assert waiting_lines(found)[0].startswith("deadlock")
    assert "deadlock" in waiting_html(found)
    assert tenants_figure(found).axes


@pytest.mark.parametrize("seed", range(40))
def test_everything__of_random_runs_is_drawn_and_adds_up(seed):
    simulator, _ = random_simulator(seed)
    found = simulator.run("fifo")
    Trace(gang_trace_bytes(found))
    for number, row in enumerate(idle_cores(found)):
        tasks = found.resource_tasks(number)
        if found.valid and len(tasks):
            assert row.computed_s == pytest.approx(found.class_busy_s[number])
            assert row.computed_s + row.done_s + sum(row.waited_s.values()) == pytest.approx(found.makespan_s)
    assert waiting_lines(found)
    behind = clients_behind(found)
    assert (behind >= 0).all()
    ran = ~np.isnan(found.gang_finish_s)
    if ran.any() and found.gang_finish_s[ran].max() > 0:
        end = float(found.gang_finish_s[ran].max())
        share = _shares(found, 0.0, end)
        done = (share.mean(axis=2) * found.classes.class_size[:, None]).sum(axis=0) * end
        np.testing.assert_allclose(done, found.shares(0.0, end), atol=1e-9 * end)


def test_waits__name_the_client_behind_whom_others_stand():
    found = tenants((1, 1), 50)
    behind = clients_behind(found)
    assert behind[0, 1] > 10 * behind[0, 0]
    lines = waiting_lines(found)
    assert any(line.startswith("tenant 0 0 stood behind (core-seconds): tenant 1 1") for line in lines)
    assert set(control_s(found)) == {"client", "controller", "scheduler", "launch"}


def test_waits__name_stages_and_the_control_plane(piped):
    rows = idle_cores(piped)
    assert next(iter(rows[0].waited_s)) == "transfers from stage 1"
    assert "the control plane" in rows[0].waited_s
    assert rows[3].done_s > 0


def test_html__is_closed_and_takes_no_name_for_markup():
    class Check(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.seen = [], set()

        def handle_starttag(self, tag, attributes):
            self.seen.add(tag)
            if tag != "br":
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parts = [chain(20, 4, 1e-3, nodes=1, name=name) for name in ("<script>x</script>", "a & b")]
    check = Check()
    check.feed(waiting_html(simulate_gangs(together(parts), MACHINE, first_core=[0, 0])))
    assert not check.open
    assert check.seen == {"table", "thead", "tbody", "tr", "th", "td", "br"} - ({"br"} - check.seen)


def test_figure__shows_shares_in_the_colours_of_clients(tmp_path):
    found = tenants()
    figure = tenants_figure(found, begin_s=0.01, end_s=0.05, title="$four$ <b>tenants", note="note")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    shares = found.shares(0.01, 0.05)
    assert labels == [f"tenant {n} {n}, weight {2**n:g}: {shares[n] / shares.sum():.1%}" for n in range(4)]
    image = figure.axes[0].images[0].get_array()
    assert image.shape == (16, PIXELS, 3)
    for name in ("a.png", "b.svg"):
        assert save_tenants(found, tmp_path / name).stat().st_size > 5000
    with pytest.raises(InputError, match="unknown picture format"):
        save_tenants(found, tmp_path / "c.txt")
    with pytest.raises(InputError, match="with a length"):
        tenants_figure(found, begin_s=2.0, end_s=1.0)


def test_covered__is_how_much_of_each_step_intervals_take():
    start, finish = np.array([0.25, 2.0, 5.5, 5.75]), np.array([0.5, 4.5, 5.75, 7.0])
    found = _covered(start, finish)
    assert found[:8].tolist() == [0.25, 0, 1, 1, 0.5, 0.5, 1, 0]


def test_names__may_be_anything():
    names = ["$\\frac$", "模型", "a\nb", "_x", "😀", "n" * 500]
    parts = [chain(4, 4, 1e-3, nodes=1, name=name) for name in names]
    found = simulate_gangs(together(parts), replace(MACHINE, name="$x"), first_core=[0] * len(names))
    figure = tenants_figure(found)
    figure.canvas.draw()
    Trace(gang_trace_bytes(found, name="\ud800"))
    assert all("\n" not in line for line in waiting_lines(found))
