"""`CrossEncoder`'s scores and ranks against sentence-transformers', and bad input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cross_encoders import LIMIT, make, peer, some_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbert import BertModel, TruncationWarning
from fastbert.cross_encoder import CrossEncoder
from fastbert.heads import BertForSequenceClassification


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("three"), num_labels=3)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> CrossEncoder:
    return CrossEncoder(folder)


quiet = pytest.mark.filterwarnings("ignore::fastbert.TruncationWarning")


@quiet
@pytest.mark.parametrize(("dtype", "bar"), [("float32", 1e-6), ("float64", 1e-10)])
@pytest.mark.parametrize("which", ["folder", "three"])
def test_equals_sentence_transformers(
    which: str, dtype: str, bar: float, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(which)
    ours, theirs = CrossEncoder(place, dtype=dtype), peer(place, getattr(torch, dtype))
    pairs = some_pairs()
    truth = theirs.predict(pairs, convert_to_tensor=True)
    spread = truth.std(dim=0)
    assert spread.min() > 0.05  # equal scores would show nothing
    scores = ours.predict(pairs, convert_to_tensor=True)
    assert (scores.dtype, scores.shape) == (truth.dtype, truth.shape)
    assert (scores - truth).abs().max() <= bar
    one_by_one = ours.predict(pairs, batch_size=1, convert_to_tensor=True)
    assert (one_by_one - truth).abs().max() <= bar


@quiet
def test_ranks_as_sentence_transformers(folder: Path, encoder: CrossEncoder) -> None:
    theirs = peer(folder)
    documents = list(dict.fromkeys(second for _, second in some_pairs(60)))  # no ties
    for options in ({}, {"top_k": 7}, {"return_documents": True, "top_k": 100, "batch_size": 2}):
        ours = encoder.rank("how do i undo", documents, **options)
        truth = theirs.rank("how do i undo", documents, **options)
        assert [list(row) for row in ours] == [list(row) for row in truth]
        assert [row["corpus_id"] for row in ours] == [row["corpus_id"] for row in truth]
        assert [row.get("text") for row in ours] == [row.get("text") for row in truth]
        assert all(isinstance(row["score"], float) for row in ours)
        for a, b in zip(ours, truth, strict=True):
            assert abs(a["score"] - b["score"]) <= 1e-6


def test_equal_scores_stay_in_order(encoder: CrossEncoder) -> None:
    ranked = encoder.rank("cat", ["mat", "cat", "mat", "cat"], activation_fn=lambda x: 0 * x)
    assert [row["corpus_id"] for row in ranked] == [0, 1, 2, 3]


def test_no_documents_and_no_pairs(encoder: CrossEncoder, three: Path) -> None:
    assert encoder.rank("cat", []) == []
    assert encoder.rank("cat", [], top_k=3, return_documents=True) == []
    scores = encoder.predict([])
    assert (scores.shape, scores.dtype) == ((0,), np.float32)
    assert encoder.predict([], convert_to_numpy=False) == []
    assert encoder.predict([], convert_to_tensor=True).shape == (0,)
    assert CrossEncoder(three).predict([], apply_softmax=True).shape == (0, 3)


def test_return_types_are_sentence_transformers(
    folder: Path, encoder: CrossEncoder, three: Path
) -> None:
    pairs = [["cat", "mat"], ["late", "the cat"]]
    for ours, theirs in ((encoder, peer(folder)), (CrossEncoder(three), peer(three))):
        for given_ in (pairs, pairs[0], tuple(pairs[0]), np.array(pairs), np.array(pairs[0])):
            for options in (
                {},
                {"convert_to_numpy": False},
                {"convert_to_tensor": True},
                {"convert_to_tensor": True, "convert_to_numpy": False},
            ):
                a, b = ours.predict(given_, **options), theirs.predict(given_, **options)
                assert type(a) is type(b)
                if isinstance(a, list):
                    assert [row.shape for row in a] == [row.shape for row in b]
                    a, b = torch.stack(a), torch.stack(b)
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                assert abs(a - b).max() <= 1e-6


def test_half_precision_is_widened_before_the_activation(folder: Path) -> None:
    ours = CrossEncoder(folder, dtype="bfloat16")
    seen: list[torch.dtype] = []
    scores = ours.predict(
        [("cat", "mat")], activation_fn=lambda x: (seen.append(x.dtype), x.double())[1]
    )
    assert seen == [torch.float32]
    assert scores.dtype == np.float32
    truth = CrossEncoder(folder).predict([("cat", "mat")])
    assert abs(ours.predict([("cat", "mat")]) - truth).max() < 0.05


def test_activation_softmax_and_names_of_arguments(three: Path, folder: Path) -> None:
    ours, theirs = CrossEncoder(three), peer(three)
    pairs = some_pairs(6, seed=3)[:4]
    for options in (
        {"apply_softmax": True},
        {"activation_fn": torch.nn.Sigmoid()},
        {"activation_fn": torch.tanh, "apply_softmax": True},
        {"prompt": "how do i "},
        {"show_progress_bar": False, "batch_size": 3, "device": "cpu"},
    ):
        with warnings.catch_warnings(action="ignore", category=TruncationWarning):
            a, b = ours.predict(pairs, **options), theirs.predict(pairs, **options)
            c = ours.predict(sentences=pairs, **options)
        assert abs(a - b).max() <= 1e-6
        assert (a == c).all()
    one = CrossEncoder(folder)  # a softmax over one label would be 1
    assert one.predict(("cat", "mat"), apply_softmax=True) == one.predict(("cat", "mat"))


def test_a_prompt_stands_before_the_first_text(encoder: CrossEncoder) -> None:
    assert encoder.predict(("cat", "mat"), prompt="the ") == encoder.predict(("the cat", "mat"))
    ranked = encoder.rank("cat", ["mat"], prompt="the ")
    assert ranked == encoder.rank("the cat", ["mat"])
    assert encoder.predict(("cat", "mat"), prompt="") == encoder.predict(("cat", "mat"))


@quiet
@settings(max_examples=15, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 4))
def test_order_is_kept(encoder: CrossEncoder, order: list[int], batch_size: int) -> None:
    pairs = some_pairs(12, seed=5)
    scores = encoder.predict(pairs)
    shuffled = encoder.predict([pairs[i] for i in order], batch_size=batch_size)
    assert abs(shuffled - scores[order]).max() <= 1e-6


def test_a_model_in_memory(folder: Path) -> None:
    truth = CrossEncoder(folder)
    model = BertForSequenceClassification.from_pretrained(folder).train()
    ours = CrossEncoder(model, truth.tokenizer)
    scores = ours.predict([("cat", "mat")] * 3)
    assert (scores == truth.predict([("cat", "mat")] * 3)).all()  # dropout was off
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(TypeError, match="tokenizer"):
        CrossEncoder(model)
    with pytest.raises(TypeError, match="BertModel"):
        CrossEncoder(BertModel(truth.config), truth.tokenizer)


# Bad input


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("cat", "inputs must be a pair or a list of pairs, not str"),
        (b"cat", "not bytes"),
        ({"a": "b"}, "not dict"),
        (7, "not int"),
        (None, "pass the pairs as inputs"),
        (["cat"], "pair 0 holds 1 things"),
        (["a", "b", "c"], "pair 0 holds 3 things"),
        (["a", 1], "pair 0: its second is a int"),
        ([("a", "b"), "ab"], "pair 1 is a str, expected a pair of str"),
        ([("a", "b"), ("a", "b"), ("c",)], "pair 2 holds 1 things"),
        ([("a", "b"), (None, "b")], "pair 1: its first is a NoneType"),
        ([("a", "b"), {"a": "b"}], "pair 1 is a dict"),
        ([[["a"], ["b"]]], "pair 0: its first is a list"),
        (np.array([[1, 2]]), "pair 0: its first is a int"),
    ],
)
def test_what_is_no_pair_is_named(encoder: CrossEncoder, inputs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        encoder.predict(inputs)
    assert "cat" not in str(caught.value)


def test_bad_arguments_of_predict(encoder: CrossEncoder, three: Path) -> None:
    pair = ("cat", "mat")
    with pytest.raises(TypeError, match="pass the pairs as inputs"):
        encoder.predict([pair], sentences=[pair])
    with pytest.raises(ValueError, match=r"text 1 holds the lone surrogate U\+D800"):
        encoder.predict([pair, ("a", "\ud800")])
    for size in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="batch_size"):
            encoder.predict([pair], batch_size=size)
    with pytest.raises(ValueError, match="no prompt is named 'query'"):
        encoder.predict([pair], prompt_name="query")
    with pytest.raises(TypeError, match="activation_fn is a str"):
        encoder.predict([pair], activation_fn="Sigmoid")
    for wrong in (lambda x: 5, lambda x: x[:1], lambda x: x.sum()):
        with pytest.raises(ValueError, match="a row for each pair"):
            encoder.predict([pair, pair], activation_fn=wrong)
    with pytest.raises(ValueError, match="device"):
        encoder.predict([pair], device="nowhere")
    with pytest.raises(ValueError, match="special tokens"):
        CrossEncoder(three, max_length=2).predict([pair])


def test_bad_arguments_of_rank(encoder: CrossEncoder, three: Path) -> None:
    for top_k in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="top_k"):
            encoder.rank("a", ["b"], top_k=top_k)
    with pytest.raises(TypeError, match="prompt is a int"):
        encoder.rank("a", ["b"], prompt=3)
    with pytest.raises(TypeError, match="query 0 is a int"):
        encoder.rank(3, ["a"])
    with pytest.raises(TypeError, match="document is a str"):
        encoder.rank("a", "documents")
    with pytest.raises(TypeError, match="document 1 is a NoneType"):
        encoder.rank("a", ["b", None])
    with pytest.raises(ValueError, match="lone surrogate"):
        encoder.rank("\udfff", ["a"])
    with pytest.raises(ValueError, match="the model gives 3 scores a pair"):
        CrossEncoder(three).rank("a", ["b"])


def test_scores_that_have_no_order_are_refused(encoder: CrossEncoder) -> None:
    def spoil(logits: torch.Tensor) -> torch.Tensor:
        logits[1] = float("nan")
        return logits

    documents = ["cat", "mat", "the cat", "a"]
    with pytest.raises(ValueError, match="document 1: the score is not a number"):
        encoder.rank("cat", documents, activation_fn=spoil)
    assert np.isnan(encoder.predict([("cat", d) for d in documents], activation_fn=spoil)[1])


def test_cut_pairs_are_counted_once(encoder: CrossEncoder) -> None:
    full = "cat " * (LIMIT - 4)  # with one more word and three special tokens: exactly the limit
    with warnings.catch_warnings(action="error"):
        encoder.predict([(full, "mat"), ("mat", full)], batch_size=1)
        encoder.rank("mat", [full])
    with pytest.warns(TruncationWarning) as caught:
        encoder.predict([(full + "cat", "mat"), ("a", "a"), ("mat", full * 3)], batch_size=1)
    assert [w.filename for w in caught] == [__file__]
    warning = caught[0].message
    assert isinstance(warning, TruncationWarning)
    assert (warning.count, warning.total, warning.limit) == (2, 3, LIMIT)
    with pytest.warns(TruncationWarning, match="1 text is") as caught:
        encoder.rank("mat", [full, full + "cat"])
    assert [w.filename for w in caught] == [__file__]


def test_texts_are_neither_printed_nor_logged(
    folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    encoder = CrossEncoder(folder)
    encoder.predict([("undo", "commit")] * 3, show_progress_bar=False)
    encoder.rank("undo", ["commit"], return_documents=True)
    encoder.predict([("undo", "commit")] * 3, show_progress_bar=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    for text in ("undo", "commit"):
        assert text not in shown.err + caplog.text
