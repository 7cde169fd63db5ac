"""Adapters between the environments and the libraries that train on them. Each is imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt_gym.wrappers.graphs import GraphObservation as GraphObservation
    from graphopt_gym.wrappers.graphs import PyGObservation as PyGObservation
    from graphopt_gym.wrappers.sb3 import SB3VecEnv as SB3VecEnv

_LAZY = {"GraphObservation": "graphs", "PyGObservation": "graphs", "SB3VecEnv": "sb3"}

__all__ = ["GraphObservation", "PyGObservation", "SB3VecEnv"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'graphopt_gym.wrappers' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"graphopt_gym.wrappers.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
