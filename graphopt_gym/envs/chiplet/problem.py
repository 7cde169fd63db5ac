"""Chiplet partition: which chip of a package runs each op of a pipeline."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.catalog import stored_name
from graphopt_gym.compiled import kernel
from graphopt_gym.envs.chiplet.checker import Holdings, Violation, summary, violations
from graphopt_gym.envs.chiplet.corrector import Corrector
from graphopt_gym.envs.chiplet.ops import chip_ops, op_seconds
from graphopt_gym.fields import check_integers, flag
from graphopt_gym.problem import Outcome, Problem
from graphopt_gym.units import format_seconds

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.package import Package


# Moves of the local searches: how often one begins at the bottleneck, which kind it is, how often an op goes far.
AT_BOTTLENECK = 0.5
MOVES = (1 / 3, 1 / 3, 1 / 3)
FAR_MOVES = 0.1


Measured = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class ChipletProblem(Problem):
    """Assign the ops of a network to the chips of a package, for the highest throughput of the full pipeline.

    A decision is an int array [N]: the chip of each op (see ``ops`` for what is one), ops in topological order. Samples
    stream through; once the pipeline is full, a new one is done every *period*: the time of the slowest chip (all its
    ops) or link (all bytes that pass over it; a tensor passes a link once, however many chips beyond it read it). The
    cost is the period in seconds, its reciprocal the throughput. ``checker`` states when a decision is valid.

    Args:
        graph: a zoo name, a path (with an ONNX file's open sizes: ``model.onnx@batch=1``), or a graph.
        cluster: a package: a catalog name, a path, or a Package of C chips.
        memory_rule: whether corrections keep to the chips' memory; otherwise memory is found out by evaluating, as in
            the paper.

    Raises:
        InputError: an unknown name, a file that cannot be read, a graph without ops for chips.
    """

    env_id = "ChipletPartition-v0"
    unit = "s"

    def __init__(
        self,
        graph: str | os.PathLike[str] | ComputationGraph = "bert_base_b1",
        cluster: str | os.PathLike[str] | Package = "mcm36",
        *,
        memory_rule: bool = False,
    ) -> None:
        from graphopt_gym.graphs.zoo import load_graph
        from graphopt_gym.hardware.package import load_package

        self.graph = load_graph(graph)
        self.cluster = self.package = load_package(cluster)  # type: ignore[assignment]
        self.memory_rule = flag("memory_rule", memory_rule)
        self.config = {
            "graph": stored_name(graph, self.graph),
            "cluster": stored_name(cluster, self.package),
            "memory_rule": self.memory_rule,
        }
        self.ops = chip_ops(self.graph)
        self.op_seconds = op_seconds(self.ops, self.package)
        self.decision_shape = (self.ops.num_ops,)
        # every op one after the other on the slowest chip, and every tensor over the whole ring: what a violation costs
        carried = self.ops.tensor_bytes.sum() * self.package.num_chips / self.package.link_bytes_per_s
        self.serial_s = float(self.op_seconds.max(axis=0).sum() + carried)

    @property
    def num_ops(self) -> int:
        return self.ops.num_ops

    @property
    def num_chips(self) -> int:
        return self.package.num_chips

    @cached_property
    def corrector(self) -> Corrector:
        """Makes any proposal valid."""
        return Corrector.of(self)

    @cached_property
    def holdings(self) -> Holdings:
        """What takes memory, for the checker."""
        ops = self.ops
        readers = [part.tolist() for part in np.split(ops.reader, ops.reader_ptr[1:-1])] if len(ops.reader) else []
        holders = (
            [part.tolist() for part in np.split(ops.param_reader, ops.param_ptr[1:-1])]
            if len(ops.param_ptr) > 1
            else []
        )
        return Holdings(
            tensors=list(zip(ops.tensor_op.tolist(), ops.tensor_bytes.tolist(), readers)),
            params=list(zip(ops.param_bytes.tolist(), holders)),
            capacity=self.package.sram_bytes.tolist(),
        )

    def check(self, decision: Any) -> np.ndarray:
        return check_integers(decision, self.decision_shape, self.num_chips, "chip")

    def violations(self, decision: Any) -> list[Violation]:
        """Every violated rule, by the independent checker."""
        chip_of = self.check(decision).tolist()
        edges = [(u, v) for u, v in self.ops.edges.tolist()]
        return violations(chip_of, edges, self.holdings, self.ops.label)

    def evaluate(self, decision: Any) -> Outcome:
        decision = self.check(decision)
        compute_s, link_bytes, memory, _ = self.measure(decision)
        link_s = link_bytes / self.package.link_bytes_per_s
        period = max(float(compute_s.max()), float(link_s.max(initial=0.0)))
        if compute_s.max() >= link_s.max(initial=0.0):
            bottleneck = f"chip {int(compute_s.argmax())}"
        else:
            bottleneck = "link {} -> {}".format(*self.package.links[int(link_s.argmax())])
        reasons = summary(self.violations(decision))
        metrics = {
            "throughput_per_s": 1.0 / period if period > 0 else float("inf"),
            "bottleneck": bottleneck,
            "chips_used": len(np.unique(decision)),
            "compute_s": compute_s.tolist(),
            "link_s": link_s.tolist(),
            "memory_bytes": memory.tolist(),
            "capacity_bytes": self.package.sram_bytes.tolist(),
        }
        valid = not reasons
        return Outcome(valid, period if valid else float("inf"), self.unit, reasons, metrics)

    def measure(self, decision: np.ndarray) -> Measured:
        """(seconds float64 [C], link bytes float64 [L], memory int64 [C], violations float64 [4]) of a decision.

        Violations, one a rule: chips that edges lead back; chips skipped; edges beside a longer way; memory beyond
        capacity as a share of it.
        """
        return self._price(decision[None])[2]

    def _price(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Measured]:
        """(costs float64 [B], valid bool [B], what :meth:`measure` gives of the last one) of decisions int32 [B, N]."""
        costs, valid = np.empty(len(decisions)), np.empty(len(decisions), bool)
        chips, links, tensors = self.num_chips, self.package.num_links, len(self.ops.tensor_op)
        measured = (np.empty(chips), np.empty(links), np.empty(chips, np.int64), np.empty(4))
        sizes = ((2, self.num_ops), (2, tensors), (NUM_CHIP_ROWS, chips), (links,))
        scratch = Scratch(*(np.empty(size, np.int64) for size in sizes))
        _price(decisions, self._tables, self.serial_s, scratch, costs, valid, *measured)
        return costs, valid, measured

    def memory_bytes(self, decision: np.ndarray) -> np.ndarray:
        """int64 [C]: what each chip holds."""
        return self.measure(decision)[2]

    @cached_property
    def _tables(self) -> Tables:
        ops, package = self.ops, self.package
        return Tables(
            op_seconds=self.op_seconds,
            edges=ops.edges,
            tensor_op=ops.tensor_op,
            tensor_bytes=ops.tensor_bytes,
            reader_ptr=ops.reader_ptr,
            reader=ops.reader,
            param_bytes=ops.param_bytes,
            param_ptr=ops.param_ptr,
            param_reader=ops.param_reader,
            route_ptr=package.routes[0],
            route_link=package.routes[1],
            capacity=package.sram_bytes,
            link_bytes_per_s=float(package.link_bytes_per_s),
        )

    def summary_lines(self, outcome: Outcome, details: Mapping[str, Any]) -> tuple[str, ...]:
        """What the slowest part is."""
        metrics = outcome.metrics
        period = format_seconds(1 / metrics["throughput_per_s"])
        return (f"a sample every {period} with {metrics['chips_used']} chips; bottleneck: {metrics['bottleneck']}",)

    def figure(self, decision: np.ndarray) -> Figure:
        """What each chip and the links do for one sample."""
        from graphopt_gym.envs.chiplet.rendering import load_of, pipeline_figure

        return pipeline_figure(load_of(self, decision))

    def costs(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._price(np.ascontiguousarray(decisions, np.int32))[:2]

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A random decision that keeps to the rules: every op's chip drawn evenly from what is left for it."""
        return self.corrector.sample(None, rng).decision

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A copy with one small change, made valid by a correction that keeps the change where it can.

        The change begins at an op: often one of the bottleneck (on the slowest chip, or at an end of a tensor that
        passes the slowest link), else any. With equal chances: the op alone goes to another chip, mostly to one
        next to its own; the ops of its chip from it on go to the next chip (or those up to it to the one before); its
        chip is split there, so that all later chips move up, and two chips next to each other become one.
        """
        changed = decision.copy()
        if self.num_chips == 1:
            return changed
        op = self._op_to_move(decision, rng)
        home, up = int(decision[op]), bool(rng.random() < 0.5)
        kind = rng.choice(3, p=MOVES)
        if kind == 0:
            target = home + (1 if up else -1)
            if rng.random() < FAR_MOVES:
                target = home + 1 + int(rng.integers(self.num_chips - 1))
            changed[op] = target % self.num_chips
        elif kind == 1:
            at = np.arange(self.num_ops)
            moved = (decision == home) & (at >= op if up else at <= op)
            changed[moved] = np.clip(home + (1 if up else -1), 0, self.num_chips - 1)
        else:
            at = np.arange(self.num_ops)
            changed += (decision > home) | ((decision == home) & (at >= op))
            top = int(changed.max())
            if top == self.num_chips or up:
                joined = int(rng.integers(top))
                changed -= changed > joined
        return self.corrector.fix(changed, rng, first=np.flatnonzero(changed != decision)).decision

    def crossover(self, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The first decision up to an op, the second from there on, made valid by a correction.

        The second's chips are counted on from those of the first, so that the chips follow each other at the joint.
        """
        if self.num_ops == 1:
            return first.copy()
        at = int(rng.integers(1, self.num_ops))
        rest = second[at:] + (int(first[:at].max()) - int(second[:at].max()))
        candidate = np.concatenate([first[:at], np.clip(rest, 0, self.num_chips - 1)])
        return self.corrector.fix(candidate, rng).decision

    def _op_to_move(self, decision: np.ndarray, rng: np.random.Generator) -> int:
        if rng.random() >= AT_BOTTLENECK:
            return int(rng.integers(self.num_ops))
        seconds, link_bytes, _, _ = self.measure(decision)
        link_s = link_bytes / self.package.link_bytes_per_s
        if seconds.max() >= link_s.max(initial=0.0):
            ops = np.flatnonzero(decision == seconds.argmax())
        else:
            ops = self._ends_over(decision, int(link_s.argmax()))
        return int(rng.choice(ops))

    def _ends_over(self, decision: np.ndarray, link: int) -> np.ndarray:
        """The producers and readers of tensors that pass a link on their way."""
        producer, reader = self._transfers
        return np.unique(
            np.concatenate([producer, reader])[np.tile(self._passes[link, decision[producer], decision[reader]], 2)]
        )

    @cached_property
    def _transfers(self) -> tuple[np.ndarray, np.ndarray]:
        """(producer, reader) of every reading of a tensor that another op makes."""
        ops = self.ops
        producer = np.repeat(ops.tensor_op, np.diff(ops.reader_ptr))
        inside = producer >= 0
        return producer[inside], ops.reader[inside]

    @cached_property
    def _passes(self) -> np.ndarray:
        """bool [L, C, C]: whether a transfer from a chip to a chip passes the link."""
        chips = range(self.num_chips)
        passes = np.zeros((self.package.num_links, len(chips), len(chips)), bool)
        for a in chips:
            for b in chips:
                passes[self.package.route(a, b), a, b] = True
        return passes

    def fingerprints(self) -> dict[str, str]:
        import hashlib

        times = hashlib.sha256(self.op_seconds.tobytes()).hexdigest()
        return {**super().fingerprints(), "op_times": times}


class Tables(NamedTuple):
    """What the compiled functions read, see ``ChipOps`` and ``Package``. N ops, C chips, E edges, T tensors."""

    op_seconds: np.ndarray  # float64 [C, N]
    edges: np.ndarray  # int32 [E, 2]
    tensor_op: np.ndarray  # int32 [T]
    tensor_bytes: np.ndarray  # int64 [T]
    reader_ptr: np.ndarray  # int32 [T+1]
    reader: np.ndarray  # int32
    param_bytes: np.ndarray  # int64 [P]
    param_ptr: np.ndarray  # int32 [P+1]
    param_reader: np.ndarray  # int32
    route_ptr: np.ndarray  # int32 [C*C+1]
    route_link: np.ndarray  # int32
    capacity: np.ndarray  # int64 [C]
    link_bytes_per_s: float


class Scratch(NamedTuple):
    """Room that the compiled functions need, int64."""

    ops: np.ndarray  # [2, N] the first of the tensors let go after each op, and of those it makes: linked lists
    tensors: np.ndarray  # [2, T] the next of each list
    chips: np.ndarray  # [NUM_CHIP_ROWS, C]
    links: np.ndarray  # [L] the last tensor that passed each


LET_GO, MADE = range(2)
SEEN, ALIVE, PEAK, IN_USE, BEYOND, DIRECT, NUM_CHIP_ROWS = range(7)


@kernel(allocates=False)
def _price(
    decisions,  # int32 [B, N]
    tables,
    serial_s,
    scratch,
    costs,  # float64 [B], filled
    valid,  # bool [B], filled
    seconds,  # float64 [C], filled: these are of the last decision
    link_bytes,  # float64 [L], filled
    memory,  # int64 [C], filled
    violated,  # float64 [4], filled
):
    """Costs of decisions. One long function for one decision and for many, so that it is compiled once."""
    op_seconds, edges, capacity = tables.op_seconds, tables.edges, tables.capacity
    tensor_op, tensor_bytes = tables.tensor_op, tables.tensor_bytes
    reader_ptr, reader = tables.reader_ptr, tables.reader
    param_bytes, param_ptr, param_reader = tables.param_bytes, tables.param_ptr, tables.param_reader
    route_ptr, route_link = tables.route_ptr, tables.route_link
    num_ops = decisions.shape[1]
    num_chips = capacity.shape[0]
    num_tensors = tensor_op.shape[0]
    ops, tensors, chips, link_seen = scratch.ops, scratch.tensors, scratch.chips, scratch.links
    for row in range(decisions.shape[0]):
        chip_of = decisions[row]
        ops[:] = -1
        link_seen[:] = -1
        chips[:] = 0
        chips[SEEN] = -1
        seconds[:] = 0.0
        link_bytes[:] = 0.0
        memory[:] = 0
        violated[:] = 0.0
        for op in range(num_ops):
            seconds[chip_of[op]] += op_seconds[chip_of[op], op]

        # tensors: the links that they pass, the buffers at both ends, and the op at which each is let go at home
        for tensor in range(num_tensors):
            producer = tensor_op[tensor]
            home = chip_of[producer] if producer >= 0 else -1
            last = producer
            sent = False
            for position in range(reader_ptr[tensor], reader_ptr[tensor + 1]):
                target = chip_of[reader[position]]
                if target == home:
                    last = max(last, reader[position])
                    continue
                sent = True
                if chips[SEEN, target] == tensor:
                    continue
                chips[SEEN, target] = tensor
                memory[target] += 2 * tensor_bytes[tensor]
                if home == -1:
                    continue
                for way in range(route_ptr[home * num_chips + target], route_ptr[home * num_chips + target + 1]):
                    link = route_link[way]
                    if link_seen[link] != tensor:
                        link_seen[link] = tensor
                        link_bytes[link] += tensor_bytes[tensor]
            if home >= 0:
                tensors[MADE, tensor] = ops[MADE, producer]
                ops[MADE, producer] = tensor
                if sent:
                    memory[home] += tensor_bytes[tensor]
                else:
                    tensors[LET_GO, tensor] = ops[LET_GO, last]
                    ops[LET_GO, last] = tensor
        chips[SEEN] = -1
        for param in range(param_bytes.shape[0]):
            for position in range(param_ptr[param], param_ptr[param + 1]):
                target = chip_of[param_reader[position]]
                if chips[SEEN, target] != param:
                    chips[SEEN, target] = param
                    memory[target] += param_bytes[param]
        for op in range(num_ops):
            home = chip_of[op]
            tensor = ops[MADE, op]
            while tensor != -1:
                chips[ALIVE, home] += tensor_bytes[tensor]
                tensor = tensors[MADE, tensor]
            chips[PEAK, home] = max(chips[PEAK, home], chips[ALIVE, home])
            tensor = ops[LET_GO, op]
            while tensor != -1:
                chips[ALIVE, home] -= tensor_bytes[tensor]
                tensor = tensors[LET_GO, tensor]
        for chip in range(num_chips):
            memory[chip] += chips[PEAK, chip]
            if memory[chip] > capacity[chip]:
                violated[3] += (memory[chip] - capacity[chip]) / capacity[chip]

        # the rules
        highest = 0
        for op in range(num_ops):
            chips[IN_USE, chip_of[op]] = 1
            highest = max(highest, chip_of[op])
        for chip in range(highest):
            if not chips[IN_USE, chip]:
                violated[1] += 1.0
        beyond, direct = chips[BEYOND], chips[DIRECT]  # the chips that each leads to, over any way
        for edge in range(edges.shape[0]):
            a, b = chip_of[edges[edge, 0]], chip_of[edges[edge, 1]]
            if a > b:
                violated[0] += a - b
            elif a < b:
                direct[a] |= 1 << b
        for chip in range(num_chips - 1, -1, -1):
            beyond[chip] = direct[chip]
            for other in range(chip + 1, num_chips):
                if direct[chip] >> other & 1:
                    beyond[chip] |= beyond[other]
        for edge in range(edges.shape[0]):
            a, b = chip_of[edges[edge, 0]], chip_of[edges[edge, 1]]
            if a < b:
                for other in range(a + 1, b):
                    if beyond[a] >> other & 1 and beyond[other] >> b & 1:
                        violated[2] += 1.0
                        break

        period = 0.0
        for chip in range(num_chips):
            period = max(period, seconds[chip])
        for link in range(link_bytes.shape[0]):
            period = max(period, link_bytes[link] / tables.link_bytes_per_s)
        # as shares, so that no rule drowns the others
        violation = (
            violated[0] / (num_chips * max(edges.shape[0], 1))
            + violated[1] / num_chips
            + violated[2] / max(edges.shape[0], 1)
            + violated[3]
        )
        valid[row] = violation == 0.0
        costs[row] = period if valid[row] else period + serial_s * (1.0 + violation)
