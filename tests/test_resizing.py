"""Growing and shrinking the vocabulary of a model."""

from __future__ import annotations

import pytest
import torch
import transformers
from bert_pair import SIZES, pair, random_ids

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
