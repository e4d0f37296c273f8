"""Semantic-role labelling: who did what to whom, for a predicate of a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastbert.checks import check_choice, check_int
from fastbert.heads import BertForTokenClassification
from fastbert.tasks.base import BATCH_TOKENS
from fastbert.tasks.spans import WordSpan, WordTag, label_names
from fastbert.tasks.token_classification import OUTSIDE, TokenClassification, Words
from fastbert.tasks.token_rows import WORD_STRATEGIES, Row, read_sentences
from fastbert.tokenizer import BertTokenizer

MARKS = ("segment", "type")


@dataclass(frozen=True, slots=True)
class Frame:
    """A predicate with its roles.

    Attributes:
        predicate: index of its word in the sentence.
        word: the word itself.
        roles: grouped words in their order, such as ARG0; V, the predicate, where labels have it.
        tags: one a word of the sentence.
    """

    predicate: int
    word: str
    roles: tuple[WordSpan, ...]
    tags: tuple[WordTag, ...]


class SemanticRoles(TokenClassification):
    """Labels the words of a sentence with their roles towards one of them.

    How the model is told which word is the predicate, in `mark`, is a matter of its training:

    - segment: as a second text, [CLS] sentence [SEP] predicate [SEP] (Shi and Lin 2019);
    - type: the tokens of the predicate have the token type 1, all others 0.

    A sentence longer than the model is read in windows. The second text goes with every window. A
    token type can't: words further away than a window reaches are read with no word marked, as such
    models are trained to read a sentence without predicate.

    Args:
        model, tokenizer: as for `Task`.
        mark: segment or type.
        options: as for `Task`.

    Raises:
        ValueError: another mark, or a model that has but one token type.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | BertForTokenClassification,
        tokenizer: BertTokenizer | None = None,
        *,
        mark: str = "segment",
        **options: Any,
    ) -> None:
        self.mark = check_choice("mark", mark, MARKS)
        super().__init__(model, tokenizer, **options)
        if self.config.type_vocab_size < 2:
            raise ValueError(f"the model has one token type, but marking by {mark} takes two")

    # A sentence without its predicate has no roles, so the call takes more than its parent's.
    def __call__(  # type: ignore[override]
        self,
        sentences: Words | Sequence[Words],
        predicates: int | Sequence[int] | Sequence[int | Sequence[int]],
        *,
        strategy: str = "first",
        stride: int | None = None,
        ignore_labels: Iterable[str] = (OUTSIDE,),
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> Any:
        """Frames of each sentence, one a predicate, in the order of `predicates`.

        Args:
            sentences: B lists of words, or one.
            predicates: for each sentence the index of its predicate, or the indices of several
                (or of none); for one sentence an index or indices.
            strategy, stride, batch_tokens, progress: as for `tag_words`.
            ignore_labels: roles left out.

        Returns:
            A list of frames a sentence; one list for one sentence.

        Raises:
            TypeError: something among the words is no str, with its place; no predicates.
            ValueError: an index that is no word's, or that of a word which the tokenizer drops;
                as many predicates as sentences were expected; as for `tag_words`.
        """
        check_choice("strategy", strategy, WORD_STRATEGIES)
        ignored = label_names(ignore_labels)
        given, single = read_sentences("sentence", sentences)
        wanted = _read_predicates([predicates] if single else predicates, given)
        rows = [
            self._marked(row, predicate)
            for row, those in zip(self._word_rows(given), wanted, strict=True)
            for predicate in those
        ]
        scores = iter(zip(rows, self._scores(rows, stride, batch_tokens, progress), strict=True))
        frames: list[list[Frame]] = [[] for _ in given]
        for sentence, those, found in zip(given, wanted, frames, strict=True):
            for predicate in those:
                tags = self._word_tags(sentence, *next(scores), strategy)
                roles = self._word_spans(tags, ignored)
                found.append(Frame(predicate, sentence[predicate], tuple(roles), tuple(tags)))
        return frames[0] if single else frames

    def _marked(self, row: Row, predicate: int) -> Row:
        tokens = zip(row.ids, row.words.tolist(), strict=True)
        second = [token for token, word in tokens if word == predicate]
        if not second:
            raise ValueError(
                f"the predicate of sentence {row.text}, word {predicate}, has nothing in it that"
                " the tokenizer keeps"
            )
        if self.mark == "type":
            return replace(row, marked=predicate)
        return replace(row, second=second)


def _read_predicates(predicates: Any, sentences: list[list[str]]) -> list[list[int]]:
    """The indices of every sentence's predicates, checked."""
    if isinstance(predicates, str) or not isinstance(predicates, Sequence):
        raise TypeError(f"predicates are a {type(predicates).__name__}, expected a list of indices")
    if len(predicates) != len(sentences):
        raise ValueError(f"{len(sentences)} sentences, but predicates for {len(predicates)}")
    read = []
    for number, (those, words) in enumerate(zip(predicates, sentences, strict=True)):
        listed = list(those) if isinstance(those, list | tuple) else [those]
        if listed and not words:
            raise ValueError(f"sentence {number} has no words, so none is a predicate")
        name = f"the predicate of sentence {number}"
        read.append([check_int(name, index, 0, len(words) - 1) for index in listed])
    return read
