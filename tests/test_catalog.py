"""Catalogs: by name, by path, as objects; splits; the user's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import graphopt_gym as gg
from graphopt_gym import catalog as catalog_module
from graphopt_gym.catalog import Catalog, catalogs
from graphopt_gym.envs.rewrite.problem import load_target
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.tensor_program import program_text
from graphopt_gym.hardware.cluster import load_link
from tests.commands import only_json

DEVICE = """[{name}]
kind = "accelerator"
memory_gib = {memory}
memory_gb_per_s = 100
peak_tflops = {{float32 = 2}}
"""
LINK = "[{name}]\ngb_per_s = {memory}\nlatency_us = 5\n"
CLUSTER = """about = "{name}"
[[hosts]]
device = "t4"
count = {memory}
interconnect = "pcie3_x16"
"""
PACKAGE = """topology = "ring"
chips = {memory}
chip = "small"
[link]
gb_per_s = 10
[kinds.small]
tflops = 4
memory_gb_per_s = 400
sram_mib = 32
"""
MACHINE = """
core = "tpu_v3_core"
[[islands]]
hosts = 1
cores = {memory}
[links]
ici = "ici_v3"
pcie = "pcie3_x16"
"""
# of each catalog: a shipped name, one with a slip, and the ending of the file that ``write`` makes
KINDS = {
    "graphs": ("bert_base", "bert_bsae", ".npz"),
    "programs": ("small_fire", "small_fier", ".txt"),
    "architectures": ("resnet_8", "resent_8", ".txt"),
    "clusters": ("v100x4", "v100x44", ".toml"),
    "packages": ("mcm36", "mcm37", ".toml"),
    "machines": ("pathways_a", "pathway_a", ".toml"),
    "devices": ("t4", "t44", ".toml"),
    "links": ("pcie3_x16", "pcie3_x61", ".toml"),
}
TEXTS = {"devices": DEVICE, "links": LINK, "clusters": CLUSTER, "packages": PACKAGE, "machines": MACHINE}


def write(folder: Path, kind: str, name: str = "mine", size: int = 8) -> Path:
    """A file of a catalog, whose thing has ``size`` (see :func:`size_of`)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{KINDS[kind][2]}"
    if kind == "graphs":
        gg.save_graph(layered_dag(size, seed=0), path)
    elif kind == "architectures":
        path.write_text(f"x = input(name='x', shape=({size}, 4))\nx1 = relu(x)\nreturn x1\n")
    elif kind == "programs":
        shapes = f"x = input(name='x', shape=({size}, 4))\n"
        path.write_text(shapes + "return relu(x)\n")
    else:
        path.write_text(TEXTS[kind].format(name="npu", memory=size))
    return path


def size_of(kind: str, thing) -> int:
    return {
        "graphs": lambda: thing.num_ops,
        "programs": lambda: thing.shape(thing.outputs[0])[0],
        "architectures": lambda: thing.input_shapes[0][0],
        "clusters": lambda: thing.num_devices,
        "packages": lambda: thing.num_chips,
        "machines": lambda: thing.num_cores,
        "devices": lambda: thing.memory_bytes // 2**30,
        "links": lambda: round(thing.bytes_per_s / 1e9),
    }[kind]()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's folder, by default."""
    monkeypatch.delenv("GRAPHOPT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".graphopt"


# -- names, paths, objects


def test_catalogs__are_those_of_the_command():
    assert list(catalogs())[: len(KINDS)] == list(KINDS)
    assert all(catalog.name == name for name, catalog in gg.catalogs().items())


def test_catalogs__take_those_of_installed_packages(monkeypatch):
    added = Catalog("toys", "toy", int, {}, lambda: {"one": lambda: 1})
    monkeypatch.setattr(
        catalog_module, "entry_points", lambda group: [SimpleNamespace(name="toys", load=lambda: added)]
    )
    assert catalogs.__wrapped__()["toys"].load("one") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_load__by_name_path_text_of_a_path_and_object(kind, tmp_path):
    catalog = catalogs()[kind]
    thing = catalog.load(KINDS[kind][0])
    assert isinstance(thing, catalog.holds)
    assert catalog.load(thing) is thing
    path = write(tmp_path, kind, size=7)
    assert size_of(kind, catalog.load(path)) == size_of(kind, catalog.load(str(path))) == 7
    assert catalog.path(str(path)) == path


@pytest.mark.parametrize("kind", KINDS)
def test_load__unknown_names_have_the_nearest(kind):
    known, slip, ending = KINDS[kind]
    noun = catalogs()[kind].noun
    with pytest.raises(InputError, match=f"unknown {noun} {slip!r}; did you mean {known!r}.*ends in .*{ending}"):
        catalogs()[kind].load(slip)


@pytest.mark.parametrize("kind", KINDS)
def test_load__says_what_is_wrong_with_a_path(kind, tmp_path, monkeypatch):
    catalog, ending = catalogs()[kind], KINDS[kind][2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"folder{ending}").mkdir()
    for given in (f"absent{ending}", "no/such/file", Path("absent"), "x" * 300 + ending, f"nul\0{ending}"):
        with pytest.raises(InputError, match="does not exist") as caught:
            catalog.load(given)
        assert str(caught.value).startswith(f"{catalog.noun} file ")
        assert str(caught.value).isprintable()
    for given in (f"folder{ending}", Path("."), "."):
        with pytest.raises(InputError, match=f"is a folder; give a file that ends in .*{ending}"):
            catalog.load(given)
    with pytest.raises(
        InputError, match=f"{catalog.noun} is a float; give a name, a path or a {catalog.holds.__name__}"
    ):
        catalog.load(1.5)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"other\.json"):
        catalog.load("other.json")


def test_load__a_file_of_another_ending_is_refused_or_read_by_its_content(tmp_path):
    path = write(tmp_path, "clusters").rename(tmp_path / "mine.conf")
    with pytest.raises(InputError, match=r"mine\.conf' is of another kind; give a file that ends in \.toml"):
        gg.load_cluster(path)
    assert gg.load_graph(write(tmp_path, "graphs", size=9).rename(tmp_path / "mine.graph")).num_ops == 9
    assert gg.load_graph(write(tmp_path, "graphs", size=9).rename(tmp_path / "MINE.NPZ")).num_ops == 9


def test_load__what_has_no_ending_is_a_name_before_it_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "graphs", size=9).rename("bert_base")
    assert gg.load_graph("bert_base").num_ops > 1000
    assert gg.load_graph(Path("bert_base")).num_ops == gg.load_graph("./bert_base").num_ops == 9


def test_path__is_that_of_the_shipped_file():
    assert gg.catalogs()["graphs"].path("bert_base").name == "bert_base.npz"
    assert gg.catalogs()["programs"].path("bert") is None


def test_shipped__small_things_are_made_once_and_graphs_are_not_kept():
    assert gg.load_cluster("v100x4") is gg.load_cluster("v100x4")
    assert gg.load_program("small_fire") is gg.load_program("small_fire")
    assert gg.load_graph("rnnlm_2layer") is not gg.load_graph("rnnlm_2layer")


def test_catalog__import_of_the_package_reads_none():
    code = (
        "import sys, graphopt_gym as gg\nassert 'graphopt_gym.catalog' not in sys.modules\n"
        "gg.catalogs()\nassert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
        "assert not any('_shipped' in vars(catalog) for catalog in gg.catalogs().values())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- splits


def test_splits__stand_for_their_names_where_several_may_be_given():
    graphs = catalogs()["graphs"]
    assert graphs.names("measured") == list(graphs.splits["measured"])
    for split, members in graphs.splits.items():
        assert graphs.expand(split) == members
        assert all(name in graphs for name in members)
        with pytest.raises(InputError, match=f"graph is {split!r}, a split of several graphs; give one of them: "):
            graphs.load(split)
    assert graphs.expand(["gnmt_2layer", "mine.npz", "test"])[:3] == ("gnmt_2layer", "mine.npz", "gnmt_4layer")
    assert graphs.expand(["bert_base", "bert_base"]) == ("bert_base", "bert_base")
    assert catalogs()["programs"].expand("small") == tuple(gg.program_names("small"))
    with pytest.raises(InputError, match="unknown split of the graphs 'trian'; did you mean 'train'"):
        graphs.names("trian")


def test_expand__takes_one_thing_or_several():
    graph = layered_dag(5, seed=0)
    graphs, path = catalogs()["graphs"], Path("mine.npz")
    assert graphs.expand(graph) == (graph,)
    assert graphs.expand([graph, path]) == (graph, path)
    assert graphs.expand(path) == (path,)
    assert graphs.expand(3) == (3,)  # refused when it is loaded
    with pytest.raises(InputError, match="graph is an empty list; give at least one graph"):
        graphs.expand([])


# -- the user's own


@pytest.mark.parametrize("kind", KINDS)
def test_own__are_known_by_their_files_names(kind, home, graphopt):
    catalog = catalogs()[kind]
    path = write(home / kind, kind, "my own", size=7)
    assert "my own" in catalog
    assert catalog.names()[-1] == "my own"
    assert size_of(kind, catalog.load("my own")) == 7
    assert catalog.path("my own") == path
    with pytest.raises(InputError, match="did you mean 'my own'"):
        catalog.load("my own n")
    _, out, _ = graphopt("list", kind, "--json")
    rows = {row[catalog.noun]: row for row in only_json(out)["rows"]}
    assert rows["my own"]["file"] == str(path)
    assert rows[catalog.names()[0]]["file"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_own__come_before_shipped_ones_and_splits_and_the_list_says_so(kind, home, graphopt):
    catalog, shipped = catalogs()[kind], KINDS[kind][0]
    before = size_of(kind, catalog.load(shipped))
    write(home / kind, kind, shipped, size=7)
    assert size_of(kind, catalog.load(shipped)) == 7 != before
    assert size_of(kind, catalog.load_shipped(shipped)) == before
    _, out, _ = graphopt("list", kind, "--json")
    assert f"{shipped} is yours, in place of the shipped {catalog.noun}." in only_json(out)["notes"]
    for split in list(catalog.splits)[:1]:
        write(home / kind, kind, split, size=7)
        assert size_of(kind, catalog.load(split)) == 7
        assert catalog.expand(split) == (split,)
        _, out, _ = graphopt("list", kind, "--json")
        assert f"{split} is yours, in place of the shipped split." in only_json(out)["notes"]


@pytest.mark.parametrize("kind", KINDS)
def test_own__one_that_is_damaged_breaks_nothing_else(kind, home, graphopt):
    catalog, ending = catalogs()[kind], KINDS[kind][2]
    write(home / kind, kind, "whole", size=7)
    (home / kind / f"damaged{ending}").write_bytes(b"\xff\x00= no")
    (home / kind / f"folder{ending}").mkdir()
    (home / kind / f"dangling{ending}").symlink_to("nowhere")
    (home / kind / "notes.md").write_text("not one of them")
    assert size_of(kind, catalog.load("whole")) == 7
    with pytest.raises(InputError, match="damaged"):
        catalog.load("damaged")
    code, out, err = graphopt("list", kind, "--json")
    listed = only_json(out)
    assert (code, err) == (0, "")
    names = {row[catalog.noun] for row in listed["rows"]}
    assert {"whole", catalog.names()[0]} <= names
    assert not names & {"damaged", "folder", "dangling", "notes"}
    left_out = [note for note in listed["notes"] if note.startswith("Left out: ")]
    assert len(left_out) == 3
    assert all(f"{name}{ending}" in "".join(left_out) for name in ("damaged", "folder", "dangling"))
    code, out, err = graphopt("list", kind, "damaged")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


def test_own__folders_by_the_environment_variable(tmp_path, monkeypatch, graphopt):
    homes = [tmp_path / "a", tmp_path / "b", tmp_path / "none"]
    monkeypatch.setenv("GRAPHOPT_HOME", os.pathsep.join([str(homes[0]), "", *map(str, homes[1:])]))
    write(homes[0] / "clusters", "clusters", "both", size=3)
    write(homes[1] / "clusters", "clusters", "both", size=5)
    write(homes[1] / "clusters", "clusters", "second", size=6)
    assert (gg.load_cluster("both").num_devices, gg.load_cluster("second").num_devices) == (3, 6)
    notes = catalogs()["clusters"].table()[2]
    assert notes == [
        f"Left out: '{homes[1]}/clusters/both.toml', since '{homes[0]}/clusters/both.toml' comes first",
        f"Left out: '{homes[2]}' of GRAPHOPT_HOME is no folder",
        "Drawn anew by environments: random, perturbed; with a seed, as in random:seed=0, one of them.",
    ]
    monkeypatch.setenv("GRAPHOPT_HOME", "/" + "x" * 300)
    assert "v100x4" in gg.cluster_names()
    monkeypatch.setenv("GRAPHOPT_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "a"))
    write(tmp_path / "a" / ".graphopt" / "clusters", "clusters", "third", size=4)
    assert gg.load_cluster("third").num_devices == 4


@pytest.mark.parametrize("name", ["[red]", r"$\frac$", "🙂", "ünï", "a b", "gpt3.5", "-x", "my.npz", "train,test", "'"])
def test_own__names_may_have_odd_characters(name, home, graphopt):
    write(home / "graphs", "graphs", name, size=7)
    assert gg.load_graph(name).num_ops == 7
    code, out, err = graphopt("list", "graphs", "--", name)
    assert (code, err) == (0, "")
    assert name in out


def test_own__names_that_do_not_print_are_left_out(home):
    folder = write(home / "graphs", "graphs", "plain").parent
    for name in ("new\nline", os.fsdecode(b"\xff")):
        write(folder, "graphs", "other").rename(folder / f"{name}.npz")
    catalog = catalogs()["graphs"]
    assert "plain" in catalog
    assert not any("line" in name for name in catalog.names())
    notes = [note for note in catalog.table()[2] if "whose name does not print" in note]
    assert len(notes) == 2
    assert all(note.isprintable() for note in notes)


def test_own__devices_and_links_are_named_in_clusters_of_the_users_but_not_in_shipped_ones(home, tmp_path):
    write(home / "devices", "devices", "npu", size=5)
    write(home / "devices", "devices", "v100_pcie_16gb", size=6)
    write(home / "links", "links", "wire", size=9)
    path = tmp_path / "lab.toml"
    path.write_text(
        "[[hosts]]\ndevices = ['npu', 'v100_pcie_16gb']\ninterconnect = 'wire'\n"
        "[[hosts]]\ndevice = 'other'\n[network]\nlink = 'ethernet_25g'\n"
        + DEVICE.format(name="devices.other", memory=7)
    )
    cluster = gg.load_cluster(path)
    assert [one.memory_bytes // 2**30 for one in cluster.devices] == [5, 6, 7]
    assert cluster.links[cluster.link_of[0, 1]].bytes_per_s == load_link("wire").bytes_per_s == 9e9
    assert {one.memory_bytes // 2**30 for one in gg.load_cluster("v100x2").devices} == {16}
    path.write_text("[[hosts]]\ndevice = 'npv'\n")
    with pytest.raises(InputError, match="unknown device 'npv'; did you mean 'npu'"):
        gg.load_cluster(path)


# -- a device where a cluster is wanted


def test_device_file__is_a_cluster_of_one_device(tmp_path, home):
    path = write(tmp_path, "devices", "mydevice", size=5)
    for given in (path, str(path)):
        cluster = gg.load_cluster(given)
        assert (cluster.num_devices, cluster.name) == (1, "npu")
        assert load_target(given).fingerprint == cluster.fingerprint == load_target(gg.load_device(path)).fingerprint
    write(home / "devices", "devices", "lab", size=5)
    assert load_target("lab").fingerprint == gg.load_cluster(path).fingerprint
    assert load_target("v100x1").num_devices == 1
    for given, message in (("lba", "unknown device 'lba'; did you mean 'lab'"), ("no.toml", "does not exist")):
        with pytest.raises(InputError, match=message):
            load_target(given)


@pytest.mark.parametrize("text", ["", "a = 1", CLUSTER.format(name="c", memory=2), "[a]\n[b]\n"])
def test_device_file__holds_one_table(tmp_path, text):
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"d\.toml: holds .*; give one table, \[NAME\]"):
        gg.load_device(path)


# -- the list


def test_list__shows_files_names_and_splits(graphopt, tmp_path):
    path = write(tmp_path, "devices", size=5)
    _, out, _ = graphopt("list", "devices", path, "t4", "--json")
    rows = only_json(out)["rows"]
    assert [(row["device"], row["file"]) for row in rows] == [("npu", str(path)), ("t4", None)]
    _, out, _ = graphopt("list", "devices", path)
    assert "5.00 GiB" in out
    _, out, _ = graphopt("list", "graphs", "validation", "bert_base", "--json")
    rows = only_json(out)["rows"]
    assert [row["graph"] for row in rows] == [*gg.graph_names("validation"), "bert_base"]
    assert "file" not in rows[0]
    _, out, _ = graphopt("list", "programs", "--split", "small", "--json")
    assert [row["program"] for row in only_json(out)["rows"]] == gg.program_names("small")
    text = tmp_path / "fire.txt"
    text.write_text(program_text(gg.load_program("small_fire")))
    _, out, _ = graphopt("list", "programs", text, "--json")
    (row,) = only_json(out)["rows"]
    assert (row["kind"], row["ops"]) == (None, gg.load_program("small_fire").statistics()["computed"])


def test_list__says_which_environments_take_them(graphopt):
    _, out, _ = graphopt("list", "devices", "t4", "--json")
    assert "Taken by RewriteOrder-v0 as cluster, ArchitectureSearch-v0 as cluster." in only_json(out)["notes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grpahs"], "unknown thing to list 'grpahs'; did you mean 'graphs'?"),
        (["graphs", "bert_bsae"], "unknown graph 'bert_bsae'; did you mean 'bert_base'?"),
        (["graphs", "--split", "trian"], "unknown split of the graphs 'trian'; did you mean 'train'?"),
        (["envs", "Placement"], "unknown env 'Placement'; did you mean 'Placement-v0'?"),
        (["methods", "--split", "train"], "--split is 'train'; only graphs, "),
        (["clusters", "absent.toml"], "cluster file 'absent.toml' does not exist"),
    ],
)
def test_list__refuses_in_one_line(graphopt, arguments, message):
    code, out, err = graphopt("list", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_list__takes_names_of_what_is_no_catalog(graphopt):
    _, out, _ = graphopt("list", "methods", "heft", "expert", "--json")
    assert [row["method"] for row in only_json(out)["rows"]] == ["heft", "expert"]
