"""What attention's forward and backward share: places in memory, score masks, tiles.

A program handles one (work item, head); programs of one item stand side by side in the grid, so
the list's order, longest first, is the order in which they are drawn. Queries of an item are 128
rows; a tile of 64 rows takes two programs. Head dims of 80 and 96 are computed as 128: their tiles
hold zeros beyond D.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels import philox
from fastbert.kernels.tiles import INTERPRETER, Tile, architecture
from fastbert.kernels.variant import COMPUTE, Variant, compute_type
from fastbert.packing import QUERY_TILE

HEAD_DIMS = (32, 64, 80, 96, 128)
LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)
_ITEM = tl.constexpr(QUERY_TILE)


@triton.jit
def locate(cu_seqlens, work, items, heads, ROWS: tl.constexpr):
    """What this program handles: head, first row of its sequence, its length, its first row in it.

    The length is 0 where there is no work: an item of -1, or half an item beyond the sequence.
    """
    PARTS: tl.constexpr = _ITEM // ROWS
    program = tl.program_id(0)
    head = program % heads
    place = program // heads
    item = place // PARTS
    sequence = tl.load(work + 2 * item, mask=item < items, other=-1)
    tile = tl.load(work + 2 * item + 1, mask=item < items, other=-1)
    some = sequence >= 0
    start = tl.load(cu_seqlens + sequence, mask=some, other=0)
    length = tl.load(cu_seqlens + sequence + 1, mask=some, other=0) - start
    first = tile * _ITEM + (place % PARTS) * ROWS
    length = tl.where(first < length, length, 0)
    return head, start, length, first


@triton.jit
def beyond(cu_seqlens, sequences, heads, ROWS: tl.constexpr):
    """The rows beyond the last sequence that this program fills: its first, and its step."""
    last = tl.load(cu_seqlens + sequences)
    return last + (tl.program_id(0) // heads) * ROWS, (tl.num_programs(0) // heads) * ROWS


@triton.jit
def load_rows(pointer, offsets, left, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
              COMPUTE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """A (ROWS, WIDTH) tile in the dtype that is computed in; zeros beyond D and `left` rows."""
    if MASKED:
        mask = (tl.arange(0, ROWS) < left)[:, None] & (tl.arange(0, WIDTH) < D)[None, :]
        tile = tl.load(pointer + offsets, mask=mask, other=0.0)
    elif WIDTH != D:
        tile = tl.load(pointer + offsets, mask=(tl.arange(0, WIDTH) < D)[None, :], other=0.0)
    else:
        tile = tl.load(pointer + offsets)
    return tile.to(COMPUTE)


@triton.jit
def store_rows(pointer, stride, tile, left, D: tl.constexpr):
    """Write the first `left` rows and D columns of a tile."""
    rows = tl.arange(0, tile.shape[0])
    columns = tl.arange(0, tile.shape[1])
    mask = (rows < left)[:, None] & (columns < D)[None, :]
    place = pointer + rows[:, None] * stride + columns[None, :]
    tl.store(place, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def keep_tile(seed, head, query, key, level, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Which weights of a (ROWS, KEYS) tile dropout keeps, as `philox` numbers them.

    Queries count by their row in the batch, so that sequences differ, keys within their sequence,
    so that a tile starts with a whole draw: a draw serves four keys.
    """
    c0 = (key // 4 + tl.arange(0, KEYS // 4))[None, :] + tl.zeros((ROWS, 1), tl.int32)
    c1 = (query + tl.arange(0, ROWS))[:, None]
    w0, w1, w2, w3 = philox.words(seed, c0, c1, head, tl.full((), 1, tl.int32))
    return philox.interleave(philox.kept(w0, level), philox.kept(w1, level),
                             philox.kept(w2, level), philox.kept(w3, level))  # fmt: skip


def mask_of(seed: Tensor, heads: int, start: int, length: int, dropout_p: float) -> Tensor:
    """`keep_tile` in plain torch: (H, S, S), what dropout keeps of one sequence's weights."""
    rows = torch.arange(length, device=seed.device)
    return philox.weight_mask(seed, heads, start + rows, rows, dropout_p)


def in_place(qkv: Tensor) -> Tensor:
    """Qkv itself where a head's D numbers lie side by side, else a copy."""
    return qkv if qkv.stride(3) == 1 else qkv.contiguous()


def philox_numbers(dropout_p: float) -> tuple[int, float]:
    """The level below which a word drops its weight, and what a kept one is multiplied by."""
    return (philox.level(dropout_p), philox.scale(dropout_p)) if dropout_p else (0, 1.0)


def tile_of(name: str, qkv: Tensor, dropout_p: float) -> Tile:
    """The tile of a kernel (``forward``, ``queries``, ``keys``) for these tensors."""
    arch = architecture(qkv.device)
    bits = 19 if _tf32(qkv) else 8 * qkv.element_size()
    return TILES[arch or ""][
        _key(name, dropout_p > 0.0), triton.next_power_of_2(qkv.shape[3]), bits
    ]


def _tf32(qkv: Tensor) -> bool:
    """Whether torch was asked to multiply float32 in tf32."""
    return qkv.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"


def grid(work: Tensor, heads: int, tile: Tile) -> tuple[int]:
    """One program a part of an item and head; some in any case, for rows beyond the sequences."""
    return (max(work.shape[0], 1) * (QUERY_TILE // tile.m) * heads,)


def constants(qkv: Tensor, dropout_p: float, tile: Tile) -> dict[str, Any]:
    """The constants of `forward`, `queries` and `keys`, and how to launch them.

    Under the interpreter, whose 16-bit arithmetic is broken, everything is computed in float32.
    """
    return {
        "D": qkv.shape[3],
        "WIDTH": triton.next_power_of_2(qkv.shape[3]),
        "M": tile.m,
        "N": tile.n,
        "DROPOUT": dropout_p > 0.0,
        "COMPUTE": compute_type(qkv.dtype),
        "PRECISION": "tf32" if _tf32(qkv) else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _key(name: str, dropout: bool) -> str:
    """Dropout takes registers, so kernels with it have tiles of their own."""
    return name + "_dropout" * dropout


def _table(**tiles: tuple[Tile, ...]) -> dict[tuple[str, int, int], Tile]:
    """Tiles of widths 32, 64, 128 in 16 bits, then in float32, then in tf32 (19 bits)."""
    sizes = [(width, bits) for bits in (16, 32, 19) for width in (32, 64, 128)]
    return {
        (name, width, bits): tile
        for name, row in tiles.items()
        for (width, bits), tile in zip(sizes, row, strict=True)
    }


def _tile(m: int, n: int, warps: int, stages: int) -> Tile:
    return Tile(m, n, 1, warps, stages)


# Plain FFMA: operands of a whole head dim lie in registers, so that tiles are small.
_FLOAT = (_tile(32, 16, 4, 1), _tile(32, 16, 4, 1), _tile(16, 16, 8, 2))
_TF32 = (_tile(64, 32, 4, 2), _tile(64, 32, 4, 2), _tile(32, 32, 4, 1))
_WIDE = (*_FLOAT, *_TF32)
_SMALL = (_tile(64, 32, 4, 1),) * 9

_SM_80 = _table(
    # D = 64 with 4 warps reads K half as often from shared memory as with 8, and just fits.
    forward=(_tile(128, 64, 4, 3), _tile(128, 64, 4, 3), _tile(128, 64, 8, 3), *_WIDE),
    queries=(_tile(128, 64, 8, 3), _tile(128, 64, 8, 3), _tile(128, 32, 8, 2), *_WIDE),
    keys=(_tile(128, 64, 8, 2), _tile(128, 64, 8, 2), _tile(128, 32, 8, 2), *_WIDE),
    forward_dropout=(_tile(128, 64, 8, 3), _tile(128, 64, 8, 3), _tile(128, 32, 8, 3), *_WIDE),
    queries_dropout=(_tile(128, 32, 8, 3), _tile(128, 32, 8, 3), _tile(128, 16, 8, 2), *_WIDE),
    keys_dropout=(_tile(128, 32, 8, 2), _tile(128, 32, 8, 2), _tile(64, 64, 8, 2), *_WIDE),
)
_SM_86 = _SM_80 | _table(  # what fits sm_80 spills here
    forward=(_tile(128, 64, 4, 3), _tile(128, 64, 8, 3), _tile(128, 64, 8, 3), *_WIDE),
    keys=(_tile(128, 64, 8, 2), _tile(128, 64, 8, 2), _tile(64, 64, 8, 2), *_WIDE),
    keys_dropout=(_tile(128, 16, 8, 2), _tile(128, 16, 8, 2), _tile(64, 64, 8, 2), *_WIDE),
)
_SM_90 = _table(
    forward=(_tile(128, 128, 8, 3), _tile(128, 128, 8, 3), _tile(128, 128, 8, 3), *_WIDE),
    queries=(_tile(128, 128, 8, 2), _tile(128, 128, 8, 2), _tile(128, 64, 8, 2), *_WIDE),
    keys=(_tile(128, 64, 8, 3), _tile(128, 64, 8, 3), _tile(128, 32, 8, 2), *_WIDE),
    forward_dropout=(_tile(128, 64, 8, 3), _tile(128, 64, 8, 3), _tile(128, 64, 8, 3), *_WIDE),
    queries_dropout=(_tile(128, 64, 8, 3), _tile(128, 64, 8, 3), _tile(128, 64, 8, 2), *_WIDE),
    keys_dropout=(_tile(128, 64, 8, 2), _tile(128, 64, 8, 2), _tile(128, 32, 8, 2), *_WIDE),
)
_SM_100 = _SM_90 | _table(  # a third stage spills here
    keys=(_tile(128, 64, 8, 2), _tile(128, 64, 8, 2), _tile(128, 32, 8, 2), *_WIDE),
)
# A matrix instruction multiplies float32 as it is, so tf32 changes nothing here.
_PLAIN = (*_FLOAT, *_FLOAT)
_GFX942 = _table(
    forward=(_tile(128, 64, 4, 1), _tile(128, 64, 4, 1), _tile(128, 64, 4, 1), *_PLAIN),
    queries=(_tile(128, 64, 4, 1), _tile(128, 64, 4, 1), _tile(64, 32, 4, 1), *_PLAIN),
    keys=(_tile(64, 32, 4, 1), _tile(64, 32, 4, 1), _tile(64, 32, 4, 1), *_PLAIN),
    forward_dropout=(_tile(128, 64, 4, 1), _tile(128, 64, 4, 1), _tile(128, 32, 4, 1), *_PLAIN),
    queries_dropout=(_tile(128, 32, 4, 1), _tile(128, 32, 4, 1), _tile(64, 32, 4, 1), *_PLAIN),
    keys_dropout=(_tile(64, 16, 4, 1), _tile(64, 16, 4, 1), _tile(64, 16, 4, 1), *_PLAIN),
)
_INTERPRETED = _table(
    forward=_SMALL, queries=_SMALL, keys=_SMALL,
    forward_dropout=_SMALL, queries_dropout=_SMALL, keys_dropout=_SMALL,
)  # fmt: skip

TILES: dict[str, dict[tuple[str, int, int], Tile]] = {
    INTERPRETER: _INTERPRETED,
    "sm_80": _SM_80,
    "sm_86": _SM_86,
    "sm_89": _SM_86,
    "sm_90": _SM_90,
    "sm_100": _SM_100,
    "sm_120": _SM_86,
    "gfx942": _GFX942,
}
"""Architecture → (kernel, width, bits) → tile; ``m`` rows of a program, ``n`` rows of its loop.

Chosen by registers, spills and instructions per score of the compiled loops (static estimates,
unmeasured on GPU). sm_75 is absent: Triton has no tensor-core instruction there.
"""


def variant(
    name: str,
    kernel: Any,
    dtype: str,
    arch: str,
    dim: int,
    dropout: bool,
    tile: Tile | None = None,
    tf32: bool = False,
) -> Variant:
    """What a launch of this kernel compiles."""
    width, bits = triton.next_power_of_2(dim), 16 if dtype != "fp32" else 19 if tf32 else 32
    tile = tile or TILES[arch][_key(name, dropout), width, bits]
    signature = {argument: _types(argument, dtype) for argument in kernel.arg_names}
    fixed = {"D": dim, "WIDTH": width, "M": tile.m, "N": tile.n, "DROPOUT": dropout,
             "REFINE": dtype == "fp32", "COMPUTE": COMPUTE[dtype],
             "PRECISION": "tf32" if tf32 else "ieee"}  # fmt: skip
    product, back = (tile.m, tile.n, width), (tile.m, width, tile.n)
    works = {"forward": (product, back), "queries": (product, product, back),
             "keys": (product, product, back, back)}  # fmt: skip
    return Variant(
        kernel=kernel,
        stem="attention",
        name=name,
        dtype=dtype,
        arch=arch,
        tile=tile,
        signature=signature,
        constants={key: fixed[key] for key in kernel.arg_names if key in fixed},
        divisible=tuple(
            key for key, kind in signature.items() if kind[0] == "*" or key[:2] == "s_"
        ),
        detail=f"D={dim}" + ("-dropout" if dropout else "") + ("-tf32" if tf32 else ""),
        tensor_work=works.get(name, ()),
        elements=tile.m * tile.n,
    )


def _types(argument: str, dtype: str) -> str:
    """Triton's type of an argument of these kernels."""
    if argument in ("qkv", "out", "grad", "d_qkv"):
        return f"*{dtype}"
    if argument in ("lse", "lse2", "deltas", "missing"):
        return "*fp32"
    if argument in ("cu_seqlens", "work"):
        return "*i32"
    if argument == "seeds":
        return "*i64"
    return "fp32" if argument in ("factor", "gain", "scale") else "i32"
