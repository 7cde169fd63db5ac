"""``graphopt train`` and ``graphopt evaluate``: the learned agents.

They live in the package ``graphopt_agents``, which this one never imports by itself: the table below names its
modules, and a command loads the one that it needs.
"""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import ClusterOption, GraphOption, JsonFlag
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.files import check_output, make_folder

if TYPE_CHECKING:
    from types import ModuleType

    from graphopt_gym.problem import Solution


@dataclass(frozen=True)
class Agent:
    """A learned agent: its module of ``graphopt_agents`` has Args, train() and evaluate().

    ``arguments``: what Args calls the command's graphs, clusters and steps. ``row``: what progress calls the steps
    done, the mean and the best cost in seconds. ``fixed``: arguments that make the module this agent. ``transfers``:
    it trains on several graphs and goes on to others: train() takes ``start_from``, evaluate() ``samples``,
    ``updates``, ``seed`` and ``progress``, and the module's Trainer has start_arguments().
    """

    module: str
    summary: str
    source: str
    unit: str = "decisions"
    arguments: tuple[str, str, str] = ("graph", "cluster", "steps")
    row: tuple[str, str, str] = ("steps", "mean_cost", "best_cost")
    fixed: Mapping[str, Any] = field(default_factory=dict)
    transfers: bool = False


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
        "gdp",
        "a graph network that places the whole graph at once",
        "Zhou et al., GDP, arXiv:1910.01578, 2019",
        unit="updates",
        arguments=("graphs", "clusters", "updates"),
        row=("update", "mean_cost", "best_cost"),
        transfers=True,
    ),
    "chiplet": Agent(
        "chiplet",
        "a graph network that proposes partitions over the chips of a package, through the corrector",
        "Xie et al., MLSys 2022",
        unit="updates",
        arguments=("graphs", "clusters", "updates"),
        row=("update", "mean_cost", "best_cost"),
        transfers=True,
    ),
    "rewrite": Agent(
        "rewrite",
        "a graph network that says which rule rewrites a program where, one rewrite after the other",
        "after He et al., X-RLflow, MLSys 2023",
        unit="updates",
        arguments=("graphs", "clusters", "updates"),
        row=("update", "mean_cost", "best_cost"),
        transfers=True,
    ),
}

AgentSet = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A further argument of the agent; repeatable.")
]
GraphsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--graphs",
        "--graph",
        "-g",
        metavar="NAME|FILE|SPLIT",
        help="Graphs (rewrite: programs), with commas between or repeated; a split (such as train, papers, "
        "inference_train; rewrite: small, network) is its graphs. Only gdp, chiplet and rewrite take several.",
    ),
]
ClustersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--clusters",
        "--cluster",
        "-c",
        metavar="NAME|FILE",
        help="Clusters, packages or devices: one for all graphs or one each. Left out: v100x4; gdp: the paper's of a "
        "paper's graph; chiplet: mcm36; rewrite: t4.",
    ),
]


def agent_rows() -> list[tuple[str, str, str]]:
    """(name, summary, source) of each agent."""
    return [(name, agent.summary, agent.source) for name, agent in AGENTS.items()]


def load_agents(module: str) -> ModuleType:
    """A module of ``graphopt_agents``, and with it PyTorch and Stable-Baselines3."""
    return importlib.import_module(f"graphopt_agents.{module}")


def train(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help=f"One of: {', '.join(AGENTS)}.")],
    graphs: GraphsOption = None,
    clusters: ClustersOption = None,
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", metavar="FAMILY", help="In place of graphs: the papers' without one family."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--updates", help="How long: decisions (gdp, chiplet, rewrite: updates).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of all random choices; 0 if left out.")] = None,
    settings: AgentSet = None,
    start_from: Annotated[
        Path | None,
        typer.Option("--start-from", metavar="CHECKPOINT", help="Fine-tune this policy (gdp, chiplet, rewrite)."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of checkpoint, curve and solutions.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; arguments left out are the run's own.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train an agent; the best placements on the way are its solutions. Ctrl-C loses nothing."""
    if resume and out is None:
        raise InputError("--resume needs --out, the folder of the run to go on with")
    if resume and start_from:
        raise InputError("--resume goes on with the run's own policy; leave out --start-from")
    if agent not in AGENTS:
        raise unknown_name("agent", agent, AGENTS)
    spec = AGENTS[agent]
    if start_from and not spec.transfers:
        raise InputError(f"{agent} takes no --start-from; agents that do: {_transferring()}")
    graphs_name, clusters_name, steps_name = spec.arguments
    arguments = common.parse_settings(settings)
    if held_out is not None:
        from graphopt_gym.graphs.zoo import held_out as without

        if graphs is not None:
            raise InputError("--held-out names the graphs itself; leave out --graphs")
        graphs = list(without(held_out)[0])
    for name, given in ((graphs_name, graphs), (clusters_name, clusters)):
        if given is not None:
            arguments[name] = _listed(name, given) if spec.transfers else _one(agent, name, given)
    arguments |= {name: value for name, value in ((steps_name, steps), ("seed", seed)) if value is not None}

    module, checkpoints = load_agents(spec.module), load_agents("core.checkpoints")
    if out:
        make_folder(out)
    if resume:
        assert out is not None
        kept = checkpoints.load_checkpoint(checkpoints.run_folder(out, resume), agent).args
        if graphs is not None and spec.transfers:
            kept.pop(clusters_name)  # they are of the run's own graphs
        arguments = kept | arguments
    elif start_from:
        arguments = module.Trainer.start_arguments(start_from) | arguments
    known = [name.name for name in dataclasses.fields(module.Args)]
    for name in arguments:
        if name not in known or (name in spec.fixed and not resume):
            raise unknown_name(f"argument of {agent}", name, set(known) - set(spec.fixed))
    args = module.Args(**arguments | dict(spec.fixed))
    total = getattr(args, steps_name)
    again = f"graphopt train {agent} --out {shlex.quote(str(out))} --resume"
    try:
        with _progress(agent, spec, total) as progress:
            extra = {"start_from": start_from} if start_from else {}
            result = module.train(args, out, resume=resume, progress=progress, **extra)
    except KeyboardInterrupt:
        if out is None or not (out / checkpoints.CHECKPOINT_NAME).exists():
            raise
        common.warn(f"interrupted; go on from its last checkpoint: {again}")
        raise typer.Exit(130) from None
    done = result.done if spec.transfers else result.steps
    if done < total:
        what = f"go on: {again}" if out else "there is no --out to go on from"
        common.warn(f"stopped after {done:,} of {total:,} {spec.unit}; {what}")
    _finish(result.solutions() if spec.transfers else [result.solution()], out, as_json, several=spec.transfers)


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run's folder, or a shipped policy's name.")
    ],
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", help="Decisions to try, the likeliest first; 1 if left out (gdp, chiplet; rewrite: episodes)."
        ),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option("--updates", help="Fine-tune on the graph for so many updates (gdp, chiplet, rewrite)."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of samples and updates; 0 if left out (gdp, chiplet, rewrite).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the solution here, as JSON.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a trained policy decide by its likeliest actions, on its own problem or on another."""
    check_output(out)
    agent = load_agents("core.checkpoints").load_checkpoint(checkpoint).agent
    if agent not in AGENTS:
        raise InputError(f"{str(checkpoint)!r} is of agent {agent!r}; known here: {', '.join(AGENTS)}")
    spec = AGENTS[agent]
    options = {"samples": samples, "updates": updates, "seed": seed}
    options = {name: value for name, value in options.items() if value is not None}
    if options and not spec.transfers:
        raise InputError(f"{agent} takes no --{next(iter(options))}; agents that do: {_transferring()}")
    if samples is not None and updates:
        raise InputError("--samples is of a policy as it is, --updates fine-tunes it; give one of them")
    with _progress(agent, spec, updates or 0) as progress:
        extra = options | ({"progress": progress} if updates else {})
        solution = load_agents(spec.module).evaluate(checkpoint, graph=graph, cluster=cluster, **extra)
    if out:
        solution.save(out)
    _finish([solution], out, as_json)


def _transferring() -> str:
    return ", ".join(name for name, agent in AGENTS.items() if agent.transfers)


def _listed(name: str, given: list[str]) -> list[str]:
    """The names in an option that may be repeated and may hold several, with commas between."""
    listed = [one.strip() for text in given for one in text.split(",") if one.strip()]
    if not listed:
        raise InputError(f"{name} is an empty list; name at least one")
    return listed


def _one(agent: str, name: str, given: list[str]) -> str:
    listed = _listed(name, given)
    if len(listed) > 1:
        raise InputError(f"{agent} trains on one {name}, not {len(listed)}; agents for several: {_transferring()}")
    return listed[0]


@contextmanager
def _progress(agent: str, spec: Agent, total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What train() calls with each row: a bar on a terminal, else a line each."""
    from graphopt_gym.units import format_cost

    done_name, mean_name, best_name = spec.row
    with common.progress_bar(agent, total) as update:

        def progress(row: dict[str, Any]) -> None:
            text = f"mean {format_cost(row[mean_name], 's')}, best {format_cost(row[best_name], 's')}"
            if "graph" in row:
                text += f" ({row['graph']} on {row['cluster']})"
            if update:
                update(int(row[done_name]), text)
            else:
                common.warn(f"{int(row[done_name]):,} of {total:,} {spec.unit}: {text}")

        yield progress


def _finish(solutions: list[Solution], path: Path | None, as_json: bool, several: bool = False) -> None:
    if as_json:
        rows = [solution.row() for solution in solutions]
        common.print_json({"rows": rows} if several else rows[0])
    elif len(solutions) == 1:
        common.print_solution(solutions[0], path)
    else:
        from graphopt_gym.report.tables import solution_table

        common.show(solution_table(solutions), as_json=False)
        if path:
            text = f"solutions: {path}/solution_*.json   report: graphopt report FILE"
            common.say(text)
    if not all(solution.outcome.valid for solution in solutions):
        raise typer.Exit(1)
