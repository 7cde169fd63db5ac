"""The runs of placements that are kept: what they say follows from their rows."""

import json

import pytest
from scipy.stats import spearmanr

from graphopt_gym.data import data_path
from graphopt_gym.hardware.cluster import load_cluster

RUNS = json.loads(data_path("execution", "placements.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", ["transformer", "branches", "convnet"])
def test_stored_runs__say_what_their_rows_say(model):
    table = RUNS[model]
    rows = table["rows"]
    assert len(rows) == 20
    assert table["ok"]
    assert all(row["difference"] == 0 for row in rows)  # loss and gradients are those of one worker, to the last bit
    simulated = [row["simulated_s"] for row in rows]
    for key, column in (("rank_correlation", "measured_s"), ("rank_correlation_of_fastest", "fastest_s")):
        assert table[key] == pytest.approx(spearmanr(simulated, [row[column] for row in rows]).statistic)


def test_stored_runs__are_ranked_as_simulated_where_placements_differ():
    """The chain's placements differ by less than what its ops take longer beside another worker."""
    for key in ("rank_correlation", "rank_correlation_of_fastest"):
        assert min(RUNS[model][key] for model in ("transformer", "branches")) > 0.9
    spread = {}
    for name in ("transformer", "branches", "convnet"):
        simulated = [row["simulated_s"] for row in RUNS[name]["rows"]]
        spread[name] = max(simulated) / min(simulated)
    assert min(spread["transformer"], spread["branches"]) > 1.35 > spread["convnet"]


def test_stored_cluster__is_two_calibrated_processors():
    cluster = load_cluster(data_path("execution", "two_workers.toml"))
    assert cluster.num_devices == 2
    assert cluster.links[0].bytes_per_s == pytest.approx(RUNS["link"]["link_bytes_per_s"], rel=1e-3)
    assert cluster.devices[0].fitted
