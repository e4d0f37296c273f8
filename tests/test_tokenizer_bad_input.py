"""Each bad input to the tokenizer gets an error that says what was given and where."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_texts import LETTER_VOCAB, SPECIAL

from fastbert.tokenizer import BertTokenizer


@pytest.fixture(scope="module")
def letters() -> BertTokenizer:
    return BertTokenizer(LETTER_VOCAB)


@pytest.fixture(scope="module")
def minilm(minilm_dir: Path) -> BertTokenizer:
    return BertTokenizer.from_pretrained(minilm_dir)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, r"text 1 is a NoneType \(None\), expected str"),
        (math.nan, r"text 1 is a float \(nan\), expected str"),
        (b"bytes", "text 1 is a bytes, expected str"),
        (3, "text 1 is a int, expected str"),
        (["a", "b", "c"], "text 1 is a list, expected str .*is_split_into_words=True"),
        (("a", None), "text 1 is a tuple, expected str"),
    ],
)
def test_what_is_no_text(minilm: BertTokenizer, bad: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        minilm(["fine", bad])
    for method in (minilm.encode_ids, minilm.pack):
        with pytest.raises(TypeError, match=message.split(" .*")[0]):
            method(["fine", bad])
        with pytest.raises(TypeError, match=message.split(" .*")[0].replace("text", "pair")):
            method(["fine", "fine"], ["fine", bad])
    with pytest.raises(TypeError, match=r"text_pair 1 is a "):
        minilm(["fine", "fine"], ["fine", bad])


def test_forms_that_are_no_batch(minilm: BertTokenizer) -> None:
    for text in (None, 5, b"x", {"a": 1}, np.array(["a"])):
        with pytest.raises(TypeError, match="text is a"):
            minilm(text)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text is a str, expected a list of str"):
        minilm.encode_ids("one text")
    with pytest.raises(ValueError, match="2 texts, but 1 in text_pair"):
        minilm(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="2 texts, but 1 pairs"):
        minilm.pack(["a", "b"], ["c"])
    with pytest.raises(TypeError, match="text is a list, text_pair a str"):
        minilm(["a"], "b")
    with pytest.raises(TypeError, match="text_pair is a list"):
        minilm("a", ["b"])
    with pytest.raises(TypeError, match="text is a str, expected a list of words"):
        minilm("a b", is_split_into_words=True)
    with pytest.raises(TypeError, match="text 1 is a str, expected a list of words"):
        minilm([["a"], "b"], is_split_into_words=True)
    with pytest.raises(TypeError, match="text 0, word 1 is a NoneType, expected str"):
        minilm(["a", None], is_split_into_words=True)
    with pytest.raises(TypeError, match=r"text 1 \(of its pair, the second\), word 0 is a int"):
        minilm([["a"], ["b"]], [["a"], [7]], is_split_into_words=True)


def test_lone_surrogates(minilm: BertTokenizer) -> None:
    message = r"text 1 holds the lone surrogate U\+D83D at character 2"
    for call in (minilm, minilm.encode_ids, minilm.pack):
        with pytest.raises(ValueError, match=message):
            call(["fine", "ab\ud83d"])
    with pytest.raises(ValueError, match="text 0 holds the lone surrogate"):
        minilm("\udc00")
    with pytest.raises(ValueError, match=r"text 0 \(of its pair, the second\) holds"):
        minilm("a", "\udc00")
    with pytest.raises(ValueError, match="text 0, word 1 holds"):
        minilm(["a", "\udc00"], is_split_into_words=True)
    with pytest.raises(ValueError, match="text 0 holds"):
        minilm(["x " * 5000 + "\udc00"])


def test_empty_batch_and_empty_text(minilm: BertTokenizer) -> None:
    assert dict(minilm([])) == {"input_ids": [], "token_type_ids": [], "attention_mask": []}
    for kind in ("np", "pt"):
        for value in minilm([], padding=True, return_tensors=kind).values():
            assert tuple(value.shape) == (0, 0)
    options = {"return_length": True, "return_overflowing_tokens": True, "truncation": True}
    empty = minilm([], return_offsets_mapping=True, return_tensors="np", **options)
    assert empty["length"].shape == empty["overflow_to_sample_mapping"].shape == (0,)
    assert minilm("")["input_ids"] == [101, 102]
    assert minilm("", add_special_tokens=False)["input_ids"] == []
    assert minilm.encode_ids([]) == ([], [], 0)


def test_a_word_of_a_megabyte_and_odd_characters(minilm: BertTokenizer) -> None:
    start = time.perf_counter()
    for text in ("x" * 2**20, "e\u0301" * 2**19, "x" * 2**20 + " end"):
        first = minilm(text, truncation=True, max_length=8)["input_ids"]
        assert minilm.encode_ids([text], max_length=8).ids == [first]
        assert first[:2] == [101, 100]
    assert time.perf_counter() - start < 30
    assert minilm("a\x00b\u200bc\u200dd\ufeff")["input_ids"] == minilm("abcd")["input_ids"]
    assert minilm("\x00\u200b")["input_ids"] == [101, 102]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 4, "stride": 2}, "stride is 2, expected less than the 2 tokens of text"),
        ({"max_length": 4, "stride": 9}, "stride is 9"),
        ({"max_length": 2, "stride": 1}, "expected less than the 0 tokens"),
        ({"max_length": 1}, "max_length is 1, below the 2 special tokens"),
        ({"max_length": 0}, "max_length is 0, below the 2 special tokens"),
        ({"max_length": -1}, "max_length is -1, expected 0 to"),
        ({"max_length": 2**40}, "expected 0 to 2147483647"),
        ({"max_length": 8, "stride": -1}, "stride is -1"),
        ({"max_length": 8, "truncation": "only_second"}, "text 0: .*there is no second text"),
        ({"max_length": 8, "truncation": "longest"}, "truncation is 'longest', supported"),
        ({"padding": "left"}, "padding is 'left', supported"),
        ({"padding": 1}, "padding is 1, supported"),
        ({"padding_side": "both"}, "padding_side is 'both', supported"),
        ({"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of is 0, expected 1"),
        (
            {"max_length": 9, "truncation": True, "padding": True, "pad_to_multiple_of": 8},
            "expected a multiple of pad_to_multiple_of, 8",
        ),
        ({"return_tensors": "tf"}, "return_tensors is 'tf', supported: 'np', 'pt'"),
    ],
)
def test_options_that_can_not_be_met(
    letters: BertTokenizer, options: dict[str, Any], message: str
) -> None:
    options = {"truncation": True, **options} if "max_length" in options else options
    with pytest.raises(ValueError, match=message):
        letters(["abcdefghijk", "ab"], **options)


def test_max_length_below_the_special_tokens_of_pairs(letters: BertTokenizer) -> None:
    for call in (letters, letters.encode_ids, letters.pack):
        with pytest.raises(ValueError, match="max_length is 2, below the 3 special tokens"):
            call(["a"], ["b"], max_length=2, truncation=True)
        call(["a"], ["b"], max_length=3, truncation=True)
    assert letters(["ab"], max_length=2)["input_ids"] == [[2, 3]]
    assert letters.encode_ids(["ab", ""], max_length=2) == ([[2, 3], [2, 3]], [[0, 0]] * 2, 1)


@pytest.mark.parametrize("split", [False, True])
def test_texts_that_can_not_give_way(letters: BertTokenizer, split: bool) -> None:
    def form(*texts: str) -> list[Any]:
        return [[t] if split else t for t in texts]

    options: dict[str, Any] = {"max_length": 10, "is_split_into_words": split}
    long, six, seven = "abcdefghijkl", "abcdef", "abcdefg"
    for strategy, args in (
        ("only_first", (form("a", "abc"), form("b", long))),
        ("only_second", (form("a", long), form("b", "abc"))),
        ("only_first", (form("a", "abc"), form("b", seven))),
    ):
        which = strategy.removeprefix("only_")
        with pytest.raises(ValueError, match=f"text 1: cutting the {which} text alone"):
            letters(*args, truncation=strategy, **options)
        if not split:
            with pytest.raises(ValueError, match=f"text 1: cutting the {which} text alone"):
                letters.encode_ids(*args, truncation=strategy, max_length=10)
    fits = letters(form("a", "abc"), form("b", six), truncation="only_first", **options)
    assert [len(row) for row in fits["input_ids"]] == [5, 10]
    exact = letters(form(""), form(seven), truncation="only_first", **options)
    assert [len(row) for row in exact["input_ids"]] == [10]


def test_a_stride_that_leaves_a_pair_no_step(letters: BertTokenizer) -> None:
    """The Rust side panics at each of these."""
    long = "abcdefghijkl"
    for strategy, pair in (
        ("only_second", ("abcd", long)),
        ("only_first", (long, "abcd")),
        ("longest_first", (long, long)),
    ):
        options = {"max_length": 10, "truncation": strategy, "return_overflowing_tokens": True}
        for stride in (3, 4):
            message = f"text 1: stride is {stride}, but max_length 10 leaves 3"
            with pytest.raises(ValueError, match=message):
                letters(["a", pair[0]], ["b", pair[1]], stride=stride, **options)
        pieces = letters(["a", pair[0]], ["b", pair[1]], stride=2, **options)
        assert max(len(row) for row in pieces["input_ids"]) == 10
        letters(["a"], ["b"], stride=4, **options)


def test_wrong_types_of_options(letters: BertTokenizer) -> None:
    for options in ({"max_length": 4.0}, {"max_length": True}, {"stride": "2"}):
        with pytest.raises(TypeError, match="expected an integer"):
            letters("abc", **options)
    assert letters("abc", max_length=np.int64(4))["input_ids"] == [2, 5, 32, 3]
    with pytest.raises(TypeError, match="unexpected keyword argument 'maxlength'"):
        letters("abc", maxlength=4)


def test_rows_of_unequal_length_make_no_tensor(letters: BertTokenizer) -> None:
    for kind in ("np", "pt"):
        with pytest.raises(
            ValueError, match=r"rows of 3 to 4 tokens make no array; .*padding=True"
        ):
            letters(["a", "ab"], return_tensors=kind)


def test_no_padding_token() -> None:
    ours = BertTokenizer([*SPECIAL, "a"], pad_token=None, mask_token=None)
    assert (ours.pad_token_id, ours.mask_token_id) == (None, None)
    assert ours(["a", "a a"])["input_ids"] == [[2, 5, 3], [2, 5, 5, 3]]
    with pytest.raises(ValueError, match="no padding token"):
        ours(["a"], padding=True)


def test_warnings(
    minilm_dir: Path, letters: BertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    ours = BertTokenizer.from_pretrained(minilm_dir)
    for _ in range(2):
        ours(["word " * 600])
    assert caplog.text.count("a row has 602 tokens, the model takes 512") == 1
    assert "word word" not in caplog.text
    with pytest.warns(UserWarning, match="max_length is ignored") as seen:
        letters("abc", padding=True, max_length=2)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        letters("abc", padding=True, max_length=2, verbose=False)


def test_bad_ids(letters: BertTokenizer) -> None:
    for bad in ([5, -100], -1):
        with pytest.raises(ValueError, match="is no token id"):
            letters.decode(bad)
    for bad in ([5, "a"], [5.0]):
        with pytest.raises((TypeError, AttributeError)):
            letters.decode(bad)
    assert letters.decode([]) == ""
    assert letters.decode([5, 10_000]) == "a"
    assert letters.convert_ids_to_tokens([5, 10_000]) == ["a", None]
    assert letters.decode(letters("ab c")) == "[CLS] ab c [SEP]"
    assert letters.batch_decode(letters(["ab", "c"], padding=True, return_tensors="pt"), True) == [
        "ab",
        "c",
    ]
