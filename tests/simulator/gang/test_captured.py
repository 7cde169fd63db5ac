"""Pipelines of captured steps: costs, memory and what is sent, against plain counts; partitions against all others."""

from __future__ import annotations

import itertools
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import PHASES
from graphopt_gym.graphs.layers import layers_of
from graphopt_gym.graphs.random_graphs import RandomGraphs
from graphopt_gym.graphs.zoo import load_graph
from graphopt_gym.hardware.cost_model import load_cost_model
from graphopt_gym.hardware.machine import load_machine
from graphopt_gym.simulator.gang import GangSimulator, captured_pipeline, in_flight, pipeline_lists
from graphopt_gym.simulator.gang.captured import layer_costs

MACHINE = load_machine("pathways_b").resized(2)
MODEL = load_cost_model("graph")
FORWARD, BACKWARD, UPDATE = range(len(PHASES))
SMALL = RandomGraphs(num_ops=250, families="transformer", optimizer="adam").make(1)


def run(made, order, machine=MACHINE, **options):
    simulator = GangSimulator(made.program, machine, **options)
    return simulator.run("lists", lists=simulator.lists_of_slices(pipeline_lists(made, order)))


def seconds(made, gangs):
    return made.program.time_s[gangs[0]].sum()


@pytest.mark.parametrize("name", ["bert_base", "transformer_xl_2layer", "inception_v3_b32", "gnmt_2layer"])
def test_one_stage_and_micro_batch__take_what_the_ops_take(name):
    graph = load_graph(name)
    times = MODEL.op_times(graph, MACHINE.core)
    made = captured_pipeline(graph, 1, 1, MACHINE, partition="even")
    for gangs, phase in ((made.forward, FORWARD), (made.backward, BACKWARD), (made.apply, UPDATE)):
        assert seconds(made, gangs) == pytest.approx(times[graph.phase == phase].sum(), rel=1e-12)
    for stages in (2, 3):
        again = captured_pipeline(graph, stages, 1, MACHINE, partition="even")
        for gangs, other in ((made.forward, again.forward), (made.backward, again.backward), (made.apply, again.apply)):
            assert seconds(made, gangs) == pytest.approx(seconds(again, other), rel=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cut", ["calls", "blocks"])
def test_tables__are_what_counting_gives(recompute, cut):
    """Each range of layers by itself: what it keeps, holds and sends, tensor by tensor."""
    graph = SMALL if cut == "calls" else load_graph("transformer_xl_2layer")
    layers = layers_of(graph, cut)
    found = layer_costs(layers, 1, False, MACHINE, MODEL, recompute)
    layer, phase, tensor = layers.layer, graph.phase, layers.tensor
    made_by: dict[int, list[int]] = {}
    for source, target in zip(graph.edge_src.tolist(), graph.edge_dst.tolist(), strict=True):
        one = int(tensor[source])
        if not layers.shared[one] and tensor[target] == target and phase[target] != UPDATE:
            made_by.setdefault(one, []).append(target)
    split = {int(op) for op in np.flatnonzero(graph.op_class == 1) for op in [graph.predecessors(op)[0]]}
    split = {op for op in split if any(tensor[reader] == reader for reader in graph.successors(op) if
                                       graph.op_class[reader] == 1)}  # fmt: skip
    size = {op: 0 if op in split else int(graph.output_bytes[op]) for op in made_by}
    count = layers.num_layers
    for begin, end in itertools.combinations(range(count + 1), 2):
        kept = every = 0
        for op, readers in made_by.items():
            if phase[op] != FORWARD:
                continue
            is_input = graph.op_class[op] == 0
            at = [(int(layer[reader]), int(phase[reader])) for reader in readers]
            inside = [step for where, step in at if begin <= where < end]
            has = is_input or layer[op] < end
            sends = not is_input and has and any(where >= end for where, _ in at)
            needed = has and (BACKWARD in inside or sends)
            came = is_input or layer[op] < begin
            first = came and len(inside) > 0 if recompute else needed
            kept += size[op] * first
            every += size[op] * needed
        assert found.kept_bytes[begin, end] == kept
        assert found.rerun_bytes[begin, end] == (max(every - kept, 0) if recompute else 0)
        resident = 0
        for one in layers.parameters:
            holds = any(begin <= where < end for where in one.layers)
            resident += 2 * holds * int(graph.param_bytes[one.op])
            resident += (begin <= one.layers[0] < end) * int(graph.state_bytes[one.op])
        assert found.resident_bytes[begin, end] == resident
    for at in range(1, count):
        on = [op for op, readers in made_by.items() if phase[op] == FORWARD and graph.op_class[op] != 0
              and layer[op] < at <= max(layer[readers])]  # fmt: skip
        assert found.sent_bytes[at] == sum(size[op] for op in on)
        back = [op for op, readers in made_by.items() if phase[op] == BACKWARD and graph.op_class[op] != 0
                and not layers.of_gradients[op] and layer[op] >= at > min(layer[readers])]  # fmt: skip
        assert found.returned_bytes[at] == sum(size[op] for op in back)
    assert found.sent_bytes[0] == found.returned_bytes[0] == 0


@pytest.mark.parametrize(("name", "stages"), [("bert_base", 4), ("gnmt_4layer", 3), ("inception_v3_b32", 4)])
def test_dp__has_the_fastest_slowest_stage_of_all_partitions(name, stages):
    graph, micro_batches = load_graph(name), 4
    costs = layer_costs(layers_of(graph), micro_batches, True, MACHINE, MODEL)
    each = costs.forward_s + costs.backward_s + costs.weight_s + costs.apply_s / micro_batches

    def slowest(cuts):
        return max(each[a:b].sum() for a, b in pairwise((0, *cuts, len(each))))

    made = captured_pipeline(graph, stages, micro_batches, MACHINE)
    best = min(slowest(cuts) for cuts in itertools.combinations(range(1, len(each)), stages - 1))
    assert slowest(made.cuts) == pytest.approx(best, rel=1e-12)
    even = captured_pipeline(graph, stages, micro_batches, MACHINE, partition="even")
    assert slowest(made.cuts) <= slowest(even.cuts)
    assert [name for stage in made.stage_layers for name in stage] == list(made.layers.names)
    # in a long run the slowest stage counts
    longer = [captured_pipeline(graph, stages, 32, MACHINE, partition=one) for one in ("dp", "even")]
    assert run(longer[0], "1f1b").makespan_s <= 1.01 * run(longer[1], "1f1b").makespan_s


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ("1f1b", {}),
        ("gpipe", {}),
        ("1f1b", {"recompute": True}),
        ("zb_h1", {"split": True}),
        ("interleaved", {"chunks": 2}),
        ("zb_v", {"chunks": 2, "layout": "vee", "split": True}),
    ],
)
@pytest.mark.parametrize("name", ["bert_base", "gnmt_2layer", "transformer_xl_4layer"])
def test_dp__what_fits_runs_in_that_memory(name, order, options):
    """The least memory that a partition is found for is enough, without back-pressure."""
    low, high = 1 << 28, MACHINE.hbm_bytes
    for _ in range(4):
        middle = (low + high) // 2
        smaller = replace(MACHINE, core=replace(MACHINE.core, memory_bytes=middle))
        try:
            made = captured_pipeline(name, 2, 4, smaller, order=order, **options)
        except InputError:
            low = middle
            continue
        found = run(made, order, smaller, back_pressure=False)
        assert found.valid, found.reasons
        high = middle


def test_recompute__keeps_what_was_sent_and_runs_forward_again():
    kept = captured_pipeline("bert_base", 4, 8, MACHINE, partition=(4, 8, 12))
    again = captured_pipeline("bert_base", 4, 8, MACHINE, partition=(4, 8, 12), recompute=True)
    assert seconds(again, again.backward) == pytest.approx(seconds(kept, kept.backward) + seconds(kept, kept.forward))
    stash = again.program.output_bytes[again.forward[0, :, 0]]
    examples, hidden, mask = 4, 384 * 768 * 4, 384 * 4
    assert stash[1] == stash[2] == examples * (hidden + mask)
    assert (stash < kept.program.output_bytes[kept.forward[0, :, 0]] / 20).all()
    peaks = [run(one, "gpipe").peak_bytes for one in (again, kept)]
    assert (peaks[0] < peaks[1]).all()


def test_split__takes_the_same_in_two_gangs():
    whole = captured_pipeline("gpt2_small", 3, 4, MACHINE, partition="even")
    parts = captured_pipeline("gpt2_small", 3, 4, MACHINE, partition="even", split=True)
    assert seconds(parts, parts.backward) + seconds(parts, parts.weight) == pytest.approx(
        seconds(whole, whole.backward)
    )
    assert run(parts, "zb_h2").makespan_s < run(parts, "1f1b").makespan_s


def test_cores__share_a_micro_batch_and_reduce_gradients():
    graph = load_graph("bert_base")
    one = captured_pipeline(graph, 2, 4, MACHINE, partition=(7,))
    four = captured_pipeline(graph, 2, 4, MACHINE, cores=4, partition=(7,))
    larger = captured_pipeline(graph, 2, 4, MACHINE, cores=4, partition=(7,), batch=128)
    assert (one.examples, four.examples, larger.examples) == (8, 2, 8)
    assert seconds(larger, larger.forward) == seconds(one, one.forward)
    assert seconds(one, one.forward) / 4 < seconds(four, four.forward) < seconds(one, one.forward)
    program = four.program
    assert [program.collective[gang] for gang in four.apply[0]] == [1, 1]
    # the words' embedding is the head's weight too: both reduce it
    tied = int(graph.param_bytes[0])
    assert program.collective_bytes[four.apply[0]].sum() == graph.param_bytes.sum() + tied
    assert run(four, "1f1b").valid


def test_tied__gradients_meet_before_they_are_applied():
    made = captured_pipeline("bert_base", 4, 4, MACHINE, steps=2, partition=(4, 8, 12))
    program = made.program
    edges = set(zip(program.edge_src.tolist(), program.edge_dst.tolist(), program.edge_bytes.tolist(), strict=True))
    size = int(load_graph("bert_base").param_bytes[0])
    assert (made.apply[0, 3], made.apply[0, 0], size) in edges
    assert (made.apply[0, 0], made.forward[1, 3, 0], size) in edges
    assert run(made, "1f1b").valid


def test_islands__are_cut_where_little_is_sent():
    """Two stages on two islands: the partition looks at the network between them."""
    machine = load_machine("toy_islands")
    slow = replace(machine, dcn=replace(machine.dcn, bytes_per_s=1e6), core=MACHINE.core)
    cores = slow.islands[0].num_cores
    made = captured_pipeline("inception_v3_b32", 2, 2, slow, cores=cores)
    costs = layer_costs(made.layers, 2 * cores, True, slow, MODEL)
    both = costs.sent_bytes + costs.returned_bytes
    assert both[made.cuts[0]] == both[1:-1].min()


def test_in_flight__is_that_of_the_orders():
    assert in_flight("gpipe", 4, 8) == [8] * 4
    assert in_flight("1f1b", 4, 8) == [4, 3, 2, 1]
    assert max(in_flight("zb_h1", 4, 16)) == 4
    assert max(in_flight("zb_h2", 4, 16)) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": 15}, "stages x chunks is 15, more than the 14 layers"),
        ({"stages": 8, "chunks": 2}, "stages x chunks is 16, more than the 14 layers"),
        ({"micro_batches": 5}, "micro_batches is 5, which does not divide the batch of 32"),
        ({"cores": 5}, "cores is 5, which does not divide the 8 examples"),
        ({"batch": 100}, "a core has 25 examples"),
        ({"batch": 256}, "a core has 64 examples"),
        ({"recompute": True, "split": True}, "recompute and split are both True"),
        ({"partition": "best"}, "partition"),
        ({"partition": (5, 3, 7)}, "ascending"),
        ({"partition": (3, 7)}, "first layers of 3 stages"),
        ({"order": "2f2b"}, "order"),
        ({"order": "zb_v"}, "two chunks"),
        ({"graph": layered_dag(30, seed=0)}, "no training step"),
        ({"machine": replace(MACHINE, core=replace(MACHINE.core, memory_bytes=2**28))}, "no partition of 'bert_base'"),
    ],
)
def test_refused(arguments, message):
    given = {"graph": "bert_base", "stages": 4, "micro_batches": 4, "machine": MACHINE, **arguments}
    with pytest.raises(InputError, match=message):
        captured_pipeline(**given)
