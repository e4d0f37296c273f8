"""Inputs of the op benchmarks: BERT's sizes, and tensors that look like its activations."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.workload import mixed_lengths
from fastbert.packing import Packed, pack


class Size(NamedTuple):
    """Widths of a model: hidden C, feed-forward F, heads H."""

    C: int
    F: int
    H: int


MINILM, BASE = Size(384, 1536, 12), Size(768, 3072, 12)
VOCABULARY = 30522
TOKENS = 1024

sizes = pytest.mark.parametrize("size", [MINILM, BASE], ids=["minilm", "base"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])


def normal(*shape: int, dtype: torch.dtype, scale: float = 1.0, mean: float = 0.0) -> Tensor:
    """Normal numbers, the same ones for the same shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale + mean).to(dtype)


def packed_batch(lengths: list[int]) -> Packed:
    """A batch of texts of these lengths, as tensors."""
    return pack([[place % VOCABULARY for place in range(n)] for n in lengths]).to("cpu")


LENGTHS = {"8x128": [128] * 8, "4x512": [512] * 4, "mixed32": mixed_lengths(32).tolist()}
lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)

no_seed = torch.empty(0, dtype=torch.int64)
"""The seed where nothing is dropped."""
