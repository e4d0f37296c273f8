"""Reranking: documents by how well each answers a query, both read together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastbert.cross_encoder import CrossEncoder
from fastbert.tasks.base import BATCH_TOKENS
from fastbert.tasks.encoder_task import EncoderTask, texts_at_once


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document in its rank.

    Attributes:
        index: its place in the list given.
        score: how well it fits the query; higher is better.
        text: the document.
    """

    index: int
    score: float
    text: str


class Reranking(EncoderTask[CrossEncoder]):
    """Documents in the order of a cross-encoder's scores.

    Raises:
        ValueError: also if the checkpoint gives several scores a pair.
    """

    encoder_class = CrossEncoder

    def _prepare(self) -> None:
        if self.encoder.num_labels != 1:
            raise ValueError(
                f"the checkpoint gives {self.encoder.num_labels} scores a pair, reranking needs one"
            )

    def __call__(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> list[Ranked]:
        """Rank documents for a query, best first; of equal scores the first stays first.

        Args:
            query: a text.
            documents: B texts.
            top_k: how many to return; None for all.
            batch_tokens: most tokens computed at a time; counted by 128.
            progress: None shows a bar on a terminal if the work takes more than 2 s.

        Returns:
            At most `top_k` documents; none for none.

        Raises:
            TypeError: if something is no str, with its index.
            ValueError: if `top_k` is below 1, or UTF-8 can't hold a text.

        Warns:
            TruncationWarning: how many pairs were longer than the model takes and were cut.
        """
        size = texts_at_once(batch_tokens)
        ranked = self.encoder.rank(
            query, documents, top_k, batch_size=size, show_progress_bar=progress
        )
        return [Ranked(r["corpus_id"], r["score"], documents[r["corpus_id"]]) for r in ranked]
