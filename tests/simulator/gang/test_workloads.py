"""Workloads: plans of the same work, cuts of layers, files, and what cannot be made."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict

import numpy as np
import pytest

from graphopt_gym.catalog import catalogs
from graphopt_gym.errors import InputError
from graphopt_gym.hardware.machine import load_machine
from graphopt_gym.simulator.gang import GangSimulator, chain
from graphopt_gym.simulator.gang.pathways import decoder_pipeline
from graphopt_gym.simulator.gang.workloads import (
    Plan,
    Workload,
    decoder_layers,
    load_workload,
    stage_partition,
    uneven_layers,
    workload_names,
)


@pytest.mark.parametrize("name", workload_names())
def test_shipped__run_on_their_machine_and_are_stored_whole(name):
    workload = load_workload(name)
    assert workload.about
    again = Workload.from_json(json.loads(json.dumps(workload.to_json())))
    assert again.fingerprint == workload.fingerprint
    assert again.to_json() == workload.to_json()
    machine = load_machine(workload.machine)
    work = defaultdict(list)
    for plan in workload.plans:
        if plan.program.num_gangs < 600:
            assert GangSimulator(plan.program, machine).run().valid
        program = plan.program
        assert plan.num_units == len(set(plan.unit.tolist()))
        # captured ops take more core-seconds an example, the fewer examples a core has
        alike = program.num_slices if name.endswith("_pipelines") else 0
        work[alike].append(float((program.time_s * program.slice_cores[program.slice]).sum()))
    for each in work.values():
        assert max(each) == pytest.approx(min(each), rel=0.01)  # the same work by every plan


def test_catalog__lists_workloads():
    columns, rows, _ = catalogs()["workloads"].table()
    assert columns[:3] == ["workload", "plans", "gangs"]
    assert [row[0] for row in rows] == workload_names()


def test_decoder__is_the_published_one():
    plan = decoder_layers().plan(4, 16, 128)
    made, _ = decoder_pipeline(4, 16, 128)
    ours, theirs = plan.program, made.program
    assert ours.num_gangs == theirs.num_gangs
    for name in ("time_s", "edge_bytes", "collective_bytes", "output_bytes"):
        # 62 layers are not a multiple of 4: stages of 16 and 15
        assert getattr(ours, name).sum() == pytest.approx(getattr(theirs, name).sum(), rel=0.04), name


def best_cut(times, stages, batches, boundary):
    layers = len(times)

    def cost(cuts):
        ends = [*cuts, layers]
        starts = [0, *cuts]
        each = [sum(times[a:b]) + (boundary[a - 1] if a else 0.0) for a, b in zip(starts, ends)]
        return sum(each) + (batches - 1) * max(each)

    return min(cost(cuts) for cuts in itertools.combinations(range(1, layers), stages - 1)), cost


@pytest.mark.parametrize("seed", range(20))
def test_stage_partition__is_the_best_of_all_cuts(seed):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(2, 9))
    stages, batches = int(rng.integers(1, layers + 1)), int(rng.integers(1, 9))
    times, boundary = rng.integers(1, 20, layers).tolist(), rng.integers(0, 6, layers - 1).tolist()
    best, cost = best_cut(times, stages, batches, boundary)
    sizes = stage_partition(times, stages, batches, boundary)
    assert sum(sizes) == layers
    assert len(sizes) == stages
    assert cost(np.cumsum(sizes)[:-1].tolist()) == pytest.approx(best)


def test_plans__of_a_cut_by_time_are_faster():
    layers = uneven_layers("uneven", [8, 1, 1, 1, 1, 1, 1, 2], 1.0)
    machine = load_machine("pathways_b_4hosts")
    even, dp = (GangSimulator(layers.plan(2, 8, 8, cut).program, machine).run() for cut in ("even", "dp"))
    assert dp.makespan_s < even.makespan_s


@pytest.mark.parametrize(
    "text",
    [
        "tenants:seed=5",
        "tenants:clients=3:cores=8-16:seed=0",
        "crossing:seed=1",
        "crossing:pipelines=2:services=1:calls=1:seed=3",
        "pipelines:seed=2",
    ],
)
def test_drawn__are_the_same_again_and_within_their_sizes(text):
    workload = load_workload(text)
    assert workload.name == text
    assert load_workload(text).fingerprint == workload.fingerprint
    most = catalogs()["workloads"].generator(text).most
    assert workload.most_gangs <= most["gangs"]
    assert workload.most_slices <= most["slices"]
    assert workload.most_clients <= most["clients"]
    assert workload.num_plans <= most["plans"]
    assert workload.most_edges <= most["edges"]
    machine = load_machine("pathways_b_4hosts")
    assert all(GangSimulator(plan.program, machine).run().valid for plan in workload.plans)


LAYERS = uneven_layers("eight", [1] * 8, 1.0, batch=12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LAYERS.plan(9, 2, 9), "stages"),
        (lambda: LAYERS.plan(3, 2, 8), "stages is 3, which does not divide the 8 cores; give a divisor"),
        (lambda: LAYERS.plan(2, 5, 8), "micro_batches is 5, which does not divide the batch of 12; give a divisor"),
        (lambda: stage_partition([1.0, 2.0], 3, 1), "stages"),
        (lambda: Workload("none", ()), "workload 'none' has 0 plans; give 1 to 256"),
        (
            lambda: Workload("twice", (Plan("a", chain(2, 2, 1e-3, nodes=1)),) * 2),
            "workload 'twice': two plans are called 'a'; give each its own label",
        ),
        (lambda: load_workload("tenants:calls=0:seed=1"), "tenants: calls"),
    ],
)
def test_bad_input__is_one_line(make, said):
    with pytest.raises(InputError) as error:
        make()
    assert said in str(error.value)


def test_files__that_hold_something_else(tmp_path):
    for text, said in (("{", "not JSON"), ("[]", "a workload is a JSON object; this is a list")):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            load_workload(path)
