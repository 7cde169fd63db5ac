"""The moves of the local searches, compiled: a small random change of where groups are, and of their levels.

Beside single groups, what moves together is what tends to be together in placements worth having: runs of consecutive
groups, modules at any depth (a layer is one), everything on one side of a border between two devices, or two devices
with one another. Random numbers come from a generator of its own, SplitMix64 (Steele et al., OOPSLA 2014), so that
compiled loops, single moves and a plain twin draw the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.placement.groups import make_group_graph

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem

# What is drawn: the chance of each kind of move, by name of a set.
KINDS = ("group", "run", "region", "stretch", "module", "border", "swap", "exchange")
GROUP, RUN, REGION, STRETCH, MODULE, BORDER, SWAP, EXCHANGE = range(len(KINDS))
SETS = {
    "all": (0.30, 0.15, 0.15, 0.07, 0.10, 0.13, 0.04, 0.06),
    "runs": (0.50, 0.50, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),  # single groups and runs of them alone
}
BY_WORK = 0.5  # share of moves that draw their group by its work, so that heavy ones move more often
NEAR = 0.8  # share of moves to the device of a group with which the group exchanges tensors
TRIES = 8  # draws of a move that changes something; then any group moves
LEVEL_MOVES = 0.5  # share of moves of levels, where there are such

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFT_1, SHIFT_2, SHIFT_3, SHIFT_53 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
UNIT = 1.0 / 2**53


class Moves(NamedTuple):
    """What moves are drawn from. G groups, O orders, P partitions, D devices."""

    orders: np.ndarray  # int32 [O, G] groups in order: by position, and module after module
    positions: np.ndarray  # int32 [O, G] rank of each group in each order
    members: np.ndarray  # int32 [P, G] groups sorted by their part of each partition
    begin: np.ndarray  # int32 [P, G] where in a row of `members` the part of each group begins
    end: np.ndarray  # int32 [P, G] and ends
    work: np.ndarray  # float64 [G] cumulative share of the compute
    neighbour_ptr: np.ndarray  # int32 [G+1]
    neighbour: np.ndarray  # int32 groups that exchange tensors with each group
    allowed: np.ndarray  # bool [G, D]; [0, D] where every group may be everywhere
    levels: int  # how many there are
    chances: np.ndarray  # float64 [kinds] cumulative


def make_moves(problem: PlacementProblem) -> Moves:
    """From the graph of groups, and the paths of their modules."""
    graph = make_group_graph(problem)
    groups = problem.num_groups
    both = np.concatenate([graph.edges, graph.edges[:, ::-1]])
    work = np.cumsum(graph.work_s.mean(axis=0))
    by_position = np.argsort(graph.position, kind="stable")
    by_module = by_position[np.argsort(module_of_group(problem)[by_position], kind="stable")]
    orders = [by_position] if np.array_equal(by_position, by_module) else [by_position, by_module]
    parts = module_partitions(problem)
    members = np.array([np.argsort(part, kind="stable") for part in parts], np.int32).reshape(-1, groups)
    last = np.array([np.cumsum(np.bincount(part))[part] for part in parts], np.int32).reshape(-1, groups)
    size = np.array([np.bincount(part)[part] for part in parts], np.int32).reshape(-1, groups)
    allowed = np.zeros((0, problem.num_devices), bool) if problem.allowed is None else problem.allowed
    chances = np.array(SETS[problem.moves])
    chances[STRETCH] += 0.0 if parts else chances[MODULE]
    chances[MODULE] *= bool(parts)
    return Moves(
        orders=np.array(orders, np.int32),
        positions=np.argsort(orders, axis=1).astype(np.int32),
        members=members,
        begin=last - size,
        end=last,
        work=work / max(float(work[-1]), 1e-30),
        neighbour_ptr=np.concatenate([[0], np.cumsum(np.bincount(both[:, 0], minlength=groups))]).astype(np.int32),
        neighbour=both[np.argsort(both[:, 0], kind="stable"), 1].astype(np.int32),
        allowed=np.ascontiguousarray(allowed),
        levels=problem.priority_levels if problem.with_levels else 1,
        chances=np.cumsum(chances),
    )


def _module_codes(problem: PlacementProblem) -> np.ndarray:
    """int32 [G]: the module of each group's first op, as the graph numbers them."""
    first = np.unique(problem.group_of_op, return_index=True)[1]
    return problem.graph.module[first]


def module_of_group(problem: PlacementProblem) -> np.ndarray:
    """int64 [G]: the module that each group's first op belongs to; modules are numbered as they first occur."""
    _, seen, module = np.unique(_module_codes(problem), return_index=True, return_inverse=True)
    return seen.argsort().argsort()[module.reshape(-1)]


def module_partitions(problem: PlacementProblem) -> list[np.ndarray]:
    """int64 [G] each: ways to part the groups by the paths of their modules, coarse and fine, all different.

    By the first one, two, ... names of the path (``encoder``, ``encoder.0``, ``encoder.0.attention``), and by the
    first number in it, a layer's number in most models: ``attention.3`` and ``feed_forward.3`` are together.
    Partitions into one part, or with every group alone, are left out.
    """
    paths = [problem.graph.modules[code].split(".") for code in _module_codes(problem).tolist()]
    keys: list[list[Any]] = [[path[:depth] for path in paths] for depth in range(1, max(map(len, paths)) + 1)]
    keys.append([next(([name] for name in path if name.isdigit()), path[:1]) for path in paths])
    found: dict[bytes, np.ndarray] = {}
    for key in keys:
        numbers: dict[tuple[str, ...], int] = {}
        part = np.array([numbers.setdefault(tuple(one), len(numbers)) for one in key], np.int64)
        if 1 < len(numbers) < problem.num_groups:
            found.setdefault(part.tobytes(), part)
    return list(found.values())


# -- random numbers -------------------------------------------------------------------------------------------------


@kernel(inner=True, allocates=False)
def mixed(word):
    """A word whose bits all depend on all of the given one's: SplitMix64's finaliser."""
    word = (word ^ (word >> SHIFT_1)) * MIX_1
    word = (word ^ (word >> SHIFT_2)) * MIX_2
    return word ^ (word >> SHIFT_3)


@kernel(inner=True, allocates=False)
def uniform(stream):
    """float64 in [0, 1); ``stream``: uint64 [1], which moves on."""
    stream[0] += GAMMA
    return np.float64(mixed(stream[0]) >> SHIFT_53) * UNIT


@kernel(inner=True, allocates=False)
def below(stream, count):
    """int in [0, count)."""
    return min(int(uniform(stream) * count), count - 1)


@kernel(inner=True, allocates=False)
def length(stream, most):
    """int in [1, most], log-uniform: short ones are more likely."""
    return min(int((most + 1.0) ** uniform(stream)), most)


# -- moves ----------------------------------------------------------------------------------------------------------


@kernel(inner=True, allocates=False)
def _put(devices, group, target, allowed):
    """Put a group on a device where it may be there; 1 if that changed something."""
    if devices[group] == target or (allowed.shape[0] > 0 and not allowed[group, target]):
        return 0
    devices[group] = target
    return 1


@kernel(inner=True, allocates=False)
def _draw_group(moves, stream):
    groups = moves.work.shape[0]
    if uniform(stream) >= BY_WORK:
        return below(stream, groups)
    share, low, high = uniform(stream), 0, groups - 1
    while low < high:  # the first whose cumulative share is at least this
        middle = (low + high) // 2
        if moves.work[middle] < share:
            low = middle + 1
        else:
            high = middle
    return low


@kernel(inner=True, allocates=False)
def _draw_target(devices, group, moves, stream):
    """Another device for a group: mostly that of a group with which it exchanges tensors."""
    home, found = devices[group], 0
    if uniform(stream) < NEAR:
        first, last = moves.neighbour_ptr[group], moves.neighbour_ptr[group + 1]
        for position in range(first, last):
            found += devices[moves.neighbour[position]] != home
        if found:
            which = below(stream, found)
            for position in range(first, last):
                device = devices[moves.neighbour[position]]
                if device != home:
                    if which == 0:
                        return device
                    which -= 1
    count = moves.allowed.shape[1]
    return (home + 1 + below(stream, count - 1)) % count


@kernel(inner=True, allocates=False)
def _stretch(at, groups, stream):
    """(first, last + 1) of a stretch of an order that lies anywhere around a position, of log-uniform length."""
    many = length(stream, groups)
    first = at - below(stream, many)
    return max(0, first), min(groups, first + many)


@kernel(inner=True, allocates=False)
def _move_devices(devices, moves, queue, stream):
    """One move of a drawn kind, in place. Returns how many groups it changed."""
    groups = moves.work.shape[0]
    draw, kind = uniform(stream), 0
    while kind < EXCHANGE and moves.chances[kind] <= draw:
        kind += 1
    group = _draw_group(moves, stream)
    home, target = devices[group], _draw_target(devices, group, moves, stream)
    changed = 0
    if kind == GROUP:
        return _put(devices, group, target, moves.allowed)
    if kind == EXCHANGE:  # with one of another device
        other = below(stream, groups)
        for _ in range(TRIES):
            if devices[other] != home:
                break
            other = below(stream, groups)
        target = devices[other]
        if target == home:
            return 0
        changed = _put(devices, group, target, moves.allowed)
        return changed + _put(devices, other, home, moves.allowed)
    if kind == REGION:  # what is around it by tensors that are exchanged, breadth first, all or on its device alone
        whole = uniform(stream) < 0.5
        many = length(stream, max(2, groups // 4))
        queue[0], changed = group, _put(devices, group, target, moves.allowed)
        done, found = 0, changed
        while done < found < many:
            member = queue[done]
            done += 1
            for position in range(moves.neighbour_ptr[member], moves.neighbour_ptr[member + 1]):
                other = moves.neighbour[position]
                if found < many and (whole or devices[other] == home) and _put(devices, other, target, moves.allowed):
                    queue[found] = other
                    found += 1
        return found
    if kind == MODULE:
        which, whole = below(stream, moves.members.shape[0]), uniform(stream) < 0.5
        for position in range(moves.begin[which, group], moves.end[which, group]):
            member = moves.members[which, position]
            if whole or devices[member] == home:
                changed += _put(devices, member, target, moves.allowed)
        return changed
    which = below(stream, moves.orders.shape[0])
    at = moves.positions[which, group]
    order = moves.orders[which]
    if kind == RUN:  # of the groups beside it, before or after, those on its device
        many = length(stream, max(2, groups // 4))
        first = at if uniform(stream) < 0.5 else at - many + 1
        for position in range(max(0, first), min(groups, first + many)):
            if devices[order[position]] == home:
                changed += _put(devices, order[position], target, moves.allowed)
        return changed
    if kind == BORDER:  # the next one, or the last one before; what lies on either side of it goes to the other
        step = 1 if uniform(stream) < 0.5 else -1
        while 0 <= at < groups and devices[order[at]] == home:
            at += step
        if at < 0 or at == groups:
            return 0
        far = devices[order[at]]
        if uniform(stream) < 0.5:  # the border moves on, or else back
            at, home, far, step = at - step, far, home, -step
        many = length(stream, max(2, groups // 4))
        while many > 0 and 0 <= at < groups and devices[order[at]] == far:
            changed += _put(devices, order[at], home, moves.allowed)
            at += step
            many -= 1
        return changed
    first, last = _stretch(at, groups, stream)  # to one device, or two devices change places in it
    for position in range(first, last):
        member = order[position]
        if kind == STRETCH or devices[member] == home:
            changed += _put(devices, member, target, moves.allowed)
        elif devices[member] == target:
            changed += _put(devices, member, home, moves.allowed)
    return changed


@kernel(inner=True, allocates=False)
def _move_levels(levels, moves, stream):
    """A group, a run of consecutive ones, or a module goes to another level, in place."""
    groups = levels.shape[0]
    kind, group = uniform(stream), _draw_group(moves, stream)
    level = (levels[group] + 1 + below(stream, moves.levels - 1)) % moves.levels
    if kind < 0.25 and moves.members.shape[0] > 0:
        which = below(stream, moves.members.shape[0])
        for position in range(moves.begin[which, group], moves.end[which, group]):
            levels[moves.members[which, position]] = level
        return
    many = length(stream, max(2, groups // 4)) if kind < 0.5 else 1
    at = moves.positions[0, group]
    for position in range(at, min(groups, at + many)):
        levels[moves.orders[0, position]] = level


@kernel(inner=True, allocates=False)
def propose(decision, moves, queue, stream):
    """Change a decision, int32 [1 or 2, G], in place by one move. It stays as it is only where nothing can move.

    ``queue``: int32 [G], to write on.
    """
    if decision.shape[0] == 2 and moves.levels > 1 and uniform(stream) < LEVEL_MOVES:
        _move_levels(decision[1], moves, stream)
        return
    devices = decision[0]
    groups, count = moves.work.shape[0], moves.allowed.shape[1]
    if count == 1:
        return
    for _ in range(TRIES):
        if _move_devices(devices, moves, queue, stream) > 0:
            return
    at, turn = below(stream, groups), below(stream, count - 1)
    for position in range(groups):
        group = (at + position) % groups
        home = devices[group]
        for other in range(count - 1):
            if _put(devices, group, (home + 1 + (turn + other) % (count - 1)) % count, moves.allowed) > 0:
                return


@kernel
def move(decision, moves, seed):
    """:func:`propose` for one decision, with the random numbers of a seed, uint64."""
    stream = np.empty(1, np.uint64)
    stream[0] = mixed(seed)
    propose(decision, moves, np.empty(decision.shape[1], np.int32), stream)


def draw_block(moves: Moves, rng: np.random.Generator) -> np.ndarray:
    """int32: the groups of a module or, every other time, of a stretch of an order: blocks that moves take whole."""
    by_module, row, at, share = rng.random(4).tolist()
    parts, groups = moves.members.shape
    group = int(at * groups)
    if by_module < 0.5 and parts:
        part = int(row * parts)
        return moves.members[part, moves.begin[part, group] : moves.end[part, group]]
    order, many = int(row * len(moves.orders)), min(int((groups + 1.0) ** share), groups)
    first = int(moves.positions[order, group]) - int(rng.integers(many))
    return moves.orders[order, max(0, first) : first + many]
