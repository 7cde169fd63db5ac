"""Blocks of groups that go to a device together: how placements are drawn from a policy, and changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.instances import Instance


@dataclass(frozen=True)
class Blocks:
    """What blocks of groups are drawn from, which go to a device together.

    Args:
        groups: how many, G.
        orders: int64 [G] each, permutations of the groups; their own where none is given.
        partitions: int64 [G] each, the part of each group, such as its module.
    """

    groups: int
    orders: tuple[Tensor, ...] = ()
    partitions: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, instance: Instance) -> Blocks:
        """Of a problem: the groups' own order and, where it is another one, module after module; its modules.

        In an unrolled network the groups' own order is that of time and visits all layers in each step; sorted by the
        module that a group comes from (modules as they first occur), a layer is in one piece.
        """
        own, by_module = (
            torch.arange(instance.num_groups),
            torch.from_numpy(instance.module_of_group).argsort(stable=True),
        )
        orders = (own,) if torch.equal(own, by_module) else (own, by_module)
        return cls(instance.num_groups, orders, tuple(map(torch.from_numpy, instance.module_partitions)))

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """int64 [G]: the block of each group. One of the partitions every other time, where there are any; else one of
        the orders, cut into blocks of a mean length that is drawn too, log-uniformly from 1 to G."""
        if self.partitions and int(torch.randint(2, (), generator=generator)):
            return self.partitions[int(torch.randint(len(self.partitions), (), generator=generator))]
        length = float(self.groups) ** float(torch.rand((), generator=generator))
        block = (torch.rand(self.groups, generator=generator) < 1 / length).cumsum(0)
        if not self.orders:
            return block
        order = self.orders[int(torch.randint(len(self.orders), (), generator=generator))]
        return torch.empty_like(block).scatter_(0, order, block)


def draw_placements(
    log_probs: Tensor, count: int, generator: torch.Generator | None, blocks: Blocks, independent: float = 0.0
) -> Tensor:
    """Draw placements from a policy: int64 [count, G], of ``log_probs`` float32 [G, D].

    The share ``independent`` of them draws each group by itself. The others draw blocks: the groups of a block share
    their noise, ``argmax(log_probs[g] + gumbel[block(g)])``. Each group still follows the policy exactly (its marginal
    is the categorical), but neighbours tend to land on the same device, as in any placement worth having; from
    independent draws over hundreds of groups, learning hardly finds such placements. Ours.
    """
    groups, devices = log_probs.shape
    alone = round(count * independent)
    rows = []
    for row in range(count):
        block = torch.arange(groups) if row < alone else blocks.draw(generator)
        uniform = torch.rand(int(block.max()) + 1, devices, generator=generator)
        # 24 bits of the uniform can be 0; never infinite noise
        noise = -(-(uniform.clamp(1e-7, 1 - 1e-7).log())).log()
        rows.append((log_probs + noise[block]).argmax(1))
    return torch.stack(rows) if rows else torch.empty((0, groups), dtype=torch.int64)


def mutate_placements(
    placements: Tensor,
    log_probs: Tensor,
    count: int,
    generator: torch.Generator | None,
    blocks: Blocks,
    allowed: Tensor | None = None,
) -> Tensor:
    """int64 [count, G]: placements out of int64 [K, G], each with one block drawn anew as a whole.

    The block lies around a random group; its device is drawn from the policy's mean over the block, mixed half and
    half with the uniform distribution. Groups that may not be there (``allowed``, bool [G, D]) stay. Ours.
    """
    groups, devices = log_probs.shape
    rows = []
    for _ in range(count):
        row = placements[int(torch.randint(len(placements), (), generator=generator))].clone()
        block = blocks.draw(generator)
        inside = block == block[int(torch.randint(groups, (), generator=generator))]
        weights = log_probs[inside].exp().mean(0) + 1 / devices
        device = torch.multinomial(weights, 1, generator=generator)
        row[inside if allowed is None else inside & allowed[:, device[0]]] = device
        rows.append(row)
    return torch.stack(rows)
