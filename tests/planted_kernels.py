"""Small kernels for the report's own tests: sound ones, and the same with faults planted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from fastbert.kernels.tiles import Tile
from fastbert.kernels.variant import Variant


@triton.jit
def _gelu(x, LIBRARY: tl.constexpr):
    """x Φ(x), by the library's erf or by a polynomial erfc (Abramowitz and Stegun, 7.1.26)."""
    if LIBRARY:
        return 0.5 * x * (1.0 + tl.math.erf(0.70710678118654752 * x))
    z = tl.abs(x)
    root = tl.rsqrt(1.0 + 0.2316418882 * z)  # a division would take three more instructions
    t = root * root
    p = 1.061405429
    p = p * t - 1.453152027
    p = p * t + 1.421413741
    p = p * t - 0.284496736
    p = p * t + 0.254829592
    half = 0.5 * p * t * tl.math.exp2(-0.72134752044448170 * x * x)
    return tl.maximum(x, 0.0) - z * half


@triton.jit
def gemm(
    x, w, out, M, N, K, x_stride, w_stride, out_stride,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GELU: tl.constexpr, LIBRARY: tl.constexpr,
):  # fmt: skip
    """out (M, N) = act(x (M, K) wᵀ (N, K)); N and K are multiples of the tile."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x_tile = x + m[:, None] * x_stride + k[None, :]
    w_tile = w + n[None, :] * w_stride + k[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, tl.cdiv(K, BK)):
        total = tl.dot(tl.load(x_tile), tl.load(w_tile), total)
        x_tile += BK
        w_tile += BK
    if GELU:
        total = _gelu(total, LIBRARY)
    places = out + m[:, None] * out_stride + n[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=(m < M)[:, None])


@triton.jit
def flash(
    q, k, v, out, stride, length, scale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Attention of BM queries over keys whose number is a multiple of BN, a mask only if asked."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    n = tl.arange(0, BN)
    head = tl.program_id(1).to(tl.int64) * D
    queries = tl.load(q + head + m[:, None] * stride + d[None, :])
    k_tile = k + head + n[None, :] * stride + d[:, None]
    v_tile = v + head + n[:, None] * stride + d[None, :]
    total = tl.zeros((BM, D), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    top = tl.full((BM,), float("-inf"), tl.float32)
    for start in range(0, length, BN):
        scores = tl.dot(queries, tl.load(k_tile))
        if MASK:
            scores = tl.where((start + n < length - 1)[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        p = tl.math.exp2(scores * scale - higher[:, None])
        rescale = tl.math.exp2(top - higher)
        weight = weight * rescale + tl.sum(p, 1)
        values = tl.load(v_tile)
        total = tl.dot(p.to(values.dtype), values, total * rescale[:, None])
        top = higher
        k_tile += BN * stride
        v_tile += BN * stride
    places = out + head + m[:, None] * stride + d[None, :]
    tl.store(places, (total / weight[:, None]).to(out.dtype.element_ty))


@triton.jit
def norm(x, out, stride, C: tl.constexpr):
    """One row of C elements, without weight and bias."""
    row = tl.program_id(0).to(tl.int64) * stride
    c = tl.arange(0, C)
    values = tl.load(x + row + c).to(tl.float32)
    centred = values - tl.sum(values, 0) / C
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / C + 1e-12)
    tl.store(out + row + c, (centred * rstd).to(out.dtype.element_ty))


@triton.jit
def fatal(x):
    """PTX where there is none: the compiler for HIP ends its process."""
    value = tl.inline_asm_elementwise(
        "mov.b16 $0, 1;", "=h", [], dtype=tl.int16, is_pure=True, pack=1
    )
    tl.store(x, value)


def gemm_variant(
    arch: str, tile: Tile, *, dtype: str = "bf16", gelu: bool = False, **changes: Any
) -> Variant:
    """`gemm` as a shipped kernel would state it; `library` takes the slow erf."""
    library = changes.pop("library", False)
    sizes = ("M", "N", "K", "x_stride", "w_stride", "out_stride")
    pointers = ("x", "w", "out")
    made = Variant(
        kernel=gemm,
        stem="linear",
        name="forward",
        dtype=dtype,
        arch=arch,
        tile=tile,
        signature={**dict.fromkeys(pointers, f"*{dtype}"), **dict.fromkeys(sizes, "i32")},
        constants={"BM": tile.m, "BN": tile.n, "BK": tile.k, "GELU": gelu, "LIBRARY": library},
        divisible=(*pointers, *sizes),
        detail="gelu" if gelu else "",
        tensor_work=((tile.m, tile.n, tile.k),),
        elements=tile.m * tile.n,
    )
    return replace(made, **changes)


def flash_variant(
    arch: str, D: int, tile: Tile, *, dtype: str = "bf16", mask: bool = False, **changes: Any
) -> Variant:
    """`flash` as a shipped kernel would state it."""
    pointers = ("q", "k", "v", "out")
    types = {**dict.fromkeys(pointers, f"*{dtype}"), "stride": "i32", "length": "i32"}
    made = Variant(
        kernel=flash,
        stem="attention",
        name="forward",
        dtype=dtype,
        arch=arch,
        tile=tile,
        signature={**types, "scale": "fp32"},
        constants={"D": D, "BM": tile.m, "BN": tile.n, "MASK": mask},
        divisible=(*pointers, "stride"),
        detail=f"D={D}",
        tensor_work=((tile.m, tile.n, D), (tile.m, D, tile.n)),
        elements=tile.m * tile.n,
    )
    return replace(made, **changes)


def norm_variant(arch: str, *, dtype: str = "bf16", **changes: Any) -> Variant:
    """`norm` as a shipped kernel would state it."""
    tile = Tile(1, 1024, warps=4, stages=1)
    made = Variant(
        kernel=norm,
        stem="layer_norm",
        name="forward",
        dtype=dtype,
        arch=arch,
        tile=tile,
        signature={"x": f"*{dtype}", "out": f"*{dtype}", "stride": "i32"},
        constants={"C": tile.n},
        divisible=("x", "out", "stride"),
        elements=tile.n,
    )
    return replace(made, **changes)


GEMM_80, GEMM_90 = Tile(128, 128, 32, 4, 3), Tile(128, 256, 64, 8, 3)
FLASH_80, FLASH_90 = Tile(128, 64, 1, 4, 3), Tile(128, 128, 1, 8, 3)


def sound() -> Iterator[Variant]:
    """Kernels in which the report must find no fault."""
    yield gemm_variant("sm_80", GEMM_80)
    yield gemm_variant("sm_80", GEMM_80, gelu=True)
    yield gemm_variant("sm_90", GEMM_90)
    yield gemm_variant("sm_100", GEMM_80)
    yield gemm_variant("sm_120", GEMM_80, dtype="fp16")
    yield gemm_variant("gfx942", Tile(64, 64, 32, 4, 2))
    yield flash_variant("sm_80", 64, FLASH_80)
    yield flash_variant("sm_90", 64, FLASH_90, dtype="fp16")
    yield norm_variant("sm_75", dtype="fp16")
    yield norm_variant("sm_90")


def faulty() -> dict[str, tuple[Variant, str]]:
    """Fault → a kernel that has it, and words of what the report must say."""
    narrow = tuple(
        name for name in gemm_variant("sm_80", GEMM_80).divisible if "stride" not in name
    )
    other_tile = dict(gemm_variant("sm_80", GEMM_80).constants, BK=64)
    return {
        "strides without divisibility": (
            gemm_variant("sm_80", GEMM_80, divisible=narrow, detail="narrow"),
            "bytes copied by 16",
        ),
        "num_stages = 1": (gemm_variant("sm_80", replace(GEMM_80, stages=1)), "in flight"),
        "num_stages = 1 on sm_90": (
            gemm_variant("sm_90", replace(GEMM_90, stages=1)),
            "no product stays in flight",
        ),
        "maxnreg = 128": (
            flash_variant("sm_80", 64, FLASH_80, options={"maxnreg": 128}, detail="D=64-few"),
            "spills in the hot loop",
        ),
        "a mask in every iteration": (
            flash_variant("sm_80", 64, FLASH_80, mask=True, detail="D=64-masked"),
            "instructions beside tensor work per score",
        ),
        "another tile than stated": (
            gemm_variant("sm_80", GEMM_80, constants=other_tile, detail="other"),
            "multiply-adds an iteration",
        ),
        "the library's erf": (
            gemm_variant("sm_80", GEMM_80, gelu=True, library=True, detail="gelu-library"),
            "GELU epilogue",
        ),
        "a norm without divisibility": (
            norm_variant("sm_90", divisible=(), detail="narrow"),
            "of its bytes move by 16",
        ),
        "float32 that spills": (
            flash_variant("sm_80", 128, Tile(128, 64, 1, 4, 2), dtype="fp32"),
            "spills",
        ),
        "more shared memory than there is": (
            gemm_variant("sm_86", Tile(128, 128, 64, 8, 5)),
            "shared memory",
        ),
        "no tensor instruction on gfx942": (
            norm_variant("gfx942", tensor_work=((16, 16, 16),), detail="plain"),
            "not v_mfma",
        ),
        "the compiler's end": (
            Variant(
                fatal, "embedding", "fatal", "fp32", "gfx942", Tile(1, 1), {"x": "*i16"}, {}, ()
            ),
            "does not compile",
        ),
    }


def variants() -> Iterator[Variant]:
    """All of them, as a kernel's module yields its own."""
    yield from sound()
    for variant, _ in faulty().values():
        yield variant
