"""What would be plausible and wrong, were it accepted in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastbert import BertConfig, BertModel, BertTokenizer, CheckpointError, TruncationWarning, ops
from fastbert.checkpoint import read_checkpoint, save_checkpoint

NAME = "encoder.layer.0.output.dense.weight"


def test_integer_weights_are_no_model(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    tensors = {name: tensor.numpy() for name, tensor in read_checkpoint(tmp_path).items()}
    tensors[NAME] = np.ones(tensors[NAME].shape, np.int8)
    save_checkpoint(tmp_path, tensors, config)
    with pytest.raises(CheckpointError, match=rf"{NAME} holds I8 numbers"):
        BertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float16])
def test_additive_masks_are_refused_in_any_signed_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="additive"):
        ops.pack(torch.tensor([[0, 0, -10000]], dtype=dtype))
    assert ops.pack(torch.tensor([[0, -1, 1]], dtype=dtype))[0].tolist() == [2]


def test_pack_says_what_it_cut() -> None:
    tokenizer = BertTokenizer.from_pretrained()
    with pytest.warns(TruncationWarning, match="1 text is longer than 512 tokens"):
        packed = tokenizer.pack(["word " * 3000, "a"])
    assert packed.lengths.tolist() == [512, 3]
