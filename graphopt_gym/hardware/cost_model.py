"""What an op costs on a device: a fitted roofline with launch overhead.

    seconds = launch_s + max(compute_s, (bytes_read + bytes_written) / bytes_per_s)

``compute_s`` and ``bytes_per_s`` come from the formulas of :mod:`graphopt_gym.hardware.roofline` with parameters
fitted to measured kernels (``envs_data/cost_model``), by the op's class, shape, size and format; which shapes and
formats those are is read off a graph in :mod:`graphopt_gym.hardware.kernels`:

- ``matmul``: m, n and the batch from the output's shape, k from the FLOPs. A product that reads a transposed
  parameter (``x @ w.T``, as ``torch.nn.Linear`` does) has the parameters fitted to that layout, others those of
  ``bmm``.
- ``conv``: geometry from the output's shape, the FLOPs, and the weight it reads. A backward convolution that gives the
  gradients of both input and weight counts as two convolutions of the input gradient's geometry (not measured).
  On a GPU the groups of a grouped convolution run one after another, each a kernel of one group's channels, with
  :data:`~graphopt_gym.hardware.kernels.GROUP_START_S` in front: published times of ResNeXts on a T4 grow with the
  number of groups, by about 10 us each (see there). Depthwise convolutions have kernels of their own in libraries, and
  backward ones are not told apart: both are priced as one dense kernel with a group's input channels.
- fused attention: a share of the peak by pass, size of a head and length, fitted to published rates on an H100.
- ``softmax``, ``norm``: a share of the memory bandwidth by row length. All other classes: a share by how many tensors
  are read, fitted to element-wise kernels; for reductions, pooling, gathers, copies and updates, which were not
  measured, that is an assumption.

**Formats.** Products and convolutions in float16, bfloat16 and TF32 run on tensor cores where the device has them,
with parameters fitted to products on an H100 (``h100_gemm.csv``) and the device's own peak and number of units. Which
float32 products run in TF32 is the model's ``tf32``; its default is PyTorch's (convolutions do, matrix products do
not). All other kernels in these types move fewer bytes and are otherwise as in float32.

**Launch.** How a step is run says what a kernel costs beside its work: ``eager`` (PyTorch issues one after the other
from Python, and waits for it now and then), ``back_to_back`` (an inference runtime that keeps the queue full) or
``graph`` (a captured CUDA graph). See :data:`LAUNCH_MODES`.

Matrix products take ``in_model`` times as long inside a whole model as the kernels measured by themselves: one number
a layout and architecture, fitted to several whole-model rows.

**Devices without measurements.** Parameters belong to an architecture: a V100 SXM2 has those of the V100 PCIe that was
measured, with its own peak. An architecture that was not measured takes the geometric mean of the times that the
parameters of :data:`TRANSFER_FROM` give with the device's own numbers (peaks, bandwidth, compute units, board power),
that is, the mean of log-efficiencies with tiles and waves counted on its own units, and the rate held back as its
board's power says (:func:`~graphopt_gym.hardware.roofline.power_share`). Leave-one-out errors of this rule are in
:func:`graphopt_gym.hardware.validation.cost_model_report`. A device with ``fitted`` parameters of its own (``graphopt
calibrate``) has those in place of its architecture's; among them may be prices of single operators
(:mod:`graphopt_gym.hardware.terms`), and ``in_model_products`` and ``in_model_streams``, how many times as long
products (with convolutions and attention) and all other kernels take in a step of that device. Architecture ``ideal``
reaches its datasheet, without launch overhead.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import numpy as np

from graphopt_gym.data import data_path
from graphopt_gym.errors import InputError, quoted
from graphopt_gym.fields import choice
from graphopt_gym.files import parse_json, read_file
from graphopt_gym.graphs.graph import DTYPES, OP_CLASSES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.hardware.cluster import Device
from graphopt_gym.hardware.functions import exp, log
from graphopt_gym.hardware.kernels import (
    NORM,
    SOFTMAX,
    TF32,
    Attention,
    Convolutions,
    Products,
    op_formats,
    peaks,
    row_lengths,
)
from graphopt_gym.hardware.roofline import NORM_KNOTS, SOFTMAX_KNOTS, Parameters, row_efficiency, stream_efficiency
from graphopt_gym.hardware.terms import products_of, term_times

IDEAL = "ideal"
# what a device's own parameters must have to stand without an architecture's
PARAMETERS = frozenset(("stream", "softmax", "norm", "linear", "bmm", "conv", "in_model"))
LAUNCH_MODES = ("eager", "back_to_back", "graph")
TRANSFER_FROM = ("volta", "ampere")


class CostModel:
    """Prices the ops of a graph on a device.

    Args:
        fitted: what ``scripts/fit_cost_model.py`` writes (``envs_data/cost_model/fitted.json``): parameters by
            ``architectures``, ``tensor_cores``, ``attention``, ``launch_s`` by mode, and the ``costs`` version.
        launch: how a step is run, one of :data:`LAUNCH_MODES`: what a kernel costs beside its work.
        tf32: which float32 products run on tensor cores where there is a rate for it: ``"conv"`` (PyTorch's
            default), ``"all"`` or ``"none"``.
        transfer_from: the architectures whose mean stands in for one that was not measured.

    Raises:
        InputError: an unknown ``launch`` or ``tf32``.
    """

    name = "roofline"
    version = ""

    def __init__(
        self,
        fitted: Mapping[str, Any],
        *,
        launch: str = "eager",
        tf32: str = "conv",
        transfer_from: Sequence[str] = TRANSFER_FROM,
    ) -> None:
        self.fitted = fitted
        self.architectures: Mapping[str, Any] = fitted["architectures"]
        self.launch = choice("launch", launch, LAUNCH_MODES)
        self.tf32 = choice("tf32", tf32, TF32)
        self.transfer_from = tuple(transfer_from)
        run = [launch] * (launch != "eager") + [f"tf32 {tf32}"] * (tf32 != "conv")
        self.run = ", ".join(run) or "eager"
        # what a subclass changes is not of this version
        self.version = ", ".join([str(fitted["costs"]), *run]) if type(self) is CostModel else ""

    def parameters(self, device: Device) -> list[Parameters]:
        """The fitted parameters that a device's times are the geometric mean of: its architecture's, or the stand-ins',
        with its own in place of those of the same name; empty where its own are terms for all operators."""
        own = device.fitted
        if "terms" in own and device.kind != "gpu":
            return []
        if own and own.keys() >= PARAMETERS:
            return [own]
        names = [device.architecture] if device.architecture in self.architectures else self.transfer_from
        return [{**self.architectures[name], **own} for name in names if name in self.architectures]

    def launch_s(self, device: Device) -> float:
        """Seconds that a kernel costs beside its work."""
        own = device.fitted.get("launch_us", {})
        return own[self.launch] * 1e-6 if self.launch in own else self.fitted["launch_s"][self.launch]

    def uncertainty(self, device: Device, precision: str = "float32") -> float | None:
        """How far the time of a whole model was off on average, |predicted / measured - 1|; None where not known.

        By architecture and precision from ``fitted.json``: of whole models on a fitted device, or of those with their
        own architecture left out where it was not measured; in half precision of published rates. A device with
        fitted parameters of its own says it itself. 0 on an ideal one.
        """
        if device.architecture == IDEAL:
            return 0.0
        if device.fitted:
            return device.fitted.get("uncertainty")
        if device.kind != "gpu":
            return None  # nothing of the kind was measured
        known = self.fitted["uncertainty"]
        known = known["half"] if precision != "float32" else known["float32"]
        return known.get(device.architecture, known["others"])

    def components(self, graph: ComputationGraph, device: Device) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(compute_s, bytes_per_s, launch_s), each float64 [N]; 0, 1 and 0 for sources and views.

        ``op_times == launch_s + max(compute_s, (bytes_read + bytes_written) / bytes_per_s)``, exactly.
        """
        n = graph.num_ops
        compute_s, bytes_per_s, launch_s = np.zeros(n), np.ones(n), np.zeros(n)
        real = np.flatnonzero((graph.op_class != SOURCE) & (graph.op_class != VIEW))
        formats = op_formats(graph, device, self.tf32)
        peak = peaks(device)[formats]
        compute_s[real] = graph.flops[real] / peak[real]
        bytes_per_s[real] = device.memory_bytes_per_s
        if device.architecture == IDEAL:
            return compute_s, bytes_per_s, launch_s
        launch_s[real] = self.launch_s(device)
        several = self.parameters(device)
        cores = {**self.fitted["tensor_cores"], **device.fitted.get("tensor_cores", {})}
        products, convolutions = Products(graph, formats), Convolutions(graph, formats, device.kind == "gpu")
        attention = Attention(graph, formats)
        rows = row_lengths(graph)
        log_compute, log_efficiency = np.zeros(n), np.zeros(n)
        for p in several:
            seconds, efficiency = compute_s.copy(), np.ones(n)
            efficiency[real] = stream_efficiency(p["stream"], graph.bytes_read[real], graph.bytes_written[real])
            for op_class, knots in ((SOFTMAX, SOFTMAX_KNOTS), (NORM, NORM_KNOTS)):
                ops = np.flatnonzero(graph.op_class == op_class)
                efficiency[ops] = row_efficiency(knots, p[OP_CLASSES[op_class]], rows[ops])
            products.price(p, cores, device, seconds, efficiency)
            convolutions.price(p, cores, device, seconds, efficiency)
            attention.price(p, self.fitted["attention"], device, seconds, efficiency)
            log_compute += log(seconds) / len(several)
            log_efficiency += log(efficiency) / len(several)
        if several:
            compute_s[real] = exp(log_compute[real])
            bytes_per_s[real] *= exp(log_efficiency[real])
        in_products = products_of(graph)
        for name, chosen in (("in_model_products", in_products), ("in_model_streams", ~in_products)):
            factor = device.fitted.get(name, 1.0)
            compute_s[chosen] *= factor
            bytes_per_s[chosen] /= factor
        if "terms" in device.fitted:
            self._price_by_terms(graph, device, compute_s, bytes_per_s)
        bytes_per_s[(graph.op_class == SOURCE) | (graph.op_class == VIEW)] = 1
        return compute_s, bytes_per_s, launch_s

    @staticmethod
    def _price_by_terms(
        graph: ComputationGraph, device: Device, compute_s: np.ndarray, bytes_per_s: np.ndarray
    ) -> None:
        """Sets both, so that ops with a price take it.

        What it has above a copy of the same bytes counts as compute, which fusing does not save.
        """
        seconds, copied = term_times(device.fitted, graph)
        moved = (graph.bytes_read + graph.bytes_written).astype(np.float64)
        known = np.flatnonzero(~np.isnan(seconds))
        still = known[(moved[known] == 0) | (seconds[known] <= 0)]
        known = known[(moved[known] > 0) & (seconds[known] > 0)]
        compute_s[known] = np.maximum(seconds[known] - copied[known], 0.0)
        bytes_per_s[known] = moved[known] / seconds[known]
        compute_s[still] = seconds[still]

    def op_times(self, graph: ComputationGraph, device: Device) -> np.ndarray:
        """float64 [N]: seconds of each op, one kernel each, on a device; 0 for sources and views."""
        compute_s, bytes_per_s, launch_s = self.components(graph, device)
        moved = (graph.bytes_read + graph.bytes_written) / bytes_per_s
        costless = (graph.op_class == SOURCE) | (graph.op_class == VIEW)
        return np.where(costless, 0.0, launch_s + np.maximum(compute_s, moved))

    def fused_times(
        self, graph: ComputationGraph, device: Device, group: np.ndarray, border_bytes: np.ndarray
    ) -> np.ndarray:
        """float64 [G]: seconds of fused groups, one kernel each.

        The compute of all members, each by its own class's efficiency; the bytes that cross the border, each at its
        member's rate; one launch: ``max(launch_s) + max(sum(compute_s), sum(border_bytes / bytes_per_s))``.

        Args:
            group: int [N], the group of each op from 0 to G-1, or -1 for an op that is in none.
            border_bytes: [N], the bytes that each op reads from and writes to outside its group.
        """
        compute_s, bytes_per_s, launch_s = self.components(graph, device)
        members = np.flatnonzero((group >= 0) & (graph.op_class != SOURCE) & (graph.op_class != VIEW))
        groups = int(group.max(initial=-1)) + 1
        launch = np.zeros(groups)
        np.maximum.at(launch, group[members], launch_s[members])
        compute = np.bincount(group[members], weights=compute_s[members], minlength=groups)
        moved_s = border_bytes[members] / bytes_per_s[members]
        return launch + np.maximum(compute, np.bincount(group[members], weights=moved_s, minlength=groups))


@cache
def graph_precision(graph: ComputationGraph) -> str:
    """``"float32"`` or ``"half"``: where most of a graph's products are."""
    products = np.isin(graph.op_class, [OP_CLASSES.index("matmul"), OP_CLASSES.index("conv")])
    half = np.isin(graph.dtype, [DTYPES.index("float16"), DTYPES.index("bfloat16")])
    return "half" if graph.flops[products & half].sum() > graph.flops[products].sum() / 2 else "float32"


def uncertainties(model: object, devices: Iterable[Device], graph: ComputationGraph) -> dict[str, float | None]:
    """Of each kind of device, by name, what :meth:`CostModel.uncertainty` says for a graph's precision; empty where a
    model states nothing.
    """
    if type(model) is not CostModel:
        return {}
    precision = graph_precision(graph)
    known = {device.name: model.uncertainty(device, precision) for device in dict.fromkeys(devices)}
    return {name: off for name, off in known.items() if off != 0}


def costs_note(model: object, devices: Iterable[Device], graph: ComputationGraph) -> str:
    """A line for people on what op times rest on: simulated, by which costs, and how far these are off on average."""
    devices = list(devices)
    version = costs_version(model, devices)
    if not version:
        return ""
    line = f"Simulated, by costs {version}"
    known = uncertainties(model, devices, graph)
    stated = [f"{100 * off:.0f} % on {name}" for name, off in known.items() if off]
    unknown = [name for name, off in known.items() if off is None]
    words = "float32" if graph_precision(graph) == "float32" else "half precision"
    if stated:
        line += f"; whole models in {words} were off by {', '.join(stated)} on average"
    if unknown:
        line += f"; how far times are off on {', '.join(unknown)} is not known"
    return line + "."


@cache
def read_costs() -> dict[str, Any]:
    """The fitted parameters of the package."""
    return read_fitted(data_path("cost_model", "fitted.json"))


def load_cost_model(launch: str = "eager", tf32: str = "conv") -> CostModel:
    """The fitted cost model of the package. Arguments as in :class:`CostModel`."""
    return _of_the_package(launch, tf32)


@cache
def _of_the_package(launch: str, tf32: str) -> CostModel:
    return CostModel(read_costs(), launch=launch, tf32=tf32)


def cost_model_of(given: object, otherwise: str = "eager") -> CostModel:
    """What an argument ``cost_model`` stands for: a model as it is, or the package's by how a step is run.

    ``"graph"``, ``"back_to_back"``, ``"eager, tf32 all"``: one of :data:`LAUNCH_MODES`, what runs in TF32, or both;
    ``otherwise`` where None is given.

    Raises:
        InputError: it is neither.
    """
    if given is None:
        given = otherwise
    if not isinstance(given, str):
        if not hasattr(given, "op_times"):
            raise InputError(
                f"cost_model is {quoted(given, 80)}; give an object with op_times, such as a CostModel, or how a step "
                f"is run: {', '.join(LAUNCH_MODES)}, or with tf32, 'eager, tf32 all'"
            )
        return cast(CostModel, given)
    told: dict[str, str] = {}
    for word in given.split(","):
        name, _, value = (
            word.strip().partition(" ") if word.strip().startswith("tf32 ") else ("launch", "", word.strip())
        )
        if name in told:
            raise InputError(f"cost_model is {quoted(given, 80)}; {name} is given twice")
        told[name] = choice(f"cost_model: {name}", value, TF32 if name == "tf32" else LAUNCH_MODES)
    return load_cost_model(told.get("launch", otherwise), told.get("tf32", "conv"))


def run_of(model: object) -> str | None:
    """What :func:`cost_model_of` takes for a model of the package; None for any other, which no text stands for."""
    return model.run if type(model) is CostModel and model.fitted is read_costs() else None


def costs_version(model: object, devices: Iterable[Device]) -> str:
    """The version of the costs that a model gives devices: its ``version``, or the name of its class where it has none.

    Empty where nothing fitted is in them: our model on ideal devices.
    """
    if type(model) is CostModel and all(device.architecture == IDEAL for device in devices):
        return ""
    return str(getattr(model, "version", "") or type(model).__name__)


def read_fitted(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file that ``scripts/fit_cost_model.py`` wrote.

    Raises:
        InputError: it cannot be read, is not such a file, or is of another version.
    """
    where = quoted(os.fspath(path))
    fitted = parse_json(read_file(path), where)
    if not isinstance(fitted, dict) or fitted.get("format") != "graphopt-cost-model":
        raise InputError(f"{where}: not a fitted cost model; write one with scripts/fit_cost_model.py")
    if fitted.get("version") != 2:
        raise InputError(f"{where}: version {fitted.get('version')!r} of the format; this package reads version 2")
    if not (isinstance(fitted.get("costs"), str) and fitted["costs"]):
        raise InputError(f'{where}: costs is {quoted(fitted.get("costs"))}; give the version of the costs, such as "2"')
    return fitted
