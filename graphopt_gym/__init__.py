"""graphopt-gym: Gymnasium environments for learned optimisation of machine-learning graphs.

Importing it registers the environments. It does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphopt_gym.registration import make_problem, register, register_all, tasks

if TYPE_CHECKING:
    from graphopt_gym.catalog import Catalog as Catalog
    from graphopt_gym.catalog import catalogs as catalogs
    from graphopt_gym.errors import InputError as InputError
    from graphopt_gym.graphs.graph import ComputationGraph as ComputationGraph
    from graphopt_gym.graphs.io import save_graph as save_graph
    from graphopt_gym.graphs.tensor_program import TensorProgram as TensorProgram
    from graphopt_gym.graphs.zoo import graph_names as graph_names
    from graphopt_gym.graphs.zoo import load_graph as load_graph
    from graphopt_gym.graphs.zoo.programs import load_program as load_program
    from graphopt_gym.graphs.zoo.programs import program_names as program_names
    from graphopt_gym.hardware.cluster import Cluster as Cluster
    from graphopt_gym.hardware.cluster import Device as Device
    from graphopt_gym.hardware.cluster import Link as Link
    from graphopt_gym.hardware.cluster import cluster_names as cluster_names
    from graphopt_gym.hardware.cluster import load_cluster as load_cluster
    from graphopt_gym.hardware.cluster import load_device as load_device
    from graphopt_gym.hardware.cost_model import CostModel as CostModel
    from graphopt_gym.hardware.machine import Machine as Machine
    from graphopt_gym.hardware.machine import load_machine as load_machine
    from graphopt_gym.hardware.machine import machine_names as machine_names
    from graphopt_gym.hardware.package import Package as Package
    from graphopt_gym.hardware.package import load_package as load_package
    from graphopt_gym.hardware.package import package_names as package_names
    from graphopt_gym.problem import Outcome as Outcome
    from graphopt_gym.problem import Problem as Problem
    from graphopt_gym.problem import Solution as Solution
    from graphopt_gym.search.solve import compare as compare
    from graphopt_gym.search.solve import methods as methods
    from graphopt_gym.search.solve import solve as solve
    from graphopt_gym.simulator import simulate as simulate
    from graphopt_gym.simulator.own_costs import OwnCosts as OwnCosts
    from graphopt_gym.task import Task as Task
    from graphopt_gym.task import Variant as Variant
    from graphopt_gym.task import Words as Words

__version__ = "0.1.0"

# public name -> module, imported when first used, so that `import graphopt_gym` stays quick
_LAZY = {
    "Catalog": "catalog",
    "catalogs": "catalog",
    "InputError": "errors",
    "ComputationGraph": "graphs.graph",
    "save_graph": "graphs.io",
    "load_graph": "graphs.zoo",
    "graph_names": "graphs.zoo",
    "TensorProgram": "graphs.tensor_program",
    "load_program": "graphs.zoo.programs",
    "program_names": "graphs.zoo.programs",
    "Cluster": "hardware.cluster",
    "Device": "hardware.cluster",
    "Link": "hardware.cluster",
    "load_cluster": "hardware.cluster",
    "cluster_names": "hardware.cluster",
    "load_device": "hardware.cluster",
    "CostModel": "hardware.cost_model",
    "Machine": "hardware.machine",
    "load_machine": "hardware.machine",
    "machine_names": "hardware.machine",
    "Package": "hardware.package",
    "load_package": "hardware.package",
    "package_names": "hardware.package",
    "simulate": "simulator",
    "OwnCosts": "simulator.own_costs",
    "Problem": "problem",
    "Outcome": "problem",
    "Solution": "problem",
    "Task": "task",
    "Variant": "task",
    "Words": "task",
    "solve": "search.solve",
    "methods": "search.solve",
    "compare": "search.solve",
}

__all__ = ["make_problem", "register", "tasks", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'graphopt_gym' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"graphopt_gym.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


register_all()
