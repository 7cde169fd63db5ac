"""Devices, links and clusters, and their TOML files.

A cluster file lists hosts; everything else comes from the catalog (``devices.toml``, ``links.toml``) or from tables
of the same form in the file itself::

    about = "two hosts of four V100s"

    [[hosts]]
    device = "v100_pcie_16gb"     # or: devices = ["p100_pcie_16gb", "v100_pcie_16gb"]
    count = 4
    interconnect = "pcie3_x16"    # between two devices of this host

    [[hosts]]
    device = "my_accelerator"
    count = 4
    interconnect = "pcie3_x16"

    [network]
    link = "ethernet_25g"         # between hosts

    [devices.my_accelerator]
    kind = "accelerator"
    memory_gib = 16
    memory_gb_per_s = 500
    peak_tflops = {float32 = 20}

An ordered pair of devices maps to one link. A link type says who shares it: ``pair`` (a wire of its own for each
ordered pair, as NVLink between two V100s), ``device`` (all pairs that leave a device share its port, as PCIe and
NVSwitch), ``host`` (all pairs that leave a host share its network card).
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from graphopt_gym.errors import InputError, one_line, quoted, unknown_name
from graphopt_gym.fields import byte_count, known_keys, not_negative, positive, rate
from graphopt_gym.files import read_text
from graphopt_gym.graphs.graph import DTYPES

T = TypeVar("T")
CATALOG = Path(__file__).resolve().parent / "catalog"
DEVICE_KINDS = ("gpu", "tpu", "cpu", "accelerator")
SHARING = ("pair", "device", "host")
MAX_DEVICES = 4096


@dataclass(frozen=True)
class Device:
    """One device: what it holds, and its datasheet's rates (not what a kernel reaches: see the cost model).

    Args:
        name: its name in the catalog.
        kind: one of :data:`DEVICE_KINDS`.
        memory_bytes: capacity.
        memory_bytes_per_s: peak bandwidth of that memory.
        peak_flops: peak FLOP/s by dtype, e.g. ``{"float32": 14e12}``; ``float32`` is required.
        architecture: family whose fitted efficiencies apply, e.g. ``"volta"``; empty: none.
        compute_units: multiprocessors (GPU), matrix units (TPU) or cores (CPU); 0: unknown.
        cache_bytes: last-level cache; 0: unknown.
        sources: where each number comes from, by field.
    """

    name: str
    kind: str
    memory_bytes: int
    memory_bytes_per_s: float
    peak_flops: Mapping[str, float] = field(hash=False)
    architecture: str = ""
    compute_units: int = 0
    cache_bytes: int = 0
    sources: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        where = f"device {self.name!r}"
        if self.kind not in DEVICE_KINDS:
            raise unknown_name(f"{where}: kind", self.kind, DEVICE_KINDS)
        byte_count(f"{where}: memory_bytes", positive(f"{where}: memory_bytes", self.memory_bytes))
        rate(f"{where}: memory_bytes_per_s", self.memory_bytes_per_s)
        not_negative(f"{where}: compute_units", self.compute_units)
        not_negative(f"{where}: cache_bytes", self.cache_bytes)
        if "float32" not in self.peak_flops:
            raise InputError(f"{where}: peak_flops has no 'float32'; give the float32 peak, e.g. {{float32 = 14}}")
        for dtype, value in self.peak_flops.items():
            if dtype not in DTYPES:
                raise unknown_name(f"{where}: peak_flops dtype", dtype, DTYPES)
            rate(f"{where}: peak_flops.{dtype}", value)

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s in a dtype, or that of float32 where the datasheet has none."""
        return self.peak_flops.get(dtype, self.peak_flops["float32"])


@dataclass(frozen=True)
class Link:
    """A wire that carries one transfer at a time, in ``latency_s + bytes / bytes_per_s``.

    Args:
        name: e.g. ``"pcie3_x16:2"``, the type and whose it is.
        latency_s: seconds before the first byte arrives.
        bytes_per_s: effective bandwidth, one direction.
        type: its name in the catalog.
    """

    name: str
    latency_s: float
    bytes_per_s: float
    type: str = ""

    def __post_init__(self) -> None:
        if not_negative(f"link {self.name!r}: latency_s", self.latency_s) > 1e9:
            raise InputError(f"link {self.name!r}: latency_s is {self.latency_s}; give at most 1e9")
        rate(f"link {self.name!r}: bytes_per_s", self.bytes_per_s)


@dataclass(frozen=True)
class LinkType:
    """A link in the catalog, from which a cluster makes its links.

    ``bytes_per_s`` is the peak of one direction times ``efficiency``, the share of it that transfers reach.
    """

    name: str
    latency_s: float
    peak_bytes_per_s: float
    efficiency: float = 1.0
    shared_by: str = "pair"
    sources: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False, repr=False)

    @property
    def bytes_per_s(self) -> float:
        return self.peak_bytes_per_s * self.efficiency

    def between(self, owner: str) -> Link:
        """The link of this type that belongs to ``owner``."""
        return Link(f"{self.name}:{owner}", self.latency_s, self.bytes_per_s, self.name)


@dataclass(frozen=True, eq=False)
class Cluster:
    """Devices and the links between them. D devices, L links.

    Args:
        name: what the cluster is called.
        devices: D of them.
        links: L of them.
        link_of: int32 [D, D], the link from each device (row) to each other (column); -1 on the diagonal. Several
            pairs may share a link.
        hosts: the host of each device, numbered from 0.
        about: one line on what it stands for.
    """

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    link_of: np.ndarray
    hosts: tuple[int, ...]
    about: str = ""

    def __post_init__(self) -> None:
        where = f"cluster {self.name!r}"
        count = len(self.devices)
        if count == 0:
            raise InputError(f"{where} has zero devices; give at least one")
        link_of = np.array(self.link_of, order="C")
        if link_of.shape != (count, count) or link_of.dtype.kind not in "iu":
            raise InputError(
                f"{where}: link_of is {link_of.dtype} {link_of.shape}, expected integers ({count}, {count})"
            )
        link_of = link_of.astype(np.int32)
        if (np.diag(link_of) != -1).any():
            raise InputError(f"{where}: link_of must be -1 on the diagonal; a device has no link to itself")
        off_diagonal = link_of[~np.eye(count, dtype=bool)]
        if off_diagonal.size and (off_diagonal.min() < 0 or off_diagonal.max() >= len(self.links)):
            raise InputError(f"{where}: link_of names links outside 0 to {len(self.links) - 1}")
        if len(self.hosts) != count:
            raise InputError(f"{where}: hosts has {len(self.hosts)} entries for {count} devices")
        link_of.flags.writeable = False
        object.__setattr__(self, "link_of", link_of)

    @property
    def num_devices(self) -> int:
        return len(self.devices)

    @property
    def size(self) -> str:
        """How large it is, for people."""
        return f"{self.num_devices} devices"

    @property
    def num_links(self) -> int:
        return len(self.links)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a cost depends on (not the cluster's or the links' names)."""
        facts = {
            "devices": [
                [d.name, d.kind, d.architecture, d.memory_bytes, d.memory_bytes_per_s, sorted(d.peak_flops.items()),
                 d.compute_units, d.cache_bytes]
                for d in self.devices
            ],
            "links": [[link.latency_s, link.bytes_per_s] for link in self.links],
            "link_of": self.link_of.tolist(),
            "hosts": list(self.hosts),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @cached_property
    def interchangeable(self) -> np.ndarray:
        """int64 [D]: a class for each device; devices of one class can change places and nothing else changes.

        Two devices that are alike, whose links are alike and shared alike. Classes are numbered by their first device.
        """
        specs = [replace(one, name="") for one in self.devices]
        rates = [(link.latency_s, link.bytes_per_s) for link in self.links]
        others = ~np.eye(self.num_devices, dtype=bool)
        names = np.arange(self.num_devices)
        kind = names.copy()
        for device in range(self.num_devices):
            for other in np.unique(kind[:device]):
                swap = names.copy()
                swap[[device, other]] = swap[[other, device]]
                swapped = self.link_of[np.ix_(swap, swap)]
                pairs = set(zip(self.link_of[others].tolist(), swapped[others].tolist(), strict=True))
                one_to_one = len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
                alike = one_to_one and all(rates[a] == rates[b] for a, b in pairs)
                if alike and specs[device] == specs[other]:
                    kind[device] = other
                    break
        return np.unique(kind, return_inverse=True)[1]

    def __repr__(self) -> str:
        return f"Cluster({self.name!r}, devices={self.num_devices}, links={self.num_links})"


def catalog_names(folder: str) -> list[str]:
    """Names of the files in a folder of the catalog, sorted."""
    return sorted(path.stem for path in (CATALOG / folder).glob("*.toml"))


def from_catalog(
    what: str, folder: str, given: str | os.PathLike[str], parse: Callable[[Mapping[str, Any], str, str], T]
) -> T:
    """What a name in a folder of the catalog, or the path of a TOML file (which ends in ``.toml``), stands for.

    Args:
        what: the kind of thing, for error messages.
        parse: makes it of a file's table, its name, and what an error message begins with.

    Raises:
        InputError: an unknown name, a file that cannot be read, or what ``parse`` finds wrong.
    """
    text = os.fspath(given)
    if text.endswith(".toml"):
        return parse(_read_toml(Path(text)), Path(text).stem, text)
    if text not in catalog_names(folder):
        raise unknown_name(what, text, catalog_names(folder), "(a file's name must end in .toml)")
    return _catalog_entry(folder, text, parse)


def load_cluster(cluster: str | os.PathLike[str] | Cluster) -> Cluster:
    """A cluster by its name in the catalog or by the path of a TOML file (which ends in ``.toml``); a Cluster as is.

    Raises:
        InputError: an unknown name, a file that cannot be read, or one line on what is wrong in it.
    """
    if isinstance(cluster, Cluster):
        return cluster
    return from_catalog("cluster", "clusters", cluster, parse_cluster)


def cluster_names() -> list[str]:
    """Names of the catalog's clusters, sorted."""
    return catalog_names("clusters")


def load_device(device: str | Device) -> Device:
    """A device of the catalog by name; a Device as is.

    Raises:
        InputError: an unknown name, with the nearest known one.
    """
    if isinstance(device, Device):
        return device
    devices = _catalog_devices()
    if device not in devices:
        raise unknown_name("device", device, devices)
    return devices[device]


def device_names() -> list[str]:
    """Names of the catalog's devices, sorted."""
    return sorted(_catalog_devices())


def load_link(link: str | LinkType) -> LinkType:
    """A link type of the catalog by name; a LinkType as is.

    Raises:
        InputError: an unknown name, with the nearest known one.
    """
    if isinstance(link, LinkType):
        return link
    links = _catalog_links()
    if link not in links:
        raise unknown_name("link", link, links)
    return links[link]


def link_names() -> list[str]:
    """Names of the catalog's link types, sorted."""
    return sorted(_catalog_links())


def parse_cluster(table: Mapping[str, Any], name: str, where: str) -> Cluster:
    """A cluster from the content of a cluster file (see the module's text).

    Args:
        table: the parsed TOML.
        name: what to call it where the file gives no ``name``.
        where: what an error message begins with, e.g. the file's path.

    Raises:
        InputError: one line naming the field, the value and the fix.
    """
    known_keys(where, table, ("name", "about", "hosts", "network", "devices", "links"))
    devices = _catalog_devices() | _table_of(where, table, "devices", _device)
    links = _catalog_links() | _table_of(where, table, "links", _link_type)

    def named(kind: str, field_where: str, known: Mapping[str, Any], value: Any) -> Any:
        if not isinstance(value, str):
            raise InputError(f"{field_where}: {quoted(value)} is not the name of a {kind}")
        if value not in known:
            raise unknown_name(f"{field_where}: {kind}", value, known)
        return known[value]

    hosts = table.get("hosts")
    if not isinstance(hosts, list) or not hosts:
        raise InputError(f"{where}: 'hosts' is missing; give at least one [[hosts]] table with 'device' and 'count'")
    host_devices: list[list[Device]] = []
    interconnects: list[LinkType | None] = []
    for index, host in enumerate(hosts):
        at = f"{where}: hosts[{index}]"
        if not isinstance(host, Mapping):
            raise InputError(f"{at} is {quoted(host)}; expected a [[hosts]] table")
        known_keys(at, host, ("device", "count", "devices", "interconnect"))
        if ("device" in host) == ("devices" in host):
            raise InputError(f"{at}: give either 'device' (with 'count') or 'devices' (a list of names)")
        if "device" in host:
            count = host.get("count", 1)
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_DEVICES:
                raise InputError(f"{at}: count is {quoted(count)}; give an integer from 1 to {MAX_DEVICES}")
            members = [named("device", f"{at}.device", devices, host["device"])] * count
        else:
            given = host["devices"]
            if "count" in host:
                raise InputError(f"{at}: 'count' goes with 'device'; list a device several times in 'devices'")
            if not isinstance(given, list) or not given:
                raise InputError(f"{at}: devices is {quoted(given)}; give a list of at least one name")
            members = [named("device", f"{at}.devices", devices, value) for value in given]
        link = named("link", f"{at}.interconnect", links, host["interconnect"]) if "interconnect" in host else None
        if len(members) > 1 and link is None:
            raise InputError(f"{at}: 'interconnect' is missing; name the link between its devices, e.g. 'pcie3_x16'")
        host_devices.append(members)
        interconnects.append(link)

    network = None
    if "network" in table:
        at = f"{where}: network"
        if not isinstance(table["network"], Mapping):
            raise InputError(f"{at} is {quoted(table['network'])}; expected a [network] table with 'link'")
        known_keys(at, table["network"], ("link",))
        if "link" not in table["network"]:
            raise InputError(f"{at}: 'link' is missing; name the link between hosts, e.g. 'ethernet_25g'")
        network = named("link", f"{at}.link", links, table["network"]["link"])
    if len(hosts) > 1 and network is None:
        raise InputError(f"{where}: 'network' is missing; {len(hosts)} hosts need one, e.g. link = 'ethernet_25g'")
    if sum(map(len, host_devices)) > MAX_DEVICES:
        raise InputError(f"{where}: {sum(map(len, host_devices))} devices; the most is {MAX_DEVICES}")
    return _connect(
        str(table.get("name", name)), str(table.get("about", "")), host_devices, interconnects, network
    )  # fmt: skip


def _connect(
    name: str,
    about: str,
    host_devices: list[list[Device]],
    interconnects: list[LinkType | None],
    network: LinkType | None,
) -> Cluster:
    hosts = [host for host, members in enumerate(host_devices) for _ in members]
    count = len(hosts)
    links: dict[tuple[LinkType, str], int] = {}
    link_of = np.full((count, count), -1, np.int32)
    for source in range(count):
        for target in range(count):
            if source == target:
                continue
            inside = hosts[source] == hosts[target]
            link = interconnects[hosts[source]] if inside else network
            assert link is not None
            owner = {"pair": f"{source}->{target}", "device": f"{source}", "host": f"host{hosts[source]}"}
            key = (link, owner[link.shared_by])
            link_of[source, target] = links.setdefault(key, len(links))
    return Cluster(
        name,
        tuple(device for members in host_devices for device in members),
        tuple(link.between(owner) for link, owner in links),
        link_of,
        tuple(hosts),
        about,
    )


# --- TOML -----------------------------------------------------------------------------------------------------------


def _device(where: str, name: str, table: Mapping[str, Any]) -> Device:
    optional = ("architecture", "compute_units", "cache_mib", "sources")
    known_keys(where, table, ("kind", "memory_gib", "memory_gb_per_s", "peak_tflops", *optional))
    for required in ("kind", "memory_gib", "memory_gb_per_s", "peak_tflops"):
        if required not in table:
            raise InputError(f"{where}: '{required}' is missing")
    if not isinstance(table["kind"], str) or table["kind"] not in DEVICE_KINDS:
        raise unknown_name(f"{where}: kind", table["kind"], DEVICE_KINDS)
    peaks = table["peak_tflops"]
    if not isinstance(peaks, Mapping) or "float32" not in peaks:
        raise InputError(
            f"{where}: peak_tflops is {quoted(peaks)}; give a table with at least float32, e.g. {{float32 = 14}}"
        )
    for dtype in peaks:
        if dtype not in DTYPES:
            raise unknown_name(f"{where}: peak_tflops dtype", dtype, DTYPES)
    architecture = table.get("architecture", "")
    if not isinstance(architecture, str):
        raise InputError(f"{where}: architecture is {quoted(architecture)}; give a name in quotes")
    units = table.get("compute_units", 0)
    if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units < 2**31:
        raise InputError(f"{where}: compute_units is {quoted(units)}; give an integer, 0 where unknown")
    return Device(
        name=name,
        kind=table["kind"],
        memory_bytes=byte_count(f"{where}: memory_gib", table["memory_gib"], 2**30, 1),
        memory_bytes_per_s=positive(f"{where}: memory_gb_per_s", table["memory_gb_per_s"]) * 1e9,
        peak_flops={dtype: positive(f"{where}: peak_tflops.{dtype}", value) * 1e12 for dtype, value in peaks.items()},
        architecture=architecture,
        compute_units=units,
        cache_bytes=byte_count(f"{where}: cache_mib", table.get("cache_mib", 0), 2**20),
        sources=_sources(where, table),
    )


def _link_type(where: str, name: str, table: Mapping[str, Any]) -> LinkType:
    known_keys(where, table, ("latency_us", "gb_per_s", "efficiency", "shared_by", "sources"))
    for required in ("latency_us", "gb_per_s"):
        if required not in table:
            raise InputError(f"{where}: '{required}' is missing")
    efficiency = positive(f"{where}: efficiency", table.get("efficiency", 1.0))
    if efficiency > 1:
        raise InputError(f"{where}: efficiency is {efficiency}; give a share of gb_per_s, above 0 and at most 1")
    shared_by = table.get("shared_by", "pair")
    if shared_by not in SHARING:
        raise unknown_name(f"{where}: shared_by", shared_by, SHARING)
    return LinkType(
        name=name,
        latency_s=not_negative(f"{where}: latency_us", table["latency_us"]) / 1e6,
        peak_bytes_per_s=positive(f"{where}: gb_per_s", table["gb_per_s"]) * 1e9,
        efficiency=efficiency,
        shared_by=shared_by,
        sources=_sources(where, table),
    )


def _sources(where: str, table: Mapping[str, Any]) -> dict[str, str]:
    sources = table.get("sources", {})
    if not isinstance(sources, Mapping) or not all(isinstance(value, str) for value in sources.values()):
        raise InputError(f"{where}: sources is {quoted(sources)}; give a table of texts by field")
    known_keys(f"{where}: sources", sources, tuple(key for key in table if key != "sources"))
    return dict(sources)


def _table_of(where: str, table: Mapping[str, Any], key: str, parse: Any) -> dict[str, Any]:
    entries = table.get(key, {})
    if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
        raise InputError(f"{where}: '{key}' must hold tables, e.g. [{key}.my_{key[:-1]}]")
    return {name: parse(f"{where}: {key}.{name}", name, entry) for name, entry in entries.items()}


def _read_toml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, or an integer of thousands of digits
        raise InputError(f"{path}: not TOML: {one_line(error)}") from error


@cache
def _catalog_devices() -> dict[str, Device]:
    path = CATALOG / "devices.toml"
    return {name: _device(f"{path.name}: {name}", name, table) for name, table in _read_toml(path).items()}


@cache
def _catalog_links() -> dict[str, LinkType]:
    path = CATALOG / "links.toml"
    return {name: _link_type(f"{path.name}: {name}", name, table) for name, table in _read_toml(path).items()}


@cache
def _catalog_entry(folder: str, name: str, parse: Callable[[Mapping[str, Any], str, str], T]) -> T:
    path = CATALOG / folder / f"{name}.toml"
    return parse(_read_toml(path), name, path.name)
