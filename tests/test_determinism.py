"""`deterministic`: a flag that a call sets and a block sets back."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from parity import random_batch

from fastbert import BertConfig, BertModel
from fastbert.ops.determinism import deterministic, is_deterministic


@pytest.fixture(autouse=True)
def off_before_and_after() -> Iterator[None]:
    deterministic(False)
    yield
    deterministic(False)


def test_a_call_sets_it_for_good() -> None:
    assert not is_deterministic()
    deterministic()
    assert is_deterministic()
    deterministic(True)
    assert is_deterministic()
    deterministic(False)
    assert not is_deterministic()


def test_blocks_nest_and_set_back_what_held_before() -> None:
    with deterministic(True):
        assert is_deterministic()
        with deterministic(False):
            assert not is_deterministic()
            with deterministic():
                assert is_deterministic()
            assert not is_deterministic()
        assert is_deterministic()
    assert not is_deterministic()
    deterministic(True)
    with deterministic(False):
        pass
    assert is_deterministic()


def test_a_block_that_raises_sets_back_and_lets_the_error_through() -> None:
    with pytest.raises(KeyError), deterministic():
        raise KeyError
    assert not is_deterministic()


def test_it_holds_in_every_thread() -> None:
    seen: list[bool] = []
    with deterministic():
        thread = threading.Thread(target=lambda: seen.append(is_deterministic()))
        thread.start()
        thread.join()
    assert seen == [True]


@pytest.mark.parametrize("value", [1, 0, None, "on"])
def test_what_is_no_bool_is_refused_and_changes_nothing(value: object) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        deterministic(value)  # type: ignore[arg-type]
    assert not is_deterministic()


def test_it_changes_nothing_on_the_reference() -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
    )
    torch.manual_seed(0)
    model, packed = BertModel(config).eval(), random_batch((3, 7))
    with torch.no_grad():
        plain = model(packed).last_hidden_state
        with deterministic():
            fixed = model(packed).last_hidden_state
    assert torch.equal(plain, fixed)
