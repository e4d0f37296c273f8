"""The waist in plain torch: the truth for tests, and what runs where no kernel does.

Every function computes its op, without what only kernels ask for (a work list, a flag), in the
dtype of its inputs; feed it float64 tensors (or an op ``dtype=torch.float64``) and it is the truth
that other implementations are judged by. Statistics and log-sum-exp are float32, or float64 where
the inputs are.

Letters: B sequences, T packed tokens, S longest sequence, H heads, D head dim, C = H·D hidden,
F feed-forward, V vocabulary, M labelled tokens, K and N a matrix's inner and outer size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

R = TypeVar("R")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}

LOGIT_CHUNK_BYTES = 32 << 20
"""Most bytes of logits that `linear_cross_entropy` holds at once."""


def upcastable(op: Callable[..., R]) -> Callable[..., R]:
    """Give `op` a keyword `dtype`: its floating-point tensors are cast to it before the compute."""

    @wraps(op)
    def call(*args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> R:
        def cast(value: Any) -> Any:
            real = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if real else value

        if dtype is None:
            return op(*args, **kwargs)
        return op(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return call


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of means, deviations and log-sum-exps beside data of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which attention multiplies data of `dtype`.

    float16 ends at 65504: a score of two long vectors or a sum of values before it is divided
    passes that, and one inf makes a row of NaN.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def dropout(x: Tensor, dropout_p: float, generator: torch.Generator | None) -> Tensor:
    """Return x, each element dropped with probability p, else scaled by 1/(1 - p).

    p is `dropout_p` to the nearest multiple of 2⁻¹⁶ that is neither 0 nor 1: an element takes 16
    random bits, four of them share a draw (1.0 ms, not the 5.8 ms of `bernoulli_`, for 889,000
    elements on a Zen 4 core; drawing was 21 % of a training step).
    """
    if generator is None:
        return x
    levels = min(max(round(dropout_p * 2**16), 1), 2**16 - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    draws.random_(-(2**63), None, generator=generator)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in -2¹⁵ … 2¹⁵ - 1
    keep = (bits >= levels - 2**15).to(x.dtype)
    return x * keep.mul_(1.0 / (1.0 - levels / 2**16))


def seeded(dropout_p: float, seed: Tensor) -> torch.Generator | None:
    """A generator that starts from `seed` (1,) int64; None where nothing is dropped."""
    if dropout_p == 0.0:
        return None
    return torch.Generator(seed.device).manual_seed(int(seed.item()))


def embedding_sum(
    ids: Tensor, types: Tensor, positions: Tensor, word: Tensor, position: Tensor, type: Tensor
) -> Tensor:
    """word[ids] + position[positions] + type[types], (T, C)."""
    return F.embedding(ids, word) + F.embedding(types, type) + F.embedding(positions, position)


@upcastable
def embed_layer_norm(
    ids: Tensor,
    types: Tensor,
    positions: Tensor,
    word: Tensor,
    position: Tensor,
    type: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm(word[ids] + type[types] + position[positions]): BERT's input layer.

    Args:
        ids, types, positions: (T,) integers.
        word, position, type: the tables, (V, C), (P, C) and (2, C).
        weight, bias: (C,).
        eps: added to the variance.

    Returns:
        (T, C), and the mean and 1/deviation of each row, (T,).

    Source: Devlin et al. 2019, section 3 (input representation).
    """
    summed = embedding_sum(ids, types, positions, word, position, type)  # (T, C)
    return _layer_norm(summed, weight, bias, eps)


@upcastable
def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """activation(x · weightᵀ + bias).

    Args:
        x: (T, K).
        weight: (N, K).
        bias: (N,) or None.
        activation: a key of `ACTIVATIONS`; ``gelu`` is the erf form x·Φ(x), ``gelu_tanh`` the
            approximation of Hendrycks & Gimpel 2016.

    Returns:
        (T, N), and the same before the activation.
    """
    pre = F.linear(x, weight, bias)  # (T, N)
    return ACTIVATIONS[activation](pre), pre


@upcastable
def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """GELU(x + bias) on (T, N), erf form for ``none``, tanh form for ``tanh``."""
    return F.gelu(x + bias, approximate=approximate)


@upcastable
def varlen_attention(
    qkv: Tensor, cu_seqlens: Tensor, scale: float, dropout_p: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """softmax(scale · q kᵀ) v within each sequence and head; softmax in float32 or wider.

    Args:
        qkv: (T, 3, H, D).
        cu_seqlens: (B + 1,) int32. Rows at and beyond its last entry give zeros.
        scale: usually 1/√D.
        dropout_p: probability of dropping an attention weight.
        seed: (1,) int64, or empty where `dropout_p` is 0.

    Returns:
        (T, H, D), and the log-sum-exp of the scaled scores, (H, T).

    Source: Vaswani et al. 2017, section 3.2.1; log-sum-exp as in Dao et al. 2022.
    """
    out = qkv.new_zeros(qkv.shape[0], *qkv.shape[2:])  # (T, H, D)
    lse = qkv.new_zeros((qkv.shape[2], qkv.shape[0]), dtype=statistics_dtype(qkv.dtype))  # (H, T)
    generator = seeded(dropout_p, seed)
    for rows in segments(cu_seqlens):
        q, k, v = qkv[rows].to(product_dtype(qkv.dtype)).permute(1, 2, 0, 3)  # (H, S, D) each
        scores = (q @ k.transpose(1, 2)).to(lse.dtype).mul_(scale)  # (H, S, S)
        top = scores.amax(-1, keepdim=True)  # (H, S, 1)
        # The softmax by its parts: one exponential serves it and the log-sum-exp, and dividing
        # after the product touches S·D numbers, not S·S (2.6 ms, not 4.5, at S 256, H 12, D 32 on a
        # Zen 4 core).
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)  # (H, S, 1)
        lse[:, rows] = (top + total.log())[..., 0]
        kept = dropout(weights.to(q.dtype), dropout_p, generator)
        out[rows] = ((kept @ v) / total).to(qkv.dtype).transpose(0, 1)
    return out, lse


def attention_weights(qkv: Tensor, cu_seqlens: Tensor, scale: float) -> list[Tensor]:
    """The softmax of each sequence, B tensors (H, S, S), for those who want to look at it."""
    weights = []
    for rows in segments(cu_seqlens, keep_empty=True):
        q, k, _ = qkv[rows].to(product_dtype(qkv.dtype)).permute(1, 2, 0, 3)  # (H, S, D)
        scores = (q @ k.transpose(1, 2)).to(statistics_dtype(qkv.dtype)) * scale
        weights.append(torch.softmax(scores, dim=-1).to(qkv.dtype))
    return weights


@upcastable
def residual_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm(dropout(x) + residual).

    Args:
        x: (T, C).
        residual: (T, C), or None for a plain norm.
        weight, bias: (C,).
        eps: added to the variance.
        dropout_p: probability of dropping an element of x.
        seed: (1,) int64, or empty where `dropout_p` is 0.

    Returns:
        (T, C), and the mean and 1/deviation of each row, (T,).

    Source: Ba et al. 2016, section 3.
    """
    return _layer_norm(residual_sum(x, residual, dropout_p, seed), weight, bias, eps)


def residual_sum(x: Tensor, residual: Tensor | None, dropout_p: float, seed: Tensor) -> Tensor:
    """dropout(x) + residual, (T, C), in the wider of the two dtypes."""
    kept = dropout(x, dropout_p, seeded(dropout_p, seed))
    return kept if residual is None else kept + residual


@upcastable
def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each row's logits x · weightᵀ + bias, which never stand whole in memory.

    Args:
        x: (M, C).
        weight: (V, C).
        bias: (V,) or None.
        labels: (M,) integers in 0..V-1, or `ignore_index` (loss 0).
        ignore_index: the label that counts for nothing.

    Returns:
        The loss, (M,), and the log-sum-exp of the logits, (M,).
    """
    wide = statistics_dtype(x.dtype)
    lse = x.new_empty(x.shape[0], dtype=wide)  # (M,)
    loss = torch.empty_like(lse)
    target = labels.where(labels != ignore_index, 0).to(torch.int64)
    for rows in logit_chunks(x.shape[0], weight.shape[0]):
        logits = F.linear(x[rows], weight, bias).to(wide)  # (m, V)
        lse[rows] = torch.logsumexp(logits, dim=-1)
        loss[rows] = lse[rows] - logits.gather(1, target[rows, None])[:, 0]
    return loss.masked_fill(labels == ignore_index, 0.0), lse


def pack(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a padded batch really holds.

    Args:
        mask: (B, S) of any dtype; any non-zero is a real token.

    Returns:
        lengths (B,) and cu_seqlens (B + 1,), int32; indices (T,) of the real tokens among the
        B·S and their positions (T,), the column in the padded input; both int64.
    """
    real = mask != 0  # (B, S)
    lengths = real.sum(1, dtype=torch.int32)  # (B,)
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))  # (B + 1,)
    indices = real.reshape(-1).nonzero()[:, 0]  # (T,)
    return lengths, cu_seqlens, indices, indices % max(mask.shape[1], 1)


def unpack(x: Tensor, indices: Tensor, batch: int, width: int) -> Tensor:
    """Packed rows (T, C) at their places in a zeroed (B, S, C)."""
    padded = x.new_zeros(batch * width, x.shape[1])
    return padded.index_copy_(0, indices, x).view(batch, width, x.shape[1])


def pool(x: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool) -> Tensor:
    """One vector a sequence.

    Args:
        x: (T, C).
        cu_seqlens: (B + 1,).
        mode: ``cls`` (the first token), ``mean``, ``max`` or ``last``.
        normalize: divide each vector by its length (at least 1e-12).

    Returns:
        (B, C) in x's dtype, summed in float32 or wider; zeros for an empty sequence.
    """
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()  # (B,)
    lengths = ends - starts
    if mode in ("cls", "last"):
        rows = starts if mode == "cls" else ends - 1
        inside = (lengths > 0)[:, None]
        padded = torch.cat([x, x.new_zeros(1, x.shape[1])])  # a row to read where there is none
        vectors = padded[rows.where(lengths > 0, x.shape[0])].where(inside, 0)  # (B, C)
    else:
        wide = x.to(statistics_dtype(x.dtype))
        # Each row's sequence, without a device read; rows beyond the last bound fall to one more.
        place = torch.searchsorted(ends, torch.arange(x.shape[0], device=x.device), right=True)
        sums = wide.new_zeros(lengths.shape[0] + 1, x.shape[1])  # (B + 1, C)
        if mode == "mean":
            vectors = sums.index_add(0, place, wide)[:-1] / lengths.clamp(min=1)[:, None]
        else:
            place = place[:, None].expand_as(wide)
            vectors = sums.scatter_reduce(0, place, wide, "amax", include_self=False)[:-1]
    if normalize:
        vectors = F.normalize(vectors.to(statistics_dtype(x.dtype)), dim=-1)
    return vectors.to(x.dtype)


def segments(cu_seqlens: Tensor, keep_empty: bool = False) -> Iterator[slice]:
    """The rows of each sequence, empty ones left out unless asked for."""
    bounds = cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        if end > start or keep_empty:
            yield slice(start, end)


def logit_chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Slices of the rows whose float32 logits fit `LOGIT_CHUNK_BYTES`."""
    step = max(1, LOGIT_CHUNK_BYTES // (4 * vocabulary))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean)/√(var + eps) · weight + bias with its statistics, (T, C), (T,), (T,).

    Widened by hand: torch hands out the statistics of 16-bit data in 16 bits, where 1/deviation of
    a constant row is inf and every gradient through it NaN.
    """
    wide = statistics_dtype(x.dtype)
    out, mean, rstd = torch.native_layer_norm(
        x.to(wide), [x.shape[-1]], weight.to(wide), bias.to(wide), eps
    )
    return out.to(x.dtype), mean[..., 0], rstd[..., 0]
