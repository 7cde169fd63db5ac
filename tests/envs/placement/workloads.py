"""Random workloads in the format of Tarnawski et al., and their period counted from the file's content alone."""

from __future__ import annotations

import numpy as np


def random_workload(
    rng: np.random.Generator,
    nodes: int,
    accelerators: int = 2,
    cpus: int = 1,
    train: bool = False,
    colours: bool = True,
) -> dict:
    """A DAG of forward nodes; in training with a backward node for most of them, of the same colour, in reverse."""
    names = rng.permutation(1000)[: 2 * nodes].tolist()  # ids in no order
    rows, edges = [], []

    def node(number: int, colour: int | None, backward: bool) -> None:
        seconds = float(rng.choice([0.0, 1.0, 2.5, 4.0])) * float(rng.random() + 0.5)
        rows.append(
            {"id": names[number], "name": f"op{number}", "supportedOnFpga": bool(rng.random() < 0.95 or not cpus),
             "cpuLatency": seconds * 3, "fpgaLatency": seconds, "isBackwardNode": backward,
             "size": float(rng.integers(0, 10))}
        )  # fmt: skip
        if colour is not None:
            rows[-1]["colorClass"] = colour

    colour_of = [int(rng.integers(0, nodes)) if colours and rng.random() < 0.3 else nodes + n for n in range(nodes)]
    for number in range(nodes):
        node(number, colour_of[number] if train or colours else None, False)
    pairs = {(int(rng.integers(0, n)), n) for n in range(1, nodes) for _ in range(int(rng.integers(0, 3)))}
    edges += sorted(pairs)
    if train:
        mates = [n for n in range(nodes) if rng.random() < 0.9]
        for number in mates:
            node(nodes + number, colour_of[number], True)
        edges += [(n, nodes + n) for n in mates]
        edges += [(nodes + b, nodes + a) for a, b in sorted(pairs) if a in mates and b in mates]
    cost = {n: float(rng.choice([0.0, 0.3, 1.0, 6.0])) for n in range(2 * nodes)}
    lines = [{"sourceId": names[a], "destId": names[b], "cost": cost[a]} for a, b in edges]
    rng.shuffle(rows)
    rng.shuffle(lines)
    return {"maxFPGAs": accelerators, "maxCPUs": cpus, "maxSizePerFPGA": float(rng.choice([1e9, 25.0])),
            "nodes": rows, "edges": lines}  # fmt: skip


def max_load(content: dict, device_of: dict[int, int]) -> tuple[float, bool]:
    """(the paper's max-load, whether it fits) of devices by id: accelerators first, then CPUs."""
    accelerators = content["maxFPGAs"]
    load = [0.0] * (accelerators + content["maxCPUs"])
    size = [0.0] * len(load)
    fits = True
    for node in content["nodes"]:
        device = device_of[node["id"]]
        load[device] += node["fpgaLatency" if device < accelerators else "cpuLatency"]
        size[device] += node["size"]
        fits = fits and (device >= accelerators or node["supportedOnFpga"])
    for node in content["nodes"]:
        out = [edge for edge in content["edges"] if edge["sourceId"] == node["id"]]
        home, readers = device_of[node["id"]], {device_of[edge["destId"]] for edge in out}
        for device in readers - {home}:
            if device < accelerators:
                load[device] += out[0]["cost"]
        if readers - {home} and home < accelerators:
            load[home] += out[0]["cost"]
    return max(load), fits and all(one <= content["maxSizePerFPGA"] for one in size[:accelerators])
