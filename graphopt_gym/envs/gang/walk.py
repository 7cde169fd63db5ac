"""One look at a run in progress, compiled: which gangs may be chosen, what is seen of them, and what it takes yet."""

from __future__ import annotations

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.gang.instances import CLIENT_FEATURES, GANG_FEATURES, ISLAND_FEATURES
from graphopt_gym.simulator.gang.engine import NOW, NUM_EVENTS, NUM_OPEN, RUNNING

WAITED, SERVED, FREE, LEFT, FOLLOWS, KEEPS, PATH, CORES = (
    GANG_FEATURES.index(name) for name in ("waited", "served", "free", "left", "follows", "keeps", "path", "cores")
)
C_WEIGHT, C_DONE, C_SERVED, C_READY = range(len(CLIENT_FEATURES))
I_BUSY, I_MEMORY, I_LEFT = range(len(ISLAND_FEATURES))


@kernel
def look(tables, state, ready, mask, last, window, gangs, clients, islands, blocked):
    """Fills what is seen of a run, and gives (how many gangs are in the window, potential, bound, started, may wait).

    Args:
        tables, state: of the engine.
        ready: of the instance, see :class:`Ready`.
        mask: bool [G]: the gangs that may start, see ``engine.candidates``.
        last: int32 [P]: the client of the last gang on each core class; -1: none.
        window: int32 [W]: filled with gangs that may start, the earliest ready first, then the lowest number.
        gangs, clients, islands: float32 [W, F], [C, F], [I, F], filled, and 0 where there are none.
        blocked: float64 [3]: filled with how many gangs are ready and cannot start, the longest path of theirs, and the
            most cores.
    """
    classes, most, count = len(tables.capacity_bytes), len(window), len(ready.client)
    now, num_clients = state.clock[NOW], len(ready.due)
    gangs[:] = 0.0
    clients[:] = 0.0
    islands[:] = 0.0
    blocked[:] = 0.0
    kept = np.zeros(classes)  # the longest path of the blocked gangs of each core class
    size = 0
    for index in range(state.counts[NUM_OPEN]):
        gang = state.open[index]
        if not mask[gang]:
            blocked[0] += 1.0
            blocked[1] = max(blocked[1], ready.fixed[gang, PATH])
            blocked[2] = max(blocked[2], ready.fixed[gang, CORES])
            for at in range(tables.resource_ptr[gang], tables.resource_ptr[gang + 1]):
                if tables.resource[at] < classes:
                    kept[tables.resource[at]] = max(kept[tables.resource[at]], ready.fixed[gang, PATH])
            continue
        clients[ready.client[gang], C_READY] += 1.0
        at = size
        while at > 0:
            other = window[at - 1]
            if state.ready_s[other] < state.ready_s[gang] or (
                state.ready_s[other] == state.ready_s[gang] and other < gang
            ):
                break
            if at < most:
                window[at] = other
            at -= 1
        if at < most:
            window[at] = gang
            size = min(size + 1, most)

    progress, begun = np.zeros(num_clients), np.zeros(num_clients)
    started = 0
    for gang in range(count):
        if state.status[gang] >= RUNNING:
            started += 1
            work = tables.cores[gang]
            begun[ready.client[gang]] += tables.duration_s[gang] * work
            until = min(min(state.finish_s[gang], now), ready.horizon_s)
            if until > state.start_s[gang]:
                progress[ready.client[gang]] += (until - state.start_s[gang]) * work

    bound = now
    for gang in range(count):
        if state.status[gang] == RUNNING:
            bound = max(bound, state.finish_s[gang] + ready.tail_s[gang])
    for index in range(state.counts[NUM_OPEN]):
        gang = state.open[index]
        bound = max(bound, now + tables.duration_s[gang] + ready.tail_s[gang])
    for at in range(classes):
        free = now
        if state.running[at] >= 0:
            free = state.finish_s[state.running[at]]
            islands[ready.class_island[at], I_BUSY] += ready.class_size[at]
        left = ready.total_s[at] - state.busy_s[at]
        if left > 0.0:
            bound = max(bound, free + left + ready.class_tail_s[at])
        island = ready.class_island[at]
        islands[island, I_LEFT] = max(islands[island, I_LEFT], min(1.0, max(0.0, left / ready.most_s)))
        held = min(1.0, state.used_bytes[at] / tables.capacity_bytes[at])
        islands[island, I_MEMORY] = max(islands[island, I_MEMORY], held)
    for island in range(len(ready.island_cores)):
        islands[island, I_BUSY] = min(1.0, islands[island, I_BUSY] / ready.island_cores[island])

    least = 1.0
    for client in range(num_clients):
        waiting = clients[client, C_READY]
        clients[client, C_READY] = waiting / (1.0 + waiting)
        clients[client, C_WEIGHT] = ready.weight[client]
        clients[client, C_DONE] = min(1.0, begun[client] / ready.client_work[client])
        if ready.due[client] > 0.0:
            share = progress[client] / ready.due[client]
            least = min(least, share)
            clients[client, C_SERVED] = share / (1.0 + share)

    for place in range(size):
        gang = window[place]
        gangs[place] = ready.fixed[gang]
        waited = (now - state.ready_s[gang]) / ready.mean_s
        gangs[place, WAITED] = waited / (1.0 + waited)
        gangs[place, SERVED] = clients[ready.client[gang], C_SERVED]
        room, left, follows, keeps = 1.0, 0.0, True, 0.0
        for index in range(tables.resource_ptr[gang], tables.resource_ptr[gang + 1]):
            at = tables.resource[index]
            if at < classes:
                room = min(room, 1.0 - state.used_bytes[at] / tables.capacity_bytes[at])
                left = max(left, (ready.total_s[at] - state.busy_s[at]) / ready.most_s)
                follows = follows and last[at] == ready.client[gang]
                keeps = max(keeps, kept[at])
        gangs[place, FREE] = max(0.0, room)
        gangs[place, LEFT] = min(1.0, max(0.0, left))
        gangs[place, FOLLOWS] = 1.0 if follows else 0.0
        gangs[place, KEEPS] = keeps

    potential = least - 1.0 if ready.fair else -bound / ready.units / ready.reference
    return size, potential, bound / ready.units, started, state.counts[NUM_EVENTS] > 0
