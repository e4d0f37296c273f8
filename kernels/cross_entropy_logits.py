"""What the kernels of `linear_cross_entropy` share: one tile of logits, and which tile that is.

logits = x · weightᵀ + bias, x (M, C), weight (V, C), bias (V,), in float32 and never in memory.
Forward and backward take the same tile, so that a logit made again has the same bits: where one
class takes all (logits of 1e4), the gradient softmax - 1 is then exactly 0.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels.tiles import INTERPRETER, Tile, architecture
from fastbert.kernels.variant import compute_type

GROUP = 16
"""Row tiles that run through the vocabulary together: their x, 3 MB at C = 768, stays in L2."""

LOG2_E = tl.constexpr(1.4426950408889634)
HALF, FULL = "16-bit", "fp32"
TILES: dict[str, dict[str, Tile]] = {
    "sm_80": {HALF: Tile(128, 128, 32, 4, 4), FULL: Tile(64, 64, 16, 4, 3)},
    "sm_86": {HALF: Tile(128, 128, 32, 4, 4), FULL: Tile(64, 64, 16, 4, 3)},
    "sm_89": {HALF: Tile(128, 128, 32, 4, 4), FULL: Tile(64, 64, 16, 4, 3)},
    "sm_90": {HALF: Tile(128, 256, 64, 8, 3), FULL: Tile(64, 64, 16, 4, 3)},
    "sm_100": {HALF: Tile(128, 128, 64, 8, 4), FULL: Tile(64, 64, 16, 4, 3)},
    "sm_120": {HALF: Tile(128, 128, 32, 4, 4), FULL: Tile(64, 64, 16, 4, 3)},
    "gfx942": {HALF: Tile(128, 128, 64, 4, 2), FULL: Tile(64, 64, 16, 4, 2)},
    INTERPRETER: {HALF: Tile(16, 32, 16, 1, 1), FULL: Tile(16, 32, 16, 1, 1)},
}
"""Architecture → width of the dtype → rows × classes × inner steps. None for sm_75: Triton 3.7 has
no tensor-core instruction there. One tile for every M, so a row's loss depends on no other row."""


def tile_of(x: Tensor) -> Tile:
    """The tile that serves x, which `unsupported` has let pass."""
    arch = architecture(x.device)
    assert arch is not None
    return TILES[arch][FULL if x.dtype == torch.float32 else HALF]


def constants(x: Tensor, bias: Tensor | None, tile: Tile) -> dict[str, Any]:
    """What a launch fixes at compile time."""
    return {
        "BM": tile.m,
        "BN": tile.n,
        "BK": tile.k,
        "EVEN": x.shape[1] % tile.k == 0,
        "GROUP": GROUP,
        "HAS_BIAS": bias is not None,
        "COMPUTE": compute_type(x.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def programs(rows: int, classes: int, tile: Tile) -> tuple[int, int]:
    """How many tiles lie along the rows and along the classes."""
    return triton.cdiv(rows, tile.m), triton.cdiv(classes, tile.n)


@triton.jit
def place(M, V, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Which row tile and which class tile this program computes; `GROUP` row tiles share weight."""
    program = tl.program_id(0)
    tiles = tl.cdiv(V, BN)
    first = program // (GROUP * tiles) * GROUP
    size = tl.minimum(tl.cdiv(M, BM) - first, GROUP)
    inside = program % (GROUP * tiles)
    return first + inside % size, inside // size


@triton.jit
def logits_tile(
    x_ptr, weight_ptr, bias_ptr, row, column, M, V, C,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Logits (BM, BN) of rows row … and classes column …, -inf beyond the V classes.

    Rows beyond M and classes beyond V are read at the last one there is, so that no load of the
    loop needs a mask; only a C that BK does not divide (not EVEN) masks its inner steps. C is no
    constant: ptxas would unroll the loop whole, 12 steps of 16 KB of code.
    """
    rows = tl.minimum(row + tl.arange(0, BM), M - 1).to(tl.int64)
    classes = column + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    x_ptrs = x_ptr + rows[:, None] * C + inner[None, :]
    weight_ptrs = weight_ptr + tl.minimum(classes, V - 1).to(tl.int64)[None, :] * C + inner[:, None]
    logits = tl.zeros((BM, BN), tl.float32)
    for start in range(0, C, BK):
        if EVEN:
            x = tl.load(x_ptrs)  # (BM, BK)
            weight = tl.load(weight_ptrs)  # (BK, BN)
        else:
            x = tl.load(x_ptrs, mask=inner[None, :] < C - start, other=0.0)
            weight = tl.load(weight_ptrs, mask=inner[:, None] < C - start, other=0.0)
        # exact products: float32 is never rounded to tf32
        logits = tl.dot(x.to(COMPUTE), weight.to(COMPUTE), logits, input_precision="ieee")
        x_ptrs += BK
        weight_ptrs += BK
    if HAS_BIAS:
        shift = tl.load(bias_ptr + classes, mask=classes < V, other=-float("inf")).to(tl.float32)
    else:
        shift = tl.where(classes < V, 0.0, -float("inf"))
    return logits + shift[None, :]


@triton.jit
def labels_of(labels_ptr, row, M, V, ignore_index, BM: tl.constexpr):
    """The labels (BM,) of rows row …, -1 where none counts: ignored, no class, or beyond M."""
    rows = row + tl.arange(0, BM)
    label = tl.load(labels_ptr + rows, mask=rows < M, other=-1).to(tl.int64)
    return tl.where((label >= 0) & (label < V) & (label != ignore_index), label, -1)
