"""`linear_cross_entropy`: a vocabulary's worth of logits that never stands whole in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbert import reference
from fastbert import reference_backward as backward
from fastbert.ops.registry import autocast, check, define, needs_grad


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    if labels.device.type == "cpu" and labels.numel():
        counted = labels[labels != ignore_index]
        if counted.numel():
            low, high = (int(bound) for bound in torch.aminmax(counted))
            if low < 0 or high >= weight.shape[0]:
                bad = low if low < 0 else high
                raise IndexError(
                    f"labels hold {bad}; there are {weight.shape[0]} classes, and {ignore_index}"
                    " is ignored"
                )
    return reference.linear_cross_entropy(x, weight, bias, labels, ignore_index)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    wide = reference.statistics_dtype(x.dtype)
    return x.new_empty(x.shape[0], dtype=wide), x.new_empty(x.shape[0], dtype=wide)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    d_bias = weight.new_empty(0 if bias is None else weight.shape[0])
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_bias


_op = define(
    "linear_cross_entropy(Tensor x, Tensor weight, Tensor? bias, Tensor labels, int ignore_index)"
    " -> (Tensor, Tensor)",
    reference=_forward,
    fake=_fake,
)
_op_backward = define(
    "linear_cross_entropy_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias,"
    " Tensor labels, Tensor lse, int ignore_index) -> (Tensor, Tensor, Tensor)",
    reference=backward.linear_cross_entropy_backward,
    fake=_fake_backward,
)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        ignore_index: int,
    ) -> Tensor:
        loss, lse = _op(x, weight, bias, labels, ignore_index)
        ctx.save_for_backward(x, weight, bias, labels, lse)
        ctx.ignore_index = ignore_index
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, bias, labels, lse = ctx.saved_tensors
        d_x, d_weight, d_bias = _op_backward(
            grad.contiguous(), x, weight, bias, labels, lse, ctx.ignore_index
        )
        return d_x, d_weight, None if bias is None else d_bias, None, None


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int = -100
) -> Tensor:
    """Cross entropy of each row's logits x · weightᵀ + bias.

    loss[m] = logsumexp(logits[m]) - logits[m, labels[m]], 0 where the label is `ignore_index`.

    Args:
        x: (M, C).
        weight: (V, C), in x's dtype (autocast casts all three).
        bias: (V,) or None.
        labels: (M,) int32 or int64, in 0..V-1 or `ignore_index`.
        ignore_index: the label that counts for nothing.

    Returns:
        (M,) float32, or float64 where x is. Peak memory beyond inputs and results is a few chunks
        of logits: three in the forward pass, four in the backward pass, each of at most
        `reference.LOGIT_CHUNK_BYTES` (twice that in float64).

    Raises:
        ValueError: if shapes disagree, or labels are no integers.
        IndexError: if a label lies outside the classes (on a CPU; other devices don't look).
    """
    check(
        x.dim() == 2 and weight.dim() == 2 and x.shape[1] == weight.shape[1],
        lambda: (
            f"x (M, C) and weight (V, C) must share C, not {tuple(x.shape)} and"
            f" {tuple(weight.shape)}"
        ),
    )
    check(
        labels.shape == x.shape[:1],
        lambda: f"labels must be ({x.shape[0]},), not {tuple(labels.shape)}",
    )
    check(
        labels.dtype in (torch.int32, torch.int64),
        lambda: f"labels must be integers, not {labels.dtype}",
    )
    check(weight.shape[0] > 0, lambda: "weight (V, C) must hold at least one class")
    check(
        bias is None or bias.shape == weight.shape[:1],
        lambda: f"bias must be ({weight.shape[0]},)",
    )
    x, weight, bias = autocast(x, weight, bias)  # type: ignore[assignment]
    if needs_grad(x, weight, bias):
        return _LinearCrossEntropy.apply(x, weight, bias, labels, ignore_index)
    return _op(x, weight, bias, labels, ignore_index)[0]
