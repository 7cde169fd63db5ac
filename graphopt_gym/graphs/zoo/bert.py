"""BERT (Devlin, Chang, Lee, Toutanova, NAACL 2019): bidirectional transformer encoder, post-norm.

The operators are those of the widely used Hugging Face implementation with eager attention: scores, scaling and
mask as separate kernels, the masked-language-model head over every position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.losses import constant_token_loss


class Embeddings(nn.Module):
    position_ids: Tensor

    def __init__(self, vocabulary: int, width: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width, padding_idx=0)
        self.position = nn.Embedding(positions, width)
        self.token_type = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("position_ids", torch.arange(positions).expand(1, -1), persistent=False)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        x = self.word(tokens) + self.token_type(types)
        x = x + self.position(self.position_ids[:, : tokens.shape[1]])
        return self.dropout(self.norm(x))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.head_width).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.query(x), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(self.split(query), key.transpose(-1, -2))
        scores = scores / math.sqrt(self.head_width) + mask
        weights = self.dropout(F.softmax(scores, dim=-1))
        context = torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous()
        return context.view(x.shape)


class Residual(nn.Module):
    """Projection, dropout, residual connection and layer norm, as after attention and feed-forward."""

    def __init__(self, inner: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.dropout(self.dense(x)) + residual)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.attention_output = Residual(width, width, dropout)
        self.intermediate = nn.Linear(width, inner)
        self.activation = nn.GELU()
        self.output = Residual(inner, width, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_output(self.attention(x, mask), x)
        return self.output(self.activation(self.intermediate(x)), x)


class Bert(nn.Module):
    """The encoder with one of two heads.

    ``"pretraining"``: masked-language-model and next-sentence logits. ``"classification"``: two logits a sequence.
    """

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        heads: int,
        inner: int,
        vocabulary: int,
        positions: int,
        dropout: float,
        head: str,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocabulary, width, positions, dropout)
        self.layers = nn.ModuleList(Layer(width, heads, inner, dropout) for _ in range(layers))
        self.pooler = nn.Linear(width, width)
        self.head = head
        if head == "pretraining":
            self.transform, self.activation = nn.Linear(width, width), nn.GELU()
            self.transform_norm = nn.LayerNorm(width, eps=1e-12)
            self.decoder = nn.Linear(width, vocabulary)
            self.decoder.weight = self.embeddings.word.weight
        else:
            self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, 2)

    def forward(
        self,
        tokens: Tensor,
        types: Tensor | None = None,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence: Tensor | None = None,
    ) -> Any:
        if mask is None:
            mask = torch.ones(tokens.shape, device=tokens.device)
        if types is None:
            types = torch.zeros_like(tokens)
        x = self.embeddings(tokens, types)
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, bias)
        pooled = torch.tanh(self.pooler(x[:, 0]))
        if self.head == "classification":
            return self.classifier(self.dropout(pooled))
        logits = self.decoder(self.transform_norm(self.activation(self.transform(x))))
        relation = self.classifier(pooled)
        if labels is None:
            return logits, relation
        assert next_sentence is not None
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1)) + F.cross_entropy(
            relation, next_sentence.view(-1)
        )


def stages(layers: int) -> list[dict[str, Any]]:
    body = [{"name": f"layer {i}", "part": "", "modules": [f"layers.{i}"]} for i in range(layers)]
    head = ["pooler", "transform", "activation", "transform_norm", "decoder", "dropout", "classifier", "loss"]
    return [
        {"name": "embeddings", "part": "", "modules": ["embeddings"]},
        *body,
        {"name": "head", "part": "", "modules": head},
    ]


def build(
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    inner: int = 3072,
    vocabulary: int = 30522,
    positions: int = 512,
    dropout: float = 0.1,
    head: str = "pretraining",
    sequence: int = 384,
    batch: int = 24,
    tokens_only: bool = False,
    train: bool = True,
    optimizer: str | None = "adam",
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``. ``tokens_only``: no labels given, and (training) a loss over the token logits."""
    with torch.device(device):
        module = Bert(
            layers=layers,
            width=width,
            heads=heads,
            inner=inner,
            vocabulary=vocabulary,
            positions=positions,
            dropout=dropout,
            head=head,
        )
        tokens = torch.randint(1, vocabulary, (batch, sequence))
        inputs: dict[str, Tensor] = {"tokens": tokens}
        if not tokens_only:
            inputs["types"] = torch.randint(0, 2, (batch, sequence))
            inputs["mask"] = torch.ones(batch, sequence)
            inputs["labels"] = torch.randint(0, vocabulary, (batch, sequence))
            inputs["next_sentence"] = torch.randint(0, 2, (batch,))

    def loss(output: tuple[Tensor, Tensor]) -> Tensor:
        return constant_token_loss(vocabulary)(output[0])

    return {
        "module": module,
        "example_inputs": inputs,
        "loss": loss if tokens_only and train else None,
        "train": train,
        "optimizer": optimizer,
        "metadata": {"stages": stages(layers)},
    }
