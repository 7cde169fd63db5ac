"""The stages of a captured module: parts that come one after another, which the expert's placement keeps whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def default_stages(module: torch.nn.Module, paths: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Stages in forward order for any module: its children, with the entries of lists and sequences apart.

    ``paths`` are the module paths of the forward operators in the order in which they ran, where that is known.
    """
    import torch

    stages: list[dict[str, Any]] = []
    for name, child in module.named_children():
        parts = [name]
        if isinstance(child, torch.nn.ModuleList | torch.nn.Sequential) and len(child):
            parts = [f"{name}.{index}" for index, _ in child.named_children()]
        stages.extend({"name": part, "part": "", "modules": [part]} for part in parts)
    return stages or [{"name": type(module).__name__, "part": "", "modules": [""]}]
