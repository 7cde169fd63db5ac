"""Multi-chip packages: files, links, routes."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.package import Chip, Package, load_package, package_names

GOOD = """
topology = "ring"
chips = 3
chip = "small"
[link]
gb_per_s = 10
[kinds.small]
tflops = 4
memory_gb_per_s = 400
sram_mib = 32
"""


def from_text(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_package(path)


def test_catalog__every_package_loads_and_is_named_after_its_file():
    assert {"mcm36", "mcm4", "mcm9", "mcm16", "mesh6x6", "mcm16_mixed"} <= set(package_names())
    for name in package_names():
        package = load_package(name)
        assert package.name == name
        assert package.about
    assert load_package("mcm36").num_chips == 36
    assert len(set(load_package("mcm16_mixed").chips)) == 2
    assert len({load_package(name).fingerprint for name in package_names()}) == len(package_names())


def test_file__gives_rates_in_plain_units(tmp_path):
    package = from_text(tmp_path, GOOD)
    assert package.name == "mine"
    assert package.chips == (Chip("small", 4e12, 4e11, 32 * 2**20),) * 3
    assert package.link_bytes_per_s == 1e10
    assert load_package(package) is package


def test_route__on_a_ring_passes_every_link_between():
    package = load_package("mcm4")
    assert package.links == ((0, 1), (1, 2), (2, 3), (3, 0))
    assert package.route(0, 3) == [0, 1, 2]
    assert package.route(2, 1) == [2, 3, 0]
    assert package.route(2, 2) == []


@pytest.mark.parametrize("name", ["mcm9", "mesh6x6"])
def test_route__is_a_shortest_way_over_links(name):
    package = load_package(name)
    graph = nx.DiGraph(package.links)
    pointers, links = package.routes
    for a in range(package.num_chips):
        for b in range(package.num_chips):
            way = package.route(a, b)
            assert links[pointers[a * package.num_chips + b] : pointers[a * package.num_chips + b + 1]].tolist() == way
            assert len(way) == nx.shortest_path_length(graph, a, b)
            stops = [a, *(package.links[link][1] for link in way)]
            assert stops[-1] == b
            assert [package.links[link] for link in way] == list(itertools.pairwise(stops))


def test_route__on_a_mesh_goes_along_the_row_first():
    package = load_package("mesh6x6")
    assert [package.links[link][1] for link in package.route(0, 14)] == [1, 2, 8, 14]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('topology = "ring"', 'topology = "rign"', "mine.toml: unknown topology 'rign'; did you mean 'ring'?"),
        ('topology = "ring"', "", "'topology' is missing"),
        ("chips = 3", "chips = 0", "chips is 0; give an integer from 1 to 62"),
        ("chips = 3", "chips = 63", "chips is 63; give an integer from 1 to 62"),
        ("chips = 3", "chips = 2.5", "chips is 2.5; give an integer"),
        ("chips = 3", "", "'chips' is missing"),
        ("chips = 3", "chips = 3\nrows = 2", "rows goes with topology 'mesh'"),
        ('chip = "small"', 'chip = "smal"', "unknown kind 'smal'; did you mean 'small'?"),
        ('chip = "small"', 'chip = ["small"]', "chip lists 1 kinds for 3 chips"),
        ("gb_per_s = 10", "gb_per_s = 0", "link: gb_per_s is 0; give a number above 0"),
        ("gb_per_s = 10", "", "link: 'gb_per_s' is missing"),
        ("gb_per_s = 10", "gb_per_s = 10\nlatency = 3", "unknown key 'latency'"),
        ("tflops = 4", "tflops = -4", "kinds.small: tflops is -4; give a number above 0"),
        ("tflops = 4", "tflops = nan", "kinds.small: tflops is nan; give a finite number"),
        ("memory_gb_per_s = 400", "memory_gb_per_s = inf", "memory_gb_per_s is inf; give a finite number"),
        ("sram_mib = 32", 'sram_mib = "32"', "sram_mib is '32'; give a number"),
        ("sram_mib = 32", "sram_mib = 1e-9", "less than a byte"),
        ("sram_mib = 32", "", "kinds.small: 'sram_mib' is missing"),
    ],
)
def test_file__impossible_values_give_one_line(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        from_text(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_package__refuses_what_no_file_could_say():
    chip = Chip("small", 1.0, 1.0, 1)
    with pytest.raises(InputError, match="0 chips"):
        Package("none", (), "ring", 1.0)
    with pytest.raises(InputError, match="do not fill 2 rows"):
        Package("odd", (chip,) * 3, "mesh", 1.0, rows=2)
    with pytest.raises(InputError, match="unknown package 'mcm37'; did you mean 'mcm36'"):
        load_package("mcm37")
