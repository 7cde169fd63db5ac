"""Random programs and machines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt_gym.hardware.cluster import Link
from graphopt_gym.hardware.machine import COSTS, ControlPlane, Island, load_machine
from graphopt_gym.simulator.gang import Builder, GangSimulator
from graphopt_gym.simulator.gang.program import RESHARDS

TOY = load_machine("toy_islands")


def random_machine(rng):
    """Times are whole numbers of halves, so that many things happen at once."""

    def link(name):
        return Link(name, float(rng.integers(0, 3)) / 2, float(rng.integers(1, 5)))

    islands = tuple(Island(int(rng.integers(1, 4)), int(rng.integers(1, 4))) for _ in range(rng.integers(1, 4)))
    control = ControlPlane(**{name: float(rng.integers(0, 3)) / 4 for name in COSTS})
    core = replace(TOY.core, memory_bytes=int(rng.integers(20, 60)))
    collective = str(rng.choice(["ring", "torus", "tree"]))
    return replace(
        TOY, islands=islands, core=core, pcie=link("p"), ici=link("i"), dcn=link("d"), control=control,
        collective=collective,
    )  # fmt: skip


def random_program(rng, machine, most=14):
    build = Builder("random")
    total = machine.num_cores
    for number in range(rng.integers(1, 4)):
        build.client(f"c{number}", float(rng.integers(0, 4)) if number else 1.0)
    first = []
    spans = []
    for number in range(rng.integers(1, 5)):
        wide = rng.random() < 0.3
        if wide:
            cores = int(rng.integers(1, total + 1))
            at = int(rng.integers(0, total - cores + 1))
        else:
            island = int(rng.integers(0, machine.num_islands))
            low, high = machine.first_core[island], machine.first_core[island + 1]
            cores = int(rng.integers(1, high - low + 1))
            at = int(rng.integers(low, high - cores + 1))
        build.slice(f"s{number}", cores, int(rng.integers(0, 8)))
        first.append(at)
        spans.append(wide)
    gangs = int(rng.integers(1, most))
    for number in range(gangs):
        if number == 0 or rng.random() < 0.4:
            build.call(int(rng.integers(0, len(build._clients))), float(rng.integers(0, 4)))
        at = int(rng.integers(0, len(first)))
        kind = str(rng.choice(["none", "all_reduce", "all_gather", "all_to_all"]))
        alone = kind != "none" and rng.random() < 0.3
        build.gang(
            f"g{number}", at, 0.0 if alone else float(rng.integers(0, 5)) / 2,
            collective=kind, collective_bytes=int(rng.integers(0, 6)), repeats=int(rng.integers(1, 3)),
            output_bytes=int(rng.integers(0, 12)), temp_bytes=int(rng.integers(0, 6)),
            regular=bool(rng.random() < 0.8), spans=spans[at] or bool(rng.random() < 0.2), on_cores=not alone,
        )  # fmt: skip
    for _ in range(int(rng.integers(0, 2 * gangs))):
        if gangs > 1:
            a, b = sorted(rng.choice(gangs, 2, replace=False).tolist())
            build.edge(a, b, int(rng.integers(0, 9)), str(rng.choice(RESHARDS)))
    return build.program(), first


def random_simulator(seed, **options):
    rng = np.random.default_rng(seed)
    machine = random_machine(rng)
    program, first = random_program(rng, machine)
    options = {
        "controllers": str(rng.choice(["single", "multi", "none"])),
        "dispatch": str(rng.choice(["parallel", "sequential"])),
        "back_pressure": bool(rng.random() < 0.7),
        **options,
    }
    return GangSimulator(program, machine, first, **options), rng
