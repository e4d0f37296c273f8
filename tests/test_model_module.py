"""`BertModel` as a module: training, copies, state dicts, dtypes, hooks, the runner."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from bert_pair import SIZES, pair, random_ids
from torch import nn
from torch.nn.utils import prune

from fastbert.config import BertConfig
from fastbert.layers import Linear
from fastbert.model import BertModel
from fastbert.packing import pack

B, S, C, H = 4, 9, 32, 4
MASK = (torch.arange(S) < torch.tensor([9, 1, 4, 6])[:, None]).long()
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


@pytest.fixture
def fresh():
    """A model that a test may change."""
    return pair(torch.float32, num_hidden_layers=2)[0]


def test_dropout_follows_torchs_seed(fresh):
    ids = random_ids(B, S)
    fresh.train()

    def step():
        fresh.zero_grad()
        out = fresh(ids, MASK).last_hidden_state
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in fresh.parameters() if p.grad is not None)]

    torch.manual_seed(1)
    first, second = step(), step()
    torch.manual_seed(1)
    again = step()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], second[0])
    fresh.eval()
    assert torch.equal(fresh(ids, MASK)[0], fresh(ids, MASK)[0])


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_rate_drops_in_training_alone(rate):
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, rate: 0.5}
    model = BertModel(BertConfig(**SIZES, **rates))
    ids = random_ids(B, S)
    assert not torch.equal(model.train()(ids)[0], model(ids)[0])
    assert torch.equal(model.eval()(ids)[0], model(ids)[0])


def test_the_embeddings_are_dropped_too():
    model = BertModel(BertConfig(**SIZES, hidden_dropout_prob=0.25))
    ids = random_ids(B, S)
    clean = model.eval()(ids, output_hidden_states=True).hidden_states[0]
    for inputs in ({"input_ids": ids}, {"inputs_embeds": model.get_input_embeddings()(ids)}):
        dropped = model.train()(**inputs, output_hidden_states=True).hidden_states[0]
        assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
        torch.testing.assert_close(dropped, (clean / 0.75).where(dropped != 0, 0))


def test_training_learns(fresh):
    torch.manual_seed(0)
    ids, target = random_ids(B, S), torch.randn(B, C).sign() * 0.5
    optimiser = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = (fresh.train()(ids, MASK).pooler_output - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


RUNNER_CASES = [
    ("eval without grad", {}, True, False, True),
    ("eval with grad", {}, False, False, False),
    ("training without grad", {}, True, True, False),
    ("hidden states", {"output_hidden_states": True}, True, False, False),
    ("attentions", {"output_attentions": True}, True, False, False),
]


@pytest.mark.parametrize(("name", "changes", "no_grad", "training", "used"), RUNNER_CASES)
@pytest.mark.parametrize("packed", [True, False])
def test_a_runner_serves_inference_alone(fresh, name, changes, no_grad, training, used, packed):
    seen = []

    def runner(batch):
        seen.append(batch)
        return torch.full((batch.total, C), 0.5, dtype=torch.float64)

    fresh.runner = runner
    inputs = {"input_ids": pack([[5, 6], [7]])} if packed else {
        "input_ids": random_ids(B, S), "attention_mask": MASK
    }  # fmt: skip
    with torch.set_grad_enabled(not no_grad):
        out = fresh.train(training)(**inputs, **changes)
    assert bool(seen) == used
    assert out.last_hidden_state.dtype == torch.float32
    if used:
        real = out.last_hidden_state if packed else out.last_hidden_state[MASK == 1]
        assert (real == 0.5).all()
        pooled = torch.tanh(fresh.pooler.dense(torch.full((1, C), 0.5)))[0]
        torch.testing.assert_close(out.pooler_output[0], pooled)
        (batch,) = seen
        assert batch.input_ids.dtype == torch.int64
        if not packed:
            assert batch.position_ids.tolist() == (torch.arange(S).expand(B, S)[MASK == 1]).tolist()
            assert not out.last_hidden_state[MASK == 0].any()


def test_a_runner_does_not_serve_embeddings(fresh):
    fresh.runner = lambda batch: pytest.fail("not for embeddings")
    with torch.no_grad():
        fresh(inputs_embeds=torch.zeros(B, S, C))
    fresh.runner = None
    with torch.no_grad():
        assert fresh(random_ids(B, S)).last_hidden_state.shape == (B, S, C)


def same(a, b):
    ids = random_ids(B, S)
    return torch.equal(a(ids, MASK)[0], b(ids, MASK)[0])


def test_copies_are_whole_and_apart(fresh):
    ids = random_ids(B, S)
    expected = fresh(ids, MASK).last_hidden_state
    buffer = io.BytesIO()
    torch.save(fresh, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(fresh),
        pickle.loads(pickle.dumps(fresh)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(twin(ids, MASK).last_hidden_state, expected)
        assert twin.config == fresh.config
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert torch.equal(fresh(ids, MASK).last_hidden_state, expected)
        theirs = pair(torch.float32, num_hidden_layers=2)[1].state_dict()
        twin.load_state_dict(theirs)  # the hook that fuses query, key and value came along
        assert same(twin, fresh)


def test_state_dicts_of_both_names(fresh):
    state = fresh.state_dict()
    assert "encoder.layer.0.attention.self.qkv.weight" in state
    twin = BertModel(fresh.config)
    assert not same(twin.eval(), fresh)
    twin.load_state_dict(state)
    assert same(twin, fresh)
    theirs = pair(torch.float32, num_hidden_layers=2)[1].state_dict()
    before = list(theirs)
    twin = BertModel(fresh.config).eval()
    twin.load_state_dict(theirs)
    assert same(twin, fresh)
    assert list(theirs) == before  # the caller's dict is left alone
    del theirs["encoder.layer.1.attention.self.key.weight"]
    with pytest.raises(RuntimeError, match=r"1\.attention\.self\.qkv\.weight"):
        twin.load_state_dict(theirs)


def test_device_and_dtype(fresh):
    assert (fresh.device, fresh.dtype) == (torch.device("cpu"), torch.float32)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert fresh.to(dtype).dtype == dtype
        out = fresh(random_ids(B, S), MASK)
        assert out.last_hidden_state.dtype == out.pooler_output.dtype == dtype
        assert out.last_hidden_state.isfinite().all()
    with torch.device("meta"):
        assert BertModel(fresh.config).device.type == "meta"


def test_sixteen_bit_training_is_finite(fresh):
    for dtype in (torch.bfloat16, torch.float16):
        fresh.to(dtype).train()
        fresh(random_ids(B, S), MASK).last_hidden_state.float().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in fresh.parameters())
        fresh.zero_grad()


def test_initial_weights():
    torch.manual_seed(0)
    model = BertModel(BertConfig(**{**SIZES, "hidden_size": 128, "initializer_range": 0.05}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "LayerNorm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
    assert not model.embeddings.word_embeddings.weight[0].any()


def test_it_needs_a_config():
    with pytest.raises(TypeError, match="config must be a BertConfig, not dict"):
        BertModel(SIZES)


def test_input_embeddings_are_reached_and_replaced(fresh):
    table = fresh.get_input_embeddings()
    assert table is fresh.embeddings.word_embeddings
    new = nn.Embedding(60, C)
    fresh.set_input_embeddings(new)
    assert fresh.get_input_embeddings() is new
    assert fresh.embeddings.word_embeddings is new


@pytest.mark.parametrize("name", ["intermediate", "pooler"])
def test_hooks_and_pruning_reach_the_fused_layers(fresh, name):
    dense = {"intermediate": fresh.encoder.layer[0].intermediate, "pooler": fresh.pooler}[
        name
    ].dense
    ids, seen = random_ids(B, S), []
    expected = fresh(ids).to_tuple()
    handle = dense.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    assert all(torch.equal(a, b) for a, b in zip(fresh(ids).to_tuple(), expected, strict=True))
    ((x, out),) = seen
    torch.testing.assert_close(out, nn.functional.linear(x, dense.weight, dense.bias))
    handle.remove()

    prune.l1_unstructured(dense, "weight", amount=0.5)
    with torch.no_grad():
        dense.weight_orig.mul_(2)  # as an optimiser would: the hook makes the weight from it
        fresh(ids)
    torch.testing.assert_close(dense.weight, dense.weight_orig * dense.weight_mask)


def test_a_layer_of_another_type_is_called_unfused(fresh):
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x) + 1.0

    inner = fresh.encoder.layer[0].intermediate
    x = torch.randn(3, C)
    before = inner.dense(x)
    assert type(inner.dense) is Linear
    inner.dense = Adapted(inner.dense)
    torch.testing.assert_close(inner(x), nn.functional.gelu(before + 1.0))


def test_parameters_are_counted_once():
    from fastbert.heads import BertForMaskedLM

    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                        intermediate_size=48, max_position_embeddings=40)  # fmt: skip
    model = BertForMaskedLM(config)
    tables = (60 + 40 + 2) * 32
    assert model.base_model is model.bert
    assert model.bert.base_model is model.bert
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert model.num_parameters() - model.num_parameters(exclude_embeddings=True) == tables
    model.base_model.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 32 * 32 + 3 * 32 + 60
