"""The link between workers: its fit, and the cluster file that it makes."""

from __future__ import annotations

import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.execution.links import cluster_text, fit_link
from graphopt_gym.hardware.cluster import load_cluster

DEVICE = """# of this machine
[mine]
kind = "cpu"
memory_gib = 8
memory_gb_per_s = 20
peak_tflops = {float32 = 0.05}
[mine.sources]
memory_gib = "counted"
"""


def test_fit__finds_latency_and_bandwidth():
    rows = [(size, 3e-5 + size / 5e9) for size in (16, 1024, 65536, 2**22, 2**25)]
    fit = fit_link(rows)
    assert fit.latency_s == pytest.approx(3e-5, rel=1e-6)
    assert fit.bytes_per_s == pytest.approx(5e9, rel=1e-6)
    assert fit.error < 1e-6


def test_fit__is_never_below_zero():
    fit = fit_link([(10, 1e-6), (1000, 1.1e-6), (10**6, 1e-2), (10**7, 1.2e-1)])
    assert fit.latency_s >= 0
    assert fit.bytes_per_s > 0


def test_cluster_text__is_a_cluster_with_the_device_in_it(tmp_path):
    fit = fit_link([(16, 3e-5), (2**20, 3e-4)], "shared")
    path = tmp_path / "two.toml"
    path.write_text(cluster_text("mine", fit, 3, "cpu", DEVICE))
    cluster = load_cluster(path)
    assert [device.name for device in cluster.devices] == ["mine"] * 3
    assert cluster.devices[0].sources["memory_gib"] == "counted"
    assert cluster.num_links == 6
    assert cluster.links[0].latency_s == pytest.approx(fit.latency_s, rel=1e-3)
    assert cluster.links[0].bytes_per_s == pytest.approx(fit.bytes_per_s, rel=1e-3)


def test_cluster_text__names_a_device_of_the_catalog(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(cluster_text("cpu_xeon_e5_2698_v4", fit_link([(16, 3e-5), (2**20, 3e-4)]), 2, "cpu"))
    assert load_cluster(path).devices[1].kind == "cpu"


def test_write_cluster__needs_two_workers(tmp_path):
    pytest.importorskip("torch")
    from graphopt_gym.execution.links import write_cluster

    with pytest.raises(InputError, match="workers is 1; give a whole number, at least 2"):
        write_cluster(tmp_path / "one.toml", "cpu_xeon_e5_2698_v4", 1)
