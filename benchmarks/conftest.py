"""What the op benchmarks share: the fixture that checks and then times, and the table of rates.

Run ``pytest benchmarks/attention.py --benchmark-only``, or all with ``pytest benchmarks/*.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest error that counts as right, by the dtype of the inputs, relative to the largest magnitude
of the truth."""


@dataclass
class Rates:
    """Lines for the end of the run."""

    lines: list[str] = field(default_factory=list)


_RATES = pytest.StashKey[Rates]()


class Meter:
    """Checks an op's output against float64, then times it and notes its rate."""

    def __init__(self, benchmark: BenchmarkFixture, rates: Rates) -> None:
        self._benchmark, self._rates = benchmark, rates

    def __call__(
        self,
        run: Callable[[], Tensor],
        truth: Tensor,
        dtype: torch.dtype,
        *,
        flops: float = 0.0,
        moved: float = 0.0,
    ) -> None:
        """Measure `run`.

        Args:
            run: the op on inputs made before.
            truth: what it must return, in float64.
            dtype: of the inputs; it decides how far off `run` may be.
            flops: operations of one run, 2 for a multiply-add; or
            moved: bytes that one run must read and write.
        """
        with torch.inference_mode():
            out = run()
            error = float((out.double() - truth).abs().max() / truth.abs().max())
            if not error <= BOUNDS[dtype]:  # NaN is wrong too
                pytest.fail(f"error {error:.1e}, allowed {BOUNDS[dtype]:.1e}: not timed")
            self._benchmark(run)
        unit, amount = ("GFLOP/s", flops) if flops else ("GB/s", moved)
        self._benchmark.extra_info["error"] = error
        if self._benchmark.stats is None:  # --benchmark-disable: checked, not timed
            return
        median = self._benchmark.stats.stats.median
        self._benchmark.extra_info[unit] = amount / median / 1e9
        self._rates.lines.append(
            f"{self._benchmark.name:<64} {1e3 * median:9.3f} ms {amount / median / 1e9:8.1f} {unit}"
            f"   error {error:.1e}"
        )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RATES] = Rates()


@pytest.fixture
def meter(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Meter:
    """Check, time, note the rate."""
    return Meter(benchmark, request.config.stash[_RATES])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lines = config.stash[_RATES].lines
    if lines:
        terminalreporter.section(f"rates at the median, {torch.get_num_threads()} threads")
        for line in lines:
            terminalreporter.write_line(line)
