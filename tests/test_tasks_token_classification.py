"""Spans equal transformers' pipeline, and long texts are merged once."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import taggers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbert.checkpoint import CheckpointError
from fastbert.model import BertModel
from fastbert.tasks.token_classification import STRATEGIES, Span, TokenClassification
from fastbert.tokenizer import BertTokenizer
from fastbert.windows import owned, windows

SENTENCES = (
    "Ångström lives in São Paulo; naïve café CAFÉ jalapeño. Don't e-mail 3.14 U.S.A.",
    "Straße, İstanbul and ὈΔΥΣΣΕΎΣ met 日本語 中文 漢字測試 한국어 in Москва שלום!",
    "unbelievable tokenization [MASK] of [SEP] things  \t\n with   gaps -- ok?",
    "x" * 120 + " antidisestablishmentarianism",
    "a",
)


@pytest.fixture(scope="module")
def both(
    minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TokenClassification, Any]:
    return taggers.beside_pipeline(tmp_path_factory.mktemp("tagger"), minilm_dir)


@pytest.fixture(scope="module")
def reader() -> TokenClassification:
    return TokenClassification(*taggers.table(taggers.NAMES))


def plain(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(f.get("entity_group", f.get("entity")), f["start"], f["end"]) for f in found]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ignored", [("O",), (), ("PER", "B-PER", "MISC")])
def test_spans_equal_the_pipelines(
    both: tuple[TokenClassification, Any],
    real_texts: list[str],
    strategy: str,
    ignored: tuple[str, ...],
) -> None:
    ours, pipeline = both
    texts = [*SENTENCES, *[text for text in real_texts if len(text) < 600][::13]]
    expected = pipeline(texts, aggregation_strategy=strategy, ignore_labels=list(ignored))
    labels = set()
    found = ours(texts, strategy=strategy, ignore_labels=ignored)
    for spans, theirs in zip(found, expected, strict=True):
        assert [(s.label, s.start, s.end) for s in spans] == plain(theirs)
        for span, their in zip(spans, theirs, strict=True):
            assert type(span.score) is float
            assert abs(span.score - float(their["score"])) <= 1e-6
            assert span.index == their.get("index")
            labels.add(span.label)
    assert len(labels) >= 3  # else this would show little


def test_one_text_a_list_and_any_batch_give_the_same(
    both: tuple[TokenClassification, Any],
) -> None:
    task, _ = both
    together = task(list(SENTENCES))
    for text, spans in zip(SENTENCES, together, strict=True):
        alone = task(text, batch_tokens=1)
        assert [(s.label, s.start, s.end, s.text) for s in alone] == [
            (s.label, s.start, s.end, s.text) for s in spans
        ]
        np.testing.assert_allclose([s.score for s in alone], [s.score for s in spans], atol=1e-6)


def test_texts_without_tokens_have_no_spans(both: tuple[TokenClassification, Any]) -> None:
    task, _ = both
    assert task("") == []
    assert task([]) == []
    assert task(["", " \n", "\u200b\x00", "\u0301"], ignore_labels=()) == [[], [], [], []]


def write_out(model: Any, tokenizer: BertTokenizer, text: str, room: int, stride: int) -> Any:
    """(N, labels) scores: every window a row of its own, every token from the one that owns it."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bounds = windows(len(ids), room, stride)
    words = tokenizer(text, add_special_tokens=False, verbose=False).word_ids()
    rows = []
    for (start, end), (first, last) in zip(bounds, _whole(bounds, words), strict=True):
        row = [tokenizer.cls_token_id, *ids[start:end], tokenizer.sep_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0]
        rows.append(logits.softmax(-1)[1 + first - start : 1 + last - start])
    return torch.cat(rows).numpy()


def _whole(bounds: list[tuple[int, int]], words: list[int]) -> list[tuple[int, int]]:
    """Ownership with each edge at the border of words nearest to the middle of the overlap."""
    edges = [end for _, end in owned(bounds)[:-1]]
    for number, edge in enumerate(edges):
        low, high = bounds[number + 1][0], bounds[number][1]
        near = sorted(range(low, high + 1), key=lambda place: (abs(place - edge), place))
        edges[number] = next((p for p in near if words[p] != words[p - 1]), edge)
    return list(itertools.pairwise([0, *edges, bounds[-1][1]]))


@pytest.mark.parametrize("stride", [0, 1, 9, 29, None])
def test_long_texts_equal_windows_written_out(
    both: tuple[TokenClassification, Any], real_texts: list[str], stride: int | None
) -> None:
    task, pipeline = both
    short = TokenClassification(task.model, task.tokenizer, max_length=32)
    text = max(real_texts, key=len)[:500]
    scores = write_out(pipeline.model, task.tokenizer, text, 30, 7 if stride is None else stride)
    spans = short(text, strategy="none", stride=stride, ignore_labels=())
    assert [span.index for span in spans] == list(range(1, len(scores) + 1))
    assert [span.label for span in spans] == [taggers.BIO[i] for i in scores.argmax(1)]
    np.testing.assert_allclose([span.score for span in spans], scores.max(1), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["ann", "lee", "newinger", "yorkinging", "was", "in"]), max_size=40),
    st.integers(3, 12),
    st.sampled_from(STRATEGIES),
    st.data(),
)
def test_windows_change_no_span_where_context_says_nothing(
    reader: TokenClassification, words: list[str], size: int, strategy: str, data: st.DataObject
) -> None:
    text = " ".join(words)
    short = TokenClassification(reader.model, reader.tokenizer, max_length=size)
    stride = data.draw(st.none() | st.integers(0, size - 3))
    spans = short(text, strategy=strategy, stride=stride)
    whole = reader(text, strategy=strategy)
    assert [(s.label, s.start, s.end, s.text, s.index) for s in spans] == [
        (s.label, s.start, s.end, s.text, s.index) for s in whole
    ]
    np.testing.assert_allclose([s.score for s in spans], [s.score for s in whole], atol=1e-6)
    places = [(s.start, s.end) for s in spans]
    assert len(set(places)) == len(places)


def test_a_span_over_many_windows_is_one(reader: TokenClassification) -> None:
    short = TokenClassification(reader.model, reader.tokenizer, max_length=6)
    text = "was ann " + "lee " * 50 + "was"
    (span,) = short(text, stride=2)
    assert (span.label, span.text) == ("PER", text[4:-4])


def test_a_long_document_is_read_to_its_end(reader: TokenClassification) -> None:
    text = "was " * 5_000 + "new york"
    (span,) = reader(text)
    assert (span.label, span.text, span.end) == ("LOC", "new york", len(text))


def test_bilou_and_plain_labels_are_grouped_where_the_pipeline_fails() -> None:
    labels = ("O", "B-PER", "I-PER", "L-PER", "U-PER", "ARGM-TMP")
    entries = {"a": "B-PER", "b": "I-PER", "c": "L-PER", "d": "U-PER", "now": "ARGM-TMP", "o": "O"}
    task = TokenClassification(*taggers.table(entries, labels))
    spans = task("a b c d a c now now o b c b")
    assert [(s.label, s.text) for s in spans] == [
        ("PER", "a b c"),
        ("PER", "d"),
        ("PER", "a c"),
        ("ARGM-TMP", "now now"),
        ("PER", "b c"),
        ("PER", "b"),
    ]


@pytest.fixture(scope="module")
def directory(reader: TokenClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader")
    reader.model.save_pretrained(path)
    reader.tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("dtype", "close"), [("auto", 1e-6), ("float64", 1e-6), ("bfloat16", 0.02)]
)
def test_a_directory_is_loaded_in_any_precision(
    reader: TokenClassification, directory: Path, dtype: str, close: float
) -> None:
    text = "ann lee was newing new york"
    loaded = TokenClassification(directory, dtype=dtype, threads=1)
    spans, expected = loaded(text, strategy="none"), reader(text, strategy="none")
    assert [(s.label, s.text) for s in spans] == [(s.label, s.text) for s in expected]
    np.testing.assert_allclose([s.score for s in spans], [s.score for s in expected], atol=close)
    if dtype == "float64":
        assert any(float(np.float32(span.score)) != span.score for span in spans)


def test_training_goes_on_as_before(reader: TokenClassification) -> None:
    reader.model.train()
    try:
        reader("ann was")
        assert reader.model.training
    finally:
        reader.model.eval()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t("a", strategy="last"), ValueError, "strategy is 'last', supported: none"),
        (lambda t: t(["a", 3]), TypeError, "text 1 is a int, expected str"),
        (lambda t: t(["a", None]), TypeError, "text 1 is a NoneType"),
        (lambda t: t(3), TypeError, "text is a int, expected a list of str"),
        (lambda t: t(["a", "b\ud800"]), ValueError, "text 1 holds the lone surrogate U.D800"),
        (lambda t: t("a", stride=510), ValueError, "text 0: stride is 510, expected 0 to 509"),
        (lambda t: t(["", ""], stride=600), ValueError, "text 0: stride is 600"),
        (lambda t: t("a", stride=-1), ValueError, "stride is -1"),
        (lambda t: t("a", stride=1.5), ValueError, "stride is 1.5, expected an integer"),
        (lambda t: t("a", ignore_labels="O"), TypeError, "ignore_labels is the str 'O'"),
        (lambda t: t("a", batch_tokens=0), ValueError, "batch_tokens is 0"),
        (lambda t: t.tag_words("a b"), TypeError, "sentences are a str"),
        (lambda t: t.tag_words(["a", 1]), TypeError, "sentence 0, word 1 is a int"),
        (lambda t: t.tag_words(["a"], strategy="simple"), ValueError, "supported: first, average"),
        (lambda t: t.tag_words([["a"]], pairs=[]), ValueError, "1 sentences, but 0 pairs"),
        (
            lambda t: t.tag_words([["a"]], pairs=["b"]),
            ValueError,
            "one sentence each, or a list each",
        ),
        (
            lambda t: t.tag_words(["a"], pairs=[["b"]]),
            ValueError,
            "one sentence each, or a list each",
        ),
        (lambda t: t.tag_words([["a"]], pairs=[["b"] * 509]), ValueError, "text 0: 0 tokens of t"),
        (lambda t: t.tag_words([["a"], ["b\udfff"]]), ValueError, "text 1.*lone surrogate"),
    ],
)
def test_bad_input_is_named(
    reader: TokenClassification, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(reader)


def test_logits_that_are_not_finite(reader: TokenClassification) -> None:
    """A label that is not a number compares with none: nothing would be found, in silence."""
    model = copy.deepcopy(reader.model)
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    with pytest.raises(ValueError, match="text 1: the model's logits are not finite"):
        TokenClassification(model, reader.tokenizer)(["", "ann was"])


def test_a_model_without_room_is_refused(reader: TokenClassification) -> None:
    tiny = TokenClassification(reader.model, reader.tokenizer, max_length=2)
    with pytest.raises(ValueError, match="text 0: 0 tokens of text fit into a window"):
        tiny("ann")


def test_a_checkpoint_without_the_head_is_refused(
    reader: TokenClassification, tmp_path: Path
) -> None:
    BertModel(reader.config).save_pretrained(tmp_path)
    reader.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        TokenClassification(tmp_path)


def test_results_are_small_and_fixed() -> None:
    span = Span("PER", 0.5, 0, 1, "a")
    assert not hasattr(span, "__dict__")
    with pytest.raises(AttributeError):
        span.label = "LOC"  # type: ignore[misc]
