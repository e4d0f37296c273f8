"""Text classification, sentiment included: what the labels of a checkpoint say about texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray

from fastbert.checks import check_choice, check_int
from fastbert.config import BertConfig
from fastbert.heads import BertForSequenceClassification
from fastbert.long_text import Folded, WindowRows, read_tokens
from fastbert.messages import TruncationWarning
from fastbert.packing import Packed
from fastbert.tasks.base import BATCH_TOKENS, Task

FUNCTIONS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True, slots=True)
class Label:
    """A label of the checkpoint and its score.

    Attributes:
        label: its name in the config.
        score: a probability, or with the function "none" the bare output.
    """

    label: str
    score: float


class _Options(TypedDict, total=False):
    top_k: int | None
    function: str | None
    combine: str | None
    stride: int
    batch_tokens: int
    progress: bool | None


class TextClassification(Task[BertForSequenceClassification]):
    """Labels of texts, or of pairs of texts, from a sequence classification head."""

    head = BertForSequenceClassification

    @overload
    def __call__(
        self, texts: str, pairs: str | None = ..., **options: Unpack[_Options]
    ) -> list[Label]: ...

    @overload
    def __call__(
        self,
        texts: list[str] | tuple[str, ...],
        pairs: list[str] | tuple[str, ...] | None = ...,
        **options: Unpack[_Options],
    ) -> list[list[Label]]: ...

    def __call__(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        top_k: int | None = 1,
        function: str | None = None,
        combine: str | None = None,
        stride: int = 0,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> Any:
        """Classify texts.

        Args:
            texts: B texts, or one.
            pairs: B second texts, or one beside one text.
            top_k: labels of each text; None for all. More than there are give all.
            function: what makes scores of the logits: softmax, sigmoid or none. None decides as
                transformers' pipeline does: none for a regression, sigmoid where several labels may
                hold or there is but one, else softmax.
            combine: None cuts a text that is longer than the model. sum, mean or max instead reads
                it all, in windows, and combines the windows' logits before the function is applied
                (see `long_text`); not for pairs.
            stride: tokens that neighbouring windows share.
            batch_tokens: most tokens computed at a time.
            progress: None shows a bar on a terminal if the work takes more than 2 s.

        Returns:
            Labels of each text, best first (equal ones in the config's order); for one text its
            labels alone. A blank text without a pair has none.

        Raises:
            TypeError: something among the texts is no str; one text beside several pairs.
            ValueError: as many pairs as texts were expected; pairs with `combine`; a stride without
                `combine` or as long as a window; another function; `top_k` below 1; logits that are
                not finite, with the text's index.

        Warns:
            TruncationWarning: how many texts were cut.
        """
        most = self.config.num_labels
        if top_k is not None:
            most = min(most, check_int("top_k", top_k, 1, 2**31 - 1))
        if function is None:
            function = _default_function(self.config)
        check_choice("function", function, FUNCTIONS)
        if pairs is not None and isinstance(texts, str) != isinstance(pairs, str):
            raise TypeError("texts and pairs must be one str each, or a list of str each")
        firsts = [texts] if isinstance(texts, str) else texts
        seconds = [pairs] if isinstance(pairs, str) else pairs
        if combine is None:
            if stride:
                raise ValueError(f"stride is {stride!r}, but combine None cuts texts: no windows")
            logits = self._cut_logits(firsts, seconds, batch_tokens, progress)
        elif seconds is not None:
            raise ValueError(
                f"combine is {combine!r}, but a pair has no windows: pass combine=None, or a text"
                " without a pair"
            )
        else:
            logits = self._long_logits(firsts, combine, stride, batch_tokens, progress)
        blank = [seconds is None and not text.strip() for text in firsts]
        rows = zip(_scores(logits, function), blank, strict=True)
        labels = [[] if empty else self._labels(scores, most) for scores, empty in rows]
        return labels[0] if isinstance(texts, str) else labels

    def _cut_logits(
        self,
        firsts: Sequence[str],
        seconds: Sequence[str] | None,
        batch_tokens: int,
        progress: bool | None,
    ) -> NDArray[np.float64]:
        """(B, K) logits, K labels, of texts cut where the model ends."""
        ids, types, cut = self.tokenizer.encode_ids(firsts, seconds, max_length=self.max_length)
        if cut:
            warnings.warn(TruncationWarning(cut, len(ids), self.max_length), stacklevel=3)
        logits = np.empty((len(ids), self.config.num_labels))
        run = self._run(ids, types, self._logits, batch_tokens=batch_tokens, progress=progress)
        for indices, _, values in run:
            logits[indices] = values
        return logits

    def _long_logits(
        self,
        texts: Sequence[str],
        combine: str,
        stride: int,
        batch_tokens: int,
        progress: bool | None,
    ) -> NDArray[np.float64]:
        """(B, K) combined logits of every window."""
        tokens = read_tokens(self.tokenizer, texts)
        rows = WindowRows(self.tokenizer, tokens, self.max_length, stride)
        folded = Folded(rows.counts, self.config.num_labels, combine)
        run = self._run(
            rows, rows.types, self._logits, batch_tokens=batch_tokens, progress=progress
        )
        for indices, _, values in run:
            folded.add(rows.owners[indices], values)
        return folded.result()

    def _logits(self, packed: Packed) -> NDArray[np.float64]:
        return self.model(packed, return_dict=True).logits.double().cpu().numpy()

    def _labels(self, scores: NDArray[np.float64], most: int) -> list[Label]:
        order = np.argsort(-scores, kind="stable")[:most]
        return [Label(self.config.id2label[int(i)], float(scores[i])) for i in order]


def _default_function(config: BertConfig) -> str:
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def _scores(logits: NDArray[np.float64], function: str) -> NDArray[np.float64]:
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise ValueError(f"text {bad[0]}: the model's logits are not finite")
    tensor = torch.from_numpy(logits)
    if function == "softmax":
        return tensor.softmax(dim=1).numpy()
    return tensor.sigmoid().numpy() if function == "sigmoid" else logits
