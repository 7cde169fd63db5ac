"""Task-independent search over any Problem, under one budget."""

from graphopt_gym.search.solve import Evaluator, Method, compare, methods, solve

__all__ = ["Evaluator", "Method", "compare", "methods", "solve"]
