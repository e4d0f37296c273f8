"""Rate of `varlen_attention` on fixed and mixed lengths."""

from __future__ import annotations

import torch

from benchmarks.conftest import Meter
from benchmarks.inputs import Size, dtypes, lengths, no_seed, normal, packed_batch, sizes
from fastbert import ops, reference


@lengths
@sizes
@dtypes
def test_varlen_attention(meter: Meter, lengths: list[int], size: Size, dtype: torch.dtype) -> None:
    batch = packed_batch(lengths)
    D = size.C // size.H
    qkv = normal(batch.total, 3, size.H, D, dtype=dtype)
    truth, _ = reference.varlen_attention(
        qkv, batch.cu_seqlens, D**-0.5, 0.0, no_seed, dtype=torch.float64
    )
    meter(
        lambda: ops.varlen_attention(
            qkv, batch.cu_seqlens, batch.max_seqlen, batch.work, D**-0.5, 0.0, no_seed
        ),
        truth,
        dtype,
        # q·kᵀ and weights·v: 2·n·n·D each, in H heads with C = H·D
        flops=sum(4.0 * n * n * size.C for n in lengths),
    )
