"""Labels of every form and the losses they give; which logits are made; what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from bert_pair import CLOSE
from heads_pair import (
    NAMES,
    TINY,
    TOKEN_LABELS,
    S,
    assert_no_gradient,
    assert_same_gradients,
    fresh,
    head_pair,
    make_batch,
    plain_formula,
    rows_of,
    true_loss,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbert.config import BertConfig
from fastbert.heads import (
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertForTokenClassification,
    losses,
)

SEQUENCE = "BertForSequenceClassification"


def close(a, b):
    torch.testing.assert_close(a, b, **CLOSE)


@pytest.fixture(scope="module")
def pairs():
    """One pair of models a head; tests leave weights alone, and config where it is recorded."""
    return {name: head_pair(name) for name in NAMES}


def logits_of(name, output):
    return output["prediction_logits" if name == "BertForPreTraining" else "logits"]


# Labels over classes


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16, torch.int8])
@pytest.mark.parametrize("name", NAMES)
def test_labels_of_any_integer_type(pairs, name, dtype):
    ours, theirs = fresh(pairs[name])
    batch = make_batch(name, "right", seed=2)
    expected = true_loss(batch, rows_of(theirs, batch))
    labels = {key: value.to(dtype) for key, value in batch.labels.items()}
    close(ours(**batch.inputs(), **labels).loss, expected)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in TOKEN_LABELS])
def test_labels_of_shape_b_1(pairs, name):
    ours, _ = fresh(pairs[name])
    batch = make_batch(name)
    expected = ours(**batch.inputs(), **batch.labels).loss
    labels = {key: value[:, None] for key, value in batch.labels.items()}
    close(ours(**batch.inputs(), **labels).loss, expected)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_all_labels_ignored_give_zero(pairs, name, packed, train):
    """transformers gives NaN."""
    ours, _ = fresh(pairs[name])
    batch = make_batch(name, "holes")
    for key, value in batch.labels.items():
        beyond = "positions" in key
        batch.labels[key] = torch.full_like(value, S if beyond else -100)
    call = batch.packed() if packed else {**batch.inputs(), **batch.labels}
    output = ours.train(train)(**call)
    assert output.loss == 0
    assert output.loss.requires_grad
    output.loss.backward()
    assert_no_gradient(ours)
    ours.eval()


def test_ignored_labels_weigh_nothing(pairs):
    for name in ("BertForNextSentencePrediction", SEQUENCE):
        ours, theirs = fresh(pairs[name])
        batch = make_batch(name, "left")
        batch.labels["labels"] = torch.tensor([1, -100, 0])
        loss = ours(**batch.inputs(), **batch.labels).loss
        expected = true_loss(batch, rows_of(theirs, batch))
        close(loss, expected)
        loss.backward()
        expected.backward()
        assert_same_gradients(ours, theirs)


def test_labels_on_padding_count_for_nothing(pairs):
    for name in TOKEN_LABELS:
        ours, _ = fresh(pairs[name])
        batch = make_batch(name, "holes")
        expected = ours(**batch.inputs(), **batch.labels).loss
        for other in (-100, 1, 10**6, -7):  # no class either: nobody looks there
            labels = batch.labels["labels"].masked_fill(batch.mask == 0, other)
            changed = {**batch.labels, "labels": labels}
            close(ours(**batch.inputs(), **changed).loss, expected)


def test_accumulated_losses_without_labels_stay_finite(pairs):
    ours, _ = fresh(pairs["BertForTokenClassification"])
    full = make_batch("BertForTokenClassification")
    none = torch.full((3, S), -100)
    total = ours(full.ids, labels=full.labels["labels"]).loss + ours(full.ids, labels=none).loss
    close(total, ours(full.ids, labels=full.labels["labels"]).loss)


# The classifier's problem types


CASES = [  # problem type, num_labels, labels: (B,) or (B, num_labels)
    ("regression", 1, torch.tensor([0.5, -1.0, 2.0])),
    ("regression", 1, torch.tensor([[0.5], [-1.0], [2.0]])),
    ("regression", 1, torch.tensor([3, -1, 2])),
    ("regression", 1, torch.tensor([[3], [-1], [2]], dtype=torch.int32)),
    ("regression", 3, torch.arange(9.0).view(3, 3) / 3),
    ("regression", 3, torch.arange(9).view(3, 3)),
    ("multi_label_classification", 3, torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0.25, 1]])),
    ("multi_label_classification", 3, torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]])),
    ("multi_label_classification", 3, torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]]) > 0),
    ("multi_label_classification", 1, torch.tensor([[0], [1], [1]])),
    ("single_label_classification", 3, torch.tensor([2, 0, 1])),
    ("single_label_classification", 3, torch.tensor([2, 0, 1], dtype=torch.int32)),
    ("single_label_classification", 3, torch.tensor([[2], [-100], [1]])),
]


@pytest.mark.parametrize(("problem", "num_labels", "labels"), CASES)
def test_problem_types(problem, num_labels, labels):
    ours, theirs = head_pair(SEQUENCE, num_labels=num_labels, problem_type=problem)
    batch = make_batch(SEQUENCE, "right")
    a = ours(**batch.inputs(), labels=labels)
    theirs_labels = labels.double() if "single" not in problem else labels.long()
    b = theirs(**batch.inputs(), labels=theirs_labels)
    close(a.loss, b.loss)
    close(a.loss, plain_formula(a.logits, labels, problem.split("_")[0]))
    a.loss.backward()
    b.loss.backward()
    assert_same_gradients(ours, theirs)
    packed = {**batch.packed(), "labels": labels}
    close(ours(**packed).loss, b.loss)
    assert ours.config.problem_type == problem


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem"),
    [
        (1, torch.tensor([0.5, 1.0, -1.0], dtype=torch.float64), "regression"),
        (1, torch.tensor([3, 1, 4]), "regression"),
        (3, torch.tensor([0, 2, 1]), "single_label_classification"),
        (3, torch.tensor([0, 2, 1], dtype=torch.int32), "single_label_classification"),
        (3, torch.tensor([[0.0, 1, 1]] * 3, dtype=torch.float64), "multi_label_classification"),
        (3, torch.tensor([[False, True, True]] * 3), "multi_label_classification"),
    ],
)
def test_the_first_labels_decide(tmp_path, num_labels, labels, problem):
    ours, theirs = head_pair(SEQUENCE, num_labels=num_labels)
    batch = make_batch(SEQUENCE)
    assert ours.config.problem_type is None
    ours(**batch.inputs())
    assert ours.config.problem_type is None  # without labels nothing is known
    a = ours(**batch.inputs(), labels=labels)
    theirs_labels = labels.double() if problem == "regression" else labels
    if labels.dtype == torch.int32:  # transformers decides on it, and then can't compute it
        theirs_labels = labels.long()
    if labels.dtype == torch.bool:
        theirs_labels = labels.double()
    b = theirs(**batch.inputs(), labels=theirs_labels)
    close(a.loss, b.loss)
    assert ours.config.problem_type == theirs.config.problem_type == problem
    ours.save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path).problem_type == problem


# Losses in themselves


def test_losses_are_made_in_float32():
    logits = torch.tensor([[10.0, 10.0, 10.0]], dtype=torch.bfloat16)
    loss = losses.cross_entropy(logits, torch.tensor([0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    assert losses.squared_error(one, torch.tensor([[1.001]])).item() == pytest.approx(1e-6, 1e-3)
    expected = F.softplus(torch.tensor(-1.0)).item()
    assert losses.binary_cross_entropy(one, one).item() == pytest.approx(expected, abs=1e-6)


numbers = st.floats(-30, 30, allow_nan=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), rows=st.integers(1, 5), classes=st.integers(1, 4))
def test_losses_equal_plain_formulas(data, rows, classes):
    flat = data.draw(st.lists(numbers, min_size=rows * classes, max_size=rows * classes))
    logits = torch.tensor(flat, dtype=torch.float64).view(rows, classes)
    picks = st.one_of(st.just(-100), st.integers(0, classes - 1))
    labels = data.draw(st.lists(picks, min_size=rows, max_size=rows))
    terms = [
        math.log(sum(math.exp(x - max(row)) for x in row)) + max(row) - row[label]
        for row, label in zip(logits.tolist(), labels, strict=True)
        if label != -100
    ]
    expected = sum(terms) / len(terms) if terms else 0.0
    actual = losses.cross_entropy(logits, torch.tensor(labels))
    assert actual.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    soft = torch.tensor(flat[::-1], dtype=torch.float64).sigmoid().view(rows, classes)
    close(losses.binary_cross_entropy(logits, soft), plain_formula(logits, soft, "multi"))
    close(losses.squared_error(logits, soft), plain_formula(logits, soft, "regression"))


def test_dropout_before_the_classifier():
    """Its own rate, or that of the hidden states; none in eval mode."""
    for cls in (BertForSequenceClassification, BertForTokenClassification, BertForMultipleChoice):
        for own, hidden, rate in ((0.5, 0.0, 0.5), (None, 0.3, 0.3), (0.0, 0.3, 0.0)):
            rates = {"classifier_dropout": own, "hidden_dropout_prob": hidden}
            assert cls(BertConfig(**TINY, **rates)).dropout.p == rate
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for name in (SEQUENCE, "BertForTokenClassification", "BertForMultipleChoice"):
        ours, _ = head_pair(name, classifier_dropout=0.5, **rates)
        call = make_batch(name).inputs()
        still = ours(**call).logits
        close(ours(**call).logits, still)
        ours.train()
        torch.manual_seed(0)
        assert not torch.allclose(ours(**call).logits, still)
