"""The simulator in plain Python, written from the semantics alone: no code shared with the engine or its compiler.

Slow and obvious. It works on ops and Python dicts; memory is found by asking, after every instant, what is alive.
"""

from __future__ import annotations

from collections import defaultdict

SOURCE, VIEW = 0, 1


class Kernels:
    """Ops folded into kernels: views with their producer, fused groups together."""

    def __init__(self, graph, fusion=None):
        n = graph.num_ops
        self.graph = graph
        inputs = {op: [int(p) for p in graph.predecessors(op)] for op in range(n)}
        view = [graph.op_class[op] == VIEW for op in range(n)]
        self.root = {}
        for op in range(n):
            self.root[op] = self.root[inputs[op][0]] if view[op] else op
        group = {}
        for op in range(n):
            root = self.root[op]
            fused = -1 if fusion is None or graph.op_class[root] == SOURCE else int(fusion[root])
            group[op] = ("group", fused) if fused >= 0 else ("op", root)
        lowest = {}
        for op in range(n):
            lowest.setdefault(group[op], op)
        self.kernel = {op: lowest[group[op]] for op in range(n)}  # a kernel is named by its lowest op
        self.kernels = sorted(set(self.kernel.values()))
        self.members = defaultdict(list)
        for op in range(n):
            if not view[op]:
                self.members[self.kernel[op]].append(op)
        # the tensor that reading an op's output reads: a view as large as its input is that input
        self.tensor = {}
        for op in range(n):
            self.tensor[op] = op
            if view[op] and graph.output_bytes[op] >= graph.output_bytes[self.tensor[inputs[op][0]]]:
                self.tensor[op] = self.tensor[inputs[op][0]]
        self.readers = defaultdict(set)  # tensor -> kernels, other than its own, that read it
        self.reads = defaultdict(set)
        read_at_all = set()
        for op in range(n):
            for source in inputs[op]:
                if not view[op]:
                    read_at_all.add(self.root[source])
                if self.kernel[source] != self.kernel[op]:
                    self.readers[self.tensor[source]].add(self.kernel[op])
                    self.reads[self.kernel[op]].add(self.tensor[source])
        # what takes memory: root outputs that leave their kernel, or that nobody reads
        leaving = {self.root[tensor] for tensor in self.readers}
        self.storages = {op for op in range(n) if self.root[op] == op and (op in leaving or op not in read_at_all)}


def captured_order(k):
    """Kernels in captured order: again and again the lowest one all of whose inputs are made by kernels before it."""
    order = []
    while len(order) < len(k.kernels):
        made = set(order)
        order.append(
            min(
                kernel
                for kernel in k.kernels
                if kernel not in made and all(k.kernel[tensor] in made for tensor in k.reads[kernel])
            )
        )
    return order


def run(graph, cluster, durations, placement, priority=None, fusion=None, memory=True, stream=False):
    """Simulate. ``durations[device][kernel]`` in seconds; ``placement`` and ``priority`` by op.

    ``stream``: each device runs its kernels strictly in captured order, and waits for the next one.

    Returns a dict: makespan, start and finish by kernel, transfers (a list of dicts), peak bytes by device
    (quadratic; left out where ``memory`` is False).
    """
    k = Kernels(graph, fusion)
    devices = range(cluster.num_devices)
    home = {kernel: int(placement[kernel]) for kernel in k.kernels}
    is_source = {kernel: graph.op_class[kernel] == SOURCE for kernel in k.kernels}
    made = defaultdict(list)
    for tensor in sorted(k.readers):
        made[k.kernel[tensor]].append(tensor)

    persistent = [0] * len(devices)
    for op in range(graph.num_ops):
        persistent[home[k.kernel[op]]] += int(graph.param_bytes[op]) + int(graph.state_bytes[op])

    start, finish = {}, {}
    there = set()  # (tensor, device)
    maybe = set(k.kernels)  # kernels that may have become ready
    ready_at = {}
    queue = {device: [] for device in devices}
    requests = defaultdict(list)  # link -> transfers not started
    running = {}  # device -> kernel
    carrying = {}  # link -> transfer
    transfers = []
    peak = [0] * len(devices)
    now = 0.0

    def take_in(kernel):
        for tensor in made[kernel]:
            arrive(tensor, home[kernel])
            for target in sorted({home[reader] for reader in k.readers[tensor]} - {home[kernel]}):
                transfer = {
                    "tensor": tensor,
                    "producer": kernel,
                    "from": home[kernel],
                    "to": target,
                    "request": now,
                }
                transfers.append(transfer)
                requests[int(cluster.link_of[home[kernel]][target])].append(transfer)

    def find_ready():
        for kernel in sorted(maybe):
            if kernel in ready_at or is_source[kernel]:
                continue
            if all((tensor, home[kernel]) in there for tensor in k.reads[kernel]):
                ready_at[kernel] = now
                queue[home[kernel]].append(kernel)
        maybe.clear()

    def arrive(tensor, device):
        there.add((tensor, device))
        maybe.update(reader for reader in k.readers[tensor] if home[reader] == device)

    def alive_bytes(device):
        total = persistent[device]
        for op in k.storages:
            kernel = k.kernel[op]
            if home[kernel] == device and kernel in start and graph.param_bytes[op] == 0:
                tensors = [tensor for tensor in k.readers if k.root[tensor] == op]
                held = not done(kernel)
                for tensor in tensors:
                    held |= any(home[reader] == device and not done(reader) for reader in k.readers[tensor])
                    held |= any(x["tensor"] == tensor and not x.get("over") for x in transfers)
                total += int(graph.output_bytes[op]) if held else 0
        for x in transfers:
            if x["to"] == device and "start" in x:
                readers = [reader for reader in k.readers[x["tensor"]] if home[reader] == device]
                if not (x.get("over") and all(done(reader) for reader in readers)):
                    total += int(graph.output_bytes[x["tensor"]])
        return total

    streams = {device: [] for device in devices}
    for kernel in captured_order(k) if stream else ():
        if not is_source[kernel]:
            streams[home[kernel]].append(kernel)
    finished = set()

    def done(kernel):
        return kernel in finished

    for kernel in k.kernels:
        if is_source[kernel]:
            start[kernel] = finish[kernel] = 0.0
            finished.add(kernel)
            take_in(kernel)
    find_ready()
    while True:
        for device in devices:
            if device not in running and queue[device]:
                rank = (
                    (lambda q: (-priority[q], ready_at[q], q)) if priority is not None else (lambda q: (ready_at[q], q))
                )
                kernel = streams[device][0] if stream else min(queue[device], key=rank)
                if kernel not in queue[device]:
                    continue
                queue[device].remove(kernel)
                streams[device] = streams[device][1:]
                running[device] = kernel
                start[kernel] = now
                finish[kernel] = now + durations[device][kernel]
        for link, waiting in requests.items():
            if link not in carrying and waiting:
                transfer = min(waiting, key=lambda x: (x["request"], x["producer"], x["tensor"], x["to"]))
                waiting.remove(transfer)
                size = float(graph.output_bytes[transfer["tensor"]])
                transfer["start"] = now
                transfer["finish"] = now + (cluster.links[link].latency_s + size / cluster.links[link].bytes_per_s)
                carrying[link] = transfer
        for device in devices if memory else ():
            peak[device] = max(peak[device], alive_bytes(device))
        if not running and not carrying:
            break
        now = min([finish[kernel] for kernel in running.values()] + [x["finish"] for x in carrying.values()])
        for device in [device for device, kernel in running.items() if finish[kernel] == now]:
            kernel = running.pop(device)
            finished.add(kernel)
            take_in(kernel)
        for link in [link for link, x in carrying.items() if x["finish"] == now]:
            transfer = carrying.pop(link)
            transfer["over"] = True
            arrive(transfer["tensor"], transfer["to"])
        find_ready()
    return {
        "makespan": max(finish.values()),
        "start": start,
        "finish": finish,
        "transfers": transfers,
        "peak": peak,
        "done": len(finished),
        "kernels": k,
    }


def fused_time(graph, kernels, kernel, compute_s, bytes_per_s, launch_s):
    """Seconds of a fused group on one device: see task_times; per-op lists of components are given."""
    members = kernels.members[kernel]
    launch = max(launch_s[op] for op in members)
    compute = memory = 0.0
    read_of = defaultdict(dict)  # storage -> what was read of it, by tensor
    for op in members:
        read = float(graph.bytes_read[op])
        for source in sorted(int(one) for one in graph.predecessors(op)):
            root = kernels.root[source]
            if kernels.kernel[root] == kernel:
                read -= float(graph.output_bytes[source])
                continue
            holds = float(graph.output_bytes[root])
            wants = min(float(graph.output_bytes[source]), holds)
            takes = 0.0
            if kernels.tensor[source] not in read_of[root]:
                takes = min(wants, holds - sum(read_of[root].values()))
                read_of[root][kernels.tensor[source]] = takes
            read -= wants - takes
        written = float(graph.bytes_written[op]) if op in kernels.storages else 0.0
        compute += compute_s[op]
        memory += (max(read, 0.0) + written) / bytes_per_s[op]
    return launch + max(compute, memory)
