"""Multiple choice: which of several texts goes best with a prompt."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fastbert.heads import BertForMultipleChoice
from fastbert.messages import TruncationWarning
from fastbert.packing import Packed
from fastbert.tasks.base import BATCH_TOKENS, Task
from fastbert.tasks.texts import check_texts


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a prompt's choices.

    Attributes:
        index: its place among the choices as given.
        text: the choice.
        score: its probability; those of a prompt's choices sum to 1.
    """

    index: int
    text: str
    score: float


class MultipleChoice(Task[BertForMultipleChoice]):
    """Rank a prompt's choices by softmax over the scores of the pairs (prompt, choice).

    p(i) = exp(z_i) / Σ_j exp(z_j) over the choices j of the same prompt, where z is the head's
    logit of ``[CLS] prompt [SEP] choice [SEP]``.

    Arguments and errors of the constructor: see `Task`.

    Source: Devlin et al. 2019, section 4.4.
    """

    head = BertForMultipleChoice

    @overload
    def __call__(
        self,
        prompts: str,
        choices: Sequence[str],
        *,
        batch_tokens: int = ...,
        progress: bool | None = ...,
    ) -> list[Choice]: ...

    @overload
    def __call__(
        self,
        prompts: list[str] | tuple[str, ...],
        choices: Sequence[Sequence[str]],
        *,
        batch_tokens: int = ...,
        progress: bool | None = ...,
    ) -> list[list[Choice]]: ...

    def __call__(
        self,
        prompts: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> Any:
        """Rank the choices of one prompt or of a list of prompts.

        Args:
            prompts: a text, or B of them; an empty one is a text too.
            choices: of one prompt: its choices. Of B prompts: B lists of choices, of any lengths
                from 1 on.
            batch_tokens: tokens computed at a time.
            progress: show a bar; None shows it on a terminal if the work takes more than 2 s.

        Returns:
            `list[Choice]` for one prompt, best first, of equal scores the one given first; for B
            prompts a list of B such lists.

        Raises:
            TypeError: something is no text or no list of texts, with its index.
            ValueError: a prompt without choices, lists of different lengths, a lone surrogate, each
                with its index; logits that are not finite.

        Warns:
            TruncationWarning: pairs were longer than `max_length` and lost tokens of the longer
                text first.
        """
        single = isinstance(prompts, str)
        firsts = check_texts("prompt", [prompts] if single else prompts)
        seconds = _read_choices([choices] if single else choices, len(firsts))
        if not firsts:
            return []
        encoded = self.tokenizer.encode_ids(
            [prompt for prompt, own in zip(firsts, seconds, strict=True) for _ in own],
            [choice for own in seconds for choice in own],
            max_length=self.max_length,
            truncation="longest_first",
        )
        if encoded.truncated:
            cut = TruncationWarning(encoded.truncated, len(encoded.ids), self.max_length)
            warnings.warn(cut, stacklevel=2)
        logits = np.empty(len(encoded.ids))
        batches = self._run(
            encoded.ids, encoded.types, self._logits, batch_tokens=batch_tokens, progress=progress
        )
        for indices, _, values in batches:
            logits[indices] = values
        bounds = pairwise(accumulate(map(len, seconds), initial=0))
        ranked = [
            _ranked(number, own, logits[start:end])
            for number, (own, (start, end)) in enumerate(zip(seconds, bounds, strict=True))
        ]
        return ranked[0] if single else ranked

    def _logits(self, packed: Packed) -> NDArray[np.float64]:
        # One choice a prompt: how many a prompt has is settled later, so they may differ.
        output = self.model(packed, num_choices=1, return_dict=True)
        return output.logits[:, 0].double().cpu().numpy()


def _read_choices(choices: object, count: int) -> list[list[str]]:
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence):
        raise TypeError(f"choices is a {type(choices).__name__}, expected a list of lists of str")
    if len(choices) != count:
        raise ValueError(f"{count} prompts, but {len(choices)} lists of choices")
    read = [check_texts(f"prompt {number}, choice", own) for number, own in enumerate(choices)]
    for number, own in enumerate(read):
        if not own:
            raise ValueError(f"prompt {number} has no choices, expected at least one")
    return read


def _ranked(number: int, texts: list[str], logits: NDArray[np.float64]) -> list[Choice]:
    if not np.isfinite(logits).all():
        raise ValueError(f"prompt {number}: the model's logits are not finite")
    weights = np.exp(logits - logits.max())
    scores = weights / weights.sum()
    order = np.argsort(-logits, kind="stable")
    return [Choice(int(i), texts[i], float(scores[i])) for i in order]
