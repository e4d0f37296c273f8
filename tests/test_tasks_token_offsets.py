"""In every script, `text[start:end]` is the reported word, whole."""

from __future__ import annotations

import itertools
import string
import unicodedata
from typing import Any

import pytest
import taggers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import make_text, write_tokenizer

from fastbert.tasks.token_classification import STRATEGIES, TokenClassification
from fastbert.tokenizer import BertTokenizer

LATIN = st.text("aeiounszcAEIOUNSZC", min_size=1, max_size=8).flatmap(
    lambda word: st.lists(
        st.sampled_from(["", "", "\u0301", "\u0308", "\u0327", "\u0302\u0323"]),
        min_size=len(word),
        max_size=len(word),
    ).map(lambda marks: "".join(a + b for a, b in zip(word, marks, strict=True)))
)
COMPOSED = LATIN.map(lambda word: unicodedata.normalize("NFC", word))
ARABIC = st.lists(
    st.tuples(
        st.sampled_from("سلامعليكمبتثجح"),
        st.sampled_from(["", "\u064e", "\u0652", "\u0651\u064f"]),
    ),
    min_size=1,
    max_size=6,
).map(lambda letters: "".join(a + b for a, b in letters))
EMOJI = st.sampled_from(
    [
        "👩‍👩‍👧‍👦",
        "👍🏽",
        "🇫🇷",
        "❤️",
        "❤️‍🔥",
        "👁️‍🗨️",
        "🏳️‍🌈",
        "1️⃣",
        "🏴\U000e0067\U000e0062\U000e0073\U000e007f",
        "🙂",
    ]
)
PERSIAN = st.sampled_from(["می\u200cخواهم", "خانه\u200c"])
CHINESE = st.text("中文漢字測試日本", min_size=1, max_size=4)
GAPS = st.sampled_from([" ", "  ", "\n", "\t", "\u3000", "\u00a0", " \u200b "])
KNOWN = [*string.ascii_lowercase, *"AEIOUسلامعليك中日é👩", "aa", "ae"]


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def everywhere(request: pytest.FixtureRequest) -> TokenClassification:
    """Says that every token begins something, so that the words are the spans."""
    entries = dict.fromkeys([*KNOWN, *("##" + token for token in KNOWN), "[UNK]"], "B-PER")
    return TokenClassification(*taggers.table(entries, do_lower_case=request.param))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(LATIN | COMPOSED | ARABIC | EMOJI | PERSIAN | CHINESE, GAPS), max_size=8),
    st.sampled_from(["first", "average", "max"]),
)
def test_spans_are_the_words_in_every_script(
    everywhere: TokenClassification, parts: list[tuple[str, str]], strategy: str
) -> None:
    text = "".join(gap + word for word, gap in parts)
    expected = []
    place = 0
    for word, gap in parts:
        place += len(gap)
        pieces = list(word) if word[0] in "中文漢字測試日本" else [word]
        for piece in pieces:
            expected.append((place, place + len(piece), piece))
            place += len(piece)
    spans = everywhere(text, strategy=strategy)
    assert [(s.start, s.end, s.text) for s in spans] == expected


@pytest.fixture(scope="module")
def odd_texts(tmp_path_factory: pytest.TempPathFactory) -> list[TokenClassification]:
    tasks = []
    for lower in (True, False):
        folder = write_tokenizer(tmp_path_factory.mktemp("odd"), {"do_lower_case": lower})
        tokenizer = BertTokenizer.from_pretrained(folder)
        model = taggers.random_model(vocabulary=len(tokenizer))
        tasks.append(TokenClassification(model, tokenizer, max_length=16))
    return tasks


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(STRATEGIES))
def test_spans_lie_in_any_text_in_order(
    odd_texts: list[TokenClassification], rng: Any, strategy: str
) -> None:
    text = make_text(rng, 12)
    for task in odd_texts:
        spans = task(text, strategy=strategy, ignore_labels=())
        for span in spans:
            assert 0 <= span.start < span.end <= len(text)
            assert text[span.start : span.end] == span.text
            assert 0 < span.score <= 1
        for a, b in itertools.pairwise(spans):
            assert a.start <= b.start
            if strategy in ("first", "average", "max"):
                assert a.end <= b.start


def test_a_word_with_marks_inside_is_a_word_of_its_own(everywhere: TokenClassification) -> None:
    """Compared by length with its token, it would count as a piece of the word before."""
    spans = everywhere("aa a\u0308e aa\x00a", strategy="first")
    assert [s.text for s in spans] == ["aa", "a\u0308e", "aa\x00a"]
