"""Question answering: positions of every kind, and padding that no softmax sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from bert_pair import CLOSE
from heads_pair import (
    S,
    assert_same_gradients,
    fresh,
    head_pair,
    make_batch,
    rows_of,
    true_loss,
)

from fastbert.heads import BertForQuestionAnswering

NAME = "BertForQuestionAnswering"


def close(a, b):
    torch.testing.assert_close(a, b, **CLOSE)


@pytest.fixture(scope="module")
def pair():
    """The two models; tests leave the weights alone."""
    return head_pair(NAME)


POSITIONS = {
    "inside": ([0, 4, 0], [3, 8, 0]),
    "negative": ([-1, -100, 0], [3, -5, -1]),
    "beyond": ([S, 3, 0], [S + 5, 10**6, 0]),
    "masked": ([6, 3, 4], [8, 4, 8]),
    "mixed": ([-1, S, 4], [6, 0, 0]),
    "none": ([S, S, 5], [7, S, 5]),
}


@pytest.mark.parametrize("places", POSITIONS)
@pytest.mark.parametrize("mask", ["full", "right", "left", "holes", "whole"])
def test_answer_positions(pair, places, mask):
    ours, theirs = fresh(pair)
    batch = make_batch(NAME, mask)
    for key, columns in zip(("start", "end"), POSITIONS[places], strict=True):
        batch.labels[f"{key}_positions"] = torch.tensor(columns)
    expected = true_loss(batch, rows_of(theirs, batch))
    a = ours(**batch.inputs(), **batch.labels)
    close(a.loss, expected)
    close(ours(**batch.packed()).loss, expected)
    if mask == "full":
        b = theirs(**batch.inputs(), **batch.labels)
        if b.loss.isfinite():
            close(a.loss, b.loss)
    a.loss.backward()
    if expected.requires_grad:
        expected.backward()
    assert_same_gradients(ours, theirs)


def test_one_end_of_an_answer_gives_no_loss(pair):
    ours, _ = fresh(pair)
    ids = make_batch(NAME).ids
    for key in ("start_positions", "end_positions"):
        output = ours(ids, **{key: torch.tensor([0, 1, 2])})
        assert output.loss is None
        assert output.keys() == ("start_logits", "end_logits")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_takes_no_part_in_the_callers_softmax(dtype):
    ours, _ = head_pair(NAME)
    ours = ours.to(dtype)
    batch = make_batch(NAME, "holes")
    output = ours(**batch.inputs(), **batch.labels)
    for logits in (output.start_logits, output.end_logits):
        assert logits.dtype == dtype
        assert (logits[batch.mask == 0] == torch.finfo(dtype).min).all()
        share = logits.float().softmax(1)
        assert not share[batch.mask == 0].any()
    assert output.loss.isfinite()
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())


def test_a_packed_may_overstate_its_longest_sequence(pair):
    ours, _ = fresh(pair)
    call = make_batch(NAME, "whole").packed()
    expected = ours(**call)
    call["input_ids"] = replace(call["input_ids"], max_seqlen=S + 4)
    actual = ours(**call)
    close(actual.loss, expected.loss)
    close(actual.end_logits, expected.end_logits)


def test_label_names_of_another_task_do_not_make_more_outputs(tmp_path):
    """transformers makes `num_labels` of them, and then takes two."""
    ours, _ = head_pair(NAME)
    model = BertForQuestionAnswering(ours.config.replace(num_labels=5)).double()
    model.load_state_dict(ours.state_dict())
    model.save_pretrained(tmp_path)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tmp_path, dtype=torch.float64)
    ids = make_batch(NAME).ids
    close(theirs(ids).start_logits, model.eval()(ids).start_logits)
