"""What an agent sees of a program and its matches, as arrays; all floats lie in 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from graphopt_gym.envs.core.observation import ObservationTable, Part
from graphopt_gym.envs.rewrite.problem import Rewritten
from graphopt_gym.envs.rewrite.rules.matching import Match
from graphopt_gym.envs.rewrite.rules.patterns import Rule
from graphopt_gym.graphs.tensor_program.ops import ACTIVATIONS, FOREIGN, MORE, OPS, Params, Shape

NODE_FEATURES = {
    "seconds": "its time to that of the whole original, square root",
    "static": "1: it depends on weights alone and costs nothing",
    "output": "1: a result of the program",
    "place": "its place in topological order: 0 the first",
    "operands": "how many tensors it reads, squashed",
    "readers": "how many nodes read it, squashed",
    "elements": "elements of its tensor: log2 to 32",
    "last_axis": "size of its tensor's last axis: log2 to 16",
    "second_axis": "size of its tensor's second axis: log2 to 16",
    **{f"act_{act}": "1: this activation is fused into it" for act in ACTIVATIONS if act != "none"},
    **{f"is_{op}": "1: this operator" for op in OPS if op not in FOREIGN and op not in MORE},
}
MATCH_FEATURES = {
    "rule": "the rule's place in the list of rules: 0 the first, 1 the last",
    "seconds": "time of the nodes that are replaced to that of the whole original, square root",
    "growth": "operators of the target less those of the source, 0.5: as many",
    "multi": "1: two nodes are replaced",
}
PROGRESS_FEATURES = {
    "seconds": "the program's time to the original's, squashed: 0.5 as long",
    "best": "the same of the cheapest so far",
    "left": "share of the steps that are left",
    "matches": "share of the current matches that are shown",
}
# N nodes, E edges, M matches: what there is room for; R rules
TABLE = ObservationTable(
    (
        Part(
            "nodes",
            ("N", len(NODE_FEATURES)),
            "share",
            "the features of every node of the program, in topological order",
        ),
        Part("node_mask", ("N",), "mask", "1: a node"),
        Part("edge_index", (2, "E"), "index", "producer and consumer, an edge an operand", "-1", "N"),
        Part("edge_operand", ("E",), "share", "which operand: 0 the first, 1 the last"),
        Part("matches", ("M", len(MATCH_FEATURES)), "share", "the features of every match"),
        Part("match_rule", ("M",), "index", "its rule, an index into `problem.matcher.rules`", "-1", "R"),
        Part("match_roots", ("M", 2), "index", "the nodes that it replaces; a rule on one node has one", "-1", "N"),
        Part(
            "progress",
            (len(PROGRESS_FEATURES),),
            "share",
            "the program's time and the least so far against the original's, steps left, share of matches shown",
            "none",
        ),
        Part("action_mask", ("M + 1",), "mask", "1: the action is legal"),
    )
)
_OWN = 6  # columns that depend on the program; the others on operator, parameters and shape
_OP_COLUMN = {  # others: all zeros
    op: column for column, op in enumerate(op for op in OPS if op not in FOREIGN and op not in MORE)
}


@lru_cache(maxsize=1 << 16)
def _kind_features(op: str, params: Params, shape: Shape) -> bytes:
    """The features of a node that depend on it alone, after the first :data:`_OWN`: float32, as they lie in memory."""
    out = [0.0] * (len(NODE_FEATURES) - _OWN)
    out[0] = min(1.0, math.log2(1 + math.prod(shape)) / 32)
    out[1] = min(1.0, math.log2(shape[-1]) / 16) if shape and shape[-1] else 0.0
    out[2] = min(1.0, math.log2(shape[1]) / 16) if len(shape) > 1 and shape[1] else 0.0
    names = list(OPS[op].params)
    acts = [act for act in ACTIVATIONS if act != "none"]
    if "act" in names and params[names.index("act")] != "none":
        out[3 + acts.index(params[names.index("act")])] = 1.0
    if op in _OP_COLUMN:
        out[3 + len(acts) + _OP_COLUMN[op]] = 1.0
    return np.array(out, np.float32).tobytes()


def _kind_rows(state: Rewritten) -> np.ndarray:
    """float32 [n, F - _OWN]: :func:`_kind_features` of a program's nodes in its order; worked out once a node."""
    kinds, nodes, order = state.kinds, state.program.nodes, state.program.order
    for node in nodes.keys() - kinds.keys():
        op, params, _, shape = nodes[node]
        kinds[node] = _kind_features(op, params, shape)
    return np.frombuffer(b"".join([kinds[node] for node in order]), np.float32).reshape(len(order), -1)


def node_features(state: Rewritten, original_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features float32 [n, F], edges int32 [2, e], operand places float32 [e]) of a program in its order.

    An edge is an operand: an operator that reads a tensor twice has two. Its place is 0 for the first operand, 1 for
    the last.
    """
    program = state.program
    nodes, position = program.nodes, program.position
    order = program.order
    n = len(order)
    features = np.empty((n, len(NODE_FEATURES)), np.float32)
    features[:, _OWN:] = _kind_rows(state)
    seconds = state.node_costs
    features[:, 0] = _root_share([seconds.get(node, 0.0) for node in order], original_s)
    features[:, 1] = list(map(program.is_static, order))
    features[:, 2] = 0.0
    features[[position[output] for output in program.outputs], 2] = 1.0
    features[:, 3] = np.arange(n) / max(1, n - 1)
    inputs = [nodes[node][2] for node in order]
    operands = np.array(list(map(len, inputs)))
    sources = np.array([position[source] for read in inputs for source in read], np.int32)
    readers = np.bincount(sources, minlength=n)
    features[:, 4] = operands / (1.0 + operands)
    features[:, 5] = readers / (1.0 + readers)
    edges = np.stack([sources, np.repeat(np.arange(n, dtype=np.int32), operands)])
    first = np.cumsum(operands) - operands
    place = (np.arange(len(sources)) - np.repeat(first, operands)) / np.repeat(np.maximum(1, operands - 1), operands)
    return features, edges, place.astype(np.float32)


def _root_share(seconds: Sequence[float], original_s: float) -> np.ndarray:
    times = np.asarray(seconds, np.float64)
    return np.sqrt(np.minimum(1.0, times / original_s)) if original_s > 0 else np.zeros(len(times))


def match_features(
    state: Rewritten, matches: Sequence[Match], grown: Sequence[int], rules: int, original_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features float32 [m, K], rule int32 [m], roots int32 [m, 2] as places in the program's order, -1: none)."""
    position, seconds = state.program.position, state.node_costs
    features = np.zeros((len(matches), len(MATCH_FEATURES)), np.float32)
    rule = np.array([match.rule for match in matches], np.int32)
    roots = np.full((len(matches), 2), -1, np.int32)
    if matches:
        pairs = [match.roots if len(match.roots) == 2 else (match.roots[0], -1) for match in matches]
        roots[:] = [(position[first], position.get(second, -1)) for first, second in pairs]
        times = [seconds.get(first, 0.0) + seconds.get(second, 0.0) for first, second in pairs]
        features[:, 0] = rule / max(1, rules - 1)
        features[:, 1] = _root_share(times, original_s)
        features[:, 2] = np.clip(0.5 + np.asarray(grown, np.float64)[rule] / 16, 0, 1)
        features[:, 3] = roots[:, 1] >= 0
    return features, rule, roots


def growth(rule: Rule) -> tuple[int, int, int]:
    """(operators of the target less those of the source; most nodes, most edges that the target adds)."""
    made = [one for part in rule.target if hasattr(part, "ops") for one in part.ops()]
    source = sum(1 for part in rule.source for _ in part.ops())
    distinct = dict.fromkeys(made)
    return len(distinct) - source, len(distinct), sum(len(one.operands) for one in distinct)


def shown(matches: Sequence[Match], most: int) -> list[Match]:
    """At most ``most`` of the matches, in their order: where there are more, as evenly from each rule as it goes."""
    if len(matches) <= most:
        return list(matches)
    rules = np.array([match[0] for match in matches])
    first = np.flatnonzero(np.append(True, rules[1:] != rules[:-1]))
    turn = np.arange(len(rules)) - np.repeat(first, np.diff(np.append(first, len(rules))))
    chosen = np.sort(np.argsort(turn, kind="stable")[:most])
    return [matches[at] for at in chosen.tolist()]
