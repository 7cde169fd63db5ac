"""Machines of islands: cores on hosts, the links between them, what their control plane costs, and their TOML files.

::

    about = "four islands of 4 hosts with 8 TPU v3 cores each"
    core = "tpu_v3_core"          # of the catalog of devices

    [[islands]]
    count = 4                     # so many alike; 1 where left out
    hosts = 4
    cores = 8                     # of each host

    [links]                       # of the catalog of links
    ici = "ici_v3"                # between the cores of an island
    collective = "torus"          # how collectives run on it: "torus", "ring" or "tree"
    pcie = "pcie3_x16"            # between a core and its host
    dcn = "ethernet_100g"         # between hosts
    nics = 1                      # cards of a host on the data-centre network

    [control]                     # microseconds; see ControlPlane
    client_call_us = 100
    ...
    [control.sources]
    client_call_us = "chosen: ..."

An *island* is a set of cores that are joined tightly (TPUs by their inter-core interconnect, ICI; the GPUs of a node by
NVLink). Hosts, and so islands, talk over the data-centre network (DCN). Cores are numbered host by host, hosts island
by island. The control plane is that of Pathways (Barham et al., Pathways, MLSys 2022, §4).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from graphopt_gym.catalog import Catalog, read_toml, stored_whole
from graphopt_gym.errors import InputError, quoted, unknown_name
from graphopt_gym.fields import choice, count, known_keys, needed, not_negative, plain, texts
from graphopt_gym.hardware.cluster import CATALOG, DEVICES, LINKS, Device, Link
from graphopt_gym.hardware.collectives import ALGORITHMS

MAX_CORES = 1_048_576

MOST_S = 1e3  # that one step of the control plane may take


@dataclass(frozen=True)
class ControlPlane:
    """What it takes to get a computation onto its cores: seconds of processors that each do one thing at a time.

    A program reaches its cores in *calls*, each of one computation or of many. With a single controller a call goes
    through its client, then through the controller of that client, then every computation of it through the scheduler
    of its island, then through the executors of its hosts. With many controllers every host runs the client's program
    itself. Messages between these take the latency of the DCN, launches on a core that of PCIe.

    Args:
        client_call_s: of the client, a call.
        controller_call_s: of the controller, a call.
        controller_core_s: of the controller, a call and core that the call's computations run on.
        controller_node_s: of the controller, a computation.
        scheduler_s: of an island's scheduler, a computation.
        host_s: of a host's executor, a computation: buffers and launch are prepared.
        enqueue_s: of a host's executor, a computation and core of that host.
        python_call_s: of a host's executor, a call, where every host is a controller.
        sources: where each number comes from, by field: read, fitted (on what) or chosen.
    """

    client_call_s: float = 0.0
    controller_call_s: float = 0.0
    controller_core_s: float = 0.0
    controller_node_s: float = 0.0
    scheduler_s: float = 0.0
    host_s: float = 0.0
    enqueue_s: float = 0.0
    python_call_s: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in COSTS:
            if not_negative(f"control: {name}", getattr(self, name)) > MOST_S:
                raise InputError(f"control: {name} is {getattr(self, name)}; give at most {MOST_S:g} seconds")


COSTS = tuple(one.name for one in fields(ControlPlane) if one.name != "sources")


@dataclass(frozen=True)
class Island:
    """Hosts alike, whose cores are joined tightly.

    Args:
        hosts: how many.
        cores: of each host.
    """

    hosts: int
    cores: int

    def __post_init__(self) -> None:
        count("island: hosts", self.hosts, MAX_CORES)
        count("island: cores", self.cores, MAX_CORES)

    @property
    def num_cores(self) -> int:
        return self.hosts * self.cores


@dataclass(frozen=True, eq=False)
class Machine:
    """Islands of cores. N cores, H hosts, I islands.

    Args:
        name: what the machine is called.
        core: what each core is; its memory is that core's HBM.
        islands: I of them.
        pcie: between a core and its host, each way.
        ici: between the cores of an island: what each core sends and receives at; None where islands have one core.
        dcn: between hosts: what each host sends and receives at; None where there is one host.
        control: what the control plane costs.
        collective: how collectives run inside an island, one of :data:`ALGORITHMS`.
        about: one line on what it stands for.

    Raises:
        InputError: an island of several cores without ``ici``, several hosts without ``dcn``, too many cores.
    """

    name: str
    core: Device
    islands: tuple[Island, ...]
    pcie: Link
    ici: Link | None = None
    dcn: Link | None = None
    control: ControlPlane = ControlPlane()
    collective: str = "torus"
    about: str = ""

    def __post_init__(self) -> None:
        where = f"machine {self.name!r}"
        if not self.islands:
            raise InputError(f"{where} has zero islands; give at least one")
        if self.num_cores > MAX_CORES:
            raise InputError(f"{where} has {self.num_cores} cores; the most is {MAX_CORES}")
        choice(f"{where}: collective", self.collective, ALGORITHMS)
        for number, island in enumerate(self.islands):
            if island.num_cores > 1 and self.ici is None:
                raise InputError(
                    f"{where}: island {number} has {island.num_cores} cores and no link between them; give ici, "
                    "e.g. ici = 'ici_v3'"
                )
        if self.num_hosts > 1 and self.dcn is None:
            raise InputError(
                f"{where}: {len(self.islands)} islands of {self.num_hosts} hosts have no link between hosts; give dcn, "
                "e.g. dcn = 'ethernet_100g'"
            )

    @property
    def num_islands(self) -> int:
        return len(self.islands)

    @property
    def num_hosts(self) -> int:
        return sum(island.hosts for island in self.islands)

    @property
    def num_cores(self) -> int:
        return sum(island.num_cores for island in self.islands)

    @property
    def size(self) -> str:
        """How large it is, for people."""
        return f"{self.num_cores} cores"

    @property
    def hbm_bytes(self) -> int:
        """Of each core."""
        return self.core.memory_bytes

    @cached_property
    def first_core(self) -> np.ndarray:
        """int64 [I + 1]: the first core of each island, and N."""
        return np.cumsum([0, *(island.num_cores for island in self.islands)])

    @cached_property
    def core_island(self) -> np.ndarray:
        """int64 [N]"""
        return np.repeat(np.arange(self.num_islands), np.diff(self.first_core))

    @cached_property
    def core_host(self) -> np.ndarray:
        """int64 [N]"""
        sizes = np.repeat([one.cores for one in self.islands], [one.hosts for one in self.islands])
        return np.repeat(np.arange(self.num_hosts), sizes)

    def resized(self, hosts: int) -> Machine:
        """The same with so many hosts in each island.

        Raises:
            InputError: no whole number, or too many.
        """
        count("hosts", hosts, MAX_CORES)
        return replace(self, islands=tuple(replace(one, hosts=hosts) for one in self.islands))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a cost depends on (not the names)."""
        links = [None if one is None else [one.latency_s, one.bytes_per_s] for one in (self.ici, self.pcie, self.dcn)]
        facts = [
            [self.core.memory_bytes, self.core.memory_bytes_per_s, sorted(self.core.peak_flops.items())],
            [[one.hosts, one.cores] for one in self.islands],
            [*links, self.collective],
            [getattr(self.control, name) for name in COSTS],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The whole of it in JSON's types, as a solution stores a machine that is in no catalog."""
        links = {name: getattr(self, name) for name in ("ici", "pcie", "dcn")}
        core = {one.name: plain(getattr(self.core, one.name)) for one in fields(self.core) if one.name != "sources"}
        return {
            "name": self.name,
            "about": self.about,
            "collective": self.collective,
            "core": core,
            "islands": [[one.hosts, one.cores] for one in self.islands],
            "control": {name: float(getattr(self.control, name)) for name in COSTS},
            **{
                name: None if one is None else [one.name, float(one.latency_s), float(one.bytes_per_s), one.type]
                for name, one in links.items()
            },
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Machine:
        """A machine from what :meth:`to_json` gives.

        Raises:
            InputError: something else, or of a release that knows more.
        """
        with stored_whole("machine"):
            links = {name: None if given[name] is None else Link(*given[name]) for name in ("ici", "pcie", "dcn")}
            if links["pcie"] is None:
                raise KeyError("pcie")
            others = {key: value for key, value in given.items() if key not in ("core", "islands", "control", *links)}
            return cls(
                core=Device(**given["core"]),
                islands=tuple(Island(*one) for one in given["islands"]),
                control=ControlPlane(**given["control"]),
                **links,  # type: ignore[arg-type]
                **others,
            )

    def __repr__(self) -> str:
        return f"Machine({self.name!r}, islands={self.num_islands}, hosts={self.num_hosts}, cores={self.num_cores})"


def parse_machine(table: Mapping[str, Any], name: str, where: str) -> Machine:
    """A machine from the content of a machine file (see the module's text).

    Args:
        table: the parsed TOML.
        name: what to call it where the file gives no ``name``.
        where: what an error message begins with, e.g. the file's path.

    Raises:
        InputError: one line naming the field, the value and the fix.
    """
    known_keys(where, table, ("name", "about", "core", "islands", "links", "control"))
    texts(where, table, ("name", "about"))
    core = _named(f"{where}: core", DEVICES, needed(where, table, "core", "the name of a device, e.g. 'tpu_v3_core'"))
    listed = table.get("islands")
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{where}: 'islands' is missing; give at least one [[islands]] table with hosts and cores")
    islands: list[Island] = []
    for index, one in enumerate(listed):
        at = f"{where}: islands[{index}]"
        if not isinstance(one, Mapping):
            raise InputError(f"{at} is {quoted(one)}; expected an [[islands]] table")
        known_keys(at, one, ("count", "hosts", "cores"))
        hosts, cores = (
            count(f"{at}: {key}", needed(at, one, key, f"an integer from 1 to {MAX_CORES}"), MAX_CORES)
            for key in ("hosts", "cores")
        )
        islands += [Island(hosts, cores)] * count(f"{at}: count", one.get("count", 1), MAX_CORES)
    at = f"{where}: links"
    links = needed(where, table, "links", "a table [links] with pcie, ici and dcn")
    if not isinstance(links, Mapping):
        raise InputError(f"{at} is {quoted(links)}; give a table [links] with pcie, ici and dcn")
    known_keys(at, links, ("ici", "pcie", "dcn", "collective", "nics"))
    needed(at, links, "pcie", "the link between a core and its host, e.g. 'pcie3_x16'")
    found = {
        key: _named(f"{at}: {key}", LINKS, links[key]).between(key) for key in ("ici", "pcie", "dcn") if key in links
    }
    cards = count(f"{at}: nics", links.get("nics", 1), 64)
    if "dcn" in found:
        found["dcn"] = replace(found["dcn"], bytes_per_s=found["dcn"].bytes_per_s * cards)
    return Machine(
        name=table.get("name", name),
        core=core,
        islands=tuple(islands),
        control=_control(f"{where}: control", table.get("control", {})),
        collective=choice(f"{at}: collective", links.get("collective", "torus"), ALGORITHMS),
        about=table.get("about", ""),
        **found,
    )


def _named(where: str, catalog: Catalog[Any], value: Any) -> Any:
    if not isinstance(value, str):
        raise InputError(f"{where}: {quoted(value)} is not the name of a {catalog.noun}")
    if value not in catalog:
        raise unknown_name(f"{where}: {catalog.noun}", value, catalog.names())
    return catalog.load(value)


def _control(where: str, table: Any) -> ControlPlane:
    if not isinstance(table, Mapping):
        raise InputError(f"{where} is {quoted(table)}; give a table [control] of microseconds")
    known = {f"{name.removesuffix('_s')}_us": name for name in COSTS}
    known_keys(where, table, (*known, "sources"))
    sources = table.get("sources", {})
    if not isinstance(sources, Mapping) or not all(isinstance(value, str) for value in sources.values()):
        raise InputError(f"{where}: sources is {quoted(sources)}; give a table of texts by field")
    known_keys(f"{where}: sources", sources, tuple(known))
    costs = {own: not_negative(f"{where}: {key}", table[key]) / 1e6 for key, own in known.items() if key in table}
    return ControlPlane(**costs, sources={known[key]: value for key, value in sources.items()})


def _row(_: str | None, machine: Machine) -> tuple[Any, ...]:
    return (machine.num_islands, machine.num_hosts, machine.num_cores, machine.core.name, machine.hbm_bytes,
            *(None if one is None else one.bytes_per_s for one in (machine.ici, machine.pcie, machine.dcn)),
            machine.about)  # fmt: skip


MACHINES = Catalog(
    "machines",
    "machine",
    Machine,
    {".toml": lambda path: parse_machine(read_toml(path), path.stem, str(path))},
    lambda: {path.stem: path for path in sorted((CATALOG / "machines").glob("*.toml"))},
    columns=("islands", "hosts", "cores", "core", "core_memory_bytes", "ici_bytes_per_s", "pcie_bytes_per_s",
             "dcn_bytes_per_s", "about"),
    row=_row,
)  # fmt: skip
load_machine, machine_names = MACHINES.load, MACHINES.names
