"""The event engine: what runs where and when, and what memory peaks."""

from graphopt_gym.simulator.simulator import Batch, Simulator, simulate
from graphopt_gym.simulator.tasks import TaskGraph, compile_tasks
from graphopt_gym.simulator.timeline import Timeline

__all__ = ["Batch", "Simulator", "TaskGraph", "Timeline", "compile_tasks", "simulate"]
