"""Varlen flash attention, backward: the gradient of qkv, from scores that are made again.

With P = exp(scale · q kᵀ - lse), dropout's factors m and δ = rowsum(dO∘O):
dV = (P∘m)ᵀ dO, dP = (dO Vᵀ)∘m, dS = P∘(dP - δ), dQ = scale · dS K, dK = scale · dSᵀ Q.

Three kernels: `delta`; `queries`, a tile of queries that loops over key tiles and writes dQ;
`keys`, a tile of keys that loops over query tiles and writes dK and dV. Every element is summed by
one program in one order, without atomics, so two runs agree bit by bit. The work list serves both:
its tiles of queries are tiles of keys as well. As in the forward, only the last tile is masked.

In float32 (REFINE) a log-sum-exp rounded to 24 bits would cost |lse|·2⁻²⁴ of every weight:
`queries` sums its rows' weights again and hands `keys` the logarithm of what they miss of 1.

Source: Dao 2023 (FlashAttention-2), section 3.1; Dao et al. 2022, appendix B.2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels.attention_common import (
    LOG2_E,
    beyond,
    constants,
    grid,
    in_place,
    keep_tile,
    load_rows,
    locate,
    philox_numbers,
    store_rows,
    tile_of,
    variant,
)
from fastbert.kernels.tiles import Tile
from fastbert.kernels.variant import Variant

DELTA_ROWS = 64
_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit(do_not_specialize=["tokens"])
def delta(grad, out, lse, deltas, lse2, tokens, heads, D: tl.constexpr, WIDTH: tl.constexpr,
          M: tl.constexpr):  # fmt: skip
    """rowsum(grad∘out) and lse · log2 e, (H, T) both: a program treats M rows of a head."""
    first, head = tl.program_id(0) * M, tl.program_id(1)
    rows, stride = tl.arange(0, M), heads * D
    offsets = rows[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    place = tl.cast(first, tl.int64) * stride + head * D
    a = load_rows(grad + place, offsets, tokens - first, D, WIDTH, True, tl.float32, M)
    b = load_rows(out + place, offsets, tokens - first, D, WIDTH, True, tl.float32, M)
    place, inside = tl.cast(head, tl.int64) * tokens + first + rows, first + rows < tokens
    tl.store(deltas + place, tl.sum(a * b, 1), mask=inside)
    tl.store(lse2 + place, tl.load(lse + place, mask=inside, other=0.0) * _LOG2_E, mask=inside)


@triton.jit
def _row_numbers(pointer, place, left, other, N: tl.constexpr, MASKED: tl.constexpr):
    """N numbers, one a row; `other` from `left` on."""
    rows = tl.arange(0, N)
    if MASKED:
        return tl.load(pointer + place + rows, mask=rows < left, other=other)
    return tl.load(pointer + place + rows)


@triton.jit
def _query_step(d_q, total, q, grad, lse2, deltas, k_at, v_at, offsets, left, factor, gain,
                seed, level, head, query, key, D: tl.constexpr, WIDTH: tl.constexpr,
                M: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr, DROPOUT: tl.constexpr,
                REFINE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One key tile's share of dQ / scale, (M, WIDTH), and of the rows' weights, (M,)."""
    k = load_rows(k_at, offsets, left, D, WIDTH, MASKED, COMPUTE, N)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (M, N)
    weights = tl.exp2(scores * factor - lse2[:, None])
    if MASKED:
        weights = tl.where((tl.arange(0, N) < left)[None, :], weights, 0.0)
    if REFINE:
        total += tl.sum(weights, 1)
    v = load_rows(v_at, offsets, left, D, WIDTH, MASKED, COMPUTE, N)
    d_weights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)  # (M, N)
    if DROPOUT:
        kept = keep_tile(seed, head, query, key, level, M, N)
        d_weights = tl.where(kept, d_weights * gain, 0.0)
    d_scores = weights * (d_weights - deltas[:, None])
    d_q = tl.dot(d_scores.to(COMPUTE), k, d_q, input_precision=PRECISION)
    return d_q, total


@triton.jit(do_not_specialize=["tokens", "items", "sequences", "level"])
def queries(grad, qkv, lse2, deltas, missing, cu_seqlens, work, seeds, d_qkv,
            tokens, items, sequences, heads, s_token, s_part, s_head, factor, level, gain, scale,
            D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
            DROPOUT: tl.constexpr, REFINE: tl.constexpr, COMPUTE: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """DQ of M queries; in float32 also log2 of the sums of their weights, `missing` (H, T)."""
    head, start, length, first = locate(cu_seqlens, work, items, heads, M)
    width = heads * D
    row, step = beyond(cu_seqlens, sequences, heads, M)
    while row < tokens:
        place = d_qkv + tl.cast(row, tl.int64) * 3 * width + head * D
        store_rows(place, 3 * width, tl.zeros((M, WIDTH), tl.float32), tokens - row, D)
        row += step
    if length == 0:
        return
    seed = tl.load(seeds) if DROPOUT else 0
    query, left = start + first, length - first
    columns, rows = tl.arange(0, WIDTH)[None, :], tl.arange(0, M)
    base = qkv + tl.cast(start, tl.int64) * s_token + tl.cast(head, tl.int64) * s_head
    offsets = tl.arange(0, N)[:, None] * s_token + columns
    q = load_rows(base + tl.cast(first, tl.int64) * s_token, rows[:, None] * s_token + columns,
                  left, D, WIDTH, True, COMPUTE, M)  # fmt: skip
    at = grad + tl.cast(query, tl.int64) * width + head * D
    d_out = load_rows(at, rows[:, None] * width + columns, left, D, WIDTH, True, COMPUTE, M)
    statistic = tl.cast(head, tl.int64) * tokens + query
    row_lse = _row_numbers(lse2, statistic, left, 0.0, M, True)
    d_row = _row_numbers(deltas, statistic, left, 0.0, M, True)
    k_at, v_at = base + s_part, base + 2 * tl.cast(s_part, tl.int64)
    d_q, total = tl.zeros((M, WIDTH), tl.float32), tl.zeros((M,), tl.float32)
    whole = length // N * N
    if whole < length:
        jump = tl.cast(whole, tl.int64) * s_token
        d_q, total = _query_step(d_q, total, q, d_out, row_lse, d_row, k_at + jump, v_at + jump,
                                 offsets, length - whole, factor, gain, seed, level, head, query,
                                 whole, D, WIDTH, M, N, True, DROPOUT, REFINE, COMPUTE,
                                 PRECISION)  # fmt: skip
    for key in range(0, whole, N):
        jump = tl.cast(key, tl.int64) * s_token
        d_q, total = _query_step(d_q, total, q, d_out, row_lse, d_row, k_at + jump, v_at + jump,
                                 offsets, N, factor, gain, seed, level, head, query,
                                 key, D, WIDTH, M, N, False, DROPOUT, REFINE, COMPUTE,
                                 PRECISION)  # fmt: skip
    d_q *= scale
    if REFINE:
        d_q = d_q / total[:, None]
        tl.store(missing + statistic + rows, tl.log2(total), mask=rows < left)
    place = d_qkv + tl.cast(query, tl.int64) * 3 * width + head * D
    store_rows(place, 3 * width, d_q, left, D)


@triton.jit
def _key_step(d_k, d_v, k, v, q_at, grad_at, q_offsets, grad_offsets, lse2, deltas, missing,
              statistic, left, factor, gain, seed, level, head, query, key,
              D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
              MASKED: tl.constexpr, DROPOUT: tl.constexpr, REFINE: tl.constexpr,
              COMPUTE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One query tile's share of dK / scale and dV / gain, (M, WIDTH).

    Scores lie transposed, (keys, queries). A query beyond the sequence has an infinite log-sum-exp,
    so its weights are 0.
    """
    q = load_rows(q_at, q_offsets, left, D, WIDTH, MASKED, COMPUTE, N)
    row_lse = _row_numbers(lse2, statistic, left, float("inf"), N, MASKED)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * factor - row_lse[None, :]  # (M, N)
    if REFINE:
        scores -= _row_numbers(missing, statistic, left, 0.0, N, MASKED)[None, :]
    weights = tl.exp2(scores)
    grad = load_rows(grad_at, grad_offsets, left, D, WIDTH, MASKED, COMPUTE, N)
    d_weights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)  # (M, N)
    used = weights
    if DROPOUT:
        kept = tl.trans(keep_tile(seed, head, query, key, level, N, M))
        d_weights = tl.where(kept, d_weights * gain, 0.0)
        used = tl.where(kept, weights, 0.0)
    d_v = tl.dot(used.to(COMPUTE), grad, d_v, input_precision=PRECISION)
    d_row = _row_numbers(deltas, statistic, left, 0.0, N, MASKED)
    d_scores = weights * (d_weights - d_row[None, :])
    d_k = tl.dot(d_scores.to(COMPUTE), q, d_k, input_precision=PRECISION)
    return d_k, d_v


@triton.jit(do_not_specialize=["tokens", "items", "sequences", "level"])
def keys(grad, qkv, lse2, deltas, missing, cu_seqlens, work, seeds, d_qkv,
         tokens, items, sequences, heads, s_token, s_part, s_head, factor, level, gain, scale,
         D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
         DROPOUT: tl.constexpr, REFINE: tl.constexpr, COMPUTE: tl.constexpr,
         PRECISION: tl.constexpr):  # fmt: skip
    """DK and dV of M keys."""
    head, start, length, first = locate(cu_seqlens, work, items, heads, M)
    width = heads * D
    row, step = beyond(cu_seqlens, sequences, heads, M)
    while row < tokens:
        place = d_qkv + tl.cast(row, tl.int64) * 3 * width + width + head * D
        store_rows(place, 3 * width, tl.zeros((M, WIDTH), tl.float32), tokens - row, D)
        store_rows(place + width, 3 * width, tl.zeros((M, WIDTH), tl.float32), tokens - row, D)
        row += step
    if length == 0:
        return
    seed = tl.load(seeds) if DROPOUT else 0
    left = length - first
    columns, rows, others = tl.arange(0, WIDTH)[None, :], tl.arange(0, M), tl.arange(0, N)
    base = qkv + tl.cast(start, tl.int64) * s_token + tl.cast(head, tl.int64) * s_head
    at = base + tl.cast(first, tl.int64) * s_token + s_part
    own = rows[:, None] * s_token + columns
    k = load_rows(at, own, left, D, WIDTH, True, COMPUTE, M)
    v = load_rows(at + s_part, own, left, D, WIDTH, True, COMPUTE, M)
    q_offsets = others[:, None] * s_token + columns
    grad_offsets = others[:, None] * width + columns
    grad_at = grad + tl.cast(start, tl.int64) * width + head * D
    statistic = tl.cast(head, tl.int64) * tokens + start
    d_k, d_v = tl.zeros((M, WIDTH), tl.float32), tl.zeros((M, WIDTH), tl.float32)
    whole = length // N * N
    if whole < length:
        jump = tl.cast(whole, tl.int64)
        d_k, d_v = _key_step(d_k, d_v, k, v, base + jump * s_token, grad_at + jump * width,
                             q_offsets, grad_offsets, lse2, deltas, missing, statistic + whole,
                             length - whole, factor, gain, seed, level, head, start + whole, first,
                             D, WIDTH, M, N, True, DROPOUT, REFINE, COMPUTE,
                             PRECISION)  # fmt: skip
    for query in range(0, whole, N):
        jump = tl.cast(query, tl.int64)
        d_k, d_v = _key_step(d_k, d_v, k, v, base + jump * s_token, grad_at + jump * width,
                             q_offsets, grad_offsets, lse2, deltas, missing, statistic + query,
                             N, factor, gain, seed, level, head, start + query, first,
                             D, WIDTH, M, N, False, DROPOUT, REFINE, COMPUTE,
                             PRECISION)  # fmt: skip
    place = d_qkv + tl.cast(start + first, tl.int64) * 3 * width + width + head * D
    store_rows(place, 3 * width, d_k * scale, left, D)
    store_rows(place + width, 3 * width, d_v * gain, left, D)


def varlen_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    work: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor,
) -> Tensor:
    """Launch the three kernels; arguments and result are the op's."""
    tokens, _, heads, dim = qkv.shape
    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    if d_qkv.numel() == 0:
        return d_qkv
    qkv, grad, out, lse = in_place(qkv), grad.contiguous(), out.contiguous(), lse.contiguous()
    refine = qkv.dtype == torch.float32
    deltas, lse2 = torch.empty_like(lse), torch.empty_like(lse)
    missing = torch.empty_like(lse) if refine else lse2  # a pointer that is not followed
    delta[triton.cdiv(tokens, DELTA_ROWS), heads](
        grad,
        out,
        lse,
        deltas,
        lse2,
        tokens,
        heads,
        D=dim,
        WIDTH=triton.next_power_of_2(dim),
        M=DELTA_ROWS,
    )
    pointers = (grad, qkv, lse2, deltas, missing, cu_seqlens.contiguous(), work.contiguous(), seed)
    sizes = (tokens, work.shape[0], cu_seqlens.shape[0] - 1, heads, *qkv.stride()[:3])
    numbers = (scale * LOG2_E, *philox_numbers(dropout_p), scale)
    for name, kernel in (("queries", queries), ("keys", keys)):  # in this order: `missing`
        tile = tile_of(name, qkv, dropout_p)
        kernel[grid(work, heads, tile)](
            *pointers, d_qkv, *sizes, *numbers, REFINE=refine, **constants(qkv, dropout_p, tile)
        )
    return d_qkv


def delta_variant(dtype: str, arch: str, dim: int) -> Variant:
    """What a launch of `delta` compiles."""
    return variant("delta", delta, dtype, arch, dim, False, Tile(DELTA_ROWS, 1, 1, 4, 1))
