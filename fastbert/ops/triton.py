"""Triton's place in the waist: which kernels serve which ops on a CUDA device, and when they can't.

Nothing of Triton is imported before an op meets such a device, or `ops.use("triton")` asks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from fastbert.ops import flags, registry
from fastbert.ops.determinism import is_deterministic

NAME = "triton"
STEMS = ("attention", "cross_entropy", "embedding", "layer_norm", "linear")
"""Files of `fastbert.kernels`. Each has ``LAUNCHERS``, op → function with the op's own arguments
and results, and ``unsupported(op, args)``, why it can't serve these, or None."""


class _State:
    loaded = False
    warned: set[str] = set()  # noqa: RUF012  # of the process, like the registry


def available() -> bool:
    """Whether Triton can be imported here."""
    return find_spec("triton") is not None


def load() -> None:
    """Register every launcher, once.

    Raises:
        ImportError: if Triton is not installed.
    """
    if _State.loaded:
        return
    if not available():
        raise ImportError("Triton is not installed here: pip install triton")
    for stem in STEMS:
        module = import_module(f"fastbert.kernels.{stem}")
        for op, launcher in module.LAUNCHERS.items():
            if op == "embed_layer_norm":
                launcher = _counting(launcher)
            registry.register(NAME, op, "cuda", _guarded(op, launcher, module.unsupported))
    import_module("fastbert.kernels.autotune").follow(is_deterministic)
    _State.loaded = True


def _counting(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """The embedding's launcher, its bad indices refused on a CPU, counted elsewhere (`flags`)."""

    def serve(*args: Any) -> Any:
        ids, types, positions, word, position, kind = args[:6]
        if ids.device.type != "cpu":
            return launcher(*args, counter=flags.counter(ids.device))
        limits = (word.shape[0], kind.shape[0], position.shape[0])
        flags.check_on_host((ids, types, positions), limits)
        return launcher(*args)

    return serve


def _guarded(
    op: str, launcher: Callable[..., Any], unsupported: Callable[[str, tuple[Any, ...]], str | None]
) -> Callable[..., Any]:
    """The launcher, or the reference, said once, where the launcher can't serve."""

    def serve(*args: Any) -> Any:
        device = args[0].device
        reason = unsupported(op, args)
        if reason is None:
            if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
                return launcher(*args)
            with torch.cuda.device(device):  # Triton launches on the current one
                return launcher(*args)
        if reason not in _State.warned:
            _State.warned.add(reason)
            warnings.warn(f"{op}: {reason}; the plain-torch reference serves it", stacklevel=3)
        # The public function has cast already; what torch runs inside must not be cast again.
        with torch.autocast(device.type, enabled=False):
            return registry.reference_of(op)(*args)

    return serve
