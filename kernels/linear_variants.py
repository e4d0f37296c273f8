"""What `linear`'s kernels are compiled for ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastbert.kernels import linear_elementwise, linear_gemm
from fastbert.kernels.activations import NAMES
from fastbert.kernels.linear_tiles import GROUP, TILES, by_descriptor
from fastbert.kernels.tiles import ARCHITECTURES
from fastbert.kernels.variant import DTYPES, Variant

STEM = "linear"


def variants() -> Iterator[Variant]:
    """Every kernel × dtype × architecture, with all activations on the tiles that take any."""
    for arch in ARCHITECTURES:
        for dtype in DTYPES:
            yield from _products(arch, dtype)
            yield from _elementwise(arch, dtype)


def _products(arch: str, dtype: str) -> Iterator[Variant]:
    for key in TILES[arch]:
        if key in ("large", "small", "fixed") and dtype != "fp32":
            # The fixed tile serves every activation; large and small show BERT's.
            names = NAMES if key == "fixed" else ("gelu",)
        elif key in ("float32", "tf32") and dtype == "fp32":
            names = NAMES if key == "float32" else ("gelu",)
        else:
            continue
        for name in names:
            yield _product(arch, dtype, key, name)
        yield _product(arch, dtype, key, "gelu", save=True)
        if key == "fixed":
            yield _product(arch, dtype, key, "none", even=False)
            yield _product(arch, dtype, key, "none", bias=False)


def _product(
    arch: str,
    dtype: str,
    key: str,
    activation: str,
    *,
    save: bool = False,
    even: bool = True,
    bias: bool = True,
) -> Variant:
    tile = TILES[arch][key]
    described = even and by_descriptor(arch, key, tile.k)
    pointer = f"*{dtype}"
    signature = {"out": pointer, "T": "i32", "N": "i32"}
    constants: dict[str, Any] = {
        "BM": tile.m, "BN": tile.n, "BK": tile.k, "GROUP": GROUP, "ACTIVATION": activation,
        "HAS_BIAS": bias, "SAVE": save, "PRECISION": "tf32" if key == "tf32" else "ieee",
        "WIDEN": False,
    }  # fmt: skip
    divisible = ["out", "N"]
    for name, given in (("bias", bias), ("pre", save)):
        if given:
            signature[name] = pointer
            divisible.append(name)
        else:
            constants[name] = None
    if described:
        signature["x"] = f"tensordesc<{dtype}[{tile.m}, {tile.k}]>"
        signature["weight"] = f"tensordesc<{dtype}[{tile.n}, {tile.k}]>"
        signature["K"] = "i32"
        divisible.append("K")
    else:
        signature["x"] = signature["weight"] = pointer
        signature["units"] = "i32"
        constants |= {"UNIT": 4 if dtype == "fp32" else 8, "EVEN_K": even}
        divisible += ["x", "weight"]
    flags = [flag for flag, on in (("saved", save), ("odd", not even), ("plain", not bias)) if on]
    return Variant(
        linear_gemm.gemm_descriptors if described else linear_gemm.gemm,
        STEM,
        "product",
        dtype,
        arch,
        tile,
        signature,
        constants,
        tuple(divisible),
        detail="-".join([key, activation, *flags]),
        tensor_work=((tile.m, tile.n, tile.k),) if arch != "sm_75" and key != "float32" else (),
        elements=tile.m * tile.n,
    )


def _elementwise(arch: str, dtype: str) -> Iterator[Variant]:
    pointer = f"*{dtype}"
    sizes = {"T": "i32", "N": "i32"}
    for name in NAMES[1:]:
        tile = TILES[arch]["forward"]
        yield Variant(
            linear_elementwise.forward,
            STEM,
            "activation",
            dtype,
            arch,
            tile,
            dict.fromkeys(("x", "bias", "out", "pre"), pointer) | sizes,
            {"BM": tile.m, "BN": tile.n, "ACTIVATION": name, "HAS_BIAS": True, "SAVE": True},
            ("x", "bias", "out", "pre", "N"),
            detail=name,
            elements=tile.m * tile.n,
        )
    for name in NAMES:
        tile = TILES[arch]["backward"]
        yield Variant(
            linear_elementwise.backward,
            STEM,
            "activation_backward",
            dtype,
            arch,
            tile,
            dict.fromkeys(("grad", "x", "d_pre"), pointer) | {"partial": "*fp32"} | sizes,
            {
                "bias": None,
                "BM": tile.m,
                "BN": tile.n,
                "ACTIVATION": name,
                "HAS_BIAS": False,
                "SUMS": True,
            },
            ("grad", "x", "d_pre", "partial", "N"),
            detail=name,
            elements=tile.m * tile.n,
        )
    tile = TILES[arch]["sums"]
    yield Variant(
        linear_elementwise.column_sums,
        STEM,
        "column_sums",
        dtype,
        arch,
        tile,
        {"partial": "*fp32", "out": pointer, "count": "i32", "N": "i32"},
        {"BM": tile.m, "BN": tile.n},
        ("partial", "out", "N"),
        elements=tile.m * tile.n,
    )
