"""Every op of the waist on a device: inputs, calls, the work they do, and how they are judged.

Letters: T packed tokens, H heads, D head dim, C hidden, F feed-forward, V vocabulary, M labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from fastbert import ops

FORWARD, GRADIENT = 1.5, 2.0
"""How often the error of plain torch in the same dtype ours may be, each plus one ulp."""


@dataclass(frozen=True)
class Size:
    """Sizes of a set of cases.

    Attributes:
        heads, dim: H and D; C is their product.
        inner: F.
        vocabulary: V.
        lengths: of the sequences; T is their sum.
        labels: M.
        activations: of `linear`.
    """

    heads: int
    dim: int
    inner: int
    vocabulary: int
    lengths: tuple[int, ...]
    labels: int
    activations: tuple[str, ...]

    @property
    def hidden(self) -> int:
        """C."""
        return self.heads * self.dim

    @property
    def total(self) -> int:
        """T."""
        return sum(self.lengths)


_ALL = ("none", "gelu", "gelu_tanh", "relu", "silu", "tanh")
_EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 0, 127, 128, 129, 257, 512)
TINY = Size(2, 32, 96, 130, (1, 17, 0, 5), 9, ("none", "gelu"))
"""For the dry mode and for sanitizers."""
PARITY = (
    Size(12, 64, 3072, 30522, _EDGES, 301, _ALL),
    *(Size(3, dim, 200, 1003, _EDGES, 77, ("gelu",)) for dim in (32, 80, 96, 128)),
)
BENCH = Size(12, 64, 3072, 30522, (128,) * 64 + (512,) * 16, 2048, ("none", "gelu"))
"""BERT-base, 16,384 tokens."""


@dataclass(frozen=True)
class Case:
    """One call of one op.

    Attributes:
        name: op and what distinguishes it.
        call: the op on the tensors of `inputs`; all else is bound.
        inputs: floating-point tensors, each of which gets a gradient.
        flops: of one forward call, 2 for a multiply-add; 0 where memory is what it waits for.
        moved: bytes that one forward call must read and write.
        judged: False with dropout, whose mask is the implementation's own.
    """

    name: str
    call: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    flops: float
    moved: float
    judged: bool = True


def cases(size: Size, device: torch.device, dtype: torch.dtype) -> list[Case]:
    """All ops at one size, in one precision."""
    made = Inputs(device, dtype)
    found = [*_attention(size, made), *_linear(size, made), *_norms(size, made)]
    return [*found, *_tables(size, made)]


class Inputs:
    """Random tensors, the same ones on every device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.width = dtype.itemsize
        self._generator = torch.Generator().manual_seed(23)

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        """Normal numbers."""
        drawn = torch.randn(shape, generator=self._generator) * scale + mean
        return drawn.to(self.device, self.dtype)

    def integers(self, top: int, count: int) -> Tensor:
        """(count,) int64 in 0..top - 1."""
        return torch.randint(0, top, (count,), generator=self._generator).to(self.device)

    def seed(self, dropped: bool) -> Tensor:
        """(1,) int64, or none."""
        return torch.full((int(dropped),), 5, dtype=torch.int64, device=self.device)


def _attention(size: Size, made: Inputs) -> Iterator[Case]:
    T, C = size.total, size.hidden
    bounds = torch.tensor([0, *accumulate(size.lengths)], dtype=torch.int32, device=made.device)
    work = ops.work_list(bounds.diff(), T)
    qkv = made.normal(T, 3, size.heads, size.dim)
    for dropout_p in (0.0, 0.1):
        seed = made.seed(dropout_p > 0)
        yield Case(
            _name("varlen_attention", f"D={size.dim}", dropout_p),
            lambda x, p=dropout_p, seed=seed: ops.varlen_attention(
                x, bounds, max(size.lengths), work, size.dim**-0.5, p, seed
            ),
            (qkv,),
            flops=4.0 * C * sum(n * n for n in size.lengths),
            moved=4.0 * T * C * made.width,
            judged=dropout_p == 0,
        )


def _linear(size: Size, made: Inputs) -> Iterator[Case]:
    T, C, F = size.total, size.hidden, size.inner
    x, weight = made.normal(T, C), made.normal(F, C, scale=C**-0.5)
    bias = made.normal(F)
    for activation in size.activations:
        yield Case(
            _name("linear", f"{C}→{F} {activation}"),
            lambda x, w, b, activation=activation: ops.linear(x, w, b, activation),
            (x, weight, bias),
            flops=2.0 * T * C * F,
            moved=(T * C + F * C + T * F) * made.width,
        )
    yield Case(
        _name("bias_gelu", str(F)),
        ops.bias_gelu,
        (made.normal(T, F), bias),
        flops=0,
        moved=2.0 * T * F * made.width,
    )


def _norms(size: Size, made: Inputs) -> Iterator[Case]:
    T, C = size.total, size.hidden
    rows = (made.normal(T, C, mean=3.0), made.normal(T, C))
    affine = (made.normal(C, scale=0.1, mean=1.0), made.normal(C))
    for dropout_p in (0.0, 0.1):
        seed = made.seed(dropout_p > 0)
        yield Case(
            _name("residual_layer_norm", f"C={C}", dropout_p),
            lambda x, r, w, b, p=dropout_p, seed=seed: ops.residual_layer_norm(
                x, r, w, b, 1e-12, p, seed
            ),
            (*rows, *affine),
            flops=0,
            moved=3.0 * T * C * made.width,
            judged=dropout_p == 0,
        )


def _tables(size: Size, made: Inputs) -> Iterator[Case]:
    T, C, V, M = size.total, size.hidden, size.vocabulary, size.labels
    tables = tuple(made.normal(n, C) for n in (V, 512, 2))
    affine = (made.normal(C, scale=0.1, mean=1.0), made.normal(C))
    ids, types, positions = (made.integers(n, T) for n in (V, 2, 512))
    yield Case(
        _name("embed_layer_norm", f"C={C}"),
        lambda word, position, type, w, b: ops.embed_layer_norm(
            ids, types, positions, word, position, type, w, b, 1e-12
        ),
        (*tables, *affine),
        flops=0,
        moved=2.0 * T * C * made.width + 3.0 * 8 * T,
    )
    labels = made.integers(V, M)
    labels[::5] = -100
    yield Case(
        _name("linear_cross_entropy", f"V={V}"),
        lambda x, w, b: ops.linear_cross_entropy(x, w, b, labels),
        (made.normal(M, C), made.normal(V, C, scale=C**-0.5), made.normal(V)),
        flops=2.0 * M * C * V,
        moved=(M * C + V * C) * made.width,
    )


def _name(op: str, detail: str, dropout_p: float = 0.0) -> str:
    return f"{op} {detail}" + (f" dropout {dropout_p}" if dropout_p else "")


def results(case: Case) -> list[Tensor]:
    """The result, then the gradient of each input under a fixed cotangent."""
    leaves = [tensor.detach().requires_grad_() for tensor in case.inputs]
    out = case.call(*leaves)
    cotangent = _cotangent(tuple(out.shape), out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


@lru_cache(4)  # drawn on the host: a thousand repeats must not wait for it
def _cotangent(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(device, dtype)


def judge(case: Case, ours: Sequence[Tensor]) -> list[float]:
    """The error of each result as a share of what is allowed; 1 is the limit, inf is no number."""
    with ops.use("reference"):
        plain = results(case)
        truth = results(replace(case, inputs=tuple(t.double() for t in case.inputs)))
    shares = []
    for place, (a, p, t) in enumerate(zip(ours, plain, truth, strict=True)):
        factor = GRADIENT if place else FORWARD
        ulp = torch.finfo(a.dtype).eps * _top(t)
        right = a.shape == t.shape and a.dtype == p.dtype and bool(a.isfinite().all())
        allowed = factor * _top(p.double() - t) + ulp
        error = _top(a.double() - t) if right else float("inf")
        shares.append(0.0 if error == 0 else error / allowed if allowed else float("inf"))
    return shares


def _top(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0
