"""`varlen_attention`: softmax attention within each sequence of a packed batch."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from fastbert import reference
from fastbert import reference_backward as backward
from fastbert.ops.registry import autocast, check_seed, define, needs_grad


def _forward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    work: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    return reference.varlen_attention(qkv, cu_seqlens, scale, dropout_p, seed)


def _backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    work: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor,
) -> Tensor:
    return backward.varlen_attention_backward(
        grad, qkv, out, lse, cu_seqlens, scale, dropout_p, seed
    )


def _fake(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    work: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    tokens, _, heads, dim = qkv.shape
    wide = reference.statistics_dtype(qkv.dtype)
    return qkv.new_empty(tokens, heads, dim), qkv.new_empty((heads, tokens), dtype=wide)


def _fake_backward(grad: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


_op = define(
    "varlen_attention(Tensor qkv, Tensor cu_seqlens, SymInt max_seqlen, Tensor work, float scale,"
    " float dropout_p, Tensor seed) -> (Tensor, Tensor)",
    reference=_forward,
    fake=_fake,
)
_op_backward = define(
    "varlen_attention_backward(Tensor grad, Tensor qkv, Tensor out, Tensor lse, Tensor cu_seqlens,"
    " SymInt max_seqlen, Tensor work, float scale, float dropout_p, Tensor seed) -> Tensor",
    reference=_backward,
    fake=_fake_backward,
)


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        work: Tensor,
        scale: float,
        dropout_p: float,
        seed: Tensor,
    ) -> Tensor:
        out, lse = _op(qkv, cu_seqlens, max_seqlen, work, scale, dropout_p, seed)
        ctx.save_for_backward(qkv, out, lse, cu_seqlens, work, seed)
        ctx.max_seqlen, ctx.scale, ctx.dropout_p = max_seqlen, scale, dropout_p
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        qkv, out, lse, cu_seqlens, work, seed = ctx.saved_tensors
        d_qkv = _op_backward(
            grad.contiguous(), qkv, out, lse, cu_seqlens, ctx.max_seqlen, work,
            ctx.scale, ctx.dropout_p, seed,
        )  # fmt: skip
        return d_qkv, None, None, None, None, None, None


def _are_int32(a: Tensor, a_dims: int, b: Tensor, b_dims: int) -> bool:
    int32 = torch.int32
    return a.dtype is int32 and b.dtype is int32 and a.dim() == a_dims and b.dim() == b_dims


def _refuse(qkv: Tensor, cu_seqlens: Tensor, work: Tensor) -> NoReturn:
    """Say which argument is not as it should be; out of the way of the calls that are right."""
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv must be (T, 3, H, D), not {tuple(qkv.shape)}")
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            f"cu_seqlens must be (B + 1,) int32, not {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}"
        )
    raise ValueError(f"work must be (W, 2) int32, not {tuple(work.shape)} {work.dtype}")


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    work: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor,
) -> Tensor:
    """softmax(scale · q kᵀ) v within each sequence and head; the softmax in float32 or wider.

    Args:
        qkv: (T, 3, H, D).
        cu_seqlens: (B + 1,) int32, the sequences' bounds. Rows beyond the last give zeros.
        max_seqlen: no sequence is longer.
        work: (W, 2) int32, pairs (sequence, query tile) as `packing.work_list` makes them.
        scale: usually 1/√D.
        dropout_p: probability of dropping an attention weight.
        seed: (1,) int64 on the device, or empty where `dropout_p` is 0.

    Returns:
        (T, H, D).

    Raises:
        ValueError: if a shape, dtype, probability or seed is not as said.

    Source: Vaswani et al. 2017, section 3.2.1.
    """
    good = qkv.dim() == 4 and qkv.shape[1] == 3
    if not (good and _are_int32(cu_seqlens, 1, work, 2) and work.shape[1] == 2):
        _refuse(qkv, cu_seqlens, work)
    check_seed(dropout_p, seed)
    (qkv,) = autocast(qkv)  # type: ignore[assignment]
    if needs_grad(qkv):
        return _VarlenAttention.apply(qkv, cu_seqlens, max_seqlen, work, scale, dropout_p, seed)
    return _op(qkv, cu_seqlens, max_seqlen, work, scale, dropout_p, seed)[0]
