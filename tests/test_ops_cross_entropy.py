from __future__ import annotations

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from parity import LOW, check_layouts, judge, randn
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.profiler import ProfilerActivity, profile

from fastbert import ops, reference

LABELS = torch.tensor([0, 8, -100, 3, 3, 5])


def inputs(M=6, C=4, V=9, with_bias=True):
    bias = randn(V, seed=2) if with_bias else None
    return [randn(M, C), randn(V, C, seed=1), bias]


def plain(x, weight, bias, labels=LABELS, ignore_index=-100):
    logits = F.linear(x, weight, bias)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), labels, reduction="none", ignore_index=ignore_index)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(reference, "LOGIT_CHUNK_BYTES", 4 * 9 * 2)  # two rows of nine classes


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("labels", [LABELS, LABELS.int(), torch.full((6,), -100)])
def test_gradients(with_bias, labels):
    leaves = [t if t is None else t.requires_grad_() for t in inputs(with_bias=with_bias)]
    assert gradcheck(lambda *t: ops.linear_cross_entropy(*t, labels), leaves)


def test_gradients_of_no_rows():
    leaves = [t.requires_grad_() for t in inputs(M=0)]
    empty = torch.empty(0, dtype=torch.int64)
    assert gradcheck(lambda *t: ops.linear_cross_entropy(*t, empty), leaves)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_equals_cross_entropy(with_bias):
    for reduce in (torch.sum, lambda loss: loss[LABELS != -100].mean()):
        ours, theirs = (
            [t if t is None else t.requires_grad_() for t in inputs(with_bias=with_bias)]
            for _ in range(2)
        )
        loss, expected = ops.linear_cross_entropy(*ours, LABELS), plain(*theirs)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        reduce(loss).backward()
        reduce(expected).backward()
        for a, b in zip(ours, theirs, strict=True):
            if a is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-12)


def test_every_label_ignored_is_zero_and_finite():
    leaves = [t.requires_grad_() for t in inputs()]
    loss = ops.linear_cross_entropy(*leaves, torch.full((6,), -100))
    assert not loss.any()
    loss.sum().backward()
    assert all(not t.grad.any() for t in leaves)


@pytest.mark.parametrize("ignore_index", [0, 3, -1])
def test_another_ignore_index(ignore_index):
    labels = torch.tensor([0, 8, ignore_index, 3, 3, 5])
    loss = ops.linear_cross_entropy(*inputs(), labels, ignore_index)
    torch.testing.assert_close(loss, plain(*inputs(), labels, ignore_index))


def allocations(call):
    """The result of `call`, the bytes of its largest allocation, and of all at their peak."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch:
        out = call()
    events = watch.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return out, max(sizes), max(accumulate(sizes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_never_stand_whole(dtype, monkeypatch):
    M, C, V = 512, 16, 3000
    chunk = 32 * V * 4
    monkeypatch.setattr(reference, "LOGIT_CHUNK_BYTES", chunk)
    leaves = [t.to(dtype).requires_grad_() for t in inputs(M, C, V)]
    labels = torch.arange(M)
    loss, largest, peak = allocations(lambda: ops.linear_cross_entropy(*leaves, labels))
    assert largest <= chunk
    assert peak <= 3 * chunk
    cotangent = torch.ones_like(loss)
    grads, largest, peak = allocations(lambda: torch.autograd.grad(loss, leaves, cotangent))
    results = sum(grad.numel() * (4 + grad.itemsize) for grad in grads)  # summed wide, then cast
    assert largest <= max(chunk, V * C * 4)
    assert peak <= 4 * chunk + results
    _, largest, _ = allocations(lambda: plain(*leaves, labels=labels))
    assert largest >= M * V * 4  # so the watch sees it where they do stand whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_schema(with_bias, dtype):
    x, weight, bias = (t if t is None else t.to(dtype) for t in inputs(with_bias=with_bias))
    opcheck(torch.ops.fastbert.linear_cross_entropy.default, (x, weight, bias, LABELS, -100))
    _, lse = reference.linear_cross_entropy(x, weight, bias, LABELS)
    opcheck(
        torch.ops.fastbert.linear_cross_entropy_backward.default,
        (torch.randn(6), x, weight, bias, LABELS, lse, -100),
    )


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("with_bias", [True, False])
def test_error(dtype, with_bias, monkeypatch):
    monkeypatch.setattr(reference, "LOGIT_CHUNK_BYTES", 4 * 50 * 7)
    labels = torch.arange(40).where(torch.arange(40) % 5 > 0, -100)
    judge(
        lambda *t: ops.linear_cross_entropy(*t, labels),
        lambda *t: plain(*t, labels=labels),
        inputs(40, 32, 50, with_bias),
        dtype,
    )


def test_layout_changes_nothing():
    check_layouts(ops.linear_cross_entropy, inputs(), (LABELS,))
    strided = torch.stack([LABELS, LABELS], dim=1)[:, 0]
    torch.testing.assert_close(
        ops.linear_cross_entropy(*inputs(), strided), ops.linear_cross_entropy(*inputs(), LABELS)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_matmul_and_keeps_the_loss_wide(dtype):
    leaves = [t.float().requires_grad_() for t in inputs()]
    with torch.autocast("cpu", dtype):
        loss = ops.linear_cross_entropy(*leaves, LABELS)
        theirs = F.cross_entropy(F.linear(*leaves), LABELS, reduction="none")
        assert ops.linear_cross_entropy(*(t.detach() for t in leaves), LABELS).dtype == loss.dtype
    assert loss.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(loss, theirs)
    for a, b in zip(
        torch.autograd.grad(loss.sum(), leaves), torch.autograd.grad(theirs.sum(), leaves),
        strict=True,
    ):  # fmt: skip
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(("label", "match"), [(9, "hold 9; there are 9"), (-2, "hold -2; there")])
@pytest.mark.parametrize("grad", [True, False])
def test_labels_out_of_range(label, match, grad):
    labels = LABELS.clone()
    labels[4] = label
    with torch.set_grad_enabled(grad), pytest.raises(IndexError, match=match):
        ops.linear_cross_entropy(*(t.requires_grad_() for t in inputs()), labels)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"x": randn(6, 5)}, r"must share C, not \(6, 5\) and \(9, 4\)"),
        ({"x": randn(4)}, r"x \(M, C\)"),
        ({"labels": LABELS[:5]}, r"labels must be \(6,\), not \(5,\)"),
        ({"labels": LABELS.double()}, "labels must be integers, not torch.float64"),
        ({"labels": LABELS.bool()}, "not torch.bool"),
        ({"bias": randn(8)}, r"bias must be \(9,\)"),
        ({"weight": randn(0, 4), "bias": None}, "at least one class"),
    ],
)
def test_it_refuses(changes, match):
    x, weight, bias = inputs()
    args = {"x": x, "weight": weight, "bias": bias, "labels": LABELS, **changes}
    with pytest.raises(ValueError, match=match):
        ops.linear_cross_entropy(**args)
