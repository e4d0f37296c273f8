"""BERT's encoder: L layers of attention and feed-forward on packed tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastbert.attention import BertAttention
from fastbert.config import BertConfig
from fastbert.layers import Linear, ResidualLayerNorm, activate
from fastbert.packing import Packed


class BertIntermediate(nn.Module):
    """The feed-forward's way up, with its activation: (T, C) → (T, F)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.activation = config.activation

    def forward(self, hidden: Tensor) -> Tensor:
        """activation(dense(hidden))."""
        return activate(self.dense, hidden, self.activation)


class BertOutput(nn.Module):
    """The way down, dropout, residual, LayerNorm: (T, F) → (T, C)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = ResidualLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        """LayerNorm(dropout(dense(inner)) + residual)."""
        return self.LayerNorm(self.dense(inner), residual, self.dropout_p)


class BertLayer(nn.Module):
    """One layer: attention, then feed-forward, each with residual and norm.

    Source: Vaswani et al. 2017, section 3.1 (post-norm), as Devlin et al. 2019 use it.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)

    def forward(self, hidden: Tensor, packed: Packed) -> Tensor:
        """(T, C) → (T, C)."""
        attended = self.attention(hidden, packed)
        return self.output(self.intermediate(attended), attended)


class BertEncoder(nn.Module):
    """The stack of layers.

    Attributes:
        every_n_layers: which layers `checkpointing` is for: those whose number this divides.
        checkpointing: None, or options of `torch.utils.checkpoint`: while it trains, a layer then
            keeps its input alone, and is computed again in the backward pass (Chen et al. 2016).
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.every_n_layers = 1
        self.checkpointing: dict[str, Any] | None = None
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden: Tensor,
        packed: Packed,
        states: list[Tensor] | None = None,
        attentions: list[list[Tensor]] | None = None,
    ) -> Tensor:
        """(T, C) → (T, C).

        Args:
            hidden: (T, C), the embeddings.
            packed: which rows form a sequence.
            states: if a list, each layer's input and the last output are appended to it.
            attentions: if a list, each layer's softmax is, as B tensors (H, S, S).
        """
        saving = self.training and torch.is_grad_enabled()
        layer: BertLayer
        for number, layer in enumerate(self.layer):  # type: ignore[assignment]  # a list of modules
            if states is not None:
                states.append(hidden)
            if attentions is not None:
                attentions.append(layer.attention.self.weights(hidden, packed))
            if saving and self.checkpointing is not None and number % self.every_n_layers == 0:
                hidden = checkpoint(layer, hidden, packed, **self.checkpointing)
            else:
                hidden = layer(hidden, packed)
        if states is not None:
            states.append(hidden)
        return hidden
