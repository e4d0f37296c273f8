"""fastbert and the libraries beside it, each as something that takes a batch to hidden states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import Candidate
from benchmarks.workload import Batch, Workload
from fastbert import BertModel, pack
from fastbert.cli.padded import pad

BASELINE = "transformers sdpa"

BOUNDS = {"float32": 2e-5, "bfloat16": 1e-1}
"""Largest relative error of a token's hidden state, ‖h − h₆₄‖ / ‖h₆₄‖, that counts as right. Right
implementations of MiniLM show up to 6e-6 and 6e-2, positions off by one 0.95, a lost mask 7."""


class Peer(Protocol):
    """A model in eval mode, in one precision, on the CPU."""

    def prepare(self, batch: Batch) -> Any:
        """What the model takes; not timed."""

    def run(self, prepared: Any) -> Tensor:
        """Hidden states of the batch; timed."""

    def rows(self, prepared: Any, hidden: Tensor) -> Tensor:
        """Those of the real tokens, (T, C)."""


class PackedPeer:
    """fastbert on a `Packed`."""

    def __init__(self, model: BertModel) -> None:
        self.model = model

    def prepare(self, batch: Batch) -> Any:
        """NumPy arrays, as the tokenizer yields them."""
        return pack(batch)

    def run(self, prepared: Any) -> Tensor:
        """(T, C)."""
        hidden: Tensor = self.model(prepared).last_hidden_state
        return hidden

    def rows(self, prepared: Any, hidden: Tensor) -> Tensor:
        """All of them."""
        return hidden


class PaddedPeer:
    """A model with transformers' signature, on padded ids and a mask."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model

    def prepare(self, batch: Batch) -> Any:
        """Padded ids and types (B, S), int64, and the mask, int64 as tokenizers give it."""
        ids, mask = pad(batch, pad_id=0)
        return {
            "input_ids": ids,
            "token_type_ids": torch.zeros_like(ids),
            "attention_mask": mask.to(torch.int64),
        }

    def run(self, prepared: Any) -> Tensor:
        """(B, S, C)."""
        hidden: Tensor = self.model(**prepared).last_hidden_state
        return hidden

    def rows(self, prepared: Any, hidden: Tensor) -> Tensor:
        """Rows that the mask keeps."""
        return hidden[prepared["attention_mask"] != 0]


class SentenceTransformersPeer(PaddedPeer):
    """sentence-transformers' pipeline, which also pools and normalises."""

    def run(self, prepared: Any) -> Tensor:
        """(B, S, C)."""
        hidden: Tensor = self.model(dict(prepared))["token_embeddings"]  # it writes into the dict
        return hidden


def _fastbert_packed(directory: Path, dtype: str) -> Peer:
    return PackedPeer(BertModel.from_pretrained(directory, dtype=dtype))


def _fastbert_padded(directory: Path, dtype: str) -> Peer:
    return PaddedPeer(BertModel.from_pretrained(directory, dtype=dtype))


def _sdpa(directory: Path, dtype: str) -> Peer:
    return PaddedPeer(transformers_model(directory, dtype, "sdpa"))


def _eager(directory: Path, dtype: str) -> Peer:
    return PaddedPeer(transformers_model(directory, dtype, "eager"))


def _sentence_transformers(directory: Path, dtype: str) -> Peer:
    return SentenceTransformersPeer(sentence_transformer(directory, dtype))


PEERS: dict[str, Callable[[Path, str], Peer]] = {
    "fastbert packed": _fastbert_packed,
    "fastbert padded call": _fastbert_padded,
    BASELINE: _sdpa,
    "transformers eager": _eager,
    "sentence-transformers": _sentence_transformers,
}
"""What can be measured, by name: from a model directory and a dtype to the loaded model."""


def transformers_model(directory: Path, dtype: str, attention: str) -> Any:
    """The BertModel of transformers, with the given attention."""
    from transformers import AutoModel, logging

    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(
        str(directory), dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return model.eval()


def sentence_transformer(directory: Path, dtype: str) -> Any:
    """sentence-transformers' model, as its users load it."""
    from sentence_transformers import SentenceTransformer
    from transformers import logging

    logging.disable_progress_bar()
    options = {"dtype": getattr(torch, dtype)}
    return SentenceTransformer(str(directory), device="cpu", model_kwargs=options).eval()


def float64_truth(directory: Path, workload: Workload) -> NDArray[np.float64]:
    """Hidden states (T, C) from transformers' eager float64 model, text by text: no padding."""
    model = transformers_model(directory, "float64", "eager")
    with torch.inference_mode():
        texts = [text for batch in workload.batches for text in batch]
        rows = [model(input_ids=torch.tensor([text])).last_hidden_state[0] for text in texts]
    return torch.cat(rows).numpy()


def worst_row(rows: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Largest ‖row − truth‖ / ‖truth‖; NaN if anything is NaN.

    Raises:
        ValueError: if the shapes differ.
    """
    if rows.shape != truth.shape:
        raise ValueError(f"{rows.shape} rows compared with {truth.shape}")
    return float(np.max(np.linalg.norm(rows - truth, axis=-1) / np.linalg.norm(truth, axis=-1)))


def candidate(
    name: str, peer: Peer, workload: Workload, truth: NDArray[np.float64], bound: float
) -> Candidate:
    """A peer on a workload, for the harness."""
    prepared = [peer.prepare(batch) for batch in workload.batches]

    def run() -> list[Tensor]:
        with torch.inference_mode():
            return [peer.run(batch) for batch in prepared]

    def error(hidden: list[Tensor]) -> float:
        pairs = zip(prepared, hidden, strict=True)
        rows = torch.cat([peer.rows(batch, states) for batch, states in pairs])
        return worst_row(rows.to(torch.float64).numpy(), truth)

    return Candidate(name, run, error, bound)
