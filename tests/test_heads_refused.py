"""What heads refuse, and that they refuse it before the encoder runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from heads_pair import NAMES, PREDICTING, TINY, TOKEN_LABELS, N, S, V, head_pair, make_batch
from torch import nn

from fastbert import ops
from fastbert.heads import BertForMaskedLM, BertForMultipleChoice, BertForQuestionAnswering
from fastbert.ops import flags
from fastbert.packing import pack

SEQUENCE = "BertForSequenceClassification"


class Fails(nn.Module):
    """Stands where the encoder stood: whoever runs it is late."""

    checkpointing = None

    def forward(self, *args, **kwargs):
        raise AssertionError("the encoder ran before the labels were looked at")


@pytest.fixture
def guarded():
    """One head of a name, its encoder and embeddings replaced by ones that fail."""

    def make(name, **changes):
        ours, _ = head_pair(name, **changes)
        ours.bert.encoder = Fails()
        ours.bert.embeddings.forward = Fails().forward
        return ours

    return make


@pytest.mark.parametrize("bad", [N, -1, -99, 2**40])
@pytest.mark.parametrize("name", [n for n in NAMES if "Question" not in n])
def test_a_class_out_of_range_is_named(guarded, name, bad):
    ours = guarded(name)
    batch = make_batch(name)
    bad = V if bad == N and name in PREDICTING else bad
    for key, value in batch.labels.items():
        classes = V if name in PREDICTING and key == "labels" else 2 if "ext" in key else N
        classes = 2 if name == "BertForNextSentencePrediction" else classes
        labels = {**batch.labels, key: value.clone()}
        labels[key].view(-1)[-1] = bad
        with pytest.raises(IndexError, match=rf"{key} hold {bad}; .*{classes} classes"):
            ours(**batch.inputs(), **labels)
        batch_of_labels, batch.labels = batch.labels, labels
        with pytest.raises(IndexError, match=rf"{key} hold {bad}; "):
            ours(**batch.packed())
        batch.labels = batch_of_labels


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_are_no_integers_are_refused(guarded, name):
    ours = guarded(name, problem_type="single_label_classification")
    batch = make_batch(name)
    for key, value in batch.labels.items():
        floats = value.double()
        for bad in (floats, value > 0, value.tolist(), value.numpy(), floats + 0j):
            with pytest.raises(TypeError, match=rf"{key} must be a tensor"):
                ours(**batch.inputs(), **{**batch.labels, key: bad})


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_another_shape_are_refused(guarded, name):
    ours = guarded(name, problem_type="single_label_classification")
    batch = make_batch(name)
    for key, value in batch.labels.items():
        wrong = [value[:2], torch.cat([value, value]), value[:0]]
        if value.dim() == 2:
            wrong += [value[:, :-1], value[0], value.T, value[None, None]]
        for bad in wrong:
            with pytest.raises(ValueError, match=rf"{key} must be \("):
                ours(**batch.inputs(), **{**batch.labels, key: bad})
    if name in TOKEN_LABELS:
        call = batch.packed()
        call["labels"] = batch.labels["labels"]
        with pytest.raises(ValueError, match=r"labels must be \(T,\) = \(27,\)"):
            ours(**call)


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels"),
    [
        ("regression", 3, torch.zeros(3)),
        ("regression", 1, torch.zeros(3, 2)),
        ("regression", 3, torch.zeros(2, 3)),
        ("multi_label_classification", 3, torch.zeros(3)),
        ("multi_label_classification", 3, torch.zeros(3, 2)),
        ("multi_label_classification", 3, torch.zeros(9)),
        ("multi_label_classification", 1, torch.zeros(3)),
        (None, 3, torch.zeros(3)),
    ],
)
def test_targets_of_another_shape_are_refused(guarded, problem, num_labels, labels):
    ours = guarded(SEQUENCE, problem_type=problem, num_labels=num_labels)
    batch = make_batch(SEQUENCE)
    with pytest.raises(ValueError, match=r"labels must be \(B, num_labels\) = \(3, "):
        ours(batch.ids, labels=labels)
    assert ours.config.problem_type == problem  # a mistake decides nothing


@pytest.mark.parametrize("bad", [-100, 2, float("nan"), -0.01, 1.01])
def test_targets_of_several_labels_out_of_range_are_named(guarded, bad):
    ours = guarded(SEQUENCE, problem_type="multi_label_classification", num_labels=3)
    batch = make_batch(SEQUENCE)
    labels = torch.tensor([[0, 1, 0.5], [1, bad, 0], [1, 1, 1]])
    with pytest.raises(IndexError, match=rf"labels hold {bad}.*; .* 0\.\.1"):
        ours(batch.ids, labels=labels)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_goes_beside_a_packed(guarded, name):
    ours = guarded(name)
    batch = make_batch(name)
    call = batch.packed()
    for key in ("attention_mask", "token_type_ids", "position_ids"):
        with pytest.raises(ValueError, match="pass nothing beside it"):
            ours(**call, **{key: batch.mask})


@pytest.mark.parametrize("name", NAMES)
def test_bad_ids_and_masks_are_refused(guarded, name):
    ours = guarded(name)
    batch = make_batch(name)
    call = batch.inputs()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours()
    embeds = torch.zeros(*call["input_ids"].shape, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours(**call, inputs_embeds=embeds)
    with pytest.raises(TypeError, match="input_ids must hold integers"):
        ours(call["input_ids"].double())
    with pytest.raises(TypeError, match="input_ids must be a tensor"):
        ours(call["input_ids"].tolist())
    with pytest.raises(TypeError, match="inputs_embeds must be a floating-point tensor"):
        ours(inputs_embeds=embeds.numpy())
    with pytest.raises(TypeError, match="inputs_embeds must be a floating-point tensor"):
        ours(inputs_embeds=embeds.tolist())
    with pytest.raises(ValueError, match="attention_mask"):
        ours(call["input_ids"], call["attention_mask"][..., :-1])
    with pytest.raises(TypeError, match="attention_mask must be a tensor"):
        ours(call["input_ids"], np.asarray(call["attention_mask"]))
    with pytest.raises(ValueError, match="additive"):
        ours(call["input_ids"], (1.0 - call["attention_mask"] * 2) * 1e9)
    with pytest.raises(ValueError, match="attention_mask"):
        ours(call["input_ids"], torch.ones(3, 1, S, S))
    if "Choice" not in name:
        with pytest.raises(ValueError, match=r"input_ids must be \(B, S\)"):
            ours(torch.ones(3, 2, S, dtype=torch.int64))


def test_multiple_choice_needs_to_know_its_choices(guarded):
    ours = guarded("BertForMultipleChoice")
    ids = torch.ones(6, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"input_ids must be \(B, N, S\) .*not \(6, 4\)"):
        ours(ids)
    with pytest.raises(ValueError, match=r"inputs_embeds must be \(B, N, S, C\)"):
        ours(inputs_embeds=torch.zeros(6, 4, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match="holds 3 choices a question, num_choices is 2"):
        ours(ids.view(2, 3, 4), num_choices=2)
    with pytest.raises(ValueError, match="0 choices"):
        ours(ids[:0].view(2, 0, 4))
    for key in ("attention_mask", "token_type_ids", "position_ids"):
        for bad in (ids, ids.view(3, 2, 4)):
            with pytest.raises(ValueError, match=rf"{key} must be \(B, N, S\) with N = 3"):
                ours(ids.view(2, 3, 4), **{key: bad})
    packed = pack(ids.tolist())
    for number in (None, 0, -2, 4, 7, 2.0):
        with pytest.raises(ValueError, match=f"num_choices is {number}, but a Packed of 6"):
            ours(packed, num_choices=number)
    with pytest.raises(ValueError, match=r"labels must be \(B,\) = \(2,\)"):
        ours(packed, num_choices=3, labels=torch.zeros(3, dtype=torch.int64))


def test_ids_without_an_embedding_are_refused():
    for name in NAMES:
        ours, _ = head_pair(name)
        call = make_batch(name).inputs()
        call["input_ids"] = call["input_ids"].clone()
        call["input_ids"].view(-1)[0] = V
        with pytest.raises(IndexError, match="input_ids"):
            ours(**call)


def test_bad_labels_on_a_device_are_counted_until_somebody_looks():
    """There, a look would stall; the counter is the same on a CPU."""
    device = torch.device("cpu")
    for bad in ([True, False, True], [False], [True]):
        flags.count("labels", torch.tensor(bad), 7)
    flags.count("next_sentence_label", torch.tensor([False]), 2)
    with pytest.raises(IndexError, match=r"held 3 labels outside 0\.\.6; its results are not"):
        ops.raise_if_flagged(device)
    ops.raise_if_flagged(device)  # said once


def test_a_wrong_config_is_refused():
    for cls in (BertForMaskedLM, BertForMultipleChoice, BertForQuestionAnswering):
        with pytest.raises(TypeError, match="config must be a BertConfig"):
            cls(TINY)
