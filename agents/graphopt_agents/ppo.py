"""PPO of Stable-Baselines3 and MaskablePPO of sb3-contrib with plain networks, on any environment.

    graphopt train ppo --graph bert_base --cluster v100x4 --out runs/bert
    graphopt train maskable_ppo --env RewriteOrder-v0 --graph squeezenet --cluster t4 --out runs/squeezenet

Each update collects whole episodes from fresh ones, with random numbers of its own, drawn from the seed and the
update's number: so a run that was stopped goes on exactly as if it had not been. What is trained is the plain
``MultiInputPolicy``; the best decision that any episode ends with is the solution.

Where the environment draws its graphs (``--graph random``), episodes are of ever new ones. Beside them stands a fixed
set, drawn from the same generators by seeds of its own, the same in every run: the policy decides these by its
likeliest actions, in the first update, every ``checkpoint_every`` updates and in the last. What it reaches there is the
curve's ``evaluated_cost``, and the best decision of each is a solution.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import graphopt_gym  # noqa: F401 - registers the environments
from graphopt_agents.core import run
from graphopt_agents.core.checkpoints import check_sizes, load_checkpoint, load_weights
from graphopt_agents.core.run import AnyPath, Name
from graphopt_agents.core.sb3 import ScaledRewards, Track, reward_scale, seeded
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.fields import check_fields, whole
from graphopt_gym.problem import Solution
from graphopt_gym.registration import task_of
from graphopt_gym.task import resolve
from graphopt_gym.wrappers import SB3VecEnv

LONGEST = 256  # steps of an episode, where the environment does not say how many it has at most
NETWORK_KEY, UPDATES_KEY = 2, 3  # of the random numbers that the network is made with, and each update
EVALUATED_KEY = 4  # of those that the graphs are drawn with that a policy is evaluated on


@dataclass(frozen=True)
class Args:
    """What a run depends on; stored with the checkpoint."""

    env: str = "Placement-v0"
    graph: str | None = None  # the environment's own where left out
    cluster: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)  # its further arguments
    steps: int = 200_000  # decisions in all; each is at most one evaluation
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
    evaluated: int = 8  # graphs that the policy is evaluated on, where the environment draws them

    def __post_init__(self) -> None:
        task_of(self.env)
        whole("seed", self.seed, 0, run.MOST_SEED)
        ones = ("steps", "num_envs", "episodes_per_rollout", "epochs", "minibatches", "width", "checkpoint_every",
                "evaluated")  # fmt: skip
        check_fields(
            self,
            dict.fromkeys(ones, 1),
            above=("learning_rate", "clip_range"),
            at_least=("entropy",),
            shares=("gamma", "gae_lambda"),
        )

    def json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def arguments(self, graph: Name | None = None, cluster: Name | None = None) -> dict[str, Any]:
        """Those of the environment; ``graph`` and ``cluster`` in place of its own."""
        named = {"graph": graph or self.graph, "cluster": cluster or self.cluster}
        return {**self.environment, **{name: value for name, value in named.items() if value is not None}}


@dataclass(kw_only=True)
class EnvTask(run.Task):
    """The problem of an environment. Its trials are the steps taken."""

    envs: ScaledRewards
    drawn_by: int | None = None  # the seed of the reset that drew it, where the environment draws


class Trainer(run.Trainer):
    """PPO's runs."""

    agent = "ppo"
    algorithm: ClassVar[str] = "stable_baselines3:PPO"
    args_class = Args
    length = "steps"

    @classmethod
    def args_from(cls, given: Mapping[str, Any]) -> Args:
        """Arguments from a mapping, those of the environment among them.

        Raises:
            InputError: a bad value; a name that neither this nor the environment knows, with the nearest that is.
        """
        own = {one.name for one in fields(Args)}
        env = given.get("env", Args.env)
        theirs = set(inspect.signature(task_of(env).env_class(env)).parameters)
        mine = {name: value for name, value in given.items() if name in own}
        more = {name: value for name, value in given.items() if name not in own and name != "algorithm"}  # of old ones
        for name in more:
            if name not in theirs:
                raise unknown_name(f"argument of {cls.agent}", name, own | theirs)
        return Args(**{**mine, "environment": {**mine.get("environment", {}), **more}})

    @classmethod
    def make_tasks(cls, args: Args) -> list[EnvTask]:
        envs = cls.make_envs(args)
        problem = envs.get_attr("episodes")[0].only_problem
        if problem is not None:
            return [EnvTask(problem=problem, price=problem.costs, envs=envs)]
        env: Any = gym.make(args.env, **args.arguments()).unwrapped
        found: dict[str, EnvTask] = {}
        for seed in np.random.SeedSequence(EVALUATED_KEY).generate_state(4 * args.evaluated).tolist():
            env.reset(seed=seed)
            task = EnvTask(problem=env.problem, price=env.problem.costs, envs=envs, drawn_by=seed)
            found.setdefault(task.name, task)  # a generator of few may draw one twice
            if len(found) == args.evaluated:
                break
        return list(found.values())

    @classmethod
    def task_of(cls, problem: Any, args: Any = None, price: Any = None) -> Any:
        raise InputError(f"{cls.agent} learns in an environment; it takes no problem by itself")

    @classmethod
    def make_envs(cls, args: Args) -> ScaledRewards:
        """The native vector environment as SB3 takes it.

        Raises:
            InputError: bad arguments of the environment; a list of several graphs; actions that the algorithm cannot
                take.
        """
        envs: Any = gym.make_vec(
            args.env, num_envs=args.num_envs, vectorization_mode="vector_entry_point", autoreset_mode="SameStep",
            **args.arguments(),
        )  # fmt: skip
        if envs.episodes.only_problem is None and not envs.episodes.roster.draws:
            raise InputError(
                f"{cls.agent} trains on one graph on one cluster, not {len(envs.episodes.instances)}; or on ever new "
                "ones, such as graph random"
            )
        if cls is not Trainer and isinstance(envs.single_action_space, spaces.Box):
            raise InputError(f"{cls.agent} masks choices, and an action of {args.env} is numbers here; train ppo")
        return ScaledRewards(SB3VecEnv(envs), reward_scale(envs, args.seed))

    def make_network(self) -> None:
        """Sets ``model`` with the plain ``MultiInputPolicy``, and its parts."""
        args = self.args
        self.envs = self.tasks[0].envs
        longest = self.envs.get_attr("episodes")[0].longest or LONGEST
        rollout = longest * args.episodes_per_rollout * args.num_envs
        if rollout < 2:
            raise InputError(f"num_envs is {args.num_envs}, and an episode has one step; give at least 2, to compare")
        batch = rollout // math.gcd(rollout, args.minibatches)
        with seeded(args.seed, NETWORK_KEY):
            self.model: Any = resolve(self.algorithm)(
                "MultiInputPolicy",
                self.envs,
                learning_rate=args.learning_rate,
                n_steps=longest * args.episodes_per_rollout,  # whole episodes: no value has to be guessed at a cut
                batch_size=batch if batch > 1 else rollout,
                n_epochs=args.epochs,
                gamma=args.gamma,
                gae_lambda=args.gae_lambda,
                clip_range=args.clip_range,
                ent_coef=args.entropy,
                policy_kwargs={"net_arch": [args.width, args.width]},
                device="cpu",
            )
        self.network, self.optimizer = self.model.policy, self.model.policy.optimizer

    @property
    def done(self) -> int:
        return int(self.model.num_timesteps)

    def update(self) -> list[dict[str, Any]]:
        """A rollout of whole episodes, and what PPO learns from it."""
        args, model = self.args, self.model
        task = None if self.draws else self.tasks[0]
        share_left = 1 - self.done / args.steps
        model.lr_schedule = lambda _: args.learning_rate * share_left
        track = Track(task, self.envs, lambda: self.wall_s)
        model._last_obs = None  # so that it starts new episodes
        with seeded(args.seed, UPDATES_KEY, self.updates):
            self.envs.seed(int(np.random.randint(2**31)))
            model.learn(model.n_steps * args.num_envs, callback=track, reset_num_timesteps=False)
        if not track.costs:
            raise InputError(
                f"no episode of {args.env} ended within {model.n_steps} steps; give more episodes_per_rollout"
            )
        if task is not None:
            task.trials = self.done
        row = self.row(task or self.tasks[0], *(np.array(part) for part in (track.costs, track.valid, track.returns)))
        if self.draws:
            roster = self.envs.get_attr("episodes")[0].roster
            row |= {"graph": ", ".join(roster.graph_names), "cluster": ", ".join(roster.cluster_names)}
            last = self.done >= args.steps
            due = last or self.updates == 0 or (self.updates + 1) % args.checkpoint_every == 0
            row |= {"evaluations": self.done, "best_cost": None, "evaluated_cost": self.try_out() if due else None}
        return self.finish_update([{"steps": self.done, **row}])

    @property
    def draws(self) -> bool:
        """Whether the environment draws its graphs."""
        return self.tasks[0].drawn_by is not None

    def try_out(self) -> float:
        """Decide the graphs of the fixed set by the likeliest actions; the mean cost, infinite where one is invalid."""
        args = self.args
        env: Any = gym.make(args.env, **args.arguments()).unwrapped
        costs = []
        for task in self.tasks:
            decision = self.decided(env, task.drawn_by)
            cost, valid = task.evaluate(np.asarray(decision)[None], self.wall_s)
            task.trials += 1
            costs.append(float(cost[0]) if valid[0] else math.inf)
        return float(np.mean(costs))

    def decided(self, env: Any, seed: int) -> Any:
        """What the policy decides in an episode by its likeliest actions."""
        observation, _ = env.reset(seed=seed)
        done = False
        while not done:
            masks = {} if type(self) is Trainer else {"action_masks": env.action_masks()}
            action, _ = self.model.predict(observation, deterministic=True, **masks)
            observation, _, done, _, _ = env.step(action)
        return env.decision

    def state(self) -> dict[str, Any]:
        return {**super().state(), "steps": self.done}

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        super().restore(state, where)
        self.model.num_timesteps = int(state["steps"])

    @classmethod
    def evaluate(cls, checkpoint: AnyPath, graph: Name | None = None, cluster: Name | None = None) -> Solution:  # type: ignore[override]
        """What a trained policy decides by its likeliest actions.

        Args:
            checkpoint: the file, or the folder of a run.
            graph, cluster: others than it was trained on, no larger than what the environment was made for.

        Raises:
            InputError: no checkpoint of this agent, or a graph or cluster that is too large.
        """
        kept = load_checkpoint(checkpoint, cls.agent)
        where, weights = str(checkpoint), kept.state.get("network", kept.state.get("policy", {}))  # as 0.1.0 called it
        # no more room than an episode needs, whatever the file says
        args = replace(cls.kept_args(kept, where), num_envs=2, episodes_per_rollout=1, minibatches=1)
        check_sizes((args.width,), weights, where)
        trainer = cls(args, cls.make_tasks(args))
        load_weights(trainer.network, weights, where)
        return trainer.likeliest(graph, cluster)

    def likeliest(self, graph: Name | None = None, cluster: Name | None = None) -> Solution:
        """What the policy decides by its likeliest actions, see :meth:`evaluate`."""
        args, started = self.args, time.perf_counter()
        given = args.arguments(graph, cluster)
        env: Any = gym.make(args.env, **given).unwrapped
        own, other = self.envs.get_attr("episodes")[0].roster, env.episodes.roster
        # another graph is padded to what the network was made for
        names = [name for name in inspect.signature(task_of(args.env).env_class(args.env)).parameters if "max_" in name]
        sizes = {name: (getattr(own, name), getattr(other, name)) for name in names if hasattr(own, name)}
        env = gym.make(args.env, **{**given, **{name: max(both) for name, both in sizes.items()}}).unwrapped
        if env.observation_space != self.envs.observation_space or env.action_space != self.envs.action_space:
            small = ", ".join(f"{name}={had}, not {needs}" for name, (had, needs) in sizes.items() if needs > had)
            raise InputError(f"{self.agent} was trained with {small}, which this graph or cluster needs; train anew")
        decision = self.decided(env, args.seed)
        problem = env.problem
        outcome = problem.evaluate(decision)
        return Solution(problem, self.agent, args.seed, decision, outcome, 1, time.perf_counter() - started)


class MaskableTrainer(Trainer):
    """MaskablePPO's runs."""

    agent = "maskable_ppo"
    algorithm = "sb3_contrib:MaskablePPO"


TRAINERS = {one.agent: one for one in (Trainer, MaskableTrainer)}
