"""Cases of placement experiments: a graph, and the rules under which it is placed where they are not the papers'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

PAPERS = ("fifo", "colocation")  # the order of TensorFlow's executor; groups of a module's ops

Rules = tuple[str, str]  # order, grouping


def case_of(graph: str, rules: Rules = PAPERS) -> str:
    """``GRAPH``, or ``GRAPH+ORDER+GROUPING``, without what is the papers'."""
    return "+".join([graph, *(one for one, usual in zip(rules, PAPERS, strict=True) if one != usual)])


def cases(graphs: Sequence[str], rules: Iterable[Rules]) -> tuple[str, ...]:
    """Of all graphs under one set of rules after the other."""
    return tuple(case_of(graph, one) for one in rules for graph in graphs)


def graph_of(case: str) -> str:
    """The graph of a case."""
    return case.partition("+")[0]


def rules_of(case: str) -> Rules:
    """(order, grouping) of a case."""
    named = case.split("+")[1:]
    grouping = next((one for one in named if one in ("phase", "op")), PAPERS[1])
    return next((one for one in named if one != grouping), PAPERS[0]), grouping


def arguments(case: str, cluster: str) -> dict[str, Any]:
    """Of the problem of a case."""
    order, grouping = rules_of(case)
    return {"graph": graph_of(case), "cluster": cluster, "order": order, "grouping": grouping}


def words(rules: Rules) -> str:
    """For headings."""
    order, grouping = rules
    return f"order {order}, grouping {grouping}"
