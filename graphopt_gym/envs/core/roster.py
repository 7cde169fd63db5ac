"""The graphs and clusters that an environment draws from: each pair an instance of its task."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.problem import Problem

KEPT = 256  # instances of a task, so that 64 copies of an environment share one


class HasProblem(Protocol):
    """One graph on one cluster: the problem, and what its episodes need beside."""

    @property
    def problem(self) -> Problem: ...


InstanceT = TypeVar("InstanceT", bound=HasProblem)


class Shared(Generic[InstanceT]):
    """The instances of a task, shared between all environments of this process that ask for the same."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], tuple[InstanceT, Any]] = OrderedDict()

    def get(
        self,
        graph: Any,
        cluster: Any,
        given: tuple[Any, Any],
        options: tuple[Any, ...],
        make: Callable[[], InstanceT],
        held: Any = None,
    ) -> InstanceT:
        """The instance of a graph on a cluster, made where it is not there yet.

        Args:
            graph, cluster: loaded.
            given: what they were loaded from: a problem's solutions name the files that it was made from.
            options: what else the instance depends on, hashable.
            held: kept with the instance, so that an id among the options stays its own.
        """
        named = zip(("graph", "cluster"), given, strict=True)
        files = {what: os.fspath(one) for what, one in named if isinstance(one, str | os.PathLike)}
        key = (graph.fingerprint, graph.name, cluster.fingerprint, cluster.name, *options, *files.items())
        if key not in self._kept:
            instance = make()
            instance.problem.config |= files
            self._kept[key] = (instance, held)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key][0]


class Roster(Generic[InstanceT]):
    """All graphs on all clusters that an environment may be asked for.

    Args:
        graph: one graph (name, path or object) or a sequence of them; a split's name stands for its graphs.
        cluster: one cluster, or a sequence.
        load: gives the instance of a graph on a cluster.

    Raises:
        InputError: an empty list, or a name that occurs twice.
    """

    def __init__(self, graph: Any, cluster: Any, load: Callable[[Any, Any], InstanceT]) -> None:
        from graphopt_gym.graphs.zoo import GRAPHS
        from graphopt_gym.hardware.cluster import CLUSTERS

        graphs, clusters = GRAPHS.expand(graph), CLUSTERS.expand(cluster)
        self.sizes: dict[str, int] = {}  # values of the symbols in the table of observations
        self.instances = [[load(one, on) for on in clusters] for one in graphs]
        self.graph_names = _names("graph", [row[0].problem.graph.name for row in self.instances])
        self.cluster_names = _names("cluster", [one.problem.cluster.name for one in self.instances[0]])

    def __deepcopy__(self, memo: dict[int, Any]) -> Roster[InstanceT]:
        return self  # it does not change, and what it holds is shared between environments anyway

    @property
    def flat(self) -> list[InstanceT]:
        return [one for row in self.instances for one in row]

    def check(self, options: Mapping[str, Any] | None) -> None:
        """Raises InputError for options of a reset that are not known, or name what is not there."""
        if options is not None and not isinstance(options, Mapping):
            raise InputError(f"options is {options!r}; give names, such as {{'graph': {self.graph_names[0]!r}}}")
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
        InputError: less than that, or no whole number.
    """
    if given is None:
        return needed
    if not isinstance(given, (int, np.integer)) or isinstance(given, bool) or given < needed:
        raise InputError(f"{name} is {given!r}; give a whole number of at least {needed}, what the largest needs")
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
