"""Grouped convolutions: the one fitted number against the published rows it is fitted to, and what it applies to."""

import csv

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from graphopt_gym.data import data_path
from graphopt_gym.envs.rewrite.cost import Operation, ProgramCosts
from graphopt_gym.hardware.kernels import GROUP_START_S


def conv(inputs, outputs, size, kernel=1, stride=1, groups=1):
    """An operation: a convolution of one image of ``size``."""
    image, weight = (1, inputs, size, size), (outputs, inputs // groups, kernel, kernel)
    out = (1, outputs, size // stride, size // stride)
    return Operation("conv2d", ((stride, stride), "same", "none"), out, (image, weight), (False, True), (0, 1))


def residual_network(blocks, groups, width):
    """(operations without groups, grouped convolutions) of a ResNet or ResNeXt, its activations fused."""
    plain, grouped, channels, size = [conv(3, 64, 224, 7, 2)], [], 64, 56
    for stage, count in enumerate(blocks):
        inner, outer = width << stage, 256 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            plain.append(conv(channels, inner, size))
            (plain if groups == 1 else grouped).append(conv(inner, inner, size, 3, stride, groups))
            if not block:
                plain.append(conv(channels, outer, size, 1, stride))
            size //= stride
            plain.append(conv(inner, outer, size))
            channels, both = outer, (1, outer, size, size)
            plain.append(Operation("add", (), both, (both, both), (False, False), (0, 1)))
    return plain, grouped


def published():
    """(published seconds, modelled seconds of what has no groups, of the groups' kernels, number of groups) a row."""
    costs = ProgramCosts("t4")
    launch_s = costs.model.launch_s(costs.device)
    with open(data_path("cost_model", "grouped_models.csv")) as file:
        for row in csv.DictReader(file):
            blocks, groups = [int(count) for count in row["blocks"].split()], int(row["groups"])
            plain, grouped = residual_network(blocks, groups, int(row["width"]))
            started = groups * len(grouped)
            kernels = sum(costs.seconds(grouped)) - launch_s * len(grouped) - started * GROUP_START_S
            dense = sum(costs.seconds(plain)) - launch_s * len(plain)
            yield float(row["total_ms"]) / 1e3, dense, kernels, started


def test_group_start__is_fitted_to_published_times_and_gives_them_back():
    rows = np.array(list(published()))
    grouped = rows[:, 3] > 0
    scale = np.exp(
        np.log(rows[~grouped, 0] / rows[~grouped, 1]).mean()
    )  # another library than the kernels': one factor

    def apart(start_s):
        total, dense, kernels, started = rows[grouped].T
        return np.log((scale * dense + kernels + start_s * started) / total)

    best = minimize_scalar(
        lambda start_us: (apart(1e-6 * start_us) ** 2).sum(), bounds=(0, 100), method="bounded", options={"xatol": 1e-4}
    )
    assert 1e-6 * best.x == pytest.approx(GROUP_START_S, rel=0.005)
    assert np.abs(np.expm1(apart(GROUP_START_S))).max() < 0.1
    assert np.abs(np.expm1(apart(0.0))).max() > 0.3  # without it they are far off


def test_groups__cost_one_kernel_each_and_fewer_of_them_less():
    costs = ProgramCosts("t4")
    of = dict(zip((64, 32, 8, 1), costs.seconds([conv(64, 64, 28, 3, 1, g) for g in (64, 32, 8, 1)]), strict=True))
    assert of[32] > 32 * GROUP_START_S
    assert of[8] < of[32]
    assert of[64] < of[8]  # depthwise


def test_groups__are_no_matter_on_other_devices_than_gpus():
    costs = ProgramCosts("tpu_v3_core")
    few, many = costs.seconds([conv(64, 64, 28, 3, 1, 2), conv(64, 64, 28, 3, 1, 32)])
    assert many <= few
