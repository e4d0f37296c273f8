"""Rate of `linear` in the four products of a layer, and of `bias_gelu`."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Meter
from benchmarks.inputs import TOKENS, Size, dtypes, normal, sizes
from fastbert import ops, reference


@pytest.mark.parametrize("product", ["qkv", "projection", "up", "down"])
@sizes
@dtypes
def test_linear(meter: Meter, product: str, size: Size, dtype: torch.dtype) -> None:
    C, F, _ = size
    N, K = {"qkv": (3 * C, C), "projection": (C, C), "up": (F, C), "down": (C, F)}[product]
    x, weight = normal(TOKENS, K, dtype=dtype), normal(N, K, dtype=dtype, scale=0.05)
    bias, activation = normal(N, dtype=dtype), "gelu" if product == "up" else "none"
    truth, _ = reference.linear(x, weight, bias, activation, dtype=torch.float64)
    meter(
        lambda: ops.linear(x, weight, bias, activation),
        truth,
        dtype,
        flops=2.0 * TOKENS * N * K,  # a multiply-add each; bias and GELU not counted
    )


@sizes
@dtypes
def test_bias_gelu(meter: Meter, size: Size, dtype: torch.dtype) -> None:
    x, bias = normal(TOKENS, size.F, dtype=dtype), normal(size.F, dtype=dtype)
    truth = reference.bias_gelu(x, bias, dtype=torch.float64)
    meter(
        lambda: ops.bias_gelu(x, bias),
        truth,
        dtype,
        moved=2.0 * x.nbytes + bias.nbytes,  # x read, the result written
    )
