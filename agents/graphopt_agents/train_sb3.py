"""Train Stable-Baselines3's PPO, or sb3-contrib's MaskablePPO, to place a graph.

One file, top to bottom: the arguments, the environments, the agent, the training loop, the result. From a shell::

    python -m graphopt_agents.train_sb3 --algorithm ppo --graph bert_base --cluster v100x4 --out runs/bert

Checkpoints are NumPy archives and JSON, never pickles.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import graphopt_gym  # noqa: F401 - registers the environments
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.problem import Outcome, Solution, write_text

ALGORITHMS = ("ppo", "maskable_ppo")
CHECKPOINT_FORMAT, CHECKPOINT_VERSION = "graphopt-sb3", 1


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
    num_envs: int = 32
    episodes_per_rollout: int = 1  # of each environment, between two updates
    epochs: int = 6
    minibatches: int = 8
    learning_rate: float = 1e-3  # falls linearly to 0
    gamma: float = 1.0  # the rewards sum to what is wanted: no discount
    gae_lambda: float = 0.97
    clip_range: float = 0.2
    entropy: float = 0.01
    width: int = 64  # of the two hidden layers of policy and value


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
            self.problem,
            self.args.algorithm,
            self.args.seed,
            self.decision,
            self.outcome,
            self.steps,
            self.wall_s,
            history,
        )


def train(
    args: Args,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TrainResult:
    """Train a policy, and keep the best placement on the way.

    Args:
        args: see :class:`Args`.
        out: folder for checkpoint, history and solution, made where it is missing; None: nothing is written.
        resume: go on from the checkpoint in ``out`` where there is one, up to ``args.steps``.
        progress: called with each new row of the history.

    Raises:
        InputError: bad arguments, a folder that cannot be written, a checkpoint of other arguments.
    """
    from stable_baselines3.common.callbacks import BaseCallback

    check(args)
    folder = None if out is None else _folder(out)
    envs = make_envs(args)
    model = make_model(args, envs)
    problem = envs.get_attr("episodes")[0].instances[0].problem

    best = Best()
    history: list[dict[str, float]] = []
    wall_before = 0.0
    if resume and folder is not None and (folder / "checkpoint.npz").exists():
        history, best = load_checkpoint(folder, args, model)
        wall_before = history[-1]["wall_s"] if history else 0.0
    started = time.perf_counter()
    recent: deque[tuple[float, bool]] = deque(maxlen=args.num_envs * args.episodes_per_rollout)

    class Track(BaseCallback):
        """Keeps the best final placement, a row of history an update, and the checkpoint."""

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "placement" in info:
                    recent.append((info["cost"], info["valid"]))
                    best.offer(info["cost"], info["valid"], info["placement"])
            return True

        def _on_rollout_end(self) -> None:
            if not recent:
                return
            costs, valid = np.array([row[0] for row in recent]), np.array([row[1] for row in recent])
            row = {
                "steps": float(self.model.num_timesteps),
                "wall_s": wall_before + time.perf_counter() - started,
                "mean_cost": float(costs.mean()),
                "valid_share": float(valid.mean()),
                "best_cost": best.cost,
            }
            history.append(row)
            if progress:
                progress(row)

    left = args.steps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=Track(), reset_num_timesteps=False)
        if folder is not None:
            save_checkpoint(folder, args, model, history, best)
    policy_decision = act_greedily(model, args, problem)
    policy_outcome = problem.evaluate(policy_decision)
    if policy_outcome.valid:
        best.offer(policy_outcome.cost, True, policy_decision)
    decision = policy_decision if best.placement is None else best.placement[: problem.num_groups]
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


def check(args: Args) -> None:
    """Refuse what cannot be trained, with one line."""
    if args.algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", args.algorithm, ALGORITHMS)
    for name in ("steps", "num_envs", "episodes_per_rollout", "epochs", "minibatches", "width"):
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
        learning_rate=lambda remaining: args.learning_rate * remaining,
        n_steps=groups * args.episodes_per_rollout,  # whole episodes: no value has to be guessed at a cut
        batch_size=rollout // math.gcd(rollout, args.minibatches),  # equal ones, at most so many
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
    return info["placement"][: problem.num_groups]


@dataclass
class Best:
    """The best placement so far; a valid one beats any that is not."""

    cost: float = float("inf")
    valid: bool = False
    placement: np.ndarray | None = None

    def offer(self, cost: float, valid: bool, placement: np.ndarray) -> None:
        if (valid, -cost) > (self.valid, -self.cost):
            self.cost, self.valid, self.placement = cost, valid, placement.copy()


def save_checkpoint(folder: Path, args: Args, model: Any, history: list[dict[str, float]], best: Best) -> None:
    """Weights and optimiser in ``checkpoint.npz``, the rest in ``run.json``; each written whole or not at all."""
    arrays = {f"policy/{name}": tensor.numpy() for name, tensor in model.policy.state_dict().items()}
    for index, entry in model.policy.optimizer.state_dict()["state"].items():
        arrays |= {f"optimizer/{index}/{name}": np.asarray(value) for name, value in entry.items()}
    temporary = folder / ".checkpoint.tmp.npz"
    np.savez(temporary, **arrays)
    os.replace(temporary, folder / "checkpoint.npz")
    run = {
        "format": CHECKPOINT_FORMAT,
        "version": CHECKPOINT_VERSION,
        "args": dataclasses.asdict(args),
        "steps": int(model.num_timesteps),
        "history": history,
        "best": {
            "cost": best.cost if np.isfinite(best.cost) else None,
            "valid": best.valid,
            "placement": None if best.placement is None else best.placement.tolist(),
        },
    }
    write_text(folder / "run.json", json.dumps(run) + "\n")


def load_checkpoint(folder: Path, args: Args, model: Any) -> tuple[list[dict[str, float]], Best]:
    """Put a checkpoint back into a model made with the same arguments; ``steps`` alone may differ.

    Raises:
        InputError: not a checkpoint of ours, damaged, or of other arguments.
    """
    import torch

    where = folder / "run.json"
    try:
        run = json.loads(where.read_text(encoding="utf-8"))
        if run.get("format") != CHECKPOINT_FORMAT or run.get("version") != CHECKPOINT_VERSION:
            raise InputError(f"{str(where)!r} is no checkpoint that this version can read")
        mine, theirs = dataclasses.asdict(args) | {"steps": 0}, run["args"] | {"steps": 0}
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise InputError(
                    f"{str(folder)!r} was trained with {name}={theirs.get(name)!r}, not {value!r}; "
                    "give the same arguments, or another folder"
                )
        with np.load(folder / "checkpoint.npz", allow_pickle=False) as arrays:
            policy = {
                name.removeprefix("policy/"): torch.from_numpy(arrays[name])
                for name in arrays.files
                if name.startswith("policy/")
            }
            optimizer = model.policy.optimizer.state_dict()
            for name in arrays.files:
                if name.startswith("optimizer/"):
                    _, index, entry = name.split("/")
                    optimizer["state"].setdefault(int(index), {})[entry] = torch.from_numpy(arrays[name])
        model.policy.load_state_dict(policy)
        model.policy.optimizer.load_state_dict(optimizer)
        model.num_timesteps = int(run["steps"])
        best, kept = Best(), run["best"]
        if kept["placement"] is not None:
            best.offer(kept["cost"], kept["valid"], np.array(kept["placement"], np.int32))
        return list(run["history"]), best
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"the checkpoint in {str(folder)!r} is damaged ({error}); train into another folder") from None


def _folder(out: str | os.PathLike[str]) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {str(folder)!r}: {error.strerror or error}; give a folder that can be written"
        ) from None
    return folder


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
