"""BERT's self-attention on packed tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastbert import ops
from fastbert.config import BertConfig
from fastbert.layers import Linear, ResidualLayerNorm
from fastbert.packing import Packed
from fastbert.reference import attention_weights

_PARTS = ("query", "key", "value")


class BertSelfAttention(nn.Module):
    """softmax(QKᵀ/√D) V in every head, within every sequence.

    `qkv` holds the checkpoint's `query`, `key` and `value` one below the other, (3C, C); a state
    dict with the three under their own names loads too.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.dropout_p = config.attention_probs_dropout_prob
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.register_load_state_dict_pre_hook(_fuse)

    def forward(self, hidden: Tensor, packed: Packed) -> Tensor:
        """(T, C) → (T, C)."""
        qkv = self._heads(hidden)  # (T, 3, H, D)
        dropout_p = self.dropout_p if self.training else 0.0
        context = ops.varlen_attention(
            qkv,
            packed.cu_seqlens,
            packed.max_seqlen,
            packed.work,
            self.head_dim**-0.5,
            dropout_p,
            ops.draw_seed(dropout_p, hidden.device),
        )  # (T, H, D)
        return context.view(-1, self.heads * self.head_dim)

    def weights(self, hidden: Tensor, packed: Packed) -> list[Tensor]:
        """The softmax alone, B tensors (H, S, S), for ``output_attentions``."""
        return attention_weights(self._heads(hidden), packed.cu_seqlens, self.head_dim**-0.5)

    def _heads(self, hidden: Tensor) -> Tensor:
        qkv: Tensor = self.qkv(hidden)
        return qkv.view(-1, 3, self.heads, self.head_dim)


class BertSelfOutput(nn.Module):
    """Projection of the heads, dropout, residual, LayerNorm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = ResidualLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, context: Tensor, residual: Tensor) -> Tensor:
        """(T, C), (T, C) → (T, C)."""
        return self.LayerNorm(self.dense(context), residual, self.dropout_p)


class BertAttention(nn.Module):
    """Self-attention with its output layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)  # the checkpoint's own name
        self.output = BertSelfOutput(config)

    def forward(self, hidden: Tensor, packed: Packed) -> Tensor:
        """(T, C) → (T, C)."""
        return self.output(self.self(hidden, packed), hidden)


def _fuse(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
) -> None:
    """Join query, key and value of a checkpoint into qkv, in place, before they are loaded."""
    for kind in ("weight", "bias"):
        names = [f"{prefix}{part}.{kind}" for part in _PARTS]
        if all(name in state for name in names):
            state[f"{prefix}qkv.{kind}"] = torch.cat([state.pop(name) for name in names])
