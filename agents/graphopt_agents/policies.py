"""Our networks as policies of Stable-Baselines3's PPO and A2C, and of sb3-contrib's MaskablePPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphopt_agents.blocks import Blocks, draw_placements
from graphopt_agents.core.sb3 import OneShotPolicy, StepPolicy
from graphopt_agents.networks import GraphInput, NetworkConfig, PlacementNetwork
from graphopt_agents.networks.chiplet import ChipletConfig, ChipletInput, ChipletNetwork
from graphopt_agents.networks.inputs import GRAPH_WIDTH
from graphopt_agents.networks.joint import JointConfig, JointInput, JointNetwork
from graphopt_agents.networks.rewrite import RewriteConfig, RewriteInput, RewriteNetwork, all_rules, rule_numbers
from graphopt_gym.envs.chiplet.features import CHIP_FEATURES, OP_FEATURES
from graphopt_gym.envs.joint.episodes import ONE_SHOT
from graphopt_gym.envs.joint.problem import TASKS
from graphopt_gym.errors import InputError
from graphopt_gym.fields import share


class GDPPolicy(OneShotPolicy):
    """The placement network as the policy of Stable-Baselines3's PPO and A2C on ``PlacementOneShot-v0``.

    Args:
        network: fields of :class:`NetworkConfig`.
        ratio: see :class:`OneShotPolicy`.
        independent: share of placements drawn group by group, the others in blocks, see :func:`draw_placements`.

    Raises:
        InputError: spaces that are not those of ``PlacementOneShot-v0``, an unknown field or ratio.
    """

    keys = ("node_mask", "action_mask", "nodes", "times", "memory", "edge_index", "edge_bytes", "links", "devices")
    config_class = NetworkConfig
    network_class = PlacementNetwork
    graph_width = GRAPH_WIDTH
    wrong_environment = "GDPPolicy places whole graphs; give it an environment of PlacementOneShot-v0"

    def __init__(self, *spaces_and_rate: Any, independent: float = 0.3, **given: Any) -> None:
        self.independent = share("independent", independent)
        super().__init__(*spaces_and_rate, **given)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"independent": self.independent}

    def graph_input(self, observation: Mapping[str, Tensor]) -> GraphInput:
        return GraphInput.from_observation(observation)

    def graph_features(self, graph: GraphInput) -> Tensor:
        return graph.graph_features(self.network_config.use_times)

    def draw(self, log_probs: Tensor) -> Tensor:
        alone = torch.rand(len(log_probs)) < self.independent
        blocks = Blocks(log_probs.shape[1])
        return torch.cat(
            [draw_placements(row, 1, None, blocks, float(one)) for row, one in zip(log_probs, alone, strict=True)]
        )


class GOPolicy(OneShotPolicy):
    """:class:`JointNetwork` as the policy of Stable-Baselines3's PPO and A2C on ``GraphOptimizationOneShot-v0``.

    Args:
        network: fields of :class:`JointConfig`, but for ``timeline``, which an observation does not show.
        ratio: see :class:`OneShotPolicy`.
        tasks: what the environment decides, as its argument says; all where left out.

    Raises:
        InputError: spaces that are not those of ``GraphOptimizationOneShot-v0`` of such tasks, an unknown field or
            ratio.
    """

    keys = tuple(part.name for part in ONE_SHOT)
    config_class = JointConfig
    network_class = JointNetwork
    graph_width = GRAPH_WIDTH
    wrong_environment = "GOPolicy decides on whole graphs; give it an environment of GraphOptimizationOneShot-v0"

    def __init__(self, *spaces_and_rate: Any, tasks: str = "+".join(TASKS), **given: Any) -> None:
        self.tasks = tuple(task for task in TASKS if task in tasks.split("+"))
        super().__init__(*spaces_and_rate, **given)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"tasks": "+".join(self.tasks)}

    def _build_more(self) -> None:
        super()._build_more()
        if self.network_config.timeline:
            raise InputError("timeline is True, which no observation shows: leave it out")
        obs = self.observation_space
        most = {name: int(obs[f"{name}_mask"].shape[0]) for name in ("node", "group", "device")}  # type: ignore[index]
        placed = ["placement"] * ("placement" in self.tasks)
        levels = [task for task in self.tasks if task != "placement"]
        choices = self.action_space.nvec  # type: ignore[attr-defined]
        self.levels = int(choices[-1]) if levels else 2
        self.blocks = [(most["group"], most["device"]) for _ in placed] + [(most["node"], self.levels) for _ in levels]
        if choices.tolist() != [count for size, count in self.blocks for _ in range(size)]:
            raise InputError(
                f"the environment decides on other tasks than {'+'.join(self.tasks)}; give its own as tasks"
            )

    def graph_input(self, observation: Mapping[str, Tensor]) -> JointInput:
        return JointInput.from_observation(observation, self.tasks, self.levels)

    def graph_features(self, graph: JointInput) -> Tensor:
        return graph.place.graph_features(self.network_config.use_times)

    def _log_probs(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(float32 [B, entries, C] of log-probabilities, bool [B, entries] of those that count, values [B])."""
        graphs, which = self._graphs(obs)
        lowest = torch.finfo(torch.float32).min
        most = max(count for _, count in self.blocks)
        padded, real, values = [], [], []
        for graph in graphs:
            rows = self.network(graph).log_softmax(-1).clamp(min=lowest)
            rows = nn.functional.pad(rows, (0, most - rows.shape[1]), value=lowest)
            parts = rows.split([graph.num_groups if task == "placement" else graph.num_ops for task in self.tasks])
            blocks, counts = [], []
            for (size, _), part in zip(self.blocks, parts, strict=True):
                certain = rows.new_full((size - len(part), most), lowest)  # a padded entry is 0 with certainty
                certain[:, 0] = 0
                blocks += [part, certain]
                counts.append(torch.arange(size, device=rows.device) < len(part))
            padded.append(torch.cat(blocks))
            real.append(torch.cat(counts))
            values.append(self.value_net(self.graph_features(graph)))
        return torch.stack(padded)[which], torch.stack(real)[which], torch.cat(values)[which]


class ChipletPolicy(OneShotPolicy):
    """:class:`ChipletNetwork` as the policy of Stable-Baselines3's PPO and A2C on ``ChipletPartition-v0``.

    The environment's ``mode`` is ``"fix"``: the action is a whole candidate, each op's chip drawn by itself, and the
    environment corrects it. (In ``"sample"`` mode the environment draws, so a policy's action has no probability.)

    Args:
        network: fields of :class:`ChipletConfig`.
        ratio: see :class:`OneShotPolicy`.

    Raises:
        InputError: spaces that are not those of ``ChipletPartition-v0`` in ``"fix"`` mode, an unknown field or ratio.
    """

    keys = ("node_mask", "action_mask", "nodes", "edge_index", "edge_bytes", "chips")
    config_class = ChipletConfig
    network_class = ChipletNetwork
    graph_width = 2 * len(OP_FEATURES) + len(CHIP_FEATURES)
    wrong_environment = "ChipletPolicy proposes whole partitions; give it ChipletPartition-v0 with mode='fix'"

    def graph_input(self, observation: Mapping[str, Tensor]) -> ChipletInput:
        return ChipletInput.from_observation(observation)

    def graph_features(self, graph: ChipletInput) -> Tensor:
        return torch.cat([graph.nodes.mean(0), graph.nodes.amax(0), graph.chips.mean(0)])


class RewritePolicy(StepPolicy):
    """:class:`RewriteNetwork` as the policy of sb3-contrib's MaskablePPO on ``RewriteOrder-v0``.

    Args:
        network: fields of :class:`RewriteConfig`.
        environment_rules: the names of the rules that the environment was made with, in the order of the table of
            rules; all where left out.

    Raises:
        InputError: spaces that are not those of ``RewriteOrder-v0``, an unknown field, other rules than the
            environment has.
    """

    keys = (
        "nodes", "node_mask", "edge_index", "edge_operand", "matches", "match_rule", "match_roots", "progress",
        "action_mask",
    )  # fmt: skip
    config_class = RewriteConfig
    network_class = RewriteNetwork
    wrong_environment = "RewritePolicy rewrites programs; give it an environment of RewriteOrder-v0"

    def __init__(self, *spaces_and_rate: Any, environment_rules: tuple[str, ...] | None = None, **given: Any) -> None:
        self.environment_rules = all_rules() if environment_rules is None else tuple(environment_rules)
        super().__init__(*spaces_and_rate, **given)

    def _build_more(self) -> None:
        has = int(self.observation_space["match_rule"].high.max()) + 1  # type: ignore[index]
        if has != len(self.environment_rules):
            raise InputError(
                f"the environment has {has} rules, environment_rules {len(self.environment_rules)}; give RewritePolicy "
                "the names of its rules: environment_rules=[rule.name for rule in problem.matcher.rules]"
            )
        numbers = torch.from_numpy(rule_numbers(self.network_config.rules, self.environment_rules))
        self.register_buffer("rule_number", numbers, persistent=False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"environment_rules": self.environment_rules}

    def act(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        batch = RewriteInput.from_observations(obs, self.rule_number)  # type: ignore[arg-type]
        out = self.network(batch)
        return out.logits(batch, obs["match_rule"].shape[1]), out.values
