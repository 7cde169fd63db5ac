"""Devices, links, clusters, and their files."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.cluster import (
    Cluster,
    Device,
    Link,
    cluster_names,
    device_names,
    link_names,
    load_cluster,
    load_device,
    load_link,
)

GOOD = """
about = "mine"

[[hosts]]
device = "npu"
count = 2
interconnect = "wire"

[[hosts]]
devices = ["v100_pcie_16gb", "npu"]
interconnect = "pcie3_x16"

[network]
link = "ethernet_25g"

[devices.npu]
kind = "accelerator"
memory_gib = 8
memory_gb_per_s = 100
peak_tflops = {float32 = 2, bfloat16 = 4}

[links.wire]
gb_per_s = 10
latency_us = 5
"""


def _write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", cluster_names())
def test_catalog__every_cluster_loads_and_says_what_it_is(name):
    cluster = load_cluster(name)
    assert cluster.name == name
    assert cluster.about
    assert set(cluster.link_of[~np.eye(cluster.num_devices, dtype=bool)].tolist()) == set(range(cluster.num_links))


def test_catalog__has_the_promised_devices_and_clusters():
    assert {"p100x2", "p100x4", "p100x8", "v100x2", "v100x4", "v100x8", "a100x8", "v100x4x2"} <= set(cluster_names())
    assert {"p100_pcie_16gb", "v100_pcie_16gb", "v100_sxm2_16gb", "t4", "h100_sxm_80gb", "tpu_v3_core"} <= set(
        device_names()
    )
    assert len({device.name for device in load_cluster("p100x2_v100x2").devices}) == 2


@pytest.mark.parametrize("name", device_names())
def test_catalog__every_number_of_a_device_has_a_source(name):
    device = load_device(name)
    expected = {"memory_gib", "memory_gb_per_s", "peak_tflops"}
    expected |= {"compute_units"} if device.compute_units else set()
    expected |= {"board_watts"} if device.board_watts else set()
    assert expected | ({"cache_mib"} if device.cache_bytes else set()) == set(device.sources)


@pytest.mark.parametrize("name", link_names())
def test_catalog__every_number_of_a_link_has_a_source(name):
    link = load_link(name)
    assert {"gb_per_s", "latency_us"} <= set(link.sources)
    assert link.efficiency == 1 or "efficiency" in link.sources


def test_load_cluster__devices_share_their_port_and_hosts_their_card():
    cluster = load_cluster("v100x4x2")
    assert cluster.hosts == (0, 0, 0, 0, 1, 1, 1, 1)
    inside = cluster.link_of[:4, :4]
    for source in range(4):
        assert len(set(inside[source][np.arange(4) != source].tolist())) == 1  # one slot a device
    assert len({inside[source][(source + 1) % 4] for source in range(4)}) == 4
    out, back = cluster.link_of[:4, 4:], cluster.link_of[4:, :4]
    assert len(np.unique(out)) == len(np.unique(back)) == 1
    assert out[0, 0] != back[0, 0]
    assert cluster.links[out[0, 0]].type == "ethernet_25g"


def test_load_cluster__nvlink_is_a_wire_a_pair():
    cluster = load_cluster("v100_nvlinkx4")
    assert cluster.num_links == 12
    assert cluster.links[cluster.link_of[1, 2]].bytes_per_s == pytest.approx(22.5e9)


def test_load_cluster__reads_a_file_with_own_devices_and_links(tmp_path):
    cluster = load_cluster(_write(tmp_path, GOOD))
    assert [device.name for device in cluster.devices] == ["npu", "npu", "v100_pcie_16gb", "npu"]
    assert cluster.name == "mine"
    assert cluster.devices[0].memory_bytes == 8 * 2**30
    assert cluster.devices[0].peak("bfloat16") == 4e12
    assert cluster.devices[0].peak("float16") == 2e12
    assert cluster.links[cluster.link_of[0, 1]] == Link("wire:0->1", 5e-6, 10e9, "wire")
    assert load_cluster(cluster) is cluster


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gb_per_s = 10\n", "gb_per_s = -10\n", "links.wire: gb_per_s is -10; give a number above 0"),
        ("memory_gb_per_s = 100", "memory_gb_per_s = -1", "devices.npu: memory_gb_per_s is -1; give a number above 0"),
        ("memory_gib = 8", "memory_gib = 'big'", "devices.npu: memory_gib is 'big'; give a number"),
        ("memory_gib = 8", "memory_gib = true", "devices.npu: memory_gib is True; give a number"),
        ("memory_gib = 8", "memory_gib = inf", "devices.npu: memory_gib is inf; give a finite number"),
        ("memory_gib = 8\n", "", "devices.npu: 'memory_gib' is missing"),
        ("latency_us = 5", "latency_us = -5", "links.wire: latency_us is -5; give a number, at least 0"),
        ("latency_us = 5", "delay_us = 5", "mine.toml: links.wire: unknown key 'delay_us'"),
        (
            '"v100_pcie_16gb", ',
            '"v100_pcie_61gb", ',
            "hosts[1].devices: unknown device 'v100_pcie_61gb'; did you mean",
        ),
        ('"ethernet_25g"', '"ethernet25"', "network.link: unknown link 'ethernet25'; did you mean 'ethernet_25g'?"),
        ('kind = "accelerator"', 'kind = "gpus"', "devices.npu: unknown kind 'gpus'; did you mean 'gpu'?"),
        ("count = 2", "count = 0", "hosts[0]: count is 0; give an integer from 1 to 4096"),
        ("count = 2", "count = 2.5", "hosts[0]: count is 2.5"),
        ("count = 2", "cuont = 2", "hosts[0]: unknown key 'cuont'; did you mean 'count'?"),
        ('interconnect = "wire"\n', "", "hosts[0]: 'interconnect' is missing"),
        ('[network]\nlink = "ethernet_25g"', "", "'network' is missing; 2 hosts need one"),
        ("float32 = 2", "float23 = 2", "devices.npu: peak_tflops is"),
        ("bfloat16 = 4", "bfloat61 = 4", "peak_tflops dtype 'bfloat61'; did you mean 'bfloat16'?"),
        ('device = "npu"', 'device = ""', "hosts[0].device: unknown device ''"),
        ('device = "npu"', "device = 3", "hosts[0].device: 3 is not the name of a device"),
        ("about", "abuot", "key 'abuot'; did you mean 'about'?"),
        ("about =", "about = =", "not TOML"),
    ],
)
def test_load_cluster__refuses_bad_files_in_one_line(tmp_path, monkeypatch, old, new, message):
    monkeypatch.chdir(tmp_path)
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    _write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_cluster("mine.toml")
    assert message in str(caught.value)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_cluster__refuses_a_file_without_hosts(tmp_path):
    with pytest.raises(InputError, match="'hosts' is missing"):
        load_cluster(_write(tmp_path, "about = 'nothing'"))
    with pytest.raises(InputError, match="'hosts' is missing"):
        load_cluster(_write(tmp_path, "hosts = []"))


def test_load_cluster__names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="unknown cluster 'v100x44'; did you mean 'v100x4'"):
        load_cluster("v100x44")
    with pytest.raises(InputError, match="did you mean 't4'"):
        load_device("t44")
    with pytest.raises(InputError, match="does not exist"):
        load_cluster(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        load_cluster(tmp_path / "binary.toml")


def test_cluster__refuses_inconsistent_arrays():
    device, link = load_device("toy_1tflops"), Link("wire", 0.0, 1.0)
    with pytest.raises(InputError, match="zero devices"):
        Cluster("none", (), (), np.zeros((0, 0), np.int32), ())
    with pytest.raises(InputError, match=r"expected integers \(2, 2\)"):
        Cluster("shape", (device,) * 2, (link,), np.zeros((1, 1), np.int32), (0, 0))
    with pytest.raises(InputError, match="diagonal"):
        Cluster("self", (device,) * 2, (link,), np.zeros((2, 2), np.int32), (0, 0))
    with pytest.raises(InputError, match="links outside 0 to 0"):
        Cluster("unknown", (device,) * 2, (link,), np.array([[-1, 1], [0, -1]]), (0, 0))
    with pytest.raises(InputError, match="hosts has 1 entries for 2"):
        Cluster("hosts", (device,) * 2, (link,), np.array([[-1, 0], [0, -1]]), (0,))
    with pytest.raises(InputError, match=r"bytes_per_s is -1\.0"):
        Link("wire", 0.0, -1.0)
    with pytest.raises(InputError, match="memory_bytes is 0"):
        Device("d", "gpu", 0, 1.0, {"float32": 1.0})


def test_cluster__fingerprint_changes_with_what_a_cost_depends_on(tmp_path):
    before = load_cluster(_write(tmp_path, GOOD)).fingerprint
    assert load_cluster(_write(tmp_path, GOOD)).fingerprint == before
    assert load_cluster(_write(tmp_path, GOOD.replace("mine", "yours"))).fingerprint == before
    for old, new in (("gb_per_s = 10\n", "gb_per_s = 11\n"), ("memory_gib = 8", "memory_gib = 9"), ("= 2,", "= 3,")):
        assert load_cluster(_write(tmp_path, GOOD.replace(old, new))).fingerprint != before


def test_device__is_hashable_and_equal_by_its_numbers():
    device = load_device("v100_pcie_16gb")
    same = Device(**{**device.__dict__, "peak_flops": dict(device.peak_flops), "sources": {}})
    assert device == same
    assert hash(device) == hash(same)
    assert device != load_device("v100_pcie_32gb")


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("p100x4", [0, 0, 0, 0]),
        ("p100x2_v100x2", [0, 0, 1, 1]),
        ("p100x4x2", [0, 0, 0, 0, 1, 1, 1, 1]),  # a device of another host has other links
        ("v100x2x2", [0, 0, 1, 1]),
        ("v100x2_cpu", [0, 0, 1]),
        ("tpu_v3x8", None),
    ],
)
def test_interchangeable__devices_change_places_and_nothing_else_does(name: str, classes: list[int] | None) -> None:
    cluster = load_cluster(name)
    if classes is not None:
        assert cluster.interchangeable.tolist() == classes
    # by the definition, written out: any permutation within classes leaves devices, rates and sharing as they were
    rng = np.random.default_rng(0)
    for _ in range(20):
        names = np.arange(cluster.num_devices)
        for kind in set(cluster.interchangeable.tolist()):
            members = cluster.interchangeable == kind
            names[members] = rng.permutation(names[members])
        pairs = [(i, j) for i in names for j in names if i != j]
        for i, j in pairs:
            link, image = cluster.link_of[i, j], cluster.link_of[names[i], names[j]]
            assert cluster.links[link].bytes_per_s == cluster.links[image].bytes_per_s
            shared = {(a, b) for a, b in pairs if cluster.link_of[a, b] == link}
            assert {(names[a], names[b]) for a, b in shared} == {
                (a, b) for a, b in pairs if cluster.link_of[a, b] == image
            }
        kinds = [(one.kind, one.memory_bytes, one.peak_flops["float32"]) for one in cluster.devices]
        assert [kinds[one] for one in names] == kinds
