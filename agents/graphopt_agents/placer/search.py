"""The search that a ranker guides, compiled: many moves are drawn, few that it likes are simulated.

Where it stands, a simulated timeline is known. From there :data:`DRAWN` moves are drawn, the problem's own, some of
them about groups on the critical path; the ranker says which are likely to shorten the step, and up to :data:`TRIED`
of them are simulated, in the order of their chances with noise, until one is accepted, by Metropolis' rule at a low
temperature. What was simulated before is not simulated again. After :data:`KICK` simulations without a new best it
goes back to the best and a few moves away from it. With ``guided`` off it takes moves as they are drawn: its twin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_agents.placer.arrays import Arrays
from graphopt_agents.placer.ranker import NUM_FEATURES, move_features, score_moves
from graphopt_agents.placer.timeline import analyse
from graphopt_gym.compiled import kernel
from graphopt_gym.envs.placement.moves import GAMMA, Moves, below, mixed, propose, uniform
from graphopt_gym.simulator import engine

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem
    from graphopt_gym.search.walk import Walk

DRAWN, TRIED = 64, 8
CRITICAL = 0.3  # share of draws that choose their group by its critical work where others do by its work
SHARPNESS = 2.0  # of the ranker's logits beside the noise
HOT, COLD = 5e-4, 5e-6  # temperature at the start and the end, to the cost
KICK = 300
EMPTY = 20  # rounds in which all drawn moves were known
MOST_GAINS = 256
SEEN_BITS = 17  # of the table of what was simulated


@kernel(inner=True, allocates=False)
def _hash(keys, home):
    """uint64: of a placement, by Zobrist's keys, uint64 [G, D]."""
    found = np.uint64(0)
    for group in range(home.shape[0]):
        found ^= keys[group, home[group]]
    return found


@kernel(inner=True, allocates=False)
def _price(makespan_s, peak_bytes, capacity_bytes, serial_s):
    """(cost, valid), as ``PlacementProblem.price`` says of groups that are where they may be."""
    beyond = 0.0
    for device in range(peak_bytes.shape[0]):
        beyond += max(peak_bytes[device] - capacity_bytes[device], 0.0) / capacity_bytes[device]
    return (makespan_s, True) if beyond == 0.0 else (makespan_s + serial_s * (1 + beyond), False)


@kernel(inner=True)
def _simulate(
    columns, arrays, home, placements, priorities, record, start_s, finish_s, makespans, peaks, peak_times, busy
):
    """Run the engine on a placement of groups, int32 [G]; returns the transfers."""
    for task in range(placements.shape[1]):
        placements[0, task] = home[arrays.group_of_task[task]]
    transfers, _ = engine.run(
        placements, priorities, columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], columns[6],
        columns[7], columns[8], columns[9], columns[10], columns[11], columns[12], columns[13], columns[14],
        columns[15], columns[16], columns[17], columns[18], columns[19], columns[20], record, start_s, finish_s,
        makespans, peaks, peak_times, busy,
    )  # fmt: skip
    return transfers


@kernel
def guided_walk(
    seed,  # uint64
    evaluations,  # how many to make
    temperature,  # to the cost
    guided,
    numbers,  # float64 [2]: cost, best cost; changed in place, as all from here on to `noted_gains`
    counts,  # int64 [5]: evaluations without a new best, whether the best is valid, valid ones, improvements, noted
    current,  # int32 [G]
    best,  # int32 [G]
    steps_of_gains,  # int64 [I]
    gains,  # float64 [I]
    seen,  # uint64 [2**SEEN_BITS]
    noted,  # float32 [N, features], filled with the moves that were simulated; [0, features] where nobody asks
    noted_gains,  # float32 [N], and the share of the cost that each saved
    keys,  # uint64 [G, D]
    arrays,
    moves,  # Moves
    network,  # Ranker.arrays()
    rank,  # float64 [K], [0] where the order needs none
    serial_s,
    columns,  # Simulator.columns
):
    """Go on from ``current``. Returns how many evaluations were made; fewer than asked for where nothing new is found.

    The timeline of where it stands at first is simulated again, which does not count: its cost is known.
    """
    tasks, devices, groups = arrays.is_source.shape[0], arrays.capacity_bytes.shape[0], current.shape[0]
    placements, priorities = np.empty((1, tasks), np.uint32), np.empty((1, rank.shape[0]))
    priorities[0] = rank
    start, finish = np.zeros(tasks), np.zeros(tasks)
    record = tasks > 0  # no literal: the engine would be compiled once more for it
    makespans, peaks = np.empty(1), np.empty((1, devices), np.int64)
    peak_times, busy = np.empty((1, devices)), np.empty((1, devices))
    stream, queue = np.empty(1, np.uint64), np.empty(groups, np.int32)
    stream[0] = mixed(seed)
    drawn, features = np.empty((DRAWN, groups), np.int32), np.zeros((DRAWN, NUM_FEATURES), np.float32)
    chances, liking = np.empty(DRAWN, np.float32), np.empty(DRAWN)
    mask = np.uint64(seen.shape[0] - 1)
    transfers = _simulate(
        columns, arrays, current, placements, priorities, record, start, finish, makespans, peaks, peak_times, busy
    )
    state = analyse(arrays, current, start, finish, transfers, makespans[0], peaks[0])
    by_critical = _critical(state, moves)
    made, empty = 0, 0
    while made < evaluations and counts[3] < gains.shape[0] and empty < 2 * EMPTY:
        away = counts[0] > KICK or empty >= EMPTY
        if away:  # from the best, by a few moves
            drawn[0] = best
            for _ in range(2 + below(stream, 4)):
                propose(drawn[:1], moves, queue, stream)
            counts[0] = 0
        else:
            for row in range(DRAWN):
                drawn[row] = current
                by = by_critical if uniform(stream) < CRITICAL else moves.work
                propose(drawn[row : row + 1], _by_work(moves, by), queue, stream)
            if guided or noted.shape[0] > 0:
                move_features(arrays, state, drawn, features)
            if guided:
                score_moves(features, network, chances)
            for row in range(DRAWN):
                liking[row] = row
                if guided:
                    noise = -np.log(-np.log(max(uniform(stream), 1e-300)))
                    liking[row] = -(SHARPNESS * chances[row] + noise)
        tried = 0
        for row in np.argsort(liking, kind="mergesort"):
            row = 0 if away else row
            key = _hash(keys, drawn[row])
            if not away and seen[key & mask] == key:
                continue
            seen[key & mask] = key
            transfers = _simulate(
                columns, arrays, drawn[row], placements, priorities, record, start, finish, makespans, peaks,
                peak_times, busy,
            )  # fmt: skip
            cost, valid = _price(makespans[0], peaks[0], arrays.capacity_bytes, serial_s)
            made, tried = made + 1, tried + 1
            counts[0] += 1
            counts[2] += valid
            if counts[4] < noted.shape[0] and not away:
                noted[counts[4]] = features[row]
                noted_gains[counts[4]] = (numbers[0] - cost) / numbers[0]
                counts[4] += 1
            if cost < numbers[1] if valid == (counts[1] == 1) else valid:
                numbers[1], counts[1], counts[0] = cost, valid, 0
                best[:] = drawn[row]
                if valid:
                    steps_of_gains[counts[3]], gains[counts[3]] = made - 1, cost
                    counts[3] += 1
            if away or cost <= numbers[0] * (1.0 - temperature * np.log(1.0 - uniform(stream))):
                current[:] = drawn[row]
                numbers[0] = cost
                state = analyse(arrays, current, start, finish, transfers, makespans[0], peaks[0])
                by_critical = _critical(state, moves)
                break
            if tried == TRIED or made == evaluations or counts[3] == gains.shape[0]:
                break
        empty = 0 if tried and not away else empty + 1
    return made


@kernel(inner=True)
def _critical(state, moves):
    """float64 [G]: cumulative share of the critical work; of all work where none is critical."""
    found, total = np.empty(moves.work.shape[0]), 0.0
    for group in range(found.shape[0]):
        total += state.critical_s[group]
        found[group] = total
    if total <= 0.0:
        return moves.work.copy()
    return found / total


@kernel(inner=True)  # what it returns holds arrays, whose references are counted
def _by_work(moves, work):
    """The moves, with groups drawn by something else than their work."""
    return Moves(
        moves.orders, moves.positions, moves.members, moves.begin, moves.end, work, moves.neighbour_ptr,
        moves.neighbour, moves.allowed, moves.levels, moves.chances,
    )  # fmt: skip


class GuidedWalk:
    """A walk over placements, as :meth:`Evaluator.walk` takes one: called with its state and how far to go.

    Args:
        problem: what is searched.
        arrays: its arrays.
        network: of the ranker, see :meth:`Ranker.arrays`.
        guided: whether the ranker chooses.
        seed: of the keys that placements are known by.
        note: how many moves to keep until :meth:`taken` takes them.
    """

    def __init__(
        self, problem: PlacementProblem, arrays: Arrays, network: tuple[np.ndarray, ...], guided: bool = True,
        seed: int = 0, note: int = 0,
    ) -> None:  # fmt: skip
        self.problem, self.arrays, self.network, self.guided = problem, arrays, network, guided
        self.moves = problem.move_tables._replace(levels=1)
        shape = (problem.num_groups, problem.num_devices)
        self.keys = np.random.default_rng(seed).integers(1, 2**63, shape, np.int64).astype(np.uint64)
        self.seen = np.zeros(1 << SEEN_BITS, np.uint64)
        self.noted = np.zeros((note, NUM_FEATURES), np.float32)
        self.noted_gains = np.zeros(note, np.float32)
        self.num_noted = 0
        self.temperature = HOT
        self.made = 0  # in the last call

    def taken(self) -> tuple[np.ndarray, np.ndarray]:
        """(features, gains) of the moves that were simulated since this was last asked."""
        found = self.noted[: self.num_noted].copy(), self.noted_gains[: self.num_noted].copy()
        self.num_noted = 0
        return found

    def __call__(self, state: Walk, steps: int, most_idle: int) -> None:
        problem = self.problem
        current, best = (problem.devices_of(np.array(one, np.int32)).copy() for one in (state.decision, state.best))
        numbers = np.array([state.cost, state.best_cost])
        counts = np.array([state.idle, state.best_valid, 0, 0, self.num_noted], np.int64)
        at, gains = np.empty(MOST_GAINS, np.int64), np.empty(MOST_GAINS)
        self.made = guided_walk(
            np.uint64((state.seed + state.step * int(GAMMA)) % 2**64), steps, self.temperature, self.guided, numbers,
            counts, current, best, at, gains, self.seen, self.noted, self.noted_gains, self.keys, self.arrays,
            self.moves, self.network, problem.simulator.priorities, problem.serial_s, problem.simulator.columns,
        )  # fmt: skip
        state.decision, state.best = problem.decision_of(current), problem.decision_of(best)
        state.cost, state.best_cost = numbers.tolist()
        state.idle, state.best_valid = int(counts[0]), bool(counts[1])
        state.valid += int(counts[2])
        state.improvements += [
            (state.step + one, cost) for one, cost in zip(at[: counts[3]].tolist(), gains[: counts[3]].tolist())
        ]
        self.num_noted = int(counts[4])
        state.step += self.made
