"""Rate of `residual_layer_norm`."""

from __future__ import annotations

import torch

from benchmarks.conftest import Meter
from benchmarks.inputs import TOKENS, Size, dtypes, no_seed, normal, sizes
from fastbert import ops, reference


@sizes
@dtypes
def test_residual_layer_norm(meter: Meter, size: Size, dtype: torch.dtype) -> None:
    x = normal(TOKENS, size.C, dtype=dtype, mean=0.5)  # a mean that a wrong variance would show
    residual = normal(TOKENS, size.C, dtype=dtype).flip(0)
    weight, bias = normal(size.C, dtype=dtype, mean=1.0), normal(size.C, dtype=dtype)
    tensors = (x, residual, weight, bias)
    truth, _, _ = reference.residual_layer_norm(*tensors, 1e-12, 0.0, no_seed, dtype=torch.float64)
    meter(
        lambda: ops.residual_layer_norm(*tensors, 1e-12, 0.0, no_seed),
        truth,
        dtype,
        # x and residual read, the result written; statistics of 8 bytes a row written
        moved=3.0 * x.nbytes + weight.nbytes + bias.nbytes + 8.0 * TOKENS,
    )
