"""Architecture search: a network that is smaller or faster than a seed, and no worse."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.catalog import stored_name
from graphopt_gym.envs.architecture import nasbench
from graphopt_gym.envs.architecture.images import data_for, load_images
from graphopt_gym.envs.architecture.moves import alpha_nas, labelled
from graphopt_gym.envs.architecture.program import Architecture, parse_architecture
from graphopt_gym.envs.architecture.proxies import PROXIES, proxy_score
from graphopt_gym.envs.architecture.training import RECIPES, Recipe, Trainer, load_recipe
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_integers, choice, share, whole
from graphopt_gym.hardware.cluster import Cluster, Device, load_one_device
from graphopt_gym.hardware.cost_model import CostModel, cost_model_of, run_of
from graphopt_gym.problem import Outcome, Problem
from graphopt_gym.search.workers import check_workers
from graphopt_gym.units import format_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graphopt_gym.graphs.graph import ComputationGraph

ArchitectureLike = str | os.PathLike[str] | Architecture
OBJECTIVES = ("params", "flops", "time", "error")
TRACKS = ("proxy", "trained", "table")
LAUNCH = "back_to_back"  # how an inference runtime runs a network
MOST_SHARE = 4.0  # a network of more parameters or FLOPs than so many times the seed's is not looked at
FAILED, TOO_LARGE, ANOTHER = 2.0, 3.0, 50.0  # what is added to MOST_SHARE as the price of a network that is invalid
TRIES = 30  # of a mutation, until one comes to something
MOST_WALK = 4  # mutations in a random decision


class Quality(NamedTuple):
    """How good a network is: 0 to 1, and why it is none, else empty."""

    value: float
    reason: str = ""


class ArchitectureProblem(Problem):
    """Find a network that costs less than a seed and is no worse.

    A decision is an :class:`Architecture`, stored as its text; on the track ``table``, an int array [6], the operation
    of each edge of a NAS-Bench-201 cell (:data:`.nasbench.OPERATIONS`). It is valid where it reads and gives what the
    seed does, has at most :data:`MOST_SHARE` times its parameters and FLOPs, and its *quality* is no lower than the
    seed's less ``tolerance``. The cost is the objective as a share of the seed's.

    After Jin, Phothilimthana, Roy: "Neural Architecture Search using Property Guided Synthesis", OOPSLA 2022.

    Args:
        graph: the seed: a name of the catalog, the path of a text file, or an ``Architecture``.
        cluster: the device that ``objective="time"`` simulates: a name, a file, a device, or a cluster of one.
        objective: ``params``: trainable numbers; ``flops``: of inference on one image; ``time``: simulated seconds of
            inference on ``batch`` images, the sum of operator times; ``error``: one less the quality, whatever the
            seed's.
        track: what quality is. ``trained``: accuracy on the validation split of real images, after training. ``table``:
            accuracy of a NAS-Bench-201 network on CIFAR-10, out of a table. ``proxy``: no accuracy at all, a zero-cost
            proxy of the untrained network, squashed so that the seed has 0.5.
        tolerance: how far quality may be below the seed's, 0 to 1.
        data: of the track ``trained``: ``digits`` or ``mnist_data``; by the seed's image where left out.
        recipe: how networks are trained, by name (:data:`.training.RECIPES`), as a :class:`Recipe`, or its fields.
        training_seed: of training, and of the proxy's weights.
        proxy: ``synflow`` or ``naswot``.
        table: a file of accuracies, see :func:`.nasbench.load_table`; that of ``analog-nasbench`` where left out.
        batch: images of an inference that is simulated.
        workers: networks that are trained at a time: processes, or where Ray is. Results do not depend on it.
        cost_model: prices operators: an object with ``op_times``, or how a network is run (``"eager"``,
            ``"back_to_back"``, ``"graph"``); back to back where left out.

    Raises:
        InputError: an unknown name, a seed that does not fit the track or its images, a tolerance below 0.
    """

    env_id = "ArchitectureSearch-v0"
    unit = "of the seed"
    page_name = "Seed and network"
    page_draws = True

    def __init__(
        self,
        graph: ArchitectureLike = "resnet_8",
        cluster: str | os.PathLike[str] | Device | Cluster = "t4",
        *,
        objective: str = "params",
        track: str = "proxy",
        tolerance: float = 0.0,
        data: str | None = None,
        recipe: str | Recipe | Mapping[str, Any] = "standard",
        training_seed: int = 0,
        proxy: str = "synflow",
        table: str | os.PathLike[str] | None = None,
        batch: int = 1,
        workers: int | str = 1,
        cost_model: str | CostModel | None = None,
    ) -> None:
        from graphopt_gym.envs.architecture.seeds import CATALOG

        self.objective, self.track = choice("objective", objective, OBJECTIVES), choice("track", track, TRACKS)
        self.tolerance, self.batch = share("tolerance", tolerance), whole("batch", batch, 1)
        self.training_seed, self.proxy = whole("training_seed", training_seed), choice("proxy", proxy, PROXIES)
        self.workers = check_workers(workers)
        given = CATALOG.load(graph)
        self.seed = labelled(given)
        self.cluster = load_one_device(cluster, "a network is found")
        self.device = self.cluster.devices[0]
        self.model = cost_model_of(cost_model, LAUNCH)
        self.recipe = load_recipe(recipe)
        self.decision_shape = ()
        self.config = {
            "graph": stored_name(graph, given),
            "cluster": stored_name(cluster, self.cluster),
            "objective": self.objective,
            "track": self.track,
            "tolerance": self.tolerance,
        }
        if self.track == "trained":
            self._of_images(data)
        elif data is not None:
            raise InputError(f"data is {data!r}; leave it out, or give track='trained'")
        if self.track == "table":
            self.seed_cell = nasbench.cell_of(given)
            self.table = nasbench.load_table(table)
            self.decision_shape = (len(nasbench.EDGES),)
            if self.seed_cell not in self.table.accuracy:
                raise InputError(f"table {self.table.name!r} lacks the seed's cell {self.seed_cell}; give another seed")
        elif table is not None:
            raise InputError(f"table is {os.fspath(table)!r}; leave it out, or give track='table'")
        stated = {
            "data": self.track == "trained" and self.data,
            "recipe": self.track == "trained" and recipe_name(self.recipe),
            "training_seed": self.track != "table" and self.training_seed,
            "proxy": self.track == "proxy" and self.proxy,
            "table": table is not None and os.fspath(table),
            "batch": self.objective == "time" and self.batch,
            "cost_model": (run := run_of(self.model)) not in (None, LAUNCH) and run,
        }
        self.config |= {name: value for name, value in stated.items() if value is not False}
        self.measured: dict[str, tuple[Architecture, Quality]] = {}  # by fingerprint, in the order of measuring
        self._seconds: dict[str, float] = {}

    def _of_images(self, data: str | None) -> None:
        shapes = self.seed.input_shapes
        self.data = data_for(shapes[0]) if data is None else data
        images = load_images(self.data)
        images.check_fits(self.seed.name, shapes, self.seed.ops[-1].shape)
        self.trainer = Trainer(self.data, self.recipe, self.training_seed, self.workers)

    @cached_property
    def graph(self) -> ComputationGraph:  # type: ignore[override]
        """Inference of the seed on ``batch`` images, for reports; imports torch."""
        return self.seed.to_graph(self.batch)

    @property
    def graph_name(self) -> str:
        return self.seed.name

    @property
    def num_choices(self) -> int:
        """Operations of an edge, on the track ``table``."""
        if self.track != "table":
            raise AttributeError("num_choices: networks have no entries that are free of each other")
        return len(nasbench.OPERATIONS)

    @property
    def rules(self) -> Mapping[str, str]:
        space = "cells" if self.track == "table" else "networks"
        found = {"objective": self.objective, "track": self.track, "space": space}
        if self.track == "proxy":
            found["quality"] = f"{self.proxy}, a zero-cost proxy: no accuracy is claimed"
        return found

    # -- decisions -----------------------------------------------------------------------------------------------------

    def check(self, decision: Any) -> Any:
        """The network that a decision is: an :class:`Architecture` or its text; on the track ``table``, int32 [6].

        Raises:
            InputError: something else, or a text with an error (line).
        """
        if self.track == "table":
            return check_integers(decision, self.decision_shape, self.num_choices, "operation")
        if isinstance(decision, np.ndarray) and decision.dtype == object and decision.ndim == 0:
            decision = decision.item()
        if isinstance(decision, Architecture):
            return decision
        if isinstance(decision, str):
            return parse_architecture(decision, "decision")
        raise InputError(f"decision is a {type(decision).__name__}; give an Architecture or its text form")

    def encode(self, decision: Any) -> Any:
        decision = self.check(decision)
        return decision.text() if isinstance(decision, Architecture) else decision.tolist()

    def encode_padded(self, decision: Any) -> Any:
        """As environments tell it: a network's text, or a cell as an array."""
        return decision.text() if isinstance(decision, Architecture) else decision.copy()

    def architecture(self, decision: Any) -> Architecture:
        """The network of a decision."""
        decision = self.check(decision)
        return decision if isinstance(decision, Architecture) else nasbench.network(tuple(decision.tolist()))

    @property
    def seed_decision(self) -> Any:
        return np.array(self.seed_cell, np.int32) if self.track == "table" else self.seed

    def sample(self, rng: np.random.Generator) -> Any:
        """The seed after 1 to :data:`MOST_WALK` mutations; a random cell on the track ``table``."""
        if self.track == "table":
            return rng.integers(0, self.num_choices, self.decision_shape, np.int32)
        found: Any = self.seed
        for _ in range(int(rng.integers(1, MOST_WALK + 1))):
            found = self.neighbour(found, rng)
        return found

    def neighbour(self, decision: Any, rng: np.random.Generator) -> Any:
        """A mutation as alpha-NAS has them; another operation of one edge on the track ``table``."""
        decision = self.check(decision)
        if self.track == "table":
            changed, edge = decision.copy(), int(rng.integers(len(decision)))
            changed[edge] = (changed[edge] + rng.integers(1, self.num_choices)) % self.num_choices
            return changed
        for _ in range(TRIES):
            child = alpha_nas(decision, rng)
            if child is not None and not self.too_large(child):
                return child
        return decision

    def crossover(self, first: Any, second: Any, rng: np.random.Generator) -> Any:
        """One of the two, since networks have no entries to exchange; of cells each edge from either."""
        if self.track == "table":
            return super().crossover(first, second, rng)
        return first if rng.random() < 0.5 else second

    # -- what a network costs ------------------------------------------------------------------------------------------

    def sizes(self, decision: Any) -> tuple[int, int]:
        """(parameters, FLOPs of one image)."""
        if isinstance(decision, Architecture):
            return decision.parameters, decision.flops
        return nasbench.sizes(tuple(decision.tolist()))

    @cached_property
    def seed_sizes(self) -> tuple[int, int]:
        return self.seed.parameters, self.seed.flops

    def too_large(self, decision: Any) -> str:
        """Why a network is not looked at; empty where it is."""
        for name, mine, seeds in zip(("parameters", "FLOPs"), self.sizes(decision), self.seed_sizes, strict=True):
            if mine > MOST_SHARE * seeds:
                return f"it has {mine:,} {name}, more than {MOST_SHARE:g} times the seed's {seeds:,}"
        return ""

    def seconds(self, architecture: Architecture) -> float:
        """Simulated seconds of inference on ``batch`` images: the sum of operator times."""
        key = architecture.fingerprint
        if key not in self._seconds:
            from graphopt_gym.simulator.tasks import check_seconds, priced

            graph = architecture.to_graph(self.batch)
            times = priced(self.model, graph, self.device)
            check_seconds(times, graph, np.arange(graph.num_ops))
            self._seconds[key] = math.fsum(times.tolist())
        return self._seconds[key]

    def objective_share(self, decision: Any) -> float:
        """The objective, as a share of the seed's."""
        if self.objective == "error":
            return (1 - self.quality(decision).value) / max(1e-9, 1 - self.seed_quality)
        if self.objective == "time":
            return self.seconds(self.architecture(decision)) / self.seconds(self.seed)
        at = ("params", "flops").index(self.objective)
        return self.sizes(decision)[at] / max(1, self.seed_sizes[at])

    # -- how good it is ------------------------------------------------------------------------------------------------

    @cached_property
    def seed_quality(self) -> float:
        """Of the seed. Raises InputError where it has none."""
        if self.track == "proxy":
            return 0.5
        found = self._measure([self.seed_decision])[0]
        if found.reason:
            raise InputError(f"the seed {self.seed.name!r} is no start: {found.reason}")
        return found.value

    @cached_property
    def _seed_score(self) -> float:
        score, reason = proxy_score(self.proxy, self.seed, self.training_seed)
        if reason:
            raise InputError(f"the seed {self.seed.name!r} is no start: {reason}")
        return score

    def quality(self, decision: Any) -> Quality:
        """How good a network is, see the class; measured once."""
        return self.qualities([decision])[0]

    def is_known(self, network: Architecture) -> bool:
        """Whether the quality of a network has been measured."""
        return network.fingerprint in self.measured

    def qualities(self, decisions: Sequence[Any]) -> list[Quality]:
        """Of several networks; those that are trained are trained at the same time as far as there are workers."""
        if self.track == "table":
            return self._measure(decisions)
        new = list({one.fingerprint: one for one in decisions if not self.is_known(one)}.values())
        for one, found in zip(new, self._measure(new), strict=True):
            self.measured[one.fingerprint] = one, found
        return [self.measured[one.fingerprint][1] for one in decisions]

    def _measure(self, decisions: Sequence[Any]) -> list[Quality]:
        if self.track == "table":
            found = [self.table.accuracy.get(tuple(cell)) for cell in np.asarray(decisions).tolist()]
            return [Quality(0.0, "the table lacks this cell") if one is None else Quality(one) for one in found]
        if self.track == "trained":
            return [Quality(one.accuracy, one.reason) for one in self.trainer.results(decisions)]
        scores = [proxy_score(self.proxy, one, self.training_seed) for one in decisions]
        return [Quality(0.0, why) if why else Quality(_squashed(score - self._seed_score)) for score, why in scores]

    def _interface(self, decision: Any) -> str:
        """Why a network cannot stand in for the seed; empty where it can."""
        if self.track == "table":
            return ""
        if decision.input_shapes != self.seed.input_shapes:
            return f"it reads {decision.input_shapes}, the seed {self.seed.input_shapes}"
        if decision.ops[-1].shape != self.seed.ops[-1].shape:
            return f"it gives {decision.ops[-1].shape}, the seed {self.seed.ops[-1].shape}"
        return ""

    def judged(self, decisions: Sequence[Any]) -> list[tuple[float, float, str]]:
        """(price, quality, why it is invalid or "") of each of several checked decisions."""
        fitting = [one for one in decisions if not self._interface(one) and not self.too_large(one)]
        qualities = iter(self.qualities(fitting))
        judged = []
        for one in decisions:
            if reason := self._interface(one):
                judged.append((MOST_SHARE + ANOTHER, 0.0, reason))
            elif reason := self.too_large(one):
                factor = max(mine / seeds for mine, seeds in zip(self.sizes(one), self.seed_sizes, strict=True))
                judged.append((MOST_SHARE + TOO_LARGE + min(40.0, factor / 10), 0.0, reason))
            else:
                judged.append(self._judge(one, next(qualities)))
        return judged

    def _judge(self, decision: Any, found: Quality) -> tuple[float, float, str]:
        if found.reason:
            return MOST_SHARE + FAILED, 0.0, found.reason
        try:
            cost = self.objective_share(decision)
        except InputError as error:  # a network that cannot be captured
            return MOST_SHARE + FAILED, found.value, str(error)
        if self.objective != "error":
            least = self.seed_quality - self.tolerance
            if found.value < least - 1e-12:
                name = "quality by the proxy" if self.track == "proxy" else "accuracy"
                reason = f"its {name} is {found.value:.4f}, the seed's less the tolerance {least:.4f}"
                return MOST_SHARE + least - found.value, found.value, reason
        if cost > MOST_SHARE:  # of time and error
            reason = f"its {self.objective} is {cost:.3g} times the seed's, more than {MOST_SHARE:g}"
            return MOST_SHARE + TOO_LARGE + min(40.0, cost / 10), found.value, reason
        return cost, found.value, ""

    def costs(self, decisions: Any) -> tuple[np.ndarray, np.ndarray]:
        judged = self.judged([self.check(one) for one in decisions])
        return np.array([cost for cost, _, _ in judged], np.float64), np.array([not why for _, _, why in judged], bool)

    def evaluate(self, decision: Any) -> Outcome:
        decision = self.check(decision)
        ((cost, quality, reason),) = self.judged([decision])
        parameters, flops = self.sizes(decision)
        metrics: dict[str, Any] = {
            "parameters": parameters,
            "seed_parameters": self.seed_sizes[0],
            "flops": flops,
            "seed_flops": self.seed_sizes[1],
            ("proxy_quality" if self.track == "proxy" else "accuracy"): quality,
            ("seed_proxy_quality" if self.track == "proxy" else "seed_accuracy"): self.seed_quality,
        }
        if self.objective == "time" and not self._interface(decision) and not self.too_large(decision):
            metrics |= {
                "simulated_s": self.seconds(self.architecture(decision)),
                "seed_simulated_s": self.seconds(self.seed),
            }
        valid = not reason
        return Outcome(valid, float(cost) if valid else math.inf, self.unit, (reason,) if reason else (), metrics)

    def summary_lines(self, outcome: Outcome, details: Mapping[str, Any]) -> tuple[str, ...]:
        """What the network is beside the seed."""
        found = outcome.metrics
        key = "proxy_quality" if self.track == "proxy" else "accuracy"
        name = f"{self.proxy} (a proxy; the seed 0.5)" if self.track == "proxy" else "accuracy"
        lines = [
            f"{found['parameters']:,} parameters (seed {found['seed_parameters']:,}), {found['flops']:,} FLOPs (seed "
            f"{found['seed_flops']:,}), {name} {found[key]:.4f} (seed {found['seed_' + key]:.4f})"
        ]
        if "simulated_s" in found:
            mine, seeds = (format_seconds(found[name]) for name in ("simulated_s", "seed_simulated_s"))
            lines.append(f"simulated {mine}, the seed {seeds}")
        return tuple(lines)

    def figure(self, decision: Any) -> Figure:
        """The seed and the network, what differs coloured."""
        from graphopt_gym.envs.architecture.rendering import comparison_figure

        return comparison_figure(self, self.architecture(decision))

    def page(self, decision: Any, trace: Any, details: Mapping[str, Any]) -> str:
        from graphopt_gym.envs.architecture.rendering import comparison_page

        return comparison_page(self, self.architecture(decision), details)

    @property
    def pricing(self) -> tuple[CostModel, Sequence[Device]] | None:
        return (self.model, [self.device]) if self.objective == "time" else None

    def fingerprints(self) -> dict[str, str]:
        found = {"graph": self.seed.fingerprint, "cluster": self.cluster.fingerprint}
        if self.track == "trained":
            found["training"] = self.trainer.key
        if self.track == "table":
            found["table"] = self.table.fingerprint
        return found


def _squashed(difference: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, difference))))


def recipe_name(recipe: Recipe) -> str | dict[str, Any]:
    """The name of a recipe, or its fields where it has none."""
    return next((name for name, known in RECIPES.items() if known == recipe), asdict(recipe))
