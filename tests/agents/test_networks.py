"""The networks by themselves: shapes, padding, permutations, recurrence, gates, ablations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from graphopt_agents.networks import GraphInput, NetworkConfig, PlacementNetwork, inputs, placement
from graphopt_agents.networks.attention import Block, SegmentAttention
from graphopt_agents.networks.heads import DeviceHead
from graphopt_agents.networks.sage import GraphNetwork, NeighbourMax
from graphopt_agents.networks.superposition import SuperposedLinear

from graphopt_gym.errors import InputError

EXACT = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order


def make_input(groups: int = 12, devices: int = 3, edges: int = 20, seed: int = 0) -> GraphInput:
    rng = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=rng)

    low = torch.randint(0, groups - 1, (edges,), generator=rng)
    high = low + 1 + (unit(edges) * (groups - 1 - low)).long()
    return GraphInput(
        nodes=unit(groups, inputs.NODE_WIDTH),
        edge_index=torch.stack([low, high]),
        edge_bytes=unit(edges),
        times=unit(groups, devices),
        memory=unit(groups, devices),
        devices=unit(devices, 5),
        links=unit(devices, devices),
    )


def make_network(**config: object) -> PlacementNetwork:
    torch.manual_seed(0)
    network = PlacementNetwork(NetworkConfig(**{"width": 16, "segment": 5, **config}))  # type: ignore[arg-type]
    torch.nn.init.normal_(network.head.query.weight)  # it starts at 0, where all logits are 0
    return network


def permuted(graph: GraphInput, order: torch.Tensor) -> GraphInput:
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return dataclasses.replace(
        graph,
        nodes=graph.nodes[order],
        times=graph.times[order],
        memory=graph.memory[order],
        edge_index=rank[graph.edge_index],
    )


def test_neighbour_max__is_the_maximum_of_the_sigmoids() -> None:
    torch.manual_seed(0)
    layer = NeighbourMax(4, "source_to_target")
    state, index, size = torch.randn(5, 4), torch.tensor([[0, 1, 2, 0], [3, 3, 3, 4]]), torch.rand(4)
    got = layer(state, index, size)
    expected = torch.zeros(5, 4)
    for target in range(5):
        messages = [
            torch.sigmoid(layer.dense(torch.cat([state[source], size[edge : edge + 1]])))
            for edge, (source, to) in enumerate(index.t().tolist())
            if to == target
        ]
        if messages:
            expected[target] = torch.stack(messages).amax(0)
    torch.testing.assert_close(got, expected, **EXACT)
    assert (got[:3] == 0).all()  # ops that read nothing


def test_neighbour_max__other_direction_reads_consumers() -> None:
    layer = NeighbourMax(4, "target_to_source")
    state, index = torch.randn(3, 4), torch.tensor([[0], [2]])
    got = layer(state, index, torch.zeros(1))
    assert (got[0] > 0).all()
    assert (got[1:] == 0).all()


def test_graph_network__follows_a_permutation_of_the_ops() -> None:
    graph = make_input()
    torch.manual_seed(0)
    network = GraphNetwork(inputs.NODE_WIDTH, 16, 3)
    order = torch.randperm(graph.num_groups)
    other = permuted(graph, order)
    got = network(other.nodes, other.edge_index, other.edge_bytes)
    expected = network(graph.nodes, graph.edge_index, graph.edge_bytes)[order]
    torch.testing.assert_close(got, expected, **EXACT)


def test_graph_network__sees_as_many_hops_as_it_has_layers() -> None:
    nodes = torch.randn(6, inputs.NODE_WIDTH)
    chain = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    changed = nodes.clone()
    changed[0] += 1
    for layers in (0, 1, 2, 3):
        torch.manual_seed(0)
        network = GraphNetwork(inputs.NODE_WIDTH, 16, layers)
        before, after = (network(x, chain, torch.zeros(5)) for x in (nodes, changed))
        differs = (before != after).any(1).nonzero().flatten().tolist()
        assert max(differs) == layers


@pytest.mark.parametrize("recurrence", [True, False])
def test_recurrence__equals_full_attention_where_a_segment_covers_the_graph(recurrence: bool) -> None:
    torch.manual_seed(0)
    whole = SegmentAttention(16, 2, 4, segment=50, recurrence=recurrence, condition=None)
    x = torch.randn(12, 16)
    # written out: softmax(q k / sqrt(d)) v over all ops, head by head
    state = x
    for block in whole.blocks:
        assert isinstance(block, Block)
        normed = block.norm_attention(state)
        query, (key, value) = block.query(normed), block.key_value(normed).chunk(2, dim=1)
        heads = []
        for low in range(0, 16, 4):
            part = slice(low, low + 4)
            weight = (query[:, part] @ key[:, part].t() / 2.0).softmax(1)
            heads.append(weight @ value[:, part])
        state = state + block.out(torch.cat(heads, 1))
        state = state + block.outer(torch.nn.functional.gelu(block.inner(block.norm(state))))
    torch.testing.assert_close(whole(x), whole.norm(state), **EXACT)


def test_recurrence__a_segment_sees_the_one_before_and_passes_it_no_gradient() -> None:
    torch.manual_seed(0)
    trunk = SegmentAttention(16, 1, 4, segment=4, recurrence=True, condition=None)
    x = torch.randn(12, 16, requires_grad=True)
    out = trunk(x)
    changed = x.detach().clone()
    changed[0] += 1
    moved = (trunk(changed) != out).any(1)
    assert moved[:8].all()  # its own segment, and the next through the memory
    assert not moved[8:].any()  # one block reaches one segment back
    (gradient,) = torch.autograd.grad(out[4:8].sum(), x)
    assert (gradient[4:8] != 0).any()
    assert (gradient[:4] == 0).all()


def test_recurrence__reach_grows_with_the_blocks() -> None:
    torch.manual_seed(0)
    trunk = SegmentAttention(16, 2, 4, segment=4, recurrence=True, condition=None)
    x = torch.randn(16, 16)
    changed = x.clone()
    changed[0] += 1
    moved = (trunk(changed) != trunk(x)).any(1)
    assert moved[:12].all()
    assert not moved[12:].any()


def test_no_recurrence__segments_are_apart() -> None:
    torch.manual_seed(0)
    trunk = SegmentAttention(16, 2, 4, segment=4, recurrence=False, condition=None)
    x = torch.randn(10, 16)
    parts = torch.cat([trunk(part) for part in x.split(4)])
    torch.testing.assert_close(trunk(x), parts, **EXACT)


def test_no_attention__each_op_is_by_itself() -> None:
    torch.manual_seed(0)
    trunk = SegmentAttention(16, 2, 0, segment=4, recurrence=True, condition=None)
    x = torch.randn(10, 16)
    rows = torch.cat([trunk(x[row : row + 1]) for row in range(10)])
    torch.testing.assert_close(trunk(x), rows, **EXACT)


def test_superposition__gates_do_what_the_formula_says() -> None:
    torch.manual_seed(0)
    layer = SuperposedLinear(6, 4, 3)
    x, context = torch.randn(5, 6), torch.randn(3)
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, context), plain, **EXACT)  # all gates are 1 at first
    assert layer.conditioner is not None
    torch.nn.init.normal_(layer.conditioner.weight)
    gate = 2 / (1 + torch.exp(-(layer.conditioner.weight @ context + layer.conditioner.bias)))
    expected = (gate * x) @ layer.weight.t() + layer.bias
    torch.testing.assert_close(layer(x, context), expected, **EXACT)
    assert not torch.allclose(expected, plain)


def test_superposition__can_be_switched_off() -> None:
    layer = SuperposedLinear(6, 4, None)
    x = torch.randn(5, 6)
    assert torch.equal(layer(x, torch.randn(3)), torch.nn.functional.linear(x, layer.weight, layer.bias))
    names = dict(make_network(superposition=False).named_parameters())
    assert not [name for name in names if "condition" in name or "context" in name]
    assert [name for name in dict(make_network().named_parameters()) if "conditioner" in name]


def test_head__scores_devices_by_their_features() -> None:
    torch.manual_seed(0)
    head = DeviceHead(8, 5, 2, None, limit=10.0)
    torch.nn.init.normal_(head.query.weight)
    state, devices, pairs = torch.randn(6, 8), torch.randn(4, 5), torch.randn(6, 4, 2)
    logits = head(state, devices, pairs)
    assert logits.shape == (6, 4)
    assert logits.abs().max() <= 10
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(head(state, devices[order], pairs[:, order]), logits[:, order], **EXACT)
    devices[1], pairs[:, 1] = devices[0], pairs[:, 0]
    same = head(state, devices, pairs)
    torch.testing.assert_close(same[:, 0], same[:, 1], **EXACT)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_network__one_serves_any_number_of_devices_and_starts_uniform(devices: int) -> None:
    graph = make_input(devices=devices)
    torch.manual_seed(0)
    fresh = PlacementNetwork(NetworkConfig(width=16))
    assert torch.equal(fresh(graph), torch.zeros(12, devices))
    logits = make_network()(graph)
    assert logits.shape == (12, devices)
    if devices > 1:  # equal devices are still told apart, by their places
        twins = dataclasses.replace(graph, times=torch.full((12, devices), 0.5), memory=torch.full((12, devices), 0.5),
                                    devices=torch.ones(devices, 5), links=torch.ones(devices, devices))  # fmt: skip
        rows = make_network()(twins)
        assert not torch.allclose(rows[:, 0], rows[:, 1])


SWITCHES = [
    {},
    {"sage_layers": 0},
    {"attention": False},
    {"recurrence": False},
    {"superposition": False},
    {"use_times": False},
    {"waves": 0},
    {"blocks": 0},
    {"sage_layers": 0, "attention": False, "superposition": False},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_network__every_switch_runs_and_every_weight_learns(switches: dict[str, object]) -> None:
    network = make_network(**switches)
    graph = make_input(edges=60)
    logits = network(graph)
    assert logits.shape == (12, 3)
    assert torch.isfinite(logits).all()
    (logits * torch.randn(12, 3)).sum().backward()
    assert all(value.grad is not None for value in network.parameters())


def test_network__without_times_sees_none() -> None:
    graph = make_input()
    nodes = graph.nodes.clone()
    nodes[:, inputs.TIME_COLUMNS] += 1
    other = dataclasses.replace(graph, times=graph.times * 0.5, nodes=nodes)
    assert torch.equal(make_network(use_times=False)(graph), make_network(use_times=False)(other))
    assert not torch.equal(make_network()(graph), make_network()(other))


def test_padding__changes_nothing() -> None:
    graph = make_input(groups=12, devices=3, edges=20)
    padded = {
        "nodes": torch.nn.functional.pad(graph.nodes, (0, 0, 0, 7)).flatten(),
        "node_mask": torch.tensor([1] * 12 + [0] * 7, dtype=torch.int8),
        "times": torch.nn.functional.pad(graph.times, (0, 2, 0, 7)).flatten(),
        "memory": torch.nn.functional.pad(graph.memory, (0, 2, 0, 7)).flatten(),
        "edge_index": torch.nn.functional.pad(graph.edge_index, (0, 9), value=-1).flatten().int(),
        "edge_bytes": torch.nn.functional.pad(graph.edge_bytes, (0, 9)),
        "links": torch.nn.functional.pad(graph.links, (0, 2, 0, 2)).flatten(),
        "devices": torch.nn.functional.pad(graph.devices, (0, 0, 0, 2)).flatten(),
        "action_mask": torch.tensor([1, 1, 1, 0, 0], dtype=torch.int8),
    }
    network = make_network()
    assert torch.equal(network(GraphInput.from_observation(padded)), network(graph))


def test_input__observation_and_instance_agree() -> None:
    import gymnasium as gym

    import graphopt_gym  # noqa: F401
    from graphopt_gym.graphs.generators import layered_dag

    graphs = [layered_dag(60, seed=1, colocated=0.5), layered_dag(90, seed=2)]
    env = gym.make("PlacementOneShot-v0", graph=graphs, cluster=["toy_mixedx3", "toyx2"])
    for graph in graphs:
        options = {"graph": graph.name, "cluster": "toyx2"}
        observation, _ = env.reset(seed=0, options=options)
        episodes = env.unwrapped.episodes  # type: ignore[attr-defined]
        from_instance = GraphInput.from_instance(episodes.instance(0))
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in observation.items()}
        from_observation = GraphInput.from_observation(tensors)
        for entry in dataclasses.fields(GraphInput):
            assert torch.equal(getattr(from_observation, entry.name), getattr(from_instance, entry.name)), entry.name


def test_saving_memory__changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = make_input(groups=40, edges=80)
    gradients = []
    for threshold in (10_000, 1):
        monkeypatch.setattr(placement, "SAVE_MEMORY_ABOVE", threshold)
        network = make_network()
        logits = network(graph)
        logits.log_softmax(1)[:, 0].sum().backward()
        gradients.append([value.grad.clone() for value in network.parameters() if value.grad is not None])
    for kept, computed_again in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, computed_again, **EXACT)


@pytest.mark.parametrize(
    ("bad", "says"),
    [({"width": 0}, "width is 0"), ({"width": 30}, "4 heads"), ({"segment": 1.5}, "segment is 1.5"),
     ({"logit_limit": 0.0}, "logit_limit is 0.0")],
)  # fmt: skip
def test_config__refuses_bad_sizes(bad: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        NetworkConfig(**bad)  # type: ignore[arg-type]


def test_network__sees_memory() -> None:
    graph, network = make_input(), make_network()
    for other in (
        dataclasses.replace(graph, memory=graph.memory * 0.5),
        dataclasses.replace(graph, devices=graph.devices * torch.tensor([1, 1, 1, 1, 0.5])),
    ):
        assert not torch.equal(network(other), network(graph))


def test_cluster_memory__is_what_the_graph_holds_to_all_memory_together() -> None:
    share = torch.tensor([0.5, 1.0, 2.0])  # of each device's capacity; 1 / 3.5 of all
    devices = torch.ones(3, 5)
    devices[:, inputs.MEMORY_COLUMN] = share / (1 + share)
    got = dataclasses.replace(make_input(), devices=devices).cluster_memory()
    torch.testing.assert_close(got, torch.tensor((1 / 3.5) / (1 + 1 / 3.5)))
    empty = dataclasses.replace(make_input(), devices=torch.zeros(3, 5))
    assert empty.cluster_memory() == 0


def test_benchmark__runs_and_measures_each_size() -> None:
    from graphopt_agents.benchmark import agent_report

    report = agent_report((200, 400))
    assert [(row["agent"], row["ops"]) for row in report["rows"]] == [
        (agent, ops) for agent in ("gdp", "go") for ops in (200, 400)
    ]
    assert [row["entries"] for row in report["rows"]] == [200, 400, 600, 1200]
    assert all(row["forward_s"] > 0 and row["step_s"] > 0 and row["peak_mib"] > 0 for row in report["rows"])
