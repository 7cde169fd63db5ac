"""Plain twins of the placer's kernels, on the problem's own tables: nothing is kept up to date, all is counted anew."""

from __future__ import annotations

import itertools
import math

import numpy as np

from graphopt_gym.envs.placement.groups import make_group_graph
from graphopt_gym.envs.placement.moves import module_of_group, module_partitions
from tests.envs.placement.plain_moves import PlainMoves, Stream


def squash(value):
    return value / (1 + abs(value))


def root(value):
    return math.copysign(math.sqrt(min(abs(value), 9.0)), value)


class Plain:
    """A placement problem, in lists. What is sent: (tensor, sending group, groups that read it)."""

    def __init__(self, problem):
        self.problem = problem
        tasks, cluster = problem.simulator.tasks, problem.cluster
        self.tasks, self.devices, self.groups = tasks, range(problem.num_devices), range(problem.num_groups)
        self.group, self.duration = problem.group_of_task.tolist(), problem.simulator.device_durations_s()
        graph = make_group_graph(problem)
        self.work, self.held = graph.work_s, np.maximum(graph.memory_bytes, 0.0)
        self.capacity, self.bytes = problem.capacity_bytes.astype(float), tasks.tensor_bytes.tolist()
        self.source, self.producer = tasks.is_source.tolist(), tasks.tensor_task.tolist()
        self.reads_of = [
            tasks.input_tensor[tasks.input_ptr[k] : tasks.input_ptr[k + 1]].tolist() for k in range(tasks.num_tasks)
        ]
        self.readers_of = [
            tasks.reader[tasks.reader_ptr[t] : tasks.reader_ptr[t + 1]].tolist() for t in range(tasks.num_tensors)
        ]
        self.links = {
            (a, b): cluster.links[cluster.link_of[a, b]] for a in self.devices for b in self.devices if a != b
        }
        self.sent = []
        for tensor in range(tasks.num_tensors):
            sender = self.group[self.producer[tensor]]
            readers = {self.group[one] for one in self.readers_of[tensor]} - {sender}
            if readers:
                self.sent.append((tensor, sender, readers))
        self.order = [np.argsort(graph.position, kind="stable").tolist()]
        module, parts = module_of_group(problem), module_partitions(problem)
        self.order.append(sorted(self.order[0], key=lambda group: module[group]))
        self.part = [module, parts[-1] if parts else module]

    def seconds(self, tensor, a, b):
        """Of a transfer."""
        if a == b:
            return 0.0
        stated = float(self.tasks.transfer_s[tensor])
        return stated if stated >= 0 else self.links[a, b].latency_s + self.bytes[tensor] / self.links[a, b].bytes_per_s

    def mean_seconds(self, tensor):
        pairs = [self.seconds(tensor, *pair) for pair in self.links]
        return sum(pairs) / len(pairs) if pairs else 0.0

    def is_source(self, tensor):
        return self.source[self.producer[tensor]]

    # -- the scorer

    def memory(self, home, device):
        """Bytes on a device: of its groups, and of copies of sources that they read and it does not have itself."""
        there = {group for group, at in home.items() if at == device}
        copies = [
            self.bytes[tensor]
            for tensor, sender, readers in self.sent
            if self.is_source(tensor) and readers & there and sender not in there
        ]
        return sum(self.held[group] for group in there) + sum(copies)

    def traffic(self, home, group, device, of_sources):
        """Seconds of transfers that a group on a device would add to those of what is placed."""
        total = 0.0
        for tensor, sender, readers in self.sent:
            if self.is_source(tensor) != of_sources:
                continue
            at = {home[one] for one in readers if one in home}
            if group in readers and device not in at:
                if sender in home:
                    total += self.seconds(tensor, home[sender], device)
                elif of_sources:
                    total += self.mean_seconds(tensor) / 2
            if group == sender:
                total += sum(self.seconds(tensor, device, other) for other in at)
        return total

    def finishes(self, home, group, device, finish, free):
        """[(task, end)] of the group's tasks whose inputs are known, if it were on a device that is free then."""
        found = {}
        for task in (one for one in range(len(self.group)) if self.group[one] == group and not self.source[one]):
            inputs = [(tensor, self.producer[tensor]) for tensor in self.reads_of[task]]
            inputs = [(tensor, one) for tensor, one in inputs if not self.source[one]]
            if all(one in finish or one in found for _, one in inputs):
                came = [
                    finish[one] + self.seconds(tensor, home[self.group[one]], device)
                    for tensor, one in inputs
                    if one not in found
                ]
                free = max([free, *came]) + self.duration[device, task]
                found[task] = free
        return list(found.items())

    def construct(self, weights, passes):
        """(placement, features of each decision [passes * G, D, features])."""
        home, seen, finish, free = {}, [], {}, [0.0 for _ in self.devices]
        work = self.work.mean(axis=0)
        tiny = 1e-9 * work.sum() / len(work) + 1e-30
        mean, share = work.sum() / len(work) + tiny, work.sum() / len(self.devices) + tiny
        limit = min(0.95, max(0.8, 1.15 * self.held.sum() / self.capacity.sum()))
        for turn in range(passes):
            for group in self.order[0] if turn % 2 == 0 else self.order[0][::-1]:
                home.pop(group, None)
                plans = [self.finishes(home, group, device, finish, free[device]) for device in self.devices]
                if turn or not plans[0]:
                    plans = [[] for _ in self.devices]
                rows, fills = self.rows(home, group, plans, turn == 0, (work, tiny, mean, share))
                seen.append(rows)
                may = [d for d in self.devices if self.problem.allowed is None or self.problem.allowed[group, d]]
                scores = [rows[d] @ weights - 1000 * max(0.0, fills[d] - limit) for d in self.devices]
                best = max(may, key=lambda device: (round(scores[device], 9), -device))
                home[group] = best
                finish |= dict(plans[best])
                free[best] = plans[best][-1][1] if plans[best] else free[best]
        return [home[group] for group in self.groups], np.array(seen)

    def rows(self, home, group, plans, first, sizes):
        """(features [D, features], share of each device's memory with the group)."""
        work, tiny, mean, share = sizes
        mine = [one for one in self.sent if not self.is_source(one[0])]
        reads = [(self.mean_seconds(tensor), home.get(sender)) for tensor, sender, to in mine if group in to]
        sends = [
            (self.mean_seconds(tensor), at)
            for tensor, sender, to in mine
            if sender == group
            for at in {home[one] for one in to if one in home}
        ]
        acts = [self.traffic(home, group, device, False) for device in self.devices]
        sources = [self.traffic(home, group, device, True) for device in self.devices]
        loads = [sum(self.work[device, one] for one, at in home.items() if at == device) for device in self.devices]
        placed = sum(loads)
        rows, fills = [], []
        for device in self.devices:
            own, load = self.work[device, group] + tiny, loads[device]
            more, also = acts[device] - min(acts), sources[device] - min(sources)
            there = [one for one, at in home.items() if at == device]
            row = [
                sum(s for s, at in reads if at == device) / (sum(s for s, _ in reads) + tiny),
                sum(s for s, at in sends if at == device) / (sum(s for s, _ in sends) + tiny),
                squash(more / own), squash(more / mean), squash(also / own), squash(also / mean),
                squash(20 * more / share), load / share, (load + self.work[device, group]) / share,
                squash((load - min(loads)) / mean), (load - min(loads)) / share, (load - max(loads)) / share,
                min(4.0, load / (placed / len(self.devices) + 0.02 * share)) if first else load / share,
            ]  # fmt: skip
            for part in self.part:
                whole = sum(work[one] for one in home if part[one] == part[group])
                row.append(sum(work[one] for one in there if part[one] == part[group]) / (whole + tiny))
            for order in self.order:
                at = order.index(group)
                row.append(float(at > 0 and order[at - 1] in there))
                row.append(float(at + 1 < len(order) and order[at + 1] in there))
            if plans[device]:
                later = plans[device][-1][1] - min(plan[-1][1] for plan in plans)
                row += [squash(later / mean), squash(later / own), squash(10 * later / share), float(later <= 0)]
            else:
                row += [0.0] * 4
            fills.append(self.memory(home | {group: device}, device) / self.capacity[device])
            row += [min(fills[-1], 2.0), float(fills[-1] > 0.9), float(fills[-1] > 1.0), float(not there)]
            rows.append([*row, (self.work[device, group] - work[group]) / (work[group] + tiny)])
        return np.array(rows), fills

    # -- the plan

    def plan(self, home, sequence, buckets):
        """(seconds, peak bytes of each device) of the list schedule."""
        at = [home[group] for group in self.group]
        finish, start, came, sent = {}, {}, {}, {}
        free, links = dict.fromkeys(self.devices, 0.0), {}
        for task in sorted(sequence, key=lambda one: not self.source[one]):
            if self.source[task]:
                start[task] = finish[task] = 0.0
            else:
                inputs = [came.get((tensor, at[task]), finish[self.producer[tensor]]) for tensor in self.reads_of[task]]
                start[task] = max([free[at[task]], *inputs])
                finish[task] = free[at[task]] = start[task] + self.duration[at[task], task]
            for tensor in (one for one in range(len(self.producer)) if self.producer[one] == task):
                for reader in self.readers_of[tensor]:
                    to = at[reader]
                    if to != at[task] and (tensor, to) not in came:
                        link = int(self.problem.cluster.link_of[at[task], to])
                        sent[tensor, to] = max(links.get(link, 0.0), finish[task])
                        came[tensor, to] = links[link] = sent[tensor, to] + self.seconds(tensor, at[task], to)
        step = max(*finish.values(), *came.values(), 1e-30) if came else max(*finish.values(), 1e-30)
        tasks, held = self.tasks, np.zeros((len(self.devices), buckets))

        def hold(device, begin, end, size):
            first, last = (min(buckets - 1, int(one / step * buckets)) for one in (begin, end))
            held[device, first : last + 1] += size

        for task, device in enumerate(at):
            held[device] += int(tasks.persistent_bytes[task])
            for storage in range(tasks.storage_ptr[task], tasks.storage_ptr[task + 1]):
                ends = [finish[task]]
                for tensor in np.flatnonzero(tasks.tensor_storage == storage).tolist():
                    for to in {at[reader] for reader in self.readers_of[tensor]}:
                        last = max(finish[reader] for reader in self.readers_of[tensor] if at[reader] == to)
                        if to == device:
                            ends.append(last)
                        else:
                            ends.append(came[tensor, to])
                            hold(to, sent[tensor, to], last, self.bytes[tensor])
                hold(device, start[task], max(ends), int(tasks.storage_bytes[storage]))
        return step, held.max(axis=1)

    # -- the timeline

    def cuts(self, home):
        """{(tensor, device)} of the copies that a placement makes of what groups send."""
        return {(t, home[one]) for t, sender, to in self.sent for one in to if home[one] != home[sender]}

    def analyse(self, timeline, home):
        """What ``timeline.analyse`` says, by name."""
        at, step = [home[group] for group in self.group], timeline.makespan_s
        start, finish = timeline.start_s.tolist(), timeline.finish_s.tolist()
        came = {(int(row[0]), int(row[2])): row[5] for row in timeline.transfers}
        real = [task for task in range(len(at)) if not self.source[task]]
        real.sort(key=lambda task: (start[task], task))
        lines = {device: [task for task in real if at[task] == device] for device in self.devices}
        before = {b: a for line in lines.values() for a, b in itertools.pairwise(line)}
        after = {a: b for b, a in before.items()}
        latest = {}
        for task in reversed(real):
            ends = [step, *(latest[after[task]] for _ in range(task in after))]
            for tensor in (one for one in range(len(self.producer)) if self.producer[one] == task):
                for reader in self.readers_of[tensor]:
                    away = self.mean_seconds(tensor) if at[reader] != at[task] else 0.0
                    ends.append(latest[reader] - away)
            latest[task] = min(ends) - (finish[task] - start[task])

        def arrival(tensor, device):
            producer = self.producer[tensor]
            return finish[producer] if at[producer] == device else came[tensor, device]

        ready = {task: max([0.0, *(arrival(one, at[task]) for one in self.reads_of[task])]) for task in real}
        groups, devices = len(self.groups), len(self.devices)
        slack, queued = np.full(groups, step), np.zeros(groups)
        for task in real:
            slack[self.group[task]] = min(slack[self.group[task]], latest[task] - start[task])
            queued[self.group[task]] += start[task] - ready[task]
        critical, waits = np.zeros(groups), np.zeros((groups, devices))
        task = int(np.argmax(finish))
        while not self.source[task]:
            group, eps = self.group[task], 1e-9 * step
            critical[group] += finish[task] - start[task]
            held_up = task in before and finish[before[task]] >= start[task] - eps
            if held_up and ready[task] < start[task] - eps:
                task = before[task]
                continue
            inputs = [(arrival(one, at[task]), -number, one) for number, one in enumerate(self.reads_of[task])]
            if not inputs or max(inputs)[0] <= 0:
                break
            when, _, tensor = max(inputs)
            producer = self.producer[tensor]
            other = self.group[producer]
            if at[producer] != at[task]:
                waits[group, at[producer]] += when - finish[producer]
                waits[other, at[task]] += when - finish[producer]
            task = producer
        may_take = []
        for tensor, sender, _ in self.sent:
            readers = [one for one in self.readers_of[tensor] if self.group[one] != sender and not self.source[one]]
            may_take.append(min([step, *(latest[one] - finish[self.producer[tensor]] for one in readers)]))
        cuts = self.cuts(home)
        return {
            "slack_s": slack, "queued_s": queued, "critical_s": critical, "waits_for_s": waits,
            "may_take_s": np.array(may_take),
            "cut_s": sum(self.mean_seconds(tensor) for tensor, _ in cuts if not self.is_source(tensor)),
            "cut_sources_s": sum(self.mean_seconds(tensor) for tensor, _ in cuts if self.is_source(tensor)),
            **self.rooms(timeline, at, real),
        }  # fmt: skip

    def rooms(self, timeline, at, real, buckets=256):
        groups, devices, width = len(self.groups), len(self.devices), max(timeline.makespan_s, 1e-30) / buckets
        busy, room = np.zeros((devices, buckets)), np.zeros((groups, devices))
        middle, work = np.zeros(groups), np.zeros(groups)
        edges = np.arange(buckets) * width
        for task in real:
            low, high = np.maximum(timeline.start_s[task], edges), np.minimum(timeline.finish_s[task], edges + width)
            busy[at[task]] += np.maximum(0.0, high - low) / width
        for task in real:
            group, seconds = self.group[task], timeline.finish_s[task] - timeline.start_s[task]
            when = (timeline.start_s[task] + timeline.finish_s[task]) / 2
            idle = np.maximum(0.0, 1 - busy[:, min(buckets - 1, int(when / width))])
            work[group] += seconds
            middle[group] += seconds * when / max(timeline.makespan_s, 1e-30)
            room[group] += seconds * idle
        some = work > 0
        middle[some] /= work[some]
        room[some] /= work[some][:, None]
        return {"room": room, "middle": middle}

    # -- moves

    def move_features(self, state, wanted):
        """Features of one move, from the state that ``analyse`` of the kernels gave."""
        home, step = state.home.tolist(), state.step_s
        moved = [group for group in self.groups if wanted[group] != home[group]]
        work = np.array([self.work[home[one], one] for one in moved])
        total, held = work.sum(), sum(self.held[one] for one in moved)

        def mean(values):
            return float((work * values).sum()) / max(total, 1e-30)

        goals = {wanted[one] for one in moved}
        load = [sum(self.work[d, one] for one in self.groups if wanted[one] == d) for d in self.devices]
        memory = {
            d: state.peak_bytes[d] + sum(self.held[g] * ((wanted[g] == d) - (home[g] == d)) for g in moved)
            for d in goals
        }
        shares = []
        for part in self.part:
            there, here, whole = 0.0, 0.0, 0.0
            for one, own in zip(moved, work):
                same = [other for other in self.groups if part[other] == part[one]]
                by = [sum(self.work[home[o], o] for o in same if home[o] == d) for d in self.devices]
                there, here, whole = there + own * by[wanted[one]], here + own * by[home[one]], whole + own * sum(by)
            shares += [there / max(whole, 1e-30), here / max(whole, 1e-30)]
        before, then = self.cuts(home), self.cuts(wanted)
        gone, come = before - then, then - before

        def seconds(cuts, of_sources):
            return sum(self.mean_seconds(tensor) for tensor, _ in cuts if self.is_source(tensor) == of_sources)

        joins = 0
        for one in moved:
            at = self.order[0].index(one)
            for beside in self.order[0][max(0, at - 1) : at] + self.order[0][at + 1 : at + 2]:
                if beside not in moved:
                    joins += (home[beside] == wanted[one]) - (home[beside] == home[one])
        late, worst, saved = self.lateness(state, moved, wanted)
        acts = seconds(come, False) - seconds(gone, False)
        number = sum(1 - 2 * (cut in gone) for cut in gone | come if not self.is_source(cut[0]))
        sources = seconds(come, True) - seconds(gone, True)
        waits = [(state.waits_for_s[one], wanted[one], home[one]) for one in moved]
        there = sum(self.work[wanted[one], one] for one in moved)
        fullest = max((memory[d] / self.capacity[d] for d in goals), default=0.0)
        utilisation = sum(self.work[home[one], one] for one in self.groups)
        most = max(state.load_s)
        peaks = state.peak_bytes / self.capacity
        room_to = mean(np.array([state.room[one, wanted[one]] for one in moved]))
        room_at = mean(np.array([state.room[one, home[one]] for one in moved]))
        critical = sum(state.critical_s[one] for one in moved)
        return np.array(
            [
                math.log2(len(moved) + 1) / 4, math.log10(total / step + 1e-6) / 3, total / step,
                mean(np.array([state.load_s[wanted[one]] for one in moved])) / step,
                mean(np.array([state.load_s[home[one]] for one in moved])) / step,
                max((load[d] for d in goals), default=0.0) / step, most / step, 10 * (max(load) - most) / step,
                root(acts / step), root(sources / step), root(number / 20),
                min(3.0, state.cut_s / step), min(3.0, state.cut_sources_s / step),
                critical / step, critical / max(total, 1e-30),
                math.sqrt(sum(row[to] for row, to, _ in waits) / step),
                math.sqrt(sum(row[d] for row, *both in waits for d in self.devices if d not in both) / step),
                room_to, room_at, math.sqrt(max(0.0, sum(state.queued_s[one] for one in moved)) / step),
                math.sqrt(late / step), math.sqrt(worst / step),
                math.sqrt(max(0.0, min([step, *(state.slack_s[one] for one in moved)])) / step),
                fullest, mean(np.array([peaks[home[one]] for one in moved])), float(fullest > 1), *shares,
                min(max(joins / 2, -2.0), 2.0), math.log2(len(self.devices)) / 3,
                utilisation / (len(self.devices) * step), math.log2((there + 1e-12) / (total + 1e-12)),
                mean(np.array([state.middle[one] for one in moved])), held / max(self.capacity),
                float(len(moved) == 1), float(len(goals) > 1), min(3.0, saved / 4), room_at - room_to,
            ]
        )  # fmt: skip

    def lateness(self, state, moved, wanted):
        """(seconds, worst, saved): transfers that come to be late, or cease to be, as groups move one by one."""
        home, late, worst, saved = state.home.tolist(), 0.0, 0.0, 0
        for group in moved:
            here, target = home[group], wanted[group]
            for number, (tensor, sender, readers) in enumerate(self.sent):
                seconds, may = self.mean_seconds(tensor), state.may_take_s[number]
                others = {home[one] for one in readers if one != group}
                over = 0.0
                if group in readers:
                    if not self.is_source(tensor) and here not in others and home[sender] != here:
                        saved += seconds >= may * (1 - 1e-6)
                    if target not in others and home[sender] == here:
                        over = seconds - may
                if group == sender and here in {home[one] for one in readers}:
                    over = seconds - may
                if over > 0:
                    late, worst = late + over, max(worst, over)
            home[group] = target
        return late, worst, saved


# -- the search


def guided_walk(problem, walk, seed, evaluations, temperature, start, pieces):
    """(numbers, counts, current, best, gains, placements simulated) of the walk, one evaluation after the other.

    ``walk``: a ``GuidedWalk``, for its tables; ``pieces``: (analyse of a placement, features of a state's moves, scores
    of features), which have twins of their own.
    """
    from graphopt_agents.placer.search import CRITICAL, DRAWN, EMPTY, KICK, MOST_GAINS, SHARPNESS, TRIED

    analyse, features_of, scores_of = pieces
    stream = Stream(seed)
    moves, critical = PlainMoves(problem), PlainMoves(problem)
    moves.tables = critical.tables = walk.moves
    current, cost, best, best_cost, best_valid, idle = start
    seen, known, gains, simulated, noted = {}, len(walk.seen) - 1, [], [], []
    empty, valid_ones = 0, 0

    def by_critical(state):
        total = np.cumsum(state.critical_s)
        critical.tables = walk.moves._replace(work=total / total[-1] if total[-1] > 0 else walk.moves.work)

    state = analyse(current)
    by_critical(state)
    while len(simulated) < evaluations and len(gains) < MOST_GAINS and empty < 2 * EMPTY:
        away = idle > KICK or empty >= EMPTY
        if away:
            drawn = [best]
            for _ in range(2 + stream.below(4)):
                drawn = [moves.propose(drawn[0], stream)]
            idle, order = 0, [0]
        else:
            drawn = []
            for _ in range(DRAWN):
                by = critical if stream.uniform() < CRITICAL else moves
                drawn.append(by.propose(current, stream))
            order = list(range(DRAWN))
            if walk.guided:
                liked = scores_of(features_of(state, np.array(drawn, np.int32)))
                noise = [-math.log(-math.log(max(stream.uniform(), 1e-300))) for _ in range(DRAWN)]
                order = np.argsort([-(SHARPNESS * float(a) + b) for a, b in zip(liked, noise)], kind="stable").tolist()
        tried = 0
        for row in order:
            key = 0
            for group, device in enumerate(drawn[row].tolist()):
                key ^= int(walk.keys[group, device])
            if not away and seen.get(key & known) == key:
                continue
            seen[key & known] = key
            costs, valid = problem.costs(problem.decision_of(drawn[row])[None])
            found = float(costs[0])
            simulated.append(drawn[row])
            tried, idle, valid_ones = tried + 1, idle + 1, valid_ones + bool(valid[0])
            if not away:
                noted.append((cost - found) / cost)
            if (not valid[0], found) < (not best_valid, best_cost):
                best, best_cost, best_valid, idle = drawn[row], found, bool(valid[0]), 0
                if best_valid:
                    gains.append((len(simulated) - 1, found))
            if away or found <= cost * (1.0 - temperature * math.log(1.0 - stream.uniform())):
                current, cost = drawn[row], found
                state = analyse(current)
                by_critical(state)
                break
            if tried == TRIED or len(simulated) == evaluations or len(gains) == MOST_GAINS:
                break
        empty = 0 if tried and not away else empty + 1
    return (cost, best_cost), (idle, best_valid, valid_ones), current, best, gains, simulated, noted
