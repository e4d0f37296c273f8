"""The reference against torch's own functions, in float64: it is the truth of all other tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity import LOW, NO_SEED, assert_within, bounds, randn

from fastbert import reference

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
LENGTHS = (3, 0, 1, 7)
ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def test_the_rule_itself():
    truth = torch.tensor([1.0, -8.0], dtype=torch.float64)
    plain = torch.tensor([1.0, -8.0625], dtype=torch.bfloat16)
    ulp = 8 * torch.finfo(torch.bfloat16).eps
    assert_within(plain, plain, truth, 1.0)
    within = truth + 1.4 * 0.0625
    assert_within(within.bfloat16(), plain, truth, 1.5)
    beyond = truth + torch.tensor([1.5 * 0.0625 + 2 * ulp, 0.0])
    with pytest.raises(AssertionError, match="plain torch"):
        assert_within(beyond.bfloat16(), plain, truth, 1.5)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(AssertionError, match="error inf"):
            assert_within(torch.full((2,), bad).bfloat16(), plain, truth, 1.5)
    with pytest.raises(AssertionError, match=r"torch\.float32, not torch\.bfloat16"):
        assert_within(plain.float(), plain, truth, 1.5)
    with pytest.raises(AssertionError, match=r"\(1,\), not \(2,\)"):
        assert_within(plain[:1], plain, truth, 1.5)


def test_embed_layer_norm():
    ids, types, positions = torch.tensor([[3, 0, 9], [1, 0, 1], [5, 2, 0]])
    word, position, kind = randn(10, 8, seed=1), randn(6, 8, seed=2), randn(2, 8, seed=3)
    weight, bias = randn(8, seed=4), randn(8, seed=5)
    out, mean, rstd = reference.embed_layer_norm(
        ids, types, positions, word, position, kind, weight, bias, 1e-5
    )
    summed = word[ids] + position[positions] + kind[types]
    torch.testing.assert_close(out, F.layer_norm(summed, (8,), weight, bias, 1e-5), **CLOSE)
    torch.testing.assert_close(mean, summed.mean(1), **CLOSE)
    torch.testing.assert_close(rstd, (summed.var(1, unbiased=False) + 1e-5).rsqrt(), **CLOSE)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(activation, with_bias):
    x, weight = randn(5, 4), randn(6, 4, seed=1)
    bias = randn(6, seed=2) if with_bias else None
    out, pre = reference.linear(x, weight, bias, activation)
    expected = x @ weight.t() + (0 if bias is None else bias)
    torch.testing.assert_close(pre, expected, **CLOSE)
    torch.testing.assert_close(out, ACTIVATIONS[activation](expected), **CLOSE)


def test_gelu_is_erf_unless_asked():
    x, bias = randn(4, 3), randn(3, seed=1)
    expected = (x + bias) * 0.5 * (1 + torch.erf((x + bias) / 2**0.5))
    torch.testing.assert_close(reference.bias_gelu(x, bias), expected, **CLOSE)
    torch.testing.assert_close(
        reference.bias_gelu(x, bias, "tanh"), F.gelu(x + bias, approximate="tanh"), **CLOSE
    )


def test_varlen_attention():
    qkv, cu = randn(11, 3, 2, 4), bounds(*LENGTHS)
    out, lse = reference.varlen_attention(qkv, cu, 0.5, 0.0, NO_SEED)
    weights = reference.attention_weights(qkv, cu, 0.5)
    start = 0
    for length, weight in zip(LENGTHS, weights, strict=True):
        rows = slice(start, start + length)
        q, k, v = qkv[rows].permute(1, 2, 0, 3)  # (H, S, D)
        expected = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        torch.testing.assert_close(out[rows].transpose(0, 1), expected, **CLOSE)
        scores = 0.5 * q @ k.transpose(1, 2)
        torch.testing.assert_close(lse[:, rows], scores.logsumexp(-1), **CLOSE)
        torch.testing.assert_close(weight, scores.softmax(-1), **CLOSE)
        start += length


def test_rows_beyond_the_last_sequence_are_zeros():
    out, _ = reference.varlen_attention(randn(9, 3, 2, 4), bounds(3, 4), 0.5, 0.0, NO_SEED)
    assert not out[7:].any()
    assert out[:7].all()


@pytest.mark.parametrize("dtype", LOW)
def test_extreme_logits_stay_finite(dtype):
    qkv = randn(6, 3, 1, 4).to(dtype) * 60  # scores of some thousands
    out, lse = reference.varlen_attention(qkv, bounds(6), 0.5, 0.0, NO_SEED)
    assert out.isfinite().all()
    assert lse.isfinite().all()


def test_attention_ignores_a_shift_of_all_scores():
    qkv = randn(6, 3, 1, 4)
    shifted = qkv.clone()
    shifted[:, 1] += 3.0  # adds q·3 to every score of a query: the softmax cancels it
    a, b = (reference.varlen_attention(t, bounds(6), 0.5, 0.0, NO_SEED)[0] for t in (qkv, shifted))
    torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("with_residual", [True, False])
def test_residual_layer_norm(with_residual):
    x, weight, bias = randn(5, 8) * 3 + 7, randn(8, seed=1), randn(8, seed=2)
    residual = randn(5, 8, seed=3) if with_residual else None
    out, mean, rstd = reference.residual_layer_norm(x, residual, weight, bias, 1e-5, 0.0, NO_SEED)
    summed = x + (0 if residual is None else residual)
    torch.testing.assert_close(out, F.layer_norm(summed, (8,), weight, bias, 1e-5), **CLOSE)
    torch.testing.assert_close(mean, summed.mean(1), **CLOSE)
    torch.testing.assert_close(rstd, (summed.var(1, unbiased=False) + 1e-5).rsqrt(), **CLOSE)


@pytest.mark.parametrize("dtype", LOW)
def test_statistics_are_float32_in_value_not_only_in_name(dtype):
    x = (randn(20, 64) * 0.5 + 9).to(dtype)
    ones, zeros = torch.ones(64, dtype=dtype), torch.zeros(64, dtype=dtype)
    first = torch.zeros(20, dtype=torch.int64)
    for stats in (
        reference.residual_layer_norm(x, None, ones, zeros, 1e-12, 0.0, NO_SEED)[1:],
        reference.embed_layer_norm(
            torch.arange(20), first, first, x, x[:1] * 0, x[:1] * 0, ones, zeros, 1e-12
        )[1:],
    ):  # fmt: skip
        mean, rstd = stats
        assert mean.dtype == rstd.dtype == torch.float32
        wide = x.double()
        torch.testing.assert_close(mean.double(), wide.mean(1), rtol=1e-6, atol=0)
        expected = (wide.var(1, unbiased=False) + 1e-12).rsqrt()
        torch.testing.assert_close(rstd.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", LOW)
def test_constant_rows_keep_eps(dtype):
    x = torch.full((2, 16), 2.0, dtype=dtype)
    weight, bias = torch.ones(16, dtype=dtype), torch.ones(16, dtype=dtype)
    out, _, rstd = reference.residual_layer_norm(x, None, weight, bias, 1e-12, 0.0, NO_SEED)
    assert torch.equal(out, torch.ones_like(x))  # the bias, not NaN
    assert torch.allclose(rstd, torch.tensor(1e6))


def test_linear_cross_entropy():
    x, weight, bias = randn(7, 4), randn(9, 4, seed=1), randn(9, seed=2)
    labels = torch.tensor([0, 8, -100, 3, 3, -100, 5])
    loss, lse = reference.linear_cross_entropy(x, weight, bias, labels)
    logits = F.linear(x, weight, bias)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="none"), **CLOSE)
    torch.testing.assert_close(lse, logits.logsumexp(-1), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.half])
def test_pack_and_unpack(dtype):
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]]).to(dtype)
    lengths, cu, indices, positions = reference.pack(mask)
    assert lengths.tolist() == [2, 0, 2]
    assert cu.tolist() == [0, 2, 2, 4]
    assert indices.tolist() == [0, 2, 9, 10]
    assert positions.tolist() == [0, 2, 1, 2]
    x = randn(4, 5)
    padded = reference.unpack(x, indices, 3, 4)
    assert torch.equal(padded[mask != 0], x)
    assert not padded[mask == 0].any()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ["cls", "mean", "max", "last"])
def test_pool(mode, normalize):
    x, cu = randn(12, 4) - 2, bounds(*LENGTHS)  # one row beyond the last sequence
    vectors = reference.pool(x, cu, mode, normalize)
    start = 0
    for vector, length in zip(vectors, LENGTHS, strict=True):
        rows = x[start : start + length]
        start += length
        if length == 0:
            assert not vector.any()
            continue
        expected = {
            "cls": rows[0], "last": rows[-1], "mean": rows.mean(0), "max": rows.amax(0)
        }[mode]  # fmt: skip
        if normalize:
            expected = expected / expected.norm()
        torch.testing.assert_close(vector, expected, **CLOSE)


@pytest.mark.parametrize("mode", ["mean", "max", "cls", "last"])
def test_pool_sums_wide_and_returns_narrow(mode):
    x = torch.ones((4096, 2), dtype=torch.bfloat16)  # summed in bf16 they would stop at 256
    vectors = reference.pool(x, bounds(4096), mode, False)
    assert vectors.dtype == torch.bfloat16
    assert torch.equal(vectors, x[:1])


def test_upcasting_is_one_keyword():
    x, weight, bias = (randn(*shape).bfloat16() for shape in ((5, 4), (6, 4), (6,)))
    narrow, _ = reference.linear(x, weight, bias, "gelu")
    wide, _ = reference.linear(x, weight, bias, "gelu", dtype=torch.float64)
    assert (narrow.dtype, wide.dtype) == (torch.bfloat16, torch.float64)
    expected = F.gelu(x.double() @ weight.double().t() + bias.double())
    torch.testing.assert_close(wide, expected, **CLOSE)
    labels = torch.zeros(5, dtype=torch.int64)
    loss, _ = reference.linear_cross_entropy(x, weight, bias, labels=labels, dtype=torch.float64)
    assert loss.dtype == torch.float64  # keywords are cast where they are floats, labels are not


def test_dropout_follows_its_seed_and_rate():
    x, seed, other = torch.ones(64, 128), torch.tensor([5]), torch.tensor([6])
    a, b, c = (reference.residual_sum(x, None, 0.25, s) for s in (seed, seed, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (a == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_the_reference_imports_nothing_of_ours():
    assert "fastbert" not in Path(reference.__file__).read_text(encoding="utf-8")
