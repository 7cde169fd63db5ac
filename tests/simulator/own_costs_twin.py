"""A step with own costs, in plain Python from the words of their documentation: no code shared with the package.

Messages in place of tensors: what an op sends to the ops that read it, told apart by bytes and seconds.
"""

from __future__ import annotations

SOURCE, VIEW = 0, 1


class Step:
    """One step. ``own`` has plain dictionaries: ``time`` (op, device) -> s; ``op_bytes``, ``op_s``, ``static`` by op;
    ``edge_bytes`` and ``edge_s`` by (producer, reader)."""

    def __init__(self, graph, cluster, own, device_of):
        self.graph, self.cluster, self.own = graph, cluster, own
        ops = range(graph.num_ops)
        edges = [(int(a), int(b)) for a, b in zip(graph.edge_src, graph.edge_dst, strict=True)]
        size = [int(one) for one in graph.output_bytes]
        self.root, alias = {}, {}
        for op in ops:
            self.root[op] = alias[op] = op
            if graph.op_class[op] == VIEW:
                (viewed,) = [a for a, b in edges if b == op]
                self.root[op] = self.root[viewed]
                if size[op] >= size[alias[viewed]]:
                    alias[op] = alias[viewed]
        self.kernels = sorted(set(self.root.values()))
        self.home = {kernel: int(device_of[kernel]) for kernel in self.kernels}
        self.source = {kernel: graph.op_class[kernel] == SOURCE for kernel in self.kernels}
        self.size = {op: own["op_bytes"].get(op, size[op]) for op in ops}
        self.readers = {}  # message -> kernels
        for a, b in edges:
            if self.root[a] != self.root[b]:
                sent = own["edge_bytes"].get((a, b), self.size[alias[a]])
                seconds = own["edge_s"].get((a, b), own["op_s"].get(alias[a], -1.0))
                self.readers.setdefault((self.root[a], alias[a], sent, seconds), set()).add(self.root[b])
        read = {self.root[a] for a, b in edges if graph.op_class[b] != VIEW}
        leaving = {message[0] for message in self.readers}
        self.stored = [k for k in self.kernels if (k in leaving or k not in read) and graph.param_bytes[k] == 0]
        self.static = [0] * cluster.num_devices
        for op in ops:
            held = own["static"].get(op, int(graph.param_bytes[op]) + int(graph.state_bytes[op]))
            self.static[self.home[self.root[op]]] += held

    def takes(self, message, link):
        _, _, size, seconds = message
        return seconds if seconds >= 0 else link.latency_s + size / link.bytes_per_s

    def run(self):
        """(makespan, peak bytes of each device)"""
        begun, over, sent, queue = {}, set(), [], {}
        arrived = set()  # (message, device)
        waiting = {link: [] for link in range(len(self.cluster.links))}
        on_device, on_link = {}, {}
        peak, now, last = [0] * self.cluster.num_devices, 0.0, 0.0

        def finish(kernel):
            over.add(kernel)
            home = self.home[kernel]
            for message in sorted(one for one in self.readers if one[0] == kernel):
                arrived.add((message, home))
                for target in sorted({self.home[reader] for reader in self.readers[message]} - {home}):
                    waiting[int(self.cluster.link_of[home, target])].append([now, message, target, None])

        for kernel in self.kernels:
            if self.source[kernel]:
                begun[kernel] = 0.0
                finish(kernel)
        while True:
            for kernel in self.kernels:
                needs = [message for message, readers in self.readers.items() if kernel in readers]
                ready = all((message, self.home[kernel]) in arrived for message in needs)
                if ready and kernel not in begun and kernel not in queue:
                    queue[kernel] = now
            for device in range(self.cluster.num_devices):
                mine = [kernel for kernel in queue if self.home[kernel] == device and kernel not in begun]
                if mine and device not in on_device:
                    kernel = min(mine, key=lambda one: (queue[one], one))
                    begun[kernel] = now
                    on_device[device] = (now + self.own["time"][kernel, device], kernel)
            for link, entries in waiting.items():
                if entries and link not in on_link:
                    entry = min(entries, key=lambda one: (one[0], one[1], one[2]))
                    entries.remove(entry)
                    entry[3] = now + self.takes(entry[1], self.cluster.links[link])
                    on_link[link] = entry
                    sent.append(entry)
            held = self.held(begun, over, waiting, on_link, sent)
            peak = [max(pair) for pair in zip(peak, held, strict=True)]
            ends = [end for end, _ in on_device.values()] + [entry[3] for entry in on_link.values()]
            if not ends:
                assert len(over) == len(self.kernels)
                return last, peak
            now = min(ends)
            for device, (end, kernel) in list(on_device.items()):
                if end == now:
                    del on_device[device]
                    last = max(last, end)
                    finish(kernel)
            for link, entry in list(on_link.items()):
                if entry[3] == now:
                    del on_link[link]
                    arrived.add((entry[1], entry[2]))

    def held(self, begun, over, waiting, on_link, sent):
        held = list(self.static)
        under_way = [entry[1] for entries in waiting.values() for entry in entries]
        under_way += [entry[1] for entry in on_link.values()]
        for kernel in self.stored:
            if kernel in begun:
                mine = [message for message in self.readers if message[0] == kernel]
                here = {r for message in mine for r in self.readers[message] if self.home[r] == self.home[kernel]}
                if kernel not in over or here - over or any(message in under_way for message in mine):
                    held[self.home[kernel]] += self.size[kernel]
        carried = list(on_link.values())
        for entry in sent:
            readers = {reader for reader in self.readers[entry[1]] if self.home[reader] == entry[2]}
            if any(entry is one for one in carried) or readers - over:
                held[entry[2]] += entry[1][2]
        return held
