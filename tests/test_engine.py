"""`Engine`: packed tokens in, hidden states out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastbert import BertConfig, BertModel, Engine, pack
from fastbert.packing import Packed


@pytest.fixture(scope="module")
def model() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    return BertModel(config).eval()


def batch() -> Packed:
    return pack([[1, 2, 3], [], [4, 5, 6, 7, 8]])


def test_equals_the_model(model: BertModel) -> None:
    with torch.no_grad():
        expected = model(batch()).last_hidden_state.numpy()
    hidden = Engine(model)(batch())
    assert (hidden.dtype, hidden.shape) == (np.float32, (8, 16))
    assert np.array_equal(hidden, expected)


def test_from_pretrained_by_dtype() -> None:
    packed = pack([[101, 7592, 102], [101, 2088, 999, 102]])
    truth = Engine.from_pretrained(dtype="float64")(packed)
    assert truth.dtype == np.float64
    for dtype, bound in (("auto", 1e-5), ("float32", 1e-5), ("bfloat16", 0.1), ("float16", 0.02)):
        engine = Engine.from_pretrained(None, dtype=dtype)
        hidden = engine(packed)
        assert hidden.dtype == np.float32
        assert np.abs(hidden - truth).max() < bound, dtype
    assert engine.config.hidden_size == 384


def test_no_tokens(model: BertModel) -> None:
    assert Engine(model)(pack([])).shape == (0, 16)
    assert Engine(model)(pack([[], []])).shape == (0, 16)


def test_results_belong_to_the_caller(model: BertModel) -> None:
    engine = Engine(model)
    first = engine(batch())
    copy = first.copy()
    engine(pack([[9, 9, 9], [9], [9, 9, 9, 9]]))
    assert np.array_equal(first, copy)


def test_threads(model: BertModel) -> None:
    before = torch.get_num_threads()
    try:
        Engine(model, threads=1)(batch())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="threads is 0"):
        Engine(model, threads=0)


def test_bad_input(model: BertModel) -> None:
    engine = Engine(model)
    with pytest.raises(TypeError, match="takes a Packed, not list"):
        engine([[1, 2, 3]])
    with pytest.raises(IndexError, match=r"input_ids holds 50; this model takes 0\.\.49"):
        engine(pack([[1, 50]]))
    with pytest.raises(IndexError, match="token_type_ids holds 2"):
        engine(pack([[1]], [[2]]))
    with pytest.raises(IndexError, match="position_ids holds 512"):
        engine(pack([[1] * 513]))
    with pytest.raises(ValueError, match="dtype must be one of"):
        Engine.from_pretrained(dtype="int8")
    with pytest.raises(ValueError, match="train mode"):
        Engine(BertModel(model.config))
    later = BertModel(model.config).eval()
    engine = Engine(later)
    later.train()
    with pytest.raises(ValueError, match="train mode"):
        engine(batch())
    with pytest.raises(TypeError, match="must be a BertModel"):
        Engine(model.config)


def test_a_model_hands_over_to_its_engine(model: BertModel) -> None:
    other = BertModel(model.config).eval()
    other.runner = Engine(model)
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    with torch.no_grad():
        got, expected = other(ids, ids != 0), model(ids, ids != 0)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)


def test_a_batch_of_tensors_is_checked(model: BertModel) -> None:
    good = batch().to("cpu")
    wrong = {
        "cu_seqlens": torch.tensor([0, 9, 3, 8], dtype=torch.int32),
        "lengths": torch.tensor([4, 0, 4], dtype=torch.int32),
        "input_ids": good.input_ids.float(),
        "position_ids": good.position_ids[:3],
        "max_seqlen": 4,
        "work": [[0, 0]],
    }
    for name, value in wrong.items():
        bad = replace(good, **{name: value})
        for call in (Engine(model), model):
            with pytest.raises((TypeError, ValueError)):
                call(bad)
