"""BERT's input layer in one launch: three gathers, their sum, LayerNorm.

    s = word[ids] + type[types] + position[positions]     (T, C), float32 in registers
    out = (s - mean)·rstd·weight + bias

An index outside its table reads the nearest valid row and is counted where the caller says; it
never trips the device's assert, which would poison the context. The backward is in
`embedding_backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels.embedding_backward import embed_layer_norm_backward
from fastbert.kernels.embedding_backward import variants as backward_variants
from fastbert.kernels.rows import (
    every_architecture,
    normalised,
    padded,
    refused,
    table_sum,
    tile_for,
    tiles,
)
from fastbert.kernels.tiles import ARCHITECTURES
from fastbert.kernels.variant import DTYPES, Variant

TILES = every_architecture(tiles(32, 8))
"""Architecture → padded width → tile."""
NUMBERS = 2**31 - 2**16
"""Rows of the tables, and three times the tokens, are numbered in 32 bits; a tile may overrun."""


@triton.jit(do_not_specialize=["T", "V", "P", "K"])
def forward(
    ids, types, positions, word, position, type, weight, bias, out, mean_out, rstd_out, counter,
    eps, T, V, P, K, C: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """M rows a program; tables of V, P and K rows; counter: (6,) int64, or None."""
    rows = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    columns = tl.arange(0, N)
    inside = (columns < C)[None, :]
    real = rows < T
    mask = real[:, None] & inside
    if counter is not None:
        count_outside(ids, rows, real, V, counter)
        count_outside(types, rows, real, K, counter + 1)
        count_outside(positions, rows, real, P, counter + 2)
    summed, _, _, _ = table_sum(
        ids, types, positions, word, position, type, rows, columns, real, mask, V, P, K, C
    )
    scaled, mean, rstd = normalised(summed, inside, eps, C)
    w = tl.load(weight + columns, mask=columns < C, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)
    result = scaled * w[None, :] + b[None, :]
    place = rows[:, None] * C + columns[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
    tl.store(mean_out + rows, mean, mask=real)
    tl.store(rstd_out + rows, rstd, mask=real)


@triton.jit
def count_outside(indices, rows, real, limit, counter):
    """Add to counter[0] how many indices lie outside 0..limit - 1; if any does, note the limit."""
    index = tl.load(indices + rows, mask=real, other=0).to(tl.int64)
    bad = tl.sum(((index < 0) | (index >= limit)).to(tl.int64), 0)
    tl.atomic_add(counter, bad, mask=bad > 0, sem="relaxed")
    tl.store(counter + 3, limit.to(tl.int64), mask=bad > 0)


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
    counter: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of that name: out (T, C), mean and rstd (T,) float32.

    Args:
        counter: (6,) int64, to which is added how many ids, types and positions lie outside their
            tables, and where the sizes of those tables are written; None: they are not counted.
    """
    T, C = ids.shape[0], word.shape[1]
    out = word.new_empty((T, C))
    # Two allocations: the results of an op must not share memory.
    mean, rstd = (out.new_empty(T, dtype=torch.float32) for _ in range(2))
    if T == 0:
        return out, mean, rstd
    tile = tile_for(TILES, word.device, C)
    forward[(triton.cdiv(T, tile.m),)](
        ids.contiguous(), types.contiguous(), positions.contiguous(), word.contiguous(),
        position.contiguous(), type.contiguous(), weight.contiguous(), bias.contiguous(), out, mean,
        rstd, counter, eps, T, word.shape[0], position.shape[0], type.shape[0], C=C, N=tile.n,
        M=tile.m, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, mean, rstd


def unsupported(op: str, args: tuple[Any, ...]) -> str | None:
    """Why these arguments of an op can't be served, or None."""
    first = 0 if op == "embed_layer_norm" else 1
    tables, weight = args[first + 3 : first + 6], args[first + 6]
    rows = [table.shape[0] for table in tables]
    if not all(rows):
        return f"Triton's embedding has no empty table, not tables of {rows} rows"
    if sum(rows) >= NUMBERS or 3 * args[first].shape[0] >= NUMBERS:
        return f"Triton's embedding numbers rows in 32 bits: {rows}, {args[first].shape[0]} tokens"
    return refused([*tables, weight], tables[0].shape[1])


LAUNCHERS: dict[str, Callable[..., Any]] = {
    "embed_layer_norm": embed_layer_norm,
    "embed_layer_norm_backward": embed_layer_norm_backward,
}


def variants() -> Iterator[Variant]:
    """Every kernel of this file and of the backward's, to be compiled ahead of time."""
    for arch in ARCHITECTURES:
        for dtype in DTYPES:
            for width in (384, 768, 1024):
                yield _variant(arch, dtype, width)
    yield from backward_variants()


def _variant(arch: str, dtype: str, width: int) -> Variant:
    tile = TILES[arch][padded(width)]
    indices = dict.fromkeys(("ids", "types", "positions", "counter"), "*i64")
    data = dict.fromkeys(("word", "position", "type", "weight", "bias", "out"), f"*{dtype}")
    statistics = dict.fromkeys(("mean_out", "rstd_out"), "*fp32")
    pointers = {**indices, **data, **statistics}
    return Variant(
        kernel=forward, stem="embedding", name="forward", dtype=dtype, arch=arch, tile=tile,
        signature={**pointers, "eps": "fp32", **dict.fromkeys("TVPK", "i32")},
        constants={"C": width, "N": tile.n, "M": tile.m}, divisible=tuple(pointers),
        detail=f"C={width}", elements=tile.m * width,
    )  # fmt: skip
