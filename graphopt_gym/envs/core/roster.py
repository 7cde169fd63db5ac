"""The graphs and clusters that an environment draws from: each pair an instance of its task."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from graphopt_gym.catalog import catalogs
from graphopt_gym.errors import InputError, quoted, unknown_name
from graphopt_gym.problem import Problem
from graphopt_gym.registration import task_of

KEPT = 256  # instances, so that 64 copies of an environment share one


class HasProblem(Protocol):
    """One graph on one cluster: the problem, and what its episodes need beside."""

    @property
    def problem(self) -> Problem: ...


InstanceT = TypeVar("InstanceT", bound=HasProblem)


# those made lately, and what their keys' ids belong to; shared between all environments of this process
_kept: OrderedDict[tuple[Any, ...], tuple[Any, Any]] = OrderedDict()


def instance_of(
    problem_class: type[Problem],
    instance_class: Callable[[Any], InstanceT],
    graph: Any,
    cluster: Any,
    load: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
    **options: Any,
) -> InstanceT:
    """The instance of a graph on a cluster, made where it is not there yet.

    Args:
        problem_class: called with graph, cluster and ``options``.
        instance_class: called with the problem.
        graph, cluster: names, paths or objects; or, as the graph, a problem that is there already.
        load: what loads a graph or a cluster, where that is not the catalog of the problem's task.
        options: further arguments of the problem.
    """
    if isinstance(graph, Problem):
        if not isinstance(graph, problem_class):
            raise InputError(f"graph is a {type(graph).__name__}; give a graph or a {problem_class.__name__}")
        return instance_class(graph)
    given = {"graph": graph, "cluster": cluster}
    catalog_of = task_of(problem_class.env_id).catalogs
    loaded = {what: load.get(what, catalogs()[catalog_of[what]].load)(one) for what, one in given.items()}
    # a problem's solutions name the files that it was made from
    files = {what: os.fspath(one) for what, one in given.items() if isinstance(one, str | os.PathLike)}
    plain = str | int | float | tuple | None
    named = [(name, value if isinstance(value, plain) else id(value)) for name, value in options.items()]
    of = [part for one in loaded.values() for part in (one.fingerprint, one.name)]
    key = (problem_class, instance_class, *of, *files.items(), *named)
    if key not in _kept:
        problem = problem_class(**loaded, **options)
        problem.config = {**problem.config, **files}
        _kept[key] = (instance_class(problem), options)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key][0]


class Roster(Generic[InstanceT]):
    """All graphs on all clusters that an environment may be asked for.

    Args:
        problem_class, instance_class, load, options: see :func:`instance_of`.
        graph: one graph (name, path or object) or a sequence of them; a split's name stands for its graphs. A problem
            stands for itself; then ``cluster`` is its own.
        cluster: one cluster, or a sequence.

    Raises:
        InputError: an empty list, or a name that occurs twice.
    """

    def __init__(
        self,
        problem_class: type[Problem],
        instance_class: Callable[[Any], InstanceT],
        graph: Any,
        cluster: Any,
        load: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        catalog_of = task_of(problem_class.env_id).catalogs
        graphs = [graph] if isinstance(graph, Problem) else catalogs()[catalog_of["graph"]].expand(graph, "graph")
        clusters = catalogs()[catalog_of["cluster"]].expand(cluster, "cluster")
        if any(isinstance(one, Problem) for one in graphs):
            clusters = clusters[:1]
        self.sizes: dict[str, int] = {}  # values of the symbols in the table of observations
        self.instances = [
            [instance_of(problem_class, instance_class, one, on, load, **options) for on in clusters] for one in graphs
        ]
        self.graph_names = _names("graph", [row[0].problem.graph_name for row in self.instances])
        self.cluster_names = _names("cluster", [one.problem.cluster_name for one in self.instances[0]])

    def __deepcopy__(self, memo: dict[int, Any]) -> Roster[InstanceT]:
        return self  # it does not change, and what it holds is shared between environments anyway

    @property
    def flat(self) -> list[InstanceT]:
        return [one for row in self.instances for one in row]

    def check(self, options: Mapping[str, Any] | None) -> None:
        """Raises InputError for options of a reset that are not known, or name what is not there."""
        if options is not None and not isinstance(options, Mapping):
            raise InputError(f"options is {quoted(options)}; give names, such as {{'graph': {self.graph_names[0]!r}}}")
        known = {"graph": self.graph_names, "cluster": self.cluster_names}
        for option, name in (options or {}).items():
            if option not in known:
                raise unknown_name("reset option", option, known)
            if name not in known[option]:
                raise unknown_name(f"{option} of this environment", name, known[option])

    def draw(self, rng: np.random.Generator, options: Mapping[str, Any] | None) -> int:
        """The index (in ``flat``) of the pair for an episode: what checked ``options`` name, else drawn evenly."""
        graph = _choose("graph", self.graph_names, options or {}, rng)
        cluster = _choose("cluster", self.cluster_names, options or {}, rng)
        return graph * len(self.cluster_names) + cluster


def padded_size(name: str, given: int | None, needed: int) -> int:
    """A size to pad to: what is given, or what the largest instance needs.

    Raises:
        InputError: less than that, more than int32 indices reach, or no whole number.
    """
    if given is None:
        return needed
    if not isinstance(given, (int, np.integer)) or isinstance(given, bool) or not needed <= given < 2**31:
        raise InputError(
            f"{name} is {quoted(given)}; give a whole number of at least {needed}, what the largest needs, below 2**31"
        )
    return int(given)


def _choose(what: str, names: list[str], options: Mapping[str, Any], rng: np.random.Generator) -> int:
    if what in options:
        return names.index(options[what])
    return int(rng.integers(len(names))) if len(names) > 1 else 0


def _names(what: str, names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two of the {what}s are called {name!r}; give each its own name")
    return names
