"""What the kernels that take whole rows share: statistics, the residual sum, tiles.

A program holds M rows of C numbers in float32 registers, padded to N, a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbert.kernels import philox
from fastbert.kernels.tiles import ARCHITECTURES, INTERPRETER, Tile, architecture

WIDEST = 8192
"""The largest C: a row lies in one program's registers."""
NARROWEST = 16
SERVED = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def normalised(x, inside, eps, C: tl.constexpr):
    """Each row's deviations over their root mean square, its mean and 1/deviation.

    Args:
        x: (M, N) float32, 0 at and beyond column C.
        inside: (1, N), columns below C.
        eps: added to the variance.
        C: real width.
    """
    mean = tl.sum(x, 1) / C
    # A sum's rounding can move the mean by an ulp. In a constant row that ulp would be all of the
    # deviation and come out as ±1; what is left over corrects it.
    mean += tl.sum(tl.where(inside, x - mean[:, None], 0.0), 1) / C
    deviation = tl.where(inside, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(deviation * deviation, 1) / C + eps)
    return deviation * rstd[:, None], mean, rstd


@triton.jit
def residual_sum(
    x, residual, seed, rows, place, mask, level, scale,
    DROPOUT: tl.constexpr, C: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """dropout(x) + residual of these rows in float32, 0 where masked; and who is kept, (M, N)."""
    summed = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    keep = mask
    if DROPOUT:
        keep = philox.keep_rows(tl.load(seed), rows, C, level, N)
        summed = tl.where(keep, summed * scale, 0.0)
    if residual is not None:
        summed += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    return summed, keep


@triton.jit
def table_row(indices, rows, real, limit):
    """The row of a table of `limit` that each index means, the nearest valid one, int64 (M,)."""
    index = tl.load(indices + rows, mask=real, other=0).to(tl.int64)
    return tl.minimum(tl.maximum(index, 0), limit - 1)


@triton.jit
def table_sum(
    ids, types, positions, word, position, type, rows, columns, real, mask, V, P, K,
    C: tl.constexpr,
):  # fmt: skip
    """word[ids] + type[types] + position[positions] in float32, 0 where masked; and the rows."""
    id = table_row(ids, rows, real, V)
    kind = table_row(types, rows, real, K)
    where = table_row(positions, rows, real, P)
    c = columns[None, :]
    summed = tl.load(word + id[:, None] * C + c, mask=mask, other=0.0).to(tl.float32)
    summed += tl.load(type + kind[:, None] * C + c, mask=mask, other=0.0).to(tl.float32)
    summed += tl.load(position + where[:, None] * C + c, mask=mask, other=0.0).to(tl.float32)
    return summed, id, kind, where


def padded(width: int) -> int:
    """The power of two that holds a row of this width."""
    return max(triton.next_power_of_2(width), NARROWEST)


def tiles(share: int, most: int) -> dict[int, Tile]:
    """Padded width → tile, such that 8 elements of a row lie side by side in a thread.

    With more threads along a row, one would load 16-bit weights 8 bytes at a time.

    Args:
        share: elements a thread. The backward has 16, since with 32 it spilled 8 bytes on sm_90
            and sm_120 (fp16, C = 384 and 1,024) where ptxas aimed at 128 registers.
        most: warps a program.
    """
    found = {}
    for n in (1 << power for power in range(4, 14)):
        warps = min(max(n // 256, 1), most)
        found[n] = Tile(min(max(32 * warps * share // n, 1), 16), n, warps=warps, stages=1)
    return found


def every_architecture(table: dict[int, Tile]) -> dict[str, dict[int, Tile]]:
    """The same tiles everywhere: what bounds them is memory. The interpreter's have few rows."""
    small = {n: Tile(4 if n < 1024 else 1, n, warps=1, stages=1) for n in table}
    halved = {
        n: Tile(tile.m, n, warps=max(tile.warps // 2, 1), stages=1)  # warps of 64 threads
        for n, tile in table.items()
    }
    wide = {arch: halved if arch.startswith("gfx") else table for arch in ARCHITECTURES}
    return {**wide, INTERPRETER: small}


def tile_for(table: dict[str, dict[int, Tile]], device: torch.device, width: int) -> Tile:
    """The tile of a table for a device that `unsupported` let pass, and a width."""
    arch = architecture(device)
    if arch is None:
        raise ValueError(f"no tiles for {device}")
    return table[arch][padded(width)]


def refused(tensors: list[Tensor], width: int) -> str | None:
    """Why rows of this width in these dtypes can't be served, or None."""
    device = tensors[0].device
    for tensor in tensors:
        if tensor.dtype not in SERVED:
            return f"Triton's norm has no {tensor.dtype} on {device}"
    if not 0 < width <= WIDEST:
        return f"Triton's norm takes widths of 1 to {WIDEST}, not {width}, on {device}"
    if architecture(device) is None:
        return f"Triton's norm does not serve {device}"
    return None


def variant_keys(dtype: str) -> Iterator[tuple[int, str]]:
    """Width and detail of what is compiled ahead for a dtype."""
    for width in (384, 768, 1024, WIDEST):
        yield width, ""
    yield 768, "-dropout"
    if dtype != "fp32":
        yield 768, "-mixed-dropout"
