"""Collectives: against step-by-step runs of the algorithms, and against measured all-reduces."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.cluster import load_link
from graphopt_gym.hardware.collectives import ALGORITHMS, COLLECTIVE_KINDS, collective_s, torus_sides
from graphopt_gym.hardware.measured import NVLINK_RINGS, load_all_reduce

LINKS = {"v100": "nvlink2", "a100": "nvlink3_switch"}


def ring_run(kind, n, size, rate, latency):
    """Seconds of a ring, by handing real pieces on and checking who holds what in the end."""
    clock = 0.0
    if kind == "all_to_all":
        held = [{(source, target) for target in range(n) if target != source} for source in range(n)]
        while any(target != at for at in range(n) for _, target in held[at]):
            moving = [{one for one in held[at] if one[1] != at} for at in range(n)]
            clock += latency + max(map(len, moving)) * size / n / rate
            held = [(held[at] - moving[at]) | moving[at - 1] for at in range(n)]
        assert all(held[at] == {(source, at) for source in range(n) if source != at} for at in range(n))
        return clock
    summed = [[1 << at for _ in range(n)] for at in range(n)]  # who is summed up in each piece on each device
    if kind in ("reduce_scatter", "all_reduce"):
        for step in range(n - 1):
            sent = [summed[at][(at - step) % n] for at in range(n)]
            for at in range(n):
                summed[at][(at - 1 - step) % n] |= sent[at - 1]
            clock += latency + size / n / rate
        assert all(summed[at][(at + 1) % n] == (1 << n) - 1 for at in range(n))
    if kind in ("all_gather", "all_reduce"):
        whole = [{(at + 1) % n} for at in range(n)]
        for step in range(n - 1):
            sent = [(at + 1 - step) % n for at in range(n)]
            for at in range(n):
                whole[at].add(sent[at - 1])
            clock += latency + size / n / rate
        assert all(one == set(range(n)) for one in whole)
    return clock


@pytest.mark.parametrize("kind", COLLECTIVE_KINDS[1:])
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_ring__takes_what_its_steps_take(kind, n):
    expected = ring_run(kind, n, 840.0, 10.0, 0.5)
    assert collective_s(kind, "ring", n, 840.0, 10.0, 0.5) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("n", [4, 6, 12, 64])
def test_torus__sends_the_bytes_of_a_ring_in_fewer_steps(kind, n):
    assert collective_s(kind, "torus", n, 960.0, 10.0, 0.0) == pytest.approx(
        collective_s(kind, "ring", n, 960.0, 10.0, 0.0)
    )
    short, long = torus_sides(n)
    phases = 2 if kind == "all_reduce" else 1
    assert collective_s(kind, "torus", n, 0.0, 10.0, 1.0) == phases * (short + long - 2)


def test_torus__has_the_sides_nearest_to_each_other():
    assert [torus_sides(n) for n in (1, 7, 8, 36, 128, 2048)] == [(1, 1), (1, 7), (2, 4), (6, 6), (8, 16), (32, 64)]


def test_tree__takes_steps_that_grow_with_the_logarithm():
    assert collective_s("all_reduce", "tree", 1024, 0.0, 1.0, 1.0) == 20
    assert collective_s("all_reduce", "tree", 1024, 8.0, 1.0, 0.0) == 16
    assert collective_s("all_gather", "tree", 8, 8.0, 1.0, 1.0) == 3 + 7
    assert collective_s("all_to_all", "tree", 8, 8.0, 1.0, 1.0) == 3 * (1 + 4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_collective__of_one_device_takes_no_time(algorithm):
    assert all(collective_s(kind, algorithm, 1, 1e9, 1.0, 1.0) == 0 for kind in COLLECTIVE_KINDS)


def test_collective__refuses_others():
    with pytest.raises(InputError, match="did you mean 'all_reduce'"):
        collective_s("all_redcue", "ring", 2, 1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="unknown algorithm 'rnig'"):
        collective_s("all_reduce", "rnig", 2, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("device", ["v100", "a100"])
def test_all_reduce_table__is_of_whole_tensors_on_each_gpu_in_rings_of_whole_links(device):
    """What the columns mean: bytes a second and GPU, as a ring sends them, never exceed what the links carry, and on
    V100s they are whole multiples of one link's."""
    table = load_all_reduce()[device]
    large = table["bytes"] > 5e8
    sent = 2 * (table["gpus"] - 1) / table["gpus"] * table["bytes"] / table["time_s"]
    links = {"v100": 6 * 25e9, "a100": 300e9}[device]
    assert (sent < links).all()
    if device == "v100":
        multiple = sent / load_link("nvlink2").bytes_per_s
        whole = large & (table["gpus"] != 5)
        assert np.abs(multiple / np.round(multiple) - 1)[whole].max() < 0.06


@pytest.mark.parametrize(("device", "worst", "median"), [("v100", 0.09, 0.03), ("a100", 0.18, 0.07)])
def test_all_reduce__agrees_with_what_was_measured(device, worst, median):
    """Tensors of 64 MB and more, where no start is left to see, over the catalog's links."""
    table, link, rings = load_all_reduce()[device], load_link(LINKS[device]), NVLINK_RINGS[device]
    rows = [row for row in range(len(table["bytes"])) if table["bytes"][row] >= 2**26 and table["gpus"][row] in rings]
    errors = []
    for row in rows:
        gpus = int(table["gpus"][row])
        found = collective_s(
            "all_reduce", "ring", gpus, table["bytes"][row], link.bytes_per_s * rings[gpus], link.latency_s
        )
        errors.append(abs(found / table["time_s"][row] - 1))
    assert max(errors) < worst
    assert np.median(errors) < median
