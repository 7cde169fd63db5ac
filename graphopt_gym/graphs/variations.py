"""Variations of the zoo's graphs: other depths, widths, batches and lengths of the networks that it has.

Two ways, and which one it is depends on the keys alone, so that a number makes the same graph wherever it is asked for:

- ``batch`` alone: the shipped graph, :func:`with_batch`. FLOPs, bytes and shapes of what depends on the batch are
  scaled; parameters, their gradients and updates are not. Nothing has to be installed.
- anything else that the network's builder takes: the network is built and captured anew, which needs torch and takes
  from a third of a second to minutes the first time. Captures are kept, in memory and in the user's folder of caches, a
  file for each configuration; the operators that torch dispatches may differ from release to release, so the torch
  release is part of the file's name, and solutions of such graphs may be refused by another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numba.misc.appdirs import AppDirs

from graphopt_gym.errors import InputError, one_line
from graphopt_gym.extras import need
from graphopt_gym.fields import choice, whole
from graphopt_gym.generator import Generator, Key, whole_range
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, ComputationGraph
from graphopt_gym.graphs.io import read_graph, save_graph
from graphopt_gym.graphs.microbatches import of_parameters, shared_ops
from graphopt_gym.graphs.zoo.registry import ENTRIES

KEPT = 64  # captures in memory
_MOST = 1_000_000
_UPDATE, _GATHER = PHASES.index("optimizer"), OP_CLASSES.index("gather")
_ELEMENTWISE = OP_CLASSES.index("elementwise")


def with_batch(graph: ComputationGraph, batch: int) -> ComputationGraph:
    """A graph of the zoo with another batch, without capturing it again.

    Of each op that a batch is in: FLOPs, and bytes that are not of parameters or of their gradients, go with the batch;
    so does the dimension of its output that is the batch, or else the first that the batch divides. Ops, edges and
    groups stay. Beside captures of eight graphs with a quarter to a half of their batches: FLOPs and bytes add up to
    the same within 0.2 %; what differs is small (positions counted as a batch, sums of a tied parameter's gradients).

    Raises:
        InputError: the graph does not say its batch.
    """
    batch = whole("batch", batch, 1, _MOST)
    had = graph.metadata.get("configuration", {}).get("batch")
    if not isinstance(had, int):
        raise InputError(f"graph {graph.name!r} does not say its batch, so it cannot be given another")
    shape = graph.output_shape.copy()
    # of a parameter, its gradient, or with no dimension that could hold the batch
    fixed = np.where(((shape > 0) & (shape % had == 0)).any(axis=1), of_parameters(graph), graph.output_bytes)
    once = shared_ops(graph) | (graph.phase == _UPDATE)
    whole_output = once | (fixed >= graph.output_bytes)
    read_fixed = np.zeros(graph.num_ops, np.int64)
    np.add.at(read_fixed, graph.edge_dst, fixed[graph.edge_src])
    read_fixed[graph.op_class == _GATHER] = 0  # of a table only the rows that are looked up
    flops_fixed = np.where(whole_output & (graph.op_class == _ELEMENTWISE), graph.flops, 0)

    def scaled(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
        kept = np.minimum(values, kept)
        return np.where(once, values, kept + np.rint((values - kept) * (batch / had)).astype(np.int64))

    goes = ~whole_output[:, None] & (shape > 0) & (shape % had == 0)
    rows = np.flatnonzero(goes.any(axis=1))
    at = (goes[rows] * (1 + (shape[rows] == had))).argmax(axis=1)  # that is the batch itself, or else the first
    shape[rows, at] = shape[rows, at] // had * batch
    configuration = {**graph.metadata["configuration"], "batch": batch}
    return graph.replace(
        name=f"{graph.name}_batch{batch}",
        metadata={**graph.metadata, "configuration": configuration},
        output_shape=shape,
        flops=scaled(graph.flops, flops_fixed),
        bytes_read=scaled(graph.bytes_read, read_fixed),
        bytes_written=scaled(graph.bytes_written, fixed),
        output_bytes=scaled(graph.output_bytes, fixed),
    )


@dataclass(frozen=True, kw_only=True)
class GraphVariations(Generator[ComputationGraph]):
    """A graph of the zoo with other sizes: ``variations:bert_base:layers=2-6:batch=8-64``.

    Args:
        graph: its name.
        sizes: ranges by the name of an argument of the network's builder that is a whole number, each drawn
            log-uniformly; a width is rounded down to a multiple of eight times the heads, where there are any.
        seed: see :class:`~graphopt_gym.generator.Generator`.
    """

    word: ClassVar[str] = "variations"
    first: ClassVar[str] = "graph"
    keys: ClassVar[Mapping[str, Key]] = {}

    graph: Any
    sizes: Any = ()

    def __post_init__(self) -> None:
        choice("variations: graph", self.graph, ENTRIES)
        config = ENTRIES[self.graph].config
        known = [name for name, value in config.items() if isinstance(value, int) and not isinstance(value, bool)]
        given = dict(self.sizes)
        for name in given:
            choice(f"variations: size of {self.graph}", name, known)
        if not given:
            raise InputError(f"variations: give at least one size of {self.graph} a range, such as {known[-1]}=8-64")
        size = whole_range(1, _MOST)
        ranges = tuple((name, size.read(f"variations: {name}", given[name])) for name in known if name in given)
        object.__setattr__(self, "sizes", ranges)
        if self.seed is not None:
            object.__setattr__(self, "seed", self.known()["seed"].read("variations: seed", self.seed))

    @classmethod
    def parse(cls, text: str) -> GraphVariations:
        name, *parts = text.split(":")[1:] or [""]
        sizes: dict[str, str] = {}
        for part in parts:
            key, equals, value = part.partition("=")
            if not equals or key in sizes:
                raise InputError(f"variations: {part!r} is no KEY=VALUE, or is there twice; give such as batch=8-64")
            sizes[key] = value
        seed = sizes.pop("seed", None)
        return cls(graph=name, sizes=sizes, seed=seed)

    def _start(self) -> list[str]:
        write = whole_range(1, _MOST).write
        return [self.word, self.graph, *(f"{name}={write(ends)}" for name, ends in self.sizes)]

    @property
    def most(self) -> Mapping[str, int]:
        """Sizes of the graph with all at their upper ends; more of what a network is made of makes no fewer ops."""
        graph = self._of({name: high for name, (_, high) in self.sizes})
        groups = len(np.unique(graph.colocation))
        return {
            "ops": graph.num_ops, "groups": groups, "edges": graph.num_edges, "group_edges": graph.num_edges,
        }  # fmt: skip

    def _make(self, rng: np.random.Generator, name: str) -> ComputationGraph:
        drawn = {}
        for key, (low, high) in self.sizes:
            drawn[key] = min(max(int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))), low), high)
        return self._of(drawn).replace(name=name)

    def _of(self, sizes: dict[str, int]) -> ComputationGraph:
        """The graph of some sizes; a width is rounded down to what its heads take."""
        heads = sizes.get("heads", ENTRIES[self.graph].config.get("heads", 1))
        if "width" in sizes and heads > 1:
            sizes["width"] = max(1, sizes["width"] // (8 * heads)) * 8 * heads
        return _variation(self.graph, tuple(sizes.items()))


@lru_cache(maxsize=KEPT)
def _variation(name: str, sizes: tuple[tuple[str, int], ...]) -> ComputationGraph:
    """A graph of the zoo with other sizes."""
    from graphopt_gym.graphs.zoo import GRAPHS

    if [key for key, _ in sizes] == ["batch"]:
        return with_batch(GRAPHS.load_shipped(name), sizes[0][1])
    need("torch", what=f"variations of {name} by more than its batch")
    import torch

    entry = ENTRIES[name]
    config = {**entry.config, **dict(sizes)}
    facts = json.dumps([name, entry.family, list(map(str, config.items())), torch.__version__, "1"])
    folder = Path(AppDirs(appname="graphopt-gym", appauthor=False).user_cache_dir, "variations")
    path = folder / f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:20]}.npz"
    try:
        return read_graph(path)
    except (InputError, OSError):
        pass  # not there, or damaged: made anew
    said = ", ".join(f"{key}={value}" for key, value in sizes)
    try:
        graph = replace(entry, config=config).capture(name)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise InputError(f"variations: {name} with {said} cannot be built: {one_line(error)}; give others") from None
    with contextlib.suppress(InputError, OSError):  # no room, or no right to write: kept in memory alone
        save_graph(graph, path)
    return graph
