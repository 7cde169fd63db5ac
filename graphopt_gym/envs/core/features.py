"""Features of ops that several environments show, as numbers in 0 to 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, SOURCE, VIEW

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph

_CLASSES = [code for code in range(len(OP_CLASSES)) if code not in (SOURCE, VIEW)]
_LOG_LARGEST = np.log1p(1e15)
KIND_FEATURES = (*(f"phase_{phase}" for phase in PHASES), *(f"class_{OP_CLASSES[code]}" for code in _CLASSES))


def kind_features(graph: ComputationGraph, op: np.ndarray) -> np.ndarray:
    """bool [N, :data:`KIND_FEATURES`]: the phase and the class of ops, int [N]; of a source or a view no class."""
    return np.column_stack(
        [graph.phase[op][:, None] == np.arange(len(PHASES)), graph.op_class[op][:, None] == np.array(_CLASSES)]
    )


def logs(sizes: np.ndarray) -> np.ndarray:
    """Logarithms of sizes or counts from 0 to 1e15, as shares of the largest."""
    return np.minimum(1.0, np.log1p(sizes) / _LOG_LARGEST)


def squashed(ratio: np.ndarray) -> np.ndarray:
    """Ratios from 0 up, those of 1 as one half."""
    return ratio / (1 + ratio)
