from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parity import LOW, check_layouts, judge, randn
from torch.autograd import gradcheck
from torch.library import opcheck

from fastbert import ops
from fastbert.reference import ACTIVATIONS

SHAPES = ((5, 4, 6), (1, 3, 2), (0, 4, 6))  # T, K, N


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_linear(activation, with_bias):
    for T, K, N in SHAPES:
        inputs = [randn(T, K), randn(N, K, seed=1), randn(N, seed=2) if with_bias else None]
        leaves = [t if t is None else t.requires_grad_() for t in inputs]
        assert gradcheck(lambda *t: ops.linear(*t, activation), leaves)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gradients_of_bias_gelu(approximate):
    for T, N in ((5, 4), (0, 4)):
        leaves = [randn(T, N).requires_grad_(), randn(N, seed=1).requires_grad_()]
        assert gradcheck(lambda *t: ops.bias_gelu(*t, approximate), leaves)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("save", [True, False])
def test_schema_of_linear(activation, save):
    for bias in (torch.randn(6), None):
        args = (torch.randn(5, 4), torch.randn(6, 4), bias, activation, save)
        opcheck(torch.ops.fastbert.linear.default, args)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize(
    "needs", [[True, True, True], [True, False, False], [False, True, False], [True, True, False]]
)
def test_schema_of_linear_backward(activation, needs):
    pre = torch.randn(5, 6) if activation != "none" else torch.empty(0)
    args = (torch.randn(5, 6), torch.randn(5, 4), torch.randn(6, 4), pre, activation, needs)
    opcheck(torch.ops.fastbert.linear_backward.default, args)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_schema_of_bias_gelu(approximate):
    x, bias = torch.randn(5, 4), torch.randn(4)
    opcheck(torch.ops.fastbert.bias_gelu.default, (x, bias, approximate))
    grad = torch.randn(5, 4)
    opcheck(torch.ops.fastbert.bias_gelu_backward.default, (grad, x, bias, approximate))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_of_linear(dtype, activation):
    inputs = [randn(64, 48), randn(40, 48, seed=1) * 0.2, randn(40, seed=2)]
    for given in (inputs, [*inputs[:2], None]):
        judge(
            lambda x, w, b: ops.linear(x, w, b, activation),
            lambda x, w, b: ACTIVATIONS[activation](F.linear(x, w, b)),
            given,
            dtype,
        )


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_error_of_bias_gelu(dtype, approximate):
    judge(
        lambda x, b: ops.bias_gelu(x, b, approximate),
        lambda x, b: F.gelu(x + b, approximate=approximate),
        [randn(64, 48) * 2, randn(48, seed=1)],
        dtype,
    )


def test_layout_changes_nothing():
    x, weight, bias = randn(5, 4), randn(6, 4, seed=1), randn(6, seed=2)
    check_layouts(ops.linear, (x, weight, bias), ("gelu",))
    check_layouts(ops.bias_gelu, (x, randn(4, seed=3)), ("none",))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_inside(dtype):
    leaves = [randn(5, 4), randn(6, 4, seed=1), randn(6, seed=2)]
    x, weight, bias = (t.float().requires_grad_() for t in leaves)
    with torch.autocast("cpu", dtype):
        out, plain = ops.linear(x, weight, bias, "gelu"), F.gelu(F.linear(x, weight, bias))
        assert ops.bias_gelu(x, bias[:4]).dtype == dtype
        no_grad = ops.linear(x.detach(), weight.detach(), bias.detach(), "gelu")
    assert out.dtype == plain.dtype == no_grad.dtype == dtype
    assert torch.equal(out, plain)
    assert torch.equal(out, no_grad)
    grads = torch.autograd.grad(out.float().sum(), (x, weight, bias))
    expected = torch.autograd.grad(plain.float().sum(), (x, weight, bias))
    for ours, theirs in zip(grads, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_autocast_leaves_float64_alone():
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(randn(5, 4), randn(6, 4), None).dtype == torch.float64


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((randn(5, 4), randn(6, 3), None), r"must share K, not \(5, 4\) and \(6, 3\)"),
        ((randn(5), randn(6, 5), None), r"x \(T, K\) and weight"),
        ((randn(5, 4), randn(6, 4), randn(5)), r"bias must be \(6,\)"),
        ((randn(5, 4), randn(6, 4).float(), None), r"x is torch.float64, weight is torch.float32"),
        ((randn(5, 4), randn(6, 4), randn(6).float()), r"in torch.float64, not \(6,\) in"),
        ((randn(5, 4), randn(6, 4), None, "gelu_new"), "gelu_tanh, relu.*not 'gelu_new'"),
    ],
)
def test_linear_refuses(args, match):
    with pytest.raises(ValueError, match=match):
        ops.linear(*args)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((randn(5, 4), randn(5)), r"must share N, not \(5, 4\) and \(5,\)"),
        ((randn(4), randn(4)), r"x \(T, N\)"),
        ((randn(5, 4), randn(4), "erf"), "none or tanh, not 'erf'"),
    ],
)
def test_bias_gelu_refuses(args, match):
    with pytest.raises(ValueError, match=match):
        ops.bias_gelu(*args)


def test_only_what_needs_a_gradient_gets_one():
    x, weight, bias = randn(5, 4), randn(6, 4, seed=1), randn(6, seed=2)
    for needed in (x, weight, bias):
        leaves = [t.detach().requires_grad_(t is needed) for t in (x, weight, bias)]
        ops.linear(*leaves, "gelu").sum().backward()
        assert [t.grad is not None for t in leaves] == [t is needed for t in (x, weight, bias)]
