"""Random clusters: hosts of catalog devices with catalog links, and known clusters with other speeds.

:class:`RandomClusters` draws how many devices, how they are spread over hosts, what each host has, and the links within
hosts and between them, from what the catalog has and what fits together: NVLink and NVSwitch only between devices that
have it. :class:`PerturbedClusters` takes a cluster and multiplies memory, rates and links by log-normal factors, as
measured ones differ from their datasheets and from each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice
from graphopt_gym.generator import YES_OR_NO, Generator, Key, number_range, some_of, whole_range
from graphopt_gym.hardware.cluster import DEVICES, LINKS, MAX_DEVICES, Cluster, Device, Link, parse_cluster

# devices that are drawn where none are named: datacentre GPUs, each with the links that its boards come with
BOARDS: dict[str, tuple[str, ...]] = {
    "p100_pcie_16gb": ("pcie3_x16",),
    "p100_sxm2_16gb": ("pcie3_x16", "nvlink1"),
    "v100_pcie_16gb": ("pcie3_x16",),
    "v100_pcie_32gb": ("pcie3_x16",),
    "v100_sxm2_16gb": ("pcie3_x16", "nvlink2", "nvlink2_x2"),
    "v100_sxm2_32gb": ("pcie3_x16", "nvlink2", "nvlink2_x2"),
    "t4": ("pcie3_x16",),
    "a100_pcie_40gb": ("pcie4_x16",),
    "a100_sxm_40gb": ("pcie4_x16", "nvlink3_switch"),
    "a100_sxm_80gb": ("pcie4_x16", "nvlink3_switch"),
    "a10": ("pcie4_x16",),
    "l4": ("pcie4_x16",),
    "l40s": ("pcie4_x16",),
    "h100_sxm_80gb": ("nvlink4_switch",),
}
_ANY_BOARD = ("pcie3_x16", "pcie4_x16")  # of a host whose boards are of several kinds
NETWORKS = ("ethernet_10g", "ethernet_25g", "ethernet_100g", "infiniband_hdr")
MOST_HOSTS = 256


@dataclass(frozen=True, kw_only=True)
class RandomClusters(Generator[Cluster]):
    """Hosts of devices from the catalog.

    Args:
        devices: from how many to how many, in all; drawn evenly.
        hosts: from how many to how many, at most one a device; the devices are shared out as evenly as goes.
        kinds: names of catalog devices to draw from.
        mixed: the share of clusters whose hosts differ in their devices; half of these have one host, or several, in
            which the devices themselves differ.
        seed: see :class:`~graphopt_gym.generator.Generator`.
    """

    word: ClassVar[str] = "random"
    keys: ClassVar[Mapping[str, Key]] = {
        "devices": whole_range(1, MAX_DEVICES),
        "hosts": whole_range(1, MOST_HOSTS),
        "kinds": some_of(lambda: DEVICES.names()),
        "mixed": number_range(0.0, 1.0),
    }

    devices: Any = (2, 8)
    hosts: Any = (1, 2)
    kinds: Any = tuple(BOARDS)
    mixed: Any = 0.25

    @property
    def most(self) -> Mapping[str, int]:
        return {"devices": self.devices[1]}

    def _make(self, rng: np.random.Generator, name: str) -> Cluster:
        count = int(rng.integers(self.devices[0], self.devices[1] + 1))
        hosts = min(count, int(rng.integers(self.hosts[0], self.hosts[1] + 1)))
        share = rng.uniform(*self.mixed) if self.mixed[0] < self.mixed[1] else self.mixed[0]
        mixed = bool(rng.random() < share)
        within = mixed and bool(rng.random() < 0.5)

        def drawn(of: tuple[str, ...]) -> str:
            return of[int(rng.integers(len(of)))]

        kind = drawn(self.kinds)
        network = drawn(tuple(one for one in NETWORKS if one in LINKS))
        tables: list[dict[str, Any]] = []
        for host in range(hosts):
            size = count // hosts + (host < count % hosts)
            kind = drawn(self.kinds) if mixed else kind
            members = [drawn(self.kinds) for _ in range(size)] if within else [kind] * size
            links = BOARDS.get(members[0], _ANY_BOARD) if len(set(members)) == 1 else _ANY_BOARD
            if not tables or mixed:
                link = drawn(links)
            tables.append({"devices": members, "interconnect": link})
        # what is shipped under these names, whatever the user calls by them: a number always makes the same cluster
        made = {"hosts": tables, "network": {"link": network}, "about": "a random cluster"}
        return parse_cluster(made, name, name, shipped=all(one in BOARDS for one in self.kinds))


def _cluster(name: str, value: Any) -> str:
    from graphopt_gym.hardware.cluster import CLUSTERS

    return choice(name, value, CLUSTERS.names())


@dataclass(frozen=True, kw_only=True)
class PerturbedClusters(Generator[Cluster]):
    """A cluster of the catalog with other speeds: each factor is the exponential of a normal number times its spread.

    Args:
        cluster: a name of the catalog.
        speed: spread of what devices compute, and of their memory bandwidth: 0.2 is about a fifth up or down.
        bandwidth: spread of the links' bandwidths.
        latency: spread of the links' latencies.
        memory: spread of the devices' memory.
        alike: whether devices that are the same stay the same, and links of one type; otherwise each has its own.
        seed: see :class:`~graphopt_gym.generator.Generator`.
    """

    word: ClassVar[str] = "perturbed"
    first: ClassVar[str] = "cluster"
    keys: ClassVar[Mapping[str, Key]] = {
        "cluster": Key(_cluster),
        "speed": number_range(0.0, 2.0),
        "bandwidth": number_range(0.0, 2.0),
        "latency": number_range(0.0, 2.0),
        "memory": number_range(0.0, 2.0),
        "alike": YES_OR_NO,
    }

    cluster: Any
    speed: Any = 0.2
    bandwidth: Any = 0.4
    latency: Any = 0.2
    memory: Any = 0.0
    alike: Any = False

    @property
    def base(self) -> Cluster:
        """The cluster that is perturbed."""
        from graphopt_gym.hardware.cluster import load_cluster

        return load_cluster(self.cluster)

    @property
    def most(self) -> Mapping[str, int]:
        return {"devices": self.base.num_devices}

    def _make(self, rng: np.random.Generator, name: str) -> Cluster:
        base = self.base
        spreads = {
            key: rng.uniform(*getattr(self, key)) if getattr(self, key)[0] < getattr(self, key)[1]
            else getattr(self, key)[0]
            for key in ("speed", "bandwidth", "latency", "memory")
        }  # fmt: skip
        made: dict[Any, Any] = {}

        def factor(key: str) -> float:
            return math.exp(spreads[key] * rng.standard_normal())

        def device(number: int, one: Device) -> Device:
            at = one if self.alike else number
            if at not in made:
                compute, moves, holds = factor("speed"), factor("speed"), factor("memory")
                made[at] = replace(
                    one,
                    memory_bytes=max(1, round(one.memory_bytes * holds)),
                    memory_bytes_per_s=one.memory_bytes_per_s * moves,
                    peak_flops={dtype: peak * compute for dtype, peak in one.peak_flops.items()},
                )
            return made[at]

        def link(number: int, one: Link) -> Link:
            at = ("link", one.type if self.alike else number)
            if at not in made:
                made[at] = factor("latency"), factor("bandwidth")
            slower, wider = made[at]
            return replace(one, latency_s=one.latency_s * slower, bytes_per_s=one.bytes_per_s * wider)

        try:
            return Cluster(
                name,
                tuple(device(number, one) for number, one in enumerate(base.devices)),
                tuple(link(number, one) for number, one in enumerate(base.links)),
                base.link_of,
                base.hosts,
                f"{self.cluster}, perturbed",
            )
        except InputError as error:
            raise InputError(f"{name}: {error}; give smaller spreads") from None
