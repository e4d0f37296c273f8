"""Every value of a call, identical to transformers' tokenizer, over 20,000 texts and more."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_texts import make_text, write_tokenizer

from fastbert.tokenizer import BertTokenizer

CONFIGS = {
    "uncased": {"do_lower_case": True, "model_max_length": 64},
    "cased": {"do_lower_case": False},
    "chinese": {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": False},
    "whole_chinese": {"do_lower_case": False, "tokenize_chinese_chars": False},
    "cased_stripped": {"do_lower_case": False, "strip_accents": True, "padding_side": "left"},
    "cut_left": {"do_lower_case": True, "truncation_side": "left", "model_max_length": 32},
}
Pair = tuple[BertTokenizer, Any]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Pair]:
    """Ours and transformers', for the default model and for each small vocabulary."""
    places = {
        name: write_tokenizer(tmp_path_factory.mktemp(name), config)
        for name, config in CONFIGS.items()
    }
    places["minilm"] = minilm_dir
    return {
        name: (
            BertTokenizer.from_pretrained(place),
            transformers.BertTokenizer.from_pretrained(place),
        )
        for name, place in places.items()
    }


def outcome(call: Callable[[], Any]) -> Any:
    """The values and the ways back of a call, or the fact that it failed."""
    try:
        result = call()
    except BaseException as error:  # the Rust side answers some input with a panic
        if isinstance(error, KeyboardInterrupt | SystemExit | AssertionError):
            raise
        return error
    rows = range(len(result.encodings))
    return {
        "values": dict(result),
        "tokens": [result.tokens(i) for i in rows],
        "words": [result.word_ids(i) for i in rows],
        "texts": [result.sequence_ids(i) for i in rows],
    }


def assert_same(ours: BertTokenizer, theirs: Any, *texts: Any, **options: Any) -> None:
    got = outcome(lambda: ours(*texts, **options))
    expected = outcome(lambda: theirs(*texts, **options))
    if isinstance(got, BaseException) or isinstance(expected, BaseException):
        assert isinstance(got, ValueError), (got, expected)
        assert isinstance(expected, BaseException), (got, expected)
        return
    assert got == expected


RETURNS = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_length": True,
}
NAMES = [*CONFIGS, "minilm"]


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """The options of a call, of every kind, within what both sides accept."""
    options: dict[str, Any] = {**RETURNS, "verbose": False}
    limit = draw(st.integers(8, 40))
    strategies = [None, False, True, "longest_first", "do_not_truncate"]
    options["truncation"] = draw(st.sampled_from([*strategies, "only_first", "only_second"]))
    options["padding"] = draw(st.sampled_from([False, True, "longest", "max_length"]))
    options["padding_side"] = draw(st.sampled_from([None, "left", "right"]))
    options["add_special_tokens"] = draw(st.integers(0, 4)) > 0
    options["is_split_into_words"] = draw(st.booleans())
    options["return_overflowing_tokens"] = draw(st.booleans())
    # A cut text keeps half of the room, or all that a single character (4 tokens at most) leaves;
    # with a stride beyond that the Rust side panics, and what ours says has its own tests.
    half = (limit - 3) // 2 - 1
    options["stride"] = draw(st.integers(0, max(0, min(half, limit - 8))))
    if draw(st.integers(0, 4)) > 0:
        multiple = draw(st.sampled_from([None, None, 1, 4, 8]))
        options["pad_to_multiple_of"] = multiple
        options["max_length"] = limit if multiple is None else -(-limit // multiple) * multiple
    return options


@settings(
    max_examples=220, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(
    seed=st.integers(0, 2**32), name=st.sampled_from(NAMES), options=calls(), pairs=st.booleans()
)
def test_all_values_equal_transformers(
    tokenizers: dict[str, Pair], seed: int, name: str, options: dict[str, Any], pairs: bool
) -> None:
    """220 batches of 100 texts, each under options of its own."""
    ours, theirs = tokenizers[name]
    rng = random.Random(seed)
    texts = [make_text(rng, rng.choice((2, 8, 20))) for _ in range(100)]
    options = dict(options)
    if options["truncation"] == "only_second" and not pairs:
        options["truncation"] = "only_first"
    if pairs and options["truncation"] in ("only_first", "only_second"):
        # One row of a hundred would do to make both sides refuse, so the other text is short.
        kept = 1 if options["truncation"] == "only_first" else 0
        both = [[text[:1] if i == kept else text for text in texts] for i in (0, 1)]
    else:
        both = [texts, texts[::-1]]
    groups: list[Any] = both[: 1 + pairs]
    if options["is_split_into_words"]:
        groups = [[text.split(" ") for text in group] for group in groups]
    assert outcome(lambda: ours(*groups, **options)) == outcome(lambda: theirs(*groups, **options))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text(max_size=40), name=st.sampled_from(NAMES))
def test_any_unicode_text(tokenizers: dict[str, Pair], text: str, name: str) -> None:
    ours, theirs = tokenizers[name]
    assert_same(ours, theirs, text, **RETURNS)
    assert_same(ours, theirs, [text.split(), [text]], is_split_into_words=True, **RETURNS)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(NAMES), data=st.data())
def test_ids_alone_equal_the_call(
    tokenizers: dict[str, Pair], seed: int, name: str, data: st.DataObject
) -> None:
    """The fast way gives what the call gives, long texts and their beginnings included."""
    ours, _ = tokenizers[name]
    rng = random.Random(seed)
    texts = [make_text(rng, rng.choice((3, 30, 300))) for _ in range(12)]
    pairs = data.draw(st.sampled_from([None, texts[::-1], texts[3:] + texts[:3]]))
    strategies = [True] if pairs is None else [True, "only_first", "only_second"]
    strategy = data.draw(st.sampled_from(strategies))
    limit = data.draw(st.integers(4, 60))
    args = (texts,) if pairs is None else (texts, pairs)
    try:
        expected = ours(*args, max_length=limit, truncation=strategy)
    except ValueError:
        with pytest.raises(ValueError, match=r"text \d+: cutting"):
            ours.encode_ids(*args, max_length=limit, truncation=strategy)
        return
    got = ours.encode_ids(*args, max_length=limit, truncation=strategy)
    assert got.ids == expected["input_ids"]
    assert got.types == expected["token_type_ids"]
    whole = ours(*args, truncation=False, verbose=False)["input_ids"]
    assert got.truncated == sum(len(row) > limit for row in whole)


@pytest.mark.parametrize("name", NAMES)
def test_long_texts_are_read_only_as_far_as_needed(
    tokenizers: dict[str, Pair], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of many lengths around the place where a beginning suffices; values stay the same."""
    from fastbert.tokenization import call

    ours, theirs = tokenizers[name]
    rng = random.Random(5)
    texts = [make_text(rng, n) for n in (900, 2000, 5000)]
    texts += ["\u200b " * 3000 + "hello " * 50, "x" * 5000 + " hello", "中" * 3000, "a\n" * 4000]
    texts += [("\u0301 " * 600 + "word ") * 4, "hello " * 100 + "\x00 " * 5000]
    read: list[int] = []
    run = call.run

    def counting(backend: Any, rows: Any, **options: Any) -> Any:
        read.extend(map(len, rows))
        return run(backend, rows, **options)

    monkeypatch.setattr(call, "run", counting)
    for limit in (2, 3, 7, 50, 64):
        for padding in (False, True):
            options = {"truncation": True, "max_length": limit, "padding": padding, **RETURNS}
            assert_same(ours, theirs, texts, **options)
    options["return_overflowing_tokens"] = True
    assert_same(ours, theirs, texts, **options)
    read.clear()
    ours(["hello " * 100_000] * 3, truncation=True, max_length=16)
    left = CONFIGS.get(name, {}).get("truncation_side") == "left"
    assert sum(read) == (1_800_000 if left else 3 * 515)


@pytest.mark.parametrize("name", NAMES)
def test_single_calls_and_forms_of_input(tokenizers: dict[str, Pair], name: str) -> None:
    ours, theirs = tokenizers[name]
    words = ["Hello", "", "wörld", "\u200b", "中文"]
    for args, split in (
        (("hello world",), False),
        (("",), False),
        (("hello", "world"), False),
        (("hello", ""), False),
        ((["a", "b"], ["", "c"]), False),
        ((["a", ("b", "c"), ["d", "e"]],), False),
        ((("a", "b"),), False),
        ((words,), True),
        (([],), True),
        (([[]],), True),
        ((words, ["x"]), True),
        (([words, ["x"]],), True),
        (([(words, ["x"]), (["y"], [])],), True),
        (([words], [["x"]]), True),
    ):
        for more in ({}, {"max_length": 5, "return_overflowing_tokens": True}, {"padding": True}):
            assert_same(ours, theirs, *args, is_split_into_words=split, **RETURNS, **more)
    assert ours.encode("hello", "world", max_length=4) == theirs.encode(
        "hello", "world", max_length=4, truncation=True
    )
    for text in ("Hello wörld [MASK]", ""):
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours.tokenize(text, "b", add_special_tokens=True) == theirs.tokenize(
            text, "b", add_special_tokens=True
        )
        split_special = {"split_special_tokens": True}
        assert dict(ours(text, **split_special)) == dict(theirs(text, **split_special))


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_tensors(tokenizers: dict[str, Pair], kind: str) -> None:
    import numpy as np

    ours, theirs = tokenizers["minilm"]
    texts = ["hello", "a much longer text", ""]
    for args in ((texts,), (texts, texts[::-1]), ("one text",)):
        for more in ({}, {"max_length": 6, "truncation": True, "return_overflowing_tokens": True}):
            options = {"padding": True, "return_tensors": kind, **RETURNS, **more}
            got, expected = ours(*args, **options), theirs(*args, **options)
            assert list(got) == list(expected)
            for key in expected:
                assert type(got[key]) is type(expected[key])
                assert got[key].dtype == expected[key].dtype
                assert np.array_equal(got[key], expected[key])


def test_ways_back_to_the_text(tokenizers: dict[str, Pair]) -> None:
    ours, theirs = tokenizers["minilm"]
    texts = ["Tokenization isn't e\u0301asy 👩‍👩‍👧", "plain"], ["second unbelievable", "x y"]
    got, expected = ours(*texts, padding=True), theirs(*texts, padding=True)
    for row in (0, 1):
        for token in range(len(got["input_ids"][row])):
            assert got.token_to_chars(row, token) == expected.token_to_chars(row, token)
            assert got.token_to_word(row, token) == expected.token_to_word(row, token)
            assert got.token_to_sequence(row, token) == expected.token_to_sequence(row, token)
        for text in (0, 1):
            for i in range(30):
                args = (row, i, text)
                assert got.char_to_token(*args) == expected.char_to_token(*args)
                assert got.char_to_word(*args) == expected.char_to_word(*args)
                assert got.word_to_tokens(*args) == expected.word_to_tokens(*args)
    assert got.word_to_chars(0, 1) == expected.word_to_chars(0, 1)
    one = ours("hello world")
    assert one.word_to_tokens(1) == (2, 3)
    assert one.token_to_chars(2) == (6, 11)
    assert one.token_to_chars(-2) == (6, 11)
    assert one.char_to_token(7) == 2
    assert one[0].ids == one.input_ids
    assert one.n_sequences == 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(NAMES), skip=st.booleans())
def test_decode(tokenizers: dict[str, Pair], seed: int, name: str, skip: bool) -> None:
    import numpy as np

    ours, theirs = tokenizers[name]
    rng = random.Random(seed)
    ids = [[rng.randrange(len(ours)) for _ in range(rng.randrange(12))] for _ in range(8)]
    for clean in (None, True):
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
        expected = theirs.batch_decode(ids, **options)
        assert ours.batch_decode(ids, **options) == expected
        assert [ours.decode(np.array(row, dtype=int), **options) for row in ids] == expected
    for row in ids:
        tokens = theirs.convert_ids_to_tokens(row, skip_special_tokens=skip)
        assert ours.convert_ids_to_tokens(row, skip_special_tokens=skip) == tokens
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
        assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary_and_special_tokens(tokenizers: dict[str, Pair], name: str) -> None:
    ours, theirs = tokenizers[name]
    assert ours.get_vocab() == theirs.get_vocab()
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.model_max_length == theirs.model_max_length
    assert (ours.padding_side, ours.truncation_side) == (
        theirs.padding_side,
        theirs.truncation_side,
    )
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    for kind in ("unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{kind}_token_id") == getattr(theirs, f"{kind}_token_id")
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
