from __future__ import annotations

import copy
import pickle

import pytest
import torch

from fastbert.outputs import BertModelOutput

HIDDEN, STATES = torch.ones(1, 2, 3), (torch.zeros(1), torch.ones(1))


@pytest.fixture
def output():
    return BertModelOutput(last_hidden_state=HIDDEN, hidden_states=STATES)


def test_by_attribute_key_and_place(output):
    assert output.last_hidden_state is output["last_hidden_state"] is output[0] is HIDDEN
    assert output.hidden_states is output["hidden_states"] is output[1] is output[-1] is STATES
    assert output[:2] == (HIDDEN, STATES)
    assert output.pooler_output is None


def test_what_is_none_has_no_key_and_no_place(output):
    assert output.keys() == ("last_hidden_state", "hidden_states")
    assert len(output) == 2
    assert "pooler_output" not in output
    assert "hidden_states" in output
    assert output.get("pooler_output") is None
    assert output.get("pooler_output", 5) == 5
    with pytest.raises(KeyError, match="'pooler_output'; this output holds last_hidden_state"):
        output["pooler_output"]
    with pytest.raises(IndexError):
        output[2]


def test_unpacks_like_a_tuple(output):
    hidden, states = output
    assert hidden is HIDDEN
    assert states is STATES
    assert output.to_tuple() == output.values() == (HIDDEN, STATES)


def test_is_a_mapping_to_dict(output):
    assert dict(output) == dict(output.items()) == {
        "last_hidden_state": HIDDEN, "hidden_states": STATES
    }  # fmt: skip
    assert set({**output}) == {"last_hidden_state", "hidden_states"}


def test_keys_follow_changes(output):
    output.pooler_output = torch.ones(1)
    assert output.keys() == ("last_hidden_state", "pooler_output", "hidden_states")


def test_comparing_never_asks_a_tensor_for_its_truth(output):
    assert output == output
    assert output != BertModelOutput(last_hidden_state=HIDDEN.clone(), hidden_states=STATES)


def test_copies(output):
    for twin in (copy.deepcopy(output), pickle.loads(pickle.dumps(output)), copy.copy(output)):
        assert isinstance(twin, BertModelOutput)
        assert twin.keys() == output.keys()
        assert torch.equal(twin[0], HIDDEN)


def test_keys_are_those_of_transformers():
    from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as Theirs

    given = {
        "last_hidden_state": HIDDEN, "pooler_output": HIDDEN,
        "hidden_states": STATES, "attentions": STATES,
    }  # fmt: skip
    assert list(BertModelOutput(**given).keys()) == list(Theirs(**given).keys())
