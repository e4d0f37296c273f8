"""One shared tokenizer under threads and forks, packing, and an error for each bad input."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from fastbert.tokenizer import BertTokenizer
from fastbert.tokenizer_options import kept_lengths

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def letters() -> BertTokenizer:
    """A vocabulary of single letters: as many tokens as there are letters."""
    return BertTokenizer([*SPECIAL, *LETTERS, *("##" + c for c in LETTERS)])


@pytest.fixture(scope="module")
def minilm(minilm_dir: Path) -> BertTokenizer:
    return BertTokenizer.from_pretrained(minilm_dir)


def test_sixteen_threads_with_options_of_their_own(
    minilm: BertTokenizer, real_texts: list[str]
) -> None:
    def call(number: int) -> Any:
        rng = random.Random(number)
        options = {
            "truncation": rng.choice([True, False, "only_first"]),
            "max_length": rng.randrange(8, 64),
            "stride": rng.randrange(5),
            "padding": rng.choice([False, True, "max_length"]),
            "padding_side": rng.choice(["left", "right"]),
            "return_overflowing_tokens": rng.random() < 0.5,
            "verbose": False,
        }
        texts = rng.sample(real_texts, 20)
        result = minilm(texts, **options)
        plain = minilm.encode_ids(texts, max_length=options["max_length"])
        return dict(result), plain

    alone = [call(number) for number in range(96)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(call, range(96)))
    assert together == alone
    assert minilm.backend_tokenizer.truncation is None
    assert minilm.backend_tokenizer.padding is None


def test_tokens_added_while_others_encode(letters: BertTokenizer) -> None:
    ours = BertTokenizer(letters.get_vocab())
    allowed = ([2, 5, 32, 33, 3], [2, 57, 3])
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(lambda: ours(["abc"] * 50, padding=True)) for _ in range(100)]
        ours.add_tokens("abc")
        rows = [row for call in calls for row in call.result()["input_ids"]]
    assert all(row in allowed for row in rows)
    assert ours("abc")["input_ids"] == allowed[1]


FORK = """
import os, signal, sys
from fastbert.tokenizer import BertTokenizer
tokenizer = BertTokenizer.from_pretrained(sys.argv[1])
texts = ["one", "two words", "three more words"] * 40
expected = dict(tokenizer(texts, padding=True, truncation=True, max_length=4))
ids = tokenizer.encode_ids(texts)
child = os.fork()
if child == 0:
    signal.alarm(30)
    again = BertTokenizer.from_pretrained(sys.argv[1])
    for t in (tokenizer, again):
        same = dict(t(texts, padding=True, truncation=True, max_length=4)) == expected
        if not same or t.encode_ids(texts) != ids:
            os._exit(1)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("parallelism", [None, "true", "false"])
def test_a_fork_after_use_does_not_hang(minilm_dir: Path, parallelism: str | None) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    if parallelism is not None:
        env["TOKENIZERS_PARALLELISM"] = parallelism
    result = subprocess.run(
        [sys.executable, "-c", FORK, str(minilm_dir)], env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_pack(minilm: BertTokenizer, real_texts: list[str]) -> None:
    rows = minilm(real_texts, truncation=True, max_length=100)
    packed = minilm.pack(real_texts, max_length=100)
    assert packed.input_ids.tolist() == list(chain(*rows["input_ids"]))
    assert packed.lengths.tolist() == [len(row) for row in rows["input_ids"]]
    assert packed.max_seqlen == 100
    assert minilm.encode_ids(real_texts, max_length=100).truncated == sum(
        len(row) > 100 for row in minilm(real_texts, verbose=False)["input_ids"]
    )
    pairs = minilm.pack(real_texts, real_texts[::-1], max_length=50, truncation="longest_first")
    expected = minilm(real_texts, real_texts[::-1], truncation=True, max_length=50)
    assert pairs.input_ids.tolist() == list(chain(*expected["input_ids"]))
    assert pairs.token_type_ids.tolist() == list(chain(*expected["token_type_ids"]))
    whole = minilm.pack(real_texts, truncation=False)
    assert whole.max_seqlen > 512
    assert minilm.pack(real_texts).max_seqlen == 512
    assert minilm.pack([]).batch_size == 0
    assert minilm.pack([""]).input_ids.tolist() == [101, 102]


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("a b c d e f g h i j k l m n", normalized=False),
        AddedToken("a", normalized=False, rstrip=True),
        AddedToken("A B c d e f g h i j k l m n", normalized=True),
    ],
)
def test_added_tokens_across_the_place_where_a_long_text_is_cut(
    letters: BertTokenizer, token: AddedToken
) -> None:
    ours = BertTokenizer(letters.get_vocab())
    ours.add_tokens([token])
    text = "0000000 " * 62 + "a b c d e f g h i j k l m n " + "0000000 " * 2000
    whole = ours(text, return_offsets_mapping=True)
    for limit in range(60, 80):
        cut = ours(text, max_length=limit, return_offsets_mapping=True)
        assert cut["input_ids"][:-1] == whole["input_ids"][: limit - 1]
        assert cut["offset_mapping"][:-1] == whole["offset_mapping"][: limit - 1]
        assert ours.encode_ids([text], max_length=limit).ids == [cut["input_ids"]]


def test_kept_lengths_is_token_by_token_removal() -> None:
    """Against the plain definition: drop a token from the longer text until the pair fits."""
    for room in range(12):
        for first in range(12):
            for second in range(12):
                n1, n2 = first, second
                while n1 + n2 > room:
                    if n1 > n2 or (n1 == n2 and first <= second):
                        n1 -= 1
                    else:
                        n2 -= 1
                kept = kept_lengths(first, second, room, "longest_first")
                assert kept == ((0, 0) if room == 0 else (n1, n2)), (first, second, room)


def test_overlap_is_the_stride(letters: BertTokenizer) -> None:
    options = {"truncation": True, "max_length": 6, "return_overflowing_tokens": True}
    pieces = letters("abcdefgh", stride=1, **options)
    assert [letters.decode(row, True) for row in pieces["input_ids"]] == [
        "abcd",
        "##defg",
        "##gh",
    ]
    assert pieces["overflow_to_sample_mapping"] == [0, 0, 0]
    batch = letters(["ab", "abcdefgh"], stride=1, padding=True, return_tensors="np", **options)
    assert batch["overflow_to_sample_mapping"].tolist() == [0, 1, 1, 1]
    assert batch["attention_mask"].sum(1).tolist() == [4, 6, 6, 4]


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


def test_padding_token_that_is_not_0() -> None:
    ours = BertTokenizer(["[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "[PAD]"])
    rows = ours(["a", "a a"], padding=True)
    assert rows["input_ids"] == [[1, 4, 2, 5], [1, 4, 4, 2]]
    assert rows["attention_mask"] == [[1, 1, 1, 0], [1, 1, 1, 1]]


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


def test_batch_encoding_to_device_and_access(letters: BertTokenizer) -> None:
    torch = pytest.importorskip("torch")
    batch = letters(["ab", "c"], padding=True, return_tensors="pt")
    assert batch.to("cpu") is batch
    assert batch.input_ids.dtype is torch.int64
    assert batch.to("meta").attention_mask.is_meta
    for device in (torch.float16, None, True):
        with pytest.raises(TypeError, match="expected a torch device"):
            batch.to(device)
    lists = letters(["ab", "c"])
    assert {**lists} == dict(lists)
    assert lists[1].ids == lists["input_ids"][1]
    assert [e.ids for e in lists[:1]] == lists["input_ids"][:1]
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lists.nonsense
    with pytest.raises(KeyError):
        _ = lists["nonsense"]
    with pytest.raises(IndexError, match="token 9, but the row has 4 tokens"):
        lists.token_to_chars(0, 9)
    bare = type(lists)({"input_ids": [[1]]})
    assert bare[0:1] == {"input_ids": [[1]]}
    with pytest.raises(ValueError, match="no way back to the text"):
        bare.tokens()
