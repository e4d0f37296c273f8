"""Measure candidates that do the same work: verify each one first, then time them interleaved.

A candidate whose output is off is reported and never timed. The others take turns in one process,
in an order drawn anew each round, so that a machine that drifts drifts for all of them; ratios are
taken within a round and only then summed up.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

WARM_UP = 2
MIN_ROUNDS = 7
MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Candidate:
    """One way to do the work.

    Attributes:
        name: unique within its case.
        run: does the work once; this is what is timed, so preparations belong before it.
        error: distance of what `run` returned from the truth.
        bound: the largest `error` that counts as right.
    """

    name: str
    run: Callable[[], Any]
    error: Callable[[Any], float]
    bound: float


@dataclass(frozen=True)
class Case:
    """One piece of work and the candidates for it.

    Attributes:
        name: for tables and plots.
        candidates: with unique names.
        baseline: the name of the candidate that ratios refer to; it may be absent.
        work: what one run amounts to, e.g. ``{"tokens": 4565}``, each usable as a rate.

    Raises:
        ValueError: if two candidates share a name.
    """

    name: str
    candidates: tuple[Candidate, ...]
    baseline: str
    work: Mapping[str, float]

    def __post_init__(self) -> None:
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) != len(names):
            raise ValueError(f"case {self.name!r} has two candidates of one name: {names}")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        """Summary of at least one number."""
        low, median, high = np.percentile(np.asarray(sample, dtype=np.float64), (25, 50, 75))
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Measurement:
    """What became of one candidate.

    Attributes:
        name: the candidate's.
        error: its distance from the truth, maybe NaN.
        bound: what was allowed.
        seconds: one duration a round; empty if the candidate was wrong.
    """

    name: str
    error: float
    bound: float
    seconds: tuple[float, ...] = ()

    @property
    def right(self) -> bool:
        """Whether the output was within the bound (NaN never is)."""
        return self.error <= self.bound

    @property
    def spread(self) -> Spread | None:
        """Seconds of one run, None if it was not timed."""
        return Spread.of(self.seconds) if self.seconds else None


@dataclass(frozen=True)
class Result:
    """All measurements of a case, in the order of its candidates.

    Attributes:
        disturbance: cores that other processes kept busy while the rounds ran, NaN if unknown.
    """

    case: str
    baseline: str
    work: Mapping[str, float]
    measurements: tuple[Measurement, ...]
    disturbance: float = math.nan

    def find(self, name: str) -> Measurement | None:
        """The measurement of that candidate, None if it took no part."""
        return next((m for m in self.measurements if m.name == name), None)

    def speedup(self, name: str) -> Spread | None:
        """How many times as fast as the baseline: the ratio of each round, summed up.

        None where the candidate or the baseline was not timed.
        """
        base, other = self.find(self.baseline), self.find(name)
        if base is None or other is None or not base.seconds or not other.seconds:
            return None
        return Spread.of([b / o for b, o in zip(base.seconds, other.seconds, strict=True)])

    def rate(self, name: str, unit: str) -> float | None:
        """Units of `work` a second at the median, None where it was not timed."""
        measured = self.find(name)
        spread = None if measured is None else measured.spread
        return None if spread is None else self.work[unit] / spread.median


def measure(
    case: Case,
    *,
    seconds: float,
    min_rounds: int = MIN_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[str], None] | None = None,
    others: Callable[[], float] = lambda: math.nan,
) -> Result:
    """Verify the candidates of a case, then time those that are right.

    Args:
        case: what to measure.
        seconds: rounds go on until this much time has passed.
        min_rounds: rounds that are run however long they take.
        clock: seconds from any start.
        progress: called with the candidate's name before each of its runs.
        others: CPU seconds that other processes have used, from any start.
    """
    tell = progress or (lambda name: None)
    errors: dict[str, float] = {}
    for candidate in case.candidates:
        tell(candidate.name)
        errors[candidate.name] = float(candidate.error(candidate.run()))
    right = [c for c in case.candidates if errors[c.name] <= c.bound]
    for candidate in right * WARM_UP:
        tell(candidate.name)
        candidate.run()
    start, used = clock(), others()
    samples = _rounds(right, seconds, min_rounds, clock, tell)
    elapsed = clock() - start
    return Result(
        case=case.name,
        baseline=case.baseline,
        work=dict(case.work),
        measurements=tuple(
            Measurement(c.name, errors[c.name], c.bound, tuple(samples.get(c.name, ())))
            for c in case.candidates
        ),
        disturbance=(others() - used) / elapsed if elapsed > 0 else math.nan,
    )


def _rounds(
    candidates: Sequence[Candidate],
    seconds: float,
    min_rounds: int,
    clock: Callable[[], float],
    tell: Callable[[str], None],
) -> dict[str, list[float]]:
    """One duration a round for each candidate, every round in another order."""
    samples: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    if not candidates:
        return samples
    shuffle = random.Random(0).shuffle
    order = list(candidates)
    end = clock() + seconds
    with _no_garbage_collection():
        for done in range(MAX_ROUNDS):
            if done >= min_rounds and clock() >= end:
                break
            shuffle(order)  # nobody always runs in the cache that the same neighbour left
            for candidate in order:
                tell(candidate.name)
                start = clock()
                output = candidate.run()
                samples[candidate.name].append(clock() - start)
                del output  # not while the next one is timed
    return samples


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect now, and not while the clock runs."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def as_data(result: Result) -> dict[str, Any]:
    """A result as plain values for JSON: every sample, and what is derived from them."""
    return {
        "case": result.case,
        "baseline": result.baseline,
        "work": dict(result.work),
        "disturbance_cores": _finite(result.disturbance),
        "candidates": [_candidate_data(result, m) for m in result.measurements],
    }


def _candidate_data(result: Result, measured: Measurement) -> dict[str, Any]:
    spread, speedup = measured.spread, result.speedup(measured.name)
    return {
        "name": measured.name,
        "right": measured.right,
        "error": _finite(measured.error),
        "bound": measured.bound,
        "seconds": list(measured.seconds),
        "median_s": None if spread is None else spread.median,
        "quartiles_s": None if spread is None else [spread.low, spread.high],
        "per_second": {unit: result.rate(measured.name, unit) for unit in result.work},
        "speedup": None if speedup is None else speedup.median,
        "speedup_quartiles": None if speedup is None else [speedup.low, speedup.high],
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
