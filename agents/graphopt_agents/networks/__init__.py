"""The networks of the learned placers, each a plain ``torch.nn.Module`` on one graph without padding.

``inputs`` (tensors of a graph on a cluster) -> ``sage`` (graph network) -> ``attention`` (segments with recurrence)
-> ``heads`` (op against device) ; ``superposition`` gates the dense layers of the last two ; ``placement`` joins them.

The papers (Zhou et al., GDP, 2019; Zhou et al., GO, NeurIPS 2020) do not give widths, depths or constants: all sizes
here are ours. What else is recalled from the papers and what is ours stands in each module.
"""

from graphopt_agents.networks.inputs import GraphInput
from graphopt_agents.networks.placement import NetworkConfig, PlacementNetwork

__all__ = ["GraphInput", "NetworkConfig", "PlacementNetwork"]
