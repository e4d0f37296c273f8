"""What the tests share: the rule by which errors are judged, and batches to judge them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastbert.packing import Packed, pack

NO_SEED = torch.empty(0, dtype=torch.int64)
FORWARD, GRADIENT = 1.5, 2.0
LOW = (torch.bfloat16, torch.float16, torch.float32)


def error(x: Tensor, truth: Tensor) -> float:
    """Largest absolute error of x; inf where x holds what is no number."""
    if x.numel() == 0:
        return 0.0
    difference = (x.double() - truth.double()).abs().max().item()
    return difference if difference == difference else float("inf")


def assert_within(
    actual: Tensor, plain: Tensor, truth: Tensor, factor: float, what: str = ""
) -> None:
    """Hold `actual` to `factor` times the error of plain torch in its dtype, plus one ulp.

    Args:
        actual: what is judged.
        plain: plain torch on the same inputs in the same dtype.
        truth: plain torch in float64.
        factor: `FORWARD` or `GRADIENT`.
        what: begins the message.
    """
    assert actual.shape == truth.shape, f"{what}: {tuple(actual.shape)}, not {tuple(truth.shape)}"
    assert actual.dtype == plain.dtype, f"{what}: {actual.dtype}, not {plain.dtype}"
    if truth.numel() == 0:
        return
    ulp = torch.finfo(actual.dtype).eps * truth.abs().max().item()
    ours, theirs = error(actual, truth), error(plain, truth)
    assert ours <= factor * theirs + ulp, f"{what}: error {ours:.3e}, plain torch {theirs:.3e}"


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """The result of `function`, then the gradients of its inputs under a fixed random cotangent."""
    leaves = [t if t is None else t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
    grads = torch.autograd.grad(out, [t for t in leaves if t is not None], cotangent.to(out.dtype))
    return [out.detach(), *grads]


def judge(
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    dtype: torch.dtype,
) -> None:
    """Hold result and gradients of `ours` to the rule; inputs are cast to `dtype` first."""
    low = [t if t is None else t.to(dtype) for t in inputs]
    wide = [t if t is None else t.double() for t in low]
    truth = gradients(plain, wide)
    for place, (a, p, t) in enumerate(
        zip(gradients(ours, low), gradients(plain, low), truth, strict=True)
    ):
        what = f"{dtype}, " + (f"gradient {place - 1}" if place else "result")
        assert_within(a, p, t, GRADIENT if place else FORWARD, what)


def random_batch(
    lengths: Sequence[int], vocabulary: int = 50, seed: int = 0, types: int = 2
) -> Packed:
    """Random ids and types in sequences of these lengths, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, vocabulary, size=n).tolist() for n in lengths]
    kinds = [rng.integers(0, types, size=n).tolist() for n in lengths]
    return pack(ids, kinds)


def bounds(*lengths: int) -> Tensor:
    """cu_seqlens of these lengths."""
    return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)


def work_of(cu_seqlens: Tensor) -> Tensor:
    """The work list of these bounds."""
    from fastbert import ops

    return ops.work_list(cu_seqlens.diff(), int(cu_seqlens[-1]))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that a seed decides."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layouts(x: Tensor) -> list[Tensor]:
    """The same values in layouts that are not contiguous: transposed, and strided."""
    transposed = x.transpose(0, -1).contiguous().transpose(0, -1)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    return [t for t in (transposed, strided) if not t.is_contiguous()]


def check_layouts(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], rest: Sequence[Any] = ()
) -> None:
    """Assert that layout changes neither result nor gradients, for one input after the other."""
    expected = gradients(lambda *t: function(*t, *rest), inputs)
    for place, value in enumerate(inputs):
        for variant in layouts(value):
            leaves = [t.detach().requires_grad_() for t in inputs]
            leaves[place] = variant.detach().requires_grad_()
            out = function(*leaves, *rest)
            cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
            grads = torch.autograd.grad(out, leaves, cotangent.to(out.dtype))
            for a, b in zip([out, *grads], expected, strict=True):
                torch.testing.assert_close(a, b)
