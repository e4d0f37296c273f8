"""Where the waist's ops are declared and where an implementation is chosen.

Schemas live in one `torch.library.Library`, so they exist without any extension. Each op is one
Python callable for every device; it looks up the implementation for the device of its first tensor,
or the one that `use` forces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

NAMESPACE = "fastbert"
_LIBRARY = Library(NAMESPACE, "DEF")

# implementation name -> op name -> callable
_IMPLEMENTATIONS: dict[str, dict[str, Callable[..., Any]]] = {"reference": {}}
# (op name, device type) -> implementation name; what is not listed is served by the reference
_SERVED_BY: dict[tuple[str, str], str] = {}
_forced: str | None = None
# Implementations that are imported only when they are needed: name -> what registers their ops;
# and device type -> the implementation to load when an op first meets it.
_LOADERS: dict[str, Callable[[], None]] = {}
_ON_DEVICE: dict[str, str] = {}
_LOADABLE: set[str] = set()


def define(
    schema: str, *, reference: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Declare an op.

    Args:
        schema: name, arguments and results in torch's schema language.
        reference: plain torch implementation, for every device.
        fake: shapes and dtypes of the results, for tracing.

    Returns:
        The op's overload, to be called by the public function.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    _IMPLEMENTATIONS["reference"][name] = reference
    _LIBRARY.impl(name, _chooser(name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    overload: Callable[..., Any] = getattr(torch.ops.fastbert, name).default
    return overload


def register(
    implementation: str, name: str, device_type: str, function: Callable[..., Any]
) -> None:
    """Let `function` serve the op `name` on `device_type` under the name of an implementation."""
    if name not in _IMPLEMENTATIONS["reference"]:
        raise ValueError(f"no op is named {name!r}: {sorted(_IMPLEMENTATIONS['reference'])}")
    _IMPLEMENTATIONS.setdefault(implementation, {})[name] = function
    _SERVED_BY[name, device_type] = implementation


def register_loader(
    implementation: str, device_type: str, load: Callable[[], None], here: Callable[[], bool]
) -> None:
    """Let `load` register an implementation when it is asked for, or a device of that type met.

    Args:
        implementation: its name.
        device_type: that it serves.
        load: registers its ops; called again each time, so it must remember.
        here: whether it can be loaded at all.
    """
    _LOADERS[implementation] = load
    if here():
        _LOADABLE.add(implementation)
        _ON_DEVICE[device_type] = implementation


def reference_of(name: str) -> Callable[..., Any]:
    """The plain implementation of an op."""
    return _IMPLEMENTATIONS["reference"][name]


@contextmanager
def use(implementation: str | None) -> Iterator[None]:
    """Force one implementation of every op, for the length of a ``with`` block; None frees them.

    It holds for the whole process (gradients run in threads of their own), so blocks may be nested
    but must not overlap across threads.

    Raises:
        ValueError: if no implementation bears that name.
    """
    global _forced
    if implementation in _LOADERS:
        _LOADERS[implementation]()
    if implementation is not None and implementation not in _IMPLEMENTATIONS:
        known = ", ".join(implementations())
        raise ValueError(f"no implementation is named {implementation!r}; there are: {known}")
    before, _forced = _forced, implementation
    try:
        yield
    finally:
        _forced = before


def implementations() -> tuple[str, ...]:
    """Names of the implementations that `use` takes."""
    return tuple(sorted({*_IMPLEMENTATIONS, *_LOADABLE}))


def device_type(x: Tensor) -> str:
    """`x.device.type`, in a third of its 0.2 µs where it is one of the usual two."""
    return "cuda" if x.is_cuda else "cpu" if x.is_cpu else x.device.type


def _chooser(name: str) -> Callable[..., Any]:
    reference = _IMPLEMENTATIONS["reference"][name]

    def call(*args: Any) -> Any:
        device = device_type(args[0])
        function = _choose(name, device)
        if function is not reference or not torch.is_autocast_enabled(device):
            return function(*args)
        # The public function has cast already; what torch runs inside must not be cast again.
        with torch.autocast(device, enabled=False):
            return function(*args)

    return call


def _choose(name: str, device_type: str) -> Callable[..., Any]:
    waiting = _ON_DEVICE.pop(device_type, None)
    if waiting is not None:
        _LOADERS[waiting]()
    chosen = _forced or _SERVED_BY.get((name, device_type), "reference")
    table = _IMPLEMENTATIONS[chosen]
    return table.get(name) or _IMPLEMENTATIONS["reference"][name]


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """The floating-point tensors in autocast's dtype where autocast is on, else as they are."""
    device = device_type(x)
    if not torch.is_autocast_enabled(device):
        return (x, *others)
    dtype = torch.get_autocast_dtype(device)
    wide = x.dtype == torch.float64  # autocast leaves float64 alone
    return tuple(t if t is None or wide else t.to(dtype) for t in (x, *others))


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a gradient will be asked of this call."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check(condition: bool, message: Callable[[], str]) -> None:
    """Raise a ValueError with what `message` gives unless the condition holds.

    A callable, since the words cost more than the check, and a size that is written into them while
    a graph is traced would be fixed in that graph.
    """
    if not condition:
        raise ValueError(message())


def check_seed(dropout_p: float, seed: Tensor) -> None:
    """Refuse a probability outside 0..1 and a seed that is missing or no int64 of one element."""
    if dropout_p == 0.0 and seed.dtype is torch.int64:
        return
    check(0.0 <= dropout_p < 1.0, lambda: f"dropout_p must lie in 0..1, without 1, not {dropout_p}")
    check(seed.dtype == torch.int64, lambda: f"seed must be int64, not {seed.dtype}")
    wanted = 0 if dropout_p == 0.0 else 1
    check(
        seed.numel() == 1 or wanted == 0,
        lambda: f"seed must hold one number where dropout_p is {dropout_p}, found {seed.numel()}",
    )


def draw_seed(dropout_p: float, device: torch.device) -> Tensor:
    """(1,) int64 seed from torch's generator of the device; empty where nothing is dropped."""
    if dropout_p == 0.0:
        return torch.empty(0, dtype=torch.int64, device=device)
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)
