"""Fits the control plane and the decoder to the Pathways paper: ``python scripts/fit_gang.py [--json]``.

Two numbers are fitted, each on one published row (Barham et al., Pathways, MLSys 2022; the rows are in
``envs_data/published/pathways_tables.csv``):

- ``controller_core_us`` of the machines, on 2.3 ms at parity on 128 TPUs;
- ``COMPUTE_SHARE`` of ``graphopt_gym/simulator/gang/pathways.py``, on the decoder's pipeline of 4 stages on 128 cores.

Every other row is predicted with them; it says which is which, and what the catalog holds. The same rows give the same
numbers. Takes a few seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import replace
from typing import Any

from scipy.optimize import brentq

from graphopt_gym.data import data_path
from graphopt_gym.hardware.machine import Machine, load_machine
from graphopt_gym.simulator.gang.pathways import (
    COMPUTE_SHARE,
    DECODER_3B,
    bubble_only_tokens_per_s,
    decoder_spmd_tokens_per_s,
    decoder_tokens_per_s,
    dispatch_per_s,
    parity_s,
    two_islands_share,
)

PIPELINES = {  # configuration and cores of the published row: S, M, batch, machine
    ("pipeline_S4_M16", 128): (4, 16, 2048, "pathways_b"),
    ("pipeline_S8_M32", 128): (8, 32, 2048, "pathways_b"),
    ("pipeline_S16_M64", 128): (16, 64, 2048, "pathways_b"),
    ("pipeline_S16_M64_four_islands_of_32", 128): (16, 64, 2048, "pathways_c"),
    ("pipeline_S16_M64", 512): (16, 64, 8192, "pathways_b"),
}
FITTED_ON = ("pipeline_S4_M16", 128)


def published() -> dict[tuple[str, str, int], float]:
    """Value by (experiment, configuration, cores); of several quantities the first."""
    found: dict[tuple[str, str, int], float] = {}
    with open(data_path("published", "pathways_tables.csv"), newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["experiment"], row["configuration"], int(row["cores"])), float(row["value"]))
    return found


def with_core_cost(machine: str, seconds: float) -> Machine:
    found = load_machine(machine)
    return replace(found, control=replace(found.control, controller_core_s=seconds))


def fit_core_cost(parity: float) -> float:
    """Seconds of the controller a call and core, such that 128 cores reach parity at so many seconds."""
    return float(
        brentq(lambda x: parity_s(128, with_core_cost("pathways_b", x)) - parity, 1e-7, 1e-4, xtol=1e-11)  # type: ignore[arg-type]
    )


def fit_share(tokens_per_s: float) -> float:
    """The share of peak FLOP/s with which the decoder's pipeline of 4 stages has this throughput."""
    return float(
        brentq(lambda x: decoder_tokens_per_s(4, 16, 128, share=x) - tokens_per_s, 0.1, 1.0, xtol=1e-7)  # type: ignore[arg-type]
    )


def decoder_rows(share: float, tables: dict[tuple[str, str, int], float]) -> list[dict[str, Any]]:
    rows = []
    for (name, cores), (stages, micro_batches, batch, machine) in PIPELINES.items():
        value = decoder_tokens_per_s(stages, micro_batches, cores, batch, machine=machine, share=share)
        real = tables["decoder_3b", name, cores]
        bubble = bubble_only_tokens_per_s(stages, micro_batches, tables["decoder_3b", *FITTED_ON], (4, 16))
        rows.append(row(f"decoder, {name}, {cores} cores", (name, cores) == FITTED_ON, real, value, "tokens/s")
                    | {"bubble_only_error": bubble * cores / 128 / real - 1})  # fmt: skip
    value = decoder_spmd_tokens_per_s(share=share)
    rows.append(row("decoder, spmd, 128 cores", False, tables["decoder_3b", "spmd", 128], value, "tokens/s"))
    return rows


def row(name: str, fitted: bool, real: float, value: float, unit: str) -> dict[str, Any]:
    return {"row": name, "fitted": fitted, "published": real, "simulated": value, "unit": unit,
            "error": value / real - 1}  # fmt: skip


def report() -> dict[str, Any]:
    tables = published()
    core_s = fit_core_cost(tables["dispatch_parity", "16_hosts", 128] / 1e3)
    share = fit_share(tables["decoder_3b", *FITTED_ON])
    machines = {cores: with_core_cost(name, core_s) for cores, name in ((128, "pathways_b"), (2048, "pathways_a"))}
    rows = [
        row(f"parity, {cores} TPUs", cores == 128, tables["dispatch_parity", name, cores],
            1e3 * parity_s(cores, machines[cores]), "ms")
        for name, cores in (("16_hosts", 128), ("512_hosts", 2048))
    ]  # fmt: skip
    rows += decoder_rows(share, tables)
    rows.append(
        row("two islands of 512, 64B", False, tables["two_islands_64b", "2x512", 1024],
            100 * two_islands_share(share=share), "percent")
    )  # fmt: skip
    orders = []
    for cores in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        found = {
            f"{form} {who}": dispatch_per_s(cores, form=form, controllers=who, machine=machines[2048])
            for form in ("op_by_op", "chained", "fused")
            for who in ("single", "multi")
        }
        orders.append({"cores": cores, **found})
    return {
        "fitted": {
            "controller_core_us": {"fit": core_s * 1e6,
                                   "catalog": load_machine("pathways_a").control.controller_core_s * 1e6},
            "COMPUTE_SHARE": {"fit": share, "catalog": COMPUTE_SHARE},
        },
        "rows": rows,
        "dispatch_per_s": orders,
        "sensitivity": sensitivity(tables, share),
    }  # fmt: skip


def sensitivity(tables: dict[tuple[str, str, int], float], share: float) -> list[dict[str, Any]]:
    """What the predictions would be with other values of what was chosen."""
    found = []
    for sequence in (512, 1024, 2048):
        model = replace(DECODER_3B, sequence=sequence)
        again = float(
            brentq(
                lambda x, model=model: decoder_tokens_per_s(4, 16, 128, share=x, model=model)
                - tables["decoder_3b", *FITTED_ON],
                0.1, 1.0, xtol=1e-7,
            )  # type: ignore[arg-type]
        )  # fmt: skip
        for (name, cores), (stages, micro, batch, machine) in PIPELINES.items():
            value = decoder_tokens_per_s(stages, micro, cores, batch, model, machine, again)
            found.append({"chosen": f"sequence = {sequence}", "row": f"{name}, {cores} cores",
                          "error": value / tables["decoder_3b", name, cores] - 1})  # fmt: skip
    for ways in (4, 8, 16):
        value = decoder_spmd_tokens_per_s(ways=ways, share=share)
        found.append({"chosen": f"{ways} cores share a layer", "row": "spmd, 128 cores",
                      "error": value / tables["decoder_3b", "spmd", 128] - 1})  # fmt: skip
    for tokens in (2**19, 2**20, 2**21):
        value = 100 * two_islands_share(tokens=tokens, share=share)
        found.append({"chosen": f"{tokens} tokens a step", "row": "two islands of 512, 64B",
                      "points": value - tables["two_islands_64b", "2x512", 1024]})  # fmt: skip
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    result = report()
    if arguments.json:
        print(json.dumps(result))
        raise SystemExit
    for name, one in result["fitted"].items():
        print(f"{name}: fit {one['fit']:.5g}, in the catalog {one['catalog']:.5g}")
    print(f"\n{'row':58} {'':9} {'published':>10} {'simulated':>10} {'error':>7}")
    for one in result["rows"]:
        kind = "fitted" if one["fitted"] else "predicted"
        print(f"{one['row']:58} {kind:9} {one['published']:>10,.5g} {one['simulated']:>10,.5g} {one['error']:>+7.2%}")
    print("\ncomputations a second, one call each / chained / fused, one controller | many")
    for one in result["dispatch_per_s"]:
        values = list(one.values())
        print(f"{values[0]:>6} " + "   ".join(f"{a:>8,.0f} | {b:>8,.0f}" for a, b in zip(values[1::2], values[2::2])))
    print("\nwith other values of what was chosen")
    for one in result["sensitivity"]:
        change = f"{one['error']:+.2%}" if "error" in one else f"{one['points']:+.2f} points"
        print(f"{one['chosen']:28} {one['row']:52} {change:>12}")
