"""The contract of tasks and their environments."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import io
import itertools
import math
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from graphopt_gym.catalog import catalogs
from graphopt_gym.errors import UnknownArgument
from graphopt_gym.problem import Problem
from graphopt_gym.registration import make_problem, task_of
from graphopt_gym.search.evaluator import Method
from graphopt_gym.search.methods import METHODS as SEARCHES
from graphopt_gym.task import Task, resolve
from graphopt_gym.testing.contract import (
    ContractError,
    difference,
    form,
    refuses,
    require,
    run_rules,
    said,
    wrong_forms,
)
from graphopt_gym.testing.problems import check_problem

_INTEGERS = spaces.Discrete | spaces.MultiDiscrete
_ARRAYS = spaces.Discrete | spaces.MultiDiscrete | spaces.Box
_WILD = 4  # one action in so many is any element of the space, legal or not
_WARNINGS_OF_SB3 = "We recommend you to use a symmetric and normalized Box action space"  # chances are neither


def check_task(
    task: Task | str,
    arguments: Mapping[str, Any] | None = None,
    *,
    num_envs: int = 3,
    episodes: int = 3,
    steps: int = 2000,
    seed: int = 0,
) -> None:
    """Check that the environments of a registered task keep the contract; seconds on a small graph.

    Args:
        task: all of its variants, the record and a problem are checked; or one environment, by its id.
        arguments: of the environments, such as small graphs (several, so that episodes differ) or a mode.
        num_envs: sub-environments of the vector forms.
        episodes: to play each time.
        steps: after so many an episode must have ended.
        seed: of all random choices.

    Raises:
        ContractError: a rule does not hold; one line with its name, what was found, and how to mend it.
    """
    if isinstance(task, Task):
        run_rules(TASK_RULES, task)
    for env_id in task.variants if isinstance(task, Task) else (task,):
        case = _EnvCase(env_id, dict(arguments or {}), num_envs, episodes, steps, seed)
        run_rules(ENV_RULES, case, f"{env_id}: ")
        if isinstance(task, Task) and env_id == task.env_id:
            env = case.make()
            _, info = env.reset(seed=seed)
            check_problem(env.problem, task.starts[:1], **_objects(case.arguments, info))


def _objects(arguments: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """The graph and the cluster of an episode, where they were given as objects: a problem's config only names them."""
    found = {}
    for name in ("graph", "cluster"):
        given = arguments.get(name)
        for one in given if isinstance(given, list | tuple) else [given]:
            if getattr(one, "name", None) == info[name]:
                found[name] = one
    return found


# --------------------------------------------------------------------------------------------------------- the record


def record_is_complete(task: Task) -> None:
    for name, text in {"name": task.name, "summary": task.summary, **vars(task.words)}.items():
        require(isinstance(text, str) and text and "\n" not in text, f"{name} is {text!r}", "set it to one line")
    problem_class = task.problem_class()
    require(issubclass(problem_class, Problem), f"problem is {problem_class!r}", "name a subclass of Problem")
    require(problem_class.unit, "the problem's unit is empty", "name what its cost is measured in")
    table = task.method_table()
    for name, method in table.items():
        require(isinstance(method, Method), f"method {name!r} is {form(method)}", "give a Method")
        require(method.name == name, f"method {name!r} calls itself {method.name!r}", "give one name")
        require(method.summary and method.source, f"method {name!r} has no summary or source", "say what it does")
    for field, known in (("starts", table), ("references", {**table, **SEARCHES})):
        for name in getattr(task, field):
            require(name in known, f"{field} names {name!r}", f"name some of {', '.join(known)}")
    taken = inspect.signature(problem_class).parameters
    for argument, catalog in task.catalogs.items():
        require(argument in taken, f"catalogs names {argument!r}", f"name arguments of the problem: {', '.join(taken)}")
        require(catalog in catalogs(), f"catalogs has {catalog!r}", f"name one of {', '.join(catalogs())}")
    for reference in [*(one.run for one in task.benchmarks.values()), *task.commands.values()]:
        require(callable(resolve(reference)), f"{reference!r} is no function", "name one")


TASK_RULES: tuple[Callable[[Task], None], ...] = (record_is_complete,)

# --------------------------------------------------------------------------------------------------- playing episodes


class _Agent:
    """Random actions, the same for the same seed: most keep to the masks."""

    def __init__(self, space: spaces.Space[Any], seed: int) -> None:
        self.space = copy.deepcopy(space)
        self.space.seed(seed)
        self.rng = np.random.default_rng(seed)

    def act(self, mask: np.ndarray) -> Any:
        if self.rng.integers(_WILD) == 0:
            return self.space.sample()
        return self.legal(mask)

    def legal(self, mask: np.ndarray) -> Any:
        if isinstance(self.space, spaces.Discrete):
            return int(self.rng.choice(np.flatnonzero(mask)) + self.space.start)
        if isinstance(self.space, spaces.MultiDiscrete):
            rows = [self.rng.choice(np.flatnonzero(row)) for row in _by_entry(self.space, mask)]
            return (np.array(rows).reshape(self.space.shape) + self.space.start).astype(self.space.dtype)
        return self.space.sample()

    def illegal(self, mask: np.ndarray) -> Any:
        """One that a mask forbids; None where it forbids none. An entry of which a mask leaves one choice may be
        padding, which is ignored, and stays legal."""
        if isinstance(self.space, spaces.Discrete) and not mask.all():
            return int(self.rng.choice(np.flatnonzero(~mask)) + self.space.start)
        if isinstance(self.space, spaces.MultiDiscrete):
            action = self.legal(mask)
            for index, row in enumerate(_by_entry(self.space, mask)):
                if 1 < row.sum() < len(row):
                    action.flat[index] = np.flatnonzero(~row)[0] + self.space.start.flat[index]
                    return action
        return None

    def batch(self, masks: np.ndarray) -> Any:
        return _batch(self.space, [self.act(mask) for mask in masks])


def _by_entry(space: spaces.MultiDiscrete, mask: np.ndarray) -> list[np.ndarray]:
    return np.split(mask, np.cumsum(space.nvec.ravel())[:-1])


def _batch(space: spaces.Space[Any], actions: list[Any]) -> Any:
    return np.stack(actions) if isinstance(space, _ARRAYS) else tuple(actions)


Told = list[tuple[Any, ...]]  # what each call of reset and step returned, copied at once


@dataclass
class _EnvCase:
    """An environment, and how much of it is looked at."""

    env_id: str
    arguments: dict[str, Any]
    num_envs: int
    episodes: int
    steps: int
    seed: int

    def make(self, **more: Any) -> Any:
        return gym.make(self.env_id, disable_env_checker=True, **{**self.arguments, **more}).unwrapped

    def make_vector(self, **more: Any) -> Any:
        arguments = {**self.arguments, **more}
        return gym.make_vec(self.env_id, self.num_envs, vectorization_mode="vector_entry_point", **arguments)

    def play(
        self,
        env: Any,
        before: Callable[[Any], Any] = lambda env: None,
        after: Callable[[tuple[Any, ...]], Any] = lambda returned: None,
    ) -> Told:
        """Episodes from the first on; ``before`` each step, ``after`` each call with what it returned."""
        agent = _Agent(env.action_space, self.seed)
        told: Told = []

        def tell(returned: tuple[Any, ...]) -> tuple[Any, ...]:
            told.append(copy.deepcopy(returned))
            after(returned)
            return told[-1]

        for episode in range(self.episodes):
            tell(env.reset(seed=self.seed) if episode == 0 else env.reset())
            for _ in range(self.steps):
                before(env)
                if any(tell(env.step(agent.act(env.action_masks())))[2:4]):
                    break
            else:
                raise ContractError(f"no end after {self.steps} steps; let episodes end, or give more steps")
        return told

    @cached_property
    def told(self) -> Told:
        """What a new environment tells: all others must tell the same."""
        return self.play(self.make())

    @property
    def longest(self) -> int:
        """Steps of the longest episode."""
        starts = [at for at, one in enumerate(self.told) if len(one) == 2]
        return max(end - start - 1 for start, end in itertools.pairwise([*starts, len(self.told)]))

    def same(self, told: Told, what: str, fix: str) -> None:
        where = difference(told, self.told, "call ")
        require(not where, f"{what} tells something else: {where}", fix)

    def twins(self, calls: int, meanwhile: Callable[[Any, Any], Any], what: str, fix: str) -> None:
        """A vector form to which something is done after each call, with it and what it returned, tells the same as
        its twin; and what both returned stays as it was."""
        pair = self.make_vector(), self.make_vector()
        agents = [_Agent(one.single_action_space, self.seed) for one in pair]
        returned = [one.reset(seed=self.seed) for one in pair]
        kept, copied = [], []
        for number in range(calls):
            where = difference(returned[0], returned[1], f"call {number}")
            require(not where, f"{what}: {where}", fix)
            kept.append(returned[1])
            copied.append(copy.deepcopy(returned[1]))
            meanwhile(pair[0], returned[0])
            returned = [one.step(agent.batch(one.action_masks())) for one, agent in zip(pair, agents, strict=True)]
        where = difference(kept, copied, "call ")
        require(not where, f"what a vector form returned is changed by later calls: {where}", "return new arrays")


def _infos(told: Told) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each info, and whether it is the first of an episode, the last, or one between."""
    for one in told:
        yield "first" if len(one) == 2 else "last" if one[2] or one[3] else "next", one[-1]


# ------------------------------------------------------------------------------------------------------- environments


def spaces_are_valid(case: _EnvCase) -> None:
    env, vector = case.make(), case.make_vector()
    for name in ("observation_space", "action_space"):
        space = getattr(env, name)
        require(isinstance(space, spaces.Space), f"{name} is {form(space)}", "give a Gymnasium space")
        require(space.sample() in space, f"{name}.sample() is not in it", "mend its bounds")
        require(pickle.loads(pickle.dumps(space)) == space, f"{name} changes when it is pickled", "use plain spaces")
        require(getattr(vector, f"single_{name}") == space, f"the vector form has another {name}", "give it the same")
        batched = batch_space(space, case.num_envs)
        require(getattr(vector, name) == batched, f"the vector form's {name} is no batch", "use batch_space()")
    env.reset(seed=case.seed)
    for name in ("observation_space", "action_space"):
        require(getattr(case.make(), name) == getattr(env, name), f"{name} is another after a reset", "pad to one size")


def nothing_works_before_a_reset(case: _EnvCase) -> None:
    env, vector = case.make(render_mode="ansi"), case.make_vector(render_mode="ansi")
    actions = [env.action_space.sample()] * case.num_envs
    calls = {
        "step()": (lambda: env.step(actions[0]), lambda: vector.step(_batch(env.action_space, actions))),
        "action_masks()": (env.action_masks, vector.action_masks),
        "render()": (env.render, vector.render),
        "outcome()": (env.outcome, lambda: vector.outcome(0)),
        "decision": (lambda: env.decision, lambda: vector.decision(0)),
        "static_observation()": (env.static_observation, lambda: vector.static_observation(0)),
    }
    for name, forms in calls.items():
        for call, kind in zip(forms, ("scalar", "vector"), strict=True):
            _needs_reset(call, f"{name} of the {kind} form before a reset")


def _needs_reset(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except ResetNeeded as error:
        require(str(error).strip(), f"{what} raises an empty ResetNeeded", "say what to do")
    except Exception as error:
        raise ContractError(f"{what} raises {said(error)}; raise ResetNeeded") from error
    else:
        raise ContractError(f"{what} works; raise ResetNeeded")


def only_a_reset_follows_an_end(case: _EnvCase) -> None:
    env = case.make(render_mode="ansi")
    case.play(env)
    _needs_reset(lambda: env.step(env.action_space.sample()), "step() after an episode's end")
    require(env.render(), "render() after an episode's end gives nothing", "draw the end")
    env.outcome()
    env.reset()
    env.step(env.action_space.sample())


def calls_return_what_the_spaces_say(case: _EnvCase) -> None:
    env = case.make()
    for number, returned in enumerate(case.told):
        where = f"call {number}"
        _in_the_space(env.observation_space, returned[0], f"the observation of {where}")
        require(type(returned[-1]) is dict, f"the info of {where} is {form(returned[-1])}", "give a dict")
        if len(returned) == 5:
            _, reward, terminated, truncated, _ = returned
            require(
                type(reward) is float and math.isfinite(reward), f"the reward of {where} is {reward!r}", "give a float"
            )
            require(
                type(terminated) is type(truncated) is bool,
                f"{where} gives terminated as {form(terminated)}, truncated as {form(truncated)}",
                "give bools",
            )


def _in_the_space(space: spaces.Space[Any], value: Any, what: str) -> None:
    """Stricter than ``contains``: the very types and shapes."""
    if isinstance(space, spaces.Dict):
        require(
            isinstance(value, dict) and value.keys() == space.keys(), f"{what} is {form(value)}", f"give {list(space)}"
        )
        for name, part in space.items():
            _in_the_space(part, value[name], f"{what}, part {name!r},")
        return
    if isinstance(space, spaces.Box):
        fits = isinstance(value, np.ndarray) and value.dtype == space.dtype and value.shape == space.shape
        require(fits, f"{what} is {form(value)}", f"give an array of {space.dtype} of shape {space.shape}")
    require(value in space, f"{what} is not in its space", "keep it in its bounds")


def seeds_reproduce(case: _EnvCase) -> None:
    env = case.make()
    case.same(case.play(env), "a new environment with the same seed", "draw from np_random alone")
    case.same(case.play(env), "an environment that is seeded again", "let reset(seed=…) start everything anew")
    found = env.np_random_seed
    require(found == case.seed, f"np_random_seed is {found!r} after reset(seed={case.seed})", "pass the seed on")


def every_action_steps(case: _EnvCase) -> None:
    env, vector = case.make(), case.make_vector()
    for what, action in _elements(env.action_space, case.seed):
        require(action in env.action_space, f"{what} is not in the action space", "mend the space")
        env.reset(seed=case.seed)
        vector.reset(seed=case.seed)
        try:
            observation, reward, *_ = env.step(action)
            batch, rewards, *_ = vector.step(_batch(env.action_space, [action] * case.num_envs))
        except Exception as error:
            raise ContractError(
                f"the action of {what} raises {said(error)}; take every element of the space"
            ) from error
        _in_the_space(env.observation_space, observation, f"the observation after the action of {what}")
        _in_the_space(vector.observation_space, batch, f"the vector form's observation after the action of {what}")
        require(
            math.isfinite(reward) and np.isfinite(rewards).all(),
            f"the action of {what} earns {reward}",
            "give a number",
        )


def _elements(space: spaces.Space[Any], seed: int) -> Iterator[tuple[str, Any]]:
    space = copy.deepcopy(space)
    space.seed(seed)
    for _ in range(4):
        yield "random choices", space.sample()
    if isinstance(space, spaces.Discrete):
        for choice in (space.start, space.start + space.n - 1):
            yield "a lowest or highest choice", int(choice)
            yield "a choice as an array", np.array(choice, np.int32)
    elif isinstance(space, spaces.MultiDiscrete):
        yield "the lowest choices", space.start.astype(space.dtype)
        yield "the highest choices", (space.start + space.nvec - 1).astype(space.dtype)
    elif isinstance(space, spaces.Box):
        for what, numbers in {
            "the lowest numbers": space.low,
            "the highest numbers": space.high,
            "zeros": np.zeros(space.shape, space.dtype),
            "ones": np.ones(space.shape, space.dtype),
        }.items():
            if numbers in space:
                yield what, numbers.copy()


def _wrong_actions(space: spaces.Space[Any], right: Any) -> list[tuple[str, Any]]:
    """``right`` may be a batch."""
    if not isinstance(space, _ARRAYS):
        return wrong_forms(right)
    right = np.asarray(right)
    wrong = wrong_forms(right)
    if isinstance(space, spaces.Box):
        for what, bound, beyond in (("below", space.low, -np.inf), ("above", space.high, np.inf)):
            if np.isfinite(bound).all():
                wrong.append(
                    (f"numbers just {what} the bounds", np.nextafter(right * 0 + bound, beyond, dtype=right.dtype))
                )
    return wrong


def wrong_actions_are_refused(case: _EnvCase) -> None:
    """And change nothing."""
    env = case.make()
    wrong = _wrong_actions(env.action_space, env.action_space.sample())
    counter = itertools.count()

    def refuse(env: Any) -> None:
        if next(counter) < 4 * case.episodes:
            for what, action in wrong:
                refuses(lambda: env.step(action), f"an action that is {what}", "raise an InputError")  # noqa: B023

    case.same(case.play(env, refuse), "an environment that refused actions", "check before anything is changed")


def wrong_batches_are_refused(case: _EnvCase) -> None:
    """As wrong actions, in the vector form: a wrong batch, and a right one whose last action is wrong."""
    space = case.make().action_space
    right = [space.sample() for _ in range(case.num_envs)]
    wrong = [(f"{what}, all together,", one) for what, one in _wrong_actions(space, _batch(space, right))]
    for what, one in _wrong_actions(space, right[0]):
        if what != "bools":  # among numbers they become numbers
            wrong.append((f"{what}, the last one,", [*right[:-1], one]))
    wrong += [("one too few", right[:-1]), ("one too many", [*right, right[0]])]

    def refuse(vector: Any, _: Any) -> None:
        for what, actions in wrong:
            refuses(lambda: vector.step(actions), f"a batch that is {what}", "raise an InputError")  # noqa: B023

    case.twins(4, refuse, "a vector form that refused actions", "check before anything is changed")


def masks_tell_the_truth(case: _EnvCase) -> None:
    env = case.make()
    agent, space = _Agent(env.action_space, case.seed), env.action_space
    size = int(np.sum(getattr(space, "nvec", getattr(space, "n", 0))))  # 0: any, of a space without choices
    for episode in range(case.episodes):
        observation, _ = env.reset(seed=case.seed + episode)
        for number in range(case.steps):
            mask = env.action_masks()
            require(
                isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.ndim == 1 and size in (0, mask.size),
                f"action_masks() gives {form(mask)}",
                f"give bool [{size}]",
            )
            if "action_mask" in observation:
                _masks_agree(mask, observation["action_mask"].astype(np.bool_))
            forbidden = agent.illegal(mask) if number % 2 else None
            action = agent.legal(mask) if forbidden is None else forbidden
            observation, _, terminated, truncated, info = env.step(action)
            told, expected = info.get("illegal_action"), forbidden is not None and isinstance(space, _INTEGERS)
            require(
                told is expected,
                f"info['illegal_action'] is {told!r} where the masks {'forbid' if expected else 'allow'} the action",
                "let masks and step() ask the same",
            )
            if terminated or truncated:
                break


def _masks_agree(mask: np.ndarray, observed: np.ndarray) -> None:
    """The observation may show the mask of one entry of a whole decision, whose padded entries allow one choice."""
    rows = mask.reshape(-1, observed.size) if mask.size % observed.size == 0 else mask[None]
    first = np.arange(rows.shape[1]) == 0
    for row in rows:
        same = np.array_equal(row, observed) or (len(rows) > 1 and np.array_equal(row, first))
        require(same, "action_masks() and the observation's action_mask differ", "make both of one array")


def infos_tell_the_story(case: _EnvCase) -> None:
    needed = {"first": {"graph", "cluster"}, "last": {"decision", "cost", "valid", "reasons", "illegal_action"}}
    kinds: dict[str, set[str]] = {}
    for kind, info in _infos(case.told):
        missing = needed.get(kind, {"illegal_action"}) - info.keys()
        require(not missing, f"the {kind} info has no {', '.join(sorted(missing))}", "put it there")
        keys = kinds.setdefault(kind, set(info))
        require(keys == set(info), f"the {kind} infos have now {sorted(keys)}, now {sorted(info)}", "give all")
        if kind == "first":
            for name in ("graph", "cluster"):
                require(isinstance(info[name], str) and info[name], f"info[{name!r}] is {info[name]!r}", "give a name")
        if kind == "last":
            valid, cost, reasons = info["valid"], info["cost"], info["reasons"]
            require(type(valid) is bool, f"info['valid'] is {form(valid)}", "give a bool")
            require(type(cost) is float, f"info['cost'] is {form(cost)}", "give a float")
            require(
                isinstance(reasons, tuple) and bool(reasons) != valid and all("\n" not in one for one in reasons),
                f"info['reasons'] is {reasons!r} where valid is {valid}",
                "give a tuple of lines, empty where valid",
            )


def the_last_info_is_what_the_problem_says(case: _EnvCase) -> None:
    env = case.make()

    def compare(returned: tuple[Any, ...]) -> None:
        if not any(returned[2:4]):
            return
        info, problem, decision = returned[-1], env.problem, env.decision
        batch = np.empty(1, object) if problem.decision_shape == () else decision[None]
        batch[0] = decision
        cost, valid = problem.costs(batch)
        require(
            (info["cost"], info["valid"]) == (cost[0], valid[0]),
            f"the last info says {info['cost']!r}, valid {info['valid']}; the problem {cost[0]!r}, {valid[0]}",
            "price by the problem",
        )
        outcome, stated = env.outcome(), info["decision"]
        require(outcome.valid == info["valid"], f"outcome() says valid {outcome.valid}", "let both ask the problem")
        if isinstance(decision, np.ndarray):
            require(
                isinstance(stated, np.ndarray) and stated.dtype == np.int32,
                f"info['decision'] is {form(stated)}",
                "give int32",
            )
            size = len(decision)
            require((stated[size:] == -1).all(), "info['decision'] is not padded with -1", "pad it")
            stated = stated[:size]
        require(
            problem.encode(problem.check(stated)) == problem.encode(decision),
            "info['decision'] is not what the environment's decision is",
            "give the decision, padded where it is an array",
        )

    case.play(env, after=compare)


def what_was_returned_belongs_to_the_caller(case: _EnvCase) -> None:
    """Later calls do not change it, and what the caller does to it changes nothing."""
    returned: list[tuple[Any, ...]] = []
    told = case.play(case.make(), after=returned.append)
    where = difference(returned, told, "call ")
    require(not where, f"what was returned is changed by later calls: {where}", "return new arrays")
    env = case.make()

    def spoil_questions(env: Any) -> None:
        for answer in (env.action_masks(), env.static_observation(), env.decision):
            _spoil(answer)

    told = case.play(env, before=spoil_questions, after=_spoil)
    case.same(told, "an environment whose caller writes into what is returned", "return new arrays")
    what = "a vector form whose caller writes into what is returned"

    def spoil(vector: Any, returned: Any) -> None:
        _spoil(returned)
        _spoil(vector.action_masks())

    case.twins(min(case.longest + 3, 20), spoil, what, "return new arrays")


def _spoil(value: Any) -> None:
    """Write into all that can be: numbers that are choices anywhere, so that no kernel leaves its arrays."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        if value.flags.writeable:
            value[...] = 0 if value.any() else 1
    elif isinstance(value, dict | list | tuple | np.ndarray):
        for part in value.values() if isinstance(value, dict) else value:
            _spoil(part)
        if isinstance(value, dict | list):
            value.clear()


def copies_have_the_same_future(case: _EnvCase) -> None:
    """Of a deep copy, a pickle, and a process of its own; before, in and after an episode."""
    for moment, steps in (
        ("before its first episode", None),
        ("in an episode", case.longest // 2),
        ("at an end", case.longest),
    ):
        env, ended, seed = case.make(), steps is None, case.seed if steps is None else None
        if steps is not None:
            env.reset(seed=case.seed)
            agent = _Agent(env.action_space, case.seed)
            for _ in range(steps):
                ended = any(env.step(agent.act(env.action_masks()))[2:4])
                if ended:
                    break
        _same_future(env, ended, seed, case, f"an environment {moment}", process=moment == "in an episode")
    vector = case.make_vector()
    vector.reset(seed=case.seed)
    agent = _Agent(vector.single_action_space, case.seed)
    for _ in range(2):
        vector.step(agent.batch(vector.action_masks()))
    _same_future(vector, False, None, case, "a vector environment", process=False)


def _same_future(env: Any, ended: bool, seed: int | None, case: _EnvCase, what: str, process: bool) -> None:
    steps = min(2 * case.longest + 4, 100)
    futures = {"copy.deepcopy": copy.deepcopy(env), "pickle": pickle.loads(pickle.dumps(env))}
    told = {how: future(one, ended, seed, steps) for how, one in futures.items()}
    if process:
        told["a process of its own"] = _elsewhere(env, ended, seed, steps)
    own = future(env, ended, seed, steps)
    for how, other in told.items():
        where = difference(other, own, "call ")
        require(not where, f"{what} goes on otherwise after {how}: {where}", "copy generators and all state")


def future(env: Any, ended: bool, seed: int | None, steps: int) -> Told:
    """What the next calls return; an episode that has ended is followed by the next."""
    told: Told = []
    many = hasattr(env, "num_envs")
    agent = _Agent(env.single_action_space if many else env.action_space, 0)
    for _ in range(steps):
        if ended:
            told.append(env.reset(seed=seed))
            seed, ended = None, False
            continue
        masks = env.action_masks()
        told.append(env.step(agent.batch(masks) if many else agent.act(masks)))
        ended = not many and any(told[-1][2:4])
    return told


def _elsewhere(env: Any, ended: bool, seed: int | None, steps: int) -> Told:
    """:func:`future` in a new interpreter."""
    program = (
        "import pickle, sys; arguments = pickle.load(sys.stdin.buffer); "
        f"from {__name__} import future; sys.stdout.buffer.write(pickle.dumps(future(*arguments)))"
    )
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps((env, ended, seed, steps)),
        capture_output=True,
        env={**os.environ, **paths},
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ContractError(f"a process of its own fails: {' '.join(last)}; keep to what can be pickled")
    return pickle.loads(done.stdout)


def frames_have_one_size(case: _EnvCase) -> None:
    env = case.make(render_mode="rgb_array")
    agent, shapes = _Agent(env.action_space, case.seed), set()
    for episode in range(case.episodes):
        env.reset(seed=case.seed + episode)
        frames, ended = [env.render()], False
        for number in range(case.steps):
            ended = any(env.step(agent.act(env.action_masks()))[2:4])
            if number == 0 or ended:
                frames.append(env.render())
            if ended:
                break
        for frame in frames:
            require(
                isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3,
                f"a frame is {form(frame)}",
                "give uint8 [height, width, 3]",
            )
            shapes.add(frame.shape)
            require(len(shapes) == 1, f"frames have shapes {sorted(shapes)}", "draw all of one size: videos need it")


def every_render_mode_works(case: _EnvCase) -> None:
    modes = case.make().metadata["render_modes"]
    for mode in modes:
        env = case.make(render_mode=mode)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            env.reset(seed=case.seed)
            frame = env.render()
        expected: type = type(None) if mode == "human" else str if mode == "ansi" else np.ndarray
        require(isinstance(frame, expected), f"a frame of mode {mode!r} is {form(frame)}", f"give {expected.__name__}")
        require(mode == "human" or not printed.getvalue(), f"mode {mode!r} prints", "print in mode 'human' only")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's own, before the environment is asked
        refuses(lambda: case.make(render_mode="no such"), "an unknown render mode", "raise an InputError")


def light_infos_hold_numbers_only(case: _EnvCase) -> None:
    """Numbers, and arrays of numbers, the same at each call of a kind; all else is told as it is."""
    told = case.play(case.make(info="light"))
    for number, (light, full) in enumerate(zip(told, case.told, strict=True)):
        where = difference(light[:-1], full[:-1], f"call {number}")
        require(not where, f"light infos change what is returned: {where}", "change the info alone")
        for name, value in light[-1].items():
            said = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
            where = difference(said, full[-1].get(name), f"info[{name!r}]")
            require(not where, f"{where} in call {number}, light and full", "leave out, and change nothing")
    forms: dict[str, dict[str, Any]] = {}
    for kind, info in _infos(told):
        found = {name: _numbers(name, value) for name, value in info.items()}
        known = forms.setdefault(kind, found)
        require(found == known, f"light infos are now {found}, now {known}", "give the same at each call")
        require(
            kind != "last" or {"cost", "valid"} <= info.keys(), f"the last has {sorted(info)}", "keep cost and valid"
        )
    vector = case.make_vector(info="light")
    agent, infos = _Agent(vector.single_action_space, case.seed), [vector.reset(seed=case.seed)[1]]
    infos += [vector.step(agent.batch(vector.action_masks()))[-1] for _ in range(min(case.longest + 2, 100))]
    for info in infos:
        for name, value in info.items():
            _numbers(name, value)
    refuses(lambda: case.make(info="no such"), "an unknown info", "raise an InputError")


def _numbers(name: str, value: Any) -> Any:
    """What an entry of a light info is like. All are arrays: some libraries ask every value for its dtype."""
    fits = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    require(fits, f"light infos have {name!r}, {form(value)}", "give an array of numbers, or leave it out")
    return value.dtype, value.shape


def resets_are_checked(case: _EnvCase) -> None:
    """Options and seeds; the vector form's are the same, and a refused reset changes nothing."""
    bad_options: list[Any] = [["graph"], "graph", 3, {0: 0}, {"graf": "x"}, {"graph": "no such"}, {"cluster": None}]
    wrong: list[dict[str, Any]] = [{"seed": 99, "options": one} for one in bad_options]
    bad_seeds: tuple[Any, ...] = (-1, 0.5, "0", math.nan, True, {})
    wrong += [{"seed": one} for one in bad_seeds]

    def refuse(env: Any) -> None:
        for arguments in wrong:
            refuses(lambda: env.reset(**arguments), f"reset(**{arguments!r})", "raise an InputError")  # noqa: B023

    case.same(case.play(case.make(), refuse), "an environment that refused to be reset", "check before anything else")
    right = list(range(case.num_envs))
    wrong += [{"seed": one} for one in (right[:-1], [*right, 0], [*right[:-1], -1], [*right[:-1], "0"])]
    masks = (None, "x", np.zeros(case.num_envs, np.bool_), np.ones(case.num_envs + 1, np.bool_), np.ones(case.num_envs))
    wrong += [{"options": {"reset_mask": mask}} for mask in masks]
    what = "a vector form that refused to be reset"
    case.twins(3, lambda vector, _: refuse(vector), what, "check before anything else")
    for kind, first in _infos(case.told):
        if kind == "first":
            options = {name: first[name] for name in ("graph", "cluster")}
            info = case.make().reset(options=options)[1]
            require(info | options == info, "options are ignored", "use them")
            infos = case.make_vector().reset(options=options)[1]
            require(set(infos["graph"]) == {options["graph"]}, "the vector form ignores options", "use them")


def the_vector_form_equals_the_sync_one(case: _EnvCase) -> None:
    """In all autoreset modes, to the last bit: what Gymnasium's SyncVectorEnv makes of the scalar form."""
    for mode in AutoresetMode:
        ours = case.make_vector(autoreset_mode=mode)
        theirs = SyncVectorEnv([case.make] * case.num_envs, autoreset_mode=mode)
        require(
            ours.metadata["autoreset_mode"] is mode, "metadata['autoreset_mode'] is not what was asked for", "set it"
        )
        agent = _Agent(ours.single_action_space, case.seed)
        fix = f"be what SyncVectorEnv is, mode {mode.value}"
        seeds = [case.seed + 3, *range(case.num_envs - 1)] if mode is AutoresetMode.SAME_STEP else case.seed
        ended = _compare(ours.reset(seed=seeds), theirs.reset(seed=seeds), "reset()", fix)
        for number in range(case.longest + 3):
            masks = ours.action_masks()
            where = difference(masks, np.stack(theirs.call("action_masks")), "action_masks()")
            require(not where, f"{where} before call {number}", fix)
            if mode is AutoresetMode.DISABLED and ended.any():
                _needs_reset(lambda: ours.step(agent.batch(masks)), "step() of the vector form where one has ended")  # noqa: B023
                mine, other = (one.reset(options={"reset_mask": ended.copy()}) for one in (ours, theirs))
                ended = _compare(mine, other, f"reset() in place of call {number}", fix)
                continue
            actions = agent.batch(masks)
            ended = _compare(ours.step(copy.deepcopy(actions)), theirs.step(actions), f"call {number}", fix)
        _compare(ours.reset(), theirs.reset(), "a second reset()", fix)
        require(ours.np_random_seed == theirs.np_random_seed, "np_random_seed differs", fix)


def _compare(ours: tuple[Any, ...], theirs: tuple[Any, ...], where: str, fix: str) -> np.ndarray:
    """Whose episode has ended."""
    different = difference(ours, theirs, where)
    require(not different, different, fix)
    return ours[2] | ours[3] if len(ours) == 5 else np.zeros(0, np.bool_)


def unknown_arguments_are_refused(case: _EnvCase) -> None:
    """As libraries look for it: a TypeError with Python's own words."""
    task = task_of(case.env_id)
    for what, make, known in (
        ("the environment", case.make, task.env_class(case.env_id)),
        ("the vector form", case.make_vector, task.env_class(case.env_id)),
        ("make_problem", lambda **more: make_problem(case.env_id, **more), task.problem_class()),
    ):
        right = next(name for name in inspect.signature(known.__init__).parameters if name != "self")
        wrong = right + right[-1]
        try:
            make(**{wrong: None})
        except UnknownArgument as error:
            text = f"unexpected keyword argument {wrong!r}"
            told = text in str(error) and repr(right) in str(error)
            require(told, f"{what} says {said(error)}", f"say {text}, and {right!r}")
        except Exception as error:
            raise ContractError(f"{what} raises {said(error)} of {wrong!r}; raise UnknownArgument") from error
        else:
            raise ContractError(f"{what} takes the argument {wrong!r}; raise UnknownArgument")


def checkers_of_other_libraries_pass(case: _EnvCase) -> None:
    """Without a warning: Gymnasium's, and Stable-Baselines3's where it is installed."""
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("error")
        check_env(case.make())
        if importlib.util.find_spec("stable_baselines3"):
            from stable_baselines3.common.env_checker import check_env as check_for_sb3

            warnings.filterwarnings("ignore", message=_WARNINGS_OF_SB3)
            check_for_sb3(case.make())


ENV_RULES: tuple[Callable[[_EnvCase], None], ...] = (
    spaces_are_valid,
    unknown_arguments_are_refused,
    nothing_works_before_a_reset,
    masks_tell_the_truth,
    only_a_reset_follows_an_end,
    calls_return_what_the_spaces_say,
    infos_tell_the_story,
    seeds_reproduce,
    every_action_steps,
    what_was_returned_belongs_to_the_caller,
    wrong_actions_are_refused,
    wrong_batches_are_refused,
    the_last_info_is_what_the_problem_says,
    light_infos_hold_numbers_only,
    resets_are_checked,
    the_vector_form_equals_the_sync_one,
    every_render_mode_works,
    frames_have_one_size,
    checkers_of_other_libraries_pass,
    copies_have_the_same_future,
)
