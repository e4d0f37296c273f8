"""Timing candidates against each other: interleaved, medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds a round."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Fastest and slowest round, in seconds."""
        return min(self.seconds), max(self.seconds)


def interleave(
    candidates: Mapping[str, Callable[[], object]], rounds: int = 5, patience: float = 30.0
) -> dict[str, Timing]:
    """Time every candidate once a round; each must have run before, to be warm.

    Interleaving spreads whatever else the machine does over all candidates alike.

    Args:
        candidates: what to run, by name.
        rounds: timed rounds, at least 3.
        patience: seconds after which 3 rounds are enough.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - begin > patience:
            break
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
