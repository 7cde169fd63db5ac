"""Multi-chip packages: chips in one package, the links between neighbours, and their TOML files.

::

    about = "36 chips on a one-directional ring"
    topology = "ring"            # or "mesh"
    chips = 36                   # a mesh takes rows and columns instead
    chip = "small"               # every chip, or a list with one name a chip

    [link]                       # between neighbours
    gb_per_s = 10

    [kinds.small]
    tflops = 4
    memory_gb_per_s = 400        # of the chip's own memory
    sram_mib = 32

On a *ring* chip c sends to chip c + 1, the last one to the first: one link a chip, one direction. On a *mesh* chips
are numbered row by row, neighbours are joined both ways, and a transfer goes along its row first, then along the
column (dimension-ordered). A transfer is carried by every link on its way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from graphopt_gym.catalog import Catalog, read_toml, stored_whole
from graphopt_gym.errors import InputError, quoted, unknown_name
from graphopt_gym.fields import byte_count, choice, count, known_keys, needed, plain, positive, rate, texts
from graphopt_gym.hardware.cluster import CATALOG, counted

TOPOLOGIES = ("ring", "mesh")
MAX_CHIPS = 62  # a set of chips is one word


@dataclass(frozen=True)
class Chip:
    """A chip's rates and its memory.

    Args:
        name: of its kind.
        flops_per_s: floating-point operations a second.
        memory_bytes_per_s: between its memory and its arithmetic.
        sram_bytes: its memory.
    """

    name: str
    flops_per_s: float
    memory_bytes_per_s: float
    sram_bytes: int

    def __post_init__(self) -> None:
        for field in ("flops_per_s", "memory_bytes_per_s"):
            rate(f"chip {self.name!r}: {field}", getattr(self, field))
        byte_count(f"chip {self.name!r}: sram_bytes", positive(f"chip {self.name!r}: sram_bytes", self.sram_bytes))


@dataclass(frozen=True, eq=False)
class Package:
    """Chips, and the links between neighbours. C chips, L links.

    Args:
        name: what the package is called.
        chips: C of them.
        topology: ``"ring"`` or ``"mesh"``.
        rows: of a mesh; 1 for a ring.
        link_bytes_per_s: of each link, one direction.
        about: one line on what it stands for.
    """

    name: str
    chips: tuple[Chip, ...]
    topology: str
    link_bytes_per_s: float
    rows: int = 1
    about: str = ""

    def __post_init__(self) -> None:
        where = f"package {self.name!r}"
        if not 1 <= len(self.chips) <= MAX_CHIPS:
            raise InputError(f"{where} has {len(self.chips)} chips; give 1 to {MAX_CHIPS}")
        if self.topology not in TOPOLOGIES:
            raise unknown_name(f"{where}: topology", self.topology, TOPOLOGIES)
        rate(f"{where}: link_bytes_per_s", self.link_bytes_per_s)
        if self.rows < 1 or len(self.chips) % self.rows:
            raise InputError(f"{where}: {len(self.chips)} chips do not fill {self.rows} rows")

    @property
    def num_chips(self) -> int:
        return len(self.chips)

    @property
    def size(self) -> str:
        """How large it is, for people."""
        return f"{self.num_chips} chips"

    @property
    def num_links(self) -> int:
        return len(self.links)

    @cached_property
    def links(self) -> tuple[tuple[int, int], ...]:
        """(from chip, to chip) of each link."""
        count, columns = self.num_chips, self.num_chips // self.rows
        if count == 1:
            return ()
        if self.topology == "ring":
            return tuple((chip, (chip + 1) % count) for chip in range(count))
        pairs = []
        for chip in range(count):
            if (chip + 1) % columns:
                pairs += [(chip, chip + 1), (chip + 1, chip)]
            if chip + columns < count:
                pairs += [(chip, chip + columns), (chip + columns, chip)]
        return tuple(sorted(pairs))

    def route(self, source: int, target: int) -> list[int]:
        """The links, in order, that a transfer from one chip to another passes; empty where they are the same."""
        number = {pair: index for index, pair in enumerate(self.links)}
        columns = self.num_chips // self.rows
        way = []
        at = source
        while at != target:
            if self.topology == "ring":
                step = (at + 1) % self.num_chips
            elif at % columns != target % columns:
                step = at + (1 if target % columns > at % columns else -1)
            else:
                step = at + (columns if target > at else -columns)
            way.append(number[at, step])
            at = step
        return way

    @cached_property
    def routes(self) -> tuple[np.ndarray, np.ndarray]:
        """(pointers int32 [C*C+1], links int32): the links from chip a to chip b stand at row a*C + b."""
        ways = [self.route(a, b) for a in range(self.num_chips) for b in range(self.num_chips)]
        pointers = np.zeros(len(ways) + 1, np.int32)
        np.cumsum([len(way) for way in ways], out=pointers[1:])
        return pointers, np.asarray([link for way in ways for link in way], np.int32)

    @cached_property
    def sram_bytes(self) -> np.ndarray:
        """int64 [C]"""
        return np.asarray([chip.sram_bytes for chip in self.chips], np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a cost depends on (not the names)."""
        facts = [
            [[chip.flops_per_s, chip.memory_bytes_per_s, chip.sram_bytes] for chip in self.chips],
            [self.topology, self.rows, self.link_bytes_per_s],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The whole of it in JSON's types, as a solution stores a package that is in no catalog."""
        facts = {one.name: plain(getattr(self, one.name)) for one in fields(self) if one.name != "chips"}
        kinds = list(dict.fromkeys(self.chips))
        return {
            **facts,
            "chip_types": [{one.name: plain(getattr(chip, one.name)) for one in fields(chip)} for chip in kinds],
            "chips": [kinds.index(chip) for chip in self.chips],
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Package:
        """A package from what :meth:`to_json` gives.

        Raises:
            InputError: something else, or of a release that knows more.
        """
        with stored_whole("package"):
            kinds = [Chip(**one) for one in given["chip_types"]]
            chips = tuple(kinds[number] for number in given["chips"])
            return cls(**{**{key: value for key, value in given.items() if key != "chip_types"}, "chips": chips})

    def __repr__(self) -> str:
        return f"Package({self.name!r}, {self.topology}, chips={self.num_chips})"


def parse_package(table: Mapping[str, Any], name: str, where: str) -> Package:
    """A package from the content of a package file (see the module's text).

    Args:
        table: the parsed TOML.
        name: what to call it where the file gives no ``name``.
        where: what an error message begins with, e.g. the file's path.

    Raises:
        InputError: one line naming the field, the value and the fix.
    """
    known_keys(where, table, ("name", "about", "topology", "chips", "rows", "columns", "chip", "link", "kinds"))
    topology = choice(f"{where}: topology", needed(where, table, "topology", "'ring' or 'mesh'"), TOPOLOGIES)
    rows = 1
    if topology == "ring":
        for key in ("rows", "columns"):
            if key in table:
                raise InputError(f"{where}: {key} goes with topology 'mesh'; a ring takes 'chips'")
        size = _count(where, table, "chips")
    else:
        if "chips" in table:
            raise InputError(f"{where}: chips goes with topology 'ring'; a mesh takes 'rows' and 'columns'")
        rows = _count(where, table, "rows")
        size = rows * _count(where, table, "columns")
        if size > MAX_CHIPS:
            raise InputError(f"{where}: rows x columns is {size} chips; at most {MAX_CHIPS}")

    given = needed(where, table, "kinds", "at least one table [kinds.NAME] with tflops, memory_gb_per_s and sram_mib")
    if not isinstance(given, Mapping) or not given or not all(isinstance(one, Mapping) for one in given.values()):
        raise InputError(f"{where}: kinds must hold tables, e.g. [kinds.small]")
    kinds = {kind: _chip(f"{where}: kinds.{kind}", kind, one) for kind, one in given.items()}
    named = table.get("chip", next(iter(kinds)) if len(kinds) == 1 else None)
    if named is None:
        raise InputError(f"{where}: 'chip' is missing; name the kind of every chip, or list one a chip")
    listed = named if isinstance(named, list) else [named] * size
    if len(listed) != size:
        raise InputError(f"{where}: chip lists {len(listed)} kinds for {size} chips; give one a chip")

    link = needed(where, table, "link", "a table [link] with gb_per_s")
    if not isinstance(link, Mapping):
        raise InputError(f"{where}: link is {quoted(link)}; give a table [link] with gb_per_s")
    known_keys(f"{where}: link", link, ("gb_per_s",))
    speed = positive(f"{where}: link: gb_per_s", needed(f"{where}: link", link, "gb_per_s", "GB a second")) * 1e9
    texts(where, table, ("name", "about"))
    return Package(
        name=table.get("name", name),
        chips=tuple(kinds[choice(f"{where}: chip: kind", kind, kinds)] for kind in listed),
        topology=topology,
        link_bytes_per_s=speed,
        rows=rows,
        about=table.get("about", ""),
    )


def _chip(where: str, name: str, table: Mapping[str, Any]) -> Chip:
    fields = ("tflops", "memory_gb_per_s", "sram_mib")
    known_keys(where, table, fields)
    values = [positive(f"{where}: {field}", needed(where, table, field, "a number above 0")) for field in fields]
    return Chip(name, values[0] * 1e12, values[1] * 1e9, byte_count(f"{where}: sram_mib", values[2], 2**20, 1))


def _count(where: str, table: Mapping[str, Any], key: str) -> int:
    return count(f"{where}: {key}", needed(where, table, key, f"an integer from 1 to {MAX_CHIPS}"), MAX_CHIPS)


def _row(_: str | None, package: Package) -> tuple[Any, ...]:
    mesh = f"{package.rows} x {package.num_chips // package.rows} mesh"
    return (counted(chip.name for chip in package.chips),
            mesh if package.topology == "mesh" else package.topology,
            sum(chip.flops_per_s for chip in package.chips), int(package.sram_bytes.sum()), package.link_bytes_per_s,
            package.about)  # fmt: skip


PACKAGES = Catalog(
    "packages",
    "package",
    Package,
    {".toml": lambda path: parse_package(read_toml(path), path.stem, str(path))},
    lambda: {path.stem: path for path in sorted((CATALOG / "packages").glob("*.toml"))},
    columns=("chips", "topology", "peak_flops_per_s", "memory_bytes", "link_bytes_per_s", "about"),
    row=_row,
    notes=("The rates are chosen, not measured.",),
)
load_package, package_names = PACKAGES.load, PACKAGES.names
