"""The placement network's trunk: attention over ops in topological order, segment by segment.

From GDP: the states of the previous segment are cached without gradient and attended to, in the manner of
Transformer-XL (Dai et al., ACL 2019); no positional encoding, the graph network carries position (recalled). Within a
segment every op attends to every other: all ops are decided together. Ours: normalisation before each part of a block,
and GELU.

A segment costs the same wherever it stands, so time grows linearly with ops, and with ``save_memory`` only the
segments' inputs are kept for the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from graphopt_agents.networks.superposition import SuperposedLinear


class Block(nn.Module):
    """Attention over [previous segment, this segment], then a feed-forward part; both residual.

    With ``heads=0`` (the ablation "no attention") the feed-forward part alone.
    """

    def __init__(self, width: int, heads: int, condition: int | None) -> None:
        super().__init__()
        if heads and width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        self.heads = heads
        if heads:
            self.norm_attention = nn.LayerNorm(width)
            self.query = SuperposedLinear(width, width, condition)
            self.key_value = SuperposedLinear(width, 2 * width, condition)
            self.out = SuperposedLinear(width, width, condition)
        self.norm = nn.LayerNorm(width)
        self.inner = SuperposedLinear(width, 2 * width, condition)
        self.outer = SuperposedLinear(2 * width, width, condition)

    def forward(self, x: Tensor, memory: Tensor | None, context: Tensor | None) -> Tensor:
        """``x`` float32 [S, width], ``memory`` float32 [M, width] (inputs of this block, without gradient)."""
        if self.heads:
            seen = x if memory is None else torch.cat([memory, x])
            query = self._split(self.query(self.norm_attention(x), context))
            key, value = (
                self._split(part) for part in self.key_value(self.norm_attention(seen), context).chunk(2, dim=-1)
            )
            mixed = F.scaled_dot_product_attention(query, key, value)
            x = x + self.out(mixed[0].transpose(0, 1).reshape(x.shape), context)
        return x + self.outer(F.gelu(self.inner(self.norm(x), context)), context)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.heads, -1).transpose(0, 1)[None]  # [1, heads, S, width / heads]


class SegmentAttention(nn.Module):
    """``blocks`` blocks over segments of ``segment`` ops.

    ``recurrence``: whether a segment sees the one before it. Where one segment covers the graph this is full
    attention.
    """

    def __init__(
        self, width: int, blocks: int, heads: int, segment: int, recurrence: bool, condition: int | None
    ) -> None:
        super().__init__()
        self.segment = segment
        self.recurrence = recurrence and heads > 0
        self.blocks = nn.ModuleList(Block(width, heads, condition) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor | None = None, save_memory: bool = False) -> Tensor:
        """float32 [G, width] (ops in topological order), ``context`` float32 [condition] -> [G, width]."""
        outputs = []
        memory: list[Tensor | None] = [None] * len(self.blocks)
        for part in x.split(self.segment):
            if save_memory and torch.is_grad_enabled():
                out, *seen = checkpoint(
                    self._run, part, context, *memory, use_reentrant=False, preserve_rng_state=False
                )
            else:
                out, *seen = self._run(part, context, *memory)
            outputs.append(out)
            if self.recurrence:
                memory = [state.detach() for state in seen]
        return torch.cat(outputs)

    def _run(self, part: Tensor, context: Tensor | None, *memory: Tensor | None) -> tuple[Tensor, ...]:
        seen = []
        for block, before in zip(self.blocks, memory, strict=True):
            seen.append(part)
            part = block(part, before, context)
        return (self.norm(part), *seen)
