"""What a forward pass and a training step of GDP's and GO's networks take: seconds and memory, by the number of ops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

SIZES = (1_000, 5_000, 20_000, 80_000)
DEVICES, SAMPLES = 8, 16
AGENTS = ("gdp", "go")


def agent_report(sizes: tuple[int, ...] = SIZES, say: Callable[[str], object] = str) -> dict[str, Any]:
    """The table behind ``graphopt bench agent``.

    Each row is of a process of its own, so that its peak memory is its own: a random layered DAG, every op a decision
    (of GO three), on 8 devices, with the network's standard sizes. A training step is one pass of PPO forward and
    backward over a batch of 16 decisions, and Adam.
    """
    rows = []
    for agent in AGENTS:
        for size in sizes:
            say(f"{agent}: {size:,} ops")
            rows.append(_measured_apart(agent, size))
    notes = [
        "forward: the network on the whole graph; draw: 16 decisions from its policy; step: PPO forward and backward "
        "over them, and Adam; each the least of two",
        "peak_mib: most memory of the whole process; base_mib: before the network ran (Python, torch, the graph)",
        f"threads: {rows[0]['threads']}",
    ]
    for agent in AGENTS:
        first, *_, last = [row for row in rows if row["agent"] == agent]
        notes.append(
            f"{agent}: from {first['ops']:,} to {last['ops']:,} ops ({last['ops'] / first['ops']:.0f} times) a step "
            f"takes {last['step_s'] / first['step_s']:.0f} times as long"
        )
    columns = [name for name in rows[0] if name != "threads"]
    return {"title": "networks", "columns": columns, "rows": rows, "notes": notes}


def _measured_apart(agent: str, num_ops: int) -> dict[str, Any]:
    code = f"from graphopt_agents.benchmark import measure; measure({agent!r}, {num_ops})"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{agent} at {num_ops} ops failed: {done.stderr.strip().splitlines()[-1:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(agent: str, num_ops: int) -> None:
    """Print one row as JSON; run in a process of its own."""
    import resource
    import time

    import torch

    from graphopt_agents.core import one_shot
    from graphopt_gym.agent import find_agent
    from graphopt_gym.graphs.generators import layered_dag
    from graphopt_gym.hardware.cluster import load_cluster

    def peak_mib() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def least_s(function: Callable[[], Any]) -> float:
        times = []
        for _ in range(2):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
        return min(times)

    # views and sources join their neighbours or cost nothing; here every op is a decision
    graph = layered_dag(num_ops, width=8, seed=0, views=0.0, sources=0.0)
    trainer_class = find_agent(agent).load()
    given = {"grouping": "op"} if agent == "gdp" else {}
    args = trainer_class.args_from({"graphs": (graph.name,), "clusters": ("v100x8",), "samples": SAMPLES, **given})
    task = trainer_class.make_task(graph, load_cluster("v100x8"), args)
    trainer = trainer_class(args, [task])
    base = peak_mib()

    def forward() -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = trainer.network(task.graph)
            return logits

    forward_s = least_s(forward)
    forward_mib = peak_mib()
    logits = forward()
    draw_s = least_s(lambda: trainer.draw(task, logits, SAMPLES))
    decisions, _ = trainer.draw(task, logits, SAMPLES)
    advantages = torch.linspace(-1, 1, SAMPLES)
    choices = one_shot.EveryEntry(torch.from_numpy(decisions).long().t().contiguous())
    before, _ = choices.scored(logits)

    def step() -> None:
        trainer.optimizer.zero_grad()
        loss, _ = one_shot.ppo_loss(trainer.network(task.graph), choices, advantages, before, 0.2, 0.01)
        loss.backward()
        trainer.optimizer.step()

    step_s = least_s(step)
    row = {
        "agent": agent,
        "ops": num_ops,
        "entries": decisions.shape[1],
        "edges": int(task.graph.edge_index.shape[1]),
        "devices": DEVICES,
        "forward_s": forward_s,
        "draw_s": draw_s,
        "step_s": step_s,
        "base_mib": base,
        "forward_peak_mib": forward_mib,
        "peak_mib": peak_mib(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(row))
