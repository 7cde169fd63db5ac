from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from graphopt_gym.envs.architecture import nasbench
from graphopt_gym.envs.architecture.nasbench import (
    CONV1,
    CONV3,
    EDGES,
    POOL,
    RESNET_CELL,
    SKIP,
    ZERO,
    Table,
    all_cells,
    cell_of,
    check_cell,
    live_edges,
    load_table,
    network,
    sizes,
)
from graphopt_gym.envs.architecture.seeds import load_seed
from graphopt_gym.errors import InputError

CELLS = [tuple(cell) for cell in all_cells()[np.random.default_rng(0).integers(15_625, size=40)].tolist()]
NOTHING = (ZERO,) * 6


def carries(cell):
    """Which edges lie on a way from node 0 to node 3, by following all ways."""
    found = set()

    def go(node, way):
        if node == 3:
            found.update(way)
        for number, (source, target) in enumerate(EDGES):
            if source == node and cell[number] != ZERO:
                go(target, [*way, number])

    go(0, [])
    return tuple(number in found for number in range(6))


def test_network__has_the_published_sizes():
    full = network((CONV3,) * 6)  # Dong, Yang: 1.531546 M parameters, 220.12 M multiply-adds
    assert full.parameters == 1_531_546
    assert full.multiply_adds == pytest.approx(220.12e6, rel=1e-4)
    assert full.ops[-1].shape == (10,)


@pytest.mark.parametrize("cell", [*CELLS, NOTHING, RESNET_CELL, (POOL, ZERO, CONV1, ZERO, SKIP, ZERO)])
def test_sizes__are_those_of_the_network(cell):
    made = network(cell)
    assert sizes(cell) == (made.parameters, made.flops)
    assert live_edges(cell) == carries(cell)
    assert cell_of(made) == cell


def test_network__of_a_cell_without_ways_gives_the_same_for_all_images():
    torch = pytest.importorskip("torch")
    module = network(NOTHING).to_module().eval()
    with torch.no_grad():
        output = module(torch.randn(3, 3, 32, 32))
    assert torch.equal(output[0], output[1])


def test_cell_of__another_network():
    assert cell_of(load_seed("nasbench201")) == RESNET_CELL
    for other in (load_seed("cnn_2layer"), network(RESNET_CELL).renamed("nasbench201 2,2,2,2,2,2")):
        with pytest.raises(InputError, match=r"is no network of NAS-Bench-201; give 'nasbench201' or network\(cell\)"):
            cell_of(other)
    for wrong in ([0] * 5, [0, 0, 0, 0, 0, 5], "conv", None):
        with pytest.raises(InputError, match=r"^cell is .*; give 6 numbers from 0 to 4"):
            check_cell(wrong)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_table__is_the_published_one():
    table = load_table()
    assert len(table) == 15_625
    cell, best = table.best
    assert cell == (2, 2, 0, 2, 3, 2)
    assert best == pytest.approx(0.94066, abs=5e-6)
    dead = [tuple(cell) for cell in all_cells().tolist() if not any(live_edges(tuple(cell)))]
    assert len(dead) == 341
    assert {table.accuracy[cell] for cell in dead} == {0.1}


@pytest.fixture
def classes(monkeypatch):
    """Stand-ins for the two classes of ``analog-nasbench``, under its name, as a pickle needs them."""
    module, package = ModuleType("analognasbench.data"), ModuleType("analognasbench")
    for name in ("Architecture", "DriftMeasurement"):
        setattr(module, name, type(name, (), {"__module__": "analognasbench.data"}))
    monkeypatch.setitem(sys.modules, "analognasbench", package)
    monkeypatch.setitem(sys.modules, "analognasbench.data", module)
    return module


def record(classes, cell, accuracy):
    one = classes.Architecture()
    one.architecture, one.baseline_accuracy = cell, accuracy
    one.baseline_drift_60 = classes.DriftMeasurement()
    one.baseline_drift_60.value = 10.0
    return one


def test_load_table__reads_a_small_pickle_and_json(tmp_path, classes):
    cells = {(2, 2, 0, 2, 3, 2): 94.0, (1,) * 6: 10.0}
    path = tmp_path / "small.anb"
    path.write_bytes(pickle.dumps({cell: record(classes, cell, accuracy) for cell, accuracy in cells.items()}))
    table = load_table(path)
    assert table.accuracy == {cell: accuracy / 100 for cell, accuracy in cells.items()}
    assert table.best == ((2, 2, 0, 2, 3, 2), 0.94)
    again = tmp_path / "small.json"
    again.write_text(json.dumps({",".join(map(str, cell)): accuracy for cell, accuracy in cells.items()}))
    assert load_table(again).fingerprint == table.fingerprint
    assert load_table(table) is table


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/never-made-by-graphopt"),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.anb", pickle.dumps({(0,) * 6: 1})[:-4], "is damaged or no table: "),
        ("evil.anb", pickle.dumps({(0,) * 6: Evil()}), "it asks for .*, which no table needs"),
        ("list.anb", pickle.dumps([1, 2]), "is no table of cells; give the data.anb"),
        ("plain.anb", pickle.dumps({(0,) * 6: 3}), "has accuracy None, no percentage"),
        ("cell.anb", pickle.dumps({(0,) * 5: 3}), r"is damaged: cell is \(0, 0, 0, 0, 0\); give 6 numbers"),
        ("empty.anb", pickle.dumps({}), "is no table of cells"),
        ("nothing.anb", b"", "is damaged or no table"),
        ("noise.anb", bytes(range(256)), "is damaged or no table"),
        ("cut.json", b'{"0,0,0', "is damaged or not JSON"),
        ("list.json", b"[1]", "is no table of cells"),
        ("far.json", b'{"0,0,0,0,0,0": 101}', "has accuracy 101, no percentage"),
        ("word.json", b'{"0,0,0,0,0,0": "high"}', "has accuracy 'high', no percentage"),
    ],
)
def test_load_table__refuses_what_is_damaged_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_table(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("table file ")
    assert not Path("/tmp/never-made-by-graphopt").exists()


def test_load_table__without_the_package(monkeypatch):
    monkeypatch.setattr(nasbench, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^track 'table' needs 'analognasbench', .*graphopt-gym\[architecture\]"):
        load_table()
    with pytest.raises(InputError, match=r"^table file '.*none.anb' cannot be read"):
        load_table("none.anb")


def test_table__of_one_is_named():
    assert Table("mine", {RESNET_CELL: 0.5}).best == (RESNET_CELL, 0.5)
