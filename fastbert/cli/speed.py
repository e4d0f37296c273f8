"""Packed against padded on the same texts: outputs compared first, then timed, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastbert.cli.padded import pad, padded_forward
from fastbert.cli.parity import BARS, Difference, load_transformers, to_rows, transformers_installed
from fastbert.cli.timing import Timing, interleave
from fastbert.packing import pack, token_budget_batches
from fastbert.sentence_encoder import TOKENS_PER_TEXT

if TYPE_CHECKING:
    from fastbert.sentence_encoder import SentenceEncoder

BATCH_TEXTS = 32  # sentence-transformers' default, and what `encode` packs by
TOKENS = 4096  # enough for a steady figure, few enough for one core

Ids = Sequence[Sequence[int]]
Candidate = Callable[[], list[Tensor]]
Forward = Callable[[Tensor, Tensor], Tensor]  # ids and mask (B, S) -> (B, S, C)


@dataclass(frozen=True)
class Speed:
    """What was measured: seconds and the share of computed tokens that is padding, by name."""

    texts: int
    tokens: int
    device: str
    threads: int
    timings: dict[str, Timing]
    padding: dict[str, float]

    @property
    def rounds(self) -> int:
        """Timed rounds."""
        return len(self.timings["packed"].seconds)


def within_tokens(
    encoder: SentenceEncoder, texts: Sequence[str], tokens: int = TOKENS
) -> list[str]:
    """Return texts from all over the given ones, in order, of about ``tokens`` tokens in all."""
    lengths = [len(row) for row in token_ids(encoder, texts)]
    step = max(1, round(sum(lengths) / tokens))
    return list(texts[::step])


def token_ids(encoder: SentenceEncoder, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text, cut to the encoder's length."""
    return encoder.tokenizer.encode_ids(list(texts), max_length=encoder.max_length).ids


class _Candidates:
    """The ways to the same hidden states, each giving (n, C) a text, in the order of ``ids``."""

    def __init__(self, encoder: SentenceEncoder, ids: Ids) -> None:
        self.encoder = encoder
        self.ids = ids
        self.pad_id = encoder.config.pad_token_id or 0
        self.padding: dict[str, float] = {}

    def all(self) -> dict[str, Candidate]:
        """Return them by name, packed first."""
        given = list(range(len(self.ids)))
        by_length = sorted(given, key=lambda i: -len(self.ids[i]))
        ours = partial(padded_forward, self.encoder.model)
        self.padding["packed"] = 0.0
        found: dict[str, Candidate] = {"packed": self._packed}
        for name, order in (("sorted by length", by_length), ("as they come", given)):
            found[f"padded, {name}"] = self._padded(f"padded, {name}", ours, order)
        if transformers_installed():
            name = "transformers (sdpa), sorted"
            found[name] = self._padded(name, self._transformers(), by_length)
        return found

    def _transformers(self) -> Forward:
        model = self.encoder.model
        directory = self.encoder.settings.transformer_directory
        theirs = load_transformers(directory, model.dtype).to(model.device)

        def forward(ids: Tensor, mask: Tensor) -> Tensor:
            hidden: Tensor = theirs(ids, attention_mask=mask.long()).last_hidden_state
            return hidden

        return forward

    def _packed(self) -> list[Tensor]:
        rows: list[Any] = [None] * len(self.ids)
        lengths = [len(row) for row in self.ids]
        for chosen in token_budget_batches(lengths, BATCH_TEXTS * TOKENS_PER_TEXT):
            packed = pack([self.ids[int(i)] for i in chosen]).to(self.encoder.device)
            hidden = self.encoder.model.encode(packed).cpu()  # (T, C)
            for i, row in zip(chosen, hidden.split([lengths[int(i)] for i in chosen]), strict=True):
                rows[int(i)] = row
        return rows

    def _padded(self, name: str, forward: Forward, order: list[int]) -> Candidate:
        groups = [order[i : i + BATCH_TEXTS] for i in range(0, len(order), BATCH_TEXTS)]
        lengths = [len(row) for row in self.ids]
        computed = sum(len(group) * max(lengths[i] for i in group) for group in groups)
        self.padding[name] = 1 - sum(lengths) / computed

        def run() -> list[Tensor]:
            rows: list[Any] = [None] * len(self.ids)
            for group in groups:
                ids, mask = pad([self.ids[i] for i in group], self.pad_id)
                device = self.encoder.device
                hidden = forward(ids.to(device), mask.to(device)).cpu()  # (B, S, C)
                for row, i in enumerate(group):
                    rows[i] = hidden[row, : lengths[i]]
            return rows

        return run


def check_agreement(candidates: dict[str, Candidate], dtype: str) -> None:
    """Compare every candidate's states with those of the first, token by token.

    Raises:
        ValueError: one of them misses the cosine that its precision must reach.
    """
    bar = BARS[dtype]
    first, *others = candidates
    want = np.concatenate([to_rows(row) for row in candidates[first]()])
    for name in others:
        difference = Difference()
        difference.add(np.concatenate([to_rows(row) for row in candidates[name]()]), want)
        if difference.cosine_mean < bar.cosine_mean or difference.cosine_min < bar.cosine_min:
            raise ValueError(
                f"{name}: hidden states differ from those of {first}, "
                f"cosine {difference.cosine_min:.6f}; nothing was timed"
            )


def measure(encoder: SentenceEncoder, texts: Sequence[str], rounds: int = 5) -> Speed:
    """Time packed against padded batches of ``texts`` after checking that they agree.

    Args:
        encoder: whose model, tokenizer and device are used.
        texts: of which about ``TOKENS`` tokens are taken.
        rounds: timed rounds; the medians are over these.

    Raises:
        ValueError: the outputs disagree.
    """
    ids = token_ids(encoder, within_tokens(encoder, texts))
    ways = _Candidates(encoder, ids)
    with torch.inference_mode():
        candidates = ways.all()
        # Each candidate runs here once, which warms it up too.
        check_agreement(candidates, str(encoder.model.dtype).removeprefix("torch."))
        timings = interleave(candidates, rounds)
    return Speed(
        texts=len(ids),
        tokens=sum(map(len, ids)),
        device=str(encoder.device),
        threads=torch.get_num_threads(),
        timings=timings,
        padding=ways.padding,
    )
