"""Partitioning a network over the chips of a package, as a pipeline (Xie et al., MLSys 2022)."""
