"""The engine against its plain twin, on random programs and machines under every policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphopt_gym.simulator.gang import GangSimulator, Slice, engine
from graphopt_gym.simulator.gang.simulator import POLICIES
from tests.simulator.gang.cases import random_simulator
from tests.simulator.gang.twin import Twin


def compare(state, twin):
    np.testing.assert_array_equal(state.start_s, twin.start)
    np.testing.assert_array_equal(state.finish_s, twin.finish)
    assert state.peak_bytes.tolist() == twin.peak
    assert state.peak_s.tolist() == twin.peak_s
    assert state.lacked.tolist() == twin.lacked
    assert state.counts[engine.NUM_DONE] == len(twin.done)
    over = None if state.clock[engine.OVER_CLASS] < 0 else state.clock[engine.OVER_TIME :].tolist()
    assert over == (None if twin.over is None else list(twin.over))
    assert state.used_bytes.tolist() == twin.used


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("block", range(4))
def test_engine__agrees_with_its_twin(policy, block):
    for seed in range(block * 60, block * 60 + 60):
        simulator, rng = random_simulator(seed)
        gangs = simulator.program.num_gangs
        options, level, lists = {}, None, None
        if policy == "priority":
            options["priorities"] = rng.integers(0, 3, gangs).astype(float)
            level = (-options["priorities"]).tolist()
        elif policy == "shortest":
            level = simulator.program.remaining_s.tolist()
        elif policy == "lists":
            lists = [rng.permutation(one).tolist() for one in simulator._members]
            if seed % 2:
                lists = simulator.lists_of_order(simulator.program.sequence)
            options["lists"] = lists
        mode = policy if policy in ("stride", "round_robin", "lists") else "static"
        state = simulator.begin(policy, **options)
        engine.advance(simulator.lowered.tables, state, engine.BEGIN)
        twin = Twin(simulator.lowered.tables, mode, simulator.back_pressure, level, lists).run()
        compare(state, twin)
        simulator.timeline(state)  # has something to say of every end


def test_runs__keep_the_rules_of_the_machine():
    """Looked at from outside: no resource does two things, nothing starts before what it comes after, memory."""
    for seed in range(150):
        simulator, _ = random_simulator(seed)
        run = simulator.run("stride" if seed % 2 else "fifo")
        tables = simulator.lowered.tables
        for track in run.tracks():
            start, finish = run.start_s[track.tasks], run.finish_s[track.tasks]
            assert (start[1:] >= finish[:-1]).all()
        before = np.repeat(np.arange(simulator.num_tasks), np.diff(tables.after_ptr))
        there = run.finish_s[before] + tables.delay_s
        assert not (run.start_s[tables.after] < there).any()
        for number in range(simulator.classes.num_classes):
            times, level = run.memory(number)
            lasting = np.append(np.diff(times) > 0, True)
            assert level[lasting].max(initial=0) <= run.peak_bytes[number]
            if simulator.back_pressure and tables.resident_bytes[number] <= tables.capacity_bytes[number]:
                assert run.peak_bytes[number] <= tables.capacity_bytes[number]
            if (tables.duration_s > 0).all():
                assert level.max() == run.peak_bytes[number]


def test_classes__however_fine_give_the_same_run():
    """Slices without gangs cut core and host classes into smaller ones, and change nothing."""
    finer = 0
    for seed in range(120):
        simulator, rng = random_simulator(seed, back_pressure=False)
        program, machine = simulator.program, simulator.machine
        extra = [int(one) for one in rng.integers(0, machine.num_cores, 3)]
        more = replace(program, slices=(*program.slices, *(Slice(f"cut {n}", 1) for n in range(3))))
        first = [*simulator.classes.first_core.tolist(), *extra]
        other = GangSimulator(
            more, machine, first, controllers=simulator.controllers, dispatch=simulator.dispatch, back_pressure=False
        )
        finer += other.classes.num_classes > simulator.classes.num_classes
        for policy in ("fifo", "stride"):
            np.testing.assert_array_equal(simulator.run(policy).gang_start_s, other.run(policy).gang_start_s)
    assert finer > 50


@pytest.mark.parametrize("block", range(3))
def test_choose__agrees_with_the_twin_step_by_step(block):
    for seed in range(block * 60, block * 60 + 60):
        simulator, _ = random_simulator(seed)
        pick = np.random.default_rng(seed)

        def choose(found, pick=pick):
            return None if pick.random() < 0.1 else found[pick.integers(0, len(found))]

        twin = Twin(simulator.lowered.tables, "choose", simulator.back_pressure, choose=choose).run()
        again = np.random.default_rng(seed)
        state = simulator.choose()
        count = simulator.step(state)
        chosen = []
        while count:
            found = np.flatnonzero(simulator.candidates(state))
            assert len(found) == count
            choice = engine.WAIT if again.random() < 0.1 else int(found[again.integers(0, count)])
            chosen += [choice] if choice != engine.WAIT else []
            count = simulator.step(state, choice)
        assert chosen == twin.chosen
        compare(state, twin)


def test_copied__states_go_their_own_ways():
    simulator, _ = random_simulator(3, controllers="none")
    state = simulator.choose()
    simulator.step(state)
    other = engine.copied(state)
    while simulator.candidates(state).any():
        simulator.step(state, int(simulator.candidates(state).argmax()))
    assert other.counts[engine.NUM_DONE] <= state.counts[engine.NUM_DONE]
    while simulator.candidates(other).any():
        simulator.step(other, int(simulator.candidates(other).argmax()))
    np.testing.assert_array_equal(state.finish_s, other.finish_s)
