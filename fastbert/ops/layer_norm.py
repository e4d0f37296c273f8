"""`residual_layer_norm`: dropout, residual sum and LayerNorm in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbert import reference
from fastbert import reference_backward as backward
from fastbert.ops.registry import check_seed, define, needs_grad


def _sum_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def _fake(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _sum_dtype(x, residual)
    wide = reference.statistics_dtype(dtype)
    return (
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty(x.shape[0], dtype=wide),
        x.new_empty(x.shape[0], dtype=wide),
    )


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_residual = grad.new_empty(0) if residual is None else residual.new_empty(residual.shape)
    return (
        x.new_empty(x.shape),
        d_residual,
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape),
    )


_op = define(
    "residual_layer_norm(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps,"
    " float dropout_p, Tensor seed) -> (Tensor, Tensor, Tensor)",
    reference=reference.residual_layer_norm,
    fake=_fake,
)
_op_backward = define(
    "residual_layer_norm_backward(Tensor grad, Tensor x, Tensor? residual, Tensor weight,"
    " Tensor mean, Tensor rstd, float dropout_p, Tensor seed) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=backward.residual_layer_norm_backward,
    fake=_fake_backward,
)


class _ResidualLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        dropout_p: float,
        seed: Tensor,
    ) -> Tensor:
        out, mean, rstd = _op(x, residual, weight, bias, eps, dropout_p, seed)
        ctx.save_for_backward(x, residual, weight, mean, rstd, seed)
        ctx.dropout_p = dropout_p
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, residual, weight, mean, rstd, seed = ctx.saved_tensors
        d_x, d_residual, d_weight, d_bias = _op_backward(
            grad.contiguous(), x, residual, weight, mean, rstd, ctx.dropout_p, seed
        )
        return d_x, None if residual is None else d_residual, d_weight, d_bias, None, None, None


def residual_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    seed: Tensor,
) -> Tensor:
    """LayerNorm(dropout(x) + residual), the variance taken in two passes in float32 or wider.

    Args:
        x: (T, C).
        residual: (T, C), or None for a plain norm.
        weight, bias: (C,).
        eps: added to the variance.
        dropout_p: probability of dropping an element of x.
        seed: (1,) int64 on the device, or empty where `dropout_p` is 0.

    Returns:
        (T, C), in the wider dtype of x and residual.

    Raises:
        ValueError: if a shape, probability or seed is not as said.

    Source: Ba et al. 2016, section 3.
    """
    if x.dim() != 2 or not weight.shape == bias.shape == x.shape[1:]:
        raise ValueError(
            f"x (T, C), weight (C,) and bias (C,) must share C, not {tuple(x.shape)},"
            f" {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"residual must have x's shape {tuple(x.shape)}, not {tuple(residual.shape)}"
        )
    check_seed(dropout_p, seed)
    if needs_grad(x, residual, weight, bias):
        return _ResidualLayerNorm.apply(x, residual, weight, bias, eps, dropout_p, seed)
    return _op(x, residual, weight, bias, eps, dropout_p, seed)[0]
