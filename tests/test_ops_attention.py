from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parity import LOW, NO_SEED, bounds, check_layouts, judge, randn, work_of
from torch.autograd import gradcheck
from torch.library import opcheck

from fastbert import ops
from fastbert.reference import varlen_attention as reference_attention

SEED = torch.tensor([3])
BATCHES = ((3, 2), (2, 0, 3), (0, 0), (), (1,), (4, 0))


def attend(qkv, cu, dropout_p=0.0, seed=NO_SEED, scale=0.5):
    width = int(cu.diff().max()) if cu.numel() > 1 else 0
    return ops.varlen_attention(qkv, cu, width, work_of(cu), scale, dropout_p, seed)


def plain(qkv, lengths, scale=0.5):
    """What a model without packing does, text by text."""
    out, start = [], 0
    for length in lengths:
        q, k, v = qkv[start : start + length].permute(1, 2, 0, 3)  # (H, S, D)
        scores = q @ k.transpose(1, 2) * scale
        wide = torch.promote_types(q.dtype, torch.float32)
        weights = torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype)
        out.append((weights @ v).transpose(0, 1))
        start += length
    return torch.cat(out)


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("lengths", BATCHES)
def test_gradients(lengths, dropout_p):
    qkv = randn(sum(lengths), 3, 2, 3).requires_grad_()
    seed = SEED if dropout_p else NO_SEED
    assert gradcheck(lambda t: attend(t, bounds(*lengths), dropout_p, seed), qkv)


def test_gradients_where_rows_lie_beyond_the_last_sequence():
    qkv = randn(7, 3, 2, 3).requires_grad_()
    assert gradcheck(lambda t: attend(t, bounds(2, 3)), qkv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lengths", "dropout_p"), [((3, 2), 0.0), ((2, 0, 3), 0.4)])
def test_schema(lengths, dropout_p, dtype):
    qkv, cu = torch.randn(5, 3, 2, 4, dtype=dtype), bounds(*lengths)
    seed = SEED if dropout_p else NO_SEED
    rest = (cu, 3, work_of(cu), 0.5, dropout_p, seed)
    opcheck(torch.ops.fastbert.varlen_attention.default, (qkv, *rest))
    out, lse = reference_attention(qkv, cu, 0.5, dropout_p, seed)
    args = (torch.randn_like(out), qkv, out, lse, *rest)
    opcheck(torch.ops.fastbert.varlen_attention_backward.default, args)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_error(dtype, spread):
    lengths = (33, 1, 0, 64)
    qkv = randn(98, 3, 2, 16)
    qkv[:, :2] *= spread  # a soft and a nearly one-hot softmax
    judge(
        lambda t: attend(t, bounds(*lengths), scale=0.25),
        lambda t: plain(t, lengths, 0.25),
        [qkv],
        dtype,
    )


@pytest.mark.parametrize("dtype", LOW)
def test_a_batch_gives_what_each_text_gives(dtype):
    lengths = (5, 1, 0, 9)
    qkv = randn(15, 3, 2, 8).to(dtype)
    together, start = attend(qkv, bounds(*lengths)), 0
    for length in lengths:
        alone = attend(qkv[start : start + length], bounds(length))
        torch.testing.assert_close(together[start : start + length], alone)
        start += length


@pytest.mark.parametrize("dtype", LOW)
def test_extreme_values_stay_finite(dtype):
    """Scores and sums beyond 65504, where float16 ends, though every input and result fits."""
    qkv = torch.full((512, 3, 1, 64), 200.0, dtype=dtype, requires_grad=True)
    out = attend(qkv, bounds(512), scale=0.125)
    torch.testing.assert_close(out, torch.full_like(out, 200.0))
    out.backward(torch.ones_like(out))
    assert qkv.grad.isfinite().all()
    torch.testing.assert_close(qkv.grad[:, 2], torch.ones_like(out), rtol=0.02, atol=0.02)


def test_dropout_is_the_seeds_alone():
    qkv = torch.ones(40, 3, 2, 8)
    cu = bounds(40)
    a, b, c = (attend(qkv, cu, 0.5, seed) for seed in (SEED, SEED, SEED + 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    # Every weight is 1/40, every value 1: an output is the share of kept weights, times two.
    assert a.mean().item() == pytest.approx(1.0, abs=0.05)
    kept = a[:, :, 0] * 20
    torch.testing.assert_close(kept, kept.round())


def test_layout_changes_nothing():
    check_layouts(lambda t: attend(t, bounds(3, 2)), (randn(5, 3, 2, 4),))
    sliced = randn(5, 3, 2, 8)[..., :4]
    torch.testing.assert_close(
        attend(sliced, bounds(3, 2)), attend(sliced.contiguous(), bounds(3, 2))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_inside(dtype):
    qkv = randn(5, 3, 2, 8).float().requires_grad_()
    with torch.autocast("cpu", dtype):
        out = attend(qkv, bounds(5))
        q, k, v = qkv.permute(1, 2, 0, 3)
        theirs = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=0.5)
        assert attend(qkv.detach(), bounds(5)).dtype == dtype
    assert out.dtype == theirs.dtype == dtype
    (grad,) = torch.autograd.grad(out.float().square().sum(), qkv)
    (wide,) = torch.autograd.grad(attend(qkv, bounds(5)).square().sum(), qkv)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, wide, rtol=0.05, atol=0.05)


GOOD = {
    "qkv": randn(5, 3, 2, 4),
    "cu_seqlens": bounds(3, 2),
    "max_seqlen": 3,
    "work": work_of(bounds(3, 2)),
    "scale": 0.5,
    "dropout_p": 0.0,
    "seed": NO_SEED,
}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"qkv": randn(5, 2, 4)}, r"qkv must be \(T, 3, H, D\), not \(5, 2, 4\)"),
        ({"qkv": randn(5, 2, 3, 4)}, r"not \(5, 2, 3, 4\)"),
        ({"cu_seqlens": bounds(3, 2).long()}, r"int32, not \(3,\) torch.int64"),
        ({"cu_seqlens": bounds(3, 2)[None]}, r"not \(1, 3\)"),
        ({"work": torch.zeros(3, dtype=torch.int32)}, r"work must be \(W, 2\) int32, not \(3,\)"),
        ({"work": torch.zeros(3, 2)}, "torch.float32"),
        ({"dropout_p": 1.5}, "not 1.5"),
        ({"dropout_p": 0.1}, "found 0"),
        ({"seed": torch.tensor([1.0])}, "seed must be int64"),
    ],
)
def test_it_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        ops.varlen_attention(**{**GOOD, **changes})
