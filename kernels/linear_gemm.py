"""activation(x · weightᵀ + bias) in one kernel: x (T, K), weight (N, K) → (T, N), float32 sums.

Two kernels, one epilogue: `gemm` reads by pointers, `gemm_descriptors` by tensor descriptors (TMA).
Both take K in the order 0, 1, … whatever T is, so a row's bits depend on the tile alone. Rows and
columns beyond the matrix are read as its last or as zeros and never written, so the main loop has
no mask; a K that is no multiple of the tile costs one masked step after it. Programs go down GROUP
row tiles before the next column, so that its weights are found in L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastbert.kernels.activations import activate


@triton.jit
def _tile(T, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """This program's row tile and column tile."""
    program = tl.program_id(0)
    tiles_m = tl.cdiv(T, BM)
    tiles_n = tl.cdiv(N, BN)
    first = program // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    within = program % (GROUP * tiles_n)
    return first + within % height, within // height


@triton.jit
def _store(
    total, bias, out, pre, rows, cols, T, N,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Bias, activation, and the stores of out and pre."""
    if HAS_BIAS:
        total += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    places = rows.to(tl.int64)[:, None] * N + cols[None, :]
    inside = (rows < T)[:, None] & (cols < N)[None, :]
    if SAVE:
        tl.store(pre + places, total.to(pre.dtype.element_ty), mask=inside)
    tl.store(out + places, activate(total, ACTIVATION).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _finish(
    total, bias, out, pre, tile_m, tile_n, T, N,
    BM: tl.constexpr, BN: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """The epilogue, a half of the columns after the other: the whole spills where pre is saved."""
    rows = tile_m * BM + tl.arange(0, BM)
    cols = tile_n * BN + tl.arange(0, BN // 2)
    low, high = total.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()
    _store(low, bias, out, pre, rows, cols, T, N, ACTIVATION, HAS_BIAS, SAVE)
    _store(high, bias, out, pre, rows, cols + BN // 2, T, N, ACTIVATION, HAS_BIAS, SAVE)


@triton.jit(do_not_specialize=["T", "units"])
def gemm(
    x, weight, bias, out, pre, T, N, units,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, UNIT: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Of x (T, K), weight (N, K), bias (N,) give out (T, N), and pre (T, N) where SAVE.

    K is units · UNIT, UNIT elements being 16 bytes, so that the compiler knows how rows are
    aligned: it asks no more of K itself than whether it is a multiple of 16. WIDEN casts to float32
    after each load, for the interpreter's bfloat16.
    """
    K = units * UNIT
    tile_m, tile_n = _tile(T, N, BM, BN, GROUP)
    rows = tl.minimum(tile_m * BM + tl.arange(0, BM), T - 1).to(tl.int64)
    cols = tl.minimum(tile_n * BN + tl.arange(0, BN), N - 1).to(tl.int64)
    inner = tl.arange(0, BK)
    x_at = x + (rows[:, None] * K + inner[None, :])
    weight_at = weight + (cols[None, :] * K + inner[:, None])
    total = tl.zeros((BM, BN), tl.float32)
    for _ in range(K // BK):
        a, b = tl.load(x_at), tl.load(weight_at)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        x_at += BK
        weight_at += BK
    if not EVEN_K:
        left = inner // UNIT < units % (BK // UNIT)  # constant over 16 bytes, and seen to be
        a = tl.load(x_at, mask=left[None, :], other=0.0)
        b = tl.load(weight_at, mask=left[:, None], other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    _finish(total, bias, out, pre, tile_m, tile_n, T, N, BM, BN, ACTIVATION, HAS_BIAS, SAVE)


@triton.jit(do_not_specialize=["T"])
def gemm_descriptors(
    x, weight, bias, out, pre, T, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Do as `gemm` on descriptors of x with blocks (BM, BK) and of weight with (BN, BK)."""
    tile_m, tile_n = _tile(T, N, BM, BN, GROUP)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(tl.cdiv(K, BK)):
        a = x.load([tile_m * BM, k * BK])
        b = weight.load([tile_n * BN, k * BK])
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b.T, total, input_precision=PRECISION)
    _finish(total, bias, out, pre, tile_m, tile_n, T, N, BM, BN, ACTIVATION, HAS_BIAS, SAVE)
