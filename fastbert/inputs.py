"""From what a caller passes to a model, padded or packed, to packed tokens on its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fastbert import ops
from fastbert.ops import flags
from fastbert.packing import Packed

Given = TypeVar("Given")
_INTEGERS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Inputs:
    """A batch on its way through the model.

    Attributes:
        packed: ids, types and positions (T,) and the sequences' bounds, as tensors.
        embeds: (T, C) word embeddings that the caller brought, or None.
        indices: (T,) each token's place among the B·S of the padded input; None if it came packed.
        batch: B.
        width: S of the padded input.
    """

    packed: Packed
    embeds: Tensor | None
    indices: Tensor | None
    batch: int
    width: int

    def unpack(self, hidden: Tensor) -> Tensor:
        """(T, C) → (B, S, C) as the caller passed it; packed input stays packed."""
        if self.indices is None:
            return hidden
        return ops.unpack(hidden, self.indices, self.batch, self.width)

    def gather(self, name: str, values: Tensor) -> Tensor:
        """What the caller says of every token, (B, S) or packed (T,), at the real tokens: (T,).

        Raises:
            TypeError: if it is no tensor of integers.
            ValueError: on another shape.
        """
        check_integers(name, values)
        if self.indices is None:
            total = self.packed.input_ids.shape[0]
            if values.shape != (total,):
                raise ValueError(
                    f"{name} must be (T,) = ({total},), as the batch is packed, not"
                    f" {tuple(values.shape)}"
                )
            return values.to(self.packed.input_ids.device, torch.int64)
        values = squeeze_rows(values)
        if values.shape != (self.batch, self.width):
            raise ValueError(
                f"{name} must be (B, S) = ({self.batch}, {self.width}), not {tuple(values.shape)}"
            )
        return values.to(self.indices.device, torch.int64).reshape(-1)[self.indices]

    def unpack_attention(self, weights: list[Tensor], heads: int, hidden: Tensor) -> Tensor:
        """B tensors (H, n, n) → (B, H, S, S), zeros at masked queries and keys.

        Where B is 0, `hidden` says the dtype and the device.
        """
        like = weights[0] if weights else hidden
        out = like.new_zeros((self.batch, heads, self.width, self.width))
        if not weights:
            return out
        if self.indices is None:
            columns = torch.cat([torch.arange(w.shape[1], device=out.device) for w in weights])
        else:
            columns = self.indices % self.width
        start = 0
        for row, weight in enumerate(weights):
            place = columns[start : start + weight.shape[1]]
            out[row, :, place[:, None], place] = weight
            start += weight.shape[1]
        return out


def from_packed(
    packed: Packed, device: torch.device, limits: tuple[int, int, int] | None = None
) -> Inputs:
    """A batch that came packed.

    Args:
        packed: NumPy arrays or tensors.
        device: where the model lies.
        limits: rows of the word, type and position tables. With them, arrays that leave the host
            are looked at before they do: a device can't refuse a bad id without a sync.

    Raises:
        IndexError: if an id, type or position lies outside its table.
    """
    if not torch.compiler.is_compiling():
        packed.check()
    leaves = isinstance(packed.input_ids, np.ndarray) and device.type != "cpu"
    if leaves and limits is not None and not torch.compiler.is_compiling():
        arrays = (packed.input_ids, packed.token_type_ids, packed.position_ids)
        ids, types, positions = (torch.from_numpy(array) for array in arrays)
        flags.check_on_host((ids, types, positions), limits)
    return Inputs(packed.to(device), None, None, packed.batch_size, packed.max_seqlen)


def from_padded(
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
) -> Inputs:
    """Leave out what the mask masks.

    Raises:
        TypeError: if an argument is no tensor of the right kind of numbers.
        ValueError: if both or neither of ids and embeddings are given, or shapes disagree.
    """
    given = _one_of(input_ids, inputs_embeds)
    batch, width = given.shape[:2]
    device = given.device
    lengths, cu_seqlens, indices, columns = _layout(attention_mask, batch, width, device)
    total = indices.shape[0]

    def gather(name: str, value: Tensor | None, default: Tensor) -> Tensor:
        if value is None:
            return default
        return _grid(name, value, batch, width).to(torch.int64)[indices]

    zeros = torch.zeros_like(indices)
    embeds = None
    if inputs_embeds is not None:
        embeds = inputs_embeds.reshape(batch * width, inputs_embeds.shape[2])[indices]
    packed = Packed(
        input_ids=gather("input_ids", input_ids, zeros),
        token_type_ids=gather("token_type_ids", token_type_ids, zeros),
        position_ids=gather("position_ids", position_ids, columns),
        lengths=lengths,
        cu_seqlens=cu_seqlens,
        max_seqlen=width,
        work=ops.work_list(lengths, total),
    )
    return Inputs(packed, embeds, indices, batch, width)


def check_integers(name: str, value: object) -> None:
    """Raise a TypeError unless it is a tensor of integers; bool is none."""
    if not isinstance(value, Tensor) or value.dtype not in _INTEGERS:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of integers, not {kind}")


def squeeze_rows(values: Given) -> Given:
    """(B, 1, S), which a `DataLoader` makes of texts tokenised one by one, as (B, S)."""
    if isinstance(values, Tensor) and values.dim() == 3 and values.shape[1] == 1:
        return values[:, 0]  # type: ignore[return-value]  # a Tensor, as given
    return values


def _layout(
    mask: Tensor | None, batch: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise TypeError(f"attention_mask must be a tensor, not {type(mask).__name__}")
        if mask.dim() == 2 and mask.shape != (batch, width):
            raise ValueError(
                f"attention_mask must be (B, S) = ({batch}, {width}), not {tuple(mask.shape)}"
            )
        return ops.pack(mask.to(device))
    lengths = torch.full((batch,), width, dtype=torch.int32, device=device)
    cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=device) * width
    indices = torch.arange(batch * width, device=device)
    return lengths, cu_seqlens, indices, indices % max(width, 1)


def _one_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass either input_ids or inputs_embeds, and not both")
    if input_ids is not None:
        if not isinstance(input_ids, Tensor):
            raise TypeError(
                f"input_ids must be a tensor (B, S) or a Packed, not {type(input_ids).__name__}"
            )
        if input_ids.dtype not in _INTEGERS:
            raise TypeError(f"input_ids must hold integers, not {input_ids.dtype}")
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be (B, S), not {tuple(input_ids.shape)}")
        return input_ids
    assert inputs_embeds is not None  # for the type checker: one of the two is given
    if not isinstance(inputs_embeds, Tensor) or not inputs_embeds.is_floating_point():
        raise TypeError("inputs_embeds must be a floating-point tensor (B, S, C)")
    if inputs_embeds.dim() != 3:
        raise ValueError(f"inputs_embeds must be (B, S, C), not {tuple(inputs_embeds.shape)}")
    return inputs_embeds


def _grid(name: str, value: Tensor, batch: int, width: int) -> Tensor:
    """(B·S,) out of (B, S), (1, S) or (S,)."""
    check_integers(name, value)
    if value.dim() == 1:
        value = value[None]
    if value.dim() != 2 or value.shape[1] != width or value.shape[0] not in (1, batch):
        raise ValueError(f"{name} must be (B, S) = ({batch}, {width}), not {tuple(value.shape)}")
    return value.expand(batch, width).reshape(-1)
