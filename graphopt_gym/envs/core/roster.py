"""The graphs and clusters that an environment draws from: each pair an instance of its task."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from graphopt_gym.catalog import Catalog, catalogs
from graphopt_gym.errors import InputError, quoted, unknown_name
from graphopt_gym.fields import whole
from graphopt_gym.generator import Called, Curriculum, Generator
from graphopt_gym.graphs.graph import ComputationGraph
from graphopt_gym.hardware.package import Package
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
        _kept[key] = (instance_class(_made(problem_class, loaded, files, options)), options)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key][0]


def _made(
    problem_class: type[Problem], loaded: Mapping[str, Any], files: Mapping[str, str], options: Mapping[str, Any]
) -> Problem:
    """The problem of a loaded graph and cluster; ``files``: the names that they were loaded by."""
    problem = problem_class(**loaded, **options)
    problem.config = {**problem.config, **files}
    return problem


class _Entry(NamedTuple):
    """A graph or a cluster that an environment may be asked for: one thing, or what draws it."""

    given: Any  # a name, a path or an object
    stages: tuple[Generator[Any] | Called[Any], ...] = ()  # none: it is one thing


class Roster(Generic[InstanceT]):
    """All graphs on all clusters that an environment may be asked for, or what draws them.

    Args:
        problem_class, instance_class, load, options: see :func:`instance_of`.
        graph: one graph (name, path or object) or a sequence of them; a split's name stands for its graphs. A problem
            stands for itself; then ``cluster`` is its own. A generator, its text, a function of a generator of random
            numbers, or a curriculum of these: graphs are drawn, see :mod:`graphopt_gym.generator`.
        cluster: one cluster, or a sequence, or what draws them.

    Raises:
        InputError: an empty list, or a name that occurs twice.
    """

    # by the size that observations are padded to, the instance's own; none: an environment that cannot draw
    measures: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(
        self,
        problem_class: type[Problem],
        instance_class: Callable[[Any], InstanceT],
        graph: Any,
        cluster: Any,
        load: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        self._problem_class, self._instance_class, self._options = problem_class, instance_class, options
        graphs = [_Entry(graph)] if isinstance(graph, Problem) else self._read("graph", graph)
        clusters = self._read("cluster", cluster)
        if any(isinstance(one.given, Problem) for one in graphs):
            clusters = clusters[:1]
        self._entries = {"graph": graphs, "cluster": clusters}
        self.sizes: dict[str, int] = {}  # values of the symbols in the table of observations
        self.instances = [
            [
                instance_of(problem_class, instance_class, one.given, on.given, load, **options)
                if isinstance(one.given, Problem) or not (one.stages or on.stages) else None
                for on in clusters
            ]
            for one in graphs
        ]  # fmt: skip
        all_pairs = [one for row in self.instances for one in row]
        self.flat: list[InstanceT] = [one for one in all_pairs if one is not None]
        self._flat_index = np.cumsum([one is not None for one in all_pairs]) - 1  # of each pair
        self.draws = None in all_pairs
        if self.draws and not self.measures:
            raise InputError(f"{problem_class.env_id} draws no graphs and clusters anew; give names, paths or objects")
        self.num_stages = max(len(one.stages) for one in (*graphs, *clusters)) if self.draws else 0
        # what stands beside what is drawn is loaded once
        self._loaded = {
            what: [load.get(what, self._catalog(what).load)(one.given) if self.draws and not one.stages else None
                   for one in entries]
            for what, entries in self._entries.items()
        }  # fmt: skip
        self.graph_names = _names("graph", [self._name("graph", at) for at in range(len(graphs))])
        self.cluster_names = _names("cluster", [self._name("cluster", at) for at in range(len(clusters))])

    def __deepcopy__(self, memo: dict[int, Any]) -> Roster[InstanceT]:
        return self  # it does not change, and what it holds is shared between environments anyway

    def _catalog(self, what: str) -> Catalog[Any]:
        return catalogs()[task_of(self._problem_class.env_id).catalogs[what]]

    def _read(self, what: str, given: Any) -> list[_Entry]:
        catalog, found = self._catalog(what), []
        for one in catalog.expand(given, what):
            stages = one.stages if isinstance(one, Curriculum) else (one,)
            drawn = [None if isinstance(stage, Problem) else catalog.generator(stage) for stage in stages]
            if isinstance(one, Curriculum) and None in drawn:
                raise InputError(f"{what}: stage {drawn.index(None)} of {one!r} draws nothing; give a generator")
            if drawn == [None]:
                found.append(_Entry(one))
            elif len(drawn) == 1 and isinstance(drawn[0], Generator) and drawn[0].only is not None:
                found.append(_Entry(drawn[0].text))  # one thing, by its name
            else:
                found.append(_Entry(one, tuple(stage for stage in drawn if stage is not None)))
        return found

    def _name(self, what: str, at: int) -> str:
        """What an entry is called among the options of a reset."""
        entry = self._entries[what][at]
        if entry.stages:
            return entry.stages[0].text if len(entry.stages) == 1 else repr(entry.given)
        pairs = self.instances[at] if what == "graph" else [row[at] for row in self.instances]
        problems = [one.problem for one in pairs if one is not None]
        if problems:
            return problems[0].graph_name if what == "graph" else problems[0].cluster_name
        return str(getattr(self._loaded[what][at], "name", ""))

    def room(self, argument: str, given: int | None, what: str, size: str) -> int:
        """A size to pad to: what is given, or what any instance needs that is there or may be drawn.

        Args:
            argument, given: what the size is called here, a key of :attr:`measures`, and what it was given as.
            what: ``"graph"`` or ``"cluster"``, on which it depends.
            size: what generators call it, see :attr:`Generator.most`.

        Raises:
            InputError: less than what is there, or no whole number; nothing is given, and a generator does not know.
        """
        there = max((int(getattr(one, self.measures[argument])) for one in self.flat), default=1)
        if given is not None or not self.draws:
            return padded_size(argument, given, max(1, there))
        found = [1, there]
        for entry, loaded in zip(self._entries[what], self._loaded[what], strict=True):
            for known in [stage.most.get(size) for stage in entry.stages] or [_sizes(loaded)[size]]:
                if known is None:
                    raise InputError(f"{what} is a function, which may return any size; give {argument}, the largest")
                found.append(known)
        return max(found)

    def check(self, options: Mapping[str, Any] | None) -> None:
        """Raises InputError for options of a reset that are not known, or name what is not there."""
        if options is not None and not isinstance(options, Mapping):
            raise InputError(f"options is {quoted(options)}; give names, such as {{'graph': {self.graph_names[0]!r}}}")
        known = ["graph", "cluster", *(["stage"] if self.num_stages > 1 else [])]
        for option, name in (options or {}).items():
            if option not in known:
                raise unknown_name("reset option", option, known)
            if option == "stage":
                self.check_stage(name)
            else:
                self._find(option, name)

    def check_stage(self, stage: Any) -> int:
        """A stage of the curriculum, or InputError for what is none."""
        if self.num_stages < 2:
            raise InputError("there are no stages here; give graph or cluster a Curriculum of several")
        return whole("stage", stage, 0, self.num_stages - 1)

    def _find(self, what: str, name: Any) -> tuple[int, str | None]:
        """(entry, name of one of those that it draws, or None) by a name. Raises InputError where it is not there."""
        names = self.graph_names if what == "graph" else self.cluster_names
        if name in names:
            return names.index(name), None
        if self.draws and isinstance(name, str):
            asked = self._catalog(what).generator(name)
            for at, entry in enumerate(self._entries[what]):
                if isinstance(asked, Generator) and asked.only is not None and any(s.has(asked) for s in entry.stages):
                    return at, asked.text
        raise unknown_name(f"{what} of this environment", name, names)

    def draw(
        self, rng: np.random.Generator, options: Mapping[str, Any] | None, stage: int = 0
    ) -> tuple[int, InstanceT]:
        """An episode's instance, and its index in ``flat``, or -1 where it is drawn anew.

        Graph and cluster are those that checked ``options`` name, else each is one of the entries, evenly; what these
        draw comes after, the graph first.

        Raises:
            InputError: what is drawn is larger than the size that observations are padded to.
        """
        options = options or {}
        chosen = {
            what: self._find(what, options[what]) if what in options
            else (int(rng.integers(len(entries))) if len(entries) > 1 else 0, None)
            for what, entries in self._entries.items()
        }  # fmt: skip
        graph, cluster = chosen["graph"][0], chosen["cluster"][0]
        there = self.instances[graph][cluster]
        if there is not None:
            return int(self._flat_index[graph * len(self.cluster_names) + cluster]), there
        return -1, self._drawn(rng, chosen, options.get("stage", stage))

    def _drawn(self, rng: np.random.Generator, chosen: Mapping[str, tuple[int, str | None]], stage: int) -> InstanceT:
        loaded, files = {}, {}
        for what, (at, name) in chosen.items():
            given, stages = self._entries[what][at]
            if name is not None:
                loaded[what] = self._catalog(what).load(name)
            elif stages:
                loaded[what], name = self._catalog(what).drawn(stages[min(stage, len(stages) - 1)], rng)
            else:
                loaded[what] = self._loaded[what][at]
                name = os.fspath(given) if isinstance(given, str | os.PathLike) else None
            if name is not None:
                files[what] = name
        instance = self._instance_class(_made(self._problem_class, loaded, files, self._options))
        for size, own in self.measures.items():
            room, needed = getattr(self, size), getattr(instance, own)
            if needed > room:
                what = f"{instance.problem.graph_name} on {instance.problem.cluster_name}"
                raise InputError(f"{what} was drawn and needs {size}={needed}, but there is room for {room}; give more")
        return instance


def _sizes(thing: Any) -> Mapping[str, int]:
    """Sizes of a graph or a cluster, in the words of :attr:`Generator.most`."""
    if not isinstance(thing, ComputationGraph):
        return {"devices": thing.num_chips if isinstance(thing, Package) else thing.num_devices}
    alone = int((thing.colocation < 0).sum())
    groups = len(np.unique(thing.colocation)) + alone
    return {"ops": thing.num_ops, "groups": groups, "edges": thing.num_edges, "group_edges": thing.num_edges}


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


def _names(what: str, names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two of the {what}s are called {name!r}; give each its own name")
    return names
