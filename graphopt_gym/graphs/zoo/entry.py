"""What a row of the tables of shipped graphs holds, and how its graph is captured. Nothing here imports torch."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt_gym.data import data_path

# The split by family (ours): no family is in two, so a score on `test` is on architectures that training never saw.
# GNMT with 8 layers is what GDP holds out; the largest and the most branched graphs are kept for the end.
SPLIT_OF_FAMILY = {
    "rnnlm": "train",
    "transformer_xl": "train",
    "inception": "train",
    "resnet": "train",
    "bert": "train",
    "wavenet": "validation",
    "gpt2": "validation",
    "gnmt": "test",
    "amoebanet": "test",
}

# The split of the inference graphs (ours; sizes as in Xie et al. 2022: 66, 5, 16). Every family is in one part, and
# each part has networks of several kinds. BERT is held out, since the large BERT in primitive ops, which is in no part,
# is to be new to a policy too.
INFERENCE_SPLIT_OF_FAMILY = {
    "resnet": "train",
    "vgg": "train",
    "squeezenet": "train",
    "mobilenet_v2": "train",
    "efficientnet": "train",
    "inception": "train",
    "googlenet": "train",
    "convnext": "train",
    "deeplab": "train",
    "ssd": "train",
    "yolo": "train",
    "vit": "train",
    "swin": "train",
    "t5": "train",
    "transformer_xl": "train",
    "rnnlm": "train",
    "gru": "train",
    "tagger": "train",
    "dlrm": "train",
    "tcn": "train",
    "dcgan": "train",
    "gpt2": "validation",
    "wavenet": "validation",
    "shufflenet_v2": "validation",
    "bert": "test",
    "densenet": "test",
    "gnmt": "test",
    "mixer": "test",
    "retinanet": "test",
    "unet": "test",
}

SPLITS_OF_SET = {("graphs",): SPLIT_OF_FAMILY, ("graphs", "inference"): INFERENCE_SPLIT_OF_FAMILY}

LICENCE = "Apache-2.0 (architecture code written for graphopt-gym)"


@dataclass(frozen=True)
class Entry:
    """One graph: ``family`` is the module of this package whose ``build(**config)`` gives ``capture``'s arguments."""

    family: str
    config: Mapping[str, Any]
    source: str
    note: str = ""
    devices: int | None = None  # how many devices the paper places it on (GO, Zhou et al. 2020, table 1)
    folder: tuple[str, ...] = field(default=("graphs",))
    precision: str = ""  # a floating type that parameters and inputs are in; empty: as the family builds them

    @property
    def cluster(self) -> str | None:
        """The catalog's cluster with the paper's number of devices: P100s, whose 16 GB the batch sizes go by."""
        return None if self.devices is None else f"p100x{self.devices}"

    @property
    def split(self) -> str | None:
        """Where its family is in the splits of its set; None where the set has none, or the family is in none."""
        return SPLITS_OF_SET.get(self.folder, {}).get(self.family)

    def path(self, name: str) -> Any:
        """Where the shipped file lies."""
        return data_path(*self.folder, f"{name}.npz")

    def arguments(self, **overrides: Any) -> dict[str, Any]:
        """Arguments of :func:`graphopt_gym.graphs.capture.capture`; ``overrides`` change the configuration."""
        family = importlib.import_module(f"graphopt_gym.graphs.zoo.{self.family}")
        return dict(family.build(**{**self.config, **overrides}))

    def capture(self, name: str) -> Any:
        """The graph, captured anew."""
        from graphopt_gym.graphs.capture import CaptureWarning, capture
        from graphopt_gym.graphs.flops import as_first_captured

        arguments = self.arguments()
        if self.precision:
            _cast(arguments, self.precision)
        facts = {
            "family": self.family,
            "source": self.source,
            "configuration": dict(self.config),
            "licence": LICENCE,
            "note": self.note,
            "devices": self.devices,
            "cluster": self.cluster,
        }
        facts |= {"stages": _children(arguments["module"])} | arguments["metadata"]
        # The operators of a CPU, and no fact that is noted since: stored runs rest on graphs that were captured so.
        with as_first_captured(), warnings.catch_warnings():
            warnings.simplefilter("ignore", CaptureWarning)
            graph = capture(**arguments | {"target": "cpu", "name": name, "metadata": facts})
        graph.metadata.pop("parameters_without_gradient", None)
        return graph


def _cast(arguments: dict[str, Any], precision: str) -> None:
    """Parameters, buffers and floating inputs to a type, in place."""
    import torch

    dtype = getattr(torch, precision)
    arguments["module"].to(dtype)
    arguments["example_inputs"] = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in arguments["example_inputs"].items()
    }


def _children(module: Any) -> list[dict[str, Any]]:
    """The stages of families that name none: their children, and the entries of lists and sequences among these."""
    from torch import nn

    parts: list[str] = []
    for name, child in module.named_children():
        several = isinstance(child, nn.ModuleList | nn.Sequential) and len(child)
        parts += [f"{name}.{index}" for index, _ in child.named_children()] if several else [name]
    parts = parts or [""]
    return [{"name": part or type(module).__name__, "part": "", "modules": [part]} for part in parts]
