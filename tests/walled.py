"""Puts walls of NaN around tensors, so that reading or writing outside of one shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WALL = 256


def _whole(t: Tensor) -> Tensor:
    return torch.full(
        (t.numel() + 2 * WALL,), float("nan") if t.is_floating_point() else -7, dtype=t.dtype
    )


def amid(t: Tensor | None, *, wall: int | None = None) -> Tensor | None:
    """A copy of t amid NaN; integers lie amid `wall`, which can be an index that is valid."""
    if t is None:
        return None
    whole = _whole(t) if wall is None else t.new_full((t.numel() + 2 * WALL,), wall)
    return whole[WALL : WALL + t.numel()].view(t.shape).copy_(t)


class Walled(TorchDispatchMode):
    """Within it new tensors hold NaN (or -7) and lie amid that; `check` says if a wall was hit."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in ("empty", "new_empty", "empty_like", "new_zeros", "zeros_like"):
            return out
        whole = _whole(out)
        self.made.append(whole)
        inside = whole[WALL : WALL + out.numel()].view(out.shape)
        return inside.zero_() if "zeros" in name else inside

    def check(self, least: int) -> None:
        """Assert that at least so many tensors were made, and that every wall stands."""
        assert len(self.made) >= least
        for whole in self.made:
            for wall in (whole[:WALL], whole[-WALL:]):
                assert wall.isnan().all() if whole.is_floating_point() else (wall == -7).all()
