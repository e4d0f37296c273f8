"""Texts split beforehand: one tag a word, dropped words too, and spans of words."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import taggers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbert.tasks.token_classification import TokenClassification, WordTag


@pytest.fixture(scope="module")
def both(
    minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TokenClassification, Any]:
    return taggers.beside_pipeline(tmp_path_factory.mktemp("tagger"), minilm_dir)


@pytest.fixture(scope="module")
def reader() -> TokenClassification:
    return TokenClassification(*taggers.table(taggers.NAMES))


def test_words_have_one_tag_each(reader: TokenClassification) -> None:
    words = ["ann", "", "lee", "\u200b", "newing", "a\u0301bc", "\x00", "was in", "york"]
    tags = reader.tag_words(words)
    assert [tag.word for tag in tags] == words
    assert [tag.label for tag in tags] == [
        *("B-PER", "O", "I-PER", "O", "B-LOC", "O", "O", "O", "I-LOC"),
    ]
    assert [tag.score > 0 for tag in tags] == [
        True,
        False,
        True,
        False,
        True,
        True,
        False,
        True,
        True,
    ]
    assert reader.tag_words([words, [], ["lee"]]) == [tags, [], [tags[2]]]
    assert reader.tag_words([]) == []
    assert reader.tag_words([[], ["", "\u200b"]]) == [
        [],
        [WordTag("", "O", 0.0), WordTag("\u200b", "O", 0.0)],
    ]


def test_dropped_words_end_no_span(reader: TokenClassification) -> None:
    tags = reader.tag_words(["was", "ann", "\u200b", "lee", "\u200b", "new"])
    spans = reader.spans(tags)
    assert [(s.label, s.start, s.end, s.words) for s in spans] == [
        ("PER", 1, 4, ("ann", "\u200b", "lee")),
        ("LOC", 5, 6, ("new",)),
    ]
    assert spans[0].score == pytest.approx((tags[1].score + tags[3].score) / 2)
    assert reader.spans([tags, []]) == [spans, []]
    assert reader.spans([]) == []
    assert [s.label for s in reader.spans(tags, ignore_labels=["PER"])] == ["O", "LOC"]


@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_tagged_words_equal_the_pipelines(
    both: tuple[TokenClassification, Any], real_texts: list[str], strategy: str
) -> None:
    task, pipeline = both
    words = [[w for w in text.split() if w.isalpha()][:60] for text in real_texts[20::19]]
    words = [sentence for sentence in words if sentence]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [
            pipeline(
                sentence, is_split_into_words=True, aggregation_strategy=strategy, ignore_labels=[]
            )
            for sentence in words
        ]
    tags = task.tag_words(words, strategy=strategy)
    for spans, (found,) in zip(task.spans(tags, ignore_labels=()), theirs, strict=True):
        assert [(s.label, " ".join(s.words).lower()) for s in spans] == [
            (f["entity_group"], f["word"]) for f in found
        ]
        np.testing.assert_allclose([s.score for s in spans], [f["score"] for f in found], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["ann", "lee", "newinger", "was-in york", "\u200b", ""]), max_size=40),
    st.integers(4, 12),
    st.sampled_from(["first", "average", "max"]),
)
def test_long_sentences_keep_their_words(
    reader: TokenClassification, words: list[str], size: int, strategy: str
) -> None:
    short = TokenClassification(reader.model, reader.tokenizer, max_length=size)
    tags = short.tag_words([words], strategy=strategy)[0]
    whole = reader.tag_words([words], strategy=strategy)[0]
    assert [(t.word, t.label) for t in tags] == [(t.word, t.label) for t in whole]
    assert [t.word for t in tags] == words
    np.testing.assert_allclose([t.score for t in tags], [t.score for t in whole], atol=1e-6)


def test_a_pair_goes_with_every_window(both: tuple[TokenClassification, Any]) -> None:
    task, pipeline = both
    short = TokenClassification(task.model, task.tokenizer, max_length=12)
    sentence, pair = ["one", "two", "three", "four", "five", "six", "seven", "eight"], ["no", "yes"]
    tags = short.tag_words(sentence, pairs=pair, stride=0)  # 12 - 3 special ones - 2: 7 words fit
    logits = []
    for part in (sentence[:7], sentence[7:]):
        inputs = task.tokenizer(part, pair, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            logits.append(pipeline.model(**inputs).logits[0, 1 : 1 + len(part)])
    scores, found = torch.cat(logits).softmax(-1).max(-1)
    assert [tag.label for tag in tags] == [taggers.BIO[i] for i in found.tolist()]
    np.testing.assert_allclose([tag.score for tag in tags], scores, atol=1e-6)
    assert short.tag_words([sentence], pairs=[pair], stride=0) == [tags]
    assert short.tag_words(sentence) != tags
