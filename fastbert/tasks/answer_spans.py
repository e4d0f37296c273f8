"""The best spans of a document whose start and end logits come from overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fastbert.windows import Bounds

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spans:
    """Some spans of a document, best first, and what their probabilities are measured by.

    Attributes:
        scores: (K,) start logit + end logit; of equal ones the earlier span, then the shorter one
            comes first.
        first, last: (K,) tokens of the document, both inclusive.
        log_total: log Σ exp(score) over every span of the document.
    """

    scores: Floats
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    log_total: float


def best_spans(
    bounds: Bounds, starts: Sequence[Floats], ends: Sequence[Floats], longest: int, keep: int
) -> Spans:
    """Search every span of at most `longest` tokens that lies whole in a window.

    A span that several windows hold counts once, with the highest of its scores. Memory: one
    window × `longest`, and `keep` spans, however long the document is.

    Args:
        bounds: the windows, in the order of the document, as `windows` makes them.
        starts, ends: logits of each window's tokens, finite.
        longest: most tokens of a span.
        keep: most spans to return.
    """
    document_end = bounds[-1][1]
    following = [*(start for start, _ in bounds[1:]), document_end]
    best = Spans(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64), -np.inf)
    held = np.empty((0, longest))
    for (begin, end), start, stop, after in zip(bounds, starts, ends, following, strict=True):
        width = min(longest, end - begin)
        band = _band(start, stop, width)  # (tokens, width)
        np.maximum(band[: len(held)], held[:, :width], out=band[: len(held)])
        # No later window holds a span that starts before that window does.
        best = _merged(best, band[: after - begin], begin, keep)
        held = band[after - begin :]
    return best


def _band(start: Floats, stop: Floats, width: int) -> Floats:
    """Score [i, d] of the span from token i to token i + d; -inf beyond the window."""
    beyond = np.full(width - 1, -np.inf)
    return start[:, None] + sliding_window_view(np.concatenate([stop, beyond]), width)


def _merged(best: Spans, block: Floats, begin: int, keep: int) -> Spans:
    """The best of `best` and of a block of later spans, whose first row starts at `begin`."""
    flat = block.ravel()
    top = flat.max()
    log_total = np.logaddexp(best.log_total, top + np.log(np.exp(flat - top).sum()))
    places = _largest(flat, keep)
    scores = np.concatenate([best.scores, flat[places]])
    row, extra = np.divmod(places, block.shape[1])
    first = np.concatenate([best.first, begin + row])
    last = np.concatenate([best.last, begin + row + extra])
    order = np.argsort(-scores, kind="stable")[:keep]
    return Spans(scores[order], first[order], last[order], float(log_total))


def _largest(flat: Floats, keep: int) -> NDArray[np.int64]:
    """Places of the `keep` largest finite values, in order; of equal ones the first."""
    if keep < flat.size:
        bar = np.partition(flat, flat.size - keep)[flat.size - keep]
        places = np.flatnonzero((flat >= bar) & (flat > -np.inf))
    else:
        places = np.flatnonzero(flat > -np.inf)
    return places[np.argsort(-flat[places], kind="stable")[:keep]]
