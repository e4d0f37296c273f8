"""BERT on padded batches, the usual way: what `fastbert demo` times packing against.

The same modules and ops with the same weights run on all B·S tokens, padding included; only
attention differs, since here a mask must hide the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from fastbert.encoder import BertLayer
    from fastbert.model import BertModel


def pad(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, S) int64, filled up with ``pad_id``, and the mask (B, S), True where real."""
    lengths = torch.tensor([len(row) for row in ids])
    width = int(lengths.max())
    padded = torch.full((len(ids), width), pad_id)
    for row, values in enumerate(ids):
        padded[row, : len(values)] = torch.tensor(values)
    return padded, torch.arange(width) < lengths[:, None]


def padded_forward(model: BertModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the last hidden states (B, S, C); rows where ``mask`` is False mean nothing.

    Args:
        model: in eval mode.
        ids: (B, S) token ids, all of type 0.
        mask: (B, S) bool, True where a token is real.
    """
    B, S = ids.shape
    positions = torch.arange(S, device=ids.device).expand(B, S).reshape(-1)  # (B·S,)
    flat = ids.reshape(-1)
    hidden: Tensor = model.embeddings(flat, torch.zeros_like(flat), positions)  # (B·S, C)
    for layer in model.encoder.layer:
        hidden = _layer(cast("BertLayer", layer), hidden, mask)
    return hidden.view(B, S, -1)


def _layer(layer: BertLayer, hidden: Tensor, mask: Tensor) -> Tensor:
    (B, S), attention = mask.shape, layer.attention
    heads, dim = attention.self.heads, attention.self.head_dim
    qkv = attention.self.qkv(hidden).view(B, S, 3, heads, dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, S, D) each
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
    flat = context.transpose(1, 2).reshape(B * S, heads * dim)  # (B, H, S, D) -> (B·S, C)
    attended = attention.output(flat, hidden)
    out: Tensor = layer.output(layer.intermediate(attended), attended)
    return out
