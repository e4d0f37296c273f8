"""Filling masks: which tokens the masked language model expects where `[MASK]` stands."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, overload

import torch

from fastbert.checks import check_int, short
from fastbert.heads import BertForMaskedLM
from fastbert.messages import TruncationWarning
from fastbert.packing import Packed
from fastbert.tasks.base import BATCH_TOKENS, Task
from fastbert.tokenization.inputs import read_texts

_ROWS = 64
"""Masks whose logits stand in memory at a time, V float64 numbers each."""


@dataclass(frozen=True, slots=True)
class Fill:
    """A token for a mask.

    Attributes:
        token: as text; a piece that goes on a word keeps its mark, "##s".
        token_id: its id.
        score: its probability among all tokens of the vocabulary.
        text: the whole text with this one mask filled, as the tokenizer decodes it: without special
            tokens where it was the text's only mask, else with them, the other masks among them.
        start, end: characters of the mask in the text as given.
    """

    token: str
    token_id: int
    score: float
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Masked:
    """A text on its way.

    Attributes:
        ids, types: what the model sees.
        whole: ids of the text uncut.
        spans: characters of each mask.
    """

    ids: list[int]
    types: list[int]
    whole: list[int]
    spans: list[tuple[int, int]]


class _Options(TypedDict, total=False):
    top_k: int
    targets: str | Sequence[str] | None
    batch_tokens: int
    progress: bool | None


class FillMask(Task[BertForMaskedLM]):
    """Tokens for the masks of texts, from a masked language model's head.

    The mask is the tokenizer's `mask_token`, written as it stands: under a lower-casing tokenizer
    too, `[mask]` is three tokens of plain text. Masks of one text are filled each by itself, while
    the others stay masks (their probabilities are no joint ones). Only masks go through the
    decoder, never the other tokens.
    """

    head = BertForMaskedLM

    @overload
    def __call__(self, texts: str, **options: Unpack[_Options]) -> list[list[Fill]]: ...

    @overload
    def __call__(
        self, texts: list[str] | tuple[str, ...], **options: Unpack[_Options]
    ) -> list[list[list[Fill]]]: ...

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> Any:
        """Fill the masks of texts.

        Args:
            texts: B texts, or one, each with a mask or several; a blank one has none.
            top_k: tokens for each mask, at most V, or all targets if they are fewer.
            targets: only these words come into question; their scores stay those among all tokens.
                Each must be exactly one token; one that is given twice counts once.
            batch_tokens: most tokens computed at a time.
            progress: None shows a bar on a terminal if the work takes more than 2 s.

        Returns:
            For each text one list a mask, in the order of the text, with its tokens, best first;
            for one text its lists alone.

        Raises:
            TypeError: something among the texts or targets is no str.
            ValueError: the vocabulary has no mask token; a text has none, or one that lies beyond
                the model's length, with the text's index; a target that is not one token, by name;
                `top_k` out of range. Nothing was computed then. Also logits that are not finite.

        Warns:
            TruncationWarning: how many texts were cut, all behind (or before) their masks.
        """
        mask_id = self._mask_id()
        check_int("top_k", top_k, 1, self.config.vocab_size)
        wanted = None if targets is None else torch.tensor(self._target_ids(targets))
        listed = read_texts("text", [texts] if isinstance(texts, str) else texts)
        rows = self._masked(listed, mask_id)
        most = top_k if wanted is None else min(top_k, len(wanted))

        def compute(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
            return self._best(packed, mask_id, wanted, most)

        fills: list[list[list[Fill]]] = [[] for _ in rows]
        ids, types = [row.ids for row in rows], [row.types for row in rows]
        run = self._run(ids, types, compute, batch_tokens=batch_tokens, progress=progress)
        for indices, _, (scores, tokens) in run:
            counts = [len(rows[i].spans) for i in indices]
            parts = zip(indices, scores.split(counts), tokens.split(counts), strict=True)
            for i, row_scores, row_tokens in parts:
                if not row_scores.isfinite().all():
                    raise ValueError(f"text {i}: the model's logits are not finite")
                fills[i] = self._fills(rows[i], mask_id, row_scores.tolist(), row_tokens.tolist())
        return fills[0] if isinstance(texts, str) else fills

    def _mask_id(self) -> int:
        token, V = self.tokenizer.mask_token_id, self.config.vocab_size
        # A mask token that the settings name and the vocabulary lacks gets the id after the last.
        if token is None or token >= V:
            found = "no token" if token is None else f"token {token}, the model ends at {V - 1}"
            raise ValueError(f"the vocabulary has no mask token ({found}): nothing to fill")
        return token

    def _target_ids(self, targets: str | Sequence[str]) -> list[int]:
        words = read_texts("target", [targets] if isinstance(targets, str) else targets)
        if not words:
            raise ValueError("targets is empty, expected at least one word (or None)")
        vocabulary = self.tokenizer.get_vocab()
        ids: dict[int, None] = {}
        for word in words:
            index = vocabulary.get(word)
            if index is None:
                found = self.tokenizer(word, add_special_tokens=False)["input_ids"]
                if found == [self.tokenizer.unk_token_id]:
                    raise ValueError(f"target {short(word)} is not in the vocabulary")
                if len(found) != 1:
                    raise ValueError(f"target {short(word)} is {len(found)} tokens, expected one")
                index = found[0]
            if index >= self.config.vocab_size:
                raise ValueError(
                    f"target {short(word)} is token {index}, the model ends at"
                    f" {self.config.vocab_size - 1}"
                )
            ids[index] = None
        return list(ids)

    def _masked(self, texts: list[str], mask_id: int) -> list[_Masked]:
        """Tokenise, and refuse texts without a mask or with one that the model would not see."""
        read = self.tokenizer(texts, return_offsets_mapping=True, verbose=False)
        rows: list[_Masked] = []
        cut = 0
        for i, text in enumerate(texts):
            ids = whole = read["input_ids"][i]
            types = read["token_type_ids"][i]
            spans = [
                _tight(text, span)
                for span, token in zip(read["offset_mapping"][i], ids, strict=True)
                if token == mask_id
            ]
            if not spans and text.strip():
                raise ValueError(f"text {i} has no {self.tokenizer.mask_token} to fill")
            if len(ids) > self.max_length:
                cut += 1
                kept = self.tokenizer(text, truncation=True, max_length=self.max_length)
                ids, types = kept["input_ids"], kept["token_type_ids"]
                if ids.count(mask_id) < len(spans):
                    raise ValueError(
                        f"text {i} has {len(whole)} tokens, and a {self.tokenizer.mask_token}"
                        f" beyond the {self.max_length} that the model takes"
                    )
            rows.append(_Masked(ids, types, whole, spans))
        if cut:
            warnings.warn(TruncationWarning(cut, len(texts), self.max_length), stacklevel=3)
        return rows

    def _best(
        self, packed: Packed, mask_id: int, wanted: torch.Tensor | None, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and ids, (M, most) each on the CPU, of the M masks of a batch."""
        hidden = self.model.bert(packed, return_dict=True).last_hidden_state  # (T, C)
        masks = (packed.input_ids == mask_id).nonzero()[:, 0]  # (M,)
        found = []
        for rows in masks.split(_ROWS):
            scores = self.model.predict(hidden[rows]).double().softmax(dim=1)  # (≤ _ROWS, V)
            if wanted is not None:
                scores = scores[:, wanted.to(scores.device)]
            found.append(scores.topk(most, dim=1))
        scores = torch.cat([part.values for part in found]).cpu()
        places = torch.cat([part.indices for part in found]).cpu()
        return scores, places if wanted is None else wanted[places]

    def _fills(
        self, row: _Masked, mask_id: int, scores: list[list[float]], tokens: list[list[int]]
    ) -> list[list[Fill]]:
        places = [place for place, token in enumerate(row.whole) if token == mask_id]
        alone = len(places) == 1
        pad, decode = self.tokenizer.pad_token_id, self.tokenizer.decode
        fills: list[list[Fill]] = []
        for place, (start, end), some, best in zip(places, row.spans, tokens, scores, strict=True):
            fills.append([])
            for token, score in zip(some, best, strict=True):
                ids = [*row.whole[:place], token, *row.whole[place + 1 :]]
                text = decode([i for i in ids if i != pad], skip_special_tokens=alone)
                fills[-1].append(Fill(decode([token]), token, score, text, start, end))
        return fills


def _tight(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """The span without white space at its ends, which a mask token may be set to swallow."""
    part = text[slice(*span)]
    return span[0] + len(part) - len(part.lstrip()), span[1] - len(part) + len(part.rstrip())
