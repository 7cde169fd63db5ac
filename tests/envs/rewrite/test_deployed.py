"""What rules for processors find: blocks as they are trained become one operator; what nobody reads is not computed."""

from __future__ import annotations

import pytest

import graphopt_gym as gg
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.rules.table import load_rules
from graphopt_gym.graphs.tensor_program import ProgramBuilder, parse_program

REPVGG = """
x = input(name="x", shape=(1, 16, 12, 12))
three = add(conv2d(x, weight(name="w3", shape=(16, 16, 3, 3))), weight(name="b3", shape=(16, 1, 1)))
one = add(conv2d(x, weight(name="w1", shape=(16, 16, 1, 1))), weight(name="b1", shape=(16, 1, 1)))
skip = add(mul(x, weight(name="s", shape=(16, 1, 1))), weight(name="t", shape=(16, 1, 1)))
return relu(add(add(three, one), skip))
"""
RESIDUAL = """
x = input(name="x", shape=(1, 16, 12, 12))
return add(x, conv2d(x, weight(name="w", shape=(16, 16, 3, 3))))
"""
LINEAR = """
x = input(name="x", shape=(32, 64))
h = matmul(x, weight(name="w", shape=(64, 64)))
return relu(add(x, h))
"""
TRANSITION = """
x = input(name="x", shape=(1, 64, 16, 16))
return avgpool(conv2d(x, weight(name="w", shape=(32, 64, 1, 1))), kernel=(2, 2), stride=(2, 2), padding=valid)
"""


def computed(program) -> list[str]:
    nodes = (program.nodes[node] for node in program.order if not program.is_static(node))
    return sorted(one.op for one in nodes if one.op != "input")


@pytest.mark.parametrize(
    ("text", "cluster", "left"),
    [
        (REPVGG, "cpu", ["add", "conv2d", "relu"]),
        (RESIDUAL, "t4", ["conv2d"]),  # on a processor the sum is in the convolution's kernel anyway
        (LINEAR, "cpu", ["matmul", "relu"]),
    ],
)
@pytest.mark.parametrize("method", ["greedy", "saturation"])
def test_branches__become_one_operator(text, cluster, left, method):
    problem = RewriteProblem(parse_program(text), cluster, rules="deployed")
    solution = gg.solve(problem, method)
    assert solution.outcome.valid
    assert computed(solution.decision) == left
    assert solution.outcome.cost < problem.original_s


def test_pooling__comes_before_the_product():
    problem = RewriteProblem(parse_program(TRANSITION), "cpu", rules="deployed")
    solution = gg.solve(problem, "greedy")
    (conv,) = [one for one in solution.decision.nodes.values() if one.op == "conv2d" and one.shape[1] == 32]
    assert conv.shape == (1, 32, 8, 8)
    assert solution.outcome.cost < problem.original_s


def test_separable__is_one_dense_convolution():
    problem = RewriteProblem("small_separable", rules="all")
    solution = gg.solve(problem, "saturation", options={"node_limit": 8000})
    assert solution.outcome.valid
    assert [op for op in computed(solution.decision) if op == "conv2d"] == ["conv2d"]
    published = RewriteProblem("small_separable")
    assert solution.outcome.cost < 0.7 * gg.solve(published, "saturation").outcome.cost


def classifier(layers=2, rows=16, width=32, heads=2):
    """A transformer of which the first token is read."""
    b = ProgramBuilder("classifier")
    x = b.input("x", (1, rows, width))
    scale = b.weight("scale", ())
    for layer in range(layers):
        parts = []
        for name in "qkv":
            part = b.op("matmul", x, b.weight(f"{name}{layer}", (width, width)))
            part = b.op("add", part, b.weight(f"{name}b{layer}", (width,)))
            part = b.op("reshape", part, shape=(1, rows, heads, width // heads))
            parts.append(b.op("transpose", part, perm=(0, 2, 1, 3)))
        q, k, v = parts
        scores = b.op("smul", b.op("matmul", q, b.op("transpose", k, perm=(0, 1, 3, 2))), scale)
        mixed = b.op("transpose", b.op("matmul", b.op("softmax", scores), v), perm=(0, 2, 1, 3))
        mixed = b.op("matmul", b.op("reshape", mixed, shape=(1, rows, width)), b.weight(f"o{layer}", (width, width)))
        g = b.weight(f"g{layer}", (width,))
        x = b.op("layernorm", b.op("add", x, mixed), g, g, epsilon=1e-12)
        hidden = b.op("gelu", b.op("matmul", x, b.weight(f"up{layer}", (width, 4 * width))))
        x = b.op("layernorm", b.op("add", x, b.op("matmul", hidden, b.weight(f"d{layer}", (4 * width, width)))), g, g)
    return b.finish([b.op("matmul", b.op("split0", x, axis=1, at=1), b.weight("head", (width, 3)))])


def test_parts__of_the_last_layer_only_the_first_token_is_computed():
    problem = RewriteProblem(classifier(), "cpu", rules="deployed")
    solution = gg.solve(problem, "saturation", options={"iteration_limit": 60, "node_limit": 5000})
    assert solution.outcome.valid, solution.outcome.reasons
    program = solution.decision
    gelus = sorted(one.shape for one in program.nodes.values() if one.op == "gelu")
    assert gelus == [(1, 1, 128), (1, 16, 128)]
    softmaxes = sorted(one.shape for one in program.nodes.values() if one.op == "softmax")
    assert softmaxes == [(1, 2, 1, 16), (1, 2, 16, 16)]


def test_deployed_rules__are_a_part_of_all():
    assert set(load_rules("deployed")) < set(load_rules("all"))
