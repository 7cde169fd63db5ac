"""Observations as graphs: Gymnasium's ``spaces.Graph``, and PyTorch Geometric's ``Data``.

Both give the groups (or ops) as nodes and the tensors between them as edges, without padding. They wrap
``Placement-v0`` (made with ``observation="graph"``), ``PlacementOneShot-v0``, ``ChipletPartition-v0`` in its
one-shot modes, and ``RewriteOrder-v0``. Stable-Baselines3 cannot take either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from graphopt_gym.errors import InputError

if TYPE_CHECKING:
    import torch_geometric.data

    from graphopt_gym.envs.core.env import EpisodeEnv


class GraphObservation(
    gym.ObservationWrapper[spaces.GraphInstance, Any, dict[str, np.ndarray]], gym.utils.RecordConstructorArgs
):
    """The observation as a ``spaces.GraphInstance`` of n groups and e edges, on D (``max_devices``) devices.

    ``nodes`` float32 [n, F + 2 D], and for ``Placement-v0`` [n, F + 3 D + 2]: the group's features; its time and its
    memory on each device; and there its device now, one-hot; 1 where it is decided; 1 where it is the current one.
    For ``ChipletPartition-v0`` and ``RewriteOrder-v0`` [n, F]: the op's features. ``edges`` float32 [e, 1]: the
    environment's ``edge_bytes``, or for ``RewriteOrder-v0`` its ``edge_operand``. ``edge_links`` int32 [e, 2]: sending
    and reading node. All floats lie in 0 to 1. Matches of rules do not fit in here, see :class:`PyGObservation`.

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
        shapes = base.episodes.observation_shapes
        self._edge: str = "edge_bytes" if "edge_bytes" in given.spaces else "edge_operand"
        self._devices: int = shapes["action_mask"][0]
        self._per_device: list[str] = [name for name in ("times", "memory") if name in given.spaces]
        width = shapes["nodes"][1] + len(self._per_device) * self._devices
        width += ("placement" in given.spaces) * (self._devices + 2)
        self.observation_space = spaces.Graph(
            node_space=spaces.Box(0.0, 1.0, (width,), np.float32), edge_space=spaces.Box(0.0, 1.0, (1,), np.float32)
        )

    def observation(self, observation: dict[str, np.ndarray]) -> spaces.GraphInstance:
        flat = self.env.unwrapped.unflatten(observation)  # type: ignore[attr-defined]
        groups = int(flat["node_mask"].sum())
        edges = int((flat["edge_index"][0] >= 0).sum())
        columns = [flat[name][:groups] for name in ("nodes", *self._per_device)]
        if "placement" in flat:
            order, current = np.arange(groups), flat["current"][0]
            here = flat["placement"][:groups, None] == np.arange(self._devices)
            columns += [here, (order < current)[:, None], (order == current)[:, None]]
        return spaces.GraphInstance(
            nodes=np.concatenate(columns, axis=1, dtype=np.float32),
            edges=flat[self._edge][:edges, None].copy(),
            edge_links=np.ascontiguousarray(flat["edge_index"][:, :edges].T),
        )


class PyGObservation(
    gym.ObservationWrapper["torch_geometric.data.Data", Any, dict[str, np.ndarray]], gym.utils.RecordConstructorArgs
):
    """The observation as a ``torch_geometric.data.Data``: what :class:`GraphObservation` gives, as tensors.

    ``x`` float32 [n, ...], ``edge_index`` int64 [2, e], ``edge_attr`` float32 [e, 1], and ``action_mask`` bool
    [1, D]; ``Placement-v0`` adds ``devices`` float32 [1, D, 15], ``progress`` float32 [1, 5] and ``current`` int64
    [1]; ``ChipletPartition-v0`` adds ``chips`` float32 [1, C, K]. ``RewriteOrder-v0`` adds its m matches (action
    ``i`` is match ``i - 1``): ``matches`` float32 [m, K], ``match_rule`` int64 [m], and ``match_index`` int64 [2, m],
    the nodes that each replaces (twice the same where it is one); and ``progress`` float32 [1, 4].
    ``Batch.from_data_list`` stacks them, with ``follow_batch=["matches"]`` whose each match is.
    ``observation_space`` is that of :class:`GraphObservation`.

    Raises:
        InputError: the environment's observation holds no graph.
        ImportError: PyTorch Geometric is not installed.
    """

    def __init__(self, env: gym.Env[dict[str, np.ndarray], Any]) -> None:
        try:
            import torch_geometric.data  # noqa: F401
        except ImportError as error:  # pragma: no cover - depends on what is installed
            raise ImportError('PyGObservation needs PyTorch Geometric: pip install "graphopt-gym[agents]"') from error
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self._graph = GraphObservation(env)
        self.observation_space = self._graph.observation_space

    def observation(self, observation: dict[str, np.ndarray]) -> torch_geometric.data.Data:
        import torch
        from torch_geometric.data import Data

        graph = self._graph.observation(observation)
        flat = self.env.unwrapped.unflatten(observation)  # type: ignore[attr-defined]
        assert graph.edges is not None
        assert graph.edge_links is not None
        extra: dict[str, Any] = {"action_mask": torch.from_numpy(flat["action_mask"].astype(np.bool_))[None]}
        if "current" in flat:
            extra["devices"] = torch.from_numpy(flat["devices"])[None]
            extra["progress"] = torch.from_numpy(flat["progress"])[None]
            extra["current"] = torch.from_numpy(flat["current"].astype(np.int64))
        if "chips" in flat:
            extra["chips"] = torch.from_numpy(flat["chips"])[None]
        if "matches" in flat:
            shown = flat["match_rule"] >= 0
            first, second = flat["match_roots"][shown].astype(np.int64).T
            extra["matches"] = torch.from_numpy(flat["matches"][shown])
            extra["match_rule"] = torch.from_numpy(flat["match_rule"][shown].astype(np.int64))
            extra["match_index"] = torch.from_numpy(np.stack([first, np.where(second < 0, first, second)]))
            extra["progress"] = torch.from_numpy(flat["progress"])[None]
        return Data(
            x=torch.from_numpy(graph.nodes),
            edge_index=torch.from_numpy(np.ascontiguousarray(graph.edge_links.T).astype(np.int64)),
            edge_attr=torch.from_numpy(graph.edges),
            num_nodes=int(flat["node_mask"].sum()),
            **extra,
        )
