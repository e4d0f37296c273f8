"""Next sentence: the first logit says "is next", pairs in order, cut texts named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from task_pairs import save_pair, tokenizer

from fastbert import CheckpointError, TruncationWarning
from fastbert.heads import BertForMaskedLM, BertForNextSentencePrediction
from fastbert.tasks.next_sentence import NextSentence, NextSentenceResult

FIRSTS = ["The cat sat.", "he ran to the river bank", "", "tea", "Paris!"]
SECONDS = ["It was good.", "", "a dog", "was it big, or small?", "國中"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("next_sentence")
    save_pair(path, "BertForNextSentencePrediction")
    return path


@pytest.fixture(scope="module")
def task(directory: Path) -> NextSentence:
    return NextSentence(directory)


def truth(directory: Path, first: str, second: str, **cut: Any) -> float:
    """The softmax of transformers' first logit."""
    import transformers

    reader = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.BertForNextSentencePrediction.from_pretrained(
        directory, dtype=torch.float64
    ).eval()
    with torch.no_grad():
        # As a batch: for a single pair, transformers drops an empty second text.
        logits = model(**reader([first], [second], return_tensors="pt", **cut)).logits[0]
    return float(logits.softmax(0)[0])


def test_equals_transformers(directory: Path, task: NextSentence) -> None:
    found = task(FIRSTS, SECONDS)
    assert len(found) == len(FIRSTS)
    expected = [truth(directory, a, b) for a, b in zip(FIRSTS, SECONDS, strict=True)]
    for result, score in zip(found, expected, strict=True):
        assert abs(result.score - score) <= 1e-6
        assert type(result.score) is float
        assert result.is_next is (score >= 0.5)
    precise = NextSentence(directory, dtype="float64")(FIRSTS, SECONDS)
    for result, score in zip(precise, expected, strict=True):
        assert abs(result.score - score) <= 1e-12
    assert max(expected) - min(expected) > 1e-3  # or nothing would show
    swapped = task(SECONDS, FIRSTS)
    assert abs(swapped[0].score - found[0].score) > 1e-4


@pytest.mark.parametrize(("bias", "follows"), [([9.0, 0.0], True), ([0.0, 9.0], False)])
def test_index_zero_is_next(directory: Path, bias: list[float], follows: bool) -> None:
    model = BertForNextSentencePrediction.from_pretrained(directory)
    with torch.no_grad():
        model.cls.seq_relationship.weight.zero_()
        model.cls.seq_relationship.bias.copy_(torch.tensor(bias))
    result = NextSentence(model, tokenizer())("the cat", "sat")
    assert result.is_next is follows
    assert result.score == pytest.approx(1 / (1 + 2.718281828459045 ** (bias[1] - bias[0])))


def test_even_odds_count_as_next(directory: Path) -> None:
    model = BertForNextSentencePrediction.from_pretrained(directory)
    torch.nn.init.zeros_(model.cls.seq_relationship.weight)
    torch.nn.init.zeros_(model.cls.seq_relationship.bias)
    assert NextSentence(model, tokenizer())("the", "cat") == NextSentenceResult(True, 0.5)


def test_forms_batches_and_order(task: NextSentence) -> None:
    whole = task(FIRSTS, SECONDS)
    small = task(tuple(FIRSTS), tuple(SECONDS), batch_tokens=1, progress=False)
    alone = [task(a, b) for a, b in zip(FIRSTS, SECONDS, strict=True)]
    for other in (small, alone):
        for a, b in zip(whole, other, strict=True):
            assert isinstance(b, NextSentenceResult)
            assert abs(a.score - b.score) <= 1e-6
    assert task([], []) == []


def test_long_pairs_are_cut_with_a_warning(directory: Path, task: NextSentence) -> None:
    long = "the cat sat on the mat " * 20
    with pytest.warns(TruncationWarning, match="1 text is longer than 40 tokens") as record:
        found = task(["the cat", long], ["sat", "the dog ran"])
    assert record[0].filename == __file__
    score = truth(directory, long, "the dog ran", truncation=True, max_length=40)
    assert abs(found[1].score - score) <= 1e-6


def test_refusals(task: NextSentence, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 texts, but 1 pairs"):
        task(["a", "b"], ["c"])
    with pytest.raises(TypeError, match="one str each, or a list of str each"):
        task("a", ["b"])
    with pytest.raises(TypeError, match="one str each, or a list of str each"):
        task(["a"], "b")
    with pytest.raises(TypeError, match="pair 1 is a int"):
        task(["a", "b"], ["c", 4])
    with pytest.raises(TypeError, match="text 0 is a NoneType"):
        task([None], ["c"])
    with pytest.raises(TypeError, match="NextSentence needs a BertForNextSentencePrediction"):
        NextSentence(BertForMaskedLM(task.config), task.tokenizer)
    save_pair(tmp_path, "BertForMaskedLM")
    with pytest.raises(CheckpointError, match="seq_relationship"):
        NextSentence(tmp_path)
