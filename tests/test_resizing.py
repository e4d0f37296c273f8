"""Growing and shrinking the vocabulary of a model."""

from __future__ import annotations

import pytest
import torch
import transformers
from bert_pair import SIZES, pair, random_ids
from heads_pair import NAMES, head_pair

from fastbert import heads
from fastbert.config import BertConfig
from fastbert.model import BertModel
from fastbert.pretrained import PreTrainedModel


@pytest.mark.parametrize("size", [70, 50, 60, None])
def test_resizing_keeps_rows(size):
    torch.manual_seed(0)
    model = pair(torch.bfloat16)[0]
    before = model.get_input_embeddings().weight.detach().clone()
    table = model.resize_token_embeddings(size)
    rows = 60 if size is None else size
    assert table is model.get_input_embeddings() is model.embeddings.word_embeddings
    assert table.weight.shape == (rows, 32)
    assert table.num_embeddings == model.config.vocab_size == rows
    assert (table.padding_idx, table.weight.dtype) == (0, torch.bfloat16)
    kept = min(rows, 60)
    assert torch.equal(table.weight[:kept], before[:kept])
    if rows > 60:
        assert 0.01 < table.weight[60:].float().std() < 0.03
        assert model(torch.full((1, 2), 69)).last_hidden_state.isfinite().all()
        with pytest.raises(IndexError, match=r"holds 70; this model takes 0\.\.69"):
            model(torch.full((1, 2), 70))


def test_a_resized_model_saves_and_loads(tmp_path):
    model = pair(torch.float32)[0]
    model.resize_token_embeddings(64)
    model.save_pretrained(tmp_path)
    theirs, info = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert theirs.config.vocab_size == 64
    ids = random_ids(3, 7)
    ours = BertModel.from_pretrained(tmp_path)
    torch.testing.assert_close(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)


@pytest.mark.parametrize("bad", [0, -3, True, 2.5, "70"])
def test_resizing_refuses(bad):
    model = pair(torch.float32)[0]
    config = model.config
    with pytest.raises(ValueError, match="vocab_size"):
        model.resize_token_embeddings(bad)
    assert model.config is config


def test_resizing_keeps_the_padding_row():
    model = pair(torch.float32, pad_token_id=50)[0]
    with pytest.raises(ValueError, match="pad_token_id is 50"):
        model.resize_token_embeddings(50)
    assert model.config.vocab_size == 60
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    assert not model.resize_token_embeddings(55).weight.requires_grad
    assert not frozen.requires_grad


def test_a_class_without_embeddings_says_so():
    bare = PreTrainedModel(BertConfig(**SIZES))
    with pytest.raises(TypeError, match="has no input embeddings"):
        bare.get_input_embeddings()
    with pytest.raises(TypeError, match="has no input embeddings"):
        bare.set_input_embeddings(torch.nn.Embedding(2, 2))


@pytest.mark.parametrize("size", [70, 50])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining"])
def test_the_decoder_and_its_bias_follow(tmp_path, name, tied, size):
    torch.manual_seed(0)
    model, _ = head_pair(name, tie_word_embeddings=tied)
    ids = random_ids(2, 7, vocabulary=50)
    before = model(ids)[0]
    decoder = model.get_output_embeddings()
    weight, bias = decoder.weight.detach().clone(), decoder.bias.detach().clone()
    words = model.resize_token_embeddings(size)
    decoder, kept = model.get_output_embeddings(), min(size, 60)
    assert model.config.vocab_size == model.bert.config.vocab_size == size
    assert decoder.weight.shape == (size, 32)
    assert (decoder.out_features, decoder.bias.shape) == (size, (size,))
    assert (decoder.weight is words.weight) == tied
    assert tied or model.cls.predictions.decoder.out_features == size
    assert torch.equal(decoder.weight[:kept], weight[:kept])
    assert torch.equal(decoder.bias[:kept], bias[:kept])
    assert not decoder.bias[kept:].any()
    assert decoder.weight.dtype == decoder.bias.dtype == torch.float64
    if size > 60:
        assert 0.01 < decoder.weight[60:].std() < 0.03
    after = model(ids)[0]
    assert after.shape == (2, 7, size)
    torch.testing.assert_close(after[..., :kept], before[..., :kept], rtol=0.0, atol=1e-12)
    model.train()(ids, labels=torch.full_like(ids, size - 1)).loss.backward()
    assert model.get_output_embeddings().bias.grad[size - 1] != 0
    with pytest.raises(IndexError, match=f"labels hold {size}; this head has {size} classes"):
        model(ids, labels=torch.full_like(ids, size))

    model.eval().save_pretrained(tmp_path)
    again = getattr(heads, name).from_pretrained(tmp_path, allow_missing=False)
    assert torch.equal(again(ids)[0], after)
    theirs = getattr(transformers, name).from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(theirs(ids)[0], after, rtol=0.0, atol=1e-10)


def test_resizing_keeps_what_is_frozen():
    for tied in (True, False):
        model, _ = head_pair("BertForMaskedLM", tie_word_embeddings=tied)
        model.requires_grad_(False)
        model.resize_token_embeddings(70)
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_any_head_resizes(name):
    model, _ = head_pair(name)
    frozen = {n: p for n, p in model.named_parameters() if "word_embeddings" not in n}
    assert model.resize_token_embeddings(60) is model.resize_token_embeddings() is not None
    table = model.resize_token_embeddings(64)
    assert table is model.bert.embeddings.word_embeddings
    assert model.config.vocab_size == model.bert.config.vocab_size == 64
    after = dict(model.named_parameters())
    assert all(after[n] is p for n, p in frozen.items() if n != "cls.predictions.bias")
    model.set_input_embeddings(torch.nn.Embedding(64, 32, dtype=torch.float64))
    model.set_input_embeddings(torch.nn.Embedding(65, 32, dtype=torch.float64))
    assert model.config.vocab_size == model.bert.config.vocab_size == 65
    model.set_input_embeddings(table)
    ids = torch.full((2, 3, 4) if "Choice" in name else (2, 4), 63)
    assert model(ids)[0].isfinite().all()
