"""The gradients of `layer_norm`, in two launches and without atomics.

With x̂ = (s - mean)·rstd and g = grad·weight:

    ds = rstd·(g - mean(g) - x̂·mean(g·x̂))      (T, C), the residual's gradient
    dx = dropout(ds), the forward's mask regenerated
    dW = Σ grad·x̂, db = Σ grad                  (C,)

Program p of G takes the tiles p, p + G, … of M rows and keeps its share of dW and db in registers;
it writes one row of float32 partials, which a second kernel adds in the order of p.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels import philox
from fastbert.kernels.rows import (
    every_architecture,
    padded,
    residual_sum,
    tile_for,
    tiles,
    variant_keys,
)
from fastbert.kernels.tiles import ARCHITECTURES, Tile, interpreting
from fastbert.kernels.variant import DTYPES, Variant

TILES = every_architecture(tiles(16, 16))
REDUCE = Tile(64, 32, warps=4, stages=1)
"""Partials by columns that a program of the second kernel adds at a time."""


@triton.jit
def norm_gradient(grad, summed, w, mean, rstd, inside, C: tl.constexpr):
    """The gradient of s, and grad·x̂, (M, N) each, 0 at and beyond column C where grad is."""
    scaled = tl.where(inside, (summed - mean[:, None]) * rstd[:, None], 0.0)
    g = grad * w[None, :]
    along = tl.sum(g * scaled, 1) / C
    d_sum = rstd[:, None] * (g - (tl.sum(g, 1) / C)[:, None] - scaled * along[:, None])
    return d_sum, grad * scaled


@triton.jit(do_not_specialize=["T", "level"], do_not_specialize_on_alignment=["seed"])
def backward(
    grad, x, residual, weight, mean, rstd, seed, d_x, d_residual, partials, level, scale, T,
    C: tl.constexpr, N: tl.constexpr, M: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """grad, x, residual or None, d_x, d_residual: (T, C); partials: (2, G, C) of dW and db."""
    columns = tl.arange(0, N)
    inside = (columns < C)[None, :]
    w = tl.load(weight + columns, mask=columns < C, other=0.0).to(tl.float32)
    d_weight = tl.zeros((N,), tl.float32)
    d_bias = tl.zeros((N,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(T, M), tl.num_programs(0)):
        rows = tile * tl.full((M,), M, tl.int64) + tl.arange(0, M)
        real = rows < T
        place = rows[:, None] * C + columns[None, :]
        mask = real[:, None] & inside
        dy = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        summed, keep = residual_sum(
            x, residual, seed, rows, place, mask, level, scale, DROPOUT, C, N
        )  # fmt: skip
        row_mean = tl.load(mean + rows, mask=real, other=0.0)
        row_rstd = tl.load(rstd + rows, mask=real, other=0.0)
        d_sum, d_scaled = norm_gradient(dy, summed, w, row_mean, row_rstd, inside, C)
        d_weight += tl.sum(d_scaled, 0)
        d_bias += tl.sum(dy, 0)
        if residual is not None:
            tl.store(d_residual + place, d_sum.to(d_residual.dtype.element_ty), mask=mask)
        if DROPOUT:
            d_sum = tl.where(keep, d_sum * scale, 0.0)
        tl.store(d_x + place, d_sum.to(d_x.dtype.element_ty), mask=mask)
    write_partials(partials, d_weight, d_bias, columns, C)


@triton.jit
def write_partials(partials, d_weight, d_bias, columns, C: tl.constexpr):
    """This program's row of both (G, C) partials."""
    row = partials + tl.program_id(0).to(tl.int64) * C + columns
    tl.store(row, d_weight, mask=columns < C)
    tl.store(row + tl.num_programs(0).to(tl.int64) * C, d_bias, mask=columns < C)


@triton.jit(do_not_specialize=["G"])
def reduce(partials, d_weight, d_bias, G, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The sum of each column of (2, G, C) partials, in a fixed order; axis 1 says which of two."""
    columns = tl.program_id(0) * N + tl.arange(0, N)
    rows = tl.arange(0, M)
    which = tl.program_id(1)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, G, M):
        row = which.to(tl.int64) * G + start + rows
        mask = (start + rows < G)[:, None] & (columns < C)[None, :]
        total += tl.load(partials + row[:, None] * C + columns[None, :], mask=mask, other=0.0)
    result = tl.sum(total, 0).to(d_weight.dtype.element_ty)
    tl.store(d_weight + columns, result, mask=(columns < C) & (which == 0))
    tl.store(d_bias + columns, result, mask=(columns < C) & (which == 1))


def programs(device: torch.device, tiles: int) -> int:
    """How many programs share that many tiles: enough to fill the device once."""
    return min(tiles, _resident(device))


@cache
def _resident(device: torch.device) -> int:
    if interpreting():
        return 3
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def add_partials(partials: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sum dW and db (C,), in the weight's dtype, of (2, G, C) partials."""
    _, G, C = partials.shape
    d_weight, d_bias = weight.new_empty(C), weight.new_empty(C)
    reduce[(triton.cdiv(C, REDUCE.n), 2)](
        partials, d_weight, d_bias, G, C=C, M=REDUCE.m, N=REDUCE.n, num_warps=REDUCE.warps
    )
    return d_weight, d_bias


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
    """The op of that name: gradients of x, residual (empty without one), weight and bias."""
    T, C = x.shape
    d_x = x.new_empty((T, C))
    d_residual = grad.new_empty(0) if residual is None else residual.new_empty((T, C))
    if T == 0 or C == 0:
        return d_x, d_residual, weight.new_zeros(C), weight.new_zeros(C)
    tile = tile_for(TILES, x.device, C)
    G = programs(x.device, triton.cdiv(T, tile.m))
    partials = x.new_empty((2, G, C), dtype=torch.float32)
    backward[(G,)](
        grad.contiguous(), x.contiguous(), None if residual is None else residual.contiguous(),
        weight.contiguous(), mean.contiguous(), rstd.contiguous(), seed, d_x,
        None if residual is None else d_residual, partials, philox.level(dropout_p),
        philox.scale(dropout_p), T, C=C, N=tile.n, M=tile.m, DROPOUT=dropout_p > 0.0,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return d_x, d_residual, *add_partials(partials, weight)


def variants() -> Iterator[Variant]:
    """Both kernels of this file, to be compiled ahead of time."""
    for arch in ARCHITECTURES:
        for dtype in DTYPES:
            for width, detail in variant_keys(dtype):
                yield _variant(arch, dtype, width, detail)
            yield Variant(
                kernel=reduce, stem="layer_norm", name="reduce", dtype=dtype, arch=arch,
                tile=REDUCE, signature={"partials": "*fp32", "d_weight": f"*{dtype}",
                "d_bias": f"*{dtype}", "G": "i32"},
                constants={"C": 768, "M": REDUCE.m, "N": REDUCE.n},
                divisible=("partials", "d_weight", "d_bias"), detail="C=768",
                elements=REDUCE.m * REDUCE.n,
            )  # fmt: skip


def _variant(arch: str, dtype: str, width: int, detail: str) -> Variant:
    tile = TILES[arch][padded(width)]
    wide = "fp32" if "mixed" in detail else dtype
    signature = {"grad": f"*{wide}", "x": f"*{dtype}", "residual": f"*{wide}",
                 "weight": f"*{wide}", "mean": "*fp32", "rstd": "*fp32", "seed": "*i64",
                 "d_x": f"*{dtype}", "d_residual": f"*{wide}", "partials": "*fp32",
                 "level": "i32", "scale": "fp32", "T": "i32"}  # fmt: skip
    return Variant(
        kernel=backward, stem="layer_norm", name="backward", dtype=dtype, arch=arch, tile=tile,
        signature=signature,
        constants={"C": width, "N": tile.n, "M": tile.m, "DROPOUT": "dropout" in detail},
        divisible=("grad", "x", "residual", "weight", "mean", "rstd", "d_x", "d_residual",
                   "partials"),
        detail=f"C={width}{detail}", elements=tile.m * width,
    )  # fmt: skip
