"""Rate of `embed_layer_norm`."""

from __future__ import annotations

import torch

from benchmarks.conftest import Meter
from benchmarks.inputs import LENGTHS, VOCABULARY, Size, dtypes, normal, packed_batch, sizes
from fastbert import ops, reference


@sizes
@dtypes
def test_embed_layer_norm(meter: Meter, size: Size, dtype: torch.dtype) -> None:
    C = size.C
    batch = packed_batch(LENGTHS["8x128"])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (batch.total,), generator=generator)
    tables = [normal(rows, C, dtype=dtype) for rows in (VOCABULARY, 512, 2)]
    weight, bias = normal(C, dtype=dtype, mean=1.0), normal(C, dtype=dtype)
    arguments = (ids, batch.token_type_ids, batch.position_ids, *tables, weight, bias, 1e-12)
    truth, _, _ = reference.embed_layer_norm(*arguments, dtype=torch.float64)
    meter(
        lambda: ops.embed_layer_norm(*arguments),
        truth,
        dtype,
        # a row: one of the word table and one of the positions read, one written, three int64
        # ids read, 8 bytes of statistics written; the two type rows stay in the cache
        moved=batch.total * (3.0 * C * dtype.itemsize + 3 * 8 + 8),
    )
