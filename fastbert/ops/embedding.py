"""`embed_layer_norm`: the sum of word, position and type embeddings, normalised. BERT's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbert import reference
from fastbert import reference_backward as backward
from fastbert.ops import flags
from fastbert.ops.registry import check, define, needs_grad


def _forward(
    ids: Tensor,
    types: Tensor,
    positions: Tensor,
    word: Tensor,
    position: Tensor,
    type: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    indices = (ids, types, positions)
    limits = (word.shape[0], type.shape[0], position.shape[0])
    if ids.device.type == "cpu":
        flags.check_on_host(indices, limits)
    else:
        ids, types, positions = flags.clamp_and_count(indices, limits)
    return reference.embed_layer_norm(
        ids, types, positions, word, position, type, weight, bias, eps
    )


def _fake(
    ids: Tensor,
    types: Tensor,
    positions: Tensor,
    word: Tensor,
    position: Tensor,
    type: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, wide = ids.shape[0], reference.statistics_dtype(word.dtype)
    return (
        word.new_empty(rows, word.shape[1]),
        word.new_empty(rows, dtype=wide),
        word.new_empty(rows, dtype=wide),
    )


def _backward(
    grad: Tensor, ids: Tensor, types: Tensor, positions: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    if ids.device.type != "cpu":  # what the forward pass clamped and counted
        tables = rest[0], rest[2], rest[1]  # word, type, position
        indices = (ids, types, positions)
        ids, types, positions = (
            index.clamp(0, table.shape[0] - 1) for index, table in zip(indices, tables, strict=True)
        )
    return backward.embed_layer_norm_backward(grad, ids, types, positions, *rest)


def _fake_backward(
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
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (word, position, type, weight, weight))


_op = define(
    "embed_layer_norm(Tensor ids, Tensor types, Tensor positions, Tensor word, Tensor position,"
    " Tensor type, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)",
    reference=_forward,
    fake=_fake,
)
_op_backward = define(
    "embed_layer_norm_backward(Tensor grad, Tensor ids, Tensor types, Tensor positions,"
    " Tensor word, Tensor position, Tensor type, Tensor weight, Tensor mean, Tensor rstd,"
    " int padding_idx) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=_backward,
    fake=_fake_backward,
)


class _EmbedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padding_idx: int, eps: float, *tensors: Tensor) -> Tensor:
        out, mean, rstd = _op(*tensors, eps)
        ctx.padding_idx = padding_idx
        ctx.save_for_backward(*tensors[:7], mean, rstd)  # all but the bias
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grads = _op_backward(grad.contiguous(), *ctx.saved_tensors, ctx.padding_idx)
        return (None, None, None, None, None, *grads)


def embed_layer_norm(
    ids: Tensor,
    types: Tensor,
    positions: Tensor,
    word: Tensor,
    position: Tensor,
    type: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    padding_idx: int = -1,
) -> Tensor:
    """LayerNorm(word[ids] + type[types] + position[positions]).

    Args:
        ids, types, positions: (T,) int32 or int64.
        word: (V, C). position: (P, C). type: (types, C). One floating-point dtype.
        weight, bias: (C,), the norm's.
        eps: added to the variance.
        padding_idx: the row of `word` that gets no gradient, as in `torch.nn.Embedding`; -1: none.

    Returns:
        (T, C) in the tables' dtype.

    Raises:
        ValueError: if shapes or dtypes disagree.
        IndexError: if an index lies outside its table: at once on a CPU; on another device at the
            next host read, after computing with the nearest valid row.

    Source: Devlin et al. 2019, section 3.
    """
    check(
        ids.dim() == 1 and ids.shape == types.shape == positions.shape,
        lambda: (
            f"ids, types and positions must be (T,) alike, not {tuple(ids.shape)},"
            f" {tuple(types.shape)} and {tuple(positions.shape)}"
        ),
    )
    check(
        all(index.dtype in (torch.int32, torch.int64) for index in (ids, types, positions)),
        lambda: (
            f"ids, types and positions must be int32 or int64, not {ids.dtype}, {types.dtype} and"
            f" {positions.dtype}"
        ),
    )
    check(
        word.dtype == position.dtype == type.dtype,
        lambda: (
            f"the tables must share one dtype, not {word.dtype}, {position.dtype} and {type.dtype}"
        ),
    )
    width = word.shape[1:]
    check(
        position.shape[1:] == type.shape[1:] == weight.shape == bias.shape == width,
        lambda: f"tables and norm must share the width {tuple(width)} of word",
    )
    tensors = (ids, types, positions, word, position, type, weight, bias)
    if needs_grad(word, position, type, weight, bias):
        return _EmbedLayerNorm.apply(padding_idx, eps, *tensors)
    return _op(*tensors, eps)[0]
