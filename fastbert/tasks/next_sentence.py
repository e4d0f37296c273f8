"""Next-sentence prediction: whether a text follows another."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from fastbert.heads import BertForNextSentencePrediction
from fastbert.messages import TruncationWarning
from fastbert.packing import Packed
from fastbert.tasks.base import BATCH_TOKENS, Task


@dataclass(frozen=True, slots=True)
class NextSentenceResult:
    """Whether the second text follows the first.

    Attributes:
        is_next: whether the score is at least one half.
        score: the probability that it does.
    """

    is_next: bool
    score: float


class _Options(TypedDict, total=False):
    batch_tokens: int
    progress: bool | None


class NextSentence(Task[BertForNextSentencePrediction]):
    """Whether a text follows another, from the head of BERT's second pretraining objective.

    Of the head's two logits the first says "is next" (Devlin et al. 2019, section 3.1, and their
    released code); a score is the softmax's share of it.
    """

    head = BertForNextSentencePrediction

    @overload
    def __call__(
        self, firsts: str, seconds: str, **options: Unpack[_Options]
    ) -> NextSentenceResult: ...

    @overload
    def __call__(
        self,
        firsts: list[str] | tuple[str, ...],
        seconds: list[str] | tuple[str, ...],
        **options: Unpack[_Options],
    ) -> list[NextSentenceResult]: ...

    def __call__(
        self,
        firsts: str | Sequence[str],
        seconds: str | Sequence[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> Any:
        """Judge pairs of texts.

        Args:
            firsts: B texts, or one.
            seconds: as many, each of which may follow its first.
            batch_tokens: most tokens computed at a time.
            progress: None shows a bar on a terminal if the work takes more than 2 s.

        Returns:
            One result a pair, in order; for two single texts the result alone.

        Raises:
            TypeError: something is no text, or one text stands beside a list.
            ValueError: as many second texts as first ones were expected; logits that are not
                finite, with the pair's index.

        Warns:
            TruncationWarning: how many pairs were longer than the model and were cut: the longer
                text of a pair at its end, until both are equally long, then both.
        """
        if isinstance(firsts, str) != isinstance(seconds, str):
            raise TypeError("firsts and seconds must be one str each, or a list of str each")
        ids, types, cut = self.tokenizer.encode_ids(
            [firsts] if isinstance(firsts, str) else firsts,
            [seconds] if isinstance(seconds, str) else seconds,
            max_length=self.max_length,
        )
        if cut:
            warnings.warn(TruncationWarning(cut, len(ids), self.max_length), stacklevel=2)
        scores = np.empty(len(ids))
        run = self._run(ids, types, self._scores, batch_tokens=batch_tokens, progress=progress)
        for indices, _, values in run:
            scores[indices] = values
        bad = np.flatnonzero(~np.isfinite(scores))
        if bad.size:
            raise ValueError(f"text {bad[0]}: the model's logits are not finite")
        results = [NextSentenceResult(score >= 0.5, score) for score in scores.tolist()]
        return results[0] if isinstance(firsts, str) else results

    def _scores(self, packed: Packed) -> NDArray[np.float64]:
        """(B,) probabilities of "is next"."""
        return (
            self.model(packed, return_dict=True).logits.double().softmax(dim=1)[:, 0].cpu().numpy()
        )
