"""``graphopt train`` and ``graphopt evaluate``: the learned agents.

They live in the package ``graphopt_agents``, which this one never imports by itself: the table below names its
modules, and a command loads the one that it needs.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import ClusterOption, GraphOption, JsonFlag
from graphopt_gym.errors import InputError, unknown_name

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True)
class Agent:
    """A learned agent: its module of ``graphopt_agents`` has Args, train() and evaluate().

    ``arguments``: what Args calls the command's graph, cluster and steps. ``row``: what progress calls the steps
    done, the mean and the best cost in seconds. ``fixed``: arguments that make the module this agent.
    """

    module: str
    summary: str
    source: str
    unit: str = "decisions"
    arguments: tuple[str, str, str] = ("graph", "cluster", "steps")
    row: tuple[str, str, str] = ("steps", "mean_cost", "best_cost")
    fixed: Mapping[str, Any] = field(default_factory=dict)


AGENTS = {
    "ppo": Agent(
        "train_sb3",
        "proximal policy optimisation, a group of ops a step, by Stable-Baselines3",
        "Schulman et al., arXiv:1707.06347, 2017",
        fixed={"algorithm": "ppo"},
    ),
    "maskable_ppo": Agent(
        "train_sb3",
        "the same with invalid devices masked out, by sb3-contrib",
        "Huang and Ontañón, FLAIRS 2022, arXiv:2006.14171",
        fixed={"algorithm": "maskable_ppo"},
    ),
    "gdp": Agent(
        "train_gdp",
        "a graph network that places the whole graph at once",
        "Zhou et al., GDP, arXiv:1910.01578, 2019",
        unit="updates",
        arguments=("graphs", "clusters", "updates"),
        row=("update", "mean_cost_s", "best_cost_s"),
    ),
}

AgentSet = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A further argument of the agent; repeatable.")
]


def agent_rows() -> list[tuple[str, str, str]]:
    """(name, summary, source) of each agent."""
    return [(name, agent.summary, agent.source) for name, agent in AGENTS.items()]


def load_agents(module: str) -> ModuleType:
    """A module of ``graphopt_agents``, and with it PyTorch and Stable-Baselines3."""
    return importlib.import_module(f"graphopt_agents.{module}")


def train(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help=f"One of: {', '.join(AGENTS)}.")],
    graph: GraphOption = "bert_base",
    cluster: ClusterOption = "v100x4",
    steps: Annotated[int | None, typer.Option("--steps", help="How long: decisions (gdp: updates).")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    settings: AgentSet = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of checkpoint and solution.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train an agent on a problem; the best placement on the way is its solution."""
    from graphopt_gym.report.units import format_cost

    if resume and out is None:
        raise InputError("--resume needs --out, the folder of the checkpoint to go on from")
    if agent not in AGENTS:
        raise unknown_name("agent", agent, AGENTS)
    spec = AGENTS[agent]
    module = load_agents(spec.module)
    common.check_folder(out)
    arguments = common.parse_settings(settings)
    known = [name.name for name in dataclasses.fields(module.Args) if name.name not in spec.fixed]
    for name in arguments:
        if name not in known:
            raise unknown_name(f"argument of {agent}", name, known)
    graph_name, cluster_name, steps_name = spec.arguments
    arguments |= {graph_name: graph, cluster_name: cluster, "seed": seed, **spec.fixed}
    if steps is not None:
        arguments[steps_name] = steps
    given = module.Args(**arguments)
    total = getattr(given, steps_name)
    done_name, mean_name, best_name = spec.row
    with common.progress_bar(agent, total) as update:

        def progress(row: dict[str, Any]) -> None:
            text = f"mean {format_cost(row[mean_name], 's')}, best {format_cost(row[best_name], 's')}"
            if update:
                update(int(row[done_name]), text)
            else:
                common.warn(f"{int(row[done_name]):,} of {total:,} {spec.unit}: {text}")

        result = module.train(given, out, resume=resume, progress=progress)
    _finish(result.solution(), out, as_json)


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or the folder that train wrote.")
    ],
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the solution here, as JSON.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a trained policy decide by its likeliest actions, on its own problem or on another."""
    common.check_file(out)
    agent = load_agents("checkpoints").load_checkpoint(checkpoint).agent
    if agent not in AGENTS:
        raise InputError(f"{str(checkpoint)!r} is of agent {agent!r}; known here: {', '.join(AGENTS)}")
    solution = load_agents(AGENTS[agent].module).evaluate(checkpoint, graph=graph, cluster=cluster)
    if out:
        solution.save(out)
    _finish(solution, out, as_json)


def _finish(solution: Any, path: Path | None, as_json: bool) -> None:
    if as_json:
        common.print_json(solution.row())
    else:
        common.print_solution(solution, path)
    if not solution.outcome.valid:
        raise typer.Exit(1)
