"""The edges of the packed world: `pack` a mask, `unpack` and `pool` hidden states, list `work`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbert import reference
from fastbert.ops import flags
from fastbert.ops.registry import check, define, needs_grad
from fastbert.packing import QUERY_TILE

POOLINGS = ("cls", "mean", "max", "last")

# At or below this, a mask is meant to be added to scores (0 keeps, a large negative drops), and
# reading its non-zeros as real would attend exactly what it forbids.
_ADDITIVE_BELOW = -100
_UNSIGNED = (torch.bool, torch.uint8)


def _pack(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flags.raise_if_flagged(mask.device)
    # Integers that lie on a device are not looked at: it would cost every call a second read.
    signed = mask.dtype not in _UNSIGNED and (mask.is_floating_point() or mask.device.type == "cpu")
    if signed and bool((mask <= _ADDITIVE_BELOW).any()):
        raise ValueError(
            "attention_mask is additive (it holds numbers of -100 or less): pass the mask itself,"
            " non-zero where a token is real"
        )
    return reference.pack(mask)


def _fake_pack(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    batch = mask.shape[0]
    return (
        mask.new_empty(batch, dtype=torch.int32),
        mask.new_empty(batch + 1, dtype=torch.int32),
        mask.new_empty(total, dtype=torch.int64),
        mask.new_empty(total, dtype=torch.int64),
    )


def _fake_unpack(x: Tensor, indices: Tensor, batch: int, width: int) -> Tensor:
    return x.new_empty(batch, width, x.shape[1])


def _fake_pool(x: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool) -> Tensor:
    return x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1])


_pack_op = define(
    "pack(Tensor mask) -> (Tensor, Tensor, Tensor, Tensor)", reference=_pack, fake=_fake_pack
)
_unpack_op = define(
    "unpack(Tensor x, Tensor indices, SymInt batch, SymInt width) -> Tensor",
    reference=reference.unpack,
    fake=_fake_unpack,
)
_pool_op = define(
    "pool(Tensor x, Tensor cu_seqlens, str mode, bool normalize) -> Tensor",
    reference=reference.pool,
    fake=_fake_pool,
)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, batch: int, width: int) -> Tensor:
        ctx.save_for_backward(indices)
        return _unpack_op(x, indices, batch, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (indices,) = ctx.saved_tensors
        return grad.reshape(-1, grad.shape[2])[indices], None, None, None


def pack(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a padded batch really holds.

    Args:
        mask: (B, S) of any dtype; any non-zero is a real token. A mask that is to be added to
            scores is known by numbers of -100 or less; one without any (all zeros) can't be told
            from a mask that masks everything.

    Returns:
        lengths (B,) and cu_seqlens (B + 1,), int32; indices (T,) of the real tokens among the
        B·S, and their positions (T,), the column in the padded input; both int64. T is read from
        the device.

    Raises:
        ValueError: if the mask is not 2-D, or additive.
        IndexError: what an earlier batch on this device left (`flags`).
    """
    check(
        mask.dim() == 2,
        lambda: (
            f"attention_mask must be 2-D (B, S), non-zero where a token is real;"
            f" got {mask.dim()}-D {tuple(mask.shape)}"
        ),
    )
    lengths, cu_seqlens, indices, positions = _pack_op(mask)
    return lengths, cu_seqlens, indices, positions


def unpack(x: Tensor, indices: Tensor, batch: int, width: int) -> Tensor:
    """Packed rows (T, C) at their places in a zeroed (B, S, C).

    Args:
        x: (T, C).
        indices: (T,) int64, each row's place among the B·S.
        batch: B.
        width: S.

    Returns:
        (B, S, C), zeros where no row goes.

    Raises:
        ValueError: if `indices` has another length than `x`.
    """
    check(
        x.dim() == 2 and indices.shape == x.shape[:1],
        lambda: (
            f"x (T, C) and indices (T,) must share T, not {tuple(x.shape)} and"
            f" {tuple(indices.shape)}"
        ),
    )
    if needs_grad(x):
        return _Unpack.apply(x, indices, batch, width)
    return _unpack_op(x, indices, batch, width)


def pool(x: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool = False) -> Tensor:
    """One vector a sequence, (B, C); zeros for an empty one.

    Args:
        x: (T, C).
        cu_seqlens: (B + 1,) int32.
        mode: cls, mean, max or last.
        normalize: divide each vector by its length (at least 1e-12).

    Raises:
        ValueError: on another mode, or if `x` is not 2-D.
    """
    check(mode in POOLINGS, lambda: f"mode must be one of {', '.join(POOLINGS)}, not {mode!r}")
    check(x.dim() == 2, lambda: f"x must be (T, C), not {tuple(x.shape)}")
    if needs_grad(x):  # plain torch differentiates itself
        return reference.pool(x, cu_seqlens, mode, normalize)
    return _pool_op(x, cu_seqlens, mode, normalize)


def work_list(lengths: Tensor, total: int, tile: int = QUERY_TILE) -> Tensor:
    """The attention work list on the device, without reading from it.

    Args:
        lengths: (B,) int32.
        total: T, the sum of the lengths.
        tile: query rows of one work item.

    Returns:
        (T // tile + B, 2) int32 pairs (sequence, query tile), longest sequences first; the bound
        leaves some rows over, which hold -1.
    """
    if lengths.shape[0] == 0:
        return lengths.new_empty((0, 2), dtype=torch.int32)
    size = total // tile + lengths.shape[0]
    order = torch.argsort(lengths, descending=True, stable=True)
    tiles = (lengths[order] + (tile - 1)) // tile  # (B,)
    ends = tiles.cumsum(0)
    item = torch.arange(size, device=lengths.device)
    place = torch.searchsorted(ends, item, right=True).clamp(max=lengths.shape[0] - 1)
    pairs = torch.stack([order[place], item - (ends - tiles)[place]], dim=1)
    return pairs.where((item < ends[-1])[:, None], -1).to(torch.int32)
