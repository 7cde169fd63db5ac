"""The stages of a captured module: parts that come one after another, which the expert's placement keeps whole.

Stages come from repeated blocks, wherever in the tree of modules they are: entries of a ``ModuleList`` or a
``Sequential``, or siblings with numbered names (``layer1``, ``layer2``), of which one is computed from another. What
is alike but computed side by side (the experts of a mixture, attention heads, heads of a detector) is no sequence of
blocks. The outermost repetition counts, except where its members are themselves nothing but a sequence of blocks (the
stages of a ResNet or a Swin transformer), or where one of them holds more than a third of the work.

What stands outside the blocks (embedding, final norm, head, loss) is joined to the neighbouring block in order of
execution: before the first block with the first, after the last with the last. A module without any repetition is
taken apart until no part holds more than an eighth of the work, or cannot be divided.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.errors import InputError, quoted

if TYPE_CHECKING:
    import torch

    from graphopt_gym.graphs.capture import Call
    from graphopt_gym.graphs.graph import ComputationGraph

LARGEST_BLOCK = 1 / 3  # of the work: a larger block is divided where it is a sequence of blocks itself
LARGEST_PART = 1 / 8  # of the work: a larger part of a module without repeated blocks is divided
STACK_SHARE = 0.6  # of a block's work that its inner blocks do, where it is nothing but a sequence of them
STACK_LAYERS = 4  # layers with parameters in each inner block: fewer are layers of one block
# To tell large from small: a device of 10 TFLOP/s and 1 TB/s, 10 microseconds a launch.
FLOPS_PER_S, BYTES_PER_S, LAUNCH_S = 1e13, 1e12, 1e-5


@dataclass
class _Node:
    """A module of the tree, by its path."""

    path: str
    module: torch.nn.Module
    children: list[_Node] = field(default_factory=list)
    layers: int = 0  # modules in it, itself included, that hold parameters of their own
    first: int | None = None  # the first operator that runs in it; None where none does
    work_s: float = 0.0
    largest_s: float = 0.0  # the largest of its colocation groups: this much cannot be divided

    @property
    def ran(self) -> list[_Node]:
        return sorted((c for c in self.children if c.first is not None), key=lambda c: c.first or 0)

    @property
    def is_container(self) -> bool:
        from torch import nn

        return isinstance(self.module, nn.ModuleList | nn.Sequential | nn.ModuleDict)

    @property
    def is_composite(self) -> bool:
        """Whether it is more than one layer: it has layers in it, or is a cell, or is not one of torch's."""
        from torch import nn

        if self.children:
            return self.layers > 0
        return self.layers > 0 and (
            isinstance(self.module, nn.RNNBase | nn.RNNCellBase)
            or not type(self.module).__module__.startswith("torch.nn.")
        )


class _Piece(NamedTuple):
    node: _Node
    is_block: bool


def default_stages(module: torch.nn.Module, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Stages of a captured module in order of execution: tables with ``name``, ``part`` (empty) and ``modules``.

    ``calls`` are the operators of the step in order, of which those of the forward pass count. Empty where a cut by
    modules would leave most of the work in one stage that the graph's own order can divide: modules that compute
    without children, or one that is called again and again.
    """
    tree = _Tree(module, calls)
    if tree.root.first is None:
        return []
    pieces = tree.pieces()
    repeated = any(piece.is_block for piece in pieces)
    stages = _join(pieces) if repeated else [[piece.node] for piece in pieces]
    heaviest = max((piece.node for piece in pieces), key=lambda node: node.work_s)
    covered_s = sum(piece.node.work_s for piece in pieces)
    divisible = heaviest.work_s > tree.root.work_s / 2 and heaviest.largest_s < heaviest.work_s / 2
    if covered_s < tree.root.work_s / 2 or divisible or (tree.recurrent_s > tree.root.work_s / 2 and not repeated):
        return []
    modules = _merge(tree.root, stages)
    if tree.has_loss:
        modules[-1].append("loss")
    return [{"name": f"stage {index}", "part": "", "modules": paths} for index, paths in enumerate(modules)]


def named_stages(graph: ComputationGraph) -> list[dict[str, Any]]:
    """The stages that a graph's metadata names; empty where it names none.

    Raises:
        InputError: what stands there is no list of stages.
    """
    stages = graph.metadata.get("stages") or []
    for stage in stages if isinstance(stages, list) else [None]:
        texts = [None]
        if isinstance(stage, dict) and isinstance(stage.get("modules", []), list):
            texts = [stage.get("name"), stage.get("part", ""), *stage.get("modules", [])]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"graph {graph.name!r}: its metadata has 'stages' {quoted(stages, 80)}; give a list of tables with "
                "name, part and modules (a list of paths)"
            )
    return stages


def stage_of_module(graph: ComputationGraph) -> np.ndarray:
    """int64 [modules of the graph]: the stage that each is in by the longest path that matches; -1: in none."""
    stages = named_stages(graph)
    prefixes = [(prefix, index) for index, stage in enumerate(stages) for prefix in stage.get("modules", ())]
    prefixes.sort(key=lambda item: len(item[0]))
    found = np.full(len(graph.modules), -1, np.int64)
    for module, path in enumerate(graph.modules):
        for prefix, index in prefixes:  # longer ones later, so they win
            if prefix == "" or path == prefix or path.startswith(prefix + "."):
                found[module] = index
    return found


class _Tree:
    """The modules of a step, with what was run in each."""

    def __init__(self, module: torch.nn.Module, calls: Sequence[Call]) -> None:
        from graphopt_gym.graphs.capture import FORWARD, LOSS_MODULE

        self.nodes: dict[str, _Node] = {}
        self.root = self._grow("", module, set())
        self.calls = calls
        self.forward = [n for n, call in enumerate(calls) if call.phase == FORWARD and call.func is not None]
        groups_s: dict[tuple[str, Any], float] = {}
        for number in self.forward:
            call = calls[number]
            moved = call.bytes_read + call.bytes_written
            work_s = max(call.flops / FLOPS_PER_S, moved / BYTES_PER_S) + (LAUNCH_S if moved else 0.0)
            for node in self._around(call.module):
                node.first = number if node.first is None else node.first
                node.work_s += work_s
            key = (call.module, call.group)
            groups_s[key] = groups_s.get(key, 0.0) + work_s
        for (path, _), work_s in groups_s.items():
            for node in self._around(path):
                node.largest_s = max(node.largest_s, work_s)
        leaves = [path for path, _ in groups_s if path in self.nodes and not self.nodes[path].children]
        self.recurrent_s = sum(self.nodes[path].work_s for path in {p for p in leaves if leaves.count(p) > 1})
        self.has_loss = LOSS_MODULE not in self.nodes and any(call.module == LOSS_MODULE for call in calls)

    def _grow(self, path: str, module: torch.nn.Module, seen: set[int]) -> _Node:
        seen.add(id(module))
        node = self.nodes[path] = _Node(path, module)
        node.layers = int(any(True for _ in module.parameters(recurse=False)))
        for name, child in module.named_children():
            if id(child) not in seen:  # one that is registered twice counts where it is first, as its operators do
                node.children.append(self._grow(f"{path}.{name}" if path else name, child, seen))
                node.layers += node.children[-1].layers
        return node

    def _around(self, path: str) -> Iterator[_Node]:
        """The module of a path and those that it is in."""
        while path in self.nodes:
            yield self.nodes[path]
            if not path:
                return
            path = path.rpartition(".")[0]

    # -- what is repeated ---------------------------------------------------------------------------------------

    def _is_chain(self, nodes: Sequence[_Node]) -> bool:
        """Whether most of the modules are computed from another one of them that ran before."""
        bit_of = {node.path: index for index, node in enumerate(nodes)}
        bits: dict[str, int] = {}
        reached: dict[int, int] = {}  # call -> bits of the modules that it depends on
        before = [0] * len(nodes)
        for number in self.forward:
            if number < (nodes[0].first or 0):
                continue
            call = self.calls[number]
            if call.module not in bits:
                inside = [bit_of[node.path] for node in self._around(call.module) if node.path in bit_of]
                bits[call.module] = inside[0] if inside else -1
            mask, bit = 0, bits[call.module]
            for source in call.reads:
                mask |= reached.get(source, 0)
            if bit >= 0:
                before[bit] |= mask & ~(1 << bit)
                mask |= 1 << bit
            if mask:
                reached[number] = mask
        return 2 * sum(bool(mask) for mask in before[1:]) > len(nodes) - 2

    def _lists(self, node: _Node, alike: bool) -> list[list[_Node]]:
        """The lists of repeated blocks right in a module: each in order of execution, chained; two blocks at least.

        ``alike``: at least two of the same build are needed; else that counts for a ``Sequential`` alone.
        """
        from torch import nn

        found: list[list[_Node]] = []
        numbered: dict[str, list[_Node]] = {}
        for holder in (node, *node.ran):
            if holder.is_container:
                entries = [child for child in holder.ran if child.is_composite]
                if len(entries) > 1 and (_repeats(entries) or not (alike or isinstance(holder.module, nn.Sequential))):
                    found.append(entries)
            elif holder is node:
                for child in node.ran:
                    name = child.path.rpartition(".")[2]
                    if child.is_composite and not child.is_container and re.search(r"\d", name):
                        numbered.setdefault(re.sub(r"\d+[a-z]?(?![a-z])|\d+", "#", name), []).append(child)
        found += [entries for entries in numbered.values() if len(entries) > 1 and (_repeats(entries) or not alike)]
        return [entries for entries in found if self._is_chain(entries)]

    def _stack(self, block: _Node) -> list[_Piece] | None:
        """The inner blocks (and what is beside them) of a block that is nothing but a sequence of blocks, else None."""
        lists = self._lists(block, alike=True)
        for holder in (block, *block.ran):  # a sequence may have one entry
            entries = [child for child in holder.ran if child.is_composite]
            if holder.is_container and len(entries) == 1:
                lists.append(entries)
        lists = [nodes for nodes in lists if median(node.layers for node in nodes) >= STACK_LAYERS]
        if len(lists) != 1 or sum(node.work_s for node in lists[0]) < STACK_SHARE * block.work_s:
            return None
        return self._parts(block, lists[0], recurse=False)

    # -- cutting ------------------------------------------------------------------------------------------------

    def pieces(self) -> list[_Piece]:
        """Blocks and what is between them, in order of execution; without any block, the parts of the module."""
        pieces = self._split(self.root)
        if any(piece.is_block for piece in pieces):
            pieces = [part for piece in pieces for part in self._divide(piece)]
        else:
            pieces = [_Piece(node, False) for node in self._shares(self.root)]
        order = self._order(pieces)
        return [pieces[index] for index in sorted(range(len(pieces)), key=order.__getitem__)]

    def _order(self, pieces: list[_Piece]) -> list[tuple[int, int]]:
        """What did not run stands with what was registered before it."""
        rank = {path: index for index, path in enumerate(self.nodes)}
        by_rank = sorted(range(len(pieces)), key=lambda index: rank[pieces[index].node.path])
        order, last = [(0, 0)] * len(pieces), -1
        for index in by_rank:
            node = pieces[index].node
            last = last if node.first is None else node.first
            order[index] = (last, rank[node.path])
        return order

    def _split(self, node: _Node, inner: bool = False) -> list[_Piece]:
        """A module cut at its repeated blocks; ``inner``: it is a block itself, so that layers of one do not count."""
        lists = self._lists(node, alike=inner)
        if inner:
            lists = [blocks for blocks in lists if median(block.layers for block in blocks) >= STACK_LAYERS]
        if not lists:
            if not node.children:
                return [_Piece(node, False)]
            return [piece for child in node.children for piece in self._split(child, inner)]
        kinds = {type(block.module) for blocks in lists for block in blocks}
        for holder in node.ran:  # a sequence of one block, beside those of several
            entries = [child for child in holder.ran if type(child.module) in kinds]
            if holder.is_container and len(entries) == 1 and all(entries[0] not in blocks for blocks in lists):
                lists.append(entries)
        pieces = self._parts(node, [block for blocks in lists for block in blocks], recurse=not inner)
        for blocks in lists:
            stacks = {block.path: self._stack(block) for block in blocks}
            several = [s for s in stacks.values() if s is not None and sum(piece.is_block for piece in s) > 1]
            if several and None not in stacks.values():
                pieces = [part for piece in pieces for part in stacks.get(piece.node.path) or [piece]]
        return pieces

    def _parts(self, node: _Node, blocks: list[_Node], recurse: bool) -> list[_Piece]:
        """A module's blocks and what is beside them: whole, or (``recurse``) cut where it is larger than the blocks."""
        chosen, layers = {block.path for block in blocks}, max(block.layers for block in blocks)
        pieces = []
        for child in node.children:
            if child.path in chosen:
                pieces.append(_Piece(child, True))
            elif any(path.startswith(child.path + ".") for path in chosen):
                pieces += self._parts(child, [b for b in blocks if b.path.startswith(child.path + ".")], recurse)
            elif recurse and child.layers > 1.5 * layers:
                pieces += self._split(child)
            else:
                pieces.append(_Piece(child, False))
        return pieces

    def _divide(self, piece: _Piece) -> list[_Piece]:
        """A block that does too much of the work, as its own blocks; others as they are."""
        if not piece.is_block or piece.node.work_s <= LARGEST_BLOCK * self.root.work_s:
            return [piece]
        parts = self._split(piece.node, inner=True)
        if not any(part.is_block for part in parts):
            return [piece]
        return [part for inner in parts for part in self._divide(inner)]

    def _shares(self, node: _Node) -> list[_Node]:
        if not node.children or (node is not self.root and node.work_s <= LARGEST_PART * self.root.work_s):
            return [node]
        return [part for child in node.children for part in self._shares(child)]


def _repeats(nodes: Sequence[_Node]) -> bool:
    """Whether two of the modules have the same build: one class, and one's children are of classes of the other's."""
    builds = [(type(node.module), {type(child.module) for child in node.children if child.layers}) for node in nodes]
    return any(
        kind == other and (inner <= others or inner >= others)
        for index, (kind, inner) in enumerate(builds)
        for other, others in builds[:index]
    )


def _join(pieces: list[_Piece]) -> list[list[_Node]]:
    """Stages of the pieces in order: a block each, with what is beside it."""
    layers = [piece.node.layers for piece in pieces if piece.is_block]
    block_s = median(piece.node.work_s for piece in pieces if piece.is_block)
    where = [index for index, piece in enumerate(pieces) if piece.is_block]
    stages: list[list[_Node]] = []
    waiting: list[_Node] = []  # for the next stage
    for begin, end in zip([-1, *where], [*where, len(pieces)], strict=True):
        between = [piece.node for piece in pieces[begin + 1 : end]]
        if sum(node.layers for node in between if node.first is not None) > 2 * max(layers):
            parts: list[list[_Node]] = [[]]  # much: stages of their own, each of about a block's work
            for node in between:
                parts[-1].append(node)
                if sum(part.work_s for part in parts[-1]) >= block_s:
                    parts.append([])
            rest = parts.pop()
            stages += parts
            (stages[-1] if stages else waiting).extend(rest)
        elif begin < 0:
            waiting = between
        elif end == len(pieces):
            stages[-1] += between
        else:
            for node in between:
                if node.first is not None and node.layers >= max(2, max(layers) / 4):  # as large as a block
                    stages.append([*waiting, node])
                    waiting = []
                elif waiting or _common(node, pieces[end].node) > _common(node, pieces[begin].node):
                    waiting.append(node)
                else:
                    stages[-1].append(node)
        if end < len(pieces):
            stages.append([*waiting, pieces[end].node])
            waiting = []
    return stages


def _merge(root: _Node, stages: list[list[_Node]]) -> list[list[str]]:
    """The paths of each stage. A module whose parts are all of one stage stands for them, with what it does itself."""
    stage_of = {node.path: index for index, stage in enumerate(stages) for node in stage}

    def settle(node: _Node) -> int | None:
        if node.path not in stage_of:
            found = {settle(child) for child in node.children}
            if len(found) == 1 and None not in found and node is not root:
                for child in node.children:
                    del stage_of[child.path]
                stage_of[node.path] = found.pop()  # type: ignore[assignment]
        return stage_of.get(node.path)

    settle(root)
    return [[path for path, index in stage_of.items() if index == stage] for stage in range(len(stages))]


def _common(one: _Node, other: _Node) -> int:
    """How many levels of the tree two modules share."""
    pairs = zip(one.path.split("."), other.path.split("."), strict=False)
    return next((level for level, (a, b) in enumerate(pairs) if a != b), 10**6)
