"""`linear_cross_entropy`: logits tile by tile, each reduced to two numbers a row before the next.

    logits = x · weightᵀ + bias                          x (M, C), weight (V, C), bias (V,)
    lse[m] = log Σ_v exp(logits[m, v])                   (M,) float32
    loss[m] = lse[m] - logits[m, labels[m]]              (M,) float32, 0 where the label is ignored

`_tiles` makes a (BM, BN) tile of logits and leaves each row's largest logit and Σ exp(logit - it),
and the label's logit where it lies in the tile; `_reduce` joins them. A program a tile: one row
already fills a GPU with V / BN of them. No atomics. A label outside the classes counts as ignored.

Peak memory beyond inputs and results: 8·M·⌈V/BN⌉ + 4·M bytes, 2/BN of the float32 logits: 8 MB of
500 at M = 4096, V = 30522 and BN = 128. Inputs that are not contiguous are copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels import cross_entropy_backward as backward
from fastbert.kernels.cross_entropy_logits import (
    FULL,
    HALF,
    LOG2_E,
    TILES,
    constants,
    labels_of,
    logits_tile,
    place,
    programs,
    tile_of,
)
from fastbert.kernels.tiles import ARCHITECTURES, Tile, architecture, interpreting
from fastbert.kernels.variant import DTYPES, Variant

REDUCE = Tile(32, 32)
"""Rows × class tiles that `_reduce` joins at a time."""


@triton.jit(do_not_specialize=["M", "V", "ignore_index"])
def _tiles(
    x_ptr, weight_ptr, bias_ptr, labels_ptr, peak_ptr, total_ptr, picked_ptr, M, V, ignore_index, C,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = place(M, V, BM, BN, GROUP)
    row, column = tile_m * BM, tile_n * BN
    logits = logits_tile(
        x_ptr, weight_ptr, bias_ptr, row, column, M, V, C, BM, BN, BK, EVEN, HAS_BIAS, COMPUTE
    )
    peak = tl.max(logits, 1)
    # A bias of -inf may rule out a whole tile; exp(-inf - -inf) would be NaN. The difference comes
    # before the factor: folded into one FMA, 1e4 · log₂e would be off by 1e-3.
    finite = tl.where(peak == -float("inf"), 0.0, peak)
    total = tl.sum(tl.exp2((logits - finite[:, None]) * LOG2_E), 1)
    rows = row + tl.arange(0, BM)
    there = tile_n.to(tl.int64) * M + rows  # (⌈V/BN⌉, M)
    tl.store(peak_ptr + there, peak, mask=rows < M)
    tl.store(total_ptr + there, total, mask=rows < M)
    label = labels_of(labels_ptr, row, M, V, ignore_index, BM)
    here = (label >= column) & (label < column + BN)
    if tl.max(here.to(tl.int32), 0) > 0:  # few tiles hold a label of their rows
        hit = (label - column).to(tl.int32)[:, None] == tl.arange(0, BN)[None, :]
        tl.store(picked_ptr + rows, tl.sum(tl.where(hit, logits, 0.0), 1), mask=here)


@triton.jit(do_not_specialize=["M", "V", "tiles", "ignore_index"])
def _reduce(
    peak_ptr, total_ptr, picked_ptr, labels_ptr, first_ptr, second_ptr, M, V, tiles, ignore_index,
    BM: tl.constexpr, BN: tl.constexpr, LOSS: tl.constexpr,
):  # fmt: skip
    """Loss and log-sum-exp, or where no loss is asked 1/Σ exp(logit - peak) and the peak."""
    row = tl.program_id(0) * BM
    rows = row + tl.arange(0, BM)
    peak = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for start in range(0, tiles, BN):
        tile = start + tl.arange(0, BN)
        mask = (tile < tiles)[:, None] & (rows < M)[None, :]
        there = tile.to(tl.int64)[:, None] * M + rows[None, :]
        peaks = tl.load(peak_ptr + there, mask=mask, other=-float("inf"))
        totals = tl.load(total_ptr + there, mask=mask, other=0.0)
        larger = tl.maximum(peak, tl.max(peaks, 0))
        finite = tl.where(larger == -float("inf"), 0.0, larger)
        totals *= tl.exp2((peaks - finite[None, :]) * LOG2_E)
        total = total * tl.exp2((peak - finite) * LOG2_E) + tl.sum(totals, 0)
        peak = larger
    total = tl.where(rows < M, total, 1.0)
    if LOSS:
        counted = labels_of(labels_ptr, row, M, V, ignore_index, BM) >= 0
        picked = tl.load(picked_ptr + rows, mask=counted, other=0.0)
        # Not lse - picked: at 1e4, lse has lost 5e-4. What rounds off the difference is put back.
        above = peak - picked
        lost = (peak - above) - picked
        lost = tl.where(lost == lost, lost, 0.0)  # where above is infinite
        loss = tl.where(counted, above + (tl.log(total) + lost), 0.0)
        tl.store(first_ptr + rows, loss, mask=rows < M)
        tl.store(second_ptr + rows, peak + tl.log(total), mask=rows < M)
    else:
        tl.store(first_ptr + rows, 1.0 / total, mask=rows < M)
        tl.store(second_ptr + rows, peak, mask=rows < M)


def _statistics(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, loss: bool
) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp, or 1/Σ exp(logit - peak) and peak, each (M,) float32."""
    M, V = x.shape[0], weight.shape[0]
    first, second = (x.new_empty(M, dtype=torch.float32) for _ in range(2))
    if M == 0:
        return first, second
    tile = tile_of(x)
    tiles_m, tiles_n = programs(M, V, tile)
    peak, total = x.new_empty(2, tiles_n, M, dtype=torch.float32)
    picked = x.new_empty(M, dtype=torch.float32)
    _tiles[(tiles_m * tiles_n,)](
        x, weight, bias, labels, peak, total, picked, M, V, ignore_index,
        x.shape[1], **constants(x, bias, tile),
    )  # fmt: skip
    _reduce[(triton.cdiv(M, REDUCE.m),)](
        peak, total, picked, labels, first, second, M, V, tiles_n, ignore_index,
        BM=REDUCE.m, BN=REDUCE.n, LOSS=loss, num_warps=REDUCE.warps, num_stages=REDUCE.stages,
    )  # fmt: skip
    return first, second


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp, (M,) float32."""
    x, weight, labels = x.contiguous(), weight.contiguous(), labels.contiguous()
    bias = bias if bias is None else bias.contiguous()
    return _statistics(x, weight, bias, labels, ignore_index, loss=True)


def linear_cross_entropy_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (M, C), weight (V, C), bias (V,) (empty without one).

    softmax = exp(logits - lse). Rounding lse costs |lse|·6e-8 of it all, far below 16-bit rounding;
    in float32 the rows' peaks and sums are made again (a third more work; the forward pass's memory
    is given back before the first chunk, but for 8·M bytes), and softmax = exp(logits - peak) / Σ.
    """
    grad, x, weight, labels = (t.contiguous() for t in (grad, x, weight, labels))
    bias = bias if bias is None else bias.contiguous()
    scale = None
    if x.dtype == torch.float32:
        scale, lse = _statistics(x, weight, bias, labels, ignore_index, loss=False)
    return backward.gradients(grad, x, weight, bias, labels, lse, scale, ignore_index)


LAUNCHERS: dict[str, Callable[..., Any]] = {
    "linear_cross_entropy": linear_cross_entropy,
    "linear_cross_entropy_backward": linear_cross_entropy_backward,
}


def unsupported(op: str, args: tuple[Any, ...]) -> str | None:
    """Why the kernels can't serve this call, or None."""
    x, weight, bias = args[1:4] if op.endswith("backward") else args[:3]
    dtypes = {t.dtype for t in (x, weight, bias) if t is not None}
    if len(dtypes) > 1:
        return f"x, weight and bias of {len(dtypes)} dtypes: {sorted(map(str, dtypes))}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{x.dtype} on {x.device.type}"
    if not interpreting() and x.device.type != "cuda":
        return f"a device of type {x.device.type}"
    arch = architecture(x.device)
    return None if arch in TILES else f"{x.dtype} on {arch or 'a GPU older than sm_75'}"


def variants() -> Iterator[Variant]:
    """Every kernel × dtype × architecture, at C = 768."""
    for arch in ARCHITECTURES:
        for dtype in DTYPES if arch in TILES else ():
            tile = TILES[arch][FULL if dtype == "fp32" else HALF]
            yield _variant_of_tiles(arch, dtype, tile)
            yield backward.variant(arch, dtype, tile)
        if arch in TILES:
            for loss in (True, False):
                yield _variant_of_reduce(arch, loss)


def _variant_of_tiles(
    arch: str, dtype: str, tile: Tile, C: int = 768, bias: bool = True
) -> Variant:
    pointers = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr"), f"*{dtype}")
    statistics = dict.fromkeys(("peak_ptr", "total_ptr", "picked_ptr"), "*fp32")
    numbers = dict.fromkeys(("M", "V", "ignore_index", "C"), "i32")
    signature = {**pointers, "labels_ptr": "*i64", **statistics, **numbers}
    constant = backward.constants_of(dtype, tile, C, bias)
    return Variant(
        _tiles, "cross_entropy", "forward", dtype, arch, tile, signature, constant,
        backward.divisible(signature, constant, C), f"C={C}",
        ((tile.m, tile.n, tile.k),), tile.m * tile.n,
    )  # fmt: skip


def _variant_of_reduce(arch: str, loss: bool) -> Variant:
    names = ("peak_ptr", "total_ptr", "picked_ptr", "first_ptr", "second_ptr")
    pointers = dict.fromkeys(names, "*fp32") | {"labels_ptr": "*i64"}
    return Variant(
        _reduce, "cross_entropy", "reduce" if loss else "reduce_again", "fp32", arch, REDUCE,
        {**pointers, "M": "i32", "V": "i32", "tiles": "i32", "ignore_index": "i32"},
        {"BM": REDUCE.m, "BN": REDUCE.n, "LOSS": loss}, tuple(pointers),
    )  # fmt: skip
