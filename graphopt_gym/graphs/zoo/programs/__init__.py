"""Tensor programs by name: networks at their published sizes, small programs with a known best, the user's, files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from graphopt_gym.catalog import Catalog
from graphopt_gym.data import data_path
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.files import read_text
from graphopt_gym.graphs.tensor_program import TensorProgram, parse_program, to_computation_graph
from graphopt_gym.graphs.zoo.programs import networks, small

__all__ = [
    "CATALOG",
    "PROGRAMS",
    "WORKLOADS",
    "ProgramEntry",
    "build_program",
    "known_best",
    "load_program",
    "program_names",
]


@dataclass(frozen=True)
class ProgramEntry:
    """A program of the zoo.

    Attributes:
        build: makes it; takes sizes by name.
        source: where its architecture comes from.
        small: sizes at which it runs in a blink and keeps its structure, for execution.
        sizes: what the builder is called with at the published size, where that is not its default.
        of: ``network``, or ``small`` for those whose best is known.
    """

    build: Callable[..., TensorProgram]
    source: str
    small: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    of: str = "network"


_TASO = "sizes: TASO, Jia et al., SOSP 2019, and TENSAT, Yang et al., MLSys 2021"
_RNN = f"Zoph, Le: Neural Architecture Search with Reinforcement Learning, ICLR 2017; {_TASO}"
WORKLOADS = ("bert", "nasrnn", "nasnet_a", "resnext50", "inception_v3", "squeezenet", "vgg19")
PROGRAMS: dict[str, ProgramEntry] = {
    "bert": ProgramEntry(
        networks.bert,
        f"Devlin, Chang, Lee, Toutanova: BERT, NAACL 2019; layers and sequence: {_TASO.removeprefix('sizes: ')}",
        {"layers": 2, "width": 16, "heads": 4, "inner": 32, "sequence": 4},
    ),
    "nasrnn": ProgramEntry(networks.nasrnn, _RNN, {"steps": 2, "width": 8}),
    "nasnet_a": ProgramEntry(
        networks.nasnet_a,
        f"Zoph, Vasudevan, Shlens, Le: Learning Transferable Architectures, CVPR 2018; {_TASO}",
        {"channels": 4, "cells": 2, "stages": 2, "stem": 4, "size": 32},
    ),
    "resnext50": ProgramEntry(
        networks.resnext50,
        "Xie, Girshick, Dollar, Tu, He: Aggregated Residual Transformations, CVPR 2017 (32 x 4d)",
        {"blocks": (1, 2), "width": 8, "groups": 4, "size": 32, "classes": 10},
    ),
    "inception_v3": ProgramEntry(
        networks.inception_v3,
        "Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture, CVPR 2016",
        {"width": 2, "size": 79, "classes": 10},
    ),
    "squeezenet": ProgramEntry(
        networks.squeezenet,
        "Iandola et al.: SqueezeNet, 2016 (version 1.1 of its release)",
        {"width": 2, "size": 47, "classes": 10},
    ),
    "vgg19": ProgramEntry(
        networks.vgg19,
        "Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015 (E)",
        {"width": 4, "inner": 16, "size": 32, "classes": 10},
    ),
    "bert_tensat": ProgramEntry(
        networks.bert_tensat,
        "the program that TENSAT's evaluation calls BERT (uwplse/tensat, src/bert.rs, MIT)",
        {"layers": 2, "width": 16, "heads": 4, "sequence": 4},
    ),
    "nasrnn_tensat": ProgramEntry(
        networks.nasrnn,
        f"{_RNN}; as in TENSAT's evaluation, each step with weights of its own (uwplse/tensat, src/nasrnn.rs, MIT)",
        {"steps": 2, "width": 8},
        {"shared": False},
    ),
    **{
        f"small_{build.__name__}": ProgramEntry(build, (build.__doc__ or "").strip(), of="small")
        for build in small.SMALL
    },
}


def build_program(name: str, **sizes: Any) -> TensorProgram:
    """A program of the zoo at other sizes than the published ones.

    Raises:
        InputError: no such program, or no such size.
    """
    if name not in PROGRAMS:
        raise unknown_name("program", name, PROGRAMS)
    entry = PROGRAMS[name]
    try:
        return entry.build(**{**entry.sizes, **sizes})
    except TypeError as error:
        raise InputError(f"program {name!r} has no such size: {error}") from None


def known_best(name: str) -> dict[str, Any]:
    """The best of a small program by exhaustive search, on the T4 and with all rules.

    ``original_s`` and ``best_s`` (seconds), ``programs`` (how many different ones rewrites reach), ``best`` (its text).

    Raises:
        InputError: no small program of that name.
    """
    if name not in program_names("small"):
        raise unknown_name("small program", name, program_names("small"))
    return json.loads(data_path("programs", "small.json").read_text(encoding="utf-8"))[name]


def _read_text(path: Path) -> TensorProgram:
    return parse_program(read_text(path, "program file"), str(path))


def _read_onnx(path: Path, dims: Mapping[str, int] | None = None) -> TensorProgram:
    from graphopt_gym.graphs.tensor_program.onnx_io import read_onnx

    return read_onnx(path, dims=dims)[0]


def _row(name: str | None, program: TensorProgram) -> tuple[Any, ...]:
    facts, work = program.statistics(), to_computation_graph(program).statistics()
    entry = PROGRAMS.get(name or "")
    return (entry and entry.of, facts["nodes"], facts["computed"], facts["depth"], work["flops"], work["param_bytes"],
            entry and entry.source)  # fmt: skip


CATALOG = Catalog(
    "programs",
    "program",
    TensorProgram,
    {".txt": _read_text, ".onnx": _read_onnx, "": _read_text},
    lambda: {name: partial(build_program, name) for name in PROGRAMS},
    {of: tuple(name for name, entry in PROGRAMS.items() if entry.of == of) for of in ("network", "small")},
    columns=("kind", "nodes", "ops", "depth", "work_flops", "parameters_bytes", "source"),
    row=_row,
    sized=(".onnx",),
)
program_names = CATALOG.names


def load_program(
    program: str | os.PathLike[str] | TensorProgram, dims: Mapping[str, int] | None = None
) -> TensorProgram:
    """A program by name, by the path of its text form or of an ``.onnx`` file; a program is returned as it is.

    ``dims``: sizes of an ONNX file's symbolic dimensions, ``{"batch": 1}``, which may also follow its path,
    ``model.onnx@batch=1``.

    Raises:
        InputError: no such name or file, or a file that cannot be read as a program.
    """
    return program if isinstance(program, TensorProgram) else CATALOG.load(program, dims=dims)
