"""Semantic search: the documents nearest in meaning to a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbert.checks import check_int
from fastbert.sentence_encoder import SentenceEncoder
from fastbert.similarity import similarity
from fastbert.tasks.base import BATCH_TOKENS
from fastbert.tasks.encoder_task import EncoderTask, texts_at_once
from fastbert.tokenization.inputs import read_texts

DOCUMENTS_AT_ONCE = 8192
QUERIES_AT_ONCE = 64
"""Their product bounds the scores in memory: 2 MiB, however many documents there are."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document found.

    Attributes:
        index: its place in the order of adding.
        score: how near it is to the query; higher is nearer.
        text: the document.
    """

    index: int
    score: float
    text: str


class SemanticSearch(EncoderTask[SentenceEncoder]):
    """Documents by the nearness of their sentence vectors to a query's; every one is looked at.

    Queries and documents get the prompts that the encoder's directory has for them. The score is
    the one that it names: cosine where it names none.
    """

    encoder_class = SentenceEncoder

    def _prepare(self) -> None:
        self._texts: list[str] = []
        # Grown by doubling, so that adding one by one does not copy everything each time.
        self._vectors = np.empty((0, self.encoder.dimension), np.float32)
        # A cosine is the dot product of unit vectors: the norms are taken once, while adding.
        self._unit = self.encoder.settings.similarity_fn_name == "cosine"
        self._similarity = "dot" if self._unit else self.encoder.settings.similarity_fn_name

    def __len__(self) -> int:
        """Documents added."""
        return len(self._texts)

    def add(
        self,
        documents: Sequence[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> None:
        """Take documents in; after an error none of them is.

        Args:
            documents: B texts.
            batch_tokens: most tokens computed at a time; counted by 128.
            progress: None shows a bar on a terminal if the work takes more than 2 s.

        Raises:
            TypeError: if something is no str, with its index.
            ValueError: if UTF-8 can't hold a text.

        Warns:
            TruncationWarning: how many documents were longer than the encoder takes.
        """
        texts = read_texts("document", documents)
        options = self._options(batch_tokens, progress)
        vectors = self.encoder.encode_document(texts, **options)
        count = len(self._texts)
        total = count + len(texts)
        if total > len(self._vectors):
            grown = np.empty((max(total, 2 * count), self.encoder.dimension), np.float32)
            grown[:count] = self._vectors[:count]
            self._vectors = grown
        self._vectors[count:total] = vectors
        self._texts += texts

    def __call__(
        self,
        queries: str | Sequence[str],
        top_k: int = 10,
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """The documents nearest to each query, best first; of equal ones the one added first.

        Args:
            queries: B texts, or one.
            top_k: how many to find for each, as far as there are so many.
            batch_tokens, progress: as for `add`.

        Returns:
            A list of hits a query; one alone for one query.

        Raises:
            TypeError: if something is no str, with its index.
            ValueError: if `top_k` is below 1, or UTF-8 can't hold a text.

        Warns:
            TruncationWarning: how many queries were longer than the encoder takes.
        """
        check_int("top_k", top_k, 1, 2**63 - 1)
        texts = read_texts("query", [queries] if isinstance(queries, str) else queries)
        vectors = self.encoder.encode_query(texts, **self._options(batch_tokens, progress))
        found: list[list[Hit]] = []
        for start in range(0, len(texts), QUERIES_AT_ONCE):
            found += self._search(vectors[start : start + QUERIES_AT_ONCE], top_k)
        return found[0] if isinstance(queries, str) else found

    def _options(self, batch_tokens: int, progress: bool | None) -> dict[str, Any]:
        return {
            "batch_size": texts_at_once(batch_tokens),
            "show_progress_bar": progress,
            "normalize_embeddings": self._unit,
        }

    def _search(self, queries: NDArray[np.float32], top_k: int) -> list[list[Hit]]:
        best = [_Best(top_k) for _ in queries]
        for start in range(0, len(self), DOCUMENTS_AT_ONCE):
            block = self._vectors[start : min(start + DOCUMENTS_AT_ONCE, len(self))]
            scores = similarity(queries, block, self._similarity)  # (queries, documents)
            for one, row in zip(best, scores, strict=True):
                one.take(row, start)
        return [
            [Hit(i, score, self._texts[i]) for i, score in zip(*one.sorted(), strict=True)]
            for one in best
        ]


class _Best:
    """The best documents of one query so far, best first."""

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self.scores = np.empty(0, np.float32)
        self.places = np.empty(0, np.int64)

    def take(self, row: NDArray[np.float32], start: int) -> None:
        """Look at the scores of the documents from `start` on."""
        if len(self.scores) == self.top_k:  # a later document must be better than the last here
            new = np.flatnonzero(row > self.scores[-1])
        else:
            new = np.arange(len(row))
        scores = np.concatenate([self.scores, row[new]])
        order = np.argsort(-scores, kind="stable")[: self.top_k]
        self.scores = scores[order]
        self.places = np.concatenate([self.places, new + start])[order]

    def sorted(self) -> tuple[list[int], list[float]]:
        """Places and scores."""
        return self.places.tolist(), self.scores.tolist()
