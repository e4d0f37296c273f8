"""`linear` with its activation in the epilogue, and `bias_gelu` for a GEMM without one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbert import reference
from fastbert import reference_backward as backward
from fastbert.ops.registry import autocast, check, define, needs_grad


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, save: bool
) -> tuple[Tensor, Tensor]:
    out, pre = reference.linear(x, weight, bias, activation)
    return out, pre if save and activation != "none" else x.new_empty(0)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, save: bool
) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape if save and activation != "none" else 0)


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, pre: Tensor, activation: str, needs: list[bool]
) -> tuple[Tensor, ...]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    return tuple(
        grad.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True)
    )


_op = define(
    "linear(Tensor x, Tensor weight, Tensor? bias, str activation, bool save) -> (Tensor, Tensor)",
    reference=_forward,
    fake=_fake,
)
_op_backward = define(
    "linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor pre, str activation,"
    " bool[3] needs) -> (Tensor, Tensor, Tensor)",
    reference=backward.linear_backward,
    fake=_fake_backward,
)
_bias_gelu_op = define(
    "bias_gelu(Tensor x, Tensor bias, str approximate) -> Tensor",
    reference=reference.bias_gelu,
    fake=lambda x, bias, approximate: x.new_empty(x.shape),
)
_bias_gelu_op_backward = define(
    "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, str approximate) -> (Tensor, Tensor)",
    reference=backward.bias_gelu_backward,
    fake=lambda grad, x, bias, approximate: (x.new_empty(x.shape), bias.new_empty(bias.shape)),
)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str
    ) -> Tensor:
        out, pre = _op(x, weight, bias, activation, True)
        ctx.activation = activation
        ctx.save_for_backward(x, weight, pre)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needs = list(ctx.needs_input_grad[:3])
        grads = _op_backward(grad.contiguous(), *ctx.saved_tensors, ctx.activation, needs)
        return (*(g if need else None for g, need in zip(grads, needs, strict=True)), None)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, approximate: str) -> Tensor:
        ctx.approximate = approximate
        ctx.save_for_backward(x, bias)
        return _bias_gelu_op(x, bias, approximate)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (
            *_bias_gelu_op_backward(grad.contiguous(), *ctx.saved_tensors, ctx.approximate),
            None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """activation(x · weightᵀ + bias).

    Args:
        x: (T, K).
        weight: (N, K), in x's dtype (autocast casts all three).
        bias: (N,) or None.
        activation: none, gelu (erf), gelu_tanh, relu, silu or tanh.

    Returns:
        (T, N).

    Raises:
        ValueError: on an unknown activation, or shapes or dtypes that disagree.
    """
    check(
        activation in reference.ACTIVATIONS,
        lambda: f"activation must be one of {', '.join(reference.ACTIVATIONS)}, not {activation!r}",
    )
    check(
        x.dim() == 2 and weight.dim() == 2 and x.shape[1] == weight.shape[1],
        lambda: (
            f"x (T, K) and weight (N, K) must share K, not {tuple(x.shape)} and"
            f" {tuple(weight.shape)}"
        ),
    )
    x, weight, bias = autocast(x, weight, bias)  # type: ignore[assignment]
    check(x.dtype == weight.dtype, lambda: f"x is {x.dtype}, weight is {weight.dtype}")
    if bias is not None:
        check(
            bias.shape == weight.shape[:1] and bias.dtype == x.dtype,
            lambda: (
                f"bias must be ({weight.shape[0]},) in {x.dtype},"
                f" not {tuple(bias.shape)} in {bias.dtype}"
            ),
        )
    if needs_grad(x, weight, bias):
        return _Linear.apply(x, weight, bias, activation)
    return _op(x, weight, bias, activation, False)[0]


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """GELU(x + bias).

    Args:
        x: (T, N).
        bias: (N,).
        approximate: ``none`` for x·Φ(x), ``tanh`` for its approximation (Hendrycks & Gimpel 2016).

    Returns:
        (T, N).

    Raises:
        ValueError: on another `approximate`, or shapes that disagree.
    """
    check(
        approximate in ("none", "tanh"), lambda: f"approximate is none or tanh, not {approximate!r}"
    )
    check(
        x.dim() == 2 and bias.shape == x.shape[1:],
        lambda: (
            f"x (T, N) and bias (N,) must share N, not {tuple(x.shape)} and {tuple(bias.shape)}"
        ),
    )
    x, bias = autocast(x, bias)  # type: ignore[assignment]
    if needs_grad(x, bias):
        return _BiasGelu.apply(x, bias, approximate)
    return _bias_gelu_op(x, bias, approximate)
