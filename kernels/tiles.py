"""Tiles, and the architectures that they are chosen for.

Each kernel's file holds a table architecture → key → `Tile`; its figures come from
``python -m benchmarks.kernel_report`` (static estimates, unmeasured on GPU).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import torch

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
"""What kernels are compiled for ahead of time. A device between two takes the older one's tiles."""

INTERPRETER = "interpreter"
"""The architecture of ``TRITON_INTERPRET=1``: tensors on the CPU, small tiles."""


@dataclass(frozen=True)
class Tile:
    """What one program computes at a time.

    Attributes:
        m, n, k: rows, columns and inner steps; 1 where a kernel has no such axis.
        warps: of a program.
        stages: of the software pipeline.
    """

    m: int
    n: int
    k: int = 1
    warps: int = 4
    stages: int = 2

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}w{self.warps}s{self.stages}"


def interpreting() -> bool:
    """Whether Triton interprets kernels on the CPU; read when they are decorated."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def architecture(device: torch.device) -> str | None:
    """The name in `ARCHITECTURES` whose tiles serve a device; None if it is older than all.

    Args:
        device: a CUDA or ROCm device, or the CPU under the interpreter.
    """
    if interpreting():
        return INTERPRETER
    return _of_device(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _of_device(index: int) -> str | None:
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return name if name in ARCHITECTURES else None
    major, minor = torch.cuda.get_device_capability(index)
    return nearest(10 * major + minor)


def nearest(capability: int) -> str | None:
    """The newest CUDA architecture that is not newer than e.g. 87; None below 75."""
    known = [int(name[3:]) for name in ARCHITECTURES if name.startswith("sm_")]
    fitting = [number for number in known if number <= capability]
    return f"sm_{max(fitting)}" if fitting else None
