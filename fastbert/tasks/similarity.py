"""How near two texts are in meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbert.sentence_encoder import SentenceEncoder
from fastbert.tasks.base import BATCH_TOKENS
from fastbert.tasks.encoder_task import EncoderTask, texts_at_once
from fastbert.tokenization.inputs import read_texts


class SentenceSimilarity(EncoderTask[SentenceEncoder]):
    """Scores of texts by their sentence vectors (Reimers and Gurevych 2019, arXiv 1908.10084).

    The score is the one that the encoder's directory names: cosine (from -1 to 1), where it names
    none; higher is nearer.
    """

    encoder_class = SentenceEncoder

    def __call__(
        self,
        firsts: str | Sequence[str],
        seconds: str | Sequence[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> float | list[float]:
        """Score each text of `firsts` with the one at the same place of `seconds`.

        Args:
            firsts: B texts, or one.
            seconds: as many.
            batch_tokens: most tokens computed at a time; counted by 128.
            progress: None shows a bar on a terminal if the work takes more than 2 s.

        Returns:
            B scores; one alone for two texts.

        Raises:
            TypeError: if something is no str, with its index, or one side is a list and one is not.
            ValueError: if the sides differ in number, or a text is not to be held in UTF-8.

        Warns:
            TruncationWarning: how many texts of a side were longer than the encoder takes.
        """
        single = isinstance(firsts, str) and isinstance(seconds, str)
        sides = [read_texts("first text", [firsts] if single else firsts)]
        sides.append(read_texts("second text", [seconds] if single else seconds))
        if len(sides[0]) != len(sides[1]):
            raise ValueError(f"{len(sides[0])} first texts, but {len(sides[1])} second ones")
        a, b = (self._vectors(side, batch_tokens, progress) for side in sides)
        scores = [float(self.encoder.similarity(u, v)[0, 0]) for u, v in zip(a, b, strict=True)]
        return scores[0] if single else scores

    def matrix(
        self,
        firsts: Sequence[str],
        seconds: Sequence[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> NDArray[np.float32]:
        """Score every text of `firsts` with every one of `seconds`; arguments as in a call.

        Returns:
            (A, B) float32.
        """
        sides = read_texts("first text", firsts), read_texts("second text", seconds)
        a, b = (self._vectors(side, batch_tokens, progress) for side in sides)
        scores: NDArray[np.float32] = self.encoder.similarity(a, b)
        return scores

    def _vectors(self, texts: list[str], batch_tokens: int, progress: bool | None) -> Any:
        size = texts_at_once(batch_tokens)
        return self.encoder.encode(texts, batch_size=size, show_progress_bar=progress)
