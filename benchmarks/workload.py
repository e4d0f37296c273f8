"""What is computed: batches of real token ids of fixed and mixed length, and real sentences."""

from __future__ import annotations

import pydoc_data.topics
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbert import BertConfig

FIXED = {"1x16": (1, 16), "1x128": (1, 128), "8x128": (8, 128), "4x512": (4, 512)}
MIXED = ("mixed-sorted", "mixed")
BATCH_SIZE = 32

Batch = list[list[int]]


@dataclass(frozen=True)
class Workload:
    """Batches of token ids, run one after the other.

    Attributes:
        name: of the case.
        batches: lists of texts, each a list of ids with [CLS] and [SEP].
    """

    name: str
    batches: tuple[Batch, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of every text."""
        return [len(text) for batch in self.batches for text in batch]

    @property
    def padded_tokens(self) -> int:
        """Tokens that remain to be computed when each batch is filled up to its longest text."""
        return sum(len(batch) * max(map(len, batch)) for batch in self.batches)

    def work(self, config: BertConfig) -> dict[str, float]:
        """What one run amounts to, in the units of `harness.Case`."""
        return {
            "texts": len(self.lengths),
            "tokens": sum(self.lengths),
            "padded_tokens": self.padded_tokens,
            "flops": encoder_flops(self.lengths, config),
        }


def encoder_flops(lengths: list[int], config: BertConfig) -> float:
    """Operations of the encoder on real tokens: its matrix products, 2 for a multiply-add.

    A token costs 2·(3C² + C² + 2CF) in the four products of a layer, and 2·2·n·C in attention over
    the n tokens of its text.
    """
    C, F = config.hidden_size, config.intermediate_size
    products = sum(n * (8 * C * C + 4 * C * F) + 4 * n * n * C for n in lengths)
    return float(config.num_hidden_layers * products)


def mixed_lengths(count: int) -> NDArray[np.int64]:
    """Text lengths as they come: log-normal, exp of N(3.3, 0.8), cut to 3…512 tokens."""
    drawn = np.random.default_rng(23).lognormal(3.3, 0.8, count)
    return np.clip(drawn, 3, 512).astype(np.int64)


def make_workload(name: str, directory: Path, texts: int) -> Workload:
    """The workload of that name.

    Args:
        name: a key of `FIXED` or one of `MIXED`.
        directory: of a model with `tokenizer.json`, to make ids from real text.
        texts: how many texts a mixed workload has.

    Raises:
        ValueError: on another name.
    """
    if name in FIXED:
        batch, length = FIXED[name]
        return Workload(name, (_texts(np.full(batch, length), directory),))
    if name not in MIXED:
        raise ValueError(f"workload must be one of {', '.join((*FIXED, *MIXED))}, not {name!r}")
    lengths = mixed_lengths(texts)
    if name == "mixed-sorted":
        lengths = np.sort(lengths)[::-1]  # longest first, as sentence-transformers does it
    ids = _texts(lengths, directory)
    starts = range(0, len(ids), BATCH_SIZE)
    return Workload(name, tuple(ids[start : start + BATCH_SIZE] for start in starts))


def _texts(lengths: NDArray[Any], directory: Path) -> Batch:
    """Texts of these lengths: consecutive pieces of real English between [CLS] and [SEP]."""
    first, stream, last = _token_stream(directory)
    pieces = np.split(np.resize(stream, int(lengths.sum())), np.cumsum(lengths)[:-1])
    return [[first, *piece[:-2].tolist(), last] for piece in pieces]


@cache
def _token_stream(directory: Path) -> tuple[int, NDArray[np.int64], int]:
    """[CLS], many ids of real text, [SEP]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = " ".join(topics()[:60])
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    first, last = (tokenizer.encode("").ids[place] for place in (0, -1))
    return int(first), np.asarray(ids, dtype=np.int64), int(last)


def topics() -> list[str]:
    """Python's own reference documentation, a text a topic: real English on every machine."""
    return [re.sub(r"\s+", " ", text) for _, text in sorted(pydoc_data.topics.topics.items())]


def sentences(count: int) -> list[str]:
    """That many sentences, evenly spread over the topics, in the order of the documentation."""
    found = [s for text in topics() for s in re.split(r"(?<=[.!?]) ", text) if len(s) > 3]
    return found[:: max(1, len(found) // count)][:count]
