"""Random and perturbed clusters: whole, of the size asked for, the same by their number."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.hardware.cluster import LINKS, load_cluster
from graphopt_gym.hardware.random_clusters import BOARDS, NETWORKS, PerturbedClusters, RandomClusters

SEEDS = st.integers(0, 2**32 - 2)


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 4), SEEDS)
def test_random__has_the_devices_and_hosts_asked_for(least: int, more: int, hosts: int, seed: int) -> None:
    cluster = RandomClusters(devices=(least, least + more), hosts=(1, hosts)).make(seed)
    assert least <= cluster.num_devices <= least + more
    assert len(set(cluster.hosts)) <= hosts
    sizes = np.bincount(cluster.hosts)
    assert sizes.max() - sizes.min() <= 1
    for source, target in np.argwhere(cluster.link_of >= 0):
        link = cluster.links[cluster.link_of[source, target]]
        assert link.bytes_per_s > 0
        assert (link.type in NETWORKS) == (cluster.hosts[source] != cluster.hosts[target])
        if "nvlink" in link.type:
            kinds = {cluster.devices[device].name for device in (source, target)}
            assert all(link.type in BOARDS[kind] for kind in kinds)


@settings(max_examples=30)
@given(SEEDS)
def test_seed__makes_the_same_cluster_and_another_another(seed: int) -> None:
    for drawn in (RandomClusters(devices=8, hosts=2, mixed=1.0), PerturbedClusters(cluster="v100x4")):
        assert drawn.make(seed).fingerprint == drawn.make(seed).fingerprint
    assert PerturbedClusters(cluster="v100x4").make(seed).fingerprint != (
        PerturbedClusters(cluster="v100x4").make(seed + 1).fingerprint
    )


def test_random__draws_what_the_catalog_has() -> None:
    assert set(NETWORKS) <= set(LINKS.names())
    assert {link for links in BOARDS.values() for link in links} <= set(LINKS.names())
    found = [RandomClusters().make(seed) for seed in range(200)]
    assert {device.name for cluster in found for device in cluster.devices} == set(BOARDS)
    mixed = [len({device.name for device in cluster.devices}) > 1 for cluster in found]
    assert 0.1 < np.mean(mixed) < 0.3
    assert not any(
        len({device.name for device in RandomClusters(mixed=0).make(seed).devices}) > 1 for seed in range(50)
    )


def test_perturbed__differs_by_its_spreads_alone() -> None:
    base, spread = load_cluster("v100x2x2"), 0.3
    factors = []
    for seed in range(300):
        one = PerturbedClusters(cluster="v100x2x2", speed=spread, bandwidth=0, latency=0).make(seed)
        assert (one.link_of == base.link_of).all()
        assert [link.bytes_per_s for link in one.links] == [link.bytes_per_s for link in base.links]
        assert [device.memory_bytes for device in one.devices] == [device.memory_bytes for device in base.devices]
        factors += [a.peak_flops["float32"] / b.peak_flops["float32"] for a, b in zip(one.devices, base.devices)]
    logs = np.log(factors)
    assert abs(logs.mean()) < 0.05
    assert abs(logs.std() - spread) < 0.03


def test_perturbed__alike_keeps_alike_what_is() -> None:
    alike = PerturbedClusters(cluster="v100x4", alike=True).make(0)
    apart = PerturbedClusters(cluster="v100x4").make(0)
    assert len(set(alike.interchangeable)) == 1
    assert len(set(apart.interchangeable)) == 4


def test_perturbed__speeds_change_what_ops_take() -> None:
    problem = PlacementProblem("transformer_xl_2layer", PerturbedClusters(cluster="v100x4", speed=0.5).make(1))
    assert len(set(problem.alone_s.tolist())) == 4
