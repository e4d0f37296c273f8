"""activation(x + bias) on (T, N), its gradient, and the sums over T that a bias's gradient needs.

Forward: out = activation(x + bias), for a GEMM that has no epilogue. Backward, in one pass over
memory: d_pre = grad · activation'(x + bias), and each program's sums of d_pre over the rows it
treated, float32, before any rounding; `column_sums` adds the programs' sums in a fixed order. No
atomics, so two runs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastbert.kernels.activations import activate, derivative


@triton.jit(do_not_specialize=["T"])
def forward(
    x, bias, out, pre, T, N,
    BM: tl.constexpr, BN: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Of x (T, N), bias (N,) give out, and x + bias in pre where SAVE; pre may be x itself."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    places = rows.to(tl.int64)[:, None] * N + cols[None, :]
    inside = (rows < T)[:, None] & (cols < N)[None, :]
    value = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    if SAVE:
        tl.store(pre + places, value.to(pre.dtype.element_ty), mask=inside)
    tl.store(out + places, activate(value, ACTIVATION).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T"])
def backward(
    grad, x, bias, d_pre, partial, T, N,
    BM: tl.constexpr, BN: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """grad, x (T, N), bias (N,) → d_pre (T, N), and where SUMS partial (programs, N) float32.

    Where ACTIVATION is none, d_pre is grad, and neither x is read nor d_pre written.
    """
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    shift = tl.zeros((1, BN), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for first in range(tl.program_id(0) * BM, T, tl.num_programs(0) * BM):
        rows = first + tl.arange(0, BM)
        places = rows.to(tl.int64)[:, None] * N + cols[None, :]
        inside = (rows < T)[:, None] & (cols < N)[None, :]
        value = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
        if ACTIVATION != "none":
            before = tl.load(x + places, mask=inside, other=0.0).to(tl.float32) + shift
            value *= derivative(before, ACTIVATION)
            tl.store(d_pre + places, value.to(d_pre.dtype.element_ty), mask=inside)
        if SUMS:
            total += value
    if SUMS:
        place = tl.program_id(0).to(tl.int64) * N + cols
        tl.store(partial + place, tl.sum(total, axis=0), mask=cols < N)


@triton.jit(do_not_specialize=["count"])
def column_sums(partial, out, count, N, BM: tl.constexpr, BN: tl.constexpr):
    """Sums of partial (count, N) float32 over the first axis: out (N,)."""
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for first in range(0, count, BM):
        rows = first + tl.arange(0, BM)
        places = rows.to(tl.int64)[:, None] * N + cols[None, :]
        inside = (rows < count)[:, None] & (cols < N)[None, :]
        total += tl.load(partial + places, mask=inside, other=0.0)
    tl.store(out + cols, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=cols < N)
