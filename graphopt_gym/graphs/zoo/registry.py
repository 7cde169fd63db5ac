"""The table of shipped graphs: which family builds each, at which sizes, and where the sizes come from.

Adding a graph is adding a row here (and a family module where the architecture is new), then running
``scripts/build_graphs.py NAME``. Nothing here imports torch; the family modules do.
"""

from __future__ import annotations

from typing import Any

from graphopt_gym.errors import unknown_name
from graphopt_gym.graphs.zoo.entry import SPLIT_OF_FAMILY as SPLIT_OF_FAMILY
from graphopt_gym.graphs.zoo.entry import Entry
from graphopt_gym.graphs.zoo.inference import INFERENCE as INFERENCE
from graphopt_gym.graphs.zoo.training import TRAINING as TRAINING

# Layer counts, batch sizes and device counts of the device-placement graphs are GO's (table 1). Widths, steps,
# vocabularies and the recurrent models' batch sizes are not published there; those below come from the cited
# papers' own experiments, or are ours where a note says so.
_INCEPTION = "Szegedy et al.: Rethinking the Inception Architecture, CVPR 2016 (Inception-v3)"
_INCEPTION_NOTE = "299x299 images with the auxiliary classifier; SGD with momentum stands for the paper's RMSProp"

ZOO: dict[str, Entry] = {
    "bert_base": Entry(
        "bert",
        {"layers": 12, "width": 768, "heads": 12, "inner": 3072, "sequence": 384, "batch": 32},
        "Devlin, Chang, Lee, Toutanova: BERT, NAACL 2019 (BERT-base)",
        "pre-training step with masked-language-model logits at every position; sequence and batch are ours, so "
        "that the step exceeds one 16 GB GPU",
    ),
    "gpt2_small": Entry(
        "gpt2",
        {"layers": 12, "width": 768, "heads": 12, "sequence": 1024, "batch": 8},
        "Radford et al.: Language Models are Unsupervised Multitask Learners, 2019 (117M)",
        "batch is ours, so that the step exceeds one 16 GB GPU",
    ),
    "resnet50": Entry(
        "resnet",
        {"blocks": (3, 4, 6, 3), "size": 224, "batch": 128},
        "He, Zhang, Ren, Sun: Deep Residual Learning, CVPR 2016 (ResNet-50)",
        "batch is ours, so that the step nearly fills one 16 GB GPU (the paper: 256 over 8 GPUs)",
    ),
    "inception_v3_b32": Entry("inception", {"size": 299, "batch": 32}, _INCEPTION, _INCEPTION_NOTE, devices=2),
    "inception_v3_b64": Entry("inception", {"size": 299, "batch": 64}, _INCEPTION, _INCEPTION_NOTE, devices=2),
    **{
        f"rnnlm_{layers}layer": Entry(
            "rnnlm",
            {"layers": layers, "width": 2048, "vocabulary": 40000, "steps": 60, "batch": 64},
            "Jozefowicz et al.: Exploring the Limits of Language Modeling, 2016; Zaremba et al. 2014",
            "unrolled cells; width 2048 and batch 64 as recalled from Mirhoseini et al. 2017; 60 steps and a full "
            "softmax over 40,000 words are ours",
            devices=layers,
        )
        for layers in (2, 4, 8)
    },
    **{
        f"gnmt_{layers}layer": Entry(
            "gnmt",
            {"layers": layers, "width": 1024, "vocabulary": 32000, "source_steps": 66, "target_steps": 66}
            | {"batch": 128, "dropout": 0.2},
            "Wu et al.: Google's Neural Machine Translation System, 2016",
            "unrolled cells; width, vocabulary, batch, residual connections and bidirectional first layer are the "
            "paper's (fewer than its 8 layers are the device-placement papers'); 66 steps on each side, all of them "
            "used, decoder states that start at zero and Adam throughout are ours",
            devices=layers,
        )
        for layers in (2, 4, 8)
    },
    **{
        f"transformer_xl_{layers}layer": Entry(
            "transformer_xl",
            {"layers": layers, "width": 1024, "heads": 16, "head_width": 64, "inner": 4096, "length": 384}
            | {"memory": 384, "vocabulary": 32000, "batch": 64},
            "Dai et al.: Transformer-XL, ACL 2019 (sizes of the large WikiText-103 model)",
            "a tied full softmax over 32,000 subwords stands for the paper's adaptive softmax, whose shapes depend "
            "on the data; batch is ours, so that 2 layers exceed one 16 GB GPU",
            devices=layers,
        )
        for layers in (2, 4, 8)
    },
    "amoebanet": Entry(
        "amoebanet",
        {"cells": 18, "width": 256, "stem": 32, "size": 299, "batch": 32},
        "Real, Aggarwal, Huang, Le: Regularized Evolution for Image Classifier Architecture Search, AAAI 2019; "
        "cells of its TensorFlow release (AmoebaNet-D)",
        "cells, filters, image size and batch are the release's defaults: 18 normal cells, 256 filters, 299x299, 32 "
        "(which of the AmoebaNets the device-placement papers take is not known); with the auxiliary classifier, "
        "without drop path; SGD with momentum stands for the paper's RMSProp",
        devices=4,
    ),
    **{
        f"wavenet_{stacks}x{layers}": Entry(
            "wavenet",
            {"stacks": stacks, "layers": layers, "cycle": 9, "width": 128, "skip": 256, "length": 8192, "batch": batch},
            "van den Oord et al.: WaveNet, 2016",
            f"{stacks} stacks of {layers} layers each; the paper publishes neither channels nor length: 128 residual "
            "and gate channels, 256 skip channels, dilations 1 to 256 over and over, 8,192 samples and the batch are "
            "ours, so that the step exceeds one 16 GB GPU",
            devices=devices,
        )
        for stacks, layers, batch, devices in ((2, 18, 24, 2), (4, 36, 16, 4))
    },
}

PAPERS = tuple(name for name, entry in ZOO.items() if entry.devices)  # the fourteen rows of GO's table 1

DEFAULT_CLUSTER = "v100x4"  # of graphs that no paper places


def own_cluster(graph: str) -> str:
    """The cluster of a graph that is named without one: the paper's for a graph of a paper, else the default."""
    return (ZOO[graph].cluster if graph in ZOO else None) or DEFAULT_CLUSTER


def held_out(family: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The papers' graphs without one family, and that family's: GDP's and GO's test of transfer.

    Raises:
        InputError: no graph of the papers is of that family.
    """
    families = {name: ZOO[name].family for name in PAPERS}
    if family not in families.values():
        raise unknown_name("family", family, sorted(set(families.values())))
    return (
        tuple(name for name in PAPERS if families[name] != family),
        tuple(name for name in PAPERS if families[name] == family),
    )


def _measured() -> dict[str, Entry]:
    """Graphs of the whole-model measurements of NeuSight (Lee, Phanishayee, Mahajan, ASPLOS 2025).

    Configurations from its repository (``scripts/asplos/data/DLmodel_configs``); heads from its tracing script:
    BERT with a classification head in inference and the pre-training heads in training, the others with their
    language-model head. In training the measured time covers the forward pass without the loss (module path
    ``loss`` here) and the backward pass with it; there is no optimiser.
    """
    gpt = {"tokens_only": True, "optimizer": None, "positions": 2048}
    bert = {"layers": 24, "width": 1024, "heads": 16, "inner": 4096, "tokens_only": True, "optimizer": None}
    models: dict[str, tuple[str, dict[str, Any], list[tuple[str, int, int]]]] = {
        "bert_large": (
            "bert",
            bert,
            [("inf", 512, 8), ("inf", 512, 16), ("train", 512, 2), ("train", 512, 8)],
        ),
        "gpt2_large": (
            "gpt2",
            gpt | {"layers": 36, "width": 1280, "heads": 20, "positions": 1024},
            [("inf", 1024, 4), ("inf", 1024, 8), ("train", 1024, 1)],
        ),
        "gpt3_xl": ("gpt2", gpt | {"layers": 24, "width": 3072, "heads": 24}, [("inf", 2048, 2)]),
        "gpt3_27": ("gpt2", gpt | {"layers": 32, "width": 2560, "heads": 32}, [("inf", 2048, 2)]),
        "opt_13": (
            "opt",
            {"layers": 24, "width": 2048, "heads": 32, "inner": 8192, "optimizer": None},
            [("inf", 2048, 2), ("inf", 2048, 8)],
        ),
        "switchxl4": ("switch", {"experts": 4, "capacity": 64, "optimizer": None}, [("inf", 512, 1), ("inf", 512, 2)]),
    }
    entries = {}
    for model, (family, config, runs) in models.items():
        for mode, sequence, batch in runs:
            train = mode == "train"
            sizes = config | {"sequence": sequence, "batch": batch, "train": train}
            if family == "bert":
                sizes["head"] = "pretraining" if train else "classification"
            entries[f"{model}_{mode}_s{sequence}_b{batch}"] = Entry(
                family,
                sizes,
                "configuration: sitar-lab/NeuSight (MIT); operators: the Hugging Face implementation, eager attention",
                "for comparison with measured whole-model times; fp32",
                folder=("graphs", "measured"),
            )
    return entries


def _published() -> dict[str, Entry]:
    """Graphs of the rates that ``gpu_published.csv`` lists, a name a (model, mode, sequence or image, batch, type).

    An update a batch, by Adam where NVIDIA's BERT has LAMB, which reads and writes more. Mixed precision is taken as
    all of it in float16 (apex O2 keeps batch normalisation and a copy of the parameters in float32).
    """
    bert = {"layers": 24, "width": 1024, "heads": 16, "inner": 4096, "vocabulary": 30528}
    resnet: dict[str, Any] = {}
    runs: list[tuple[str, str, dict[str, Any], str, int, int, str]] = [
        ("bert_large_pretraining", "bert", bert, "train", 512, 2, ""),
        ("bert_large_pretraining", "bert", bert, "train", 512, 4, "float16"),
        ("bert_large_pretraining", "bert", bert, "train", 128, 8, ""),
        ("bert_large_pretraining", "bert", bert, "inf", 512, 2, ""),
        ("bert_large_pretraining", "bert", bert, "inf", 512, 4, "float16"),
        ("resnet50", "resnet", resnet, "train", 224, 128, ""),
        ("resnet50", "resnet", resnet, "train", 224, 256, "float16"),
        ("resnet50", "resnet", resnet, "inf", 224, 8, ""),
        ("resnet50", "resnet", resnet, "inf", 224, 32, "float16"),
    ]
    entries = {}
    for model, family, config, mode, size, batch, precision in runs:
        sizes = config | {"batch": batch, "train": mode == "train", "sequence" if family == "bert" else "size": size}
        entries[published_name(model, mode, size, batch, precision)] = Entry(
            family,
            sizes,
            "configuration: NVIDIA DeepLearningExamples; operators: those of the zoo's model",
            f"for comparison with published rates; {precision or 'float32'}",
            folder=("graphs", "measured"),
            precision=precision,
        )
    return entries


def published_name(model: str, mode: str, size: int, batch: int, precision: str = "") -> str:
    """The graph of a row of ``gpu_published.csv``."""
    return f"{model}_{mode}_s{size}_b{batch}" + (f"_{precision}" if precision else "")


MEASURED = _measured() | _published()
ENTRIES: dict[str, Entry] = ZOO | INFERENCE | TRAINING | MEASURED

# What stands for several graphs: splits of the training steps by family, `papers`, and `all`; the same splits of the
# inference graphs, `inference`, all in one of those, and `inference_all`; `training_steps`, of further families; the
# graphs of whole-model measurements.
SPLITS: dict[str, tuple[str, ...]] = {
    **{
        split: tuple(name for name, entry in ZOO.items() if entry.split == split)
        for split in ("train", "validation", "test")
    },
    "papers": PAPERS,
    "all": tuple(ZOO),
    **{
        f"inference_{split}": tuple(name for name, entry in INFERENCE.items() if entry.split == split)
        for split in ("train", "validation", "test")
    },
    "inference": tuple(name for name, entry in INFERENCE.items() if entry.split),
    "inference_all": tuple(INFERENCE),
    "training_steps": tuple(TRAINING),
    "measured": tuple(MEASURED),
}
