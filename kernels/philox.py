"""Dropout masks: Philox-4x32 with 7 rounds, in kernels and, number for number, in plain torch.

A draw is (seed, c0, c1, c2, c3) → four words of 32 random bits; the seed's two halves are the key,
the c's are counters. Who drops what:

    rows (T, C), the norm      element (t, c): word c mod 4 of counters (b mod 2³², b div 2³², 0, 0)
                               with the block b = t·⌈C/4⌉ + c div 4
    attention (H, T, T)        weight (h, q, k): word k mod 4 of (k div 4, q, h, 1)

An element is dropped where its word, read as a signed number, is below `level(p)`: p to the nearest
multiple of 2⁻³², neither 0 nor 1. What is kept is multiplied by `scale(p)`. A mask depends on
nothing but its seed and the numbers of its elements: no tile, no grid, no device.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3 (7 rounds
pass BigCrush; the 10 of the default are its safety margin).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROUNDS = tl.constexpr(7)
_WORD = 0xFFFFFFFF


def level(dropout_p: float) -> int:
    """The signed 32-bit level below which a word drops its element, -2³¹ + p·2³²."""
    return min(max(round(dropout_p * 2**32), 1), 2**32 - 1) - 2**31


def scale(dropout_p: float) -> float:
    """What a kept element is multiplied by, 1/(1 - p) with p as `level` rounds it."""
    return 2**32 / (2**31 - level(dropout_p))


@triton.jit
def words(seed, c0, c1, c2, c3):
    """Four words (uint32) a counter; seed: the int64 as loaded; counters: uint32 or int32."""
    return tl.philox(
        seed,
        c0.to(tl.uint32),
        tl.zeros_like(c0).to(tl.uint32) + c1.to(tl.uint32),
        tl.zeros_like(c0).to(tl.uint32) + c2.to(tl.uint32),
        tl.zeros_like(c0).to(tl.uint32) + c3.to(tl.uint32),
        ROUNDS,
    )


@triton.jit
def kept(word, level):
    """Whether a word keeps its element."""
    return word.to(tl.int32, bitcast=True) >= level


@triton.jit
def interleave(w0, w1, w2, w3):
    """Four (M, N/4) tensors as one (M, N), w0[:, 0], w1[:, 0], …, w3[:, 0], w0[:, 1] and on."""
    joined = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (M, N/4, 2, 2)
    return tl.reshape(joined, (w0.shape[0], 4 * w0.shape[1]))


@triton.jit
def keep_rows(seed, rows, width, level, N: tl.constexpr):
    """Whether to keep elements 0..N-1 of rows that are `width` wide, (M, N); a draw serves four.

    Args:
        seed: int64.
        rows: (M,) int64 row numbers.
        width: C.
        level: int32, of `level`.
        N: a power of two, at least 4 and C.
    """
    blocks = rows[:, None] * tl.cdiv(width, 4) + tl.arange(0, N // 4)[None, :]  # (M, N/4)
    zero = tl.zeros_like(blocks)
    w0, w1, w2, w3 = words(seed, blocks, blocks >> 32, zero, zero)
    return interleave(kept(w0, level), kept(w1, level), kept(w2, level), kept(w3, level))


@triton.jit
def keep_weights(seed, head, queries, keys, level):
    """Whether to keep the attention weights (q, k) of a head, a draw each: simple, and slow.

    Args:
        seed: int64.
        head: number.
        queries, keys: int32 row numbers, that broadcast.
        level: int32, of `level`.
    """
    c0 = keys // 4 + tl.zeros_like(queries)
    w0, w1, w2, w3 = words(seed, c0, queries, c0 * 0 + head, c0 * 0 + 1)
    even = tl.where(keys % 4 < 2, w0, w2)
    odd = tl.where(keys % 4 < 2, w1, w3)
    return kept(tl.where(keys % 2 == 0, even, odd), level)


def draw(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """Four words a counter as int64 in 0..2³² - 1, (…, 4): what `words` gives, in plain torch.

    Args:
        seed: (1,) int64.
        c0, c1, c2, c3: int64 tensors that broadcast; their low 32 bits count.
    """
    key0, key1 = seed & _WORD, (seed >> 32) & _WORD
    c0, c1, c2, c3 = torch.broadcast_tensors(c0 & _WORD, c1 & _WORD, c2 & _WORD, c3 & _WORD)
    for _ in range(ROUNDS.value):
        # An int64 product that wraps still has the right 64 bits.
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((second >> 32) & _WORD) ^ c1 ^ key0, second & _WORD
        c2, c3 = ((first >> 32) & _WORD) ^ c3 ^ key1, first & _WORD
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    return torch.stack([c0, c1, c2, c3], dim=-1)


def uniform(seed: Tensor, numbers: Tensor) -> Tensor:
    """The number in [0, 1), float64, of each element number n: word n mod 4 of block n div 4.

    It is dropped where that number is below p.

    Args:
        seed: (1,) int64.
        numbers: int64, of any shape.
    """
    blocks, zero = numbers >> 2, torch.zeros_like(numbers)
    four = draw(seed, blocks, blocks >> 32, zero, zero)  # (…, 4)
    word = four.gather(-1, (numbers & 3)[..., None])[..., 0]
    return _fraction(word)


def _fraction(word: Tensor) -> Tensor:
    """A word, read as a signed number, as float64 in [0, 1): exact."""
    return (word ^ 2**31).double() / 2**32


def keep_mask(uniforms: Tensor, dropout_p: float) -> Tensor:
    """Whether to keep the elements of these uniform numbers."""
    return uniforms >= (level(dropout_p) + 2**31) / 2**32


def row_mask(seed: Tensor, rows: int, width: int, dropout_p: float, first_row: int = 0) -> Tensor:
    """`keep_rows` in plain torch, (rows, width): the mask of the norm's dropout."""
    row = torch.arange(first_row, first_row + rows, device=seed.device)
    column = torch.arange(width, device=seed.device)
    numbers = row[:, None] * (4 * ((width + 3) // 4)) + column
    return keep_mask(uniform(seed, numbers), dropout_p)


def weight_mask(
    seed: Tensor, heads: int, queries: Tensor, keys: Tensor, dropout_p: float
) -> Tensor:
    """`keep_weights` in plain torch, (heads, queries, keys): the mask of attention's dropout."""
    head = torch.arange(heads, device=seed.device)[:, None, None]
    query, key = queries.long()[None, :, None], keys.long()[None, None, :]
    four = draw(seed, key >> 2, query, head, torch.ones_like(head))  # (H, Q, K, 4)
    word = four.gather(-1, (key & 3).expand(four.shape[:-1])[..., None])[..., 0]
    return keep_mask(_fraction(word), dropout_p)
