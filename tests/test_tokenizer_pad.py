"""`BertTokenizer.pad`: what transformers' own collators ask of a tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastbert import BertTokenizer

TEXTS = ["one short text", "and here is one that is rather longer, with more tokens", "x"]


@pytest.fixture(scope="module")
def tokenizers(minilm_dir):
    from transformers import BertTokenizerFast

    return BertTokenizer.from_pretrained(minilm_dir), BertTokenizerFast.from_pretrained(minilm_dir)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_tensors": "pt"},
        {"return_tensors": "np", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 20, "return_tensors": "np"},
        {"padding": "max_length", "max_length": 4},
        {"padding": "longest", "return_attention_mask": True},
        {"padding": False},
        {"padding_side": "left"},
    ],
)
@pytest.mark.parametrize("form", ["rows", "columns", "tensors", "without mask"])
def test_equals_transformers(tokenizers, side, options, form):
    made = []
    for tokenizer in tokenizers:
        tokenizer.padding_side = side
        rows = [{**tokenizer(text), "label": n} for n, text in enumerate(TEXTS)]
        if form == "without mask":
            rows = [{"input_ids": row["input_ids"]} for row in rows]
        elif form == "tensors":
            rows = [{name: np.asarray(value) for name, value in row.items()} for row in rows]
        elif form == "columns":
            rows = {name: [row[name] for row in rows] for name in rows[0]}
        made.append(tokenizer.pad(rows, **options))
        tokenizer.padding_side = "right"
    ours, theirs = made
    assert list(ours) == list(theirs) or form == "without mask"
    for name in ours:
        a, b = (np.asarray(out[name], dtype=object).tolist() for out in (ours, theirs))
        a, b = ([list(map(int, r)) if hasattr(r, "__iter__") else r for r in v] for v in (a, b))
        assert a == b, name


def test_collators_of_transformers_work(tokenizers):
    from transformers import (
        DataCollatorForLanguageModeling,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
    )

    batches = []
    for tokenizer in tokenizers:
        rows = [tokenizer(text) for text in TEXTS]
        labelled = [{**row, "labels": [1] * len(row["input_ids"])} for row in rows]
        torch.manual_seed(0)
        batches.append(
            [
                DataCollatorWithPadding(tokenizer)([{**row, "label": 1} for row in rows]),
                DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)(rows),
                DataCollatorForTokenClassification(tokenizer)(labelled),
            ]
        )
    for ours, theirs in zip(*batches, strict=True):
        assert set(ours) == set(theirs)
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), name


def test_what_is_no_whole_number_keeps_its_kind(tokenizers):
    rows = [{**tokenizers[0](text), "labels": 0.5} for text in TEXTS]
    assert tokenizers[0].pad(rows, return_tensors="pt")["labels"].tolist() == [0.5] * 3
    assert tokenizers[0].pad(rows, return_tensors="np")["labels"].tolist() == [0.5] * 3


def test_special_tokens_mask(tokenizers):
    for first, second in (([7, 8], None), ([7, 8], [9]), ([], None)):
        row, _, _ = tokenizers[0].build_row(first, second)
        masks = [
            tokenizers[0].get_special_tokens_mask(first, second),
            tokenizers[0].get_special_tokens_mask(row, already_has_special_tokens=True),
            tokenizers[1].get_special_tokens_mask(row, already_has_special_tokens=True),
        ]
        assert masks[0] == masks[1] == masks[2]
    with pytest.raises(ValueError, match="both texts already"):
        tokenizers[0].get_special_tokens_mask([7], [8], already_has_special_tokens=True)


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ("text", {}, TypeError, "expected tokenised rows"),
        ([[1, 2]], {}, TypeError, "row 0 is a list"),
        ([{"ids": [1]}], {}, ValueError, "expected input_ids"),
        ([{"input_ids": [1]}, {"input_ids": [1], "label": 1}], {}, ValueError, "row 1 holds"),
        ([{"input_ids": [1], "attention_mask": [1, 1]}, {"input_ids": [1] * 3, "attention_mask":
          [1] * 3}], {}, ValueError, "attention_mask holds 2 tokens, input_ids 1"),
        ({"input_ids": [[1], [2]], "label": [1]}, {}, ValueError, "label holds 1 rows"),
        ([{"input_ids": [1]}, {"input_ids": [1, 2]}], {"padding": False, "return_tensors": "pt"},
         ValueError, "rows of 1 to 2 tokens"),
        ([{"input_ids": [1]}], {"padding_side": "middle"}, ValueError, "padding_side"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tokenizers, rows, options, error, message):
    with pytest.raises(error, match=message):
        tokenizers[0].pad(rows, **options)


def test_no_rows(tokenizers):
    assert tokenizers[0].pad([])["input_ids"] == []
    assert tokenizers[0].pad({"input_ids": []})["input_ids"] == []


@pytest.mark.parametrize("kind", [None, "np", "pt"])
def test_one_row_alone_gets_no_batch_axis(tokenizers, kind):
    for options in ({}, {"padding": "max_length", "max_length": 6}):
        ours, theirs = (
            tokenizer.pad(dict(tokenizer("x")), return_tensors=kind, **options)
            for tokenizer in tokenizers
        )
        for name in theirs:
            assert type(ours[name]) is type(theirs[name])
            np.testing.assert_array_equal(ours[name], theirs[name])
    labelled = tokenizers[0].pad({"input_ids": [5, 6], "label": 3}, return_tensors=kind)
    assert int(labelled["label"]) == 3


def test_empty_rows_hold_whole_numbers(tokenizers):
    padded = tokenizers[0].pad([{"input_ids": [], "attention_mask": []}], return_tensors="pt")
    assert padded["input_ids"].dtype == padded["attention_mask"].dtype == torch.int64
    assert padded["input_ids"].shape == (1, 0)
    padded = tokenizers[0].pad([{"input_ids": []}], return_tensors="np")
    assert padded["input_ids"].dtype == np.int64


def test_padding_counts_as_special(tokenizers):
    rows = [{"input_ids": [2, 9], "special_tokens_mask": [1, 0]}]
    rows.append({"input_ids": [2], "special_tokens_mask": [1]})
    assert tokenizers[0].pad(rows)["special_tokens_mask"] == [[1, 0], [1, 1]]
