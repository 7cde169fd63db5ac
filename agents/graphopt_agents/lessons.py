"""Lessons of program rewriting: the way to the best program so far, as what the policy should have done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from graphopt_agents.networks.rewrite import RewriteInput, root_gain

if TYPE_CHECKING:
    from graphopt_agents.rewrite import Task


@dataclass(frozen=True)
class Lesson:
    """A step on the way to the best: which actions are right, and what matches save at once where that is known."""

    input: RewriteInput
    right: torch.Tensor  # bool [m + 1]
    gains: torch.Tensor  # float32 [m], NaN where unknown


def lessons_of(task: Task, see: Callable[[np.ndarray], list[RewriteInput]]) -> list[Lesson]:
    """The way to the task's best program, each step a lesson; at its end it is right to stop.

    Right is what the way does next, and what it does later and could do now. ``see`` gives what the network is to see
    of rows of the task's episodes.
    """
    best = task.best
    if best is None or not best.traced or best.last is None:
        return []
    state, taken = task.problem.original, []
    for rule, places, _ in best.trace:
        roots = tuple(state.program.order[place] for place in places)
        rules = task.problem.matcher.rules
        taken.append(next(one for one in state.matches if one.roots == roots and rules[one.rule].name == rule))
        state = state.apply(taken[-1])
    episodes, row, lessons = task.episodes, task.episodes.count - 1, []
    rows = np.array([row])
    episodes.reset(rows, [np.random.default_rng(0)])
    for number in range(len(taken) + 1):
        state, matches = episodes.state(row), episodes.shown(row)
        later = {(match.rule, match.roots) for match in taken[number:]}
        right = torch.tensor([not later, *((match.rule, match.roots) in later for match in matches)])
        gains = torch.full((len(matches),), torch.nan)
        for index, match in enumerate(matches):
            if task.looked_around or (later and match == taken[number]):
                gains[index] = root_gain(torch.tensor(task.saved(state, state.apply(match))))
        if right.any():  # the next one may be among those that are not shown
            lessons.append(Lesson(see(rows)[0], right, gains))
        if later:
            episodes.rewrite(row, taken[number])
            episodes.steps[row] += 1
    return lessons
