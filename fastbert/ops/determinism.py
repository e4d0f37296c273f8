"""`deterministic`: whether a GPU must give a row the same bits whatever shares its batch."""

from __future__ import annotations

from types import TracebackType


class _Process:
    on = False


class Setting:
    """What `deterministic` returns: it has already set, and as a ``with`` block it sets back."""

    def __init__(self, before: bool) -> None:
        self._before = before

    def __enter__(self) -> None:
        """The setting holds already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _Process.on = self._before


def deterministic(on: bool = True) -> Setting:
    """Let the GPU's kernels compute a row the same way whatever shares its batch, or stop that.

    While it is on, each Triton kernel keeps one fixed tile for all shapes (plain `linear` leaves
    the vendor's GEMM, which changes its kernel with the number of rows, for such a tile) and no
    autotuner is asked. It costs speed on shapes that another tile would suit better.

    Called as a function it holds from now on; as ``with deterministic():`` until the block ends,
    then what held before holds again. It is one flag of the process, since gradients run in threads
    of their own: blocks may be nested but must not overlap across threads.

    On the CPU it has no effect: the plain-torch reference calls torch's own GEMM, whose kernel
    changes with the number of rows. Nor does it touch `torch.use_deterministic_algorithms`, which
    is about repeating one shape, and about torch's ops.

    Args:
        on: True or False.

    Returns:
        A context manager that need not be used.

    Raises:
        TypeError: if `on` is no bool.
    """
    if not isinstance(on, bool):
        raise TypeError(f"deterministic takes True or False, not {type(on).__name__}")
    before, _Process.on = _Process.on, on
    return Setting(before)


def is_deterministic() -> bool:
    """Whether `deterministic` is on in this process."""
    return _Process.on
