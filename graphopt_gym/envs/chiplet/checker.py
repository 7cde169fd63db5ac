"""Is a partition valid? Plain Python, written from the rules alone: it shares no code with the corrector.

The rules (Xie et al., MLSys 2022), for chips numbered from 0 and ``f(op)`` the chip of an op:

1. acyclic dataflow: ``f(u) <= f(v)`` for every edge u -> v;
2. no skipped chip: the chips in use are 0, 1, ... up to the highest, none missing;
3. triangle dependency: where an edge leads from a chip to another, no other way leads there over further chips;
4. memory: what a chip holds at any moment fits its memory.

What a chip holds: the parameters that its ops read; for each tensor that comes from elsewhere two buffers (one is
read while the next sample's arrives); for each tensor that it sends one buffer (the last sample's, on its way); and,
its ops running in their order, what they have produced: until its last reader here has run, or, where it is sent, to
the end.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphopt_gym.units import format_bytes

RULES = ("acyclic dataflow", "no skipped chip", "triangle dependency", "memory")


@dataclass(frozen=True)
class Violation:
    """One broken rule: the ops and chips concerned, and a line for people."""

    rule: str
    ops: tuple[int, ...]
    chips: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Holdings:
    """What takes memory. Ops are numbered in topological order."""

    tensors: Sequence[tuple[int, int, Sequence[int]]]  # (producer, or -1 for the host; bytes; readers)
    params: Sequence[tuple[int, Sequence[int]]]  # (bytes, readers)
    capacity: Sequence[int]  # bytes a chip


def violations(
    chip_of: Sequence[int],
    edges: Sequence[tuple[int, int]],
    holdings: Holdings | None = None,
    label: Callable[[int], str] = "op {}".format,
) -> list[Violation]:
    """Every violated rule of a partition, in the order of the rules; none where it is valid.

    Args:
        chip_of: the chip of each op.
        edges: (producer, consumer) pairs of ops.
        holdings: what takes memory; left out, memory is not checked.
        label: names an op in the text.
    """
    found = []
    for u, v in edges:
        if chip_of[u] > chip_of[v]:
            text = f"{label(u)} on chip {chip_of[u]} feeds {label(v)} on chip {chip_of[v]}, which comes before it"
            found.append(Violation(RULES[0], (u, v), (chip_of[u], chip_of[v]), text))

    used = set(chip_of)
    for chip in range(max(used)):
        if chip not in used:
            last = [op for op, home in enumerate(chip_of) if home == max(used)]
            text = f"chip {chip} holds no op, chip {max(used)} holds {label(last[0])}"
            found.append(Violation(RULES[1], (last[0],), (chip, max(used)), text))

    crossing: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for u, v in edges:
        if chip_of[u] != chip_of[v]:
            crossing[chip_of[u], chip_of[v]].append((u, v))
    for (a, b), pairs in sorted(crossing.items()):
        way = _way_without(a, b, crossing)
        if way:
            chips = " -> ".join(map(str, way))
            for u, v in pairs:
                text = f"{label(u)} on chip {a} feeds {label(v)} on chip {b}, and chips {chips} lead there too"
                found.append(Violation(RULES[2], (u, v), tuple(way), text))

    if holdings is not None:
        for chip in sorted(used):
            need, op = _peak(chip, chip_of, holdings)
            if need > holdings.capacity[chip]:
                text = (
                    f"chip {chip} needs {format_bytes(need)} when {label(op)} runs and has "
                    f"{format_bytes(holdings.capacity[chip])}: {format_bytes(need - holdings.capacity[chip])} too much"
                )
                members = tuple(op for op, home in enumerate(chip_of) if home == chip)
                found.append(Violation(RULES[3], members, (chip,), text))
    return found


def summary(found: Sequence[Violation], most: int = 5) -> tuple[str, ...]:
    """A line a violation for people, the first ``most`` of each rule, and how many more there are."""
    lines = []
    for rule in RULES:
        texts = [one.text for one in found if one.rule == rule]
        lines += [f"{rule}: {text}" for text in texts[:most]]
        if len(texts) > most:
            lines.append(f"{rule}: {len(texts) - most} more")
    return tuple(lines)


def _way_without(a: int, b: int, crossing: dict[tuple[int, int], list[tuple[int, int]]]) -> list[int]:
    """A shortest way from chip a to chip b that does not use their direct edge; empty where there is none."""
    came_from = {a: a}
    queue = deque([a])
    while queue:
        at = queue.popleft()
        for x, y in crossing:
            if x == at and (x, y) != (a, b) and y not in came_from:
                came_from[y] = x
                queue.append(y)
    if b not in came_from:
        return []
    way = [b]
    while way[-1] != a:
        way.append(came_from[way[-1]])
    return way[::-1]


def _peak(chip: int, chip_of: Sequence[int], holdings: Holdings) -> tuple[int, int]:
    """(most bytes, the op at which) of a chip, asked anew before every one of its ops."""
    params = sum(size for size, readers in holdings.params if any(chip_of[op] == chip for op in readers))
    buffers = 0
    own = []  # (bytes, from op, to op)
    ops = [op for op, home in enumerate(chip_of) if home == chip]
    for producer, size, readers in holdings.tensors:
        here = [op for op in readers if chip_of[op] == chip]
        if producer < 0 or chip_of[producer] != chip:
            buffers += 2 * size if here else 0
            continue
        sent = len(here) < len(readers)
        buffers += size if sent else 0
        own.append((size, producer, ops[-1] if sent else max([producer, *here])))
    most = [(params + buffers + sum(size for size, first, last in own if first <= op <= last), op) for op in ops]
    need = max(bytes_ for bytes_, _ in most)
    return need, next(op for bytes_, op in most if bytes_ == need)
