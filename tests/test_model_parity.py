"""`BertModel` against transformers' in float64: every mask, every argument, every gradient."""

from __future__ import annotations

import pytest
import torch
import transformers
from bert_pair import CLOSE, compare, pair, random_ids

EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
B, S = 6, 12
DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


@pytest.fixture(scope="module")
def models():
    return pair()


def masks():
    """Masks by name, (B, S)."""
    columns = torch.arange(S)
    lengths = torch.tensor([12, 1, 5, 11, 7, 3])[:, None]
    right = (columns < lengths).long()
    holes = right.clone()
    holes[0, 3:6] = 0
    holes[3, ::2] = 0
    column = right.clone()
    column[:, 0] = 0
    whole = right.clone()
    whole[1], whole[4] = 0, 0
    scattered = (torch.rand(B, S, generator=torch.Generator().manual_seed(3)) > 0.5).long()
    return {
        "all": torch.ones(B, S, dtype=torch.int64),
        "right padding": right,
        "left padding": right.flip(1),
        "holes": holes,
        "a column masked in every row": column,
        "a middle column masked in every row": right * (columns != 4),
        "rows masked whole": whole,
        "all rows masked whole": right * 0,
        "scattered": scattered,
    }


def theirs_on(model, inputs, mask):
    """transformers' output; where a row has no real token it gives NaN or junk: not compared."""
    return model(**inputs, attention_mask=(mask != 0).long(), **EVERYTHING)


@pytest.mark.parametrize("name", masks())
@torch.no_grad()
def test_masks(models, name):
    ours, theirs = models
    mask, inputs = masks()[name], {"input_ids": random_ids(B, S)}
    compare(
        ours(**inputs, attention_mask=mask, **EVERYTHING), theirs_on(theirs, inputs, mask), mask
    )


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_masks_of_every_dtype(models, dtype):
    ours, _ = models
    ids, mask = random_ids(B, S), masks()["holes"]
    expected = ours(ids, mask)
    for given in (mask.to(dtype), mask.to(dtype) * 3):
        assert torch.equal(ours(ids, given).last_hidden_state, expected.last_hidden_state)


@torch.no_grad()
def test_no_mask_means_all_real_whatever_the_ids(models):
    ours, theirs = models
    ids = random_ids(B, S)
    ids[:, 6:] = 0  # the padding id
    compare(ours(ids, **EVERYTHING), theirs(ids, **EVERYTHING), torch.ones(B, S))


@torch.no_grad()
def test_a_left_padded_row_pools_its_first_real_token(models):
    """Here we differ from transformers, which pools the padding token in column 0."""
    ours, theirs = models
    ids, mask = random_ids(B, S), masks()["left padding"]
    out, expected = ours(ids, mask), theirs(ids, mask)
    first = mask.argmax(dim=1)
    tokens = expected.last_hidden_state[torch.arange(B), first]  # (B, C)
    torch.testing.assert_close(out.pooler_output, torch.tanh(theirs.pooler.dense(tokens)), **CLOSE)
    assert not torch.allclose(out.pooler_output[2], expected.pooler_output[2])


@torch.no_grad()
def test_long_rows_whose_first_530_keys_are_masked():
    ours, theirs = pair(max_position_embeddings=640, num_hidden_layers=2)
    ids, mask = random_ids(3, 600), torch.ones(3, 600, dtype=torch.int64)
    mask[0, :530], mask[1, :530] = 0, 0
    mask[1, 540:560] = 0
    inputs = {"input_ids": ids}
    compare(
        ours(**inputs, attention_mask=mask, **EVERYTHING), theirs_on(theirs, inputs, mask), mask
    )


ARGUMENTS = {
    "token types": {"token_type_ids": random_ids(B, S, seed=1) % 2},
    "int32 ids": {"input_ids": random_ids(B, S).int()},
    "positions (B, S)": {"position_ids": random_ids(B, S, 40, seed=2)},
    "positions (1, S)": {"position_ids": torch.arange(S).flip(0)[None]},
    "embeddings": {
        "input_ids": None,
        "inputs_embeds": torch.randn(B, S, 32, dtype=torch.float64),
        "token_type_ids": random_ids(B, S, seed=1) % 2,
    },
    "types and positions": {
        "token_type_ids": random_ids(B, S, seed=1) % 2,
        "position_ids": random_ids(B, S, 40, seed=2),
    },
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("mask_name", ["right padding", "holes"])
@torch.no_grad()
def test_arguments(models, name, mask_name):
    ours, theirs = models
    mask = masks()[mask_name]
    inputs = {"input_ids": random_ids(B, S), **ARGUMENTS[name]}
    compare(
        ours(**inputs, attention_mask=mask, **EVERYTHING), theirs_on(theirs, inputs, mask), mask
    )


@torch.no_grad()
def test_positions_of_one_axis_hold_for_every_row(models):
    ours, _ = models
    ids, positions = random_ids(B, S), torch.arange(S).flip(0)
    for given in (positions[None], positions[None].expand(B, S), positions.int()):
        expected = ours(ids, position_ids=given).last_hidden_state
        assert torch.equal(ours(ids, position_ids=positions).last_hidden_state, expected)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"])
@torch.no_grad()
def test_activations(act):
    ours, theirs = pair(hidden_act=act, num_hidden_layers=1)
    ids, mask = random_ids(B, S), masks()["holes"]
    compare(ours(ids, mask, **EVERYTHING), theirs(ids, mask, **EVERYTHING), mask)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 1},
        {"type_vocab_size": 1},
        {"type_vocab_size": 3},
        {"layer_norm_eps": 1e-2},
        {"pad_token_id": 7},
        {"num_attention_heads": 8, "hidden_size": 24, "intermediate_size": 7},
    ],
)
@torch.no_grad()
def test_configs(changes):
    ours, theirs = pair(num_hidden_layers=1, **changes)
    ids, mask = random_ids(B, S), masks()["holes"]
    types = ids % changes.get("type_vocab_size", 2)
    args = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    compare(ours(**args, **EVERYTHING), theirs(**args, **EVERYTHING), mask)


@pytest.mark.parametrize("layers", [2, pytest.param(12, marks=pytest.mark.slow)])
@torch.no_grad()
def test_the_shape_of_bert_base(layers):
    ours, theirs = pair(
        vocab_size=500, hidden_size=768, num_hidden_layers=layers, num_attention_heads=12,
        intermediate_size=3072, max_position_embeddings=512,
    )  # fmt: skip
    ids = random_ids(3, 33, 500)
    mask = (torch.arange(33) < torch.tensor([33, 8, 20])[:, None]).long()
    mask[0, 4:9] = 0
    compare(ours(ids, mask, **EVERYTHING), theirs(ids, mask, **EVERYTHING), mask)


def train(model, inputs, mask):
    """Gradients by name of a loss that weighs real tokens alone, each differently."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(B, S, 32, generator=generator, dtype=torch.float64)
    out = model(**inputs, attention_mask=mask)
    real = (mask != 0)[..., None]
    loss = (out.last_hidden_state * weights).where(real, 0).sum()
    rows = (mask[:, 0] != 0)[:, None]
    (loss + (out.pooler_output * weights[:, 0]).where(rows, 0).sum()).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for name in [n for n in grads if ".query." in n]:
        parts = [
            grads.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")
        ]
        grads[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return grads


@pytest.mark.parametrize("name", ["all", "right padding", "holes", "left padding", "scattered"])
@pytest.mark.parametrize("pad", [0, 7, None])
def test_gradients(name, pad):
    ours, theirs = pair(
        pad_token_id=pad, num_hidden_layers=2, hidden_dropout_prob=0, attention_probs_dropout_prob=0
    )
    mask = masks()[name]
    ids = random_ids(B, S)
    ids[:, 2], ids[mask == 0] = 7, 0  # a padding id that is real, too
    inputs = {"input_ids": ids, "token_type_ids": ids % 2}
    expected = train(theirs.train(), inputs, mask)
    grads = train(ours.train(), inputs, mask)
    assert grads.keys() == expected.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(grad, expected[key], **CLOSE, msg=lambda m, k=key: f"{k}: {m}")
    words = grads["embeddings.word_embeddings.weight"]
    assert words[7].any() == (pad != 7)
    if pad == 0:
        assert not words[0].any()


def test_gradients_of_embeddings():
    ours, theirs = pair(hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    mask, results = masks()["holes"], []
    for model in (ours, theirs):
        embeds = torch.randn(B, S, 32, generator=torch.Generator().manual_seed(1)).double()
        embeds.requires_grad_()
        grads = train(model.train(), {"inputs_embeds": embeds}, mask)
        results.append((embeds.grad, grads["embeddings.position_embeddings.weight"]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_autocast_gives_the_dtypes_of_transformers(dtype):
    ours, theirs = pair(torch.float32)
    ids, mask = random_ids(B, S), masks()["right padding"]
    with torch.autocast("cpu", dtype):
        a, b = (model(ids, mask, **EVERYTHING) for model in (ours, theirs))
    assert a.last_hidden_state.dtype == b.last_hidden_state.dtype
    assert a.pooler_output.dtype == b.pooler_output.dtype
    assert [t.dtype for t in a.hidden_states] == [t.dtype for t in b.hidden_states]
    assert ours.dtype == torch.float32
    real = mask != 0
    torch.testing.assert_close(
        a.last_hidden_state[real], b.last_hidden_state[real], rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_an_error_is_not_above_that_of_transformers(dtype):
    """The rule of the house on a whole model, at most 1.5 times plus one ulp."""
    ours, theirs = pair(dtype)
    _, wide = pair()
    wide.load_state_dict({name: t.double() for name, t in theirs.state_dict().items()})
    ids, mask = random_ids(B, S), masks()["right padding"]
    real = mask != 0
    truth = wide(ids, mask).last_hidden_state[real]
    a, b = (model(ids, mask).last_hidden_state[real].double() for model in (ours, theirs))
    ulp = torch.finfo(dtype).eps * truth.abs().max()
    assert (a - truth).abs().max() <= 1.5 * (b - truth).abs().max() + ulp
    assert ours.dtype == dtype


def test_signatures_agree():
    import inspect

    from fastbert.model import BertModel

    ours = list(inspect.signature(BertModel.forward).parameters)
    theirs = list(inspect.signature(transformers.BertModel.forward).parameters)
    shared = [name for name in theirs if name in ours]
    assert ours[: len(shared)] == shared  # what is passed by place means the same in both
