"""From token vectors to a sentence vector: pooling, dense layers, normalisation, as torch ops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert import ops
from fastbert.reference import ACTIVATIONS
from fastbert.sentence_modules import Dense, Normalize


def pool_tokens(hidden: Tensor, cu_seqlens: Tensor, modes: Sequence[str]) -> Tensor:
    """Pool each sequence by every mode and put the results side by side.

    Args:
        hidden: (T, C).
        cu_seqlens: (B + 1,) int32.
        modes: of `sentence_modules.POOLING_MODES`.

    Returns:
        (B, C · number of modes).
    """
    parts = []
    for mode in modes:
        if mode == "mean_sqrt_len_tokens":  # the sum over √length is the mean times √length
            lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).to(hidden.dtype)  # (B,)
            parts.append(ops.pool(hidden, cu_seqlens, "mean") * lengths.sqrt()[:, None])
        else:
            parts.append(ops.pool(hidden, cu_seqlens, "last" if mode == "lasttoken" else mode))
    return torch.cat(parts, dim=1)


def apply_steps(vectors: Tensor, steps: Sequence[Dense | Normalize]) -> Tensor:
    """Apply dense layers and normalisations in order, (B, K) → (B, N)."""
    for step in steps:
        if isinstance(step, Normalize):
            vectors = F.normalize(vectors, dim=1)
        else:
            vectors = _dense(vectors, step)
    return vectors


def without_prompt(hidden: Tensor, cu_seqlens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Drop the first `count` tokens of each sequence (all of a shorter one).

    Args:
        hidden: (T, C).
        cu_seqlens: (B + 1,).
        count: tokens to drop.

    Returns:
        The rows left, and their bounds.
    """
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens[1:].long() - starts  # (B,)
    place = torch.arange(hidden.shape[0], device=hidden.device)
    place = place - torch.repeat_interleave(starts, lengths)
    left = (lengths - count).clamp(min=0)
    return hidden[place >= count], F.pad(left.cumsum(0), (1, 0)).to(cu_seqlens.dtype)


def _dense(x: Tensor, step: Dense) -> Tensor:
    """activation(x Wᵀ + b) (+ x or x Rᵀ), in x's dtype."""
    bias = None if step.bias is None else step.bias.torch().to(x)
    out = ACTIVATIONS[step.activation](F.linear(x, step.weight.torch().to(x), bias))
    if not step.use_residual:
        return out
    return out + (x if step.residual is None else F.linear(x, step.residual.torch().to(x)))
