"""The search for spans over windows: against loops, on ties, and in bounded memory."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbert.tasks.answer_spans import best_spans
from fastbert.windows import windows


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_spans_of_windows_equal_loops_on_ties(data: st.DataObject) -> None:
    total, room = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 8))
    bounds = windows(total, room, data.draw(st.integers(0, room - 1)))
    longest, keep = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 40))
    number = st.integers(-2, 2)
    logits = [
        np.array(data.draw(st.lists(number, min_size=2 * (b - a), max_size=2 * (b - a))), float)
        for a, b in bounds
    ]
    starts = [row[: len(row) // 2] for row in logits]
    ends = [row[len(row) // 2 :] for row in logits]
    truth: dict[tuple[int, int], float] = {}
    for (a, b), start, end in zip(bounds, starts, ends, strict=True):
        for i in range(b - a):
            for j in range(i, min(i + longest, b - a)):
                place = (a + i, a + j)
                truth[place] = max(truth.get(place, -math.inf), float(start[i] + end[j]))
    found = best_spans(bounds, starts, ends, longest, keep)
    ranked = sorted(truth.items(), key=lambda item: (-item[1], item[0]))[:keep]
    places = zip(found.first.tolist(), found.last.tolist(), strict=True)
    assert list(zip(places, found.scores.tolist(), strict=True)) == ranked
    assert found.log_total == pytest.approx(math.log(sum(map(math.exp, truth.values()))), abs=1e-12)


def test_search_needs_memory_of_one_window() -> None:
    """100,000 tokens; all spans of up to 30 tokens would be 24 MB, all pairs 80 GB."""
    bounds = windows(100_000, 384, 128)
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(2, b - a)) for a, b in bounds]
    starts, ends = [row[0] for row in logits], [row[1] for row in logits]
    tracemalloc.start()
    found = best_spans(bounds, starts, ends, 30, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.scores) == 5
    assert peak < 2e6
