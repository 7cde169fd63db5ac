"""Slices on a machine: where they may lie, and the classes of cores and hosts, against a look at every core."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.machine import Island, load_machine
from graphopt_gym.simulator.gang import Builder, classify, spread
from graphopt_gym.simulator.gang.slices import _classify

TOY = load_machine("toy_islands")


def with_slices(*cores, spans=False):
    build = Builder("p")
    for number, size in enumerate(cores):
        build.gang(f"g{number}", build.slice(f"s{number}", size), 1.0, spans=spans)
    return build.program()


def plain_classes(machine, first, last):
    """Core and host classes by a look at each core: (classes as sets of cores, host classes as sets of hosts)."""
    members = {core: frozenset(v for v in range(len(first)) if first[v] <= core <= last[v])
               for core in range(machine.num_cores)}  # fmt: skip
    look = defaultdict(list)
    for core, slices in members.items():
        if slices:
            look[machine.core_host[core]].append(slices)
    hosts = defaultdict(set)
    for host, seen in look.items():
        island = machine.core_island[np.flatnonzero(machine.core_host == host)[0]]
        hosts[island, frozenset((one, seen.count(one)) for one in seen)].add(int(host))
    kind = {host: key for key, several in hosts.items() for host in several}
    classes = defaultdict(set)
    for core, slices in members.items():
        if slices:
            classes[slices, kind[machine.core_host[core]]].add(core)
    return {frozenset(one) for one in classes.values()}, {frozenset(one) for one in hosts.values()}


@pytest.mark.parametrize("seed", range(60))
def test_classes__are_those_of_a_look_at_every_core(seed):
    rng = np.random.default_rng(seed)
    islands = tuple(Island(int(rng.integers(1, 5)), int(rng.integers(1, 5))) for _ in range(rng.integers(1, 4)))
    machine = type(TOY)("m", TOY.core, islands, TOY.pcie, TOY.ici, TOY.dcn)
    count = int(rng.integers(1, 6))
    first = rng.integers(0, machine.num_cores, count)
    last = np.minimum(first + rng.integers(0, 8, count), machine.num_cores - 1)
    found = _classify(machine, first.astype(np.int64), last.astype(np.int64))
    classes, hosts = plain_classes(machine, first, last)
    assert {frozenset(found.cores(number).tolist()) for number in range(found.num_classes)} == classes
    assert sorted(found.host_size.tolist()) == sorted(len(one) for one in hosts)
    for number in range(found.num_classes):
        cores = found.cores(number)
        assert (found.class_core[number], found.class_size[number]) == (cores[0], len(cores))
        assert found.class_island[number] == machine.core_island[cores[0]]
    for v in range(count):
        covered = np.arange(first[v], last[v] + 1)
        classes_of = found.slice_class[found.slice_ptr[v] : found.slice_ptr[v + 1]]
        assert classes_of.tolist() == np.unique(found.core_class[covered]).tolist()
        rows = slice(found.host_ptr[v], found.host_ptr[v + 1])
        hosts_of, cores_of = found.slice_host[rows], found.slice_host_cores[rows]
        assert (found.host_size[hosts_of] * cores_of).sum() == len(covered)
        islands_of = found.slice_island[found.island_ptr[v] : found.island_ptr[v + 1]]
        assert islands_of.tolist() == np.unique(machine.core_island[covered]).tolist()


def test_classes__of_2048_equal_cores_are_one():
    machine = load_machine("pathways_a")
    classes = classify(with_slices(2048), machine, [0])
    assert (classes.num_classes, classes.num_hosts) == (1, 1)
    assert classes.label(0) == "cores 0-2047"


def test_label__names_runs_of_cores():
    classes = classify(with_slices(3, 1), TOY, [0, 1])
    assert [classes.label(number) for number in range(classes.num_classes)] == ["core 0", "core 1", "core 2"]


def test_spread__fills_island_after_island_and_begins_again():
    assert spread(with_slices(2, 4, 2, 2, 2), TOY).tolist() == [0, 4, 0, 2, 4]
    assert spread(with_slices(8, 8, spans=True), TOY).tolist() == [0, 0]
    assert spread(with_slices(3, 3, 2, spans=True), TOY).tolist() == [0, 3, 6]


@pytest.mark.parametrize(
    ("program", "first", "message"),
    [
        (
            with_slices(5),
            [0],
            "gang 'g0' takes 5 cores, more than the 4 of the largest island",
        ),
        (
            with_slices(3),
            [6],
            "slice 's0' does not exist: cores 6 to 8, and the machine has 8; begin at 5",
        ),
        (with_slices(3), [9], "first_core[0] is 9, allowed: 0 to 7 (core)"),
        (with_slices(3), [-1], "first_core[0] is -1"),
        (with_slices(3), [0, 1], "first_core has shape (2,), expected (1,)"),
        (with_slices(3), [0.5], "expected integers"),
        (with_slices(3), [2], "lies on cores 2 to 4, islands 0 to 1, and gang 'g0' may not span islands"),
    ],
)
def test_slices__that_cannot_lie_there_give_one_line(program, first, message):
    with pytest.raises(InputError) as caught:
        classify(program, TOY, first)
    assert message in str(caught.value)


def test_spread__refuses_what_fits_nowhere():
    with pytest.raises(InputError, match="gang 'g0' takes 5 cores, more than the 4 of the largest island"):
        spread(with_slices(5), TOY)
    with pytest.raises(InputError, match="slice 's0' takes 9 cores; the machine has 8"):
        spread(with_slices(9, spans=True), TOY)
