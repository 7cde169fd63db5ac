"""What a program costs at inference: the sum of its operators' times by the cost model, as in TENSAT.

Operators on weights alone are computed once, before inference, and cost nothing; views cost nothing (see
:mod:`graphopt_gym.graphs.tensor_program.convert`). An operator's time depends on its parameters, the shapes of its
operands, and which of them are constants, and is computed once for each.

On a device whose file says that it is priced as onnxruntime runs programs (``graphopt calibrate --device
onnxruntime``), parts of tensors are copies, and what onnxruntime runs inside another operator's kernel, as a
convolution's bias and activation, takes no time of its own (:mod:`graphopt_gym.envs.rewrite.fusing`).

*As published*: TENSAT's own accounting, which its table is to be compared with. Transposes are free beside reshapes
and splits, operators on weights alone are counted, each as if it ran at inference, and launches are hidden: an operator
costs its kernel's work and no launch. (A bias is an operator of its own in all settings but onnxruntime's.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from graphopt_gym.envs.rewrite import fusing
from graphopt_gym.graphs.tensor_program.convert import GraphRows, class_of
from graphopt_gym.graphs.tensor_program.ops import Params, Shape
from graphopt_gym.graphs.tensor_program.program import Change, TensorProgram
from graphopt_gym.hardware.cluster import Device, load_device
from graphopt_gym.hardware.cost_model import LAUNCH_MODES, CostModel, cost_model_of
from graphopt_gym.simulator.tasks import check_seconds, priced

ONNXRUNTIME = "onnxruntime"  # a device's fitted ``runtime``
LAUNCH = "back_to_back"  # how an inference runtime runs a program


class Operation(NamedTuple):
    """What an operator's time depends on."""

    op: str
    params: Params
    shape: Shape
    inputs: tuple[Shape, ...]
    static: tuple[bool, ...]  # which operands are constants
    same: tuple[int, ...]  # for each operand, the first operand that is the same tensor


class ProgramCosts:
    """Prices programs on one device; keeps the time of every operation it has seen.

    Args:
        device: a name of the hardware catalog, or a device.
        model: prices the operators, see :func:`cost_model_of`; where left out, the fitted roofline with kernels issued
            back to back, as an inference runtime does.
        published: TENSAT's own accounting.
        dtype: what tensors are priced as.
    """

    def __init__(
        self,
        device: str | Device = "t4",
        model: str | CostModel | None = None,
        published: bool = False,
        dtype: str = "float32",
    ) -> None:
        self.device = load_device(device) if isinstance(device, str) else device
        self.published, self.dtype = published, dtype
        if published:
            self.device = with_launch(self.device, 0.0)
        self.model = cost_model_of(model, LAUNCH)
        self.fused = self.device.fitted.get("runtime") == ONNXRUNTIME
        self._seconds: dict[Operation, float] = {}

    def cost(self, program: TensorProgram) -> float:
        """Seconds of one inference."""
        return math.fsum(self.node_costs(program).values())

    def node_costs(self, program: TensorProgram) -> dict[int, float]:
        """Seconds of each node that takes any, by id; their ``math.fsum`` is the cost."""
        return self._priced(program, program.nodes)

    def update(
        self, before: Mapping[int, float], program: TensorProgram, change: Change, base: TensorProgram
    ) -> dict[int, float]:
        """The node costs of an edited program, from those of ``base``, which was edited, and what the edit changed."""
        folding = {user for node in change.folded | change.added for user in program.users(node)}
        again: Iterable[int] = change.added | change.rewired | change.folded | folding
        if self.fused:
            again = fusing.touched(base, program, change) | folding
        costs = dict(before)
        for node in (*change.removed, *again):
            costs.pop(node, None)
        return costs | self._priced(program, again)

    def seconds(self, operations: Sequence[Operation]) -> list[float]:
        """Seconds of operations, whatever program they are in; new ones are priced together."""
        new = [operation for operation in dict.fromkeys(operations) if operation not in self._seconds]
        if new:
            rows = GraphRows(self.dtype, fusing.copied if self.fused else None)
            at = []
            for op, params, shape, inputs, static, same in map(fusing.as_run, new) if self.fused else new:
                sources: list[int] = []
                for index, (size, constant) in enumerate(zip(inputs, static, strict=True)):
                    first = same[index]
                    kind = "parameter" if constant else "input"
                    sources.append(sources[first] if first < index else rows.source(kind, size))
                at.append(rows.op(op, params, shape, sources))
            graph = rows.graph("operations", {})
            times = priced(self.model, graph, self.device)
            check_seconds(times[at], graph, np.asarray(at))
            self._seconds.update(zip(new, times[at].tolist(), strict=True))
        return [self._seconds[operation] for operation in operations]

    def counts(self, op: str, params: Params) -> bool:
        """Whether an operator takes time, where it is not constant."""
        if self.published and op == "transpose":
            return False
        return class_of(op, params) != "view" or (self.fused and op in fusing.COPIES)

    def _priced(self, program: TensorProgram, nodes: Iterable[int]) -> dict[int, float]:
        counted = [
            node
            for node in nodes
            if (self.published or not program.is_static(node)) and self.counts(*program.nodes[node][:2])
        ]
        if self.fused:
            counted = [node for node in counted if not fusing.is_absorbed(program, node)]
        return dict(zip(counted, self.seconds([operation_of(program, node) for node in counted]), strict=True))


def with_launch(device: Device, seconds: float) -> Device:
    """A device on which a kernel costs so much beside its work, however a program is run."""
    launches = dict.fromkeys(LAUNCH_MODES, 1e6 * seconds)
    return replace(device, fitted={**device.fitted, "launch_us": launches})


def operation_of(program: TensorProgram, node: int) -> Operation:
    """What the time of a node of a program depends on."""
    op, params, inputs, shape = program.nodes[node]
    return Operation(
        op,
        params,
        shape,
        tuple([program.nodes[source].shape for source in inputs]),
        tuple([program.is_static(source) for source in inputs]),
        tuple([inputs.index(source) for source in inputs]),
    )


@cache
def _costs_on(device: str) -> ProgramCosts:
    return ProgramCosts(device)


def program_cost(program: TensorProgram, device: Any = "t4") -> float:
    """Seconds of one inference on a device of the hardware catalog: the sum of operator times."""
    return (_costs_on(device) if isinstance(device, str) else ProgramCosts(device)).cost(program)
