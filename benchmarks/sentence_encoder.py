"""From real text to sentence vectors: `SentenceEncoder` beside sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Candidate, Case
from benchmarks.peers import sentence_transformer
from benchmarks.workload import BATCH_SIZE, encoder_flops, sentences
from fastbert import BertConfig, SentenceEncoder

FASTBERT = "fastbert packed"
BASELINE = "sentence-transformers"

BOUNDS = {"float32": 1e-5, "bfloat16": 1e-2}
"""Largest difference of an entry of a normalised vector that counts as right."""


def text_case(directory: Path, dtype: str, names: Collection[str], texts: int) -> Case:
    """Tokenise, encode, pool and normalise that many sentences.

    Args:
        directory: of a sentence-transformers model.
        dtype: float32 or bfloat16.
        names: candidates to take part, of `FASTBERT` and `BASELINE`.
        texts: how many sentences.
    """
    inputs = sentences(texts)
    truth = encode_with(sentence_transformer(directory, "float64"), inputs)
    loaders: dict[str, Callable[[], Any]] = {
        FASTBERT: lambda: SentenceEncoder(directory, dtype=dtype),
        BASELINE: lambda: sentence_transformer(directory, dtype),
    }
    candidates = [
        _candidate(name, load(), inputs, truth, BOUNDS[dtype])
        for name, load in loaders.items()
        if name in names
    ]
    lengths = _lengths(directory, inputs)
    work = {
        "texts": len(inputs),
        "tokens": sum(lengths),
        "flops": encoder_flops(lengths, BertConfig.from_pretrained(directory)),
    }
    return Case("text", tuple(candidates), BASELINE, work)


def encode_with(model: Any, inputs: list[str]) -> NDArray[Any]:
    """(B, C) vectors from anything with sentence-transformers' `encode`."""
    return np.asarray(model.encode(inputs, batch_size=BATCH_SIZE, show_progress_bar=False))


def _candidate(
    name: str, model: Any, inputs: list[str], truth: NDArray[Any], bound: float
) -> Candidate:
    def error(vectors: NDArray[Any]) -> float:
        return float(np.max(np.abs(vectors.astype(np.float64) - truth)))

    return Candidate(name, lambda: encode_with(model, inputs), error, bound)


def _lengths(directory: Path, inputs: list[str]) -> list[int]:
    """Tokens that each text comes to, cut where the model cuts it."""
    encoder = SentenceEncoder(directory)
    encoded = encoder.tokenizer(inputs, truncation=True, max_length=encoder.max_length)
    return [len(ids) for ids in encoded["input_ids"]]
