from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parity import LOW, NO_SEED, check_layouts, judge, randn
from torch.autograd import gradcheck
from torch.library import opcheck

from fastbert import ops

SEED = torch.tensor([11])


def inputs(T=5, C=8, with_residual=True):
    residual = randn(T, C, seed=1) if with_residual else None
    return [randn(T, C) + 3, residual, randn(C, seed=2), randn(C, seed=3)]


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("T", [5, 1, 0])
def test_gradients(T, with_residual, dropout_p):
    leaves = [t if t is None else t.requires_grad_() for t in inputs(T, 8, with_residual)]
    seed = SEED if dropout_p else NO_SEED
    assert gradcheck(lambda *t: ops.residual_layer_norm(*t, 1e-5, dropout_p, seed), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize(("with_residual", "dropout_p"), [(True, 0.0), (True, 0.3), (False, 0.3)])
def test_schema(with_residual, dropout_p, dtype):
    seed = SEED if dropout_p else NO_SEED
    given = [t if t is None else t.to(dtype or torch.float32) for t in inputs(5, 8, with_residual)]
    x, residual, weight, bias = given
    if dtype is None:  # as under autocast: the branch in 16 bits, the residual stream in 32
        x = x.bfloat16()
    opcheck(
        torch.ops.fastbert.residual_layer_norm.default,
        (x, residual, weight, bias, 1e-5, dropout_p, seed),
    )
    mean, rstd = torch.randn(5), torch.rand(5) + 0.5
    grad = torch.randn_like(x if residual is None else x + residual)
    opcheck(
        torch.ops.fastbert.residual_layer_norm_backward.default,
        (grad, x, residual, weight, mean, rstd, dropout_p, seed),
    )


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("with_residual", [True, False])
def test_error(dtype, with_residual):
    def plain(x, residual, weight, bias):
        summed = x if residual is None else x + residual
        return F.layer_norm(summed, (64,), weight, bias, 1e-12)

    judge(
        lambda *t: ops.residual_layer_norm(*t, 1e-12, 0.0, NO_SEED),
        plain,
        inputs(48, 64, with_residual),
        dtype,
    )


@pytest.mark.parametrize("dtype", LOW)
def test_a_large_mean_does_not_eat_the_variance(dtype):
    x = randn(32, 64) * 0.5 + 100  # E[x²] - E[x]² would be lost
    judge(
        lambda x, w, b: ops.residual_layer_norm(x, None, w, b, 1e-12, 0.0, NO_SEED),
        lambda x, w, b: F.layer_norm(x, (64,), w, b, 1e-12),
        [x, randn(64, seed=1), randn(64, seed=2)],
        dtype,
    )


@pytest.mark.parametrize("dtype", LOW)
def test_constant_rows_have_finite_gradients(dtype):
    x = torch.full((3, 16), 2.0, dtype=dtype, requires_grad=True)
    weight, bias = (torch.ones(16, dtype=dtype, requires_grad=True) for _ in range(2))
    out = ops.residual_layer_norm(x, None, weight, bias, 1e-12, 0.0, NO_SEED)
    assert out.isfinite().all()
    # A cotangent that is constant over the row: then the true gradient is 0, not 1e6 times noise.
    out.backward(torch.ones_like(out))
    for leaf in (x, weight, bias):
        assert leaf.grad.isfinite().all()


def test_dropout_falls_on_x_alone_and_by_seed():
    x, weight, bias = torch.ones(50, 40), torch.ones(40), torch.zeros(40)
    residual = randn(50, 40).float()
    leaf = x.clone().requires_grad_()

    def run(seed):
        return ops.residual_layer_norm(leaf, residual, weight, bias, 1e-5, 0.375, seed)

    a, b, c = run(SEED), run(SEED), run(SEED + 1)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    (a * randn(50, 40, seed=5)).sum().backward()
    dropped = leaf.grad == 0
    assert dropped.float().mean().item() == pytest.approx(0.375, abs=0.05)
    expected = torch.where(dropped, 0.0, 1 / 0.625) + residual
    torch.testing.assert_close(a, F.layer_norm(expected, (40,), weight, bias, 1e-5))


def test_mixed_dtypes_drop_the_same_elements_forward_and_backward():
    x = torch.ones(64, 64, dtype=torch.bfloat16, requires_grad=True)
    residual = randn(64, 64).float().requires_grad_()
    weight, bias = torch.ones(64), torch.zeros(64)
    out = ops.residual_layer_norm(x, residual, weight, bias, 1e-5, 0.3, SEED)
    (out * randn(64, 64, seed=5)).sum().backward()
    assert out.dtype == residual.grad.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16
    kept = torch.where(x.grad == 0, 0.0, 1 / 0.7)
    expected = F.layer_norm(kept + residual, (64,), weight, bias, 1e-5)
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)


def test_layout_changes_nothing():
    def norm(*tensors):
        return ops.residual_layer_norm(*tensors, 1e-5, 0.0, NO_SEED)

    check_layouts(norm, inputs())
    x, _, weight, bias = inputs()
    check_layouts(lambda *t: norm(t[0], None, *t[1:]), (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_norm_wide(dtype):
    x, residual, weight, bias = (t.float() for t in inputs())
    with torch.autocast("cpu", dtype):
        for low, rest in ((x, residual), (x.to(dtype), residual), (x.to(dtype), None)):
            out = ops.residual_layer_norm(low, rest, weight, bias, 1e-5, 0.0, NO_SEED)
            summed = low if rest is None else low + rest
            plain = F.layer_norm(summed, (8,), weight, bias, 1e-5)
            assert out.dtype == plain.dtype
            torch.testing.assert_close(out, plain)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"x": randn(5, 2, 4)}, r"must share C, not \(5, 2, 4\)"),
        ({"weight": randn(7)}, r"must share C, not \(5, 8\), \(7,\) and \(8,\)"),
        ({"bias": randn(9)}, r"\(8,\) and \(9,\)"),
        ({"residual": randn(5, 1)}, r"x's shape \(5, 8\), not \(5, 1\)"),
        ({"dropout_p": 1.0}, "without 1, not 1.0"),
        ({"dropout_p": -0.1}, "not -0.1"),
        ({"dropout_p": float("nan")}, "not nan"),
        ({"dropout_p": 0.1}, "one number where dropout_p is 0.1, found 0"),
        ({"dropout_p": 0.1, "seed": torch.tensor([1, 2])}, "found 2"),
        ({"dropout_p": 0.1, "seed": torch.tensor([1.0])}, "seed must be int64, not torch.float32"),
    ],
)
def test_it_refuses(changes, match):
    x, residual, weight, bias = inputs()
    args = {"x": x, "residual": residual, "weight": weight, "bias": bias, "eps": 1e-5}
    with pytest.raises(ValueError, match=match):
        ops.residual_layer_norm(**{**args, "dropout_p": 0.0, "seed": NO_SEED, **changes})
