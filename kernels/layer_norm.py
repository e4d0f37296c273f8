"""Dropout, residual sum and LayerNorm in one pass over memory.

    s = dropout(x) + residual        (T, C), float32 in registers
    out = (s - mean)·rstd·weight + bias, rstd = 1/√(var + eps)

A program takes M whole rows. The statistics are two passes over registers: the mean, then the
squared deviations from it, lanes beyond C left out. Every element of x, residual and out crosses
memory once, 16 bytes at a time where C is a multiple of 8. The backward is in
`layer_norm_backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels import philox
from fastbert.kernels.layer_norm_backward import residual_layer_norm_backward
from fastbert.kernels.layer_norm_backward import variants as backward_variants
from fastbert.kernels.rows import (
    every_architecture,
    normalised,
    padded,
    refused,
    residual_sum,
    tile_for,
    tiles,
    variant_keys,
)
from fastbert.kernels.tiles import ARCHITECTURES
from fastbert.kernels.variant import DTYPES, Variant

TILES = every_architecture(tiles(32, 8))
"""Architecture → padded width → tile."""


@triton.jit(do_not_specialize=["T", "level"], do_not_specialize_on_alignment=["seed"])
def forward(
    x, residual, weight, bias, out, mean_out, rstd_out, seed, eps, level, scale, T,
    C: tl.constexpr, N: tl.constexpr, M: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """M rows a program; x, residual or None, out: (T, C); mean_out, rstd_out: (T,) float32."""
    rows = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    columns = tl.arange(0, N)
    inside = (columns < C)[None, :]
    real = rows < T
    place = rows[:, None] * C + columns[None, :]
    mask = real[:, None] & inside
    summed, _ = residual_sum(
        x, residual, seed, rows, place, mask, level, scale, DROPOUT, C, N
    )  # fmt: skip
    scaled, mean, rstd = normalised(summed, inside, eps, C)
    w = tl.load(weight + columns, mask=columns < C, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)
    result = scaled * w[None, :] + b[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
    tl.store(mean_out + rows, mean, mask=real)
    tl.store(rstd_out + rows, rstd, mask=real)


def residual_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of that name: out (T, C), mean and rstd (T,) float32."""
    T, C = x.shape
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    out = x.new_empty((T, C), dtype=dtype)
    # Two allocations: the results of an op must not share memory.
    mean, rstd = (out.new_empty(T, dtype=torch.float32) for _ in range(2))
    if T == 0 or C == 0:
        return out, mean, rstd
    tile = tile_for(TILES, x.device, C)
    forward[(triton.cdiv(T, tile.m),)](
        x.contiguous(), None if residual is None else residual.contiguous(), weight.contiguous(),
        bias.contiguous(), out, mean, rstd, seed, eps, philox.level(dropout_p),
        philox.scale(dropout_p), T, C=C, N=tile.n, M=tile.m, DROPOUT=dropout_p > 0.0,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, mean, rstd


def unsupported(op: str, args: tuple[Any, ...]) -> str | None:
    """Why these arguments of an op can't be served, or None."""
    x, residual, weight = args[:3] if op == "residual_layer_norm" else args[1:4]
    return refused([x, weight] if residual is None else [x, residual, weight], x.shape[1])


LAUNCHERS: dict[str, Callable[..., Any]] = {
    "residual_layer_norm": residual_layer_norm,
    "residual_layer_norm_backward": residual_layer_norm_backward,
}


def variants() -> Iterator[Variant]:
    """Every kernel of this file and of the backward's, to be compiled ahead of time."""
    for arch in ARCHITECTURES:
        for dtype in DTYPES:
            for width, detail in variant_keys(dtype):
                yield _variant(arch, dtype, width, detail)
    yield from backward_variants()


def _variant(arch: str, dtype: str, width: int, detail: str) -> Variant:
    tile = TILES[arch][padded(width)]
    wide = "fp32" if "mixed" in detail else dtype  # as under autocast: x in 16 bits, the rest in 32
    signature = {"x": f"*{dtype}", "residual": f"*{wide}", "weight": f"*{wide}",
                 "bias": f"*{wide}", "out": f"*{wide}", "mean_out": "*fp32", "rstd_out": "*fp32",
                 "seed": "*i64", "eps": "fp32", "level": "i32", "scale": "fp32",
                 "T": "i32"}  # fmt: skip
    return Variant(
        kernel=forward, stem="layer_norm", name="forward", dtype=dtype, arch=arch, tile=tile,
        signature=signature,
        constants={"C": width, "N": tile.n, "M": tile.m, "DROPOUT": "dropout" in detail},
        divisible=("x", "residual", "weight", "bias", "out", "mean_out", "rstd_out"),
        detail=f"C={width}{detail}", elements=tile.m * width,
    )  # fmt: skip
