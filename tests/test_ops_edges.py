from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import LOW, bounds, check_layouts, judge, randn
from torch.autograd import gradcheck
from torch.library import opcheck

from fastbert import ops, packing

MASK = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]])
DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip
LENGTHS = (3, 0, 1, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_reads_masks_of_every_dtype(dtype):
    lengths, cu, indices, positions = ops.pack(MASK.to(dtype))
    assert (lengths.tolist(), cu.tolist()) == ([2, 0, 2], [0, 2, 2, 4])
    assert (indices.tolist(), positions.tolist()) == ([0, 2, 9, 10], [0, 2, 1, 2])
    assert (lengths.dtype, cu.dtype) == (torch.int32, torch.int32)
    assert (indices.dtype, positions.dtype) == (torch.int64, torch.int64)


@pytest.mark.parametrize("value", [-1.0, 0.25, 7.0, float("nan"), float("inf")])
def test_any_non_zero_is_real(value):
    assert ops.pack(MASK * torch.tensor(1.0).where(MASK == 0, value))[0].tolist() == [2, 0, 2]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0)])
def test_pack_of_nothing(shape):
    lengths, cu, indices, positions = ops.pack(torch.ones(shape))
    assert lengths.tolist() == [0] * shape[0]
    assert cu.tolist() == [0] * (shape[0] + 1)
    assert indices.numel() == positions.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("forbidden", ["min", "inf", "10000"])
def test_additive_masks_are_refused(dtype, forbidden):
    low = {"min": torch.finfo(dtype).min, "inf": -float("inf"), "10000": -10000.0}[forbidden]
    masked = torch.tensor([[0, 0, 1], [0, 1, 1]]) == 1
    with pytest.raises(ValueError, match="attention_mask is additive"):
        ops.pack(torch.zeros(2, 3, dtype=dtype).masked_fill(masked, low))


@pytest.mark.parametrize("shape", [(4,), (2, 1, 4), (2, 1, 4, 4), ()])
def test_other_ranks_are_refused(shape):
    with pytest.raises(ValueError, match=rf"must be 2-D.*got {len(shape)}-D"):
        ops.pack(torch.ones(shape))


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.double(), torch.zeros(2, 3)])
def test_schema_of_pack(mask):
    opcheck(torch.ops.fastbert.pack.default, (mask,))


def test_unpack_puts_rows_at_their_places():
    _, _, indices, _ = ops.pack(MASK)
    x = randn(4, 5)
    padded = ops.unpack(x, indices, 3, 4)
    assert torch.equal(padded[MASK != 0], x)
    assert not padded[MASK == 0].any()
    opcheck(torch.ops.fastbert.unpack.default, (x, indices, 3, 4))
    check_layouts(ops.unpack, (x,), (indices, 3, 4))


@pytest.mark.parametrize("mask", [MASK, torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(3, 0)])
def test_gradients_of_unpack(mask):
    _, _, indices, _ = ops.pack(mask)
    x = randn(indices.shape[0], 5).requires_grad_()
    assert gradcheck(lambda t: ops.unpack(t, indices, *mask.shape), x)


def test_unpack_refuses():
    for x in (randn(3, 5), randn(4)):
        with pytest.raises(ValueError, match="must share T"):
            ops.unpack(x, torch.arange(4), 2, 4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ops.POOLINGS)
@pytest.mark.parametrize("lengths", [LENGTHS, (), (2,)])
def test_gradients_of_pool(mode, normalize, lengths):
    if normalize and 0 in lengths:
        lengths = tuple(filter(None, lengths))  # the direction of a zero vector has no derivative
    x = randn(sum(lengths), 4).requires_grad_()
    assert gradcheck(lambda t: ops.pool(t, bounds(*lengths), mode, normalize), x)


@pytest.mark.parametrize("mode", ops.POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_pool_of_empty_rows_is_zero_both_ways(mode, normalize):
    x = randn(8, 4).float().requires_grad_()
    cu = bounds(*LENGTHS)
    with_grad = ops.pool(x, cu, mode, normalize)
    without = ops.pool(x.detach(), cu, mode, normalize)
    assert torch.equal(with_grad, without)
    assert not without[1].any()
    assert without[[0, 2, 3]].any(dim=1).all()
    with_grad.sum().backward()
    assert x.grad.isfinite().all()
    nothing = ops.pool(x[:0].detach(), bounds(0, 0), mode, normalize)
    assert torch.equal(nothing, torch.zeros(2, 4))
    opcheck(torch.ops.fastbert.pool.default, (x.detach(), cu, mode, normalize))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("mode", ops.POOLINGS)
def test_error_of_pool(dtype, mode):
    def plain(x):
        parts = x.split([3, 1, 4])
        pick = {"cls": lambda p: p[0], "last": lambda p: p[-1], "max": lambda p: p.amax(0)}
        return torch.stack([pick.get(mode, lambda p: p.mean(0))(part) for part in parts])

    judge(lambda x: ops.pool(x, bounds(3, 1, 4), mode), plain, [randn(8, 16)], dtype)


def test_layout_changes_nothing_to_pool():
    for mode in ops.POOLINGS:
        check_layouts(ops.pool, (randn(8, 4),), (bounds(3, 1, 4), mode, True))


def test_pool_refuses():
    with pytest.raises(ValueError, match="cls, mean, max, last, not 'sum'"):
        ops.pool(randn(3, 4), bounds(3), "sum")
    with pytest.raises(ValueError, match=r"x must be \(T, C\), not \(1, 3, 4\)"):
        ops.pool(randn(1, 3, 4), bounds(3), "mean")


@given(st.lists(st.integers(0, 300), max_size=12), st.sampled_from([1, 16, 128]))
def test_work_on_the_device_is_that_of_the_host(lengths, tile):
    device = ops.work_list(torch.tensor(lengths, dtype=torch.int32), sum(lengths), tile)
    host = packing.work_list(lengths, tile)
    assert device.dtype == torch.int32
    assert device.shape == (sum(lengths) // tile + len(lengths), 2)
    assert device[: len(host)].tolist() == host.tolist()
    assert (device[len(host) :] == -1).all()


@given(st.integers(0, 6), st.integers(0, 9), st.integers(0, 2**31))
def test_unpack_undoes_pack(B, S, seed):
    mask = torch.randint(0, 2, (B, S), generator=torch.Generator().manual_seed(seed))
    lengths, cu, indices, positions = ops.pack(mask)
    x = randn(B * S, 3, seed=seed).view(B, S, 3)
    rows = x.reshape(-1, 3)[indices]
    assert torch.equal(ops.unpack(rows, indices, B, S), x * mask[..., None])
    assert cu.diff().tolist() == lengths.tolist() == mask.sum(1).tolist()
    assert positions.tolist() == mask.nonzero()[:, 1].tolist()
