"""Varlen flash attention, forward: softmax(scale · q kᵀ) v within each sequence, nothing padded.

qkv (T, 3, H, D), read in place → out (T, H, D), and the log-sum-exp of the scaled scores (H, T).
One program treats a tile of queries of one (sequence, head), key tile after key tile, with a
running maximum and sum, and divides after the last product. The sequence's last, partial key tile
comes first and alone is masked, so that the loop holds neither mask nor bound. Exponentials are
base 2 with the scale folded in. Rows beyond the last sequence are written as zeros.

Source: Dao 2023 (FlashAttention-2), sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels import attention_backward
from fastbert.kernels.attention_common import (
    HEAD_DIMS,
    LN_2,
    LOG2_E,
    TILES,
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
from fastbert.kernels.tiles import ARCHITECTURES, architecture
from fastbert.kernels.variant import DTYPES, Variant

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
__all__ = ["LAUNCHERS", "TILES", "unsupported", "variants"]


@triton.jit
def _step(acc, total, top, q, k_at, v_at, offsets, left, factor, seed, level, head, query, key,
          D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
          MASKED: tl.constexpr, DROPOUT: tl.constexpr, COMPUTE: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """One key tile: the running product (M, WIDTH), sum (M,) and maximum (M,), base 2."""
    k = load_rows(k_at, offsets, left, D, WIDTH, MASKED, COMPUTE, N)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (M, N)
    if MASKED:
        scores = tl.where((tl.arange(0, N) < left)[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(weights, 1)
    if DROPOUT:
        weights = tl.where(keep_tile(seed, head, query, key, level, M, N), weights, 0.0)
    acc = acc * shrink[:, None]
    v = load_rows(v_at, offsets, left, D, WIDTH, MASKED, COMPUTE, N)
    acc = tl.dot(weights.to(COMPUTE), v, acc, input_precision=PRECISION)
    return acc, total, higher


@triton.jit(do_not_specialize=["tokens", "items", "sequences", "level"])
def forward(qkv, cu_seqlens, work, seeds, out, lse, tokens, items, sequences, heads,
            s_token, s_part, s_head, factor, level, gain,
            D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
            DROPOUT: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """factor: scale · log2 e; gain: what dropout multiplies by, 1 without."""
    head, start, length, first = locate(cu_seqlens, work, items, heads, M)
    rows = tl.arange(0, M)
    lse += tl.cast(head, tl.int64) * tokens
    width = heads * D
    row, step = beyond(cu_seqlens, sequences, heads, M)
    while row < tokens:
        place = out + tl.cast(row, tl.int64) * width + head * D
        store_rows(place, width, tl.zeros((M, WIDTH), tl.float32), tokens - row, D)
        tl.store(lse + row + rows, 0.0, mask=row + rows < tokens)
        row += step
    if length == 0:
        return
    seed = tl.load(seeds) if DROPOUT else 0
    query = start + first
    base = qkv + tl.cast(start, tl.int64) * s_token + tl.cast(head, tl.int64) * s_head
    columns = tl.arange(0, WIDTH)[None, :]
    offsets = tl.arange(0, N)[:, None] * s_token + columns
    q = load_rows(base + tl.cast(first, tl.int64) * s_token, rows[:, None] * s_token + columns,
                  length - first, D, WIDTH, True, COMPUTE, M)  # fmt: skip
    k_at, v_at = base + s_part, base + 2 * tl.cast(s_part, tl.int64)
    acc = tl.zeros((M, WIDTH), tl.float32)
    total = tl.zeros((M,), tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    whole = length // N * N
    if whole < length:
        jump = tl.cast(whole, tl.int64) * s_token
        acc, total, top = _step(acc, total, top, q, k_at + jump, v_at + jump, offsets,
                                length - whole, factor, seed, level, head, query, whole,
                                D, WIDTH, M, N, True, DROPOUT, COMPUTE, PRECISION)  # fmt: skip
    for key in range(0, whole, N):
        jump = tl.cast(key, tl.int64) * s_token
        acc, total, top = _step(acc, total, top, q, k_at + jump, v_at + jump, offsets,
                                N, factor, seed, level, head, query, key,
                                D, WIDTH, M, N, False, DROPOUT, COMPUTE, PRECISION)  # fmt: skip
    place = out + tl.cast(query, tl.int64) * width + head * D
    store_rows(place, width, acc * (gain / total)[:, None], length - first, D)
    tl.store(lse + query + rows, (top + tl.log2(total)) * LN_2, mask=first + rows < length)


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    work: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Launch `forward`; arguments and results are the op's."""
    tokens, _, heads, dim = qkv.shape
    out = qkv.new_empty(tokens, heads, dim)
    lse = qkv.new_empty((heads, tokens), dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    qkv, tile = in_place(qkv), tile_of("forward", qkv, dropout_p)
    forward[grid(work, heads, tile)](
        qkv, cu_seqlens.contiguous(), work.contiguous(), seed, out, lse,
        tokens, work.shape[0], cu_seqlens.shape[0] - 1, heads, *qkv.stride()[:3],
        scale * LOG2_E, *philox_numbers(dropout_p), **constants(qkv, dropout_p, tile),
    )  # fmt: skip
    return out, lse


LAUNCHERS = {
    "varlen_attention": varlen_attention,
    "varlen_attention_backward": attention_backward.varlen_attention_backward,
}
"""Op → function with its arguments and results."""


def unsupported(op: str, args: tuple[Any, ...]) -> str | None:
    """Why these arguments can't be served, or None."""
    qkv, scale = (args[0], args[4]) if op == "varlen_attention" else (args[1], args[7])
    if qkv.dtype not in _DTYPES:
        return f"{qkv.dtype} is none of float16, bfloat16 and float32"
    if qkv.shape[3] not in HEAD_DIMS:
        return f"a head dim of {qkv.shape[3]} is none of {', '.join(map(str, HEAD_DIMS))}"
    if not 0.0 < scale < math.inf:
        return f"a scale of {scale} is not positive and finite"
    arch = architecture(qkv.device)
    if arch not in TILES:
        return f"{arch or 'a GPU older than sm_75'} has no tensor-core kernel in Triton"
    return None


def variants() -> Iterator[Variant]:
    """Every kernel × dtype × head dim × architecture, with and without dropout, and tf32."""
    kernels = {
        "forward": forward,
        "queries": attention_backward.queries,
        "keys": attention_backward.keys,
    }
    for arch, dtype, dim in product(ARCHITECTURES, DTYPES, HEAD_DIMS):
        if arch not in TILES:
            continue
        for name, kernel in kernels.items():
            yield variant(name, kernel, dtype, arch, dim, dropout=False)
            yield variant(name, kernel, dtype, arch, dim, dropout=True)
            if dtype == "fp32":
                yield variant(name, kernel, dtype, arch, dim, dropout=False, tf32=True)
        yield attention_backward.delta_variant(dtype, arch, dim)
