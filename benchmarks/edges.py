"""Rate of the edges: `pack` a mask, `unpack` and `pool` hidden states."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Meter
from benchmarks.inputs import LENGTHS, MINILM, dtypes, normal, packed_batch
from fastbert import ops, reference

BATCH = packed_batch(LENGTHS["mixed32"])
"""32 texts of mixed length."""


def test_pack(meter: Meter) -> None:
    mask = (torch.arange(BATCH.max_seqlen) < BATCH.lengths[:, None]).to(torch.int64)  # (B, S)
    truth = mask.reshape(-1).nonzero()[:, 0].double()
    meter(
        lambda: ops.pack(mask)[2].float(),  # the indices; as floats for the comparison
        truth,
        torch.float32,
        # the mask read; indices and positions written, int64, and lengths and offsets, int32
        moved=mask.nbytes + 16.0 * BATCH.total + 8.0 * BATCH.batch_size,
    )


@dtypes
def test_unpack(meter: Meter, dtype: torch.dtype) -> None:
    x = normal(BATCH.total, MINILM.C, dtype=dtype)
    B, S = BATCH.batch_size, BATCH.max_seqlen
    _, _, indices, _ = ops.pack(torch.arange(S) < BATCH.lengths[:, None])
    truth = torch.zeros(B * S, MINILM.C, dtype=torch.float64)
    truth[indices] = x.double()
    meter(
        lambda: ops.unpack(x, indices, B, S),
        truth.view(B, S, MINILM.C),
        dtype,
        # packed rows and indices read, all padded rows written
        moved=x.nbytes + indices.nbytes + float(B * S * MINILM.C * dtype.itemsize),
    )


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "last"])
@dtypes
def test_pool(meter: Meter, mode: str, dtype: torch.dtype) -> None:
    x = normal(BATCH.total, MINILM.C, dtype=dtype)
    truth = reference.pool(x.double(), BATCH.cu_seqlens, mode, True)
    rows = BATCH.total if mode in ("mean", "max") else BATCH.batch_size
    meter(
        lambda: ops.pool(x, BATCH.cu_seqlens, mode, normalize=True),
        truth,
        dtype,
        # the rows that the mode looks at read, one row a text written
        moved=(rows + BATCH.batch_size) * float(MINILM.C * dtype.itemsize),
    )
