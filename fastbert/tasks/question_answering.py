"""Extractive question answering: the part of a text that answers a question, or that none does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastbert.checks import check_int
from fastbert.heads import BertForQuestionAnswering
from fastbert.packing import Packed
from fastbert.tasks.answer_spans import Floats, Spans, best_spans
from fastbert.tasks.base import BATCH_TOKENS, Task
from fastbert.tasks.spans import whole_characters
from fastbert.tasks.texts import check_texts
from fastbert.windows import Bounds, windows

STRIDE = 128
"""Tokens that neighbouring windows share unless said otherwise, as in BERT's own recipe."""

_TEXTS_AT_A_TIME = 64  # the tokenizer's own record of a text is some fifty times its ids


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of a context, or that it holds no answer.

    Attributes:
        text: ``context[start:end]``; empty for no answer.
        score: its probability among all spans of the context and no answer.
        start, end: characters of the context as given, `end` exclusive; both 0 for no answer.
    """

    text: str
    score: float
    start: int
    end: int


class QuestionAnswering(Task[BertForQuestionAnswering]):
    """Find the answer to a question in a text of any length.

    A context that does not fit beside its question is read in windows that overlap. Candidates are
    the spans of at most `max_answer_tokens` tokens that lie whole in a window, and no answer::

        z(i, j) = start logit of token i + end logit of token j, i ≤ j, the highest over the windows
                  that hold the span
        z(none) = start logit + end logit of the first token, [CLS], the lowest over the windows
        p(c)    = exp(z(c)) / Σ exp(z(c')) over all candidates c' of all windows

    So there is one normalisation a question and context: scores of different windows compare, those
    of distinct answers and no answer together sum to at most 1, and asking for more answers, or for
    no answer too, changes none. z is the score of Devlin et al. 2019, sections 4.2 (spans) and 4.3
    (no answer); p is the probability that the head was trained for, the product of those of start
    and end, given that the two are a candidate. The lowest z(none), as in BERT's released
    `run_squad.py`: a text answers nothing only if no part of it does.

    Arguments and errors of the constructor: see `Task`.
    """

    head = BertForQuestionAnswering

    def __call__(
        self,
        questions: str | Sequence[str],
        contexts: str | Sequence[str],
        *,
        top_k: int = 1,
        no_answer: bool = False,
        max_answer_tokens: int = 30,
        stride: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> Any:
        """Answer one question or many.

        Args:
            questions: B questions, or one.
            contexts: B texts, or one. One question goes with every text, and one text with every
                question.
            top_k: most answers a question.
            no_answer: whether no answer may be among them.
            max_answer_tokens: most tokens of an answer.
            stride: tokens that neighbouring windows share: an overlap, not a step. None: 128, or
                half of the room beside the question where that is less. An answer of more than
                ``stride + 1`` tokens may lie whole in no window, and is no candidate then.
            batch_tokens: tokens computed at a time.
            progress: show a bar; None shows it on a terminal if the work takes more than 2 s.

        Returns:
            For two `str` and `top_k` 1 an `Answer`; for a larger `top_k` a `list[Answer]`, best
            first, all distinct, shorter where there are fewer candidates. Of equal scores the
            earlier answer comes first, then the shorter one, no answer last. For a list of
            questions or contexts a list of these.

            A context without tokens (empty, blank) has one candidate, no answer, which is returned
            with the score 1 whatever `no_answer` says.

        Raises:
            TypeError: something among the texts is no str, with its index.
            ValueError: each with its index: a question without tokens, or one that leaves no room
                for context; a stride that leaves a window no step forward; a lone surrogate; logits
                that are not finite. Also lists of different lengths, and numbers out of range.
        """
        asked, given = _read(questions, contexts)
        top_k = check_int("top_k", top_k, 1, 2**31 - 1)
        longest = check_int("max_answer_tokens", max_answer_tokens, 1, 2**31 - 1)
        if stride is not None:
            stride = check_int("stride", stride, 0, 2**31 - 1)
        jobs = self._jobs(asked, given, stride)
        answers: list[list[Answer]] = [[] for _ in jobs]
        for number in self._computed(jobs, batch_tokens, progress):
            answers[number] = jobs[number].answers(top_k, no_answer, longest)
        results = [found[0] for found in answers] if top_k == 1 else answers
        return results[0] if isinstance(questions, str) and isinstance(contexts, str) else results

    def _jobs(self, questions: list[str], contexts: list[str], stride: int | None) -> list[_Job]:
        """Tokenise each text once, however often it comes, and lay the windows."""
        asked = self._tokens(questions)
        given = self._tokens(contexts)
        special = self._special_tokens(pair=True)
        jobs = []
        for number, (question, context) in enumerate(zip(questions, contexts, strict=True)):
            ids, _ = asked[question]
            if not ids:
                raise ValueError(f"question {number} is empty: the tokenizer finds no token in it")
            room = self.max_length - special - len(ids)
            if room < 1:
                raise ValueError(
                    f"question {number} has {len(ids)} tokens and its row {special} special ones,"
                    f" which leaves no room for context in the {self.max_length} of a window"
                )
            overlap = min(STRIDE, room // 2) if stride is None else stride
            tokens, offsets = given[context]
            try:
                bounds = windows(len(tokens), room, overlap)
            except ValueError as error:
                raise ValueError(f"question {number}: {error}") from None
            jobs.append(_Job(ids, context, tokens, offsets, bounds if tokens else []))
        return jobs

    def _tokens(self, texts: list[str]) -> dict[str, tuple[list[int], NDArray[np.int32]]]:
        """Ids (N,) of every distinct text, and the characters (N, 2) of each token."""
        distinct = list(dict.fromkeys(texts))
        found = {}
        for begin in range(0, len(distinct), _TEXTS_AT_A_TIME):
            part = distinct[begin : begin + _TEXTS_AT_A_TIME]
            encoded = self.tokenizer(
                part, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            columns = (part, encoded["input_ids"], encoded["offset_mapping"])
            for text, ids, offsets in zip(*columns, strict=True):
                whole = np.array(whole_characters(text, offsets), np.int32).reshape(-1, 2)
                found[text] = (ids, whole)
        return found

    def _computed(
        self, jobs: list[_Job], batch_tokens: int, progress: bool | None
    ) -> Iterator[int]:
        """Compute all windows; yield the number of each job whose logits are complete."""
        ids: list[list[int]] = []
        types: list[list[int]] = []
        origin: list[tuple[int, int, int]] = []  # job, window, where the context begins
        for number, job in enumerate(jobs):
            if not job.bounds:
                yield number
            for window, (start, end) in enumerate(job.bounds):
                row, kinds, (_, begin) = self.tokenizer.build_row(
                    job.question, job.tokens[start:end]
                )
                assert begin is not None  # for the type checker: there is a second text
                ids.append(row)
                types.append(kinds)
                origin.append((number, window, begin))
        batches = self._run(ids, types, self._logits, batch_tokens=batch_tokens, progress=progress)
        for indices, packed, logits in batches:
            parts = np.split(logits, packed.cu_seqlens[1:-1], axis=1)  # (2, tokens) each
            for index, part in zip(indices, parts, strict=True):
                number, window, begin = origin[index]
                if not np.isfinite(part).all():
                    raise ValueError(f"question {number}: the model's logits are not finite")
                if jobs[number].take(window, part, begin):
                    yield number

    def _logits(self, packed: Packed) -> Floats:
        output = self.model(packed, return_dict=True)
        return torch.stack([output.start_logits, output.end_logits]).double().cpu().numpy()


@dataclass(slots=True)
class _Job:
    """A question and a context on their way through the model."""

    question: list[int]
    context: str
    tokens: list[int]
    offsets: NDArray[np.int32]  # (N, 2)
    bounds: Bounds
    logits: dict[int, Floats] = field(default_factory=dict)  # window → (2, its tokens)
    none: float = np.inf

    def take(self, window: int, logits: Floats, begin: int) -> bool:
        """Keep a window's logits, its row's first; return whether it was the last to come."""
        start, end = self.bounds[window]
        self.logits[window] = logits[:, begin : begin + end - start].copy()
        self.none = min(self.none, float(logits[:, 0].sum()))
        return len(self.logits) == len(self.bounds)

    def answers(self, top_k: int, no_answer: bool, longest: int) -> list[Answer]:
        """The best answers; the logits are given up."""
        if not self.bounds:
            return [Answer("", 1.0, 0, 0)]
        starts, ends = zip(*(self.logits.pop(i) for i in range(len(self.bounds))), strict=True)
        # Several tokens may lie within one character, so spans of tokens may show the same text.
        alike = [
            int(np.unique(self.offsets[:, side], return_counts=True)[1].max()) for side in (0, 1)
        ]
        spans = best_spans(self.bounds, starts, ends, longest, top_k * alike[0] * alike[1])
        total = float(np.logaddexp(spans.log_total, self.none))
        found = self._distinct(spans, total)[:top_k]
        if no_answer:
            place = int(np.searchsorted([-a[0] for a in found], -self.none, side="right"))
            found.insert(place, (self.none, Answer("", float(np.exp(self.none - total)), 0, 0)))
        return [answer for _, answer in found[:top_k]]

    def _distinct(self, spans: Spans, total: float) -> list[tuple[float, Answer]]:
        found: dict[tuple[int, int], tuple[float, Answer]] = {}
        for score, first, last in zip(spans.scores, spans.first, spans.last, strict=True):
            start, end = int(self.offsets[first, 0]), int(self.offsets[last, 1])
            answer = Answer(self.context[start:end], float(np.exp(score - total)), start, end)
            found.setdefault((start, end), (float(score), answer))
        return list(found.values())


def _read(questions: object, contexts: object) -> tuple[list[str], list[str]]:
    """B questions and B contexts; a single text stands for as many as there are of the others."""
    asked = check_texts("question", [questions] if isinstance(questions, str) else questions)
    given = check_texts("context", [contexts] if isinstance(contexts, str) else contexts)
    if isinstance(questions, str):
        asked *= len(given)
    elif isinstance(contexts, str):
        given *= len(asked)
    if len(asked) != len(given):
        raise ValueError(f"{len(asked)} questions, but {len(given)} contexts")
    return asked, given
