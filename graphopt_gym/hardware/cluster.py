"""Devices, links and clusters, and their TOML files.

A cluster file lists hosts; everything else comes from the catalogs of devices and links (``devices.toml``,
``links.toml``, the user's own) or from tables of the same form in the file itself::

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
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from graphopt_gym.catalog import Catalog, read_toml, stored_whole
from graphopt_gym.errors import InputError, quoted, unknown_name
from graphopt_gym.fields import (
    byte_count,
    choice,
    count,
    known_keys,
    needed,
    not_negative,
    plain,
    positive,
    rate,
    texts,
)
from graphopt_gym.generator import Generator
from graphopt_gym.graphs.graph import DTYPES

T = TypeVar("T")
CATALOG = Path(__file__).resolve().parent / "catalog"
DEVICE_KINDS = ("gpu", "tpu", "cpu", "accelerator")
SHARING = ("pair", "device", "host")
MAX_DEVICES = 4096
TFLOAT32 = "tfloat32"  # a rate, not a dtype: float32 operands rounded to 10 bits of mantissa on tensor cores
RATES = (*DTYPES, TFLOAT32)
# What a device may be called to be: the four that were measured, those priced by analogy to them, and "ideal", which
# reaches its datasheet without launch overhead.
ARCHITECTURES = (
    "pascal", "volta", "turing", "ampere", "ampere_ga10x", "ada", "hopper", "cdna2", "cdna3",
    "tpu_v3", "tpu_v4", "tpu_v5e", "broadwell", "ideal",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """One device: what it holds, and its datasheet's rates (not what a kernel reaches: see the cost model).

    Args:
        name: its name in the catalog.
        kind: one of :data:`DEVICE_KINDS`.
        memory_bytes: capacity.
        memory_bytes_per_s: peak bandwidth of that memory.
        peak_flops: peak FLOP/s by dtype, e.g. ``{"float32": 14e12}``, and ``tfloat32`` where there are such tensor
            cores; ``float32`` is required.
        architecture: family whose fitted efficiencies apply, one of :data:`ARCHITECTURES`, e.g. ``"volta"``; empty:
            none.
        compute_units: multiprocessors (GPU), matrix units (TPU) or cores (CPU); 0: unknown.
        cache_bytes: last-level cache; 0: unknown.
        board_watts: the power that the board may draw for long; 0: unknown.
        fitted: parameters of the cost model that hold for this device in place of its architecture's, as ``graphopt
            calibrate`` writes them; empty: none.
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
    board_watts: float = 0.0
    fitted: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        where = f"device {self.name!r}"
        if self.kind not in DEVICE_KINDS:
            raise unknown_name(f"{where}: kind", self.kind, DEVICE_KINDS)
        byte_count(f"{where}: memory_bytes", positive(f"{where}: memory_bytes", self.memory_bytes))
        rate(f"{where}: memory_bytes_per_s", self.memory_bytes_per_s)
        not_negative(f"{where}: compute_units", self.compute_units)
        not_negative(f"{where}: cache_bytes", self.cache_bytes)
        not_negative(f"{where}: board_watts", self.board_watts)
        if self.architecture:
            choice(f"{where}: architecture", self.architecture, ARCHITECTURES)
        if "float32" not in self.peak_flops:
            raise InputError(f"{where}: peak_flops has no 'float32'; give the float32 peak, e.g. {{float32 = 14}}")
        for dtype, value in self.peak_flops.items():
            if dtype not in RATES:
                raise unknown_name(f"{where}: peak_flops dtype", dtype, RATES)
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
        """SHA-256 over what a cost depends on (not the cluster's or the links' names).

        What only op times depend on, power and fitted parameters, is left out: solutions keep a hash of those times.
        """
        facts = {
            "devices": [
                [d.name, d.kind, d.architecture, d.memory_bytes, d.memory_bytes_per_s,
                 sorted((dtype, peak) for dtype, peak in d.peak_flops.items() if dtype != TFLOAT32),
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

    def to_json(self) -> dict[str, Any]:
        """The whole of it in JSON's types, as a solution stores a cluster that is in no catalog."""
        kinds = list(dict.fromkeys(self.devices))
        return {
            "name": self.name,
            "about": self.about,
            "device_types": [
                {one.name: plain(getattr(device, one.name)) for one in fields(device) if one.name != "sources"}
                for device in kinds
            ],
            "devices": [kinds.index(device) for device in self.devices],
            "links": [[link.name, float(link.latency_s), float(link.bytes_per_s), link.type] for link in self.links],
            "link_of": self.link_of.tolist(),
            "hosts": [int(host) for host in self.hosts],
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Cluster:
        """A cluster from what :meth:`to_json` gives.

        Raises:
            InputError: something else, or of a release that knows more.
        """
        with stored_whole("cluster"):
            kinds = [Device(**one) for one in given["device_types"]]
            return cls(
                str(given["name"]),
                tuple(kinds[number] for number in given["devices"]),
                tuple(Link(*one) for one in given["links"]),
                np.array(given["link_of"], np.int64).reshape(len(given["devices"]), -1),
                tuple(int(host) for host in given["hosts"]),
                str(given.get("about", "")),
            )

    @classmethod
    def of(cls, device: Device) -> Cluster:
        """One device alone."""
        return cls(device.name, (device,), (), np.full((1, 1), -1), (0,), f"one {device.name}")

    def __repr__(self) -> str:
        return f"Cluster({self.name!r}, devices={self.num_devices}, links={self.num_links})"


def parse_cluster(table: Mapping[str, Any], name: str, where: str, shipped: bool = False) -> Cluster:
    """A cluster from the content of a cluster file (see the module's text).

    Args:
        table: the parsed TOML.
        name: what to call it where the file gives no ``name``.
        where: what an error message begins with, e.g. the file's path.
        shipped: names only what is shipped, whatever the user calls by the same name.

    Raises:
        InputError: one line naming the field, the value and the fix.
    """
    known_keys(where, table, ("name", "about", "hosts", "network", "devices", "links"))
    texts(where, table, ("name", "about"))
    devices = _table_of(where, table, "devices", _device)
    links = _table_of(where, table, "links", _link_type)

    def named(at: str, own: Mapping[str, T], catalog: Catalog[T], value: Any) -> T:
        if not isinstance(value, str):
            raise InputError(f"{at}: {quoted(value)} is not the name of a {catalog.noun}")
        if value in own:
            return own[value]
        if value not in catalog:
            raise unknown_name(f"{at}: {catalog.noun}", value, [*own, *catalog.names()])
        return catalog.load_shipped(value) if shipped else catalog.load(value)

    hosts = table.get("hosts")
    if not isinstance(hosts, list) or not hosts:
        raise InputError(f"{where}: 'hosts' is missing; give at least one [[hosts]] table with 'device' and 'count'")
    found: list[tuple[int, Device, LinkType | None]] = []  # host, device, the link to others of its host
    for index, host in enumerate(hosts):
        at = f"{where}: hosts[{index}]"
        if not isinstance(host, Mapping):
            raise InputError(f"{at} is {quoted(host)}; expected a [[hosts]] table")
        known_keys(at, host, ("device", "count", "devices", "interconnect"))
        if ("device" in host) == ("devices" in host):
            raise InputError(f"{at}: give either 'device' (with 'count') or 'devices' (a list of names)")
        if "device" in host:
            members = [named(f"{at}.device", devices, DEVICES, host["device"])]
            members *= count(f"{at}: count", host.get("count", 1), MAX_DEVICES)
        else:
            given = host["devices"]
            if "count" in host:
                raise InputError(f"{at}: 'count' goes with 'device'; list a device several times in 'devices'")
            if not isinstance(given, list) or not given:
                raise InputError(f"{at}: devices is {quoted(given)}; give a list of at least one name")
            members = [named(f"{at}.devices", devices, DEVICES, value) for value in given]
        link = named(f"{at}.interconnect", links, LINKS, host["interconnect"]) if "interconnect" in host else None
        if len(members) > 1 and link is None:
            raise InputError(f"{at}: 'interconnect' is missing; name the link between its devices, e.g. 'pcie3_x16'")
        found += [(index, device, link) for device in members]

    network = None
    if "network" in table:
        at = f"{where}: network"
        if not isinstance(table["network"], Mapping):
            raise InputError(f"{at} is {quoted(table['network'])}; expected a [network] table with 'link'")
        known_keys(at, table["network"], ("link",))
        link = needed(at, table["network"], "link", "the name of the link between hosts, e.g. 'ethernet_25g'")
        network = named(f"{at}.link", links, LINKS, link)
    if len(hosts) > 1 and network is None:
        raise InputError(f"{where}: 'network' is missing; {len(hosts)} hosts need one, e.g. link = 'ethernet_25g'")
    if len(found) > MAX_DEVICES:
        raise InputError(f"{where}: {len(found)} devices; the most is {MAX_DEVICES}")

    used: dict[tuple[LinkType, str], int] = {}
    link_of = np.full((len(found), len(found)), -1, np.int32)
    for source, (host, _, interconnect) in enumerate(found):
        for target, (other, _, _) in enumerate(found):
            if source != target:
                link = interconnect if host == other else network
                assert link is not None
                owner = {"pair": f"{source}->{target}", "device": f"{source}", "host": f"host{host}"}
                link_of[source, target] = used.setdefault((link, owner[link.shared_by]), len(used))
    return Cluster(
        table.get("name", name),
        tuple(device for _, device, _ in found),
        tuple(link.between(owner) for link, owner in used),
        link_of,
        tuple(host for host, _, _ in found),
        table.get("about", ""),
    )


# --- TOML -----------------------------------------------------------------------------------------------------------


def _device(where: str, name: str, table: Mapping[str, Any]) -> Device:
    optional = ("architecture", "compute_units", "cache_mib", "board_watts", "fitted", "sources")
    known_keys(where, table, ("kind", "memory_gib", "memory_gb_per_s", "peak_tflops", *optional))
    for required in ("kind", "memory_gib", "memory_gb_per_s", "peak_tflops"):
        if required not in table:
            raise InputError(f"{where}: '{required}' is missing")
    peaks = table["peak_tflops"]
    if not isinstance(peaks, Mapping) or "float32" not in peaks:
        raise InputError(
            f"{where}: peak_tflops is {quoted(peaks)}; give a table with at least float32, e.g. {{float32 = 14}}"
        )
    for dtype in peaks:
        choice(f"{where}: peak_tflops dtype", dtype, RATES)
    architecture = table.get("architecture", "")
    if "architecture" in table:
        choice(f"{where}: architecture", architecture, ARCHITECTURES)
    fitted = table.get("fitted", {})
    if not isinstance(fitted, Mapping):
        raise InputError(f"{where}: fitted is {quoted(fitted)}; give the table that graphopt calibrate writes")
    units = table.get("compute_units", 0)
    if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units < 2**31:
        raise InputError(f"{where}: compute_units is {quoted(units)}; give an integer, 0 where unknown")
    return Device(
        name=name,
        kind=choice(f"{where}: kind", table["kind"], DEVICE_KINDS),
        memory_bytes=byte_count(f"{where}: memory_gib", table["memory_gib"], 2**30, 1),
        memory_bytes_per_s=positive(f"{where}: memory_gb_per_s", table["memory_gb_per_s"]) * 1e9,
        peak_flops={dtype: positive(f"{where}: peak_tflops.{dtype}", value) * 1e12 for dtype, value in peaks.items()},
        architecture=architecture,
        compute_units=units,
        cache_bytes=byte_count(f"{where}: cache_mib", table.get("cache_mib", 0), 2**20),
        board_watts=not_negative(f"{where}: board_watts", table.get("board_watts", 0)),
        fitted=fitted,
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
    return LinkType(
        name=name,
        latency_s=not_negative(f"{where}: latency_us", table["latency_us"]) / 1e6,
        peak_bytes_per_s=positive(f"{where}: gb_per_s", table["gb_per_s"]) * 1e9,
        efficiency=efficiency,
        shared_by=choice(f"{where}: shared_by", table.get("shared_by", "pair"), SHARING),
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


def _read_one(parse: Callable[[str, str, Mapping[str, Any]], T], path: Path) -> T:
    tables = read_toml(path)
    if len(tables) != 1 or not all(isinstance(table, Mapping) for table in tables.values()):
        raise InputError(f"{path}: holds {', '.join(map(repr, tables)) or 'nothing'}; give one table, [NAME]")
    [(name, table)] = tables.items()
    return parse(f"{path}: {name}", name, table)


def _read_devices(path: Path) -> list[Device]:
    """Those of a file of devices, one table each, or the different ones of a cluster's file."""
    table = read_toml(path)
    if "hosts" in table:
        return list({device.name: device for device in _read_cluster(path).devices}.values())
    if not table or not all(isinstance(one, Mapping) for one in table.values()):
        raise InputError(f"{path}: no devices; give a table each, [NAME]")
    return [_device(f"{path}: {name}", name, one) for name, one in table.items()]


def _read_cluster(path: Path) -> Cluster:
    table = read_toml(path)
    if len(table) == 1 and all(isinstance(one, Mapping) and "kind" in one for one in table.values()):
        return Cluster.of(_read_one(_device, path))
    return parse_cluster(table, path.stem, str(path), shipped=path.parent == CATALOG / "clusters")


def _shipped(parse: Callable[[str, str, Mapping[str, Any]], T], file: str) -> dict[str, Callable[[], T]]:
    tables = read_toml(CATALOG / file)
    return {name: partial(parse, f"{file}: {name}", name, table) for name, table in tables.items()}


def counted(names: Iterable[str]) -> str:
    """``["t4", "t4"]`` -> ``"2 t4"``."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).items())


def _generators() -> dict[str, type[Generator[Cluster]]]:
    from graphopt_gym.hardware.random_clusters import PerturbedClusters, RandomClusters

    return {one.word: one for one in (RandomClusters, PerturbedClusters)}


DEVICES = Catalog(
    "devices",
    "device",
    Device,
    {".toml": partial(_read_one, _device)},
    partial(_shipped, _device, "devices.toml"),
    columns=("kind", "memory_bytes", "memory_bandwidth_bytes_per_s", "float32_peak_flops_per_s",
             "half_precision_peak_flops_per_s", "architecture", "sources"),
    row=lambda _, one: (one.kind, one.memory_bytes, one.memory_bytes_per_s, one.peak_flops["float32"],
                        one.peak_flops.get("bfloat16", one.peak_flops.get("float16")), one.architecture,
                        "; ".join(dict.fromkeys(one.sources.values()))),
    several=_read_devices,
)  # fmt: skip
LINKS = Catalog(
    "links",
    "link",
    LinkType,
    {".toml": partial(_read_one, _link_type)},
    partial(_shipped, _link_type, "links.toml"),
    columns=("latency_s", "bandwidth_bytes_per_s", "shared_by", "sources"),
    row=lambda _, one: (one.latency_s, one.bytes_per_s, one.shared_by, "; ".join(dict.fromkeys(one.sources.values()))),
)
CLUSTERS = Catalog(
    "clusters",
    "cluster",
    Cluster,
    {".toml": _read_cluster},
    lambda: {path.stem: path for path in sorted((CATALOG / "clusters").glob("*.toml"))},
    columns=("devices", "hosts", "memory_bytes", "links", "about"),
    row=lambda _, one: (counted(device.name for device in one.devices), len(set(one.hosts)),
                        sum(device.memory_bytes for device in one.devices), counted(link.type for link in one.links),
                        one.about),
    generators=_generators,
)  # fmt: skip
load_cluster, cluster_names = CLUSTERS.load, CLUSTERS.names
load_device, device_names = DEVICES.load, DEVICES.names
load_link, link_names = LINKS.load, LINKS.names


def load_one_device(cluster: str | os.PathLike[str] | Device | Cluster, what: str) -> Cluster:
    """A cluster of one device: a device alone, or a cluster that has one.

    Args:
        what: is done for one, for people: ``"a program is rewritten"``.

    Raises:
        InputError: an unknown name, or several devices.
    """
    if not isinstance(cluster, str | os.PathLike | Device | Cluster | Mapping):
        raise InputError(f"cluster is {cluster!r}; give the name of a device, e.g. 't4'")
    if isinstance(cluster, str) and (cluster in DEVICES or not (cluster in CLUSTERS or os.path.exists(cluster))):
        cluster = load_device(cluster)
    found = Cluster.of(cluster) if isinstance(cluster, Device) else load_cluster(cluster)
    if found.num_devices != 1:
        raise InputError(
            f"cluster {found.name!r} has {found.num_devices} devices; {what} for one: give a device, e.g. 't4'"
        )
    return found
