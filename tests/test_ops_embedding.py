from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parity import LOW, check_layouts, judge, randn
from torch.autograd import gradcheck
from torch.library import opcheck

from fastbert import ops
from fastbert.ops import flags
from fastbert.reference import embed_layer_norm as reference_embed

IDS, TYPES = torch.tensor([3, 0, 9, 3]), torch.tensor([1, 0, 1, 0])
POSITIONS = torch.tensor([5, 2, 0, 2])
INDICES = (IDS, TYPES, POSITIONS)
EMPTY = tuple(torch.empty(0, dtype=torch.int64) for _ in range(3))


def tables(C=8):
    shapes = ((10, C), (6, C), (2, C), (C,), (C,))
    return [randn(*shape, seed=place) for place, shape in enumerate(shapes)]


def embed(*tensors, indices=INDICES, padding_idx=-1):
    return ops.embed_layer_norm(*indices, *tensors, 1e-5, padding_idx)


def plain(word, position, kind, weight, bias, indices=INDICES):
    ids, types, positions = indices
    summed = F.embedding(ids, word) + F.embedding(types, kind) + F.embedding(positions, position)
    return F.layer_norm(summed, word.shape[1:], weight, bias, 1e-5)


@pytest.mark.parametrize("indices", [INDICES, tuple(i.int() for i in INDICES), EMPTY])
def test_gradients(indices):
    leaves = [t.requires_grad_() for t in tables(4)]
    assert gradcheck(lambda *t: embed(*t, indices=indices), leaves)


def test_the_padding_row_gets_no_gradient():
    leaves = [t.requires_grad_() for t in tables()]
    embed(*leaves, padding_idx=3).square().sum().backward()
    expected = [t.detach().requires_grad_() for t in tables()]
    word, position, kind, weight, bias = expected
    summed = (
        F.embedding(IDS, word, padding_idx=3) + F.embedding(TYPES, kind)
        + F.embedding(POSITIONS, position)
    )  # fmt: skip
    F.layer_norm(summed, (8,), weight, bias, 1e-5).square().sum().backward()
    assert not leaves[0].grad[3].any()
    assert leaves[0].grad[9].any()
    for a, b in zip(leaves, expected, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("indices", [INDICES, EMPTY])
def test_schema(indices, dtype):
    floats = [t.to(dtype) for t in tables()]
    opcheck(torch.ops.fastbert.embed_layer_norm.default, (*indices, *floats, 1e-5))
    _, mean, rstd = reference_embed(*indices, *floats, 1e-5)
    grad = torch.randn(indices[0].shape[0], 8, dtype=dtype)
    opcheck(
        torch.ops.fastbert.embed_layer_norm_backward.default,
        (grad, *indices, *floats[:4], mean, rstd, 0),
    )


@pytest.mark.parametrize("dtype", LOW)
def test_error(dtype):
    generator = torch.Generator().manual_seed(1)
    indices = tuple(torch.randint(0, n, (60,), generator=generator) for n in (10, 2, 6))
    judge(
        lambda *t: embed(*t, indices=indices),
        lambda *t: plain(*t, indices=indices),
        tables(64),
        dtype,
    )


def test_layout_changes_nothing():
    check_layouts(embed, tables())
    strided = tuple(torch.stack([i, i], dim=1)[:, 0] for i in INDICES)
    assert torch.equal(embed(*tables(), indices=strided), embed(*tables()))


def test_autocast_leaves_it_wide():
    leaves = [t.float().requires_grad_() for t in tables()]
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = embed(*leaves), plain(*leaves)
    assert out.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(out, expected)
    assert embed(*(t.detach() for t in leaves)).dtype == torch.float32


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (0, 10, r"input_ids holds 10; this model takes 0\.\.9"),
        (0, -1, r"input_ids holds -1; this model takes 0\.\.9"),
        (1, 2, r"token_type_ids holds 2; this model takes 0\.\.1"),
        (2, 6, r"position_ids holds 6; this model takes 0\.\.5"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_indices_out_of_range_on_the_host(place, value, match, grad):
    indices = [i.clone() for i in INDICES]
    indices[place][2] = value
    with torch.set_grad_enabled(grad), pytest.raises(IndexError, match=match):
        embed(*(t.requires_grad_() for t in tables()), indices=indices)


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        ((IDS[None], TYPES[None], POSITIONS[None]), r"must be \(T,\) alike, not \(1, 4\)"),
        ((IDS, TYPES[:3], POSITIONS), r"not \(4,\), \(3,\) and \(4,\)"),
        ((IDS.float(), TYPES, POSITIONS), "int32 or int64, not torch.float32"),
        ((IDS, TYPES, POSITIONS.bool()), "torch.bool"),
    ],
)
def test_it_refuses_indices(indices, match):
    with pytest.raises(ValueError, match=match):
        embed(*tables(), indices=indices)


@pytest.mark.parametrize("place", range(1, 5))
def test_it_refuses_other_widths(place):
    given = tables()
    given[place] = given[place][..., :7]
    with pytest.raises(ValueError, match=r"width \(8,\) of word"):
        embed(*given)


def test_it_refuses_mixed_tables():
    given = tables()
    given[1] = given[1].float()
    with pytest.raises(ValueError, match=r"share one dtype, not .*64, .*float32"):
        embed(*given)


@pytest.fixture
def counters(monkeypatch):
    """An empty set of counters, so that a test leaves none for CPU tensors behind."""
    fresh: dict[torch.device, torch.Tensor] = {}
    monkeypatch.setattr(flags, "_counters", fresh)
    return fresh


def test_a_device_clamps_counts_and_raises_at_the_next_read(counters):
    cpu = torch.device("cpu")  # the arithmetic is the same on every device
    ids, types, positions = flags.clamp_and_count(
        (torch.tensor([3, 99, -5]), torch.tensor([0, 1, 0]), torch.tensor([6, 0, 1])), (10, 2, 6)
    )
    assert (ids.tolist(), types.tolist()) == ([3, 9, 0], [0, 1, 0])
    assert positions.tolist() == [5, 0, 1]
    flags.clamp_and_count(tuple(torch.tensor([11]) for _ in range(3)), (10, 12, 12))
    with pytest.raises(IndexError) as caught:
        ops.raise_if_flagged(cpu)
    assert "an earlier batch on cpu held 3 input_ids outside 0..9" in str(caught.value)
    assert "1 position_ids outside" in str(caught.value)
    assert "token_type_ids" not in str(caught.value)
    ops.raise_if_flagged(cpu)  # said once


def test_packing_a_mask_is_such_a_read(counters):
    flags.clamp_and_count(tuple(torch.tensor([7]) for _ in range(3)), (5, 9, 9))
    with pytest.raises(IndexError, match=r"held 1 input_ids outside 0\.\.4; its results"):
        ops.pack(torch.ones(1, 2))
    assert ops.pack(torch.ones(1, 2))[0].tolist() == [2]


def test_good_indices_leave_no_flag(counters):
    clamped = flags.clamp_and_count(INDICES, (10, 2, 6))
    assert all(torch.equal(a, b) for a, b in zip(clamped, INDICES, strict=True))
    ops.raise_if_flagged(torch.device("cpu"))
