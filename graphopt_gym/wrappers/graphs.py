"""Observations as graphs: Gymnasium's ``spaces.Graph``, and PyTorch Geometric's ``Data``.

Both wrap any environment whose observation holds a graph: a part ``edge_index`` [2, E], whose entries are nodes, and
``node_mask`` [N]. What belongs where is said by the environment's table of its observation (see its documentation):
parts of shape [N, …] are of nodes, parts of shape [E, …] of edges. Neither has padding. Stable-Baselines3 cannot take
them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from graphopt_gym.envs.core.observation import Part, number
from graphopt_gym.errors import InputError
from graphopt_gym.extras import need

if TYPE_CHECKING:
    import torch_geometric.data

    from graphopt_gym.envs.core.env import EpisodeEnv


class GraphObservation(
    gym.ObservationWrapper[spaces.GraphInstance, Any, dict[str, np.ndarray]], gym.utils.RecordConstructorArgs
):
    """The observation as a ``spaces.GraphInstance`` of n nodes and e edges.

    ``nodes`` float32 [n, …]: the parts of nodes side by side, in the order of the table. Those of indices are one-hot;
    one index of a node makes two columns: 1 for the nodes before it, and 1 for itself. ``edges`` float32 [e, …]: the
    parts of edges. ``edge_links`` int32 [e, 2]: sending and reading node. All floats lie in 0 to 1. What is of neither
    does not fit in here, see :class:`PyGObservation`.

    Raises:
        InputError: the environment's observation holds no graph.
    """

    def __init__(self, env: gym.Env[dict[str, np.ndarray], Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        given = env.observation_space
        if not isinstance(given, spaces.Dict) or "edge_index" not in given.spaces:
            raise InputError(
                "the environment's observation holds no graph; make it with observation='graph', or one-shot"
            )
        base: EpisodeEnv = env.unwrapped  # type: ignore[assignment]
        self._sizes: dict[str, int] = base.episodes.roster.sizes
        table = {part.name: part for part in base.episodes.table}
        links = table.pop("edge_index")
        self._node: int | str = links.below
        pointers = [part for part in table.values() if part.shape == (1,) and self._is_node(part)]
        own = [part for part in table.values() if part.shape[0] == self._node and part.name != "node_mask"]
        self._node_parts: list[Part] = [*own, *pointers]
        self._edge_parts: list[Part] = [part for part in table.values() if part.shape[0] == links.shape[1]]
        taken = {part.name for part in (*own, *self._edge_parts)} | {"node_mask"}
        self._others: list[Part] = [part for part in table.values() if part.name not in taken]
        widths = [sum(map(self._width, parts)) for parts in (self._node_parts, self._edge_parts)]
        node_space, edge_space = (spaces.Box(0.0, 1.0, (width,), np.float32) for width in widths)
        self.observation_space = spaces.Graph(node_space=node_space, edge_space=edge_space)

    def _is_node(self, part: Part) -> bool:
        """Whether the entries of a part are nodes, or one beyond them."""
        return part.kind == "index" and str(part.below).partition(" + ")[0] == self._node

    def _width(self, part: Part) -> int:
        if part.shape == (1,):
            return 2
        each = math.prod(number(size, self._sizes) for size in part.shape[1:])
        return each * (number(part.below, self._sizes) if part.kind == "index" else 1)

    def _columns(self, part: Part, values: np.ndarray, count: int) -> np.ndarray:
        """[count, width] of a part."""
        if part.shape == (1,):
            order = np.arange(count)
            return np.stack([order < values[0], order == values[0]], axis=1)
        if part.kind == "index":
            values = values[..., None] == np.arange(number(part.below, self._sizes))
        return values[:count].reshape(count, -1)

    def observation(self, observation: dict[str, np.ndarray]) -> spaces.GraphInstance:
        flat = self.env.unwrapped.unflatten(observation)  # type: ignore[attr-defined]
        links = flat["edge_index"][:, flat["edge_index"][0] >= 0]
        nodes, edges = (
            np.concatenate([self._columns(part, flat[part.name], count) for part in parts], axis=1, dtype=np.float32)
            for parts, count in ((self._node_parts, int(flat["node_mask"].sum())), (self._edge_parts, links.shape[1]))
        )
        return spaces.GraphInstance(nodes=nodes, edges=edges, edge_links=np.ascontiguousarray(links.T))

    def extras(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What belongs to neither nodes nor edges, by name: floats, bools and int64.

        Parts of shape [M, …] of which one, indices [M], is padded with -1 lose their padding; the others are one row,
        [1, …], so that graphs can be stacked. A part [M, K] of nodes becomes ``…_index`` [K, M], as PyTorch Geometric
        names what it counts on from graph to graph; an entry that is padded is the row's first again.
        """
        flat = self.env.unwrapped.unflatten(observation)  # type: ignore[attr-defined]
        shown = {
            part.shape[0]: flat[part.name] >= 0
            for part in self._others
            if part.kind == "index" and part.least < 0 and len(part.shape) == 1
        }
        found = {}
        for part in self._others:
            values = flat[part.name]
            if part.kind != "share":
                values = values.astype(np.bool_ if part.kind == "mask" else np.int64)
            if part.shape[0] not in shown:
                found[part.name] = values if part.shape == (1,) else values[None]
                continue
            values = values[shown[part.shape[0]]]
            if self._is_node(part) and values.ndim == 2:
                values = np.where(values < 0, values[:, :1], values).T
                found[f"{part.name.rpartition('_')[0]}_index"] = values
            else:
                found[part.name] = values
        return found


class PyGObservation(
    gym.ObservationWrapper["torch_geometric.data.Data", Any, dict[str, np.ndarray]], gym.utils.RecordConstructorArgs
):
    """The observation as a ``torch_geometric.data.Data``: what :class:`GraphObservation` gives, as tensors.

    ``x`` float32 [n, …], ``edge_index`` int64 [2, e], ``edge_attr`` float32 [e, …], and all other parts of the table
    as :meth:`GraphObservation.extras` gives them, such as ``action_mask`` bool [1, …]. ``Batch.from_data_list`` stacks
    them; for parts that are not one row, ``follow_batch=[name]`` says whose each is. ``observation_space`` is that of
    :class:`GraphObservation`.

    Raises:
        InputError: the environment's observation holds no graph, or PyTorch Geometric is not installed.
    """

    def __init__(self, env: gym.Env[dict[str, np.ndarray], Any]) -> None:
        need("torch_geometric", what="PyGObservation")
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self._graph = GraphObservation(env)
        self.observation_space = self._graph.observation_space

    def observation(self, observation: dict[str, np.ndarray]) -> torch_geometric.data.Data:
        import torch
        from torch_geometric.data import Data

        graph = self._graph.observation(observation)
        assert graph.edges is not None
        assert graph.edge_links is not None
        extras = self._graph.extras(observation)
        return Data(
            x=torch.from_numpy(graph.nodes),
            edge_index=torch.from_numpy(np.ascontiguousarray(graph.edge_links.T).astype(np.int64)),
            edge_attr=torch.from_numpy(graph.edges),
            num_nodes=len(np.asarray(graph.nodes)),
            **{name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in extras.items()},
        )
