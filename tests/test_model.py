"""What `BertModel` does with odd, empty and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bert_pair import SIZES, pair, random_ids
from parity import random_batch

from fastbert.config import BertConfig
from fastbert.model import BertModel
from fastbert.packing import pack

B, S, C, H = 4, 9, 32, 4
MASK = (torch.arange(S) < torch.tensor([9, 1, 4, 6])[:, None]).long()
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


@pytest.fixture(scope="module")
def model():
    return pair(torch.float32)[0]


@pytest.fixture
def fresh():
    """A model that a test may change."""
    return pair(torch.float32, num_hidden_layers=2)[0]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0)])
@pytest.mark.parametrize("with_mask", [True, False])
def test_empty_batches(model, shape, with_mask, training):
    ids = torch.zeros(shape, dtype=torch.int64)
    mask = torch.ones(shape) if with_mask else None
    with torch.set_grad_enabled(training):
        out = model(ids, mask, **EVERYTHING)
    assert out.last_hidden_state.shape == (*shape, C)
    assert out.pooler_output.shape == (shape[0], C)
    assert not out.pooler_output.any()
    assert [state.shape for state in out.hidden_states] == [(*shape, C)] * 4
    assert [a.shape for a in out.attentions] == [(shape[0], H, shape[1], shape[1])] * 3
    if training:
        out.last_hidden_state.sum().backward()


@pytest.mark.parametrize("rows", [[], [[]], [[], [5], []], [[], []]])
def test_empty_packed_batches(model, rows):
    out = model(pack(rows), **EVERYTHING)
    longest = max((len(row) for row in rows), default=0)
    assert out.last_hidden_state.shape == (sum(map(len, rows)), C)
    assert out.pooler_output.shape == (len(rows), C)
    assert out.attentions[0].shape == (len(rows), H, longest, longest)
    for row, pooled in zip(rows, out.pooler_output, strict=True):
        assert bool(row) == bool(pooled.any())


def test_a_wholly_masked_batch_trains(model):
    out = model(random_ids(B, S), MASK * 0)
    assert not out.last_hidden_state.any()
    assert not out.pooler_output.any()
    (out.last_hidden_state.sum() + out.pooler_output.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


def test_outputs_follow_arguments_then_config(fresh):
    ids = random_ids(B, S)
    assert fresh(ids).keys() == ("last_hidden_state", "pooler_output")
    assert isinstance(fresh(ids, return_dict=False), tuple)
    assert len(fresh(ids, return_dict=False, **EVERYTHING)) == 4
    flags = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    talkative = BertModel(fresh.config.replace(**flags))
    assert len(talkative(ids)) == 4
    quiet = talkative(ids, output_hidden_states=False, output_attentions=False, return_dict=True)
    assert quiet.keys() == ("last_hidden_state", "pooler_output")
    bare = BertModel(fresh.config, add_pooling_layer=False)
    assert bare(ids).keys() == ("last_hidden_state",)
    assert not any(name.startswith("pooler") for name in bare.state_dict())


def test_packed_positions_count_from_zero_and_types_go_along(model):
    batch = random_batch([5, 0, 3])
    rows = np.split(batch.input_ids, batch.cu_seqlens[1:-1])
    types = np.split(batch.token_type_ids, batch.cu_seqlens[1:-1])
    with torch.no_grad():
        together = model(batch).last_hidden_state
        alone = [
            model(torch.tensor(ids[None]), token_type_ids=torch.tensor(kind[None]))[0][0]
            for ids, kind in zip(rows, types, strict=True)
        ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_numpy_and_tensor_batches_agree(model):
    batch = random_batch([5, 2])
    with torch.no_grad():
        a, b = model(batch), model(batch.to("cpu"))
    assert torch.equal(a.last_hidden_state, b.last_hidden_state)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"input_ids": None}, ValueError, "either input_ids or inputs_embeds, and not both"),
        ({"inputs_embeds": torch.zeros(B, S, C)}, ValueError, "not both"),
        ({"input_ids": [[1, 2]]}, TypeError, r"tensor \(B, S\) or a Packed, not list"),
        ({"input_ids": random_ids(B, S).float()}, TypeError, "integers, not torch.float32"),
        ({"input_ids": random_ids(B, S)[0]}, ValueError, r"input_ids must be \(B, S\), not \(9,\)"),
        ({"attention_mask": MASK[:, :8]}, ValueError, r"\(4, 9\), not \(4, 8\)"),
        ({"attention_mask": MASK[:1]}, ValueError, r"\(4, 9\), not \(1, 9\)"),
        ({"attention_mask": MASK[:, None, None]}, ValueError, r"2-D \(B, S\).*got 4-D"),
        ({"attention_mask": MASK[:, None]}, ValueError, "got 3-D"),
        ({"attention_mask": MASK.tolist()}, TypeError, "must be a tensor, not list"),
        ({"attention_mask": (MASK - 1.0) * 1e9}, ValueError, "attention_mask is additive"),
        ({"token_type_ids": MASK.float()}, TypeError, "token_type_ids must be a tensor of integ"),
        ({"token_type_ids": MASK[:, :8]}, ValueError, r"token_type_ids must be \(B, S\) = \(4, 9"),
        ({"position_ids": torch.arange(8)}, ValueError, r"position_ids .* not \(1, 8\)"),
        ({"position_ids": MASK[:2]}, ValueError, r"not \(2, 9\)"),
        ({"position_ids": list(range(9))}, TypeError, "not list"),
    ],
)
def test_it_refuses(model, changes, error, match):
    args = {"input_ids": random_ids(B, S), "attention_mask": MASK, **changes}
    with pytest.raises(error, match=match):
        model(**args)


@pytest.mark.parametrize(
    ("embeds", "error", "match"),
    [
        (torch.zeros(B, S, C + 1), ValueError, r"inputs_embeds must be \(B, S, 32\)"),
        (torch.zeros(B, S), ValueError, r"\(B, S, C\), not \(4, 9\)"),
        (torch.zeros(B, S, C, dtype=torch.int64), TypeError, "floating-point"),
        (torch.zeros(B, S, C, dtype=torch.float64), ValueError, "in torch.float32, found"),
    ],
)
def test_it_refuses_embeddings(model, embeds, error, match):
    with pytest.raises(error, match=match):
        model(inputs_embeds=embeds, attention_mask=MASK)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"input_ids": random_ids(B, S) + 59}, r"input_ids holds 1\d\d; this model takes 0\.\.59"),
        ({"input_ids": -random_ids(B, S)}, r"input_ids holds -\d+; this model takes 0\.\.59"),
        ({"token_type_ids": MASK * 2}, r"token_type_ids holds 2; this model takes 0\.\.1"),
        (
            {"position_ids": torch.arange(S) + 32},
            r"position_ids holds 40; this model takes 0\.\.39",
        ),
    ],
)
@pytest.mark.parametrize("with_embeds", [False, True])
def test_what_has_no_embedding_is_named(model, changes, match, with_embeds):
    args = {"input_ids": random_ids(B, S), **changes}
    if with_embeds:
        if "input_ids" in changes:
            return
        args = {"inputs_embeds": torch.zeros(B, S, C), **changes}
    with pytest.raises(IndexError, match=match):
        model(**args, attention_mask=MASK)


def test_rows_longer_than_the_model(model):
    with pytest.raises(IndexError, match=r"position_ids holds 40; this model takes 0\.\.39"):
        model(random_ids(1, 41))
    mask = torch.ones(1, 41)
    mask[0, 40] = 0  # what is masked needs no embedding
    assert model(random_ids(1, 41), mask).last_hidden_state.shape == (1, 41, C)
    with pytest.raises(IndexError, match="position_ids holds 40"):
        model(pack([[5] * 41]))


def test_bad_ids_behind_the_mask_do_not_matter(model):
    ids = random_ids(B, S)
    expected = model(ids, MASK).last_hidden_state
    assert torch.equal(model(ids.where(MASK == 1, -100), MASK).last_hidden_state, expected)


def test_host_arrays_are_checked_before_they_leave_the_host():
    with torch.device("meta"):
        elsewhere = BertModel(BertConfig(**SIZES))
    for rows, types, match in (
        ([[3, 60]], None, "input_ids holds 60"),
        ([[3, 5]], [[0, 2]], "token_type_ids holds 2"),
        ([[3] * 41], None, "position_ids holds 40"),
    ):
        with pytest.raises(IndexError, match=match):
            elsewhere(pack(rows, types))


@pytest.mark.parametrize(
    "beside", ["attention_mask", "token_type_ids", "position_ids", "inputs_embeds"]
)
def test_nothing_goes_beside_a_packed_batch(model, beside):
    with pytest.raises(ValueError, match="a Packed holds its own mask"):
        model(pack([[1, 2]]), **{beside: torch.ones(1, 2)})


def test_inference_mode(model):
    ids = random_ids(B, S)
    with torch.inference_mode():
        out = model(ids, MASK, **EVERYTHING)
    torch.testing.assert_close(out.last_hidden_state, model(ids, MASK).last_hidden_state)
