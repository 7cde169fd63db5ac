"""The network of program rewriting as a policy of sb3-contrib's MaskablePPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch import Tensor

from graphopt_agents.networks.rewrite import RewriteConfig, RewriteInput, RewriteNetwork, all_rules, rule_numbers
from graphopt_gym.errors import InputError, unknown_name

KEYS = (
    "nodes",
    "node_mask",
    "edge_index",
    "edge_operand",
    "matches",
    "match_rule",
    "match_roots",
    "progress",
    "action_mask",
)


class RewritePolicy(MaskableActorCriticPolicy):
    """:class:`RewriteNetwork` as the policy of sb3-contrib's MaskablePPO on ``RewriteOrder-v0``.

    Actions beyond the matches have no probability even where MaskablePPO is told of no masks. The weights do not
    depend on the sizes that an environment pads to, so they can be carried to another one.

    Args:
        network: fields of :class:`RewriteConfig`.
        environment_rules: the names of the rules that the environment was made with, in the order of the table of
            rules; all where left out.

    Raises:
        InputError: spaces that are not those of ``RewriteOrder-v0``, an unknown field, other rules than the
            environment has.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        network: Mapping[str, Any] | None = None,
        environment_rules: tuple[str, ...] | None = None,
        **unused: Any,
    ) -> None:
        known = isinstance(observation_space, spaces.Dict) and set(KEYS) <= set(observation_space.spaces)
        if not known or not isinstance(action_space, spaces.Discrete):
            raise InputError("RewritePolicy rewrites programs; give it an environment of RewriteOrder-v0")
        fields = RewriteConfig.__dataclass_fields__
        for name in network or {}:
            if name not in fields:
                raise unknown_name("argument of the network", name, fields)
        rules = all_rules() if environment_rules is None else tuple(environment_rules)
        has = int(observation_space["match_rule"].high.max()) + 1  # type: ignore[index]
        if has != len(rules):
            raise InputError(
                f"the environment has {has} rules, environment_rules {len(rules)}; give RewritePolicy the names of its "
                "rules: environment_rules=[rule.name for rule in problem.matcher.rules]"
            )
        self.environment_rules = rules
        self.network_config = RewriteConfig(**(network or {}))
        super().__init__(observation_space, action_space, lr_schedule, **unused)

    def _build(self, lr_schedule: Any) -> None:
        self.network = RewriteNetwork(self.network_config)
        numbers = torch.from_numpy(rule_numbers(self.network_config.rules, self.environment_rules))
        self.register_buffer("rule_number", numbers, persistent=False)
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return data | {"network": vars(self.network_config), "environment_rules": self.environment_rules}

    def _run(self, obs: Mapping[str, Tensor], action_masks: Any = None) -> tuple[MaskableDistribution, Tensor]:
        """(the distribution over actions, values float32 [B, 1]) of B observations."""
        batch = RewriteInput.from_observations(obs, self.rule_number)  # type: ignore[arg-type]
        out = self.network(batch)
        logits = out.logits(batch, obs["match_rule"].shape[1])
        distribution = self.action_dist.proba_distribution(action_logits=logits)
        mask = (obs["action_mask"] > 0).cpu().numpy()
        if action_masks is not None:
            mask &= np.asarray(torch.as_tensor(action_masks).cpu(), bool).reshape(mask.shape)
        distribution.apply_masking(mask)
        return distribution, out.values[:, None]

    def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """(actions int64 [B], values float32 [B, 1], log-probabilities float32 [B])."""
        distribution, values = self._run(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor, action_masks: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """(values float32 [B, 1], log-probabilities float32 [B], entropies float32 [B])."""
        distribution, values = self._run(obs, action_masks)
        entropy = distribution.entropy()
        assert entropy is not None
        return values, distribution.log_prob(actions), entropy

    def get_distribution(self, obs: Any, action_masks: Any = None) -> MaskableDistribution:
        return self._run(obs, action_masks)[0]

    def predict_values(self, obs: Any) -> Tensor:
        """float32 [B, 1]: what is still to be saved, to the original's time."""
        batch = RewriteInput.from_observations(obs, self.rule_number)  # type: ignore[arg-type]
        values: Tensor = self.network(batch).values
        return values[:, None]
