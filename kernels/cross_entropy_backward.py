"""Gradients of `linear_cross_entropy`, a chunk of the logits' gradient at a time.

    d_logits = (exp(logits - shift)·scale - onehot(label))·grad       (m, v), 0 where ignored
    d_x = d_logits · weight, d_weight = d_logitsᵀ · x, d_bias = Σ_m d_logits

`_d_logits` makes logits again and writes a chunk of m rows × v classes in x's dtype; the two
products of a chunk are the vendor's GEMMs. Chunks follow the classes, so that with m = M each
element of d_weight is written once, from a float32 sum over all rows; d_x is summed over the
chunks in float32. A chunk is written once and read twice, what the materialised gradient costs;
d_x adds 8·M·C bytes a chunk: 0.2 GB beside 0.75 GB at M = 4096, V = 30522, C = 768.

Peak memory beyond inputs and results, with b the dtype's bytes (see `chunks`):
    b·m·v + 4·⌈M/BM⌉·v + 4·v (d_bias) + for 16 bits, 4·M·C where v < V and 4·v·C where m < M
44.6 MB of the 500 MB of float32 logits at that size in 16 bits. No atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels.cross_entropy_logits import (
    GROUP,
    LOG2_E,
    constants,
    labels_of,
    logits_tile,
    place,
    programs,
    tile_of,
)
from fastbert.kernels.tiles import Tile
from fastbert.kernels.variant import COMPUTE, Variant

CHUNK_BYTES = 32 << 20
"""Most bytes of a chunk: 4096 rows × 4096 classes in 16 bits, so that GEMMs fill a GPU."""

NARROWEST = 2048
"""Fewest classes of a chunk while there are more: below, adding to d_x costs more than the GEMM."""


def chunks(rows: int, classes: int, itemsize: int, tile: Tile) -> tuple[int, int]:
    """Rows m and classes v of a chunk: multiples of the tile, m·v·itemsize ≤ `CHUNK_BYTES`.

    All rows if `NARROWEST` classes of them fit; chunks are of nearly one size.
    """
    fitting = max(CHUNK_BYTES // (itemsize * max(rows, 1)), NARROWEST) // tile.n * tile.n
    parts = triton.cdiv(classes, max(fitting, tile.n))
    wide = triton.cdiv(triton.cdiv(classes, parts), tile.n) * tile.n
    tall = max(CHUNK_BYTES // (itemsize * wide) // tile.m, 1) * tile.m
    parts = triton.cdiv(max(rows, 1), tall)
    tall = triton.cdiv(triton.cdiv(rows, parts), tile.m) * tile.m
    return min(tall, rows), wide


@triton.jit(do_not_specialize=["M", "V", "first", "classes", "ignore_index"])
def _d_logits(
    x_ptr, weight_ptr, bias_ptr, labels_ptr, grad_ptr, shift_ptr, scale_ptr, out_ptr, sums_ptr,
    M, V, first, classes, ignore_index, stride, C,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr, COMPUTE: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Rows of x against classes first … first + V - 1 of all, which weight and bias begin at."""
    tile_m, tile_n = place(M, V, BM, BN, GROUP)
    row, column = tile_m * BM, tile_n * BN
    logits = logits_tile(
        x_ptr, weight_ptr, bias_ptr, row, column, M, V, C, BM, BN, BK, EVEN, HAS_BIAS, COMPUTE
    )
    rows, columns = row + tl.arange(0, BM), column + tl.arange(0, BN)
    # beyond M exp(-inf) = 0: a 0 there overflows at logits of 1e4, and inf · 0 spoils the sums
    shift = tl.load(shift_ptr + rows, mask=rows < M, other=float("inf"))
    softmax = tl.exp2((logits - shift[:, None]) * LOG2_E)
    if SCALED:
        softmax *= tl.load(scale_ptr + rows, mask=rows < M, other=0.0)[:, None]
    label = labels_of(labels_ptr, row, M, classes, ignore_index, BM)
    local = label - first - column
    here = (label >= 0) & (local >= 0) & (local < BN)
    if tl.max(here.to(tl.int32), 0) > 0:  # few tiles hold a label of their rows
        place_of_label = tl.where(here, local, -1).to(tl.int32)
        hit = place_of_label[:, None] == tl.arange(0, BN)[None, :]
        softmax = tl.where(hit, softmax - 1.0, softmax)
    grad = tl.load(grad_ptr + rows, mask=label >= 0, other=0.0).to(tl.float32)
    d_logits = softmax * grad[:, None]
    if HAS_BIAS:
        sums = tl.sum(d_logits, 0)
        tl.store(sums_ptr + tile_m.to(tl.int64) * stride + columns, sums, mask=columns < V)
    there = out_ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    # stride is a multiple of BN: columns beyond V have a place, and a mask would narrow the store
    tl.store(there, d_logits.to(out_ptr.dtype.element_ty), mask=(rows < M)[:, None])


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    shift: Tensor,
    scale: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """d_x (M, C), d_weight (V, C), d_bias (V,), empty without bias; all inputs contiguous."""
    (M, C), V = x.shape, weight.shape[0]
    d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
    d_bias = weight.new_empty(0 if bias is None else V)
    if M == 0:
        return d_x, d_weight.zero_(), d_bias.zero_()
    tile = tile_of(x)
    tall, wide = chunks(M, V, x.itemsize, tile)
    scratch = x.new_empty(tall, wide)
    sums = x.new_empty(0 if bias is None else triton.cdiv(M, tile.m), wide, dtype=torch.float32)
    exact = x.dtype == torch.float32
    sum_x = d_x if exact or wide >= V else x.new_empty(M, C, dtype=torch.float32)
    sum_weight = None if exact or tall >= M else x.new_empty(wide, C, dtype=torch.float32)
    for first in range(0, V, wide):
        classes = slice(first, min(first + wide, V))
        part = d_weight[classes] if sum_weight is None else sum_weight[: classes.stop - first]
        for start in range(0, M, tall):
            rows = slice(start, min(start + tall, M))
            d_logits = scratch[: rows.stop - start, : classes.stop - first]
            _chunk(
                (x[rows], weight[classes], None if bias is None else bias[classes], labels[rows]),
                (grad[rows], shift[rows], None if scale is None else scale[rows]),
                d_logits, sums[start // tile.m :], first, V, ignore_index, tile,
            )  # fmt: skip
            _multiply(sum_x[rows], d_logits, weight[classes], more=first > 0)
            _multiply(part, d_logits.t(), x[rows], more=start > 0)
        if sum_weight is not None:
            d_weight[classes] = part
        if bias is not None:
            d_bias[classes] = sums[:, : classes.stop - first].sum(0)
    return d_x if sum_x is d_x else d_x.copy_(sum_x), d_weight, d_bias


def _chunk(
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor],
    statistics: tuple[Tensor, Tensor, Tensor | None],
    out: Tensor,
    sums: Tensor,
    first: int,
    classes: int,
    ignore_index: int,
    tile: Tile,
) -> None:
    """Write one chunk of the logits' gradient, and its sums over each tile's rows."""
    x, _, bias, _ = inputs
    rows, columns = out.shape
    tiles_m, tiles_n = programs(rows, columns, tile)
    _d_logits[(tiles_m * tiles_n,)](
        *inputs, *statistics, out, sums, rows, columns, first, classes, ignore_index,
        out.stride(0), x.shape[1], SCALED=statistics[2] is not None, **constants(x, bias, tile),
    )  # fmt: skip


def _multiply(out: Tensor, a: Tensor, b: Tensor, more: bool) -> None:
    """Set out = a · b, or out += a · b, summed in float32; out is float32 or of a's dtype.

    `out=` throughout: autocast leaves those alone, and nothing is allocated.
    """
    if out.dtype == a.dtype:
        _ = torch.addmm(out, a, b, out=out) if more else torch.mm(a, b, out=out)
    elif a.device.type == "cuda" and torch.version.hip is None:
        wide = out.dtype
        if more:
            torch.addmm(out, a, b, out_dtype=wide, out=out)
        else:
            torch.mm(a, b, out_dtype=wide, out=out)
    else:  # no GEMM from 16 bits to float32 there: widen, a few rows of a at a time
        wider = b.to(out.dtype)
        for rows, into in zip(a.split(256), out.split(256), strict=True):
            into.addmm_(rows.to(out.dtype), wider, beta=int(more))


def constants_of(dtype: str, tile: Tile, C: int, bias: bool) -> dict[str, Any]:
    """The compile-time arguments that forward and backward share, for a variant."""
    constant = {"BM": tile.m, "BN": tile.n, "BK": tile.k, "EVEN": C % tile.k == 0, "GROUP": GROUP}
    absent = {} if bias else {"bias_ptr": None}
    return {**constant, "HAS_BIAS": bias, "COMPUTE": COMPUTE[dtype], **absent}


def divisible(signature: dict[str, str], constant: dict[str, Any], C: int) -> tuple[str, ...]:
    """The arguments of a variant that are multiples of 16: pointers, the chunk's stride, C."""
    sizes = ("stride", "C") if C % 16 == 0 else ("stride",)
    given = {name: kind for name, kind in signature.items() if name not in constant}
    return tuple(name for name, kind in given.items() if kind[0] == "*" or name in sizes)


def variant(arch: str, dtype: str, tile: Tile, C: int = 768, bias: bool = True) -> Variant:
    """What to compile ahead of time for one tile."""
    data = ("x_ptr", "weight_ptr", "bias_ptr", "out_ptr")
    pointers = dict.fromkeys(data, f"*{dtype}") | {"labels_ptr": "*i64"}
    pointers |= dict.fromkeys(("grad_ptr", "shift_ptr", "scale_ptr", "sums_ptr"), "*fp32")
    numbers = ("M", "V", "first", "classes", "ignore_index", "stride", "C")
    signature = pointers | dict.fromkeys(numbers, "i32")
    constant = {**constants_of(dtype, tile, C, bias), "SCALED": dtype == "fp32"}
    if dtype != "fp32":
        constant["scale_ptr"] = None
    return Variant(
        _d_logits, "cross_entropy", "backward", dtype, arch, tile, signature, constant,
        divisible(signature, constant, C), f"C={C}",
        ((tile.m, tile.n, tile.k),), tile.m * tile.n,
    )  # fmt: skip
