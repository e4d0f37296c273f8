"""torch.compile(fullgraph=True): one graph for the first batch, one for all that follow."""

from __future__ import annotations

import logging

import pytest
import torch
from parity import NO_SEED, bounds, randn, random_batch, work_of
from torch._dynamo.testing import CompileCounterWithBackend

from fastbert import ops
from fastbert.config import BertConfig
from fastbert.model import BertModel

BATCHES = 12
MOST_GRAPHS = 2
CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    # pytest captures what every logger says, and this one says megabytes to nobody.
    logging.getLogger("torch.__trace").propagate = False
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, backend="aot_eager"):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


def lengths_of(number):
    """Lengths of batch `number`: every batch has another B, T and longest, the last one."""
    return [2 + (3 * number + 5 * row) % (7 + number) for row in range(1 + number)] + [10 + number]


def leaf(*shape, seed=0):
    return randn(*shape, seed=seed, dtype=torch.float32).requires_grad_()


WEIGHT, BIAS, NORM = leaf(12, 8, seed=1), leaf(12, seed=2), (leaf(8, seed=3), leaf(8, seed=7))
TABLES = leaf(20, 8, seed=4), leaf(64, 8, seed=5), leaf(2, 8, seed=6)
SEED = torch.tensor([5])


def tokens(number):
    return sum(lengths_of(number))


def indices(number):
    T = tokens(number)
    return torch.arange(T) % 20, torch.arange(T) % 2, torch.arange(T) % 64


def attention(qkv, cu_seqlens, work, width, dropout_p, seed):
    return ops.varlen_attention(qkv, cu_seqlens, width, work, 0.5, dropout_p, seed)


def attention_inputs(number, dropout_p=0.0):
    cu = bounds(*lengths_of(number))
    seed = SEED if dropout_p else NO_SEED
    return (
        leaf(tokens(number), 3, 2, 4),
        cu,
        work_of(cu),
        max(lengths_of(number)),
        dropout_p,
        seed,
    )


def mask_of(number):
    lengths = torch.tensor(lengths_of(number))
    return (torch.arange(int(lengths.max())) < lengths[:, None]).long()


def pack_and_unpack(x, mask):
    """(B, S, C) through its packed form and back."""
    _, _, rows, positions = ops.pack(mask)
    packed = x.reshape(-1, x.shape[2])[rows] * (1 + positions[:, None])
    return ops.unpack(packed, rows, *mask.shape)


OPS = {
    "linear": (lambda x: ops.linear(x, WEIGHT, BIAS, "gelu"), lambda n: (leaf(tokens(n), 8),)),
    "bias_gelu": (lambda x: ops.bias_gelu(x, NORM[0]), lambda n: (leaf(tokens(n), 8),)),
    "residual_layer_norm": (
        lambda x, r: ops.residual_layer_norm(x, r, *NORM, 1e-5, 0.0, NO_SEED),
        lambda n: (leaf(tokens(n), 8), leaf(tokens(n), 8, seed=1)),
    ),
    "residual_layer_norm with dropout": (
        lambda x, r: ops.residual_layer_norm(x, r, *NORM, 1e-5, 0.2, SEED),
        lambda n: (leaf(tokens(n), 8), leaf(tokens(n), 8, seed=1)),
    ),
    "embed_layer_norm": (
        lambda *i: ops.embed_layer_norm(*i, *TABLES, *NORM, 1e-5, 0),
        indices,
    ),
    "varlen_attention": (attention, attention_inputs),
    "varlen_attention with dropout": (attention, lambda n: attention_inputs(n, 0.2)),
    "linear_cross_entropy": (
        lambda x, labels: ops.linear_cross_entropy(x, WEIGHT, BIAS, labels),
        lambda n: (leaf(tokens(n), 8), torch.arange(tokens(n)) % 12),
    ),
    "pack and unpack": (
        pack_and_unpack,
        lambda n: (leaf(*mask_of(n).shape, 8), mask_of(n)),
    ),
    "work_list": (
        lambda cu, x: ops.work_list(cu.diff(), x.shape[0]) * x.sum(),
        lambda n: (bounds(*lengths_of(n)), leaf(tokens(n), 1)),
    ),
    **{
        f"pool {mode}": (
            lambda x, cu, mode=mode: ops.pool(x, cu, mode, True),
            lambda n: (leaf(tokens(n), 8), bounds(*lengths_of(n))),
        )
        for mode in ops.POOLINGS
    },
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_compiled_once_for_all_batches(name):
    function, make = OPS[name]
    fast, counter = compiled(function)
    for number in range(BATCHES):
        inputs = make(number)
        leaves = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
        leaves += [WEIGHT, BIAS, *NORM, *TABLES]
        out, expected = fast(*inputs), function(*inputs)
        torch.testing.assert_close(out, expected)
        cotangent = randn(*out.shape, seed=9, dtype=torch.float32)
        ours, theirs = (
            torch.autograd.grad(t, leaves, cotangent, allow_unused=True) for t in (out, expected)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
    assert counter.frame_count <= MOST_GRAPHS


def padded(number):
    B, S = 2 + number, 5 + 3 * number
    generator = torch.Generator().manual_seed(number)
    mask = (torch.rand(B, S, generator=generator) > 0.3).long()
    return {"input_ids": torch.randint(0, 50, (B, S), generator=generator), "attention_mask": mask}


def unmasked(number):
    return {"input_ids": padded(number)["input_ids"]}


def with_everything(number):
    inputs = padded(number)
    inputs["token_type_ids"] = inputs["input_ids"] % 2
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).flip(0)
    return {**inputs, "output_hidden_states": True}


def packed(number):
    return {"input_ids": random_batch(lengths_of(number)).to("cpu")}


def embedded(number):
    inputs = padded(number)
    embeds = randn(*inputs["attention_mask"].shape, 32, dtype=torch.float32)
    return {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}


MAKERS = [
    padded,
    packed,
    *(pytest.param(make, marks=pytest.mark.slow) for make in (unmasked, with_everything, embedded)),
]


def compare(model, make, backend, batches, training):
    torch.manual_seed(0)
    fast, counter = compiled(model, backend)
    for number in range(batches):
        inputs, results = make(number), []
        for call in (fast, model):
            model.zero_grad()
            out = call(**inputs)
            grads = []
            if training:
                (out.last_hidden_state.square().sum() + out.pooler_output.sum()).backward()
                grads = [p.grad for p in model.parameters()]
            results.append((out.to_tuple(), grads))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= MOST_GRAPHS


def tiny(dropout=0.0):
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertModel(CONFIG.replace(**rates))


@pytest.mark.parametrize("make", MAKERS)
def test_a_whole_forward_pass_without_grad(make):
    model = tiny().eval()
    with torch.no_grad():
        compare(model, make, "aot_eager", BATCHES, training=False)


@pytest.mark.parametrize("make", MAKERS)
def test_a_whole_training_step(make):
    compare(tiny().train(), make, "aot_eager", BATCHES, training=True)


def test_a_numpy_batch():
    model = tiny().eval()
    fast, counter = compiled(model)
    with torch.no_grad():
        for number in range(BATCHES):
            batch = random_batch(lengths_of(number))
            torch.testing.assert_close(
                fast(batch).last_hidden_state, model(batch).last_hidden_state
            )
    assert counter.frame_count <= MOST_GRAPHS


def test_dropout_draws_anew_at_every_step():
    model = tiny(0.3).train()
    fast, counter = compiled(model)
    inputs = padded(3)
    a, b = (fast(**inputs).last_hidden_state for _ in range(2))
    assert not torch.allclose(a, b)  # a seed frozen in the graph would repeat the mask
    torch.manual_seed(4)
    c = fast(**inputs).last_hidden_state
    torch.manual_seed(4)
    d = fast(**inputs).last_hidden_state
    assert torch.equal(c, d)
    assert counter.frame_count == 1  # nor does a new seed mean a new graph


def test_bad_ids_raise_from_a_compiled_model():
    model = tiny().eval()
    fast, _ = compiled(model)
    inputs = padded(0)
    inputs["input_ids"][0] = 50
    inputs["attention_mask"][:] = 1
    with torch.no_grad(), pytest.raises(IndexError, match=r"input_ids holds 50; .* 0\.\.49"):
        fast(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [padded, packed])
def test_inductor(make, training):
    model = tiny().train(training)
    with torch.set_grad_enabled(training):
        compare(model, make, "inductor", 6, training)
