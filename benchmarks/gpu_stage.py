"""What the sections of `benchmarks.gpu` share: the device, rows, and who really served an op."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from statistics import median
from typing import Any

import torch

from fastbert import ops
from fastbert.ops import registry

PASSED, FAILED, NOT_RUN = "passed", "failed", "could not run"
RAN = "ran"
"""Of what was measured or seen to end, and compared with nothing."""
Row = dict[str, Any]

# What a kernel that is broken, absent or refused may raise. A case that raises is a row that says
# so; the cases after it still run.
FAULTS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError,
          RuntimeError, TypeError, ValueError)  # fmt: skip


class Stage:
    """The device, and what the dry mode makes small.

    Attributes:
        device: CUDA, or the CPU in the dry mode.
        dry: tiny shapes under the interpreter, in float32 alone: it gets bfloat16 wrong.
    """

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.device = torch.device("cpu") if dry else torch.device("cuda", 0)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Precisions of the cases."""
        low = (torch.bfloat16, torch.float16)
        return (torch.float32,) if self.dry else (*low, torch.float32)

    def wait(self) -> None:
        """Until the device is done."""
        if not self.dry:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], budget: float) -> float:
        """Median of one call; on a GPU with a cold second-level cache."""
        if self.dry:
            return median(_timed(call) for _ in range(2))
        from triton.testing import do_bench

        return 1e-3 * float(do_bench(call, warmup=25, rep=1e3 * budget, return_mode="median"))


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Which ops the reference served meanwhile: a kernel that stood aside has proved nothing."""
    served: Counter[str] = Counter()
    table = registry._IMPLEMENTATIONS["reference"]
    before = dict(table)

    def counted(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any) -> Any:
            served[op] += 1
            return function(*args)

        return call

    table.update({op: counted(op, function) for op, function in before.items()})
    try:
        yield served
    finally:
        table.update(before)


def attempt(what: str, dtype: torch.dtype | None, run: Callable[[], Row], ours: bool = True) -> Row:
    """A row of what `run` found, or of why it could not run.

    Args:
        what, dtype: for the row.
        run: gives the rest of the row.
        ours: whether Triton must serve all of it.
    """
    from triton.errors import TritonError

    row: Row = {"what": what, "dtype": str(dtype).removeprefix("torch.") if dtype else ""}
    try:
        with counting() as served, ops.use("triton") if ours else nullcontext():
            found = run()
    except (*FAULTS, TritonError) as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        return {**row, "state": NOT_RUN, "detail": reason}
    if ours and served:
        names = ", ".join(sorted(served))
        return {**row, "state": NOT_RUN, "detail": f"the reference served {names}"}
    return {**row, "detail": "", **found}


@contextmanager
def uncounted() -> Iterator[None]:
    """The reference itself, behind the counting wrappers."""
    table = registry._IMPLEMENTATIONS["reference"]
    counted = dict(table)
    table.update({op: getattr(f, "__wrapped__", f) for op, f in counted.items()})
    try:
        yield
    finally:
        table.update(counted)
