"""Texts end to end without padding: `Packed`, `pack`, `unpack` and token-budget batches.

NumPy only. Letters: B sequences, T packed tokens (the sum of all lengths), W work items of the
attention kernels. A text's tokens lie at rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` of every
(T, …) array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

QUERY_TILE = 128
"""Query rows of one attention work item. One number for every device, since the list is made where
the batch is made, long before a device is chosen."""

_INT32_MAX = 2**31 - 1
_FIELDS = ("input_ids", "token_type_ids", "position_ids", "lengths", "cu_seqlens", "work")


@dataclass(frozen=True, eq=False)  # arrays have no one truth: a batch equals itself alone
class Packed:
    """A batch of token sequences laid end to end.

    Attributes:
        input_ids: (T,) token ids.
        token_type_ids: (T,) segment ids (0 for the first text of a pair, 1 for the second).
        position_ids: (T,) positions, counted from 0 in every sequence.
        lengths: (B,) int32, tokens of each sequence; 0 is allowed.
        cu_seqlens: (B + 1,) int32, running sum of the lengths, starting with 0.
        max_seqlen: no sequence is longer; on the host. `pack` gives the longest length.
        work: (W, 2) int32, the attention work list: (sequence, query tile) with tiles of
            `QUERY_TILE` rows, longest sequences first so that no program idles at the end.

    The arrays are NumPy's as `pack` makes them, or tensors on one device after `to`.

    Raises:
        TypeError, ValueError: if arrays do not describe one batch; tensors are checked by `check`.
    """

    input_ids: Any  # (T,)
    token_type_ids: Any  # (T,)
    position_ids: Any  # (T,)
    lengths: Any  # (B,)
    cu_seqlens: Any  # (B + 1,)
    max_seqlen: int
    work: Any  # (W, 2)

    def __post_init__(self) -> None:
        if isinstance(self.cu_seqlens, np.ndarray):
            _check(self)

    def check(self) -> None:
        """Raise unless the fields describe one batch; tensors on a device by shape and type only.

        Arrays are checked when they are put together, tensors where a model takes them.

        Raises:
            TypeError: if a field is no array or tensor of integers.
            ValueError: if the fields disagree.
        """
        _check(self)

    @property
    def batch_size(self) -> int:
        """Sequences B."""
        return int(self.lengths.shape[0])

    @property
    def total(self) -> int:
        """Tokens T."""
        return int(self.input_ids.shape[0])

    def to(self, device: str | torch.device) -> Packed:
        """The same batch as tensors on `device`: ids int64, lengths and offsets int32."""
        import torch

        fields: dict[str, Any] = {}
        for name in _FIELDS:
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(np.array(value))  # a copy: torch shares no memory with us
            wide = name in ("input_ids", "token_type_ids", "position_ids")
            fields[name] = value.to(device, torch.int64 if wide else torch.int32, non_blocking=True)
        return Packed(max_seqlen=self.max_seqlen, **fields)


def pack(
    ids: Sequence[Sequence[int] | NDArray[np.integer[Any]]],
    types: Sequence[Sequence[int]] | None = None,
) -> Packed:
    """Lay sequences of token ids end to end.

    Args:
        ids: B sequences of token ids, each a list or a 1-D integer array; empty ones are allowed.
        types: token type ids of the same lengths; None means zeros.

    Returns:
        The batch, with positions counted from 0 in every sequence.

    Raises:
        TypeError: if something that is no integer stands among the ids.
        ValueError: if an id is negative or beyond int32, or `types` has other lengths than `ids`.
    """
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))  # (B,)
    cu_seqlens = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])  # (B + 1,)
    total = int(cu_seqlens[-1])
    if total > _INT32_MAX:
        raise ValueError(f"{total} tokens in one batch: at most {_INT32_MAX} fit its offsets")
    flat = _flatten("ids", ids, total)
    if types is None:
        flat_types = np.zeros(total, np.int32)
    else:
        same = len(types) == len(ids) and all(
            len(a) == len(b) for a, b in zip(ids, types, strict=True)
        )
        if not same:
            raise ValueError("types must hold as many sequences as ids, each of the same length")
        flat_types = _flatten("types", types, total)
    positions = np.arange(total, dtype=np.int64) - np.repeat(cu_seqlens[:-1], lengths)
    return Packed(
        input_ids=flat,
        token_type_ids=flat_types,
        position_ids=positions.astype(np.int32),
        lengths=lengths.astype(np.int32),
        cu_seqlens=cu_seqlens.astype(np.int32),
        max_seqlen=int(lengths.max(initial=0)),
        work=work_list(lengths),
    )


def unpack(hidden: NDArray[Any], packed: Packed) -> list[NDArray[Any]]:
    """Split (T, …) rows into one array a text.

    Args:
        hidden: (T, …) array, its rows in the order of `packed`.
        packed: the batch that the rows belong to.

    Returns:
        B arrays of shape (length, …), views into `hidden`.

    Raises:
        ValueError: if `hidden` has another number of rows than the batch has tokens.
    """
    if hidden.ndim == 0 or hidden.shape[0] != packed.total:
        rows = "none" if hidden.ndim == 0 else hidden.shape[0]
        raise ValueError(f"hidden has {rows} rows, the batch has {packed.total} tokens")
    bounds = [int(bound) for bound in packed.cu_seqlens]
    return [hidden[start:end] for start, end in pairwise(bounds)]


def token_budget_batches(
    lengths: Sequence[int] | NDArray[np.integer[Any]], budget: int
) -> list[NDArray[np.int64]]:
    """Group texts into batches of at most `budget` tokens, longest first.

    Args:
        lengths: (B,) tokens of each text.
        budget: most tokens of a batch; a text longer than it gets a batch of its own.

    Returns:
        Index arrays that together hold every index of `lengths` once.

    Raises:
        ValueError: if the budget is not positive or a length is negative.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if budget < 1:
        raise ValueError(f"budget must be at least 1 token, not {budget}")
    if sizes.size and int(sizes.min()) < 0:
        raise ValueError(f"lengths must not be negative, found {int(sizes.min())}")
    order = np.argsort(-sizes, kind="stable")
    batches: list[NDArray[np.int64]] = []
    start, tokens = 0, 0
    for place, index in enumerate(order):
        size = int(sizes[index])
        if place > start and tokens + size > budget:
            batches.append(order[start:place])
            start, tokens = place, 0
        tokens += size
    if order.size:
        batches.append(order[start:])
    return batches


def work_list(
    lengths: Sequence[int] | NDArray[np.integer[Any]], tile: int = QUERY_TILE
) -> NDArray[np.int32]:
    """(W, 2) pairs (sequence, query tile) that cover every query row once, longest first.

    A tile costs as many key steps as its sequence is long, so drawing the longest first leaves
    only short ones for the end.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    tiles = -(-sizes[order] // tile)  # (B,) tiles of each sequence
    ends = np.cumsum(tiles)
    total = int(ends[-1]) if ends.size else 0
    number = np.arange(total) - np.repeat(ends - tiles, tiles)
    return np.stack([np.repeat(order, tiles), number], axis=1).astype(np.int32)


def _flatten(name: str, rows: Sequence[Any], total: int) -> NDArray[np.int32]:
    """One int32 array out of many rows, refusing what is no small non-negative integer."""
    if rows and all(isinstance(row, np.ndarray) for row in rows):
        flat = np.concatenate([np.asarray(row) for row in rows]) if total else np.zeros(0, np.int32)
    else:
        flat = np.array(list(chain.from_iterable(rows)))
    if total == 0:
        return np.zeros(0, np.int32)
    if flat.dtype.kind not in "iu" or flat.ndim != 1:
        raise TypeError(f"{name} must be flat sequences of integers, found {flat.dtype} values")
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high > _INT32_MAX:
        bad = low if low < 0 else high
        raise ValueError(f"{name} must lie in 0..{_INT32_MAX}, found {bad}")
    return flat.astype(np.int32)


def _array(name: str, value: Any) -> NDArray[Any] | None:
    """The field as an array, None for a tensor whose values only a device read would show."""
    if isinstance(value, np.ndarray):
        array: NDArray[Any] = value
    elif hasattr(value, "device") and hasattr(value, "numpy"):
        if value.is_floating_point() or value.is_complex():
            raise TypeError(f"{name} must hold integers, not {value.dtype}")
        if value.device.type != "cpu":
            return None
        array = value.numpy()
    else:
        raise TypeError(f"{name} must be an array or a tensor, not {type(value).__name__}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, not {array.dtype}")
    return array


def _check(packed: Packed) -> None:
    total = len(packed.input_ids) if hasattr(packed.input_ids, "__len__") else 0
    arrays = {name: _array(name, getattr(packed, name)) for name in _FIELDS}
    for name in ("input_ids", "token_type_ids", "position_ids"):
        if tuple(getattr(packed, name).shape) != (total,):
            raise ValueError(f"{name} must have shape ({total},), the number of tokens")
    shape = tuple(packed.work.shape)
    if len(shape) != 2 or shape[1] != 2:
        raise ValueError(f"work must have shape (W, 2), not {shape}")
    bounds, lengths = arrays["cu_seqlens"], arrays["lengths"]
    if bounds is not None and lengths is not None:
        _check_bounds(bounds, lengths, total, packed.max_seqlen)


def _check_bounds(bounds: NDArray[Any], lengths: NDArray[Any], total: int, max_seqlen: int) -> None:
    if bounds.ndim != 1 or bounds.size < 1 or int(bounds[0]) != 0:
        raise ValueError("cu_seqlens must be a 1-D array that starts with 0")
    steps = np.diff(bounds)
    if steps.size and int(steps.min()) < 0:
        raise ValueError("cu_seqlens must not fall")
    if int(bounds[-1]) != total:
        raise ValueError(f"cu_seqlens ends at {int(bounds[-1])}, input_ids holds {total} tokens")
    if not np.array_equal(steps, lengths):
        raise ValueError("lengths must be the differences of cu_seqlens")
    longest = int(steps.max(initial=0))
    if not isinstance(max_seqlen, int) or max_seqlen < longest:
        raise ValueError(f"max_seqlen is {max_seqlen!r}, the longest length is {longest}")
