"""Let a trained policy decide: what ``graphopt evaluate`` runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import graphopt_gym as gg
from graphopt_agents import train_sb3
from graphopt_gym.errors import InputError
from graphopt_gym.problem import Solution


def evaluate(checkpoint: str | os.PathLike[str], graph: str | None = None, cluster: str | None = None) -> Solution:
    """The placement that a policy of :mod:`train_sb3` chooses by its likeliest actions.

    Args:
        checkpoint: the folder that training wrote.
        graph: another graph than it was trained on.
        cluster: another cluster, with as many devices (or at most the ``max_devices`` it was trained with).

    Raises:
        InputError: no checkpoint there, a damaged one, or a problem whose observations do not fit the policy.
    """
    folder = Path(checkpoint)
    try:
        args = train_sb3.Args(**json.loads((folder / "run.json").read_text(encoding="utf-8"))["args"])
    except OSError as error:
        raise InputError(f"no checkpoint in {str(folder)!r}: run.json: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"the checkpoint in {str(folder)!r} is damaged: run.json does not say its arguments") from None
    train_sb3.check(args)
    envs = train_sb3.make_envs(args)
    try:
        model = train_sb3.make_model(args, envs)
    finally:
        envs.close()
    train_sb3.load_checkpoint(folder, args, model)
    problem = gg.make_problem(
        "Placement-v0", graph=graph or args.graph, cluster=cluster or args.cluster, grouping=args.grouping
    )
    most = args.max_devices or gg.load_cluster(args.cluster).num_devices
    fits = problem.cluster.num_devices <= most if args.max_devices else problem.cluster.num_devices == most
    if not fits:
        raise InputError(
            f"the policy decides over {most} devices and {problem.cluster.name!r} has {problem.cluster.num_devices}; "
            "give a cluster of that size, or train with a larger max_devices"
        )
    started = time.perf_counter()
    decision = train_sb3.act_greedily(model, args, problem)  # type: ignore[arg-type]
    return Solution(
        problem=problem,
        method=args.algorithm,
        seed=args.seed,
        decision=decision,
        outcome=problem.evaluate(decision),
        evaluations=1,
        wall_s=time.perf_counter() - started,
    )
