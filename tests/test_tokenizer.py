"""One shared tokenizer under threads and forks; packing; cutting texts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tokenizer_texts import LETTER_VOCAB
from tokenizers import AddedToken

from fastbert.tokenization.options import kept_lengths
from fastbert.tokenizer import BertTokenizer


@pytest.fixture(scope="module")
def letters() -> BertTokenizer:
    return BertTokenizer(LETTER_VOCAB)


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


def test_count_of_cut_texts_where_a_beginning_just_fills_the_room(letters: BertTokenizer) -> None:
    vanishing = "a " * 10 + "\u200b" * 1000
    texts = [vanishing + " b" * 3000, vanishing + " \u200b" * 3000, vanishing + " b"]
    for text, cut in zip(texts, (1, 0, 1), strict=True):
        assert letters.encode_ids([text], max_length=12) == ([[2, *[5] * 10, 3]], [[0] * 12], cut)


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


def test_padding_token_that_is_not_0() -> None:
    ours = BertTokenizer(["[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "[PAD]"])
    rows = ours(["a", "a a"], padding=True)
    assert rows["input_ids"] == [[1, 4, 2, 5], [1, 4, 4, 2]]
    assert rows["attention_mask"] == [[1, 1, 1, 0], [1, 1, 1, 1]]


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
