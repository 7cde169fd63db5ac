"""Machines of islands: files, numbering, resizing, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.cluster import Link, load_device
from graphopt_gym.hardware.machine import COSTS, ControlPlane, Island, Machine, load_machine, machine_names

GOOD = """
core = "tpu_v3_core"
[[islands]]
count = 2
hosts = 3
cores = 4
[links]
ici = "ici_v3"
pcie = "pcie3_x16"
dcn = "ethernet_100g"
[control]
client_call_us = 5
[control.sources]
client_call_us = "chosen"
"""


def from_text(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_machine(path)


def test_catalog__has_the_configurations_of_the_paper():
    sizes = {name: load_machine(name) for name in machine_names()}
    assert [(i.hosts, i.cores) for i in sizes["pathways_a"].islands] == [(512, 4)]
    assert [(i.hosts, i.cores) for i in sizes["pathways_b"].islands] == [(64, 8)]
    assert [(i.hosts, i.cores) for i in sizes["pathways_c"].islands] == [(4, 8)] * 4
    assert sizes["dgx_a100x8x4"].core.kind == "gpu"
    assert len({one.fingerprint for one in sizes.values()}) == len(sizes)


@pytest.mark.parametrize("name", machine_names())
def test_catalog__every_machine_is_named_and_says_where_its_control_plane_comes_from(name):
    machine = load_machine(name)
    assert machine.name == name
    assert machine.about
    assert set(machine.control.sources) == set(COSTS)
    assert all(source.startswith(("read", "fitted", "chosen")) for source in machine.control.sources.values())


def test_file__numbers_cores_host_by_host_and_island_by_island(tmp_path):
    machine = from_text(tmp_path, GOOD)
    assert (machine.num_islands, machine.num_hosts, machine.num_cores, machine.size) == (2, 6, 24, "24 cores")
    assert machine.core_host.tolist() == np.repeat(np.arange(6), 4).tolist()
    assert machine.core_island.tolist() == [0] * 12 + [1] * 12
    assert machine.first_core.tolist() == [0, 12, 24]
    assert machine.control == ControlPlane(client_call_s=5e-6)
    assert machine.hbm_bytes == 16 * 2**30
    assert machine.dcn.bytes_per_s == 12.5e9 * 0.9


def test_file__cards_of_a_host_add_up(tmp_path):
    machine = from_text(tmp_path, GOOD.replace('dcn = "ethernet_100g"', 'dcn = "ethernet_100g"\nnics = 2'))
    assert machine.dcn.bytes_per_s == 2 * 12.5e9 * 0.9


def test_resized__changes_the_hosts_of_each_island():
    machine = load_machine("pathways_a").resized(16)
    assert (machine.num_hosts, machine.num_cores) == (16, 64)
    assert machine.fingerprint != load_machine("pathways_a").fingerprint
    with pytest.raises(InputError, match="hosts is 0; give an integer from 1"):
        machine.resized(0)


@pytest.mark.parametrize("name", machine_names())
def test_json__gives_the_same_machine(name):
    machine = load_machine(name)
    assert Machine.from_json(json.loads(json.dumps(machine.to_json()))).fingerprint == machine.fingerprint
    assert load_machine(machine.to_json()).fingerprint == machine.fingerprint


def test_json__of_something_else_is_refused():
    with pytest.raises(InputError, match="machine is no stored machine"):
        Machine.from_json({"name": "none"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('core = "tpu_v3_core"', "", "'core' is missing; give the name of a device"),
        ('core = "tpu_v3_core"', 'core = "tpu_v3_cor"', "unknown device 'tpu_v3_cor'; did you mean 'tpu_v3_core'?"),
        ("[[islands]]\ncount = 2\nhosts = 3\ncores = 4", "", "'islands' is missing"),
        ("hosts = 3", "hosts = 0", "islands[0]: hosts is 0; give an integer from 1"),
        ("hosts = 3", "", "islands[0]: 'hosts' is missing"),
        ("cores = 4", "cores = 2.5", "islands[0]: cores is 2.5"),
        ("count = 2", "cuont = 2", "unknown key 'cuont'; did you mean 'count'?"),
        ("hosts = 3", "hosts = 1000000", "has 8000000 cores; the most is 1048576"),
        ('ici = "ici_v3"', "", "island 0 has 12 cores and no link between them; give ici"),
        ('dcn = "ethernet_100g"', "", "2 islands of 6 hosts have no link between hosts; give dcn"),
        ('pcie = "pcie3_x16"', "", "links: 'pcie' is missing"),
        ('pcie = "pcie3_x16"', 'pcie = "pcie9"', "links: pcie: unknown link 'pcie9'"),
        ('pcie = "pcie3_x16"', 'pcie = "pcie3_x16"\ncollective = "rign"', "unknown collective 'rign'"),
        ('pcie = "pcie3_x16"', 'pcie = "pcie3_x16"\nnics = 0', "nics is 0"),
        ("client_call_us = 5", "client_call_us = -5", "control: client_call_us is -5; give a number, at least 0"),
        ("client_call_us = 5", "client_call_us = 1e12", "control: client_call_s is 1000000.0; give at most"),
        ("client_call_us = 5", "client_cal_us = 5", "unknown key 'client_cal_us'"),
    ],
)
def test_file__impossible_values_give_one_line(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        from_text(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_machine__refuses_what_no_file_could_say():
    with pytest.raises(InputError, match="zero islands"):
        Machine("none", load_device("tpu_v3_core"), (), Link("pcie", 0.0, 1e9))
    with pytest.raises(InputError, match="cores is 0"):
        Island(1, 0)
