"""Equality saturation: e-graphs, their exploration by two engines, extraction of the cheapest program."""
