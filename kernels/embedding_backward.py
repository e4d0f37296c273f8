"""The gradients of `embedding`: the norm's, then those of the tables by sorted segments.

Four launches and a sort, no atomics, so the same bits every time:
1. `backward`: ds (T, C), partials of dW and db, and 3·T keys, which number the rows of the three
   tables in one sequence: id, V + position, V + P + type.
2. `layer_norm_backward.reduce`: dW and db.
3. A stable sort of the keys; equal keys then lie side by side, a segment.
4. `add_segments`: a program adds the rows of R sorted keys one after the other. A segment within
   those R is finished; one that began before leaves its part in ``heads``, one that goes on beyond
   them in ``tails``, both float32.
5. `join_segments`: adds the parts of each segment that crosses programs, tail first, then heads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels.layer_norm_backward import (
    add_partials,
    norm_gradient,
    programs,
    write_partials,
)
from fastbert.kernels.rows import every_architecture, padded, table_sum, tile_for, tiles
from fastbert.kernels.tiles import ARCHITECTURES, INTERPRETER, Tile, architecture
from fastbert.kernels.variant import DTYPES, Variant

TILES = every_architecture(tiles(16, 16))
SEGMENT_ROWS = {**dict.fromkeys(ARCHITECTURES, 32), INTERPRETER: 4}
"""R: at 16,384 tokens all programs of an H100 are resident at once (unmeasured on GPU)."""
JOIN = Tile(32, 128, warps=4, stages=1)
"""Heads by columns that a program of `join_segments` adds at a time."""


@triton.jit(do_not_specialize=["T", "V", "P", "K"])
def backward(
    grad, ids, types, positions, word, position, type, weight, mean, rstd, d_sum_out, keys,
    partials, T, V, P, K, C: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """grad, d_sum_out: (T, C); keys: (3·T,) int32; partials: (2, G, C) of dW and db."""
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
        summed, id, kind, where = table_sum(
            ids, types, positions, word, position, type, rows, columns, real, mask, V, P, K, C
        )
        tl.store(keys + rows, id.to(tl.int32), mask=real)
        tl.store(keys + T + rows, (V + where).to(tl.int32), mask=real)
        tl.store(keys + 2 * T + rows, (V + P + kind).to(tl.int32), mask=real)
        row_mean = tl.load(mean + rows, mask=real, other=0.0)
        row_rstd = tl.load(rstd + rows, mask=real, other=0.0)
        d_sum, d_scaled = norm_gradient(dy, summed, w, row_mean, row_rstd, inside, C)
        d_weight += tl.sum(d_scaled, 0)
        d_bias += tl.sum(dy, 0)
        tl.store(d_sum_out + place, d_sum.to(d_sum_out.dtype.element_ty), mask=mask)
    write_partials(partials, d_weight, d_bias, columns, C)


@triton.jit
def store_row(
    d_word, d_position, d_type, key, values, columns, padding, V, P, C: tl.constexpr
):  # fmt: skip
    """Write the gradient of one key's row to the table that it numbers."""
    row = key.to(tl.int64)
    inside = columns < C
    result = values.to(d_word.dtype.element_ty)
    tl.store(d_word + row * C + columns, result, mask=inside & (key < V) & (key != padding))
    row -= V
    tl.store(d_position + row * C + columns, result, mask=inside & (row >= 0) & (row < P))
    row -= P
    tl.store(d_type + row * C + columns, result, mask=inside & (row >= 0))


@triton.jit(do_not_specialize=["T", "V", "P", "padding"])
def add_segments(
    d_sum, keys, order, d_word, d_position, d_type, heads, tails, padding, T, V, P,
    C: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Sorted keys and order: (3·T,); heads and tails: (⌈3·T/R⌉, C) float32."""
    columns = tl.arange(0, N)
    inside = columns < C
    total = 3 * T
    first = tl.program_id(0) * R
    own = tl.program_id(0).to(tl.int64) * C + columns
    key = tl.load(keys + first)
    began = tl.load(keys + first - 1, mask=first > 0, other=-1) != key  # this segment, in here
    values = tl.zeros((N,), tl.float32)
    for place in range(first, tl.minimum(first + R, total)):
        row = tl.load(order + place)
        row -= tl.where(row >= 2 * T, 2 * T, tl.where(row >= T, T, 0))
        values += tl.load(d_sum + row * C + columns, mask=inside, other=0.0).to(tl.float32)
        following = tl.load(keys + place + 1, mask=place + 1 < total, other=-1)
        if following != key:
            if began:
                store_row(d_word, d_position, d_type, key, values, columns, padding, V, P, C)
            else:
                tl.store(heads + own, values, mask=inside)
            values = tl.zeros((N,), tl.float32)
            began = following != key
        key = following
    # What follows belongs to the next program; equal keys mean that the segment goes on there.
    last = tl.load(keys + tl.minimum(first + R, total) - 1)
    if key == last:
        if began:
            tl.store(tails + own, values, mask=inside)
        else:
            tl.store(heads + own, values, mask=inside)


@triton.jit(do_not_specialize=["T", "V", "P", "padding"])
def join_segments(
    keys, d_word, d_position, d_type, heads, tails, padding, T, V, P,
    C: tl.constexpr, N: tl.constexpr, M: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """A program a chunk of R keys and N columns: the segment that begins in it and goes on."""
    total = 3 * T
    chunk = tl.program_id(0)
    end = (chunk + 1) * R
    key = tl.load(keys + end - 1, mask=end < total, other=-1)
    begins = tl.load(keys + chunk * R - 1, mask=chunk > 0, other=-1) != key
    goes_on = tl.load(keys + end, mask=end < total, other=-2) == key
    if begins & goes_on:
        columns = tl.program_id(1) * N + tl.arange(0, N)
        inside = columns < C
        parts = tl.zeros((M, N), tl.float32)
        start = chunk + 1
        more = goes_on
        while more:
            later = start + tl.arange(0, M)
            found = tl.load(keys + later * R, mask=later * R < total, other=-1)
            mask = (found == key)[:, None] & inside[None, :]
            place = later.to(tl.int64)[:, None] * C + columns[None, :]
            parts += tl.load(heads + place, mask=mask, other=0.0)
            start += M
            more = tl.load(keys + start * R, mask=start * R < total, other=-1) == key
        values = tl.load(tails + chunk.to(tl.int64) * C + columns, mask=inside, other=0.0)
        values += tl.sum(parts, 0)
        store_row(d_word, d_position, d_type, key, values, columns, padding, V, P, C)


def embed_layer_norm_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op of that name: gradients of word, position, type, weight and bias."""
    T, C = grad.shape
    if T == 0:
        d_word, d_position, d_type, d_weight, d_bias = (
            t.new_zeros(t.shape) for t in (word, position, type, weight, weight)
        )
        return d_word, d_position, d_type, d_weight, d_bias
    tile = tile_for(TILES, word.device, C)
    G = programs(word.device, triton.cdiv(T, tile.m))
    partials = word.new_empty((2, G, C), dtype=torch.float32)
    d_sum = word.new_empty((T, C))
    keys = ids.new_empty(3 * T, dtype=torch.int32)
    backward[(G,)](
        grad.contiguous(), ids.contiguous(), types.contiguous(), positions.contiguous(),
        word.contiguous(), position.contiguous(), type.contiguous(), weight.contiguous(),
        mean.contiguous(), rstd.contiguous(), d_sum, keys, partials, T, word.shape[0],
        position.shape[0], type.shape[0], C=C, N=tile.n, M=tile.m, num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
    d_word, d_position, d_type = table_gradients(d_sum, keys, (word, position, type), padding_idx)
    return d_word, d_position, d_type, *add_partials(partials, weight)


def table_gradients(
    d_sum: Tensor, keys: Tensor, tables: tuple[Tensor, Tensor, Tensor], padding_idx: int
) -> list[Tensor]:
    """Each table's gradient: the sums of the rows of d_sum (T, C) that a key names, else 0.

    Args:
        d_sum: (T, C).
        keys: (3·T,) int32, as `backward` writes them.
        tables: word, position and type.
        padding_idx: the row of word that gets none; -1: all get theirs.
    """
    T, C = d_sum.shape
    V, P, _ = (table.shape[0] for table in tables)
    tile = tile_for(TILES, d_sum.device, C)
    arch = architecture(d_sum.device)
    assert arch is not None  # tile_for has refused it
    R = SEGMENT_ROWS[arch]
    chunks = triton.cdiv(3 * T, R)
    keys, order = torch.sort(keys, stable=True)
    heads, tails = d_sum.new_empty((2, chunks, C), dtype=torch.float32).unbind()
    grads = [table.new_zeros(table.shape) for table in tables]
    add_segments[(chunks,)](
        d_sum, keys, order, *grads, heads, tails, padding_idx, T, V, P, C=C, N=tile.n, R=R,
        num_warps=tile.warps,
    )  # fmt: skip
    join_segments[(chunks, triton.cdiv(C, JOIN.n))](
        keys, *grads, heads, tails, padding_idx, T, V, P, C=C, N=JOIN.n, M=JOIN.m, R=R,
        num_warps=JOIN.warps,
    )  # fmt: skip
    return grads


def variants() -> Iterator[Variant]:
    """All kernels of this file, to be compiled ahead of time."""
    for arch in ARCHITECTURES:
        for dtype in DTYPES:
            for width in (384, 768, 1024):
                yield from _variants(arch, dtype, width)


def _variants(arch: str, dtype: str, width: int) -> Iterator[Variant]:
    tile = TILES[arch][padded(width)]
    R = SEGMENT_ROWS[arch]
    tables = dict.fromkeys(("d_word", "d_position", "d_type"), f"*{dtype}")
    parts = dict.fromkeys(("heads", "tails"), "*fp32")
    sizes = dict.fromkeys(("padding", "T", "V", "P"), "i32")
    inputs = {
        **dict.fromkeys(("grad", "word", "position", "type", "weight", "d_sum_out"), f"*{dtype}"),
        **dict.fromkeys(("ids", "types", "positions"), "*i64"),
        **dict.fromkeys(("mean", "rstd", "partials"), "*fp32"), "keys": "*i32",
    }  # fmt: skip
    sums = {"d_sum": f"*{dtype}", "keys": "*i32", "order": "*i64", **tables, **parts}
    joined = {"keys": "*i32", **tables, **parts}
    for kernel, name, shape, pointers, constants in (
        (backward, "backward", tile, inputs, {"C": width, "N": tile.n, "M": tile.m}),
        (add_segments, "add_segments", Tile(1, tile.n, R, tile.warps, 1), sums,
         {"C": width, "N": tile.n, "R": R}),
        (join_segments, "join_segments", JOIN, joined,
         {"C": width, "N": JOIN.n, "M": JOIN.m, "R": R}),
    ):  # fmt: skip
        numbers = dict.fromkeys("TVPK", "i32") if name == "backward" else sizes
        yield Variant(
            kernel=kernel, stem="embedding", name=name, dtype=dtype, arch=arch, tile=shape,
            signature={**pointers, **numbers}, constants=constants, divisible=tuple(pointers),
            detail=f"C={width}", elements=shape.m * min(width, shape.n),
        )  # fmt: skip
