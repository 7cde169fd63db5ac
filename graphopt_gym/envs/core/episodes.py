"""Episodes in progress: the one implementation behind a task's scalar and vector environments.

A scalar environment is one episode, a vector environment is several; both go through the same code and the same
kernels, which is why they agree exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import numpy as np
from gymnasium import spaces

from graphopt_gym.envs.core.observation import ObservationTable
from graphopt_gym.envs.core.rendering import decision_figure
from graphopt_gym.envs.core.roster import InstanceT, Roster
from graphopt_gym.fields import choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graphopt_gym.problem import Outcome, Problem


INFOS = ("full", "light")


class Result(NamedTuple):
    """What came out of an episode: see the last info of the environments."""

    decision: Any  # an int32 array padded to the roster's size with -1, or a text
    cost: float  # of ``Problem.costs``: finite where invalid, too
    valid: bool
    reasons: tuple[str, ...]  # left out, (), where the infos are light


class Episodes(ABC, Generic[InstanceT]):
    """``count`` episodes on instances of a roster; see the environments for what they mean.

    A subclass says what is observed and done; ``rows`` are indices of episodes. It sets ``table`` before, and
    ``action_space`` after, the constructor below.

    Args:
        roster: what episodes are drawn from; its ``sizes`` are the values of the table's symbols.
        count: how many at a time.
        info: ``"full"`` or ``"light"``, see :class:`EpisodeEnv`.
    """

    roster: Roster[InstanceT]
    table: ObservationTable
    action_space: spaces.Space[Any]
    longest: int | None = None  # steps that an episode has at most, where that is known

    def __init__(self, roster: Roster[InstanceT], count: int, info: str = "full") -> None:
        choice("info", info, INFOS)
        self.roster = roster
        self.light = info == "light"
        # those that are there, and behind them the one that is drawn for each row
        self.instances: list[InstanceT] = [*roster.flat, *([None] * count if roster.draws else [])]  # type: ignore[list-item]
        self.stage = 0  # of a curriculum
        self.count = count
        self._all = np.arange(count)
        self.instance_of = np.zeros(count, np.int64)
        self.generators: dict[int, np.random.Generator] = {}  # of the episode in each row, for all its random choices
        self.observation_shapes = self.table.shapes(roster.sizes)
        self.observation_space = self.table.space(roster.sizes)
        self._static: dict[int, dict[str, np.ndarray]] = {}  # flat constants of instances, made when first needed

    @abstractmethod
    def _begin(self, rows: np.ndarray) -> None:
        """Start an episode in each of ``rows``; instances and generators are chosen."""

    @abstractmethod
    def act(self, rows: np.ndarray, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take an action in each of ``rows``: (rewards float64, terminated bool, illegal bool), each [rows].

        ``actions`` are checked: see :func:`checked_actions`.
        """

    @abstractmethod
    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """New observation arrays, [rows, size] each."""

    @abstractmethod
    def masks(self, rows: np.ndarray) -> np.ndarray:
        """bool [rows, ...]: the legal actions."""

    @abstractmethod
    def decision(self, row: int) -> Any:
        """int32, a copy: what is decided now."""

    @abstractmethod
    def result(self, row: int) -> Result:
        """What came out of an episode that has ended."""

    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        """The padded constants of an instance, new copies, in the shapes of the table: none where all is observed."""
        return {}

    def figure(self, row: int) -> Figure:
        """An episode as it stands, drawn on an Agg canvas: as its problem draws decisions, or else their timelines."""
        return decision_figure(self.instance(row).problem, self.decision(row))

    def describe(self, row: int) -> str:
        """An episode as it stands, as a small table: here what it costs now, and what is wrong with it."""
        problem, outcome = self.instance(row).problem, self.outcome(row)
        cost = f"{problem.words.cost} {outcome.cost:.6g} {outcome.unit}" if outcome.valid else "invalid"
        return "\n  ".join([f"{problem.title}: {cost}", *outcome.reasons])

    def begun(self, row: int) -> dict[str, Any]:
        """What the first info has beside graph and cluster."""
        return {}

    def ended(self, row: int) -> dict[str, Any]:
        """What the last info has beside the :class:`Result` and ``illegal_action``."""
        return {}

    def reset_info(self, row: int) -> dict[str, Any]:
        """The info of an episode's start."""
        problem = self.instance(row).problem
        return self.told({"graph": problem.graph_name, "cluster": problem.cluster_name, **self.begun(row)})

    def end_info(self, row: int) -> dict[str, Any]:
        """What the info of an episode's last step has beside ``illegal_action``."""
        return self.told({**self.result(row)._asdict(), **self.ended(row)})

    def told(self, info: dict[str, Any]) -> dict[str, Any]:
        """An info as it is, or light: its numbers and arrays, all as arrays, since some libraries ask for a dtype."""
        if not self.light:
            return info
        kept = bool | int | float | np.ndarray
        return {name: np.asarray(value) for name, value in info.items() if isinstance(value, kept)}

    def instance(self, row: int) -> InstanceT:
        return self.instances[self.instance_of[row]]

    @property
    def only_problem(self) -> Problem | None:
        """The problem of all episodes; None where there are several."""
        return None if self.roster.draws or len(self.instances) > 1 else self.instances[0].problem

    def of_instances(self, rows: np.ndarray, what: str) -> np.ndarray:
        """int64 [rows]: a number that the instances of rows have, by its name."""
        indices = self.instance_of[rows]
        if len(self.instances) == 1:
            return np.full(len(rows), getattr(self.instances[0], what))
        return np.array([getattr(self.instances[index], what) for index in indices.tolist()], np.int64)

    def set_stage(self, stage: int) -> None:
        """Episodes that begin from now on are of this stage of the curriculum. Raises InputError for what is none."""
        self.stage = self.roster.check_stage(stage)

    def outcome(self, row: int) -> Outcome:
        """The outcome of what is decided now."""
        return self.instance(row).problem.evaluate(self.decision(row))

    def reset(
        self, rows: np.ndarray, generators: Sequence[np.random.Generator], options: Mapping[str, Any] | None = None
    ) -> None:
        """Start an episode in each of ``rows``, with its own generator, drawn or chosen by checked ``options``."""
        for row, generator in zip(rows.tolist(), generators, strict=True):
            index, instance = self.roster.draw(generator, options, self.stage)
            if index < 0:
                index = len(self.roster.flat) + row
                self.instances[index] = instance
                self._static.pop(index, None)
            self.instance_of[row] = index
            self.generators[row] = generator
        self._begin(rows)

    def unflatten(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Views of a flat observation (or a batch of them, [B, size] each) in the documented shapes."""
        return {
            name: array.reshape(array.shape[:-1] + self.observation_shapes[name]) for name, array in observation.items()
        }

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[InstanceT, np.ndarray, np.ndarray]]:
        """(instance, its rows, where they stand in ``rows``) for each instance among them."""
        if not len(rows):
            return
        if len(self.instances) == 1 or len(rows) == 1:
            yield self.instance(rows[0]), rows, self._all[: len(rows)]
            return
        which = self.instance_of[rows]
        for index in np.unique(which).tolist():
            at = np.flatnonzero(which == index)
            yield self.instances[index], rows[at], at

    def _fill_static(self, rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
        """Put the constants of each row's instance among the observation's arrays."""
        indices = self.instance_of[rows].tolist()
        for index in indices:
            if index not in self._static:
                self._static[index] = {name: array.ravel() for name, array in self.static_arrays(index).items()}
        for name in self._static[indices[0]] if indices else ():
            out[name] = np.stack([self._static[index][name] for index in indices])


def one_shot_masks(choices: np.ndarray, decisions: np.ndarray, most: int) -> np.ndarray:
    """bool [rows, most * choices]: the legal entries of a whole decision; a padded entry allows choice 0 only.

    Args:
        choices: bool [rows, choices] what each entry may be.
        decisions: int [rows] how many entries count.
        most: entries, padding included.
    """
    masks = np.repeat(choices[:, None], most, axis=1)
    masks[np.arange(most) >= decisions[:, None]] = np.arange(choices.shape[1]) == 0
    return masks.reshape(len(choices), -1)
