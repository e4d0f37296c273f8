"""Frames: the predicate marked both ways, BIO roles, several predicates, long sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import taggers
import torch
from torch import Tensor

from fastbert.tasks.semantic_roles import Frame, SemanticRoles
from fastbert.tasks.spans import WordSpan
from fastbert.tokenizer import BertTokenizer

WORDS = ["the", "cat", "\u200b", "unbelievable-ish", "sat", "on", "mats", "quietly"]
ENTRIES = {
    "ann": "B-ARG0",
    "lee": "I-ARG0",
    "saw": "B-V",
    "bob": "B-ARG1",
    "then": "B-ARGM-TMP",
    "##ce": "O",
    "now": "I-ARGM-TMP",
    "well": "O",
}


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return BertTokenizer.from_pretrained()


@pytest.fixture(scope="module")
def model() -> Any:
    return taggers.random_model(positions=64)


def logits_of(model: Any, ids: list[int], types: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0]


def check(frame: Frame, words: list[str], scores: dict[int, Tensor]) -> None:
    """The tags of `frame` are those of each word's first piece; other words are dropped ones."""
    assert [tag.word for tag in frame.tags] == words
    for number, tag in enumerate(frame.tags):
        if number not in scores:
            assert (tag.label, tag.score) == ("O", 0.0)
            continue
        probabilities = scores[number].softmax(-1)
        assert tag.label == taggers.BIO[int(probabilities.argmax())]
        assert abs(tag.score - float(probabilities.max())) <= 1e-6


@pytest.mark.parametrize("mark", ["segment", "type"])
def test_frames_are_those_of_a_plain_row(model: Any, tokenizer: BertTokenizer, mark: str) -> None:
    task = SemanticRoles(model, tokenizer, mark=mark)
    frames = task([WORDS, ["go"]], [[4, 3], 0])
    assert [[f.predicate for f in each] for each in frames] == [[4, 3], [0]]
    assert [f.word for f in frames[0]] == ["sat", "unbelievable-ish"]
    for frame in frames[0]:
        pair = [WORDS[frame.predicate]] if mark == "segment" else None
        row = tokenizer(WORDS, pair, is_split_into_words=True)
        of_word = [
            w if s == 0 else None for w, s in zip(row.word_ids(), row[0].sequence_ids, strict=True)
        ]
        types = row["token_type_ids"]
        if mark == "type":
            types = [int(word == frame.predicate) for word in of_word]
        logits = logits_of(model, row["input_ids"], types)
        first = {w: logits[of_word.index(w)] for w in of_word if w is not None}
        assert sorted(first) == [0, 1, 3, 4, 5, 6, 7]
        check(frame, WORDS, first)
        assert list(frame.roles) == task.spans(list(frame.tags))


def test_the_mark_and_the_predicate_matter(model: Any, tokenizer: BertTokenizer) -> None:
    by_segment, by_type = (SemanticRoles(model, tokenizer, mark=m) for m in ("segment", "type"))
    scores = [
        [tag.score for tag in task(WORDS, predicate)[0].tags]
        for task in (by_segment, by_type)
        for predicate in (1, 4)
    ]
    assert len({tuple(each) for each in scores}) == 4


def test_one_sentence_or_several(model: Any, tokenizer: BertTokenizer) -> None:
    task = SemanticRoles(model, tokenizer)
    (frame,) = task(WORDS, 4)
    assert task(WORDS, [4]) == [frame]
    assert task(tuple(WORDS), np.int64(4)) == [frame]
    assert task([WORDS], [4]) == [[frame]]
    assert task([WORDS], [(4,)]) == [[frame]]
    assert task([WORDS, [], WORDS], [[], [], [4, 4]], batch_tokens=1) == [[], [], [frame, frame]]
    assert task(WORDS, []) == []
    assert task([], []) == []


def test_roles_are_grouped_by_bio() -> None:
    labels = ("O", *sorted({label for label in ENTRIES.values() if label != "O"}))
    task = SemanticRoles(*taggers.table(ENTRIES, labels))
    sentence = ["ann", "\u200b", "lee", "saw", "bob", "bob", "thence", "now", "well"]
    (frame,) = task(sentence, 3)
    assert [(r.label, r.start, r.end, r.words) for r in frame.roles] == [
        ("ARG0", 0, 3, ("ann", "\u200b", "lee")),
        ("V", 3, 4, ("saw",)),
        ("ARG1", 4, 5, ("bob",)),
        ("ARG1", 5, 6, ("bob",)),
        ("ARGM-TMP", 6, 8, ("thence", "now")),
    ]
    assert isinstance(frame.roles[0], WordSpan)
    assert frame.tags[6].label == "B-ARGM-TMP"  # its second piece says O
    (other,) = task(sentence, 3, ignore_labels=["O", "V", "ARG1"])
    assert [role.label for role in other.roles] == ["ARG0", "ARGM-TMP"]


def test_the_second_text_goes_with_every_window(model: Any, tokenizer: BertTokenizer) -> None:
    task = SemanticRoles(model, tokenizer, max_length=8)
    sentence = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (frame,) = task(sentence, 8, stride=0)  # 8 - 3 special ones - 1: 4 words fit
    scores = {}
    for start in (0, 4, 8):
        part = sentence[start : start + 4]
        row = tokenizer(part, ["nine"], is_split_into_words=True)
        logits = logits_of(model, row["input_ids"], row["token_type_ids"])
        scores.update({start + i: logits[1 + i] for i in range(len(part))})
    check(frame, sentence, scores)


def test_a_type_marks_the_windows_that_see_the_predicate(
    model: Any, tokenizer: BertTokenizer
) -> None:
    task = SemanticRoles(model, tokenizer, mark="type", max_length=6)
    sentence = ["one", "two", "three", "four", "five", "six"]
    (frame,) = task(sentence, 3, stride=2)  # windows of 4: words 0 to 3 and 2 to 5
    scores = {}
    for start, owned in ((0, (0, 1, 2)), (2, (3, 4, 5))):
        ids = tokenizer(sentence[start : start + 4], is_split_into_words=True)["input_ids"]
        types = [0] * 6
        types[1 + 3 - start] = 1
        logits = logits_of(model, ids, types)
        scores.update({word: logits[1 + word - start] for word in owned})
    check(frame, sentence, scores)
    (frame,) = task(sentence, 0, stride=0)
    ids = tokenizer(sentence[4:], is_split_into_words=True)["input_ids"]
    logits = logits_of(model, ids, [0] * 4)
    last = frame.tags[5]
    assert abs(last.score - float(logits[2].softmax(-1).max())) <= 1e-6


def test_a_directory_is_loaded_with_its_mark(tmp_path: Path) -> None:
    small, tokenizer = taggers.table(ENTRIES, tuple(sorted({"O", *ENTRIES.values()})))
    small.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task = SemanticRoles(tmp_path, mark="type", max_length=32)
    assert task.max_length == 32
    sentence = ["ann", "saw", "bob"]
    assert task(sentence, 1) == SemanticRoles(small, tokenizer, mark="type")(sentence, 1)


@pytest.mark.parametrize(
    ("sentences", "predicates", "error", "message"),
    [
        (WORDS, 8, ValueError, "the predicate of sentence 0 is 8, expected 0 to 7"),
        (WORDS, -1, ValueError, "the predicate of sentence 0 is -1, expected 0 to 7"),
        (WORDS, [0, 9], ValueError, "the predicate of sentence 0 is 9"),
        (WORDS, "sat", ValueError, "the predicate of sentence 0 is 'sat', expected an integer"),
        (WORDS, True, ValueError, "the predicate of sentence 0 is True"),
        ([WORDS, ["a"]], [0, 1], ValueError, "the predicate of sentence 1 is 1, expected 0 to 0"),
        ([WORDS, []], [0, 0], ValueError, "sentence 1 has no words, so none is a predicate"),
        ([["a"], WORDS], [0, 2], ValueError, "predicate of sentence 1, word 2, has nothing in it"),
        ([WORDS], [0, 1], ValueError, "1 sentences, but predicates for 2"),
        ([WORDS], 0, TypeError, "predicates are a int, expected a list of indices"),
        ([WORDS], "0", TypeError, "predicates are a str, expected a list"),
        ("the cat", 0, TypeError, "sentences are a str, expected lists of words"),
        ([["a"], ["b", None]], [0, 0], TypeError, "sentence 1, word 1 is a NoneType"),
    ],
)
def test_bad_input_is_named(
    model: Any,
    tokenizer: BertTokenizer,
    sentences: Any,
    predicates: Any,
    error: type[Exception],
    message: str,
) -> None:
    for mark in ("segment", "type"):
        with pytest.raises(error, match=message):
            SemanticRoles(model, tokenizer, mark=mark)(sentences, predicates)


def test_a_predicate_too_long_to_go_along_is_refused(model: Any, tokenizer: BertTokenizer) -> None:
    sentences = [["a"], ["b", " ".join("c" * 61)]]
    with pytest.raises(ValueError, match="text 1: 0 tokens of text fit into a window"):
        SemanticRoles(model, tokenizer)(sentences, [[0, 0], 1])  # the third row, but sentence 1
    assert len(SemanticRoles(model, tokenizer, mark="type")(sentences, [0, 1])) == 2


def test_a_model_of_one_type_is_refused(tokenizer: BertTokenizer) -> None:
    model = taggers.random_model()
    single = type(model)(model.config.replace(type_vocab_size=1))
    with pytest.raises(ValueError, match="the model has one token type, but marking by type takes"):
        SemanticRoles(single, tokenizer, mark="type")


def test_strides_strategies_and_marks_are_checked(model: Any, tokenizer: BertTokenizer) -> None:
    task = SemanticRoles(model, tokenizer)
    with pytest.raises(ValueError, match="text 0: stride is 60, expected 0 to 59"):
        task(WORDS, 4, stride=60)
    with pytest.raises(ValueError, match="strategy is 'simple', supported: first, average, max"):
        task(WORDS, 4, strategy="simple")
    with pytest.raises(TypeError, match="ignore_labels is the str"):
        task(WORDS, 4, ignore_labels="O")
    with pytest.raises(ValueError, match="mark is 'verb', supported: segment, type"):
        SemanticRoles(model, tokenizer, mark="verb")
