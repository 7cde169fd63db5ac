"""The placer: see :mod:`graphopt_agents.placer.trainer`."""

from graphopt_agents.placer.trainer import Args as Args
from graphopt_agents.placer.trainer import Trainer as Trainer

method_run = Trainer.method_run
