"""Texts longer than a model, cut into windows that overlap, and merged exactly once."""

from __future__ import annotations

from itertools import pairwise

from fastbert.checks import check_int

Bounds = list[tuple[int, int]]
"""First token of each window and the one after its last, in the order of the text."""


def windows(total: int, room: int, stride: int = 0) -> Bounds:
    """Cover `total` tokens by windows of at most `room`, neighbours sharing `stride` of them.

    Args:
        total: tokens of the text; 0 gives one empty window.
        room: tokens that fit into a window beside the special ones.
        stride: tokens that a window repeats of the one before: an overlap, not a step.

    Returns:
        Windows that together hold every token, each but the last `room` long.

    Raises:
        ValueError: if there is no room, or the stride leaves no step forward or is no integer.
    """
    check_int("total", total, 0, 2**63 - 1)
    if room < 1:
        raise ValueError(f"{room} tokens of text fit into a window, expected at least 1")
    stride = check_int("stride", stride, -(2**63), 2**63 - 1)
    if not 0 <= stride < room:
        raise ValueError(
            f"stride is {stride}, expected 0 to {room - 1}: it is the overlap of two windows, and"
            f" {room} tokens of text fit into one"
        )
    count = 1 + max(0, -(-(total - room) // (room - stride)))
    starts = [number * (room - stride) for number in range(count)]
    return [(start, min(start + room, total)) for start in starts]


def owned(bounds: Bounds) -> Bounds:
    """The part of each window that speaks for its tokens: an overlap is split in its middle.

    So every token is spoken for exactly once, by a window that sees it with much context.
    """
    if not bounds:
        return []
    edges = [(start + end) // 2 for (_, end), (start, _) in pairwise(bounds)]
    return list(zip([bounds[0][0], *edges], [*edges, bounds[-1][1]], strict=True))
