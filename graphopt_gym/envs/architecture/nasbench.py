"""NAS-Bench-201: 15,625 cells of six edges, each with the accuracy of its network on CIFAR-10, read from a table.

Dong, Yang: "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", ICLR 2020. A cell has four
nodes; between each two lies an edge with one of five operations; a node is the sum of what reaches it. The accuracies
are those that ``analog-nasbench`` ships, one a cell (there is no split into validation and test). Its file is a pickle:
it is read by an unpickler that makes numbers, texts, tuples, dictionaries and one inert class of ours, nothing else.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder
from graphopt_gym.errors import InputError, quoted
from graphopt_gym.extras import NotInstalled
from graphopt_gym.files import parse_json, read_file

# in the order of the table's numbers
OPERATIONS = ("skip", "zero", "conv3x3", "conv1x1", "avg_pool")
SKIP, ZERO, CONV3, CONV1, POOL = range(len(OPERATIONS))
EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
RESNET_CELL = (CONV3, ZERO, SKIP, CONV3, ZERO, SKIP)  # what the paper calls ResNet (Dong, Yang, table 4)
STAGES, CELLS, WIDTH, IMAGE, CLASSES = 3, 5, 16, (3, 32, 32), 10
NAME = "nasbench201"
MOST_BYTES = 2**26  # of a table's file
Cell = tuple[int, ...]


def check_cell(cell: Any) -> Cell:
    """Six operations, as a tuple. Raises InputError for anything else."""
    try:
        found = tuple(int(one) for one in cell)
    except (TypeError, ValueError):
        found = ()
    if len(found) != len(EDGES) or not all(0 <= one < len(OPERATIONS) for one in found):
        raise InputError(f"cell is {quoted(cell, 80)}; give {len(EDGES)} numbers from 0 to {len(OPERATIONS) - 1}")
    return found


def all_cells() -> np.ndarray:
    """int32 [15625, 6]"""
    return np.array(list(itertools.product(range(len(OPERATIONS)), repeat=len(EDGES))), np.int32)


@lru_cache(maxsize=1 << 14)
def live_edges(cell: Cell) -> tuple[bool, ...]:
    """For each edge, whether it carries the input on a way to the output."""
    there = [edge for edge, operation in zip(EDGES, cell, strict=True) if operation != ZERO]
    reached, needed = {0}, {3}
    for a, b in there:  # in order of their source
        if a in reached:
            reached.add(b)
    for a, b in reversed(there):
        if b in needed:
            needed.add(a)
    return tuple(edge in there and edge[0] in reached and edge[1] in needed for edge in EDGES)


def network_name(cell: Cell) -> str:
    return f"{NAME} {','.join(map(str, cell))}"


@lru_cache(maxsize=1024)
def network(cell: Cell = RESNET_CELL) -> Architecture:
    """The network of a cell (Dong, Yang, figure 1): a stem, three stages of five cells, residual blocks of stride 2
    between them, a head.

    Edges that carry nothing from the input to the output are left out; a cell without any gives zeros.
    """
    cell = check_cell(cell)
    b = ArchitectureBuilder(network_name(cell))
    x = b.input("image", IMAGE)
    b.block = "stem"
    x = b.op("batch_norm", b.op("conv", x, features=WIDTH, kernel=3, bias=False))
    for stage in range(STAGES):
        width = WIDTH << stage
        if stage:
            b.block = f"stage{stage}.reduction"
            y = _relu_conv_norm(b, _relu_conv_norm(b, x, width, 3, 2), width, 3)
            down = b.op("conv", b.op("avg_pool", x, kernel=2), features=width, kernel=1, bias=False)
            x = b.op("add", down, y)
        for number in range(CELLS):
            b.block = f"stage{stage}.cell{number}"
            x = _cell(b, x, cell, width)
    b.block = "head"
    x = b.op("mean", b.op("relu", b.op("batch_norm", x)), axes=(1, 2))
    return b.finish(b.op("dense", x, features=CLASSES))


def seed(name: str = NAME) -> Architecture:
    """The network of :data:`RESNET_CELL`."""
    return network(RESNET_CELL).renamed(name)


def _relu_conv_norm(b: ArchitectureBuilder, x: int, width: int, kernel: int, stride: int = 1) -> int:
    x = b.op("conv", b.op("relu", x), features=width, kernel=kernel, stride=stride, bias=False)
    return b.op("batch_norm", x)


def _cell(b: ArchitectureBuilder, x: int, cell: Cell, width: int) -> int:
    nodes: dict[int, int] = {0: x}
    live = live_edges(cell)
    for (source, target), operation, alive in zip(EDGES, cell, live, strict=True):
        if not alive:
            continue
        y = nodes[source]
        if operation in (CONV3, CONV1):
            y = _relu_conv_norm(b, y, width, 3 if operation == CONV3 else 1)
        elif operation == POOL:
            y = b.op("avg_pool", y, kernel=3, stride=1, padding=1)
        nodes[target] = b.op("add", nodes[target], y) if target in nodes else y
    return nodes[3] if 3 in nodes else b.op("smul", x, factor=0.0)


def cell_of(architecture: Architecture) -> Cell:
    """The cell of a network that :func:`network` makes: its name says which, and it is the same network.

    Raises:
        InputError: another network.
    """
    kind, _, said = architecture.name.partition(" ")
    try:
        if kind == NAME:
            cell = check_cell(said.split(",") if said else RESNET_CELL)
            if network(cell) == architecture:
                return cell
    except InputError:
        pass
    raise InputError(
        f"architecture {architecture.name!r} is no network of NAS-Bench-201; give {NAME!r} or network(cell)"
    )


@lru_cache(maxsize=1 << 14)
def sizes(cell: Cell) -> tuple[int, int]:
    """(parameters, FLOPs of one image) of a cell's network, without making it: what each edge adds is known."""
    fixed, each = _parts()
    live = live_edges(cell)
    if not any(live):
        return fixed[0], fixed[1] + each["smul"][1]
    total = np.array(fixed, np.int64)
    for operation, alive in zip(cell, live, strict=True):
        if alive:
            total += each[OPERATIONS[operation]]
    for node in (1, 2, 3):
        incoming = sum(alive for alive, (_, target) in zip(live, EDGES, strict=True) if target == node)
        total += max(0, incoming - 1) * np.array(each["add"])
    return int(total[0]), int(total[1])


@lru_cache(maxsize=1)
def _parts() -> tuple[tuple[int, int], dict[str, tuple[int, int]]]:
    """(parameters, FLOPs) of the network without its cells, and of what stands once in each cell, over all cells."""
    through = network((ZERO, ZERO, SKIP, ZERO, ZERO, ZERO))  # its cells have no op
    each: dict[str, tuple[int, int]] = {"skip": (0, 0), "zero": (0, 0)}
    for operation in (CONV3, CONV1, POOL):
        one = network((ZERO, ZERO, operation, ZERO, ZERO, ZERO))
        each[OPERATIONS[operation]] = one.parameters - through.parameters, one.flops - through.flops
    nothing = network((ZERO,) * len(EDGES))
    each["smul"] = 0, nothing.flops - through.flops
    each["add"] = each["smul"]  # an operation an element, as well
    return (through.parameters, through.flops), each


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    """Accuracies of cells.

    Attributes:
        name: where it is from.
        accuracy: 0 to 1, by cell.
    """

    name: str
    accuracy: Mapping[Cell, float]

    def __len__(self) -> int:
        return len(self.accuracy)

    @cached_property
    def fingerprint(self) -> str:
        lines = [f"{cell} {accuracy!r}" for cell, accuracy in sorted(self.accuracy.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def best(self) -> tuple[Cell, float]:
        """The cell of the highest accuracy, the first where there are several."""
        cell = max(sorted(self.accuracy), key=self.accuracy.__getitem__)
        return cell, self.accuracy[cell]


class _Record:
    """What a pickled record of the table becomes: attributes, no behaviour."""


class _TableUnpickler(pickle.Unpickler):
    """Makes :class:`_Record` of the table's two classes, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("analognasbench.data", "Architecture"), ("analognasbench.data", "DriftMeasurement")):
            return _Record
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no table needs")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to what lies outside of it")


def load_table(table: str | os.PathLike[str] | Table | None = None) -> Table:
    """The table of ``analog-nasbench``, or one in a file: its pickle, or JSON, ``{"2,2,0,2,3,2": 94.07, …}`` in
    percent.

    Raises:
        InputError: the package is not installed, or a file that is damaged or is no table.
    """
    if isinstance(table, Table):
        return table
    if table is not None:
        return _read(Path(table))
    spec = find_spec("analognasbench")  # not imported: it unpickles freely
    if spec is None or not spec.submodule_search_locations:
        raise NotInstalled("analognasbench", "track 'table'")
    return _read(Path(next(iter(spec.submodule_search_locations))) / "data.anb", "analog-nasbench")


@lru_cache(maxsize=4)
def _read(path: Path, name: str = "") -> Table:
    where = f"table file {quoted(str(path))}"
    content = read_file(path, "table file", MOST_BYTES)
    rows: dict[Any, Any]
    if path.suffix.lower() == ".json":
        found = parse_json(content, where)
        rows = {tuple(key.split(",")): value for key, value in found.items()} if isinstance(found, dict) else {}
    else:
        rows = _unpickled(content, where)
    accuracy: dict[Cell, float] = {}
    for key, value in rows.items():
        try:
            cell = check_cell(key)
        except InputError as error:
            raise InputError(f"{where} is damaged: {error}") from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            raise InputError(f"{where} is damaged: cell {cell} has accuracy {quoted(value, 40)}, no percentage")
        accuracy[cell] = float(value) / 100
    if not accuracy:
        raise InputError(f"{where} is no table of cells; give the data.anb of analog-nasbench, or a JSON file")
    return Table(name or str(path), accuracy)


def _unpickled(content: bytes, where: str) -> dict[Sequence[Any], Any]:
    try:
        found = _TableUnpickler(io.BytesIO(content)).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it comes to
        raise InputError(f"{where} is damaged or no table: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(found, dict) or not all(isinstance(key, tuple) for key in found):
        raise InputError(f"{where} is no table of cells; give the data.anb of analog-nasbench, or a JSON file")
    return {key: getattr(record, "baseline_accuracy", None) for key, record in found.items()}
