"""`linear` with its activation in the epilogue, `bias_gelu`, and the gradients of both.

activation(x · weightᵀ + bias): x (T, K), weight (N, K), bias (N,) → (T, N), and (T, N) before the
activation where it is asked for. Which kernel serves:

- no activation: the vendor's GEMM;
- an activation: `linear_gemm` with it in the epilogue, or, where `vendor_wins`, the vendor's GEMM
  and one pass of `linear_elementwise`;
- `linear_fixed`, with or without an activation, which serves while tiles are `fixed`: `linear_gemm`
  on one tile a dtype and architecture, so that a row's bits hang on it and the weights alone;
- gradients of x and weight: the vendor's GEMM, after one pass for activation and bias.

The kernels' tiles and `VENDOR_ABOVE_K` come from static estimates, unmeasured on GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastbert.kernels import linear_elementwise, linear_gemm
from fastbert.kernels.autotune import fixed, refine
from fastbert.kernels.linear_tiles import (
    GROUP,
    TILES,
    VENDOR_ABOVE_K,
    by_descriptor,
    candidates,
    fixed_key,
    product_key,
    vendor_wins,
)
from fastbert.kernels.linear_variants import variants
from fastbert.kernels.tiles import Tile, architecture, interpreting

__all__ = [
    "LAUNCHERS",
    "TILES",
    "VENDOR_ABOVE_K",
    "linear",
    "linear_fixed",
    "unsupported",
    "variants",
    "vendor_wins",
]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ROW_PROGRAMS = 64
"""Most programs that share the rows in backward: their sums take 4 · 64 · N bytes."""


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, save: bool
) -> tuple[Tensor, Tensor]:
    """activation(x · weightᵀ + bias).

    Args:
        x: (T, K).
        weight: (N, K).
        bias: (N,) or None.
        activation: none, gelu, gelu_tanh, relu, silu or tanh.
        save: whether to return what the activation was given.

    Returns:
        (T, N), and the same before the activation; empty unless saved and there is an activation.
    """
    if fixed():
        return linear_fixed(x, weight, bias, activation, save)
    if activation == "none":
        product = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
        return product, x.new_empty(0)
    arch, tf32 = _architecture(x), _tf32_asked()
    if vendor_wins(arch, x.dtype, x.shape[1], tf32):
        product = x @ weight.t()
        # The pre-activation may overwrite the product, which nobody else holds.
        return _activated(product, bias, activation, product if save else None)
    key = product_key(arch, x.dtype, len(x), len(weight), _processors(x.device), tf32)
    return _product(x, weight, bias, activation, save, arch, key, candidates(arch, key))


def linear_fixed(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, save: bool
) -> tuple[Tensor, Tensor]:
    """`linear` on one tile a dtype and architecture: a row's bits don't depend on T."""
    arch = _architecture(x)
    key = fixed_key(arch, x.dtype, _tf32_asked())
    return _product(x, weight, bias, activation, save, arch, key, [TILES[arch][key]])


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, pre: Tensor, activation: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (T, K), weight (N, K), bias (N,); those not needed come back empty."""
    d_pre, d_bias = _activation_backward(grad, pre, None, activation, needs[2])
    return (
        d_pre @ weight if needs[0] else grad.new_empty(0),
        d_pre.t() @ x if needs[1] else grad.new_empty(0),
        d_bias,
    )


def bias_gelu(x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    """GELU(x + bias) on (T, N), erf form for ``none``, tanh form for ``tanh``."""
    return _activated(x, bias, _gelu(approximate), None)[0]


def bias_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor, approximate: str
) -> tuple[Tensor, Tensor]:
    """Gradients of x (T, N) and bias (N,)."""
    return _activation_backward(grad, x, bias, _gelu(approximate), True)


LAUNCHERS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "linear_backward": linear_backward,
    "bias_gelu": bias_gelu,
    "bias_gelu_backward": bias_gelu_backward,
}


def unsupported(op: str, args: tuple[Any, ...]) -> str | None:
    """Why `args` of the op can't be served: a dtype or a device; None if they can."""
    first = args[0]
    dtypes = {arg.dtype for arg in args if isinstance(arg, Tensor)}
    if first.dtype not in DTYPES:
        return f"no kernel for {first.dtype}"
    if len(dtypes) > 1:
        return f"no kernel for {' and '.join(sorted(map(str, dtypes)))} together"
    if architecture(first.device) is None:
        return f"no kernel for {first.device}, which is older than sm_75 or unknown"
    return None


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    save: bool,
    arch: str,
    key: str,
    tiles: list[Tile],
) -> tuple[Tensor, Tensor]:
    """`linear` by `linear_gemm` on the first tile, or on what the autotuner puts in its place."""
    rows, columns = len(x), len(weight)
    save = save and activation != "none"
    out, pre = x.new_empty(rows, columns), x.new_empty((rows, columns) if save else 0)
    if out.numel() == 0:
        return out, pre
    x, weight = _aligned(x), _aligned(weight)
    inner, unit = x.shape[1], 16 // x.element_size()
    described = by_descriptor(arch, key, inner)

    def run(tile: Tile) -> None:
        grid = (triton.cdiv(rows, tile.m) * triton.cdiv(columns, tile.n),)
        tensors = (bias, out, pre if save else None, rows, columns)
        options = {
            "BM": tile.m, "BN": tile.n, "BK": tile.k, "GROUP": GROUP, "ACTIVATION": activation,
            "HAS_BIAS": bias is not None, "SAVE": save,
            "PRECISION": "tf32" if key == "tf32" else "ieee",
            "WIDEN": interpreting() and x.dtype == torch.bfloat16,
            "num_warps": tile.warps, "num_stages": tile.stages,
        }  # fmt: skip
        if described:
            blocks = (
                TensorDescriptor.from_tensor(x, [tile.m, tile.k]),
                TensorDescriptor.from_tensor(weight, [tile.n, tile.k]),
            )
            linear_gemm.gemm_descriptors[grid](*blocks, *tensors, inner, **options)
        else:
            even = inner % tile.k == 0
            linear_gemm.gemm[grid](
                x, weight, *tensors, inner // unit, UNIT=unit, EVEN_K=even, **options
            )

    run(refine("linear", x.dtype, rows, (columns, inner), tiles, run, x.device))
    return out, pre


def _aligned(x: Tensor) -> Tensor:
    """`x` (T, K) with its rows one after the other, each on 16 bytes: a copy where they are not.

    Zeros are put behind a K that is no multiple of 16 bytes (no BERT has one): narrower accesses
    could be neither asynchronous nor described, and would be repeated for every tile.
    """
    odd = -x.shape[1] % (16 // x.element_size())
    x = F.pad(x, (0, odd)) if odd else x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def _activated(
    x: Tensor, bias: Tensor | None, activation: str, pre: Tensor | None
) -> tuple[Tensor, Tensor]:
    """activation(x + bias), and x + bias in `pre` where that is given."""
    x = x.contiguous()
    rows, columns = x.shape
    out = x.new_empty(rows, columns)
    if out.numel():
        tile = TILES[_architecture(x)]["forward"]
        grid = (triton.cdiv(rows, tile.m), triton.cdiv(columns, tile.n))
        linear_elementwise.forward[grid](
            x, bias, out, pre, rows, columns, tile.m, tile.n, activation, bias is not None,
            pre is not None, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, x.new_empty(0) if pre is None else pre


def _activation_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, activation: str, sums: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x + bias, (T, N), and where `sums` of bias, (N,); else empty."""
    rows, columns = grad.shape
    if activation == "none" and not sums:
        return grad, grad.new_empty(0)
    grad, x = grad.contiguous(), x.contiguous()
    d_pre = grad if activation == "none" else grad.new_empty(rows, columns)
    if grad.numel() == 0:
        return d_pre, grad.new_zeros(columns if sums else 0)
    tiles = TILES[_architecture(grad)]
    tile = tiles["backward"]
    programs = min(triton.cdiv(rows, tile.m), ROW_PROGRAMS)
    partial = grad.new_empty((programs, columns) if sums else 0, dtype=torch.float32)
    linear_elementwise.backward[programs, triton.cdiv(columns, tile.n)](
        grad, x, bias, d_pre, partial, rows, columns, tile.m, tile.n, activation,
        bias is not None, sums, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    d_bias = grad.new_empty(columns if sums else 0)
    if sums:
        tile = tiles["sums"]
        linear_elementwise.column_sums[triton.cdiv(columns, tile.n),](
            partial, d_bias, programs, columns, tile.m, tile.n,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return d_pre, d_bias


def _gelu(approximate: str) -> str:
    return "gelu" if approximate == "none" else "gelu_tanh"


def _architecture(x: Tensor) -> str:
    arch = architecture(x.device)
    if arch is None:
        raise ValueError(f"no kernel for {x.device}, which is older than sm_75 or unknown")
    return arch


def _tf32_asked() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _processors(device: torch.device) -> int:
    return 4 if interpreting() else _processors_of(device.index or 0)


@cache
def _processors_of(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
