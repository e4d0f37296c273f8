"""Triton's norm under the interpreter against float64, and compiled ahead of time."""

from __future__ import annotations

import ahead
import interpreted
import pytest
import torch
import torch.nn.functional as F
from parity import LOW, NO_SEED, check_layouts, gradients, judge, randn
from torch.library import opcheck
from walled import Walled, amid

from fastbert import ops
from fastbert.kernels import layer_norm, philox, rows

SEED = torch.tensor([0x1234_5678_9ABC_DEF0])
WIDTHS = (1, 8, 24, 31, 64, 100, 384, 768, 1000)
MODULE = "fastbert.kernels.layer_norm"


def inputs(T=9, C=64, with_residual=True, mean=100.0):
    """x and residual with a large mean, so that a lane beyond C in the variance would show."""
    residual = randn(T, C, seed=1) if with_residual else None
    return [randn(T, C) + mean, residual, randn(C, seed=2), randn(C, seed=3)]


def kept(T, C, dropout_p):
    """What each element of x is multiplied by, in the widest dtype; 1 without dropout."""
    if not dropout_p:
        return torch.ones(T, C, dtype=torch.float64)
    return philox.row_mask(SEED, T, C, dropout_p) * philox.scale(dropout_p)


def plain(dropout_p=0.0, eps=1e-12):
    """The op in plain torch, with the kernel's dropout mask."""

    def call(x, residual, weight, bias):
        x = x * kept(*x.shape, dropout_p).to(x.dtype)
        summed = x if residual is None else x + residual
        wide = torch.float64 if summed.dtype == torch.float64 else torch.float32
        out = F.layer_norm(summed.to(wide), x.shape[1:], weight.to(wide), bias.to(wide), eps)
        return out.to(summed.dtype)

    return call


def ours(dropout_p=0.0, eps=1e-12):
    seed = SEED if dropout_p else NO_SEED
    return lambda *t: ops.residual_layer_norm(*t, eps, dropout_p, seed)


def raw(x, residual, weight, bias, grad, dropout_p):
    """All that both launchers give."""
    seed = SEED if dropout_p else NO_SEED
    forward = layer_norm.LAUNCHERS["residual_layer_norm"]
    out, mean, rstd = forward(x, residual, weight, bias, 1e-5, dropout_p, seed)
    backward = layer_norm.LAUNCHERS["residual_layer_norm_backward"]
    return out, mean, rstd, *backward(grad, x, residual, weight, mean, rstd, dropout_p, seed)


if interpreted.INTERPRETING:
    for _name, _launcher in layer_norm.LAUNCHERS.items():
        ops.register("norm kernels", _name, "cpu", _launcher)

    @pytest.mark.parametrize(("with_residual", "dropout_p"), [(True, 0.3), (False, 0.0)])
    @pytest.mark.parametrize("C", WIDTHS)
    def test_error_by_width(C, with_residual, dropout_p):
        given = inputs(9, C, with_residual)
        judge(ours(dropout_p), plain(dropout_p), given, torch.float32)

    @pytest.mark.slow
    @pytest.mark.parametrize("dropout_p", [0.0, 0.1])
    def test_error_at_the_widest(dropout_p):
        judge(ours(dropout_p), plain(dropout_p), inputs(3, 8192), torch.float32)

    @pytest.mark.slow
    @pytest.mark.parametrize("mean", [0.0, 100.0])
    @pytest.mark.parametrize(
        ("with_residual", "dropout_p"), [(True, 0.0), (True, 0.3), (False, 0.3)]
    )
    @pytest.mark.parametrize("dtype", LOW)
    def test_error_by_dtype(dtype, with_residual, dropout_p, mean):
        for C in (64, 100):
            given = inputs(13, C, with_residual, mean)
            judge(ours(dropout_p), plain(dropout_p), given, dtype)

    @pytest.mark.slow
    @pytest.mark.parametrize("dropout_p", [0.0, 0.3])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_mixed_dtypes_as_under_autocast(dtype, dropout_p):
        """The branch in 16 bits, the residual stream and the norm in 32."""

        def mixed(function):
            return lambda x, *rest: function(x.to(x.dtype if wide(x) else dtype), *rest)

        def wide(x):
            return x.dtype == torch.float64

        given = inputs(13, 100, mean=1.0)
        given[0] = given[0].to(dtype).double()
        judge(mixed(ours(dropout_p)), mixed(plain(dropout_p)), given, torch.float32)
        low = [given[0].to(dtype), *(t.float() for t in given[1:])]
        found = gradients(ours(dropout_p), low)
        assert [t.dtype for t in found] == [torch.float32, dtype, *[torch.float32] * 3]

    @pytest.mark.parametrize("value", [0.0, 0.1, 100.0, -1e4])
    @pytest.mark.parametrize("C", [24, 100, 768, 1000])
    def test_a_constant_row_gives_the_bias(C, value):
        _, _, weight, bias = (None if t is None else t.float() for t in inputs(1, C))
        x = torch.full((3, C), value).requires_grad_()
        out = ours()(x, None, weight, bias)
        assert torch.equal(out, bias.expand(3, C))
        (d_x,) = torch.autograd.grad(out, x, torch.ones(3, C))
        assert d_x.isfinite().all()

    @pytest.mark.parametrize("T", [1, 2, 15, 17, 33])
    def test_error_by_rows(T):
        judge(ours(0.2), plain(0.2), inputs(T, 24), torch.float32)

    @pytest.mark.parametrize("with_residual", [True, False])
    def test_no_rows(with_residual):
        given = [t if t is None else t.float() for t in inputs(0, 24, with_residual)]
        found = raw(*given, torch.empty(0, 24), 0.0)
        shapes = [(0, 24), (0,), (0,), (0, 24), (0, 24) if with_residual else (0,), (24,), (24,)]
        assert [tuple(t.shape) for t in found] == shapes
        assert not any(t.any() for t in found)

    def test_statistics_are_float32_and_right():
        x, residual, weight, bias = (t.bfloat16() for t in inputs(9, 100))
        _, mean, rstd = raw(x, residual, weight, bias, x, 0.3)[:3]
        summed = x.double() * kept(9, 100, 0.3) + residual.double()
        assert mean.dtype == rstd.dtype == torch.float32
        torch.testing.assert_close(mean.double(), summed.mean(1), rtol=1e-6, atol=0)
        true = (summed.var(1, correction=0) + 1e-5).rsqrt()
        torch.testing.assert_close(rstd.double(), true, rtol=1e-5, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_dropped_elements_have_no_gradient_and_the_residual_has_all(dtype):
        given = [t.to(dtype) for t in inputs(9, 100, mean=1.0)]
        d_x, d_residual = raw(*given, randn(9, 100, seed=5).to(dtype), 0.3)[3:5]
        keep = philox.row_mask(SEED, 9, 100, 0.3)
        assert not d_x[~keep].any()
        assert d_residual.count_nonzero() == d_residual.numel()
        scaled = d_residual.double() * philox.scale(0.3)
        rtol = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(d_x[keep].double(), scaled[keep], rtol=rtol, atol=0)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize(("T", "C"), [(9, 24), (5, 31), (3, 1000), (1, 8)])
    @pytest.mark.parametrize(("with_residual", "dropout_p"), [(True, 0.3), (False, 0.0)])
    def test_nothing_outside_is_read_or_written(T, C, dtype, with_residual, dropout_p):
        given = [t if t is None else t.to(dtype) for t in inputs(T, C, with_residual, mean=1.0)]
        grad = randn(T, C, seed=5).to(dtype)
        expected = raw(*given, grad, dropout_p)
        given, grad = [amid(t) for t in given], amid(grad)
        with Walled() as walls:
            found = raw(*given, grad, dropout_p)
        walls.check(6)
        for a, b in zip(found, expected, strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)

    def test_a_row_depends_on_no_other():
        given = [t.float() for t in inputs(23, 100)]
        whole = ours()(*given)
        for first in (0, 7, 22):
            alone = ours()(given[0][first:], given[1][first:], *given[2:])
            assert torch.equal(alone, whole[first:])

    @pytest.mark.slow
    def test_gradients_of_weight_and_bias_repeat_bit_for_bit():
        given = [t.float() for t in inputs(40, 24)]
        first, again = (gradients(ours(0.2), given) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    @pytest.mark.slow
    def test_layouts():
        given = [t.float() for t in inputs(9, 24, mean=1.0)]
        check_layouts(lambda *t: ops.residual_layer_norm(*t, 1e-5, 0.2, SEED), given)

    @pytest.mark.slow
    @pytest.mark.parametrize(("with_residual", "dropout_p"), [(True, 0.3), (False, 0.0)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
    def test_schema(with_residual, dropout_p, dtype):
        given = [t if t is None else t.to(dtype or torch.float32) for t in inputs(5, 8)]
        x, residual, weight, bias = given
        x = x if dtype else x.bfloat16()
        residual = residual if with_residual else None
        rest = (dropout_p, SEED if dropout_p else NO_SEED)
        op = torch.ops.fastbert.residual_layer_norm
        opcheck(op.default, (x, residual, weight, bias, 1e-5, *rest))
        out, mean, rstd = op(x, residual, weight, bias, 1e-5, *rest)
        args = (torch.randn_like(out), x, residual, weight, mean, rstd, *rest)
        opcheck(torch.ops.fastbert.residual_layer_norm_backward.default, args)

    @pytest.mark.parametrize("C", [0, 8193])
    def test_widths_that_are_not_served(C):
        x, _, weight, bias = (None if t is None else t.float() for t in inputs(2, C, False))
        args = (x, None, weight, bias, 1e-5, 0.0, NO_SEED)
        assert f"not {C}" in layer_norm.unsupported("residual_layer_norm", args)
        args = (x, x, x, weight, x[:, :0], x[:, :0], 0.0, NO_SEED)
        assert f"not {C}" in layer_norm.unsupported("residual_layer_norm_backward", args)

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_dtypes_that_are_not_served(place):
        given = [t.float() for t in inputs()]
        args = (*given, 1e-5, 0.0, NO_SEED)
        assert layer_norm.unsupported("residual_layer_norm", args) is None
        given[place] = given[place].double()
        args = (*given, 1e-5, 0.0, NO_SEED)
        assert "float64" in layer_norm.unsupported("residual_layer_norm", args)

else:

    @pytest.mark.slow
    def test_cases_under_the_interpreter():
        interpreted.check(__file__, "not slow")

    @pytest.mark.slow
    def test_longer_cases_under_the_interpreter():
        interpreted.check(__file__, "slow")

    def rows_of(found):
        """The rows of its tile."""
        return int(found.label.rsplit("-", 1)[1].partition("x")[0])

    def row_accesses(found):
        """Loads and stores of global memory narrower than 16 bytes a thread."""
        return {
            op: n
            for op, n in found.ops.items()
            if op.startswith(("LDG", "STG")) and ".128" not in op
        }

    @pytest.mark.slow
    @pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
    def test_rows_cross_memory_16_bytes_at_a_time(arch):
        """Narrow are only a row's mean and 1/deviation, and the seed."""
        patterns = [f"*-{name}-C[37]*-fp16-{arch}-*" for name in ("forward", "backward")]
        for found in ahead.compiled(MODULE, *patterns):
            assert found.stack == found.count("LDL", "STL") == 0, found.label
            narrow = row_accesses(found)
            seed = sum(n for op, n in narrow.items() if op.startswith("LDG.E.64"))
            assert seed == ("dropout" in found.label), found.label
            statistics = sum(narrow.values()) - seed
            assert statistics <= 2 * rows_of(found), (found.label, narrow)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_each_element_is_moved_once(dtype):
        """Bytes of the accesses of a program's threads are those of its rows and weights."""
        per_thread = 4 if dtype == "fp32" else 8
        for found in ahead.compiled(MODULE, f"*-C1024-{dtype}-sm_90-*"):
            if "reduce" in found.label:
                continue
            weights = 1024 // 128 // per_thread  # accesses a thread for a row
            row = weights * rows_of(found)
            loads, stores = found.count("LDG.E.128"), found.count("STG.E.128")
            if "forward" in found.label:
                assert (loads, stores) == (2 * row + 2 * weights, row)
            else:  # partials of dW and db are float32
                assert (loads, stores) == (3 * row + weights, 2 * row + 2 * 1024 // 128 // 4)

    @pytest.mark.slow
    def test_it_compiles_for_amd():
        for found in ahead.compiled(MODULE, "*-C[37]*-fp16-gfx942-*"):
            assert found.stack == 0, found.label
            assert found.count("scratch_") == 0, found.label

    @pytest.mark.slow
    def test_offsets_are_64_bit():
        """Rows × width can pass 2³¹, which no test can allocate."""
        for found in ahead.compiled(MODULE, "*ward-C768-bf16-sm_90-*"):
            lines = [line for line in found.ttir.splitlines() if "tt.addptr" in line]
            tiles = [line for line in lines if "x1024x!tt.ptr" in line]
            assert len(tiles) >= 3, found.label
            assert all("x1024xi64>" in line for line in tiles), found.label

    def test_every_variant_is_listed_once():
        labels = [variant.label for variant in layer_norm.variants()]
        assert len(labels) == len(set(labels))
        assert {v.arch for v in layer_norm.variants()} == set(rows.ARCHITECTURES)
