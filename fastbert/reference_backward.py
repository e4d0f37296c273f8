"""The gradients of `reference`, written out, in plain torch.

Each function takes the gradient of its op's first output, what the forward saved, and gives the
gradients in the order of the op's tensors. Letters as in `reference`. Gradients that `needs` does
not ask for come back empty.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.reference import (
    dropout,
    embedding_sum,
    logit_chunks,
    product_dtype,
    residual_sum,
    seeded,
    segments,
)

_aten = torch.ops.aten


def embed_layer_norm_backward(
    grad: Tensor,
    ids: Tensor,
    types: Tensor,
    positions: Tensor,
    word: Tensor,
    position: Tensor,
    type: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    padding_idx: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of word, position, type, weight, bias; the row `padding_idx` of word gets none."""
    summed = embedding_sum(ids, types, positions, word, position, type)  # (T, C)
    d_sum, d_weight, d_bias = layer_norm_backward(grad, summed, weight, mean, rstd)

    def table(indices: Tensor, rows: int, skip: int = -1) -> Tensor:
        return _aten.embedding_dense_backward(d_sum, indices, rows, skip, False)

    return (
        table(ids, word.shape[0], padding_idx),
        table(positions, position.shape[0]),
        table(types, type.shape[0]),
        d_weight,
        d_bias,
    )


def activation_backward(grad: Tensor, pre: Tensor, activation: str) -> Tensor:
    """Return grad times the activation's derivative at `pre`, (T, N)."""
    if activation == "gelu":
        return _aten.gelu_backward(grad, pre)
    if activation == "gelu_tanh":
        return _aten.gelu_backward(grad, pre, approximate="tanh")
    if activation == "relu":
        return grad * (pre > 0)
    if activation == "silu":
        return _aten.silu_backward(grad, pre)
    if activation == "tanh":
        return _aten.tanh_backward(grad, torch.tanh(pre))
    return grad


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, pre: Tensor, activation: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (T, K), weight (N, K), bias (N,)."""
    d_pre = activation_backward(grad, pre, activation)  # (T, N)
    return (
        d_pre @ weight if needs[0] else grad.new_empty(0),  # an op's results share no memory
        d_pre.t() @ x if needs[1] else grad.new_empty(0),
        d_pre.sum(0) if needs[2] else grad.new_empty(0),
    )


def bias_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor, approximate: str
) -> tuple[Tensor, Tensor]:
    """Gradients of x (T, N) and bias (N,)."""
    d_x = _aten.gelu_backward(grad, x + bias, approximate=approximate)
    return d_x, d_x.sum(0)


def varlen_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor,
) -> Tensor:
    """Gradient of qkv, (T, 3, H, D).

    With P = exp(scale·q kᵀ - lse) and dropout's factors m: dV = (P∘m)ᵀ dO, dP = (dO Vᵀ)∘m,
    dS = P∘(dP - rowsum(dO∘O))·scale, dQ = dS K, dK = dSᵀ Q (Dao et al. 2022, appendix B.2).
    """
    d_qkv = torch.zeros_like(qkv, memory_format=torch.contiguous_format)
    generator, product = seeded(dropout_p, seed), product_dtype(qkv.dtype)
    for rows in segments(cu_seqlens):
        q, k, v = qkv[rows].to(product).permute(1, 2, 0, 3)  # (H, S, D)
        d_out = grad[rows].to(product).transpose(0, 1)  # (H, S, D)
        scores = (q @ k.transpose(1, 2)).to(lse.dtype) * scale  # (H, S, S)
        weights = torch.exp(scores - lse[:, rows, None])
        factors = dropout(torch.ones_like(weights, dtype=product), dropout_p, generator)
        d_weights = (d_out @ v.transpose(1, 2)).to(lse.dtype) * factors
        delta = (d_out.to(lse.dtype) * out[rows].transpose(0, 1)).sum(-1, keepdim=True)  # (H, S, 1)
        d_scores = (weights * (d_weights - delta) * scale).to(product)
        kept = (weights * factors).to(product)
        d_qkv[rows, 0] = (d_scores @ k).transpose(0, 1)
        d_qkv[rows, 1] = (d_scores.transpose(1, 2) @ q).transpose(0, 1)
        d_qkv[rows, 2] = (kept.transpose(1, 2) @ d_out).transpose(0, 1)
    return d_qkv


def residual_layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (T, C), residual (T, C; empty without one), weight and bias (C,)."""
    summed = residual_sum(x, residual, dropout_p, seed)
    d_sum, d_weight, d_bias = layer_norm_backward(grad, summed, weight, mean, rstd)
    d_residual = d_sum.new_empty(0) if residual is None else d_sum.to(residual.dtype, copy=True)
    return (
        dropout(d_sum, dropout_p, seeded(dropout_p, seed)).to(x.dtype),
        d_residual,
        d_weight,
        d_bias,
    )


def layer_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (T, C), weight (C,) and bias (C,), in the statistics' dtype until the end.

    With x̂ = (x - mean)·rstd and g = grad·weight: dx = rstd·(g - mean(g) - x̂·mean(g·x̂)),
    dW = Σ grad·x̂, db = Σ grad.
    """
    wide = mean.dtype
    d_x, d_weight, d_bias = _aten.native_layer_norm_backward(
        grad.to(wide), x.to(wide), [x.shape[-1]], mean[:, None], rstd[:, None],
        weight.to(wide), weight.to(wide), [True, True, True],
    )  # fmt: skip
    return d_x.to(x.dtype), d_weight.to(weight.dtype), d_bias.to(weight.dtype)


def linear_cross_entropy_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (M, C), weight (V, C), bias (V,): logits are made again, chunk by chunk.

    dlogits = (softmax(logits) - onehot(label))·grad, zero where the label is ignored.
    """
    wide = lse.dtype
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    d_weight = torch.zeros_like(weight, dtype=wide, memory_format=torch.contiguous_format)
    d_bias = lse.new_zeros(weight.shape[0] if bias is not None else 0)
    target = labels.where(labels != ignore_index, 0).to(torch.int64)
    row_grad = grad.to(wide).masked_fill(labels == ignore_index, 0.0)  # (M,)
    for rows in logit_chunks(x.shape[0], weight.shape[0]):
        logits = F.linear(x[rows], weight, bias).to(wide)  # (m, V)
        # With the whole row at hand, not exp(logits - lse): rounding lse costs |lse|·ε of it all.
        d_logits = torch.softmax(logits, dim=-1)
        d_logits.scatter_add_(1, target[rows, None], -torch.ones_like(d_logits[:, :1]))
        d_logits *= row_grad[rows, None]
        if bias is not None:
            d_bias += d_logits.sum(0)
        d_logits = d_logits.to(x.dtype)
        d_x[rows] = d_logits @ weight
        d_weight += d_logits.t() @ x[rows]
    return d_x, d_weight.to(weight.dtype), d_bias.to(weight.dtype)
