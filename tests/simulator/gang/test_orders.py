"""Orders of pipelines against the published closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.cluster import Link
from graphopt_gym.hardware.machine import Island, load_machine
from graphopt_gym.simulator.gang import GangSimulator, pipeline
from graphopt_gym.simulator.gang.orders import PIPELINE_ORDERS, bubble, pipeline_lists

TOY = load_machine("toy_islands")
SIZES = [(1, 4), (2, 2), (2, 6), (3, 9), (4, 4), (4, 8), (4, 16), (8, 24)]


def run(order, stages, batches, **options):
    """On cores of 1000 bytes, with links that take no time to speak of; each stash is a byte."""
    wires = {name: Link(name, 0.0, 1e18) for name in ("ici", "pcie", "dcn")}
    core = replace(TOY.core, memory_bytes=1000)
    machine = replace(TOY, islands=(Island(stages, 1),), core=core, **wires)
    made = pipeline(stages, batches, stash_bytes=1, **options)
    simulator = GangSimulator(made.program, machine, controllers="none")
    found = simulator.run("lists", lists=simulator.lists_of_slices(pipeline_lists(made, order)))
    assert found.valid, found.reasons
    return found


@pytest.mark.parametrize(("stages", "batches"), SIZES)
def test_gpipe__has_its_bubble_and_every_stash(stages, batches):
    found = run("gpipe", stages, batches, forward_s=1.0, backward_s=2.0)
    assert found.makespan_s == (batches + stages - 1) * 3
    assert bubble(found) == pytest.approx((stages - 1) / (batches + stages - 1))
    assert found.peak_bytes.tolist() == [batches] * stages


@pytest.mark.parametrize(("stages", "batches"), SIZES)
def test_1f1b__has_the_same_bubble_and_s_stashes(stages, batches):
    found = run("1f1b", stages, batches, forward_s=1.0, backward_s=2.0)
    assert bubble(found) == pytest.approx((stages - 1) / (batches + stages - 1))
    assert found.peak_bytes.tolist() == [min(stages - number, batches) for number in range(stages)]


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize(("stages", "batches"), [(2, 2), (2, 6), (3, 9), (4, 8), (4, 16)])
def test_interleaved__divides_the_bubble_by_its_chunks(stages, batches, chunks):
    found = run("interleaved", stages, batches, forward_s=1.0 / chunks, backward_s=2.0 / chunks, chunks=chunks)
    assert found.makespan_s == pytest.approx(3 * batches + (stages - 1) * 3 / chunks)
    if batches > stages:
        most = stages * chunks + stages - 1
        assert found.peak_bytes.max() == min(most, batches * chunks)


@pytest.mark.parametrize(("stages", "batches"), [(2, 4), (2, 6), (3, 9), (4, 8), (4, 16), (8, 24)])
def test_zb_h1__has_a_third_of_the_bubble_and_s_stashes(stages, batches):
    found = run("zb_h1", stages, batches, forward_s=1.0, backward_s=1.0, weight_s=1.0)
    span = 3 * batches + (stages - 1)
    assert bubble(found) == pytest.approx((stages - 1) / span)
    assert found.peak_bytes.max() == stages
    whole = run("1f1b", stages, batches, forward_s=1.0, backward_s=2.0)
    assert whole.makespan_s - 3 * batches == 3 * (stages - 1)


@pytest.mark.parametrize(("stages", "batches"), [(2, 4), (2, 6), (3, 9), (4, 8), (4, 16), (8, 24)])
def test_zb_h2__has_no_bubble_where_memory_allows(stages, batches):
    found = run("zb_h2", stages, batches, forward_s=1.0, backward_s=1.0, weight_s=1.0)
    assert bubble(found) == pytest.approx(0, abs=1e-12)
    assert found.peak_bytes.max() == 2 * stages - 1


@pytest.mark.parametrize(("stages", "batches"), [(1, 3), (2, 6), (3, 9), (4, 12), (4, 16), (8, 24)])
def test_zb_v__has_next_to_no_bubble_and_the_memory_of_1f1b(stages, batches):
    made = {"forward_s": 1.0, "backward_s": 1.0, "weight_s": 1.0, "chunks": 2, "layout": "vee"}
    found = run("zb_v", stages, batches, **made)
    idle = max(stages - 2, 0)
    assert bubble(found) == pytest.approx(idle / (6 * batches + idle), abs=1e-12)
    assert found.peak_bytes.max() <= 2 * stages  # stashes of chunks, half as large as those of a stage


@pytest.mark.parametrize("order", PIPELINE_ORDERS)
def test_order__holds_every_gang_of_a_slice_once(order):
    options = {"interleaved": {"chunks": 2}, "zb_v": {"chunks": 2, "layout": "vee"}}.get(order, {})
    made = pipeline(3, 6, 1.0, 1.0, weight_s=1.0, apply_s=1.0, steps=2, **options)
    lists = pipeline_lists(made, order)
    assert sorted(gang for row in lists for gang in row) == list(range(made.program.num_gangs))
    for number, row in enumerate(lists):
        assert set(made.program.slice[row]) == {number}
        assert row[-1] == made.apply[1, number]


def test_memory__below_what_an_order_needs_is_a_named_deadlock_with_back_pressure():
    machine = replace(TOY, islands=(Island(4, 1),), core=replace(TOY.core, memory_bytes=4))
    made = pipeline(4, 8, 1.0, 2.0, stash_bytes=1)
    simulator = GangSimulator(made.program, machine, controllers="none")
    fits = simulator.run("lists", lists=simulator.lists_of_slices(pipeline_lists(made, "1f1b")))
    assert fits.valid
    found = simulator.run("lists", lists=simulator.lists_of_slices(pipeline_lists(made, "gpipe")))
    assert found.reasons[0].startswith("deadlock: F")
    assert "waits for memory of core" in found.reasons[0]
    without = GangSimulator(made.program, machine, controllers="none", back_pressure=False)
    over = without.run("lists", lists=without.lists_of_slices(pipeline_lists(made, "gpipe")))
    assert over.reasons == ("out of memory: each of core 0 held 1 B more than its 4 B at 4.00 s",)


def test_steps__begin_when_gradients_were_applied():
    found = run("1f1b", 2, 4, forward_s=1.0, backward_s=2.0, apply_s=1.0, steps=2)
    once = run("1f1b", 2, 4, forward_s=1.0, backward_s=2.0, apply_s=1.0)
    assert found.makespan_s == 2 * once.makespan_s


def test_transfers__of_micro_batches_overlap_with_computing():
    """A boundary of half a second: seen as the pipeline fills and drains, not in between."""
    wires = {name: Link(name, 0.0, 1.0) for name in ("ici", "pcie", "dcn")}
    machine = replace(TOY, islands=(Island(2, 1),), **wires)
    made = pipeline(2, 16, 1.0, 2.0, boundary_bytes=1)
    simulator = GangSimulator(made.program, machine, controllers="none")
    found = simulator.run("lists", lists=simulator.lists_of_slices(pipeline_lists(made, "gpipe")))
    assert found.makespan_s == pytest.approx(17 * 3 + 2)
    assert len(found.transfers) == 32
    assert np.isfinite(found.makespan_s)


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        ("1f1b", {"chunks": 2}, "order '1f1b' is for one chunk a slice, and the pipeline has 2; give 'interleaved'"),
        ("zb_v", {"chunks": 2}, "order 'zb_v' is for two chunks a slice; give pipeline(..., chunks=2, layout='vee')"),
        ("zb_h1", {}, "order 'zb_h1' needs the weights' gradient apart"),
        ("interleaved", {"micro_batches": 5}, "micro_batches is 5, which 2 stages do not divide"),
        ("interleaved", {"chunks": 2, "layout": "vee"}, "order 'interleaved' is for layout 'loop'"),
        ("1f1", {}, "unknown order '1f1'; did you mean '1f1b'?"),
    ],
)
def test_orders__refuse_pipelines_that_they_are_not_for(order, options, message):
    made = pipeline(**{"stages": 2, "micro_batches": 4, "forward_s": 1.0, "backward_s": 1.0, **options})
    with pytest.raises(InputError) as caught:
        pipeline_lists(made, order)
    assert message in str(caught.value)
