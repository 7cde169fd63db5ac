"""TensorProgram: a small, typed, executable tensor IR that rewriting and architecture search edit.

Every tensor is a float tensor; its type is its shape. Operators are those of TENSAT (Yang et al. 2021, section 3.1,
which are TASO's), plus a few of ours that whole networks need; see :mod:`graphopt_gym.graphs.tensor_program.ops`.
"""

from __future__ import annotations

from graphopt_gym.graphs.tensor_program.convert import to_computation_graph
from graphopt_gym.graphs.tensor_program.execute import execute, random_values
from graphopt_gym.graphs.tensor_program.ops import OPS, OpSpec
from graphopt_gym.graphs.tensor_program.program import Change, Node, ProgramBuilder, TensorProgram
from graphopt_gym.graphs.tensor_program.text import parse_program, program_text

__all__ = [
    "OPS",
    "Change",
    "Node",
    "OpSpec",
    "ProgramBuilder",
    "TensorProgram",
    "execute",
    "parse_program",
    "program_text",
    "random_values",
    "to_computation_graph",
]
