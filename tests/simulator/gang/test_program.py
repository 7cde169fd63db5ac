"""Sharded programs: built by hand and by rule, put together, and what is refused."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.simulator.gang import (
    Builder,
    Client,
    ShardedProgram,
    chain,
    micro_batch_size,
    pipeline,
    stage_layers,
    together,
)
from graphopt_gym.simulator.gang import program as program_module


def two_gangs(**options):
    build = Builder("two")
    at = build.slice("s", cores=2)
    a, b = build.gang("a", at, 1.0), build.gang("b", at, 2.0, **options)
    build.edge(a, b, 8)
    return build.program()


def test_docstrings__run():
    assert doctest.testmod(program_module).failed == 0


def test_builder__gives_columns_by_gang():
    program = two_gangs(collective="all_reduce", collective_bytes=16, output_bytes=4, regular=False)
    assert (program.num_gangs, program.num_edges, program.num_slices) == (2, 1, 1)
    assert program.clients == (Client("client", 1.0),)
    assert program.collective.tolist() == [0, 1]
    assert program.regular.tolist() == [True, False]
    assert program.client.tolist() == [0, 0]
    assert program.sequence.tolist() == [0, 1]
    assert program.remaining_s.tolist() == [3.0, 2.0]
    assert not program.time_s.flags.writeable


def test_program__names_the_gangs_of_a_cycle():
    build = Builder("round")
    at = build.slice("s", cores=1)
    a, b, c, d = (build.gang(name, at, 1.0) for name in "abcd")
    for source, target in ((a, b), (b, c), (c, d), (d, b)):
        build.edge(source, target)
    with pytest.raises(InputError, match="program 'round' has a cycle: b -> c -> d -> b;"):
        build.program()
    build = Builder("self")
    a = build.gang("a", build.slice("s", cores=1), 1.0)
    build.edge(a, a)
    with pytest.raises(InputError, match="cycle: a -> a;"):
        build.program()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, s: b.gang("g", 7, 1.0), "gang 'g': slice is 7; give a whole number, at least 0 and at most 0"),
        (lambda b, s: b.gang("g", s, -1.0), "gang 'g': time_s is -1.0; give a number, at least 0"),
        (lambda b, s: b.gang("g", s, 1e300), "gang 'g': time_s is 1e+300; give at most"),
        (lambda b, s: b.gang("g", s, float("nan")), "time_s is nan; give a finite number"),
        (lambda b, s: b.gang("g", s, 1.0, collective="all_redcue"), "did you mean 'all_reduce'?"),
        (lambda b, s: b.gang("g", s, 1.0, output_bytes=-1), "output_bytes is -1, less than 0"),
        (lambda b, s: b.gang("g", s, 1.0, repeats=0), "repeats is 0"),
        (lambda b, s: b.gang("g", s, 1.0, regular=3), "regular is 3; give true or false"),
        (lambda b, s: b.gang("g", s, 1.0, on_cores=False), "on_cores is False, of a collective alone"),
        (lambda b, s: b.slice("t", cores=0), "slice 't': cores is 0"),
        (lambda b, s: b.client("c", -2.0), "client 'c': weight is -2.0; give a number, at least 0"),
        (lambda b, s: b.call(client=3), "call: client is 3"),
        (lambda b, s: b.call(arrival_s=-1.0), "call: arrival_s is -1.0"),
        (lambda b, s: b.edge(0, 5), "edge: dst is 5"),
        (lambda b, s: b.edge(0, 0, -1), "edge: bytes is -1"),
        (lambda b, s: b.edge(0, 0, 1, "gahter"), "unknown reshard 'gahter'; did you mean 'gather'?"),
    ],
)
def test_builder__refuses_what_cannot_be(change, message):
    build = Builder()
    at = build.slice("s", cores=2)
    build.gang("first", at, 1.0)
    with pytest.raises(InputError) as caught:
        change(build, at)
    assert message in str(caught.value)


def test_builder__refuses_empty_programs():
    build = Builder()
    build.slice("s", cores=1)
    build.call()
    with pytest.raises(InputError, match="zero gangs"):
        build.program()
    with pytest.raises(InputError, match="no slices yet"):
        Builder().gang("g", 0, 1.0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0], "weight is -1.0; give a number, at least 0"),
        ([0.0, 0.0], "weights of clients are all zero"),
        ([1.0], "weights has 1 entries for 2 programs"),
    ],
)
def test_together__refuses_weights(weights, message):
    with pytest.raises(InputError, match=message):
        together([two_gangs(), two_gangs()], weights)


def test_together__keeps_programs_apart():
    both = together([two_gangs(), chain(3, 4, 1.0, form="op_by_op")], [1.0, 2.0])
    assert both.num_gangs == 5
    assert both.client.tolist() == [0, 0, 1, 1, 1]
    assert both.weights.tolist() == [1.0, 2.0]
    assert both.slice_cores.tolist() == [2, 4]
    assert both.call.tolist() == [0, 0, 1, 2, 3]
    assert both.edge_src.tolist() == [0, 2, 3]
    assert both.edge_dst.tolist() == [1, 3, 4]
    assert both.names[2] == "1.c0"


def test_chain__forms_differ_in_calls_alone():
    forms = {form: chain(256, 4, 1e-3, form=form) for form in ("op_by_op", "chained", "fused")}
    assert {form: (one.num_gangs, len(one.call_client)) for form, one in forms.items()} == {
        "op_by_op": (256, 256), "chained": (256, 2), "fused": (2, 2),
    }  # fmt: skip
    assert {(one.time_s * one.repeats).sum().round(9) for one in forms.values()} == {0.256}
    with pytest.raises(InputError, match="nodes is 100, which does not divide the length 256"):
        chain(256, 4, 1e-3, nodes=100)


def test_pipeline__has_every_stage_of_every_micro_batch():
    made = pipeline(3, 4, 1.0, 2.0, cores=[1, 2, 4], apply_s=0.5, boundary_bytes=8, stash_bytes=16, steps=2)
    program = made.program
    assert made.forward.shape == made.backward.shape == (2, 3, 4)
    assert made.apply.shape == (2, 3)
    assert made.weight.size == 0
    assert program.num_gangs == 2 * (3 * 4 * 2 + 3)
    assert len(program.call_client) == 2
    assert program.slice[made.forward[0, 2]].tolist() == [2] * 4
    assert program.names[made.backward[1, 0, 3]] == "1:B0.3"
    read = {(int(a), int(b)): int(c) for a, b, c in zip(program.edge_src, program.edge_dst, program.edge_bytes)}
    assert read[made.forward[0, 0, 1], made.forward[0, 1, 1]] == 8
    assert read[made.forward[0, 2, 1], made.backward[0, 2, 1]] == 16 * 4  # a stash of each of four cores
    assert read[made.apply[0, 1], made.forward[1, 1, 0]] == 0


def test_pipeline__chunks_lie_in_a_loop_or_a_vee():
    assert pipeline(3, 3, 1.0, 1.0, chunks=2).slice_of.tolist() == [0, 1, 2, 0, 1, 2]
    assert pipeline(3, 3, 1.0, 1.0, chunks=2, layout="vee").slice_of.tolist() == [0, 1, 2, 2, 1, 0]


def test_pipeline__reduces_gradients_in_apply_or_with_every_micro_batch():
    once = pipeline(2, 3, 1.0, 1.0, cores=4, gradient_bytes=100).program
    assert once.collective.sum() == 2
    often = pipeline(2, 3, 1.0, 1.0, cores=4, gradient_bytes=100, reduce="micro_batch")
    assert np.flatnonzero(often.program.collective).tolist() == sorted(often.backward.ravel().tolist())
    split = pipeline(2, 3, 1.0, 1.0, weight_s=1.0, cores=4, gradient_bytes=100, reduce="micro_batch")
    assert np.flatnonzero(split.program.collective).tolist() == sorted(split.weight.ravel().tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 0}, "stages is 0"),
        ({"micro_batches": 0}, "micro_batches is 0"),
        ({"forward_s": [1.0]}, "forward_s has 1 entries, expected 2"),
        ({"boundary_bytes": [1, 2]}, "boundary_bytes has 2 entries, expected 1"),
        ({"layout": "ring"}, "unknown layout 'ring'"),
        ({"reduce": "never"}, "unknown reduce 'never'"),
        ({"backward_s": -1.0}, "time_s is -1.0"),
    ],
)
def test_pipeline__refuses_what_cannot_be(options, message):
    with pytest.raises(InputError) as caught:
        pipeline(**{"stages": 2, "micro_batches": 2, "forward_s": 1.0, "backward_s": 1.0, **options})
    assert message in str(caught.value)


def test_micro_batches__divide_the_batch():
    assert micro_batch_size(2048, 16) == 128
    with pytest.raises(InputError, match="micro_batches is 7, which does not divide the batch of 2048"):
        micro_batch_size(2048, 7)


def test_stages__are_no_more_than_layers():
    assert stage_layers(7, 3) == [3, 2, 2]
    with pytest.raises(InputError, match="stages is 8, more than the 7 layers; give at most 7"):
        stage_layers(7, 8)


def test_json__gives_the_same_program():
    program = together([two_gangs(regular=False), pipeline(2, 3, 1.0, 2.0, stash_bytes=4).program], [1.0, 0.5])
    again = ShardedProgram.from_json(json.loads(json.dumps(program.to_json())))
    assert again.fingerprint == program.fingerprint != two_gangs().fingerprint
    assert again.names == program.names
    with pytest.raises(InputError, match="program is no stored program"):
        ShardedProgram.from_json({"name": "none"})
