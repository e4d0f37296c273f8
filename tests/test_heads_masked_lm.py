"""Pretraining's heads: which logits are made, on which rows the head runs, one loss alone."""

from __future__ import annotations

import pytest
import torch
from bert_pair import CLOSE
from heads_pair import PREDICTING, S, V, fresh, head_pair, make_batch

from fastbert.packing import pack


def close(a, b):
    torch.testing.assert_close(a, b, **CLOSE)


@pytest.fixture(scope="module")
def pairs():
    """One pair of models a head; tests leave the weights alone."""
    return {name: head_pair(name) for name in PREDICTING}


def test_one_objective_alone(pairs):
    name = "BertForPreTraining"
    ours, _ = fresh(pairs[name])
    batch = make_batch(name, "right")
    call, labels = batch.inputs(), batch.labels
    both = ours(**call, **labels).loss
    lm = ours(**call, labels=labels["labels"])
    follows = ours(**call, next_sentence_label=labels["next_sentence_label"])
    close(lm.loss + follows.loss, both)
    assert lm.loss != 0
    assert follows.loss != 0
    lm.loss.backward()
    assert ours.cls.seq_relationship.weight.grad is None
    assert ours.bert.pooler.dense.weight.grad is None
    ours.zero_grad()
    follows.loss.backward()
    assert ours.cls.predictions.bias.grad is None
    assert ours.bert.pooler.dense.weight.grad.any()
    assert ours(**call).loss is None


@pytest.mark.parametrize("name", PREDICTING)
def test_logits_in_train_mode_only_if_asked_for(name):
    ours, _ = head_pair(name, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = make_batch(name, "right")
    call = {**batch.inputs(), **batch.labels}
    key = "prediction_logits" if name == "BertForPreTraining" else "logits"
    whole = ours(**call)  # eval mode
    assert whole[key].shape == (3, S, V)
    ours.train()
    output = ours(**call)
    assert output[key if key in output else 0] is output.loss
    assert getattr(output, key) is None
    assert key not in output.keys()  # noqa: SIM118
    with pytest.raises(KeyError, match=key):
        output[key]
    assert output.to_tuple()[0] is output.loss
    assert len(ours(**call, return_dict=False)) == (2 if name == "BertForPreTraining" else 1)
    asked = ours(**call, return_logits=True)
    close(asked[key], whole[key])
    close(asked.loss, output.loss)
    assert len(ours(**call, return_dict=False, return_logits=True)) == len(output) + 1
    assert ours(**batch.inputs())[key].shape == (3, S, V)  # without labels
    ours.eval()
    assert key not in ours(**call, return_logits=False)
    assert ours(**batch.packed())[key].shape == (int(batch.mask.sum()), V)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", PREDICTING)
def test_the_head_runs_on_labelled_rows_alone(pairs, name, train):
    ours, _ = fresh(pairs[name])
    batch = make_batch(name, "right")
    labels = batch.labels["labels"]
    labelled = int(((labels != -100) & (batch.mask != 0)).sum())
    assert 0 < labelled < int(batch.mask.sum())
    rows: list[int] = []
    hook = ours.cls.predictions.transform.register_forward_hook(
        lambda module, args, output: rows.append(len(output))
    )
    ours.train(train)
    for call in ({**batch.inputs(), **batch.labels}, batch.packed()):
        rows.clear()
        ours(**call)
        assert rows == [labelled if train else int(batch.mask.sum())]  # never both
    hook.remove()
    ours.eval()


def test_predict_gives_rows_of_the_logits(pairs):
    for name in PREDICTING:
        ours, _ = fresh(pairs[name])
        packed = pack([[3, 4, 5], [6, 7]])
        hidden = ours.bert(packed).last_hidden_state
        rows = torch.tensor([4, 0])
        logits = ours(packed)[0]
        close(ours.predict(hidden[rows]), logits[rows])
        decoder = ours.get_output_embeddings()
        assert decoder.weight is ours.get_input_embeddings().weight
        close(decoder(ours.cls.predictions.transform(hidden)), logits)
