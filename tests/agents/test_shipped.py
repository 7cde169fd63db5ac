"""The shipped policies decide as when they were shipped: what they have learned survives changes of the code."""

from __future__ import annotations

import hashlib
import json

import pytest

from graphopt_gym.agent import find_agent

# agent, graph, cluster, how it is evaluated; then the cost (None: invalid), the evaluations and the decision's digest
# that version 0.1.0 had, of the placer those that it was shipped with; costs are by version 2 of what ops cost. A
# policy sees op times: of all these decisions one changed with version 2, the first, which does not fit in memory by
# either.
DECISIONS: list[tuple[str, str, str, dict[str, int], float | None, int, str]] = [
    ("gdp", "bert_base", "v100x4", {"samples": 1}, None, 1, "971235f03ff6f373"),
    ("gdp", "bert_base", "v100x4", {"samples": 12}, 0.8020828115373089, 12, "3d1882f9f778615e"),
    ("gdp", "rnnlm_2layer", "p100x2", {"samples": 1}, 0.6390253196008144, 1, "15adec27cb9c6320"),
    ("gdp", "rnnlm_2layer", "p100x2", {"samples": 12}, 0.6390253196008144, 12, "15adec27cb9c6320"),
    ("placer", "transformer_xl_2layer", "p100x2", {"samples": 1}, 1.8567266989396498, 1, "62db584c4e1ad728"),
    ("placer", "gnmt_2layer", "p100x2", {"samples": 1}, 0.93831735735494, 1, "17a71194f3550171"),
    ("placer", "gnmt_2layer", "p100x2", {"samples": 60}, 0.8929419382482107, 60, "1e9e95e70ac5ceee"),
    ("placer", "inception_v3_b32", "p100x2_v100x2", {"samples": 40}, 0.13690764042741504, 40, "465979151691c982"),
    ("chiplet", "bert_tiny_b16", "mcm4", {"samples": 1}, 0.000187813376, 1, "247971843eb6c006"),
    ("chiplet", "bert_tiny_b16", "mcm4", {"samples": 20}, 0.000187813376, 20, "247971843eb6c006"),
    ("chiplet", "vgg11_b1", "mcm9", {"samples": 1}, 0.000924844032, 1, "bc17aa866388231f"),
    ("chiplet", "vgg11_b1", "mcm9", {"samples": 20}, 0.000924844032, 20, "bc17aa866388231f"),
    ("rewrite", "small_fire", "t4", {"samples": 1}, 2.339539788003329e-05, 6, "7e29d61e00dc4072"),
    ("rewrite", "small_fire", "t4", {"samples": 6}, 2.339539788003329e-05, 31, "7e29d61e00dc4072"),
    ("rewrite", "small_scores", "t4", {"samples": 1}, 0.00014215325711543762, 7, "349ab5868f2c3d5e"),
    ("rewrite", "small_scores", "t4", {"samples": 6}, 0.00014215325711543762, 37, "349ab5868f2c3d5e"),
    ("rewrite", "small_recurrent", "v100_pcie_16gb", {"samples": 1}, 0.00011347635834162854, 4, "72296635ba13c3a1"),
    ("rewrite", "small_recurrent", "v100_pcie_16gb", {"samples": 6}, 0.00011347635834162854, 19, "72296635ba13c3a1"),
    ("gdp", "rnnlm_2layer", "p100x2", {"updates": 1}, 0.6390253196008144, 33, "15adec27cb9c6320"),
    ("chiplet", "bert_tiny_b16", "mcm4", {"updates": 2}, 0.000187813376, 41, "247971843eb6c006"),
    ("rewrite", "small_fire", "t4", {"updates": 2}, 2.339539788003329e-05, 46, "7e29d61e00dc4072"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "graph", "cluster", "how", "cost", "evaluations", "digest"), DECISIONS)
def test_shipped_policy__decides_as_it_did(
    name: str, graph: str, cluster: str, how: dict[str, int], cost: float | None, evaluations: int, digest: str
) -> None:
    solution = find_agent(name).load().evaluate(name, graph, cluster, **how, seed=1 if "updates" in how else 3)
    assert solution.row()["cost"] == (None if cost is None else pytest.approx(cost, rel=1e-12))
    assert solution.evaluations == evaluations
    decision = json.dumps(solution.problem.encode(solution.decision)).encode()
    assert hashlib.blake2b(decision, digest_size=8).hexdigest() == digest
