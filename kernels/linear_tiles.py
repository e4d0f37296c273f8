"""Which tile, and whether the vendor's GEMM, serves a `linear`: tables by architecture, and rules.

Static estimates, unmeasured on GPU. Keys of `TILES[architecture]`:

- ``large``, ``small``: 16-bit products; small where large tiles would leave processors idle;
- ``fixed``: 16-bit products whose rows' bits must not depend on T;
- ``float32``, ``tf32``: float32 products, in full precision or, if asked, by tensor cores;
- ``forward``, ``backward``, ``sums``: the kernels of `linear_elementwise`.
"""

from __future__ import annotations

import torch

from fastbert.kernels.tiles import INTERPRETER, Tile

GROUP = 8
"""Row tiles that go down the columns together: with 128 rows of K = 4096 their x takes 8 MB of L2,
and a column's weights are read from memory once for 1,024 rows."""

_ROWS = {
    "forward": Tile(16, 256, warps=4, stages=1),
    "backward": Tile(16, 256, warps=8, stages=2),
    "sums": Tile(16, 128, warps=4, stages=1),
}
# mma.sync: two programs of 128 threads fit a processor, so that one's epilogue overlaps the other's
# products; 49 KB of shared memory each fit also the 100 KB of sm_86, 89 and 120.
_SYNC = {
    "large": Tile(128, 128, 32, warps=4, stages=4),
    "small": Tile(64, 64, 64, warps=4, stages=3),
    "fixed": Tile(128, 128, 32, warps=4, stages=4),
    "float32": Tile(64, 64, 16, warps=4, stages=3),
    "tf32": Tile(128, 64, 32, warps=4, stages=3),
    **_ROWS,
}
# wgmma and tcgen05: one program of 128 × 256 a processor (197 KB), or two of 128 × 128 (98 KB).
_GROUPED = {
    "large": Tile(128, 256, 64, warps=8, stages=4),
    "small": Tile(64, 128, 64, warps=4, stages=4),
    "fixed": Tile(128, 128, 64, warps=8, stages=3),
    "float32": Tile(64, 64, 16, warps=4, stages=3),
    "tf32": Tile(128, 128, 32, warps=8, stages=3),
    **_ROWS,
}
# No tensor cores through Triton: only linear_fixed multiplies here, on float32 units.
_SM_75 = {
    "fixed": Tile(64, 64, 16, warps=4, stages=1),
    "float32": Tile(64, 64, 16, warps=4, stages=1),
    **_ROWS,
}
_GFX942 = {
    "large": Tile(128, 128, 64, warps=8, stages=2),
    "small": Tile(64, 64, 64, warps=4, stages=2),
    "fixed": Tile(128, 128, 64, warps=8, stages=2),
    "float32": Tile(64, 64, 32, warps=4, stages=2),
    **_ROWS,
}
_INTERPRETED = {
    "large": Tile(32, 32, 32),
    "small": Tile(16, 16, 16),
    "fixed": Tile(16, 32, 16),
    "float32": Tile(16, 32, 16),
    "tf32": Tile(16, 32, 16),
    "forward": Tile(8, 32),
    "backward": Tile(8, 32),
    "sums": Tile(8, 32),
}

TILES: dict[str, dict[str, Tile]] = {
    "sm_75": _SM_75,
    "sm_80": _SYNC,
    "sm_86": _SYNC,
    "sm_89": _SYNC,
    "sm_90": _GROUPED,
    "sm_100": _GROUPED,
    "sm_120": _SYNC,
    "gfx942": _GFX942,
    INTERPRETER: _INTERPRETED,
}

DESCRIPTORS = frozenset({"sm_90", "sm_100", INTERPRETER})
"""Architectures whose tensor-core products are read by tensor descriptors."""

VENDOR_ABOVE_K = {
    "sm_80": 2048,
    "sm_86": 2048,
    "sm_89": 4096,
    "sm_90": 2048,
    "sm_100": 2048,
    "sm_120": 1024,
    "gfx942": 1536,
}
"""The K above which the vendor's 16-bit GEMM and a pass of its own for the activation win.

That pass reads and writes 4 bytes an element, 4 / bandwidth; an epilogue spares it and costs
(1/0.85 - 1) · 2K / peak, if Triton's main loop reaches 85 % of the vendor's speed (assumed). They
meet at K = 11 · peak / bandwidth, peak being what a GEMM reaches: 250 TFLOP/s and 1.6 TB/s on an
A100, 690 and 3.4 on an H100, 1,600 and 8 on a B200, 290 and 0.86 on an L40S, 170 and 1.8 on an
RTX 5090, 780 and 5.3 on an MI300X.
"""


def vendor_wins(arch: str, dtype: torch.dtype, inner: int, tf32: bool) -> bool:
    """Whether the vendor's GEMM and then one pass for bias and activation serve a `linear`.

    Always on sm_75, whose tensor cores Triton does not reach, and for float32 in full precision,
    where the product takes at least ten times as long as that pass; else by `VENDOR_ABOVE_K`.

    Args:
        arch: a key of `TILES`.
        dtype: of the tensors.
        inner: K.
        tf32: whether float32 may be rounded to tf32.
    """
    if arch == INTERPRETER:
        return False
    if arch not in VENDOR_ABOVE_K or (dtype == torch.float32 and not tf32):
        return True
    return inner > VENDOR_ABOVE_K[arch]


def product_key(
    arch: str, dtype: torch.dtype, rows: int, columns: int, processors: int, tf32: bool
) -> str:
    """The key in `TILES[arch]` of the tile for a product that need not be fixed."""
    if dtype == torch.float32:
        return fixed_key(arch, dtype, tf32)
    large = TILES[arch]["large"]
    fills = -(-rows // large.m) * -(-columns // large.n) >= processors
    return "large" if fills else "small"


def fixed_key(arch: str, dtype: torch.dtype, tf32: bool) -> str:
    """The same for one whose rows' bits must not depend on T: no size of it is asked for."""
    if dtype != torch.float32:
        return "fixed"
    return "tf32" if tf32 and "tf32" in TILES[arch] else "float32"


def candidates(arch: str, key: str) -> list[Tile]:
    """The table's tile for a product, then those that might do better on a real device."""
    table, half = TILES[arch], ("large", "small", "fixed")
    others = half if key in half else ()
    return list(dict.fromkeys(table[name] for name in (key, *others)))


def by_descriptor(arch: str, key: str, inner: int) -> bool:
    """Whether x and weight are read by descriptors; asks no size that changes with the batch."""
    return arch in DESCRIPTORS and key != "float32" and inner > 0
