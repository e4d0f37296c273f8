"""Bad indices and labels on a device, reported at the next host read.

An index out of range in device memory can't raise without a sync, and must not trip the device's
own assert, which poisons the whole context. So the op clamps the index, counts it here, and the
next place that reads from the device anyway raises.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_NAMES = ("input_ids", "token_type_ids", "position_ids")
_counters: dict[torch.device, Tensor] = {}  # device -> (6,) int64: bad count and limit of each name
_labels: dict[torch.device, dict[str, tuple[Tensor, int]]] = {}  # name -> (bad count (), classes)


def clamp_and_count(
    indices: tuple[Tensor, Tensor, Tensor], limits: tuple[int, int, int]
) -> tuple[Tensor, ...]:
    """Each index tensor clamped to 0..limit - 1; what lay outside is counted on the device."""
    device = indices[0].device
    bad = [((i < 0) | (i >= limit)).sum() for i, limit in zip(indices, limits, strict=True)]
    found = counter(device)
    found[:3] += torch.stack(bad)
    found[3:] = _tops(device, limits)
    return tuple(i.clamp(0, limit - 1) for i, limit in zip(indices, limits, strict=True))


def counter(device: torch.device) -> Tensor:
    """(6,) int64 on the device: how many ids, types and positions were bad, and their limits."""
    if device not in _counters:
        with torch.inference_mode(False):  # it is written to in any mode
            _counters[device] = torch.zeros(6, dtype=torch.int64, device=device)
    return _counters[device]


@cache
def _tops(device: torch.device, limits: tuple[int, int, int]) -> Tensor:
    """The limits on the device, copied there once: a graph's capture allows no copy."""
    with torch.inference_mode(False):
        return torch.tensor(limits, device=device)


def count(name: str, bad: Tensor, limit: int) -> None:
    """Count the bad among labels of that name on the device of `bad`, without reading from it."""
    seen = _labels.setdefault(bad.device, {})
    before, _ = seen.get(name, (0, limit))
    seen[name] = (bad.sum() + before, limit)


def raise_if_flagged(device: torch.device) -> None:
    """Raise what earlier ops on `device` found; costs one small device read, none on a CPU.

    Raises:
        IndexError: if an id, type, position or label lay outside its table since the last look.
    """
    seen: list[tuple[str, int, int]] = []  # name, bad ones, limit
    found = _counters.get(device)
    if found is not None:
        counts = found.tolist()
        if any(counts[:3]):
            found.zero_()
        seen += zip(_NAMES, counts[:3], counts[3:], strict=True)
    seen += [(name, int(n), limit) for name, (n, limit) in _labels.pop(device, {}).items()]
    bad = ", ".join(f"{n} {name} outside 0..{limit - 1}" for name, n, limit in seen if n)
    if bad:
        raise IndexError(f"an earlier batch on {device} held {bad}; its results are not valid")


def check_on_host(indices: tuple[Tensor, Tensor, Tensor], limits: tuple[int, int, int]) -> None:
    """Raise on the first index outside its table, naming value and limit. For CPU tensors.

    Raises:
        IndexError: if an id, type or position lies outside its table.
    """
    for name, index, limit in zip(_NAMES, indices, limits, strict=True):
        if index.numel() == 0:
            continue
        low, high = (int(bound) for bound in torch.aminmax(index))
        if low < 0 or high >= limit:
            bad = low if low < 0 else high
            raise IndexError(f"{name} holds {bad}; this model takes 0..{limit - 1}")
