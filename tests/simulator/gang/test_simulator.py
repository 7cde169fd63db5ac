"""Gangs by hand: what the control plane, transfers, memory, policies and lists do, in numbers that can be added up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.cluster import Link
from graphopt_gym.hardware.collectives import collective_s
from graphopt_gym.hardware.machine import ControlPlane, load_machine
from graphopt_gym.simulator.gang import Builder, GangSimulator, chain, simulate_gangs, together

TOY = load_machine("toy_islands")  # two islands of two hosts with two cores
US = 1e-6


def machine(**changes):
    """The toy with links of 1 byte a second and no latency, and a free control plane."""
    wires = {name: Link(name, 0.0, 1.0) for name in ("ici", "pcie", "dcn")}
    return replace(TOY, **{**wires, "control": ControlPlane(), **changes})


def two_slices(first, reshard="keep", size=8, at=(0, 2), cores=2, **options):
    build = Builder()
    a, b = build.slice("a", cores), build.slice("b", cores)
    build.edge(build.gang("x", a, 1.0), build.gang("y", b, 1.0), size, reshard)
    return simulate_gangs(build.program(), first, first_core=at, controllers="none", **options)


# ---- control plane


def test_single_controller__adds_up_what_a_call_goes_through():
    """Client 8, message 10, controller 4 + 2 cores + 2, message, scheduler 1, message, host 3 + 2 cores, launch 10."""
    run = simulate_gangs(chain(1, 2, 1e-3, nodes=1), TOY)
    expected = 8 + 10 + (4 + 2 * 1 + 2) + 10 + 1 + 10 + (3 + 2 * 1) + 10
    assert run.gang_start_s[0] == pytest.approx(expected * US)
    assert run.makespan_s == pytest.approx(expected * US + 1e-3)
    assert run.waits.launched_s[0] == run.gang_start_s[0]


def test_single_controller__is_as_slow_as_its_slowest_processor():
    """A call each: the client's 8 and the controller's 4 + 4 x 1 + 2 us; the controller's 10 a gang set the pace."""
    run = simulate_gangs(chain(200, 4, 0.0, form="op_by_op"), TOY)
    gaps = np.diff(run.gang_start_s)
    assert gaps[50:].tolist() == pytest.approx([10 * US] * len(gaps[50:]))
    chained = simulate_gangs(chain(200, 4, 0.0, nodes=200), TOY)
    assert np.diff(chained.gang_start_s)[50:].tolist() == pytest.approx([5 * US] * 149)  # the host's 3 + 2 x 1
    fused = simulate_gangs(chain(200, 4, 1e-6, form="fused", nodes=200), TOY)
    assert fused.gang_finish_s[0] - fused.gang_start_s[0] == pytest.approx(200 * US)


def test_many_controllers__run_each_call_and_launch_it_before_the_next():
    """Python 6, then 3 + 2 x 1 on each host, no message, launch 10."""
    run = simulate_gangs(chain(100, 4, 0.0, form="op_by_op"), TOY, controllers="multi")
    assert run.gang_start_s[0] == pytest.approx((6 + 5 + 10) * US)
    assert np.diff(run.gang_start_s).tolist() == pytest.approx([11 * US] * 99)


def test_sequential_dispatch__waits_for_the_hosts_of_what_it_reads():
    """Stages on different hosts: in parallel all hosts prepare at once, one after the other it takes a message more."""
    program = chain(2, 2, 0.0, nodes=2, stages=2)
    at = [0, 2]
    runs = {way: simulate_gangs(program, TOY, first_core=at, dispatch=way) for way in ("parallel", "sequential")}
    start = {way: run.gang_start_s[1] for way, run in runs.items()}
    # second gang: scheduled 1 us after the first; its host starts when the first host (5 us) is done, and 10 us
    assert start["sequential"] - start["parallel"] == pytest.approx((5 + 10 - 1) * US)


def test_irregular_gangs__are_prepared_when_what_they_read_is_there():
    program = chain(2, 2, 1e-3, nodes=2, regular=False)
    run = simulate_gangs(program, TOY)
    # launch and message latencies to learn the shape, 5 us of the host, 10 us of the launch
    assert run.gang_start_s[1] - run.gang_finish_s[0] == pytest.approx((10 + 10 + 5 + 10) * US)
    assert simulate_gangs(chain(2, 2, 1e-3, nodes=2), TOY).gang_start_s[1] == pytest.approx(
        simulate_gangs(chain(2, 2, 1e-3, nodes=2), TOY).gang_finish_s[0]
    )


def test_no_controller__leaves_data_alone():
    run = simulate_gangs(chain(5, 4, 1.0, nodes=5), TOY, controllers="none")
    assert run.gang_start_s.tolist() == [0, 1, 2, 3, 4]
    assert run.utilisation == 1


# ---- transfers and collectives


def test_transfer__inside_an_island_takes_the_ports_of_its_cores():
    run = two_slices(machine())
    assert run.gang_start_s[1] == 1 + 8 / 2
    assert run.transfers.tolist() == [[0, 1, 8, 1, 1, 5]]
    assert {run.resource(r) for r in np.flatnonzero(run.busy_s == 4)} == {"ici out of cores 0-1", "ici in of cores 2-3"}


def test_transfer__between_islands_takes_pcie_and_the_cards_of_hosts():
    """Two cores share a card: 8 bytes, not 4, go through it."""
    run = two_slices(machine(), at=(0, 4))
    assert run.gang_start_s[1] == 1 + 8
    slow_pcie = two_slices(machine(pcie=Link("pcie", 0.5, 0.25)), at=(0, 4))
    assert slow_pcie.gang_start_s[1] == 1 + 2 * 0.5 + 4 / 0.25
    busy = {run.resource(r) for r in np.flatnonzero(run.busy_s == 8)}
    assert busy == {"pcie up of cores 0-1", "pcie down of cores 4-5", "dcn out of host 0", "dcn in of host 2"}


def test_transfer__of_the_same_cores_moves_nothing_but_what_is_resharded():
    assert two_slices(machine(), at=(0, 0)).gang_start_s[1] == 1
    assert two_slices(machine(), "gather", at=(0, 0)).gang_start_s[1] == 1 + collective_s(
        "all_gather", "ring", 2, 8, 1, 0
    )
    assert two_slices(machine(), "transpose", at=(0, 0)).gang_start_s[1] == 1 + collective_s(
        "all_to_all", "ring", 2, 4, 1, 0
    )


def test_transfer__gathers_among_the_cores_that_receive():
    assert two_slices(machine(), "gather").gang_start_s[1] == 1 + 4 + collective_s("all_gather", "ring", 2, 8, 1, 0)


def test_transfer__is_made_once_for_all_that_read_it_there():
    build = Builder()
    a, b = build.slice("a", 2), build.slice("b", 2)
    x = build.gang("x", a, 1.0)
    for name in "yz":
        build.edge(x, build.gang(name, b, 1.0), 8)
    run = simulate_gangs(build.program(), machine(), first_core=[0, 2], controllers="none")
    assert len(run.transfers) == 1
    assert run.gang_start_s.tolist() == [0, 5, 6]


def test_transfers__of_one_port_follow_each_other():
    build = Builder()
    a, b = build.slice("a", 2), build.slice("b", 2)
    for _ in range(2):
        build.edge(build.gang("x", a, 1.0), build.gang("y", b, 0.0), 8)
    run = simulate_gangs(build.program(), machine(), first_core=[0, 2], controllers="none")
    assert run.transfers[:, 4].tolist() == [1, 5]


def test_collective__inside_a_gang_holds_all_and_its_links():
    build = Builder()
    a, b = build.slice("a", 4), build.slice("b", 2)
    build.gang("reduce", a, 1.0, collective="all_reduce", collective_bytes=8)
    x = build.gang("x", b, 2.0)
    build.edge(x, build.gang("y", a, 0.0), 8)
    whole = replace(machine(), islands=(replace(TOY.islands[0], hosts=4),))
    run = simulate_gangs(build.program(), whole, first_core=[0, 4], controllers="none")
    assert run.gang_finish_s[0] == 1 + 12  # 2 x 3 steps of 2 bytes
    assert run.transfers[0, 3:5].tolist() == [2, 13]  # asked for at 2, while the links are held


def test_collective__alone_takes_links_and_no_core():
    build = Builder()
    a = build.slice("a", 4)
    build.gang("sum", a, 0.0, collective="all_reduce", collective_bytes=8, on_cores=False)
    build.gang("compute", a, 5.0)
    run = simulate_gangs(build.program(), machine(), controllers="none")
    assert run.gang_start_s.tolist() == [0, 0]
    assert run.gang_finish_s.tolist() == [12, 5]
    assert run.class_busy_s.tolist() == [5]


def test_collective__over_islands_rings_between_them():
    """Four cores each: reduced to shares of 2 bytes inside (6 s), two rounds of a half share of each of a host's two
    cores over its card (2 x 2 s), gathered again (6 s)."""
    build = Builder()
    build.gang("sum", build.slice("all", 8), 0.0, collective="all_reduce", collective_bytes=8, spans=True)
    run = simulate_gangs(build.program(), machine(), controllers="none")
    assert run.makespan_s == 6 + 2 * 2 + 6


# ---- memory


def memory_case(**options):
    """Two gangs of 6 bytes each on 10; whoever reads the first frees it at 3."""
    build = Builder()
    a, b = build.slice("a", 1), build.slice("b", 1)
    x = build.gang("x", a, 1.0, output_bytes=6)
    wait = build.gang("wait", b, 3.0)
    build.gang("y", a, 1.0, output_bytes=6)
    z = build.gang("z", a, 0.5)
    build.edge(x, z, 6)
    build.edge(wait, z)
    small = machine(core=replace(TOY.core, memory_bytes=10))
    return simulate_gangs(build.program(), small, first_core=[0, 1], controllers="none", **options)


def test_back_pressure__makes_a_gang_wait_until_memory_is_freed():
    run = memory_case()
    assert run.valid
    assert run.gang_start_s.tolist() == [0, 0, 3.5, 3]
    assert run.peak_bytes.tolist() == [6, 0]
    assert run.waits.lacked.tolist() == [-1, -1, 0, -1]


def test_no_back_pressure__says_where_when_and_how_much():
    run = memory_case(back_pressure=False)
    assert not run.valid
    assert run.reasons == ("out of memory: each of core 0 held 2 B more than its 10 B at 1.00 s",)
    assert run.peak_bytes.tolist() == [12, 0]
    assert run.makespan_s == 3.5


def test_resident_bytes__beyond_the_memory_are_said_at_once():
    build = Builder()
    build.gang("x", build.slice("a", 1, resident_bytes=12), 1.0, output_bytes=1)
    run = simulate_gangs(build.program(), machine(core=replace(TOY.core, memory_bytes=10)), controllers="none")
    assert run.reasons[0] == "out of memory: each of core 0 held 2 B more than its 10 B at 0 s"
    assert run.reasons[1].startswith("out of memory: x needs 1 B on each of core 0, where -2 B of 10 B can ever be")


# ---- policies


def test_fifo__takes_the_earliest_ready_and_priority_the_highest():
    build = Builder()
    a = build.slice("a", 1)
    for name in "xyz":
        build.gang(name, a, 1.0)
    simulator = GangSimulator(build.program(), machine(), controllers="none")
    assert simulator.run().gang_start_s.tolist() == [0, 1, 2]
    assert simulator.run("priority", priorities=[0, 2, 1]).gang_start_s.tolist() == [2, 0, 1]


def test_shortest__takes_what_has_the_least_left():
    both = together([chain(3, 1, 1.0, nodes=3), chain(1, 1, 1.0, nodes=1)])
    run = simulate_gangs(both, machine(), first_core=[0] * 2, controllers="none", policy="shortest")
    assert run.gang_start_s.tolist() == [1, 2, 3, 0]


def test_wide_gangs__are_not_passed_by_later_ones():
    """A gang of four waits for the cores of the first; what came later on free cores waits behind it."""
    build = Builder()
    left, both, right = build.slice("left", 2), build.slice("both", 4), build.slice("right", 2)
    build.gang("long", left, 5.0)
    build.gang("wide", both, 1.0)
    build.gang("late", right, 1.0)
    run = simulate_gangs(build.program(), machine(), first_core=[0, 0, 2], controllers="none")
    assert run.gang_start_s.tolist() == [0, 5, 6]
    assert run.waits.behind.tolist() == [-1, 0, 1]


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 4, 8)])
def test_stride__keeps_shares(weights):
    both = together([chain(4000, 2, 0.33e-3, nodes=4000)] * len(weights), weights)
    run = simulate_gangs(both, machine(), first_core=[0] * len(weights), controllers="none", policy="stride")
    found = run.shares(0.0, 1.0)
    np.testing.assert_allclose(found / found.sum(), np.array(weights) / sum(weights), rtol=0.02)
    assert found.sum() == pytest.approx(2.0)


def test_stride__counts_core_seconds_not_gangs():
    both = together([chain(400, 2, 1e-3, nodes=400), chain(100, 2, 4e-3, nodes=100)])
    run = simulate_gangs(both, machine(), first_core=[0, 0], controllers="none", policy="stride")
    np.testing.assert_allclose(run.shares(0.0, 0.4), [0.4, 0.4], rtol=0.02)
    turns = simulate_gangs(both, machine(), first_core=[0, 0], controllers="none", policy="round_robin")
    np.testing.assert_allclose(turns.shares(0.0, 0.4), [0.16, 0.64], rtol=0.02)


def test_stride__gives_no_credit_for_having_been_away():
    late = chain(1000, 2, 1e-3, nodes=1000, arrival_s=0.5)
    both = together([chain(2000, 2, 1e-3, nodes=2000), late])
    for controllers in ("none", "single"):
        run = simulate_gangs(both, machine(), first_core=[0, 0], controllers=controllers, policy="stride")
        assert run.gang_start_s[2000] >= 0.5
        first, second = run.shares(0.5, 1.0)
        assert first == pytest.approx(second, rel=0.02)


def test_stride__a_weight_of_zero_waits_for_all_others():
    both = together([chain(10, 1, 1.0, nodes=10), chain(10, 1, 1.0, nodes=10)], [0.0, 1.0])
    run = simulate_gangs(both, machine(), first_core=[0, 0], controllers="none", policy="stride")
    assert run.gang_start_s[0] == 10


# ---- lists


def crossed():
    """Gangs x and y on the same two cores, which are two classes as a third slice lies on one of them."""
    build = Builder()
    both, one = build.slice("both", 2), build.slice("one", 1)
    build.gang("x", both, 1.0)
    build.gang("y", both, 1.0)
    build.gang("z", one, 1.0)
    return GangSimulator(build.program(), machine(), [0, 1], controllers="none")


def test_lists__in_different_orders_end_in_a_deadlock_that_is_named():
    simulator = crossed()
    run = simulator.run("lists", lists=[[0, 1], [1, 0, 2]])
    assert not run.valid
    assert run.reasons == (
        "deadlock: x (cores 0-1) waits for its turn on core 1 behind y; "
        "y (cores 0-1) waits for its turn on core 0 behind x",
    )
    assert sorted(run.deadlock) == [0, 1]
    assert np.isnan(run.makespan_s)


def test_lists__in_one_order_do_not():
    simulator = crossed()
    run = simulator.run("lists", lists=simulator.lists_of_order([2, 1, 0]))
    assert run.valid
    assert run.gang_start_s.tolist() == [2, 1, 0]


def test_lists__of_data_against_the_order_name_the_data():
    program = chain(2, 1, 1.0, nodes=2)
    run = GangSimulator(program, machine(), controllers="none").run("lists", lists=[[1, 0]])
    assert run.reasons == (
        "deadlock: c0 (core 0) waits for its turn on core 0 behind c1; "
        "c1 (core 0) waits for what it reads or is launched by, c0",
    )


def test_lists__of_memory_name_who_holds_it():
    """Two outputs fit; the third forward stands before the backward that would free one."""
    build = Builder()
    a = build.slice("a", 1)
    forward = [build.gang(f"f{number}", a, 1.0, output_bytes=4) for number in range(3)]
    backward = [build.gang(f"b{number}", a, 1.0) for number in range(3)]
    for f, b in zip(forward, backward):
        build.edge(f, b, 4)
    small = machine(core=replace(TOY.core, memory_bytes=10))
    simulator = GangSimulator(build.program(), small, controllers="none")
    run = simulator.run("lists", lists=[[*forward, *backward]])
    assert run.reasons == (
        "deadlock: f2 (core 0) waits for memory of core 0 that is held for b0; "
        "b0 (core 0) waits for its turn on core 0 behind f2",
    )
    assert simulator.run("lists", lists=[[0, 1, 3, 2, 4, 5]]).valid
    assert simulator.run("fifo").valid  # what lacks memory steps aside


# ---- what is asked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "fiof"}, "unknown policy 'fiof'; did you mean 'fifo'?"),
        ({"policy": "priority"}, "priorities goes with policy 'priority'"),
        ({"priorities": [1.0]}, "priorities goes with policy 'priority', and policy is 'fifo'"),
        ({"policy": "priority", "priorities": [1.0]}, "priorities has shape (1,), expected (2,)"),
        ({"policy": "priority", "priorities": [1.0, float("nan")]}, "priorities[1] is nan"),
        ({"policy": "lists", "lists": []}, "lists has 0 entries for 1 core classes"),
        ({"policy": "lists", "lists": [[0]]}, "must hold each of the 2 gangs there once; look at 'c1'"),
        ({"policy": "lists", "lists": [[0, 1, 1]]}, "must hold each of the 2 gangs there once"),
        ({"controllers": "double"}, "unknown controllers 'double'"),
        ({"dispatch": "serial"}, "unknown dispatch 'serial'"),
        ({"back_pressure": 2}, "back_pressure is 2; give true or false"),
        ({"first_core": [9]}, "first_core[0] is 9"),
    ],
)
def test_arguments__that_cannot_be_give_one_line(options, message):
    with pytest.raises(InputError) as caught:
        simulate_gangs(chain(2, 2, 1.0, nodes=2), TOY, **options)
    assert message in str(caught.value)


def test_step__refuses_gangs_that_cannot_start():
    simulator = GangSimulator(chain(2, 2, 1.0, nodes=2), TOY, controllers="none")
    state = simulator.choose()
    assert simulator.step(state) == 1
    with pytest.raises(InputError, match="choice is 1, a gang that cannot start now"):
        simulator.step(state, 1)
    assert simulator.step(state, 0) == 1
    assert simulator.step(state, 1) == 0
    assert simulator.timeline(state).makespan_s == 2


# ---- timeline


def test_critical_path__goes_back_from_the_last_finish():
    run = two_slices(machine())
    assert [run.task(one) for one in run.critical_path()] == ["x", "transfer of x to b", "y"]
    whole = simulate_gangs(chain(2, 2, 1e-3, nodes=2), TOY)
    assert [whole.task(one) for one in whole.critical_path()] == [
        "call 0 in its client", "call 0 in its controller", "scheduler of c0", "launch of c0", "c0", "c1",
    ]  # fmt: skip


def test_resources__are_called_what_they_are():
    run = simulate_gangs(chain(1, 4, 1.0, nodes=1), TOY)
    names = [run.resource(number) for number in range(run.lowered.num_resources)]
    assert names[0] == "cores 0-3"
    assert {"executor of 2 hosts from host 0", "scheduler of island 1", "client client", "controller client"} <= set(
        names
    )
    executor = names.index("executor of 2 hosts from host 0")
    assert [run.task(one) for one in run.resource_tasks(executor)] == ["launch of c0"]
    assert run.gang_cores(0).tolist() == [0, 1, 2, 3]


def test_tracks__are_of_whatever_did_something():
    run = simulate_gangs(chain(2, 4, 1.0, nodes=2), TOY)
    kinds = [track.kind for track in run.tracks()]
    assert kinds == ["core", "executor", "scheduler", "client", "controller"]
    assert [run.task(one) for one in run.tracks()[0].tasks] == ["c0", "c1"]


def test_memory__is_a_step_function_of_what_is_held():
    run = memory_case()
    times, level = run.memory(0)
    assert dict(zip(times.tolist(), level.tolist())) == {0: 6, 3.5: 6, 4.5: 0}
    assert run.memory(1)[1].tolist() == [0]


def test_cost__grows_with_classes_not_with_cores():
    large = GangSimulator(chain(100, 2048, 1e-3, nodes=100), "pathways_a")
    small = GangSimulator(chain(100, 8, 1e-3, nodes=100), "pathways_a")
    assert large.num_tasks == small.num_tasks
    assert large.classes.num_classes == small.classes.num_classes == 1
