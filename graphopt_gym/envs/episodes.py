"""Episodes in progress: the one implementation behind a task's scalar and vector environments.

A scalar environment is one episode, a vector environment is several; both go through the same code and the same
kernels, which is why they agree exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
from gymnasium import spaces

from graphopt_gym.envs.roster import InstanceT, Roster

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graphopt_gym.problem import Outcome


class Episodes(ABC, Generic[InstanceT]):
    """``count`` episodes on instances of a roster; see the environments for what they mean.

    A subclass says what is observed and done; ``rows`` are indices of episodes.
    """

    roster: Roster[InstanceT]
    observation_shapes: dict[str, tuple[int, ...]]  # before flattening
    action_space: spaces.Space[Any]

    def __init__(self, roster: Roster[InstanceT], count: int) -> None:
        self.roster = roster
        self.instances = roster.flat
        self.count = count
        self._all = np.arange(count)
        self.instance_of = np.zeros(count, np.int64)
        self.generators: dict[int, np.random.Generator] = {}  # of the episode in each row, for all its random choices
        self.observation_space = spaces.Dict(self._spaces())

    @abstractmethod
    def _spaces(self) -> dict[str, spaces.Space[Any]]:
        """The spaces of the observation's parts; sets ``observation_shapes``."""

    @abstractmethod
    def _begin(self, rows: np.ndarray) -> None:
        """Start an episode in each of ``rows``; instances and generators are chosen."""

    @abstractmethod
    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take an action in each of ``rows``: (rewards float64, terminated bool, illegal bool), each [rows]."""

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
    def reset_info(self, row: int) -> dict[str, Any]:
        """The info of an episode's start."""

    @abstractmethod
    def end_info(self, row: int) -> dict[str, Any]:
        """What the info of an episode's last step has beside ``illegal_action``."""

    @abstractmethod
    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        """The padded constants of an instance, in the shapes that the environments document."""

    @abstractmethod
    def figure(self, row: int) -> Figure:
        """An episode as it stands, drawn on an Agg canvas."""

    @abstractmethod
    def describe(self, row: int) -> str:
        """An episode as it stands, as a small table."""

    def instance(self, row: int) -> InstanceT:
        return self.instances[self.instance_of[row]]

    def outcome(self, row: int) -> Outcome:
        """The outcome of what is decided now."""
        return self.instance(row).problem.evaluate(self.decision(row))

    def reset(
        self, rows: np.ndarray, generators: Sequence[np.random.Generator], options: Mapping[str, Any] | None = None
    ) -> None:
        """Start an episode in each of ``rows``, with its own generator, drawn or chosen by ``options``."""
        for row, generator in zip(rows.tolist(), generators, strict=True):
            self.instance_of[row] = self.roster.draw(generator, options)
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

    def _static_spaces(self, most_nodes: int) -> dict[str, spaces.Space[Any]]:
        """The spaces of the constants, which are kept flat for :meth:`_fill_static`: floats lie in 0 to 1, int8 are
        masks, int32 indices of nodes."""
        self._static_flat = [
            {name: array.ravel() for name, array in self.static_arrays(index).items()}
            for index in range(len(self.instances))
        ]
        boxes: dict[str, spaces.Space[Any]] = {}
        for name, array in self._static_flat[0].items():
            if array.dtype == np.float32:
                boxes[name] = unit_box(array.shape)
            elif array.dtype == np.int8:
                boxes[name] = spaces.Box(0, 1, array.shape, np.int8)
            else:
                boxes[name] = spaces.Box(-1, most_nodes - 1, array.shape, np.int32)
        return boxes

    def _fill_static(self, rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
        indices = self.instance_of[rows].tolist()
        for name in self._static_flat[0]:
            out[name] = np.stack([self._static_flat[index][name] for index in indices])


def unit_box(shape: tuple[int, ...]) -> spaces.Box:
    """A flat box of floats in 0 to 1."""
    return spaces.Box(0.0, 1.0, (int(np.prod(shape)),), np.float32)


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
