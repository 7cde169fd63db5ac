"""Moved to :mod:`graphopt_gym.units`."""

from graphopt_gym.units import *  # noqa: F403
