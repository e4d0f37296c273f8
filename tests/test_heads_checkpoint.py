"""Heads to and from directories: both ways, label names, options, what is missing."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from heads_files import (
    BIAS,
    DECODER,
    DECODER_BIAS,
    KINDS,
    assert_same,
    load_theirs,
    rewrite,
    save_theirs,
)
from heads_pair import NAMES, PREDICTING, TINY, N, head_pair, make_batch
from safetensors.torch import load_file

from fastbert import heads
from fastbert.checkpoint import CheckpointError
from fastbert.config import BertConfig
from fastbert.heads import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from fastbert.model import BertModel

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # what no test expects


@pytest.mark.parametrize(("name", "tied"), KINDS)
def test_both_ways(tmp_path, name, tied):
    directory, theirs, _ = save_theirs(tmp_path, name, tie_word_embeddings=tied)
    ours = getattr(heads, name).from_pretrained(directory)
    assert not ours.training
    assert ours.dtype == torch.float64
    assert_same(ours, theirs, name)
    ours.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == [name]
    back = load_theirs(name, tmp_path / "ours")
    assert_same(back, theirs, name)
    assert back.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        if tied or key != BIAS:  # untied, transformers keeps a bias there that it never uses
            assert torch.equal(back.state_dict()[key], value), key
    again = getattr(heads, name).from_pretrained(tmp_path / "ours", allow_missing=False)
    assert_same(again, ours, name, exact=True)
    assert again.config == ours.config.replace(architectures=[name], dtype=again.config.dtype)


def test_label_names(tmp_path):
    names = {0: "joy", 1: "anger", 2: "naïveté"}
    ids = {name: key for key, name in names.items()}
    name = "BertForSequenceClassification"
    directory, theirs, _ = save_theirs(tmp_path, name, id2label=names, label2id=ids)
    assert json.loads((directory / "config.json").read_text())["id2label"]["2"] == "naïveté"
    ours = BertForSequenceClassification.from_pretrained(directory)
    assert ours.config.id2label == names
    assert ours.config.label2id == ids
    ours.save_pretrained(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["id2label"] == {"0": "joy", "1": "anger", "2": "naïveté"}
    back = load_theirs(name, tmp_path / "ours")
    assert back.config.id2label == theirs.config.id2label == names
    assert back.config.label2id == ids


def test_options_of_the_config(tmp_path):
    name = "BertForSequenceClassification"
    directory, theirs, _ = save_theirs(tmp_path, name)
    load = BertForSequenceClassification.from_pretrained
    model = load(directory, num_labels=N, problem_type="regression")
    assert (model.num_labels, model.config.problem_type) == (N, "regression")
    assert_same(model, theirs, name)
    renamed = load(directory, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert renamed.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert renamed.config.label2id["c"] == 2
    assert load(directory, hidden_dropout_prob=0.25).dropout.p == 0.25
    assert load(directory, classifier_dropout=0.5).dropout.p == 0.5
    assert load(directory, output_attentions=True)(make_batch(name).ids).attentions
    with pytest.raises(CheckpointError, match=r"classifier.*\[3, 32\].*\[5, 32\]"):
        load(directory, num_labels=5)
    with pytest.raises(TypeError, match="nonsense"):
        load(directory, nonsense=3)
    with pytest.raises(ValueError, match="problem_type"):
        load(directory, problem_type="guessing")


def test_sizes_that_differ_may_be_ignored(tmp_path):
    directory, theirs, _ = save_theirs(tmp_path, "BertForTokenClassification")
    load = BertForTokenClassification.from_pretrained
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(directory, num_labels=7, ignore_mismatched_sizes=True)
    assert len(caught) == 2  # of another shape, and so starting at random
    said = " ".join(str(warning.message) for warning in caught)
    assert "classifier.weight" in said
    assert "classifier.bias" in said
    assert "bert." not in said
    assert {warning.filename for warning in caught} == {__file__}
    assert model.classifier.weight.shape == (7, 32)
    assert 0.005 < model.classifier.weight.std() < 0.04
    assert not model.classifier.bias.any()
    ids = make_batch("BertForTokenClassification").ids
    hidden = model.bert(ids).last_hidden_state
    torch.testing.assert_close(hidden, theirs.bert(ids).last_hidden_state, rtol=0, atol=1e-10)
    refused = pytest.raises(CheckpointError, match=r"lacks classifier\.bias")
    with pytest.warns(UserWarning, match="of another shape"), refused:
        load(directory, num_labels=7, ignore_mismatched_sizes=True, allow_missing=False)
    load(directory, ignore_mismatched_sizes=True)  # nothing differs: nothing to say


HEAD_WEIGHTS = {
    "BertForMaskedLM": ("cls.predictions.bias", "cls.predictions.transform.LayerNorm.weight"),
    "BertForPreTraining": ("cls.predictions.bias", "cls.seq_relationship.weight"),
    "BertForNextSentencePrediction": ("cls.seq_relationship.bias", "cls.seq_relationship.weight"),
    "BertForQuestionAnswering": ("qa_outputs.bias", "qa_outputs.weight"),
}
DENSE = ("classifier.bias", "classifier.weight")


@pytest.mark.parametrize(("name", "tied"), KINDS)
def test_a_missing_head(tmp_path, name, tied):
    """One warning names it; it starts as transformers starts it; or it is refused."""
    ours, _ = head_pair(name, tie_word_embeddings=tied, initializer_range=0.05)
    config = ours.config
    encoder = BertModel(config).double()
    encoder.load_state_dict(ours.bert.state_dict(), strict=False)
    encoder.save_pretrained(tmp_path)
    cls = getattr(heads, name)
    expected = set(HEAD_WEIGHTS.get(name, DENSE))
    if not tied and name in PREDICTING:
        expected = expected - {BIAS} | {DECODER, DECODER_BIAS}
    with pytest.warns(UserWarning, match="not in the checkpoint") as caught:
        model = cls.from_pretrained(tmp_path)
    (warning,) = caught
    assert all(part in str(warning.message) for part in expected), warning.message
    assert "starts at random" in str(warning.message)
    assert "bert." not in str(warning.message)
    assert warning.filename == __file__
    assert not any(p.is_meta for p in model.parameters())
    for part, value in model.named_parameters():
        if not part.startswith("bert."):
            if part.endswith("bias"):
                assert not value.any(), part
            elif "LayerNorm" in part:
                assert (value == 1).all(), part
            else:
                assert 0.025 < value.std() < 0.075, part
    torch.testing.assert_close(
        model.bert.embeddings.word_embeddings.weight, ours.bert.embeddings.word_embeddings.weight
    )
    with pytest.raises(CheckpointError) as refused:
        cls.from_pretrained(tmp_path, allow_missing=False)
    assert all(part in str(refused.value) for part in expected), refused.value
    assert name in str(refused.value)


def test_a_new_head_starts_as_transformers_starts_it():
    for name in NAMES:
        config = BertConfig(**{**TINY, "initializer_range": 0.05})
        model = getattr(heads, name)(config)
        for part, value in model.named_parameters():
            if part.endswith("bias"):
                assert not value.any(), part
            elif "LayerNorm" in part:
                assert (value == 1).all(), part
            else:
                assert 0.02 < value.std() < 0.08, (name, part)
        assert not model.get_input_embeddings().weight[0].any()


def test_a_checkpoint_of_another_head(tmp_path):
    directory, _, _ = save_theirs(tmp_path, "BertForPreTraining")
    with pytest.warns(UserWarning, match="not in the model") as caught:
        BertForSequenceClassification.from_pretrained(directory)
    (warning,) = caught
    for part in ("classifier.weight", "cls.predictions.bias", "cls.seq_relationship.bias"):
        assert part in str(warning.message)


def test_an_encoder_with_a_pooler_for_a_head_without(tmp_path):
    """The pooler is left out in silence: the class has none."""
    directory, theirs, _ = save_theirs(tmp_path, "BertForPreTraining")
    rewrite(directory, lambda t: {n: v for n, v in t.items() if "seq_relationship" not in n})
    assert "bert.pooler.dense.weight" in load_file(directory / "model.safetensors")
    model = BertForMaskedLM.from_pretrained(directory, allow_missing=False)
    ids = make_batch("BertForMaskedLM").ids
    expected = theirs(ids).prediction_logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=0.0, atol=1e-10)


def test_saving_onto_its_own_source(tmp_path):
    for name in PREDICTING:
        directory, theirs, _ = save_theirs(tmp_path, name, tie_word_embeddings=False)
        model = getattr(heads, name).from_pretrained(directory)
        model.save_pretrained(directory)
        assert_same(getattr(heads, name).from_pretrained(directory), theirs, name)


def test_the_encoder_of_a_head_alone(tmp_path):
    directory, theirs, _ = save_theirs(tmp_path, "BertForPreTraining")
    with pytest.warns(UserWarning, match="not in the model: cls") as caught:
        model = BertModel.from_pretrained(directory)
    assert len(caught) == 1
    ids = make_batch("BertForPreTraining").ids
    torch.testing.assert_close(
        model(ids).pooler_output, theirs.bert(ids).pooler_output, rtol=0.0, atol=1e-10
    )


def test_precisions_and_old_names(tmp_path):
    name = "BertForPreTraining"
    directory, theirs, _ = save_theirs(tmp_path, name)

    def change(tensors):
        old = {}
        for part, tensor in tensors.items():
            part = part.replace("LayerNorm.weight", "LayerNorm.gamma")
            old[f"module.{part.replace('LayerNorm.bias', 'LayerNorm.beta')}"] = tensor
        return old

    rewrite(directory, change)
    assert_same(BertForPreTraining.from_pretrained(directory), theirs, name)
    half = BertForPreTraining.from_pretrained(directory, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    batch = make_batch(name, "right")
    output = half.train()(**batch.inputs(), **batch.labels)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in half.parameters())
