"""Bounds: below every run, and reached where a run is best possible."""

from __future__ import annotations

import pytest

from graphopt_gym.hardware.machine import load_machine
from graphopt_gym.simulator.gang import GangSimulator, bounds, chain, pipeline, pipeline_lists
from tests.simulator.gang.cases import random_simulator


def test_bounds__are_below_every_run():
    seen = 0
    for seed in range(200):
        simulator, _ = random_simulator(seed)
        least = bounds(simulator).least_s
        for policy in ("fifo", "stride", "shortest"):
            run = simulator.run(policy)
            if run.valid:
                seen += 1
                assert least <= run.makespan_s * (1 + 1e-9)
    assert seen > 300


def test_bounds__of_a_chain_are_its_way():
    simulator = GangSimulator(chain(5, 2, 1.0, nodes=5), "toy_islands")
    assert bounds(simulator).path_s == pytest.approx(simulator.run().makespan_s)


def test_bounds__of_a_pipeline_are_those_of_its_stages():
    """The first stage waits for nothing and ends with everything: its work, and S - 1 stages there and back."""
    made = pipeline(4, 8, 1.0, 2.0)
    simulator = GangSimulator(made.program, load_machine("pathways_a").resized(1), controllers="none")
    run = simulator.run("lists", lists=simulator.lists_of_slices(pipeline_lists(made, "1f1b")))
    found = bounds(simulator)
    assert found.path_s == 4 * 3
    assert found.core_s == 8 * 3 + 3 * 3 == run.makespan_s
