"""Layers of training steps: stages made of them compute what the whole computes, from what they keep and are sent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import PHASES, SOURCE
from graphopt_gym.graphs.layers import layers_of
from graphopt_gym.graphs.random_graphs import RandomGraphs
from graphopt_gym.graphs.zoo import load_graph

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from graphopt_gym.graphs.capture import build_graph, trace_step  # noqa: E402
from graphopt_gym.graphs.execute import execute_stages  # noqa: E402
from graphopt_gym.graphs.stages import default_stages  # noqa: E402

WIDTH, WORDS = 8, 11
FORWARD, BACKWARD, UPDATE = range(len(PHASES))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, x, mask):
        return x + self.second(self.first(self.norm(x)).relu()) * mask


class Tied(nn.Module):
    """Embedding and head share their weight; a mask goes to all blocks, a skip over them, one dropout is everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.drop, self.norm = nn.Dropout(0.0), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words, keep, targets):
        mask = (1 - keep).unsqueeze(-1)
        first = x = self.drop(self.embed(words))
        for block in self.blocks:
            x = block(x, mask)
        x = self.drop(self.norm(x + first))
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.GroupNorm(1, 3)) for _ in range(3))
        self.head = nn.Linear(3, 5)

    def forward(self, x, targets):
        for layer in self.layers:
            x = nn.functional.max_pool2d(layer(x).relu(), 2, stride=1, padding=1)
        return nn.functional.cross_entropy(self.head(x.mean((2, 3))), targets)


class Cell(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.new = nn.Linear(width + WIDTH, WIDTH), nn.Linear(width + WIDTH, WIDTH)

    def forward(self, x, state):
        both = torch.cat([x, state], -1)
        gate = self.gate(both).sigmoid()
        return gate * state + (1 - gate) * self.new(both).tanh()


class Recurrent(nn.Module):
    """Two cells over time, and attention from the second to all of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Cell(WIDTH), Cell(2 * WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x, targets):
        state, states, outputs = torch.zeros_like(x[:, 0]), [], []
        for step in range(x.shape[1]):
            state = self.encoder(x[:, step], state)
            states.append(state)
        memory = torch.stack(states, 1)
        for step in range(x.shape[1]):
            shares = (memory @ state.unsqueeze(-1)).softmax(1)
            state = self.decoder(torch.cat([x[:, step], (memory * shares).sum(1)], -1), state)
            outputs.append(self.head(state))
        return nn.functional.cross_entropy(torch.stack(outputs, 1).flatten(0, 1), targets.flatten())


def inputs_of(name: str, size: int) -> list[torch.Tensor]:
    words = torch.randint(WORDS, (size, 5))
    if name == "tied":
        return [words, (torch.rand(size, 5) < 0.3).float(), torch.randint(WORDS, (size, 5))]
    if name == "convolutions":
        return [torch.randn(size, 3, 6, 6), torch.randint(5, (size,))]
    return [torch.randn(size, 3, WIDTH), words[:, :3]]


MODELS = {"tied": Tied, "convolutions": Convolutions, "recurrent": Recurrent}


@pytest.mark.parametrize("cut", ["auto", "calls"])
@pytest.mark.parametrize("name", MODELS)
def test_stages__compute_the_loss_and_gradients_of_the_whole(name: str, cut: str) -> None:
    torch.manual_seed(0)
    module, micro_batches = MODELS[name](), 3
    inputs = inputs_of(name, 2 * micro_batches)
    parts = [list(part) for part in zip(*(one.split(2) for one in inputs), strict=True)]
    trace = trace_step(module, tuple(parts[0]), target="cpu")
    built = build_graph(trace, name, {"stages": default_stages(module, trace.calls)})
    layers = layers_of(built.graph, cut)
    loss = module(*inputs)
    wanted = dict(
        zip(trace.grads, torch.autograd.grad(loss, [dict(module.named_parameters())[n] for n in trace.grads]))
    )
    every = range(1, layers.num_layers)
    cuts = [[], list(every), *([one] for one in every), *itertools.islice(itertools.combinations(every, 2), 0, 60, 12)]
    for chosen, recompute in itertools.product(cuts, (False, True)):
        found = execute_stages(trace, built, module, parts, layers, chosen, recompute=recompute)
        torch.testing.assert_close(found.outputs[0], loss)
        for parameter, gradient in wanted.items():
            torch.testing.assert_close(found.grads[parameter], gradient)


def test_stages__have_no_more_than_they_keep_and_are_sent() -> None:
    module = Tied()
    trace = trace_step(module, tuple(inputs_of("tied", 2)), target="cpu")
    built = build_graph(trace, "tied")
    layers = layers_of(built.graph, "calls")
    broken = layers_of(built.graph, "calls")
    tensors = layers.forward_tensors
    broken.__dict__["forward_tensors"] = tensors._replace(last=tensors.made)
    with pytest.raises(InputError, match="neither keeps nor was sent"):
        execute_stages(trace, built, module, [inputs_of("tied", 2)], broken, [layers.num_layers // 2])


@pytest.mark.parametrize(
    ("name", "layers", "sent", "tied"),
    [
        # hidden states of 32 x 384 x 768 and the mask; the words' embedding is the head's weight
        ("bert_base", 14, 32 * 384 * (768 + 1) * 4, [(0, 13)]),
        ("transformer_xl_2layer", 4, None, [(0, 3)]),
        ("rnnlm_2layer", 4, 60 * 64 * 2048 * 4, []),
    ],
)
def test_zoo__sends_what_its_blocks_hand_over(name, layers, sent, tied) -> None:
    found = layers_of(load_graph(name))
    assert found.num_layers == layers
    assert [one.layers for one in found.parameters if len(one.layers) > 1] == tied
    tensors = found.forward_tensors
    cut = layers // 2
    crossing = tensors.op[(tensors.made >= 0) & (tensors.made < cut) & (tensors.last >= cut)]
    if sent is not None:
        assert found.graph.output_bytes[crossing].sum() == sent


@pytest.mark.parametrize("cut", ["auto", "calls"])
@pytest.mark.parametrize("name", ["bert_base", "transformer_xl_2layer", "gnmt_2layer", "inception_v3_b32", "amoebanet"])
def test_layers__edges_go_up_forward_and_down_backward(name: str, cut: str) -> None:
    graph = load_graph(name)
    found = layers_of(graph, cut)
    layer, source, target = found.layer, graph.edge_src, graph.edge_dst
    assert set(layer[graph.phase == FORWARD]) == set(range(found.num_layers))
    inner = (graph.op_class[source] != SOURCE) & ~found.shared[source] & ~found.shared[target]
    ahead = inner & (graph.phase[source] == FORWARD) & (graph.phase[target] == FORWARD)
    assert (layer[source[ahead]] <= layer[target[ahead]]).all()
    back = inner & (graph.phase[found.tensor[source]] == BACKWARD) & (graph.phase[target] == BACKWARD)
    assert (layer[source[back]] >= layer[target[back]]).all()
    assert len(found.parameters) == (graph.phase == UPDATE).sum()
    # what forward made is read where it is or sent on, never back
    assert (found.kept_tensors.first >= found.kept_tensors.made).all()
    weights = found.is_weight
    assert (graph.phase[weights] == BACKWARD).all()
    # no gradient of inputs waits for one of weights
    waits = back & weights[source] & ~weights[target] & ~found.of_gradients[source]
    assert not waits.any()


def test_weights__are_the_matrix_products_that_give_their_gradients() -> None:
    graph = load_graph("bert_base")
    found = layers_of(graph)
    products = np.flatnonzero((graph.phase == BACKWARD) & np.isin(graph.kind, [graph.kinds.index("mm")]))
    assert found.is_weight[products].sum() == len(products) // 2


def test_refused__what_is_no_step_and_unknown_cuts() -> None:
    with pytest.raises(InputError, match="no training step"):
        layers_of(layered_dag(50, seed=0))
    assert layers_of(RandomGraphs(num_ops=200, families="transformer").make(0), "calls").num_layers > 1
    with pytest.raises(InputError, match="cut"):
        layers_of(load_graph("bert_base"), "block")
