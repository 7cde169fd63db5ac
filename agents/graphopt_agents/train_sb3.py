"""Train Stable-Baselines3's PPO, or sb3-contrib's MaskablePPO, to place a graph.

One file, top to bottom: the arguments, the environments, the agent, the training loop, the result. From a shell::

    python -m graphopt_agents.train_sb3 --algorithm ppo --graph bert_base --cluster v100x4 --out runs/bert
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

import graphopt_gym  # noqa: F401 - registers the environments
from graphopt_agents.core.checkpoints import (
    CHECKPOINT_NAME,
    load_checkpoint,
    load_weights,
    run_folder,
    same_arguments,
    save_checkpoint,
)
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.problem import Outcome, Solution

ALGORITHMS = ("ppo", "maskable_ppo")


@dataclass
class Args:
    """What a run depends on. Written beside the checkpoint, so that a run can be repeated."""

    algorithm: str = "ppo"  # or "maskable_ppo"
    graph: str = "bert_base"
    cluster: str = "v100x4"
    grouping: str = "colocation"
    start: str = "single"  # where undecided groups are: "single", "expert", "random"
    max_devices: int | None = None  # more than the cluster has: for policies that are to meet larger clusters
    steps: int = 200_000  # decisions in all; each is at most one simulation
    seed: int = 0
    num_envs: int = 16
    episodes_per_rollout: int = 1  # of each environment, between two updates
    epochs: int = 6
    minibatches: int = 4  # at most, of equal size
    learning_rate: float = 3e-3  # falls linearly to 0
    gamma: float = 1.0  # the rewards sum to what is wanted: no discount
    gae_lambda: float = 0.97
    clip_range: float = 0.2
    entropy: float = 0.01
    width: int = 64  # of the two hidden layers of policy and value
    checkpoint_every: int = 10  # updates


@dataclass
class TrainResult:
    """What came out of a run.

    ``history`` has a row an update: decisions so far, seconds, mean and share of valid final placements of the last
    rollout, cost of the best placement so far.
    """

    args: Args
    problem: PlacementProblem
    decision: np.ndarray  # int32 [G] the best final placement of any episode
    outcome: Outcome  # of that decision, from problem.evaluate
    policy_decision: np.ndarray  # int32 [G] what the trained policy does when it takes its likeliest actions
    policy_outcome: Outcome
    steps: int
    wall_s: float
    history: list[dict[str, float]]

    def solution(self) -> Solution:
        """The best placement in the form that ``solve`` returns and ``validate`` checks."""
        history = tuple((int(row["steps"]), row["wall_s"], row["best_cost"]) for row in self.history)
        return Solution(
            problem=self.problem,
            method=self.args.algorithm,
            seed=self.args.seed,
            decision=self.decision,
            outcome=self.outcome,
            evaluations=self.steps,
            wall_s=self.wall_s,
            history=history,
        )


def train(
    args: Args,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TrainResult:
    """Train a policy, and keep the best placement on the way. Ctrl-C ends the training and keeps what there is.

    Args:
        args: see :class:`Args`.
        out: folder for the checkpoint and the best placement, made where it is missing; None: nothing is written.
        resume: go on from the checkpoint in ``out``, up to ``args.steps``.
        progress: called with each new row of the history.

    Raises:
        InputError: bad arguments, a folder that cannot be written, a checkpoint that is damaged or of another run.
    """
    check(args)
    folder = None if out is None else run_folder(out, resume)
    envs = make_envs(args)
    model = make_model(args, envs)
    problem = PlacementProblem(args.graph, args.cluster, grouping=args.grouping)
    track = Track()
    history: list[dict[str, float]] = []
    if folder is not None and resume:
        history, track.best = restore(folder, args, model)
    wall_before, started = history[-1]["wall_s"] if history else 0.0, time.perf_counter()

    rollout = model.n_steps * args.num_envs
    try:
        while model.num_timesteps < args.steps:
            share_left = 1 - model.num_timesteps / args.steps
            model.lr_schedule = lambda _, left=share_left: args.learning_rate * left
            track.final.clear()
            model.learn(rollout, callback=track, reset_num_timesteps=False)
            costs, valid = zip(*track.final)
            row = {
                "steps": float(model.num_timesteps),
                "wall_s": wall_before + time.perf_counter() - started,
                "mean_cost": float(np.mean(costs)),
                "valid_share": float(np.mean(valid)),
                "best_cost": track.best.cost,
            }
            history.append(row)
            if progress:
                progress(row)
            if folder is not None and (len(history) % args.checkpoint_every == 0 or row["steps"] >= args.steps):
                keep(folder, args, model, history, track.best)
    except KeyboardInterrupt:
        if folder is not None:
            keep(folder, args, model, history, track.best)

    policy_decision = act_greedily(model, args, problem)
    policy_outcome = problem.evaluate(policy_decision)
    policy_cost, policy_valid = problem.costs(policy_decision[None])
    track.best.offer(float(policy_cost[0]), bool(policy_valid[0]), policy_decision)
    assert track.best.placement is not None
    decision = track.best.placement[: problem.num_groups]
    result = TrainResult(
        args=args,
        problem=problem,
        decision=decision,
        outcome=problem.evaluate(decision),
        policy_decision=policy_decision,
        policy_outcome=policy_outcome,
        steps=model.num_timesteps,
        wall_s=wall_before + time.perf_counter() - started,
        history=history,
    )
    if folder is not None:
        result.solution().save(folder / "solution.json")
    envs.close()
    return result


def evaluate(checkpoint: str | os.PathLike[str], graph: str | None = None, cluster: str | None = None) -> Solution:
    """What a trained policy places when it takes its likeliest actions.

    Args:
        checkpoint: the file, or the folder of a run.
        graph, cluster: others than it was trained on; the cluster may have at most ``max_devices`` devices.

    Raises:
        InputError: no checkpoint of this script, or a cluster that is too large.
    """
    loaded = load_checkpoint(checkpoint)
    if loaded.agent not in ALGORITHMS:
        raise InputError(f"{str(checkpoint)!r} is of agent {loaded.agent!r}; this evaluates {' and '.join(ALGORITHMS)}")
    args = Args(**loaded.args)
    envs = make_envs(args)
    model = make_model(args, envs)
    load_weights(model.policy, loaded.state["policy"], str(checkpoint))
    args.max_devices = envs.get_attr("episodes")[0].roster.max_devices
    problem = PlacementProblem(graph or args.graph, cluster or args.cluster, grouping=args.grouping)
    started = time.perf_counter()
    decision = act_greedily(model, args, problem)
    wall_s = time.perf_counter() - started
    return Solution(problem, args.algorithm, args.seed, decision, problem.evaluate(decision), 1, wall_s)


def check(args: Args) -> None:
    """Refuse what cannot be trained, with one line."""
    if args.algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", args.algorithm, ALGORITHMS)
    for name in ("steps", "num_envs", "episodes_per_rollout", "epochs", "minibatches", "width", "checkpoint_every"):
        value = getattr(args, name)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; give a whole number, at least 1")


def make_envs(args: Args) -> Any:
    """The native vector environment as SB3 takes it, its rewards in units of sqrt(step time) on one device."""
    from stable_baselines3.common.vec_env import VecEnvWrapper

    from graphopt_gym.wrappers import SB3VecEnv

    envs: Any = gym.make_vec(
        "Placement-v0",
        num_envs=args.num_envs,
        vectorization_mode="vector_entry_point",
        graph=args.graph,
        cluster=args.cluster,
        grouping=args.grouping,
        start=args.start,
        max_devices=args.max_devices,
        autoreset_mode="SameStep",
    )
    problem = envs.episodes.instances[0].problem
    # a constant, so that PPO sees returns of order 1 whatever the graph
    scale = np.sqrt(problem.simulator.device_durations_s().sum(axis=1).min()) or 1.0

    class ScaledRewards(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            observations, rewards, done, infos = self.venv.step_wait()
            return observations, rewards / scale, done, infos

    return ScaledRewards(SB3VecEnv(envs))


def make_model(args: Args, envs: Any) -> Any:
    """PPO or MaskablePPO with the plain ``MultiInputPolicy``."""
    if args.algorithm == "ppo":
        from stable_baselines3 import PPO as Algorithm
    else:
        from sb3_contrib import MaskablePPO as Algorithm  # type: ignore[assignment]

    groups = envs.get_attr("episodes")[0].roster.max_groups
    rollout = groups * args.episodes_per_rollout * args.num_envs
    return Algorithm(
        "MultiInputPolicy",
        envs,
        learning_rate=args.learning_rate,
        n_steps=groups * args.episodes_per_rollout,  # whole episodes: no value has to be guessed at a cut
        batch_size=rollout // math.gcd(rollout, args.minibatches),
        n_epochs=args.epochs,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
        clip_range=args.clip_range,
        ent_coef=args.entropy,
        policy_kwargs={"net_arch": [args.width, args.width]},
        seed=args.seed,
        device="cpu",
    )


def act_greedily(model: Any, args: Args, problem: PlacementProblem) -> np.ndarray:
    """int32 [G]: the placement when the policy takes its likeliest action at each step."""
    env = gym.make(
        "Placement-v0",
        graph=problem.graph,
        cluster=problem.cluster,
        grouping=args.grouping,
        start=args.start,
        max_devices=args.max_devices,
    )
    observation, _ = env.reset(seed=args.seed)
    done = False
    while not done:
        masks = {"action_masks": env.unwrapped.action_masks()} if args.algorithm == "maskable_ppo" else {}  # type: ignore[attr-defined]
        action, _ = model.predict(observation, deterministic=True, **masks)
        observation, _, done, _, info = env.step(action)
    return info["decision"][: problem.num_groups]


@dataclass
class Best:
    """The best placement so far; a valid one beats any that is not."""

    cost: float = float("inf")
    valid: bool = False
    placement: np.ndarray | None = None

    def offer(self, cost: float, valid: bool, placement: np.ndarray) -> None:
        if (valid, -cost) > (self.valid, -self.cost):
            self.cost, self.valid, self.placement = cost, valid, placement.copy()


class Track(BaseCallback):
    """Keeps the final placements of a rollout's episodes, (cost, valid), and the best of all."""

    def __init__(self) -> None:
        super().__init__()
        self.final: list[tuple[float, bool]] = []
        self.best = Best()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "decision" in info:
                self.final.append((info["cost"], info["valid"]))
                self.best.offer(info["cost"], info["valid"], info["decision"])
        return True


def keep(folder: Path, args: Args, model: Any, history: list[dict[str, float]], best: Best) -> None:
    """Write the checkpoint of a run."""
    state = {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "steps": model.num_timesteps,
        "history": history,
        "best_cost": best.cost,
        "best_valid": best.valid,
        "best_placement": None if best.placement is None else best.placement.tolist(),
    }
    save_checkpoint(folder / CHECKPOINT_NAME, args.algorithm, dataclasses.asdict(args), state)


def restore(folder: Path, args: Args, model: Any) -> tuple[list[dict[str, float]], Best]:
    """Put the checkpoint of a run back into a model made with the same arguments; ``steps`` alone may differ."""
    where = str(folder)
    loaded = load_checkpoint(folder, args.algorithm)
    same_arguments(dataclasses.asdict(args), loaded.args, where, free=("steps",))
    try:
        state = loaded.state
        load_weights(model.policy, state["policy"], where)
        model.policy.optimizer.load_state_dict(state["optimizer"])
        model.num_timesteps = int(state["steps"])
        placement = state["best_placement"]
        placement = None if placement is None else np.array(placement, np.int32)
        return list(state["history"]), Best(state["best_cost"], state["best_valid"], placement)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the checkpoint in {where!r} is damaged ({error}); train into another folder") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for entry in dataclasses.fields(Args):
        kind = {"int": int, "float": float, "int | None": int}.get(str(entry.type), str)
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, default=entry.default)
    parser.add_argument("--out", default=None)
    parser.add_argument("--resume", action="store_true")
    given = vars(parser.parse_args())
    out, resume = given.pop("out"), given.pop("resume")

    def show(row: dict[str, float]) -> None:
        print(
            f"{int(row['steps']):>9} decisions  {row['wall_s']:>6.1f} s  mean {row['mean_cost']:.4f} s  "
            f"valid {row['valid_share']:.0%}  best {row['best_cost']:.4f} s",
            flush=True,
        )

    result = train(Args(**given), out, resume=resume, progress=show)
    print(f"best placement: {result.outcome.cost:.4f} s; the policy's likeliest: {result.policy_outcome.cost:.4f} s")


if __name__ == "__main__":
    main()
