"""Buckets of total tokens, and buffers of a bucket's sizes: what a graph computes on.

Knows no CUDA. Letters: T tokens, B sequences, W items of the attention work list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastbert.packing import QUERY_TILE, Packed


@dataclass(frozen=True)
class Buckets:
    """Sizes of graphs: a geometric set of total tokens, each with a bound on the sequences.

    A graph of T tokens computes T rows whatever the batch holds. Up to ``8·step`` tokens the
    buckets are multiples of `step`, which is the row tile of the matrix products: rows that fill a
    tile up cost it nothing. Beyond, every octave has 8 buckets, so less than an eighth of a
    bucket's rows are padding. Up to 16,384 tokens these are 8 + 4 · 8 = 40 buckets.

    A graph also has one bound on the number of sequences, since the work list has a row for each:
    an eighth of the tokens (texts of 8 tokens on average), at least 16, at most `most_sequences`.
    An idle row of the work list costs a program a head that ends at once.

    Attributes:
        step: tokens of the smallest bucket.
        most_tokens: of the largest; beyond it the device is busy long enough for any launch.
        most_sequences: of any bucket.

    Raises:
        ValueError: if one of them is not positive.
    """

    step: int = QUERY_TILE
    most_tokens: int = 16_384
    most_sequences: int = 512

    def __post_init__(self) -> None:
        sizes = (self.step, self.most_tokens, self.most_sequences)
        if min(sizes) < 1:
            raise ValueError(f"step, most_tokens and most_sequences must be positive, not {sizes}")

    def tokens(self, total: int) -> int:
        """The smallest bucket of at least `total` tokens, however large."""
        tiles = -(-total // self.step)
        unit = 1 << max(0, (tiles - 1).bit_length() - 4) if tiles > 8 else 1  # tiles of one bucket
        return -(-tiles // unit) * unit * self.step

    def sequences(self, tokens: int) -> int:
        """The bound on sequences in a bucket of that many tokens."""
        return min(max(tokens // 8, 16), self.most_sequences)

    def choose(self, packed: Packed) -> Bucket | None:
        """The bucket that serves a batch; None for one outside all of them."""
        if packed.total == 0 or self.tokens(packed.total) > self.most_tokens:
            return None
        tokens = self.tokens(packed.total)
        bucket = Bucket(tokens, self.sequences(tokens))
        fits = packed.batch_size <= bucket.sequences and packed.work.shape[0] <= bucket.work
        return bucket if fits else None


@dataclass(frozen=True)
class Bucket:
    """Sizes of one graph: tokens T, and the bounds on sequences B and work items W."""

    tokens: int
    sequences: int

    @property
    def work(self) -> int:
        """Bound on the work items of T tokens in B sequences."""
        return self.tokens // QUERY_TILE + self.sequences


class Buffers:
    """A `Packed` of a bucket's sizes whose tensors stay where they are.

    Args:
        bucket: its sizes.
        device: where they lie.

    Attributes:
        packed: T tokens, B sequences, W work items. The last real bound is repeated in
            `cu_seqlens`, so rows beyond it belong to no sequence; unused work items hold -1.
    """

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        T, B = bucket.tokens, bucket.sequences
        self.packed = Packed(
            input_ids=zeros(T, dtype=torch.int64),
            token_type_ids=zeros(T, dtype=torch.int64),
            position_ids=zeros(T, dtype=torch.int64),
            lengths=zeros(B),
            cu_seqlens=zeros(B + 1),
            max_seqlen=T,
            work=zeros(bucket.work, 2),
        )

    def fill(self, packed: Packed) -> None:
        """Copy a batch in and pad it, without reading from the device."""
        total = packed.total
        # Padding rows hold id, type and position 0, which every table has.
        for name, rest in (
            ("input_ids", 0),
            ("token_type_ids", 0),
            ("position_ids", 0),
            ("lengths", 0),
            ("cu_seqlens", total),
            ("work", -1),
        ):
            buffer, value = getattr(self.packed, name), getattr(packed, name)
            buffer[: value.shape[0]].copy_(value)
            buffer[value.shape[0] :].fill_(rest)
