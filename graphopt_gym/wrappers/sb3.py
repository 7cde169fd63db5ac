"""A native vector environment as Stable-Baselines3's ``VecEnv``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from graphopt_gym.errors import InputError
from graphopt_gym.extras import need

need("stable_baselines3", what="SB3VecEnv")
from stable_baselines3.common.vec_env import VecEnv  # noqa: E402


class SB3VecEnv(VecEnv):
    """Steps a Gymnasium vector environment as Stable-Baselines3 expects it.

    A step gives four values; an ended episode starts anew in the same step, with its last observation in
    ``info["terminal_observation"]``; ``env_method("action_masks")`` gives MaskablePPO its masks.

    Args:
        envs: a native vector environment of this package with ``autoreset_mode="SameStep"``.

    Raises:
        InputError: another autoreset mode.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        if envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise InputError(
                f"SB3VecEnv needs a vector environment that resets in the same step, got "
                f"{envs.metadata.get('autoreset_mode')}; make it with autoreset_mode='SameStep'"
            )
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self._actions: np.ndarray | None = None

    def reset(self) -> dict[str, np.ndarray]:
        options = self._options[0]
        if any(other != options for other in self._options):
            raise InputError("set_options() got different options for different environments; give one dict for all")
        seeded = any(seed is not None for seed in self._seeds)
        observations, infos = self.envs.reset(
            seed=list(self._seeds) if seeded else None,  # type: ignore[arg-type]
            options=options or None,
        )
        self.reset_infos = self._rows(infos)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        done = terminated | truncated
        final_observations = infos.pop("final_obs", None)
        infos.pop("_final_obs", None)
        final_infos = infos.pop("final_info", {})
        infos.pop("_final_info", None)
        rows = self._rows(infos)
        if done.any():
            ended = self._rows(final_infos)
            for row in np.flatnonzero(done).tolist():
                self.reset_infos[row] = rows[row]
                rows[row] = ended[row]
                rows[row]["terminal_observation"] = final_observations[row]
                rows[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        return observations, rewards.astype(np.float32), done, rows

    def _rows(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        """One dict an environment from a dict of arrays with masks."""
        rows: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for key, values in infos.items():
            if not key.startswith("_"):
                for row in np.flatnonzero(infos[f"_{key}"]).tolist():
                    value = values[row]
                    rows[row][key] = value.item() if isinstance(value, np.generic) else value
        return rows

    def _chosen(self, indices: int | Iterable[int] | None) -> list[int]:
        return list(self._get_indices(indices))

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        value = getattr(self.envs, attr_name)  # AttributeError: what has_attr() relies on
        return [value for _ in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        raise InputError(f"cannot set {attr_name!r} of some sub-environments of a native vector environment; make anew")

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment: one that takes no row gives a row each; others are called by row."""
        method = getattr(self.envs, method_name)
        if method_name in ("action_masks", "render"):
            answers = method(*method_args, **method_kwargs)
            return [None if answers is None else answers[row] for row in self._chosen(indices)]
        return [method(row, *method_args, **method_kwargs) for row in self._chosen(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        return [False for _ in self._chosen(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.env_method("render")

    def close(self) -> None:
        self.envs.close()
