"""Rate of `linear_cross_entropy` over BERT's vocabulary."""

from __future__ import annotations

import torch

from benchmarks.conftest import Meter
from benchmarks.inputs import VOCABULARY, Size, dtypes, normal, sizes
from fastbert import ops, reference

LABELLED = 160  # of 1024 tokens, the 15 % that masked language modelling labels


@sizes
@dtypes
def test_linear_cross_entropy(meter: Meter, size: Size, dtype: torch.dtype) -> None:
    x = normal(LABELLED, size.C, dtype=dtype)
    weight = normal(VOCABULARY, size.C, dtype=dtype, scale=0.05)
    bias = normal(VOCABULARY, dtype=dtype)
    labels = torch.arange(LABELLED) * 190
    truth, _ = reference.linear_cross_entropy(x, weight, bias, labels, dtype=torch.float64)
    meter(
        lambda: ops.linear_cross_entropy(x, weight, bias, labels),
        truth,
        dtype,
        flops=2.0 * LABELLED * VOCABULARY * size.C,  # the logits; softmax not counted
    )
