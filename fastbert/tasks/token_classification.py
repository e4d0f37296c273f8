"""Token classification: named entities in texts, and one tag a word for texts split beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray

from fastbert.checks import check_choice, check_int
from fastbert.heads import BertForTokenClassification
from fastbert.packing import Packed
from fastbert.tasks.base import BATCH_TOKENS, Task
from fastbert.tasks.spans import Scheme, Span, WordSpan, WordTag, label_names, whole_characters
from fastbert.tasks.texts import check_texts
from fastbert.tasks.token_rows import (
    WORD_STRATEGIES,
    Row,
    cut_row,
    merge_pieces,
    read_sentences,
    rows_of,
    word_starts,
)

__all__ = ["STRATEGIES", "Span", "TokenClassification", "WordSpan", "WordTag"]

STRATEGIES = ("none", "simple", *WORD_STRATEGIES)
OUTSIDE = "O"
"""The label of a word that the tokenizer drops."""

Words = list[str] | tuple[str, ...]


class _Options(TypedDict, total=False):
    strategy: str
    stride: int | None
    batch_tokens: int
    progress: bool | None


class _TextOptions(_Options, total=False):
    ignore_labels: Iterable[str]


class TokenClassification(Task[BertForTokenClassification]):
    """Labels the tokens or words of texts; arguments and errors are those of `Task`.

    Spans and scores are those of transformers' pipeline, except where that goes wrong:

    - BILOU and BIOES are understood: nothing continues an L, U, E or S (the pipeline knows B and I
      alone: it parts an L from its span and joins a U to the next);
    - a plain label keeps its dash (the pipeline reports ARGM-TMP as TMP);
    - what is a piece of a word is asked of the tokenizer (the pipeline compares lengths, and takes
      a word with an accent of its own, or a zero-width character, for a piece of the word before);
    - a span reaches over the accents, joiners and variation selectors at its end that the
      tokenizer dropped (the pipeline's ends at the bare letter);
    - a text longer than the model is read in windows that overlap, whatever the strategy (the
      pipeline cuts it in silence unless given a stride). Each token's label comes from one window,
      before anything is grouped: no span is reported twice or cut at a window's border.
    """

    head = BertForTokenClassification

    @overload
    def __call__(self, texts: str, **options: Unpack[_TextOptions]) -> list[Span]: ...

    @overload
    def __call__(
        self, texts: list[str] | tuple[str, ...], **options: Unpack[_TextOptions]
    ) -> list[list[Span]]: ...

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        strategy: str = "simple",
        stride: int | None = None,
        ignore_labels: Iterable[str] = (OUTSIDE,),
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> Any:
        """Spans of each text, in the order of the text.

        Args:
            texts: B texts, or one.
            strategy: none: one span a token; simple: neighbours of one label together; first,
                average, max: the same after the pieces of a word agree, on the first piece's
                label, on the best mean probability, or on that of the surest piece.
            stride: tokens that neighbouring windows share; None for a quarter of a window. 0 may
                have the pieces of a word read in two windows.
            ignore_labels: spans left out; labels without prefix, with it for the strategy none.
            batch_tokens: most tokens of a batch.
            progress: None shows a bar on a terminal if the work takes more than 2 s.

        Returns:
            A list of spans a text, empty for a text without tokens; one list for one text.

        Raises:
            TypeError: something among the texts is no str, with its index.
            ValueError: an unknown strategy, a stride that leaves a window no step forward, a text
                UTF-8 can't hold, logits that are not finite.
        """
        check_choice("strategy", strategy, STRATEGIES)
        ignored = label_names(ignore_labels)
        given = [texts] if isinstance(texts, str) else check_texts("text", texts)
        encoded = self.tokenizer(
            given, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        rows = rows_of(encoded)
        scores = self._scores(rows, stride, batch_tokens, progress)
        spans = [
            self._text_spans(*each, strategy, ignored)
            for each in zip(given, encoded["offset_mapping"], rows, scores, strict=True)
        ]
        return spans[0] if isinstance(texts, str) else spans

    @overload
    def tag_words(
        self, sentences: Words, *, pairs: Words | None = ..., **options: Unpack[_Options]
    ) -> list[WordTag]: ...

    @overload
    def tag_words(
        self,
        sentences: Sequence[Words],
        *,
        pairs: Sequence[Words] | None = ...,
        **options: Unpack[_Options],
    ) -> list[list[WordTag]]: ...

    def tag_words(
        self,
        sentences: Words | Sequence[Words],
        *,
        pairs: Words | Sequence[Words] | None = None,
        strategy: str = "first",
        stride: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> Any:
        """One tag a word, always as many as there are words.

        A word of which the tokenizer leaves nothing (empty, zero-width, control characters) gets
        the label O and the score 0.0, which no other word has.

        Args:
            sentences: B lists of words, or one. A word may make several tokens, spaces and
                punctuation in it included; it still gets one tag.
            pairs: a second text of each sentence as words, which every window carries.
            strategy: first, average or max, as in a call.
            stride, batch_tokens, progress: as in a call.

        Raises:
            TypeError: something among the words is no str, with its place.
            ValueError: as in a call; a second text that leaves no room.
        """
        check_choice("strategy", strategy, WORD_STRATEGIES)
        given, single = read_sentences("sentence", sentences)
        rows = self._word_rows(given)
        if pairs is not None:
            seconds, alone = read_sentences("pair", pairs)
            if alone != single:
                raise ValueError("sentences and pairs must be one sentence each, or a list each")
            if len(seconds) != len(given):
                raise ValueError(f"{len(given)} sentences, but {len(seconds)} pairs")
            rows = [
                replace(row, second=second.ids)
                for row, second in zip(rows, self._word_rows(seconds), strict=True)
            ]
        scores = self._scores(rows, stride, batch_tokens, progress)
        tags = [self._word_tags(*each, strategy) for each in zip(given, rows, scores, strict=True)]
        return tags[0] if single else tags

    @overload
    def spans(
        self, tags: list[WordTag], *, ignore_labels: Iterable[str] = ...
    ) -> list[WordSpan]: ...

    @overload
    def spans(
        self, tags: list[list[WordTag]], *, ignore_labels: Iterable[str] = ...
    ) -> list[list[WordSpan]]: ...

    def spans(
        self,
        tags: list[WordTag] | list[list[WordTag]],
        *,
        ignore_labels: Iterable[str] = (OUTSIDE,),
    ) -> Any:
        """Group the tags of a sentence, or of B, by the model's label scheme.

        A word that the tokenizer dropped ends no span: where both its neighbours belong to one, it
        does too. It counts for nothing in the span's score, the mean over the words.

        Args:
            tags: what `tag_words` gives.
            ignore_labels: spans left out, by labels without prefix.
        """
        ignored = label_names(ignore_labels)
        if not tags or isinstance(tags[0], WordTag):
            return self._word_spans(tags, ignored)
        return [self._word_spans(each, ignored) for each in tags]

    def _word_rows(self, sentences: list[list[str]]) -> list[Row]:
        if not sentences:
            return []
        encoded = self.tokenizer(
            sentences, is_split_into_words=True, add_special_tokens=False, verbose=False
        )
        return rows_of(encoded)

    def _scores(
        self, rows: list[Row], stride: int | None, batch_tokens: int, progress: bool | None
    ) -> list[NDArray[np.floating]]:
        """(N, labels) probabilities of every row's tokens, each from the window that owns it."""
        if stride is not None:
            check_int("stride", stride, 0, 2**31 - 1)
        cut = [
            window
            for place, row in enumerate(rows)
            for window in cut_row(self.tokenizer, place, row, self.max_length, stride)
        ]
        kind = np.float64 if self.model.dtype == torch.float64 else np.float32
        scores = [np.empty((len(row.ids), self.config.num_labels), kind) for row in rows]
        ids, types = [window.ids for window in cut], [window.types for window in cut]
        run = self._run(
            ids, types, self._probabilities, batch_tokens=batch_tokens, progress=progress
        )
        for indices, packed, found in run:
            for place, number in enumerate(indices):
                window = cut[number]
                at = int(packed.cu_seqlens[place]) + window.shift
                start, end = window.owned
                part = scores[window.row][start:end] = found[at + start : at + end]
                if not np.isfinite(part).all():
                    text = rows[window.row].text
                    raise ValueError(f"text {text}: the model's logits are not finite")
        return scores

    def _probabilities(self, packed: Packed) -> NDArray[np.floating]:
        logits = self.model(packed).logits  # (T, labels)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.softmax(dim=-1).cpu().numpy()

    def _text_spans(
        self,
        text: str,
        offsets: list[tuple[int, int]],
        row: Row,
        scores: NDArray[np.floating],
        strategy: str,
        ignored: frozenset[str],
    ) -> list[Span]:
        if not offsets:
            return []
        offsets = whole_characters(text, offsets)
        starts = list(range(len(row.ids)))
        if strategy in WORD_STRATEGIES:
            places = word_starts(row.words)
            starts, scores = places.tolist(), merge_pieces(scores, places, strategy)
        first = [offsets[place][0] for place in starts]
        last = [offsets[place - 1][1] for place in [*starts[1:], len(row.ids)]]
        labels, best = self._best(scores)
        if strategy == "none":
            shift = self.tokenizer.build_row([])[2][0]
            return [
                Span(label, score, start, end, text[start:end], shift + index)
                for index, (label, score, start, end) in enumerate(
                    zip(labels, best, first, last, strict=True)
                )
                if label not in ignored
            ]
        return [
            Span(group.tag, group.score, start, end, text[start:end])
            for group in self._scheme.group(labels, best, ignored)
            for start, end in [(first[group.start], last[group.end - 1])]
        ]

    def _word_tags(
        self, sentence: list[str], row: Row, scores: NDArray[np.floating], strategy: str
    ) -> list[WordTag]:
        starts = word_starts(row.words)
        labels, best = self._best(merge_pieces(scores, starts, strategy))
        seen = dict(zip(row.words[starts].tolist(), zip(labels, best, strict=True), strict=True))
        return [
            WordTag(word, *seen.get(number, (OUTSIDE, 0.0))) for number, word in enumerate(sentence)
        ]

    def _word_spans(self, tags: Sequence[Any], ignored: frozenset[str]) -> list[WordSpan]:
        kept = [place for place, tag in enumerate(tags) if tag.score > 0]
        labels, scores = [tags[i].label for i in kept], [tags[i].score for i in kept]
        spans = []
        for group in self._scheme.group(labels, scores, ignored):
            start, end = kept[group.start], kept[group.end - 1] + 1
            words = tuple(tag.word for tag in tags[start:end])
            spans.append(WordSpan(group.tag, group.score, start, end, words))
        return spans

    def _best(self, scores: NDArray[np.floating]) -> tuple[list[str], list[float]]:
        """Label and probability of each of N rows of (N, labels)."""
        labels = [self.config.id2label[i] for i in scores.argmax(axis=1).tolist()]
        return labels, scores.max(axis=1).tolist()

    @property
    def _scheme(self) -> Scheme:
        return Scheme.of(self.config.id2label.values())
