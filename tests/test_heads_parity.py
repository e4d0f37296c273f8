"""Every head against transformers in float64: outputs, losses, gradients, and 200 steps."""

from __future__ import annotations

import pytest
import torch
from bert_pair import CLOSE
from heads_pair import (
    MASKS,
    NAMES,
    PREDICTING,
    TOKEN_LABELS,
    N,
    S,
    V,
    assert_no_gradient,
    assert_same_gradients,
    fresh,
    head_pair,
    make_batch,
    rows_of,
    true_loss,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbert.packing import pack

LOWEST = torch.finfo(torch.float64).min


def close(a, b):
    torch.testing.assert_close(a, b, **CLOSE)


@pytest.fixture(scope="module")
def pairs():
    """One pair of models a head; tests leave the weights alone."""
    return {name: head_pair(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_unpadded_rows(pairs, name):
    ours, theirs = fresh(pairs[name])
    batch = make_batch(name)
    call = {**batch.inputs(), **batch.labels}
    more = {"output_hidden_states": True, "output_attentions": True}
    a, b = ours(**call, **more), theirs(**call, **more)
    assert a.keys() == tuple(b.keys())
    for key in b.keys():  # noqa: SIM118  # an output's iterator gives values
        left, right = (x[key] if isinstance(x[key], tuple) else (x[key],) for x in (a, b))
        for one, other in zip(left, right, strict=True):
            close(one, other)
    a.loss.backward()
    b.loss.backward()
    assert_same_gradients(ours, theirs)
    del call["attention_mask"]
    close(ours(**call).loss, b.loss)
    plain = ours(**call, return_dict=False)
    assert type(plain) is tuple
    close(plain[0], b.loss)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", NAMES)
def test_padded_and_packed(pairs, name, mask):
    ours, theirs = fresh(pairs[name])
    batch = make_batch(name, mask, seed=1)
    rows = rows_of(theirs, batch)
    loss = true_loss(batch, rows)
    if loss.requires_grad:
        loss.backward()
    for packed in (False, True):
        ours.zero_grad()
        call = batch.packed() if packed else {**batch.inputs(), **batch.labels}
        output = ours(**call)
        close(output.loss, loss)
        output.loss.backward()
        assert_same_gradients(ours, theirs)
        for key, expected in rows.items():
            compare_rows(key, output[key], expected, batch, packed)


def compare_rows(key, actual, rows, batch, packed):
    """Logits against those of unpadded rows, and what stands where the mask is."""
    assert actual.isfinite().all()
    real = batch.mask != 0
    if key == "seq_relationship_logits" or (key == "logits" and batch.name not in TOKEN_LABELS):
        close(actual.reshape(len(rows), -1), torch.stack(rows))
    elif packed:
        close(actual, torch.cat(rows))
    else:
        assert actual.shape[:2] == real.shape
        close(actual[real], torch.cat(rows))
        empty = LOWEST if batch.name == "BertForQuestionAnswering" else 0.0
        assert (actual[~real] == empty).all()


@pytest.mark.parametrize("name", PREDICTING)
def test_an_untied_decoder(name):
    ours, theirs = head_pair(name, tie_word_embeddings=False)
    assert not torch.equal(theirs.cls.predictions.bias, theirs.cls.predictions.decoder.bias)
    batch = make_batch(name, "holes")
    rows = rows_of(theirs, batch)
    loss = true_loss(batch, rows)
    loss.backward()
    output = ours(**batch.inputs(), **batch.labels)
    close(output.loss, loss)
    output.loss.backward()
    assert_same_gradients(ours, theirs)
    compare_rows(output.keys()[1], output[1], next(iter(rows.values())), batch, packed=False)


@pytest.mark.parametrize("name", NAMES)
def test_right_padding_as_transformers_has_it(pairs, name):
    """Where transformers is right, its own padded call is the truth."""
    ours, theirs = fresh(pairs[name])
    batch = make_batch(name, "right")
    if name == "BertForMultipleChoice":  # no holes, no row masked whole
        batch.mask[:, 0] = 1
        batch.mask = batch.mask.sort(1, descending=True).values
    if name in TOKEN_LABELS:
        batch.labels["labels"] = batch.labels["labels"].masked_fill(batch.mask == 0, -100)
    call = {**batch.inputs(), **batch.labels}
    a, b = ours(**call), theirs(**call)
    if name == "BertForQuestionAnswering":  # its softmax has padding in it
        real = batch.mask != 0
        close(a.start_logits[real], b.start_logits[real])
        close(a.end_logits[real], b.end_logits[real])
        return
    close(a.loss, b.loss)
    a.loss.backward()
    b.loss.backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.uint8])
def test_a_mask_of_any_type(pairs, dtype):
    for name in NAMES:
        ours, _ = fresh(pairs[name])
        batch = make_batch(name, "holes")
        expected = ours(**batch.inputs(), **batch.labels).loss
        batch.mask = batch.mask.to(dtype)
        close(ours(**batch.inputs(), **batch.labels).loss, expected)


@pytest.mark.parametrize("name", [n for n in NAMES if "Choice" not in n])
def test_a_singleton_axis_is_squeezed(pairs, name):
    ours, _ = fresh(pairs[name])
    batch = make_batch(name, "holes")
    expected = ours(**batch.inputs(), **batch.labels)
    wide = {key: value[:, None] for key, value in batch.inputs().items()}
    places = torch.arange(S).expand(3, 1, S)
    for more in ({}, {"position_ids": places}):
        actual = ours(**wide, **batch.labels, **more)
        assert actual.keys() == expected.keys()
        for a, b in zip(actual, expected, strict=True):
            close(a, b)
    if name in TOKEN_LABELS:
        labels = {**batch.labels, "labels": batch.labels["labels"][:, None]}
        close(ours(**wide, **labels).loss, expected.loss)
    close(ours(wide["input_ids"])[0], ours(batch.ids)[0])


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_instead_of_ids(pairs, name):
    ours, theirs = fresh(pairs[name])
    batch = make_batch(name)
    call = batch.inputs()
    embeds = ours.get_input_embeddings()(call.pop("input_ids")).detach()
    a = ours(**call, inputs_embeds=embeds, **batch.labels)
    b = theirs(**call, inputs_embeds=embeds, **batch.labels)
    close(a.loss, b.loss)
    close(a.loss, ours(**batch.inputs(), **batch.labels).loss)


@pytest.mark.parametrize("name", NAMES)
def test_no_mask_means_all_is_real(pairs, name):
    """Whatever the ids: 0 is the padding id here."""
    ours, _ = fresh(pairs[name])
    batch = make_batch(name)
    batch.ids[:, -3:] = 0
    given = {**batch.inputs(), **batch.labels}
    expected = ours(**given)
    del given["attention_mask"]
    close(ours(**given).loss, expected.loss)
    close(ours(**given)[1], expected[1])


def test_a_row_masked_whole_has_the_heads_value_of_zero(pairs):
    for name in ("BertForSequenceClassification", "BertForNextSentencePrediction"):
        ours, _ = fresh(pairs[name])
        batch = make_batch(name, "whole")
        output = ours(**batch.inputs(), output_hidden_states=True)
        head = ours.classifier if "Classification" in name else ours.cls.seq_relationship
        assert torch.equal(output.logits[1], head.bias)
        assert not output.hidden_states[-1][1].any()
        encoded = ours.bert(**batch.inputs())
        assert not encoded.pooler_output[1].any()
    ours, _ = fresh(pairs["BertForMultipleChoice"])
    batch = make_batch("BertForMultipleChoice")
    batch.mask[N : 2 * N] = 0
    assert torch.equal(ours(**batch.inputs()).logits[1], ours.classifier.bias.expand(N))


@pytest.mark.parametrize("name", NAMES)
def test_empty_batches(pairs, name):
    """No row, no column, and no real token: a loss of 0, no crash."""
    ours, _ = fresh(pairs[name])
    for B, width in ((0, S), (0, 0), (2, 0)):
        rows = B * N if "Choice" in name else B
        batch = make_batch(name, torch.ones(B, S, dtype=torch.int64))
        batch.ids, batch.mask, batch.types = (
            x[:rows, :width] for x in (batch.ids, batch.mask, batch.types)
        )
        named = [("input_ids", batch.ids), ("attention_mask", batch.mask)]
        inputs = {key: x.reshape(B, N, width) if "Choice" in name else x for key, x in named}
        labels = {key: x[:, :width] if x.dim() == 2 else x for key, x in batch.labels.items()}
        if B:
            labels = {
                key: torch.full_like(x, -100) if "positions" not in key else x
                for key, x in labels.items()
            }
        ours.zero_grad()
        output = ours(**inputs, **labels)
        assert output.loss == 0
        output.loss.backward()
        assert_no_gradient(ours)


def test_multiple_choice_packed_and_padded_in_other_numbers(pairs):
    ours, theirs = fresh(pairs["BertForMultipleChoice"])
    ids = torch.randint(1, V, (2, 5, 6), generator=torch.Generator().manual_seed(4))
    close(ours(ids).logits, theirs(ids).logits)
    packed = pack(ids.flatten(0, 1).tolist())
    close(ours(packed, num_choices=5).logits, theirs(ids).logits)
    close(ours(ids, num_choices=5).logits, theirs(ids).logits)
    one = ids[:, :1]
    close(ours(one, labels=torch.tensor([0, 0])).loss, torch.zeros((), dtype=torch.float64))


def loop(model, batches):
    """Losses of plain AdamW steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def training_batches(name, steps):
    g = torch.Generator().manual_seed(9)
    for step in range(steps):
        lengths = torch.randint(1, S + 1, (4,), generator=g)
        mask = (torch.arange(S) < lengths[:, None]).long()
        batch = make_batch(name, mask, seed=step)
        labels = batch.labels["labels"]
        if name == "BertForMaskedLM":
            labels = labels.masked_fill(mask == 0, -100)
            labels[0, 0] = 7  # without a label, transformers' loss is NaN
        yield {**batch.inputs(), "labels": labels}


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_200_steps_track_transformers(name):
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    layers = 1 if name == "BertForMaskedLM" else 2  # it is the decoder that is trained here
    models = head_pair(name, seed=3, num_hidden_layers=layers, **rates)
    ours, theirs = (model.train() for model in models)
    batches = list(training_batches(name, 200))
    a, b = loop(ours, batches), loop(theirs, batches)
    torch.testing.assert_close(a, b, rtol=0.0, atol=1e-9)
    assert (a[0] - a[-1]).abs() > 1e-3  # it did train
    for parameter_name, parameter in ours.named_parameters():
        if "qkv" not in parameter_name:
            expected = theirs.get_parameter(parameter_name)
            torch.testing.assert_close(parameter, expected, rtol=0.0, atol=1e-6)


masks = st.lists(st.lists(st.integers(0, 1), min_size=S, max_size=S), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(name=st.sampled_from(NAMES), mask=masks, seed=st.integers(0, 2**20), packed=st.booleans())
def test_random_masks_and_labels(pairs, name, mask, seed, packed):
    ours, theirs = pairs[name]
    batch = make_batch(name, torch.tensor(mask), seed)
    for key, value in batch.labels.items():
        if "positions" not in key:
            gone = torch.rand(value.shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.4
            batch.labels[key] = value.masked_fill(gone, -100)
        else:
            batch.labels[key] = value * 2 - 4
    with torch.no_grad():
        expected = true_loss(batch, rows_of(theirs, batch))
        call = batch.packed() if packed else {**batch.inputs(), **batch.labels}
        close(ours(**call).loss, expected)
