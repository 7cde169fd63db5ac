"""Task-independent search over any Problem, under one budget."""

from graphopt_gym.search.evaluator import Evaluator, Method
from graphopt_gym.search.solve import compare, methods, solve

__all__ = ["Evaluator", "Method", "compare", "methods", "solve"]
