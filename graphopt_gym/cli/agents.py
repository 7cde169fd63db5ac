"""``graphopt train`` and ``graphopt evaluate``: the learned agents.

They are known by their records alone, see :class:`graphopt_gym.agent.Agent`; a command loads the one that it needs.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt_gym.agent import Agent, agent_names, agents, find_agent
from graphopt_gym.cli import common
from graphopt_gym.cli.common import ClusterOption, DimsOption, GraphOption, JsonFlag
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.files import check_output, make_folder
from graphopt_gym.registration import env_ids, task_of

if TYPE_CHECKING:
    from graphopt_gym.problem import Solution

CHECKPOINTS = "graphopt_agents.core.checkpoints"  # how the checkpoints of all agents are read

TrainEnv = Annotated[
    str | None,
    typer.Option("--env", metavar="ENV", help=f"What it decides, where it can do several: {', '.join(env_ids())}."),
]
AgentSet = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A further argument of the agent or its environment; repeatable."),
]
GraphsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--graphs",
        "--graph",
        "-g",
        metavar="NAME|FILE|SPLIT",
        help="Graphs, with commas between or repeated; a split (graphopt list graphs) is its graphs. Not every agent "
        "takes several.",
    ),
]
ClustersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--clusters",
        "--cluster",
        "-c",
        metavar="NAME|FILE",
        help="Clusters, packages or devices: one for all graphs or one each. Left out: see graphopt list agents.",
    ),
]


def agent_rows() -> list[tuple[str, str, str, str, str]]:
    """(name, environments, summary, where graphs are if it is not said, source) of each agent."""
    return [
        (one.name, ", ".join(one.envs) or "any", one.summary, one.cluster or "the environment's own", one.source)
        for one in agents().values()
    ]


def train(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help=f"One of: {', '.join(agent_names())}.")],
    env: TrainEnv = None,
    graphs: GraphsOption = None,
    clusters: ClustersOption = None,
    dims: DimsOption = None,
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", metavar="FAMILY", help="In place of graphs: the papers' without one family."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", "--updates", help="How long: updates; of agents on any environment, decisions."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of all random choices; 0 if left out.")] = None,
    settings: AgentSet = None,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", metavar="CHECKPOINT", help="Fine-tune this policy.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of checkpoint, curve and solutions.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; arguments left out are the run's own.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train an agent; the best decisions on the way are its solutions. Ctrl-C loses nothing."""
    if resume and out is None:
        raise InputError("--resume needs --out, the folder of the run to go on with")
    if resume and start_from:
        raise InputError("--resume goes on with the run's own policy; leave out --start-from")
    spec = find_agent(agent)
    if start_from and not spec.transfers:
        raise InputError(f"{agent} takes no --start-from; agents that do: {_transferring()}")
    arguments = common.parse_settings(settings)
    if env is not None:
        if env not in (spec.envs or env_ids()):
            others = [one.name for one in agents().values() if env in (one.envs or env_ids())]
            raise (
                InputError(f"{agent} is for {', '.join(spec.envs)}; agents for {env}: {', '.join(others)}")
                if others
                else unknown_name("environment", env, env_ids())
            )
        arguments |= {} if spec.envs else {"env": env}
    if held_out is not None:
        from graphopt_gym.graphs.zoo import held_out as without

        if graphs is not None:
            raise InputError("--held-out names the graphs itself; leave out --graphs")
        graphs = list(without(held_out)[0])
    if dims:
        graphs = common.all_sized([one for text in graphs or [] for one in common.listed(text)], dims)
    for name, given in zip(spec.places, (graphs, clusters), strict=True):
        if given is not None:
            arguments[name] = _listed(name, given) if spec.transfers else _one(agent, name, given)
    arguments |= {name: value for name, value in ((spec.length, steps), ("seed", seed)) if value is not None}

    trainer, checkpoints = spec.load(), importlib.import_module(CHECKPOINTS)
    if out:
        make_folder(out)
    if resume:
        assert out is not None
        kept = checkpoints.load_checkpoint(checkpoints.run_folder(out, resume), agent).args
        if graphs is not None and spec.transfers:
            kept.pop(spec.places[1])  # they are of the run's own graphs
        arguments = kept | arguments
    elif start_from:
        arguments = trainer.start_arguments(start_from) | arguments
    args = trainer.args_from(arguments)
    total = getattr(args, spec.length)
    again = f"graphopt train {agent} --out {shlex.quote(str(out))} --resume"
    try:
        with _progress(spec, spec.envs[0] if spec.envs else args.env, total) as progress:
            extra = {"start_from": start_from} if start_from else {}
            result = trainer.train(args, out, resume=resume, progress=progress, **extra)
    except KeyboardInterrupt:
        if out is None or not (out / checkpoints.CHECKPOINT_NAME).exists():
            raise
        common.warn(f"interrupted; go on from its last checkpoint: {again}")
        raise typer.Exit(130) from None
    if result.done < total:
        what = f"go on: {again}" if out else "there is no --out to go on from"
        common.warn(f"stopped after {result.done:,} of {total:,} {spec.length}; {what}")
    solutions = result.solutions()
    _finish(solutions, out, as_json, several=spec.transfers or len(solutions) > 1)


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run's folder, or a shipped policy's name.")
    ],
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    dims: DimsOption = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Decisions (or episodes) to try, the likeliest first; else 1.")
    ] = None,
    updates: Annotated[
        int | None, typer.Option("--updates", help="Fine-tune on the graph for so many updates.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of samples and updates; 0 if left out.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the solution here, as JSON.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a trained policy decide by its likeliest actions, on its own problem or on another."""
    check_output(out, inputs=(checkpoint, graph, cluster))
    graph = common.sized(graph, dims)
    agent = importlib.import_module(CHECKPOINTS).load_checkpoint(checkpoint).agent
    if agent not in agents():
        raise InputError(f"{str(checkpoint)!r} is of agent {agent!r}; known here: {', '.join(agents())}")
    spec = find_agent(agent)
    options = {"samples": samples, "updates": updates, "seed": seed}
    options = {name: value for name, value in options.items() if value is not None}
    if options and not spec.transfers:
        raise InputError(f"{agent} takes no --{next(iter(options))}; agents that do: {_transferring()}")
    if samples is not None and updates:
        raise InputError("--samples is of a policy as it is, --updates fine-tunes it; give one of them")
    if updates:
        with _progress(spec, spec.envs[0], updates) as progress:
            solution = spec.load().evaluate(checkpoint, graph=graph, cluster=cluster, progress=progress, **options)
    else:
        solution = spec.load().evaluate(checkpoint, graph=graph, cluster=cluster, **options)
    if out:
        solution.save(out)
    _finish([solution], out, as_json)


def _transferring() -> str:
    return ", ".join(one.name for one in agents().values() if one.transfers)


def _listed(name: str, given: list[str]) -> list[str]:
    """The names in an option that may be repeated and may hold several, with commas between."""
    listed = [one for text in given for one in common.listed(text)]
    if not listed:
        raise InputError(f"{name} is an empty list; name at least one")
    return listed


def _one(agent: str, name: str, given: list[str]) -> str:
    listed = _listed(name, given)
    if len(listed) > 1:
        raise InputError(f"{agent} trains on one {name}, not {len(listed)}; agents for several: {_transferring()}")
    return listed[0]


@contextmanager
def _progress(spec: Agent, env_id: str, total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What train() calls with each row: a bar on a terminal, else a line each."""
    from graphopt_gym.units import format_cost

    task = task_of(env_id)
    unit = task.problem_class().unit
    with common.progress_bar(spec.name, total) as update:

        def progress(row: dict[str, Any]) -> None:
            mean, best = (format_cost(row[name], unit) for name in ("mean_cost", "best_cost"))
            text = f"mean {task.words.cost} {mean}, best {best} ({row['graph']} on {row['cluster']})"
            done = int(row.get(spec.length, row["update"]))
            if update:
                update(done, text)
            else:
                common.warn(f"{done:,} of {total:,} {spec.length}: {text}")

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
