"""The dynamic program against all partitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_gym.simulator.gang.partition import StageLoads, partition_layers


def all_partitions(layers, stages):
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        yield cuts, list(itertools.pairwise((0, *cuts, layers)))


@pytest.mark.parametrize("seed", range(60))
def test_partition__is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(1, 9))
    stages = int(rng.integers(1, layers + 1))
    shape = (stages, layers + 1, layers + 1)
    load = rng.integers(1, 9, shape).astype(float)
    load[rng.random(shape) < rng.choice([0.0, 0.2, 0.5])] = np.inf
    through = rng.integers(0, 9, shape).astype(float)

    def costs(parts):
        each = range(stages), *zip(*parts, strict=True)
        return max(load[at] for at in zip(*each, strict=True)), sum(through[at] for at in zip(*each, strict=True))

    found = partition_layers(layers, stages, lambda stage: StageLoads(load[stage], through[stage]))
    best = min(costs(parts) for _, parts in all_partitions(layers, stages))
    if np.isinf(best[0]):
        assert found is None
    else:
        assert found is not None
        assert costs(dict(all_partitions(layers, stages))[found]) == best


def test_partition__of_equal_layers_is_even():
    load = np.maximum(np.arange(13)[None, :] - np.arange(13)[:, None], 0).astype(float)
    assert partition_layers(12, 4, lambda stage: StageLoads(load, load)) == (3, 6, 9)


@pytest.mark.parametrize("seed", range(30))
def test_partition__of_a_number_of_micro_batches_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(1, 8))
    stages, batches = int(rng.integers(1, layers + 1)), int(rng.integers(1, 6))
    shape = (stages, layers + 1, layers + 1)
    load, through = rng.integers(1, 9, shape).astype(float), rng.integers(0, 30, shape).astype(float)
    load[rng.random(shape) < 0.2] = np.inf

    def cost(parts):
        each = [(stage, *part) for stage, part in enumerate(parts)]
        return sum(through[at] for at in each) + (batches - 1) * max(load[at] for at in each)

    def given(stage):
        return StageLoads(load[stage], through[stage])

    found = partition_layers(layers, stages, given, batches)
    fits = {cuts: parts for cuts, parts in all_partitions(layers, stages)
            if np.isfinite([load[(stage, *part)] for stage, part in enumerate(parts)]).all()}  # fmt: skip
    if not fits:
        assert found is None
    else:
        assert cost(fits[found]) == min(map(cost, fits.values()))
