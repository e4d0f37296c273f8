"""A kernel as it is compiled ahead of time: signature, constants, tile, and the work it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastbert.kernels.tiles import Tile, interpreting

COMPUTE = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
"""A variant's dtype → the type in which a kernel multiplies."""
DTYPES = tuple(COMPUTE)
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def compute_type(dtype: torch.dtype) -> Any:
    """The type in which a launch multiplies data of `dtype`.

    float32 under the interpreter, whose 16-bit arithmetic is broken.
    """
    return tl.float32 if interpreting() else COMPUTE[_NAMES[dtype]]


@dataclass(frozen=True)
class Variant:
    """One kernel × dtype × tile × architecture.

    Attributes:
        kernel: the jitted function.
        stem: of its file: attention, linear, layer_norm, cross_entropy, embedding.
        name: of the kernel within it, e.g. ``forward``.
        dtype: of its tensors: fp32, bf16 or fp16.
        arch: one of `ARCHITECTURES`.
        tile: what a program computes.
        signature: argument → Triton's type (``*bf16``, ``i32``, ``fp32``), all but constants.
        constants: argument → value, of every ``tl.constexpr`` and of pointers that are None.
        divisible: arguments, pointers and sizes, that are multiples of 16.
        detail: what else distinguishes it, e.g. ``D=64``.
        tensor_work: (M, N, K) of each tensor-core product in one iteration of the hottest loop;
            empty where there is none.
        elements: score or output elements that one iteration, or the epilogue, treats.
    """

    kernel: Any
    stem: str
    name: str
    dtype: str
    arch: str
    tile: Tile
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: tuple[str, ...]
    detail: str = ""
    tensor_work: tuple[tuple[int, int, int], ...] = ()
    elements: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A name that distinguishes it from all others, fit for a file's."""
        parts = (self.stem, self.name, self.detail, self.dtype, self.arch, str(self.tile))
        return "-".join(part.replace("=", "") for part in parts if part)


def target(arch: str) -> GPUTarget:
    """What Triton calls the architecture."""
    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64)
    return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


def compile_ahead(variant: Variant) -> Any:
    """Compile without a device; run it in a process of its own, since a bad kernel may end that.

    Returns:
        Triton's compiled kernel: ``asm`` with ``cubin``, ``ptx``, ``ttgir``; ``metadata``.
    """
    order = {name: place for place, name in enumerate(variant.kernel.arg_names)}
    signature = {
        name: "constexpr" if name in variant.constants else variant.signature[name]
        for name in variant.kernel.arg_names
    }
    attributes = {(order[name],): [["tt.divisibility", 16]] for name in variant.divisible}
    source = ASTSource(
        variant.kernel,
        signature,
        constexprs={(order[name],): value for name, value in variant.constants.items()},
        attrs=attributes,
    )
    options = {
        "num_warps": variant.tile.warps,
        "num_stages": variant.tile.stages,
        **variant.options,
    }
    return triton.compile(source, target=target(variant.arch), options=options)
