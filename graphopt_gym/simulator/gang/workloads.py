"""Workloads: what is run on a machine of islands, and the plans that it may be run by.

A *plan* is a sharded program. A workload of tenants has one; a pipeline has one for each number of stages and
micro-batches, number of chunks, cut of the layers, and form of backward that may be chosen. All plans of a workload do
the same work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from graphopt_gym.catalog import Catalog, stored_whole
from graphopt_gym.errors import InputError, one_line
from graphopt_gym.fields import whole
from graphopt_gym.files import read_text
from graphopt_gym.generator import Generator, Key, number_range, whole_range
from graphopt_gym.simulator.gang.partition import StageLoads, partition_layers
from graphopt_gym.simulator.gang.program import Builder, ShardedProgram, together
from graphopt_gym.simulator.gang.programs import Pipeline, chain, micro_batch_size, pipeline, stage_layers

PARTS = ("forward", "backward", "weight", "apply")  # arrays of a Pipeline
MOST_PLANS = 256


@dataclass(frozen=True, eq=False)
class Plan:
    """One way to run a workload.

    Args:
        label: for people, unique in the workload.
        program: what runs.
        pipeline: which gang is what, where the program is a pipeline.
        cut: how layers were cut into stages: ``even`` in number, or ``dp``, see :func:`stage_partition`.
    """

    label: str
    program: ShardedProgram
    pipeline: Pipeline | None = None
    cut: str = "even"

    @cached_property
    def unit(self) -> np.ndarray:
        """int32 [G]: the unit of work that each gang is of: the step of a pipeline, else the call."""
        if self.pipeline is None:
            return self.program.call
        found = np.zeros(self.program.num_gangs, np.int32)
        for name in PARTS:
            gangs = getattr(self.pipeline, name)
            for step in range(len(gangs)):
                found[gangs[step].ravel()] = step
        return found

    @property
    def num_units(self) -> int:
        return int(self.unit.max()) + 1

    def to_json(self) -> dict[str, Any]:
        made = self.pipeline
        return {
            "label": self.label,
            "cut": self.cut,
            "program": self.program.to_json(),
            "pipeline": None if made is None else {
                "slice_of": made.slice_of.tolist(), **{name: getattr(made, name).tolist() for name in PARTS},
                "shapes": {name: list(getattr(made, name).shape) for name in PARTS},
            },
        }  # fmt: skip

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Plan:
        program = ShardedProgram.from_json(given["program"])
        stored = given["pipeline"]
        made = None
        if stored is not None:
            arrays = {name: np.array(stored[name], np.int32).reshape(stored["shapes"][name]) for name in PARTS}
            slice_of = np.array(stored["slice_of"], np.int64)
            for name, one in arrays.items():
                if one.size and not 0 <= one.min() <= one.max() < program.num_gangs:
                    raise InputError(f"plan {given['label']!r}: {name} names gangs that are not there")
            if len(slice_of) and not 0 <= slice_of.min() <= slice_of.max() < program.num_slices:
                raise InputError(f"plan {given['label']!r}: slice_of names slices that are not there")
            made = Pipeline(program, slice_of, **arrays)
        return cls(str(given["label"]), program, made, str(given["cut"]))


@dataclass(frozen=True, eq=False)
class Workload:
    """What is run, by one of several plans.

    Args:
        name: what it is called.
        plans: at least one.
        about: a line for people.
        machine: the name of a machine that it is meant for.

    Raises:
        InputError: no plans, too many, or two of one label.
    """

    name: str
    plans: tuple[Plan, ...]
    about: str = ""
    machine: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.plans) <= MOST_PLANS:
            raise InputError(f"workload {self.name!r} has {len(self.plans)} plans; give 1 to {MOST_PLANS}")
        labels = [one.label for one in self.plans]
        for label in labels:
            if labels.count(label) > 1:
                raise InputError(f"workload {self.name!r}: two plans are called {label!r}; give each its own label")

    def facts(self) -> list[tuple[str, str]]:
        """What a report says of it."""
        sizes = [f"{one.label}: {one.program.num_gangs:,} gangs, {one.program.num_slices} slices" for one in self.plans]
        shown = sizes[:8] + ([f"{len(sizes) - 8} more"] if len(sizes) > 8 else [])
        clients = ", ".join(f"{one.name} (weight {one.weight:g})" for one in self.plans[0].program.clients[:12])
        return [("plans", "; ".join(shown)), ("clients", clients)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of it: nothing."""
        return ()

    @property
    def num_plans(self) -> int:
        return len(self.plans)

    @property
    def most_gangs(self) -> int:
        return max(one.program.num_gangs for one in self.plans)

    @property
    def most_slices(self) -> int:
        return max(one.program.num_slices for one in self.plans)

    @property
    def most_clients(self) -> int:
        return max(len(one.program.clients) for one in self.plans)

    @property
    def most_edges(self) -> int:
        return max(one.program.num_edges for one in self.plans)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a cost depends on (not the names)."""
        digest = hashlib.sha256()
        for one in self.plans:
            digest.update(one.program.fingerprint.encode())
            digest.update(one.unit.tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The whole of it in JSON's types."""
        return {"name": self.name, "about": self.about, "machine": self.machine,
                "plans": [one.to_json() for one in self.plans]}  # fmt: skip

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Workload:
        """A workload from what :meth:`to_json` gives, or of one plan from what ``ShardedProgram.to_json`` does.

        Raises:
            InputError: something else.
        """
        with stored_whole("workload"):
            if "plans" not in given:
                program = ShardedProgram.from_json(given)
                return cls(program.name, (Plan(program.name, program),))
            plans = tuple(Plan.from_json(one) for one in given["plans"])
            return cls(str(given["name"]), plans, str(given.get("about", "")), str(given.get("machine", "")))

    def __repr__(self) -> str:
        return f"Workload({self.name!r}, plans={self.num_plans}, gangs={self.most_gangs})"


def workload_of(program: ShardedProgram | Pipeline, name: str = "") -> Workload:
    """A workload of one plan."""
    made = program if isinstance(program, Pipeline) else None
    of = program.program if isinstance(program, Pipeline) else program
    return Workload(name or of.name, (Plan(of.name, of, made),))


def read_workload(path: Path) -> Workload:
    """A workload from a JSON file: what :meth:`Workload.to_json` or ``ShardedProgram.to_json`` gives.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        given = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {one_line(error)}") from None
    if not isinstance(given, Mapping):
        raise InputError(f"{path}: a workload is a JSON object; this is a {type(given).__name__}")
    return Workload.from_json(given)


# ---- pipelines of layers


def stage_partition(
    layer_s: Sequence[float], stages: int, micro_batches: int, boundary_s: Sequence[float] | None = None
) -> list[int]:
    """How many of the layers each stage takes, for the shortest step of a pipeline on slices alike.

    Of all cuts of the layers into that many runs, one of the least ``sum of stages + (M - 1) x slowest stage``, a
    stage taking what its layers take and what it receives (Zheng et al., Alpa, OSDI 2022, §5.2; of slices alike the
    same as Narayanan et al., PipeDream, SOSP 2019, §3.1, but for the sum). See :func:`partition_layers`.

    Args:
        layer_s: [L] seconds of each layer for a micro-batch.
        stages: S.
        micro_batches: M.
        boundary_s: [L - 1] seconds that it takes to send what lies between a layer and the next; 0 where left out.

    Raises:
        InputError: more stages than layers.
    """
    layers = len(layer_s)
    stage_layers(layers, stages)
    whole("micro_batches", micro_batches, 1)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(layer_s, np.float64))])
    receive = np.zeros(layers + 1)
    if boundary_s is not None:
        receive[1:layers] = boundary_s
    each = sums[None, :] - sums[:, None] + receive[:, None]  # [begin, end]: a stage of these layers
    cuts = partition_layers(layers, stages, lambda _: StageLoads(each, each), micro_batches)
    assert cuts is not None
    return np.diff([0, *cuts, layers]).tolist()


@dataclass(frozen=True, eq=False)
class Layers:
    """A training step layer by layer, of one whole batch on one core. L layers.

    Args:
        name: for people.
        forward_s, backward_s: [L] seconds.
        boundary_bytes: [L - 1] between a layer and the next.
        stash_bytes: [L] kept from forward for backward.
        resident_bytes: [L] parameters, gradients and optimiser state.
        gradient_bytes: [L] what is reduced over the cores of a stage.
        apply_s: [L] seconds of applying gradients, on every core.
        batch: examples.
    """

    name: str
    forward_s: np.ndarray
    backward_s: np.ndarray
    boundary_bytes: np.ndarray
    stash_bytes: np.ndarray
    resident_bytes: np.ndarray
    gradient_bytes: np.ndarray
    apply_s: np.ndarray
    batch: int

    def plan(
        self, stages: int, micro_batches: int, cores: int, cut: str = "even", chunks: int = 1, layout: str = "loop",
        split: bool = False, steps: int = 1,
    ) -> Plan:  # fmt: skip
        """The layers as a pipeline, every stage on ``cores / stages`` cores.

        Args:
            stages: S.
            micro_batches: M.
            cores: of all stages together.
            cut: ``even`` in the number of layers, or ``dp``, by :func:`stage_partition`.
            chunks, layout: of :func:`pipeline`.
            split: whether the gradient of the weights (half of what backward takes beyond forward run again, so a
                third of it) is a gang of its own, as zero-bubble orders need.
            steps: one after the other.

        Raises:
            InputError: stages beyond the layers, or that do not divide the cores; micro-batches that do not divide the
                batch.
        """
        depth = whole("stages", stages, 1) * whole("chunks", chunks, 1)
        layers = len(self.forward_s)
        stage_layers(layers, depth)
        if cores % stages:
            raise InputError(f"stages is {stages}, which does not divide the {cores} cores; give a divisor")
        each, share = cores // stages, micro_batch_size(self.batch, micro_batches) / self.batch
        both = (self.forward_s + self.backward_s) * share / each
        sizes = stage_layers(layers, depth) if cut == "even" else stage_partition(both, depth, micro_batches)
        ends = np.cumsum(np.array(sizes, np.int64))
        starts = ends - sizes

        def summed(values: np.ndarray) -> np.ndarray:
            return np.add.reduceat(np.asarray(values, np.float64), starts)

        backward = summed(self.backward_s) * share / each
        home = np.arange(depth) % stages
        if layout == "vee":
            home = np.where(np.arange(depth) // stages % 2, stages - 1 - home, home)
        label = f"S={stages} M={micro_batches}" + (f" {chunks} chunks" if chunks > 1 else "")
        label += (" vee" if layout == "vee" else "") + (" split" if split else "") + (" dp" if cut == "dp" else "")
        made = pipeline(
            stages, micro_batches, (summed(self.forward_s) * share / each).tolist(),
            (backward * (2 / 3 if split else 1)).tolist(),
            weight_s=(backward / 3).tolist() if split else None,
            apply_s=np.bincount(home, summed(self.apply_s), stages).tolist(), cores=each, steps=steps, chunks=chunks,
            layout=layout, boundary_bytes=np.ceil(self.boundary_bytes * share).astype(np.int64)[ends[:-1] - 1].tolist(),
            stash_bytes=np.ceil(summed(self.stash_bytes) * share / each).astype(np.int64).tolist(),
            gradient_bytes=np.bincount(home, summed(self.gradient_bytes), stages).astype(np.int64).tolist(),
            resident_bytes=np.bincount(home, summed(self.resident_bytes), stages).astype(np.int64).tolist(),
            name=f"{self.name} {label}",
        )  # fmt: skip
        return Plan(label, made.program, made, cut)


def decoder_layers(batch: int = 2048) -> Layers:
    """The decoder with 3B parameters of the Pathways paper, its embedding and softmax spread over the layers alike."""
    from graphopt_gym.hardware.machine import load_machine
    from graphopt_gym.simulator.gang.pathways import (
        ACTIVATION_BYTES,
        COMPUTE_SHARE,
        DECODER_3B,
        GRADIENT_BYTES,
        STATE_BYTES,
    )

    model, machine = DECODER_3B, load_machine("pathways_b")
    layers, parameters = model.layers, model.parameters / model.layers
    tokens = batch * model.sequence
    alike = np.ones(layers)
    forward = alike * model.forward_s(tokens, machine, COMPUTE_SHARE) / layers
    boundary = tokens * model.width * ACTIVATION_BYTES
    return Layers(
        "decoder_3b", forward, 3 * forward,  # forward again, and two for the gradients
        alike[1:] * boundary,
        # what a stage keeps is its input alone: the first layer's; an even share of a stage of four at 62 layers
        alike * boundary * 4 / layers,
        alike * parameters * (GRADIENT_BYTES + STATE_BYTES), alike * parameters * GRADIENT_BYTES,
        alike * model.apply_s(parameters, machine), batch,
    )  # fmt: skip


def _decoder(
    name: str, about: str, machine: str, cores: int, batch: int, forms: Sequence[Mapping[str, Any]]
) -> Workload:
    layers = decoder_layers(batch)
    return Workload(name, tuple(layers.plan(cores=cores, **one) for one in forms), about, machine)


def uneven_layers(name: str, weights: Sequence[float], step_s: float, seed: int = 0, batch: int = 64) -> Layers:
    """Layers that take unlike: ``weights`` of the ``step_s`` seconds that all of them take on one core.

    Args:
        name: for people.
        weights: [L], any scale.
        step_s: of the whole batch, forward and backward.
        seed: of what a boundary carries, which varies by a factor of four.
        batch: examples.
    """
    of = np.asarray(weights, np.float64) / np.sum(weights)
    rng = np.random.default_rng(seed)
    boundary = 2.0 ** rng.uniform(21, 23, len(of) - 1)
    return Layers(
        name, of * step_s / 3, of * step_s * 2 / 3, boundary, np.append(boundary, boundary[-1]),
        of * 2**30, of * 2**28, of * step_s / 1000, batch,
    )  # fmt: skip


def _encoder_decoder() -> Workload:
    """An encoder over long sequences, a decoder over short ones, and a wide softmax at the end."""
    layers = uneven_layers("encoder_decoder", [3.0] + [2.0] * 8 + [1.0] * 14 + [5.0], 9.6, seed=1)
    forms: list[dict[str, Any]] = [
        {"stages": stages, "micro_batches": batches, "cut": cut, "split": split}
        for stages, batches in ((4, 8), (8, 16))
        for cut in ("even", "dp")
        for split in (False, True)
    ]
    plans = tuple(layers.plan(cores=32, **one) for one in forms)
    return Workload(
        "encoder_decoder", plans, "24 uneven layers on 32 cores, cut evenly or by time", "pathways_b_4hosts"
    )


# ---- tenants


def tenants(
    weights: Sequence[float],
    times_s: Sequence[float],
    calls: Sequence[int],
    cores: Sequence[int],
    *,
    arrivals_s: Sequence[float] | None = None,
    nodes: int = 1,
    name: str = "tenants",
) -> ShardedProgram:
    """Clients that each call a computation again and again, call after call.

    Args:
        weights: of the clients.
        times_s: of a computation of each.
        calls: how many each sends.
        cores: of the slice of each.
        arrivals_s: when each sends its first; 0 where left out. The later ones may follow at once.
        nodes: computations a call, one after the other.
        name: of the program.
    """
    made = [
        chain(
            number * nodes, size, seconds, form="chained", nodes=nodes, name="client",
            arrival_s=0.0 if arrivals_s is None else arrivals_s[index],
        )
        for index, (seconds, number, size) in enumerate(zip(times_s, calls, cores, strict=True))
    ]  # fmt: skip
    return together(made, [float(one) for one in weights], name)


def _sharing(name: str, about: str, weights: Sequence[float]) -> Workload:
    program = tenants(weights, [1e-3] * 4, [48] * 4, [32] * 4, name=name)
    return Workload(name, (Plan("tenants", program),), about, "pathways_b_4hosts")


def _mixed(rng: np.random.Generator, name: str, clients: int, calls: int, sizes: Sequence[int]) -> ShardedProgram:
    """Clients of unlike weights, computations and slices, that arrive over time; some send small pipelines."""
    programs = []
    weights = 2.0 ** rng.integers(0, 4, clients)
    seconds = 10.0 ** rng.uniform(-3.5, -2.0, clients)
    arrivals = np.cumsum(rng.exponential(float(seconds.mean()) * calls / 4, clients)) * (np.arange(clients) > 0)
    for index in range(clients):
        size = int(rng.choice(np.asarray(sizes)))
        arrival, second = float(arrivals[index]), float(seconds[index])
        number = int(rng.integers(max(1, calls // 2), calls + 1))
        if rng.random() < 0.3 and size >= 4:
            batches = max(2, number // 4)
            made = pipeline(
                2, batches, second, 2 * second, cores=size // 2, boundary_bytes=2**20, stash_bytes=2**16,
                arrival_s=arrival, name="client",
            ).program  # fmt: skip
        else:
            build = Builder("client")
            at, before = build.slice("all", size), None
            for call in range(number):
                build.call(arrival_s=arrival)
                gang = build.gang(f"c{call}", at, second * float(rng.uniform(0.5, 2.0)), output_bytes=2**16)
                if before is not None:
                    build.edge(before, gang, 2**16 * size)
                before = gang
            made = build.program()
        programs.append(made)
    return together(programs, weights.tolist(), name)


def _mixed_tenants() -> Workload:
    program = _mixed(np.random.default_rng(7), "tenants_mixed", 8, 24, (16, 32))
    about = "eight clients of unlike weights, computations and slices, that arrive over time"
    return Workload("tenants_mixed", (Plan("tenants", program),), about, "pathways_c")


def _crossing(
    rng: np.random.Generator, name: str, cores: int, pipelines: int, services: int, calls: int
) -> ShardedProgram:
    """Clients on the same cores whose slices cross each other, so that it matters who goes first: training pipelines of
    uneven stages, a client whose computations take all cores, and services on a quarter of them."""
    programs, weights = [], []
    for _ in range(pipelines):
        stages, batches = int(rng.choice([one for one in (2, 4) if one <= cores])), int(rng.choice([4, 8]))
        uneven = np.exp(0.5 * rng.normal(size=3 * stages)).tolist()
        step_s = float(rng.uniform(10e-3, 25e-3)) * cores
        layers = uneven_layers("training", uneven, step_s, int(rng.integers(2**31)), batches)
        programs.append(layers.plan(stages, batches, cores - cores % stages).program)
        weights.append(float(2 ** rng.integers(1, 4)))

    def calling(
        label: str, number: int, size: int, times_s: tuple[float, float], every_s: float, chained: bool
    ) -> None:
        build, arrival_s, before = Builder(label), 0.0, None
        at = build.slice("all", size)
        for call in range(number):
            build.call(arrival_s=arrival_s)
            gang = build.gang(f"c{call}", at, float(rng.uniform(*times_s)), collective="all_reduce",
                              collective_bytes=2**20)  # fmt: skip
            if chained and before is not None:
                build.edge(before, gang)
            before = gang
            arrival_s += float(rng.exponential(every_s))
        programs.append(build.program())
        weights.append(1.0)

    calling("wide", max(2, calls * 2 // 3), cores, (0.5e-3, 1.5e-3), 4e-3, False)
    for number in range(services):
        calling("service", calls, max(1, cores // 4), (0.3e-3, 3e-3), 2.5e-3, number % 2 == 0)
    return together(programs, weights, name)


def _crossing_tenants(name: str, machine: str, cores: int, pipelines: int, services: int, calls: int) -> Workload:
    program = _crossing(np.random.default_rng(0), name, cores, pipelines, services, calls)
    about = f"training, wide computations and services that cross each other on {cores} cores"
    return Workload(name, (Plan("tenants", program),), about, machine)


# ---- captured


def _captured(name: str, graph: str) -> Workload:
    """A graph of the zoo as pipelines on eight cores, by several numbers of stages, cuts and forms of backward."""
    from graphopt_gym.simulator.gang.captured import captured_pipeline

    plans = []
    for stages in (2, 4):
        for partition in ("even", "dp"):
            for split in (False, True):
                made = captured_pipeline(
                    graph, stages, 8, cores=8 // stages, machine="pathways_b_4hosts", partition=partition, split=split
                )
                label = f"S={stages} M=8" + (" split" if split else "") + (" dp" if partition == "dp" else "")
                plans.append(Plan(label, made.program, made, partition))
    about = f"a training step of {graph} on eight cores, by several plans"
    return Workload(name, tuple(plans), about, "pathways_b_4hosts")


# ---- small ones for tests


def _toy_pipeline() -> Workload:
    layers = Layers(
        "toy_pipeline", np.array([2e-3, 3e-3, 4e-3, 6e-3]), np.array([4e-3, 6e-3, 8e-3, 12e-3]), np.full(3, 4000),
        np.full(4, 8000), np.full(4, 1000), np.full(4, 1000), np.full(4, 1e-4), 8,
    )  # fmt: skip
    forms: tuple[Mapping[str, Any], ...] = (
        {"stages": 2, "micro_batches": 4}, {"stages": 4, "micro_batches": 4},
        {"stages": 2, "micro_batches": 4, "chunks": 2},
        {"stages": 2, "micro_batches": 4, "cut": "dp", "split": True},
        {"stages": 2, "micro_batches": 2, "chunks": 2, "layout": "vee", "split": True},
    )  # fmt: skip
    plans = tuple(layers.plan(cores=4, **one) for one in forms)
    return Workload("toy_pipeline", plans, "four layers on four cores, for tests", "toy_islands")


def _toy_tenants() -> Workload:
    program = tenants([1.0, 2.0, 1.0], [1e-3, 2e-3, 5e-4], [4, 3, 4], [4, 4, 2], arrivals_s=[0.0, 1e-3, 2e-3],
                      name="toy_tenants")  # fmt: skip
    return Workload("toy_tenants", (Plan("tenants", program),), "three clients, for tests", "toy_islands")


def _toy_crowd() -> Workload:
    """Whose forward gangs leave room for one more stash only, so that some orders end in a deadlock of memory."""
    gib = 2**30
    made = pipeline(2, 3, 2e-3, 3e-3, cores=2, boundary_bytes=2**12, stash_bytes=5 * gib, resident_bytes=4 * gib)
    return Workload("toy_crowd", (Plan("S=2 M=3", made.program, made),), "a pipeline short of memory, for tests",
                    "toy_islands")  # fmt: skip


# ---- drawn


@dataclass(frozen=True, kw_only=True)
class RandomTenants(Generator[Workload]):
    """Clients of unlike weights, computations and slices, that arrive over time.

    Args:
        clients: from how many to how many.
        calls: from how many to how many, of the client that sends most.
        cores: from how many to how many, of a slice; powers of two are drawn.
        seed: see :class:`~graphopt_gym.generator.Generator`.
    """

    word: ClassVar[str] = "tenants"
    keys: ClassVar[Mapping[str, Key]] = {
        "clients": whole_range(1, 64),
        "calls": whole_range(1, 512),
        "cores": whole_range(1, 4096),
    }

    clients: Any = (2, 6)
    calls: Any = (8, 24)
    cores: Any = (8, 32)

    @property
    def most(self) -> Mapping[str, int]:
        clients, calls = self.clients[1], self.calls[1]
        gangs = max(calls, 4 * max(2, calls // 4))
        return {"gangs": clients * gangs, "slices": 2 * clients, "clients": clients, "plans": 1,
                "edges": clients * 2 * gangs}  # fmt: skip

    def _make(self, rng: np.random.Generator, name: str) -> Workload:
        low, high = self.cores
        sizes = [size for size in (1 << n for n in range(13)) if low <= size <= high] or [low]
        clients, calls = (int(rng.integers(a, b + 1)) for a, b in (self.clients, self.calls))
        return Workload(name, (Plan("tenants", _mixed(rng, name, clients, calls, sizes)),), "drawn")


@dataclass(frozen=True, kw_only=True)
class RandomCrossing(Generator[Workload]):
    """Clients on the same cores whose slices cross each other: pipelines, wide computations, services.

    Args:
        cores: from how many to how many; powers of two are drawn. Services take a quarter of them.
        pipelines: from how many to how many, of 2 or 4 stages and 4 or 8 micro-batches.
        services: from how many to how many; every other one sends its calls one after the other.
        calls: from how many to how many, of each service.
        seed: see :class:`~graphopt_gym.generator.Generator`.
    """

    word: ClassVar[str] = "crossing"
    keys: ClassVar[Mapping[str, Key]] = {
        "cores": whole_range(4, 4096),
        "pipelines": whole_range(1, 64),
        "services": whole_range(1, 64),
        "calls": whole_range(1, 512),
    }

    cores: Any = (32, 32)
    pipelines: Any = (1, 2)
    services: Any = (2, 4)
    calls: Any = (6, 12)

    @property
    def most(self) -> Mapping[str, int]:
        pipelines, services, calls = self.pipelines[1], self.services[1], self.calls[1]
        return {"gangs": 68 * pipelines + services * calls + max(2, calls), "slices": 4 * pipelines + services + 1,
                "clients": pipelines + services + 1, "plans": 1,
                "edges": 160 * pipelines + services * calls}  # fmt: skip

    def _make(self, rng: np.random.Generator, name: str) -> Workload:
        low, high = self.cores
        size = int(rng.choice([size for size in (1 << n for n in range(13)) if low <= size <= high] or [low]))
        counts = [int(rng.integers(a, b + 1)) for a, b in (self.pipelines, self.services, self.calls)]
        return Workload(name, (Plan("tenants", _crossing(rng, name, size, *counts)),), "drawn")


@dataclass(frozen=True, kw_only=True)
class RandomPipelines(Generator[Workload]):
    """A pipeline of uneven layers, by one plan or by one for each cut and form of backward.

    Args:
        stages: from how many to how many; powers of two are drawn.
        micro_batches: from how many to how many; powers of two are drawn.
        cores: of all stages together.
        uneven: the spread of the layers' times: each is the exponential of a normal number times this.
        seed: see :class:`~graphopt_gym.generator.Generator`.
    """

    word: ClassVar[str] = "pipelines"
    keys: ClassVar[Mapping[str, Key]] = {
        "stages": whole_range(1, 64),
        "micro_batches": whole_range(1, 256),
        "cores": whole_range(1, 4096),
        "uneven": number_range(0.0, 2.0),
    }

    stages: Any = (2, 4)
    micro_batches: Any = (4, 8)
    cores: Any = (32, 32)
    uneven: Any = 0.5

    @property
    def most(self) -> Mapping[str, int]:
        stages, batches = self.stages[1], self.micro_batches[1]
        return {"gangs": stages * (3 * batches + 1), "slices": stages, "clients": 1, "plans": 4,
                "edges": stages * 8 * batches}  # fmt: skip

    def _make(self, rng: np.random.Generator, name: str) -> Workload:
        def drawn(ends: tuple[int, int]) -> int:
            sizes = [size for size in (1 << n for n in range(13)) if ends[0] <= size <= ends[1]] or [ends[0]]
            return int(rng.choice(np.asarray(sizes)))

        stages, batches, cores = drawn(self.stages), drawn(self.micro_batches), drawn(self.cores)
        spread = rng.uniform(*self.uneven) if self.uneven[0] < self.uneven[1] else self.uneven[0]
        weights = np.exp(spread * rng.normal(size=4 * stages))
        layers = uneven_layers(name, weights, float(rng.uniform(0.5, 2.0)) * cores, int(rng.integers(2**31)), batches)
        cores = -(-cores // stages) * stages
        forms: tuple[dict[str, Any], ...] = ({}, {"cut": "dp"}, {"split": True}, {"cut": "dp", "split": True})
        return Workload(name, tuple(layers.plan(stages, batches, cores, **one) for one in forms), "drawn")


def _generators() -> Mapping[str, type[Generator[Workload]]]:
    return {one.word: one for one in (RandomTenants, RandomCrossing, RandomPipelines)}


_FORMS: tuple[Mapping[str, Any], ...] = (
    {"stages": 4, "micro_batches": 16}, {"stages": 8, "micro_batches": 32},
    {"stages": 4, "micro_batches": 16, "chunks": 2}, {"stages": 4, "micro_batches": 16, "split": True},
    {"stages": 4, "micro_batches": 16, "chunks": 2, "layout": "vee", "split": True},
)  # fmt: skip
_PUBLISHED: tuple[Mapping[str, Any], ...] = (
    {"stages": 4, "micro_batches": 16}, {"stages": 8, "micro_batches": 32}, {"stages": 16, "micro_batches": 64},
)  # fmt: skip
_SHIPPED: Mapping[str, Callable[[], Workload]] = {
    "decoder_3b": partial(_decoder, "decoder_3b", "the decoder of 3B parameters on 128 cores, by several plans",
                          "pathways_b_16hosts", 128, 2048, _FORMS),
    "decoder_3b_published": partial(_decoder, "decoder_3b_published", "its published pipelines on 128 cores",
                                    "pathways_b_16hosts", 128, 2048, _PUBLISHED),
    "decoder_3b_512": partial(_decoder, "decoder_3b_512", "the decoder on 512 cores", "pathways_b", 512, 8192,
                              (_PUBLISHED[2],)),
    "encoder_decoder": _encoder_decoder,
    "tenants_even": partial(_sharing, "tenants_even", "four clients of one weight on the same cores", (1, 1, 1, 1)),
    "tenants_1248": partial(_sharing, "tenants_1248", "four clients of weights 1:2:4:8 on them", (1, 2, 4, 8)),
    "tenants_mixed": _mixed_tenants,
    "tenants_crossing": partial(_crossing_tenants, "tenants_crossing", "pathways_b_4hosts", 32, 2, 4, 12),
    "tenants_crossing_128": partial(_crossing_tenants, "tenants_crossing_128", "pathways_b_16hosts", 128, 4, 8, 16),
    "inception_v3_pipelines": partial(_captured, "inception_v3_pipelines", "inception_v3_b32"),
    "amoebanet_pipelines": partial(_captured, "amoebanet_pipelines", "amoebanet"),
    "gnmt_pipelines": partial(_captured, "gnmt_pipelines", "gnmt_4layer"),
    "toy_pipeline": _toy_pipeline,
    "toy_tenants": _toy_tenants,
    "toy_crowd": _toy_crowd,
}  # fmt: skip


def _row(_: str | None, workload: Workload) -> tuple[Any, ...]:
    return (workload.num_plans, workload.most_gangs, workload.most_slices, workload.most_clients, workload.machine,
            workload.about)  # fmt: skip


WORKLOADS = Catalog(
    "workloads",
    "workload",
    Workload,
    {".json": read_workload},
    lambda: _SHIPPED,
    columns=("plans", "gangs", "slices", "clients", "machine", "about"),
    row=_row,
    generators=_generators,
)
load_workload, workload_names = WORKLOADS.load, WORKLOADS.names
__all__ = [
    "WORKLOADS",
    "Layers",
    "Plan",
    "RandomCrossing",
    "RandomPipelines",
    "RandomTenants",
    "Workload",
    "decoder_layers",
    "load_workload",
    "read_workload",
    "stage_partition",
    "tenants",
    "uneven_layers",
    "workload_names",
    "workload_of",
]
