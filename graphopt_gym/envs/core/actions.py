"""Actions as they come from outside: checked once, before any task sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from graphopt_gym.errors import InputError, quoted

_ARRAYS = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)  # spaces whose actions are arrays
_LIMIT = 2**31  # no action space of ours reaches it, and kernels hold choices as int32


def checked_actions(space: spaces.Space[Any], actions: Any, count: int) -> Any:
    """``count`` actions in the form that episodes take.

    Args:
        space: of one action.
        actions: one after the other along the first axis.

    Returns:
        int64 [count, *shape] of a space of integers; float64 [count, *shape] of a Box; a list for any other space.
        Integers outside the space stay: the task says what an illegal choice does.

    Raises:
        InputError: another shape or type, a number that is not finite or lies outside a Box, or an integer that is
            larger than any space of choices.
    """
    if not isinstance(space, _ARRAYS):
        listed = list(actions)
        for action in listed:
            if action not in space:
                raise InputError(f"action {quoted(action, 60)} is not in the space {quoted(space, 60)}")
        return listed
    of_numbers = isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind == "f"
    wanted = f"{'numbers' if of_numbers else 'integers'} of shape {space.shape}"
    try:
        given = np.asarray(actions)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"action has rows of unequal length or no type; give {wanted}") from None
    if given.shape != (count, *(space.shape or ())):
        if given.shape[:1] != (count,):
            raise InputError(f"actions have shape {given.shape}; give one action for each of {count}: {wanted}")
        raise InputError(f"action has shape {given.shape[1:]} and type {given.dtype}; give {wanted}")
    if given.dtype.kind not in ("iuf" if of_numbers else "iu"):
        what = quoted(given.flat[0], 60) if given.dtype.kind in "OUS" and given.size else f"of type {given.dtype}"
        raise InputError(f"action is {what}; give {wanted}")
    if of_numbers:
        assert isinstance(space, spaces.Box)
        given = given.astype(np.float64)
        wrong = ~((given >= space.low) & (given <= space.high))  # so that a NaN is wrong
        if wrong.any():
            at = tuple(int(index) for index in np.argwhere(wrong)[0])
            low, high = (np.broadcast_to(bound, space.shape)[at[1:]] for bound in (space.low, space.high))
            raise InputError(f"action{list(at[1:])} is {given[at]}; give numbers from {low:g} to {high:g}")
        return given
    if given.dtype.kind == "u":
        too_large = given >= _LIMIT
    else:
        too_large = (given >= _LIMIT) | (given < -_LIMIT)
    if too_large.any():
        raise InputError(f"action is {given[too_large].flat[0]}, larger than any choice; give {wanted}")
    return given.astype(np.int64)


def checked_action(space: spaces.Space[Any], action: Any) -> Any:
    """One action, as the batch of one that episodes take; see :func:`checked_actions`."""
    if type(action) in (int, np.int64) and type(space) is spaces.Discrete and -_LIMIT <= action < _LIMIT:
        return np.array([action], np.int64)  # what almost every step is, without the rest
    if isinstance(space, _ARRAYS):
        try:
            action = np.asarray(action)[None]
        except (TypeError, ValueError, OverflowError):
            action = [action]
        return checked_actions(space, action, 1)
    return checked_actions(space, [action], 1)
