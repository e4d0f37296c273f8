"""Text classification: equal to transformers' pipeline in every form, long texts in windows."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_pairs import pipeline, save_pair, tokenizer

from fastbert import CheckpointError, TruncationWarning
from fastbert.heads import BertForSequenceClassification
from fastbert.tasks.text_classification import FUNCTIONS, Label, TextClassification

TEXTS = ["The cat sat on the mat.", "?", "unbelievable tea!", "國 中 cafe", "bad river " * 9]
PAIRS = ["a dog", "it was good", "", "he ran, she saw", "[SEP] [MASK]"]
NAMES = ["negative", "so-so", "positive", "unsure"]
FORMS: dict[str, dict[str, Any]] = {
    "single": {"num_labels": 4, "problem_type": "single_label_classification"},
    "unnamed": {"num_labels": 3},
    "multi": {"num_labels": 4, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "regressions": {"num_labels": 3, "problem_type": "regression"},
    "one": {"num_labels": 1},
}
LONG = "the big cat ran to the old house , and the river was red . " * 8


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("text_classification")
    for name, form in FORMS.items():
        labels = dict(enumerate(NAMES[: form["num_labels"]]))
        save_pair(root / name, "BertForSequenceClassification", **form, id2label=labels)
    return {name: root / name for name in FORMS}


@pytest.fixture(scope="module")
def task(directories: dict[str, Path]) -> TextClassification:
    return TextClassification(directories["single"])


def compare(ours: list[Label], theirs: list[dict[str, Any]]) -> None:
    assert [label.label for label in ours] == [other["label"] for other in theirs]
    for label, other in zip(ours, theirs, strict=True):
        assert type(label.score) is float
        assert abs(label.score - other["score"]) <= 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_pipeline(directories: dict[str, Path], form: str) -> None:
    ours = TextClassification(directories[form])
    theirs = pipeline("text-classification", directories[form])
    choices = [(None, 1), (None, 2), (None, 99), *((name, None) for name in (None, *FUNCTIONS))]
    for function, top_k in choices:
        found = ours(TEXTS, top_k=top_k, function=function)
        for mine, text in zip(found, TEXTS, strict=True):
            compare(mine, theirs(text, top_k=top_k, function_to_apply=function))
    for mine, text in zip(ours(TEXTS), TEXTS, strict=True):
        compare(mine, theirs(text))


def test_pairs_equal_the_pipeline(directories: dict[str, Path], task: TextClassification) -> None:
    theirs = pipeline("text-classification", directories["single"])
    for mine, text, pair in zip(task(TEXTS, PAIRS, top_k=None), TEXTS, PAIRS, strict=True):
        if pair:  # transformers drops an empty second text of a single pair
            compare(mine, theirs({"text": text, "text_pair": pair}, top_k=None))
            compare(
                task(text, pair, top_k=None), theirs({"text": text, "text_pair": pair}, top_k=None)
            )
    alone, beside_nothing = task(TEXTS[2], top_k=None), task(TEXTS[2], "", top_k=None)
    assert alone != beside_nothing  # an empty second text is one


def test_long_texts_are_cut_with_a_warning(
    directories: dict[str, Path], task: TextClassification
) -> None:
    theirs = pipeline("text-classification", directories["single"])
    cut = {"truncation": True, "max_length": 40, "top_k": None}
    with pytest.warns(TruncationWarning, match="1 text is longer than 40 tokens") as record:
        found = task(["the cat", LONG], top_k=None)
    assert record[0].filename == __file__
    compare(found[1], theirs(LONG, **cut))
    with pytest.warns(TruncationWarning):
        paired = task(LONG, "a dog ran", top_k=None)
    compare(paired, theirs({"text": LONG, "text_pair": "a dog ran"}, **cut))


def by_hand(directory: Path, text: str, stride: int) -> torch.Tensor:
    """(W, num_labels) logits of windows that transformers computes one by one."""
    import transformers

    model = transformers.BertForSequenceClassification.from_pretrained(
        directory, dtype=torch.float64
    ).eval()
    reader = transformers.AutoTokenizer.from_pretrained(directory)
    ids = reader(text, add_special_tokens=False)["input_ids"]
    logits = []
    start = 0
    while True:
        row = [reader.cls_token_id, *ids[start : start + 38], reader.sep_token_id]
        with torch.no_grad():
            logits.append(model(torch.tensor([row])).logits[0])
        if start + 38 >= len(ids):
            return torch.stack(logits)
        start += 38 - stride


@pytest.mark.parametrize(
    ("form", "stride"),
    [("single", 0), ("single", 7), ("single", 30), ("multi", 5), ("regression", 5)],
)
def test_windows_combine_logits_before_the_function(
    directories: dict[str, Path], form: str, stride: int
) -> None:
    task = TextClassification(directories[form], dtype="float64")
    logits = by_hand(directories[form], LONG, stride)
    assert len(logits) > 3
    combined = {"sum": logits.sum(0), "mean": logits.mean(0), "max": logits.max(0).values}
    functions = {"none": lambda x: x, "softmax": lambda x: x.softmax(0), "sigmoid": torch.sigmoid}
    for combine, values in combined.items():
        for function, apply in functions.items():
            options = {"top_k": None, "function": function, "combine": combine, "stride": stride}
            labels = task(["the cat", LONG, ""], batch_tokens=100, **options)[1]
            by_name = {label.label: label.score for label in labels}
            ours = np.array([by_name[name] for name in NAMES[: len(values)]])
            assert np.abs(ours - apply(values).numpy()).max() <= 1e-10
            scores = [label.score for label in labels]
            assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("combine", ["sum", "mean", "max"])
def test_short_texts_are_as_without_windows(task: TextClassification, combine: str) -> None:
    exactly = " ".join(["cat"] * 38)
    texts = [*TEXTS, exactly]
    assert task(texts, top_k=None, combine=combine, stride=5) == task(texts, top_k=None)
    assert task(exactly, combine=combine) == task(exactly)
    assert task([], combine=combine) == []


def test_forms_batches_and_order(task: TextClassification) -> None:
    whole = task(TEXTS, top_k=None)
    assert all(len(labels) == 4 for labels in whole)
    alone = [task(text, top_k=None) for text in TEXTS]
    for other in (task(tuple(TEXTS), top_k=None, batch_tokens=1, progress=False), alone):
        for mine, theirs in zip(whole, other, strict=True):
            assert [a.label for a in mine] == [b.label for b in theirs]
            assert all(abs(a.score - b.score) <= 1e-6 for a, b in zip(mine, theirs, strict=True))
    assert task([]) == []
    assert task([], []) == []
    assert [len(labels) for labels in task(TEXTS)] == [1] * len(TEXTS)


@pytest.mark.parametrize("combine", [None, "sum"])
def test_a_blank_text_has_no_labels(task: TextClassification, combine: str | None) -> None:
    assert [len(found) for found in task(["", "a cat", " \n"], combine=combine)] == [0, 1, 0]
    assert task("", combine=combine) == []
    assert len(task("", "a dog")) == 1


def test_a_model_in_training_keeps_its_modes(task: TextClassification) -> None:
    """Module by module: who trains a head on a frozen encoder has that in eval mode."""
    task.model.train()
    task.model.bert.eval()
    before = [module.training for module in task.model.modules()]
    try:
        task("a cat")
        assert [module.training for module in task.model.modules()] == before
    finally:
        task.model.eval()


def test_threads_share_a_model_in_training(
    task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that is done must not switch the others' dropout on, nor the last leave it off."""
    forward, met = BertForSequenceClassification.forward, threading.Barrier(2, timeout=20)
    first, seen = threading.Event(), []

    def slow(model: Any, *args: Any, **options: Any) -> Any:
        first.set()
        met.wait()  # both are inside
        if threading.current_thread().name == "late":
            early.join()
        seen.append(any(module.training for module in model.modules()))
        return forward(model, *args, **options)

    monkeypatch.setattr(BertForSequenceClassification, "forward", slow)
    early = threading.Thread(target=task, args=("a cat",))
    late = threading.Thread(target=task, args=("a cat",), name="late")
    task.model.train()
    try:
        early.start()
        assert first.wait(20)
        late.start()
        for thread in (early, late):
            thread.join()
        assert seen == [False, False]
        assert all(module.training for module in task.model.modules())
    finally:
        task.model.eval()


def test_equal_scores_stand_in_the_configs_order(directories: dict[str, Path]) -> None:
    model = BertForSequenceClassification.from_pretrained(directories["single"])
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)
    labels = TextClassification(model, tokenizer())("the cat", top_k=None)
    assert labels == [Label(name, 0.25) for name in NAMES]


def test_extreme_logits_give_scores(directories: dict[str, Path]) -> None:
    model = BertForSequenceClassification.from_pretrained(directories["single"])
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([-2000.0, 2000.0, 0.0, 1e30]))
    task = TextClassification(model, tokenizer())
    for function in ("softmax", "sigmoid", "none"):
        labels = task("the cat", top_k=None, function=function)
        assert all(np.isfinite(label.score) for label in labels)
    assert task("the cat")[0] == Label("unsure", 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "median"}, "combine is 'median', supported: sum, mean, max"),
        ({"combine": "sum", "stride": 38}, "stride is 38, expected 0 to 37: it is the overlap"),
        ({"combine": "sum", "stride": -1}, "stride is -1, expected 0 to 37"),
        ({"combine": "sum", "pairs": PAIRS}, "a pair has no windows"),
        ({"stride": 3}, "stride is 3, but combine None cuts texts"),
        ({"function": "relu"}, "function is 'relu', supported: softmax, sigmoid, none"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": True}, "top_k is True"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"pairs": PAIRS[:2]}, "5 texts, but 2 pairs"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"batch_tokens": 0, "combine": "max"}, "batch_tokens is 0"),
    ],
)
def test_refusals(task: TextClassification, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(TEXTS, **options)


@pytest.mark.parametrize("combine", [None, "sum"])
def test_wrong_types(task: TextClassification, combine: str | None) -> None:
    with pytest.raises(TypeError, match="text 1 is a int, expected str"):
        task(["a", 3], combine=combine)
    with pytest.raises(ValueError, match=r"text 1 holds the lone surrogate U\+DC00"):
        task(["a", "b\udc00"], combine=combine)
    with pytest.raises(TypeError, match="one str each"):
        task("a", ["b"], combine=combine)
    with pytest.raises(TypeError, match="expected a list of str"):
        task(b"a", combine=combine)


def test_a_checkpoint_without_the_head(tmp_path: Path) -> None:
    save_pair(tmp_path, "BertForMaskedLM")
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        TextClassification(tmp_path)
