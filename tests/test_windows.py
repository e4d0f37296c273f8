"""Windows: that they cover, overlap and own exactly what they say."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbert.windows import owned, windows


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int]:
    room = draw(st.integers(1, 40))
    return draw(st.integers(0, 300)), room, draw(st.integers(0, room - 1))


@given(cases())
def test_windows_cover_every_token_and_neighbours_share_the_stride(
    case: tuple[int, int, int],
) -> None:
    total, room, stride = case
    bounds = windows(total, room, stride)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(end - start == room for start, end in bounds[:-1])
    assert bounds[-1][1] - bounds[-1][0] <= room
    for (start, end), (next_start, next_end) in pairwise(bounds):
        assert end - next_start == stride
        assert next_end > end  # never a window that brings nothing new
        assert next_start > start
    seen = {token for start, end in bounds for token in range(start, end)}
    assert seen == set(range(total))


@given(cases())
def test_no_fewer_windows_would_do(case: tuple[int, int, int]) -> None:
    total, room, stride = case
    count = len(windows(total, room, stride))
    assert count == 1 or room + (count - 2) * (room - stride) < total


@given(cases())
def test_each_token_is_owned_once_by_the_window_that_sees_most_around_it(
    case: tuple[int, int, int],
) -> None:
    total, room, stride = case
    bounds = windows(total, room, stride)
    parts = owned(bounds)
    assert [t for start, end in parts for t in range(start, end)] == list(range(total))
    for (start, end), (first, last) in zip(bounds, parts, strict=True):
        assert start <= first <= last <= end
        assert first < last or total == 0

    def context(token: int, bound: tuple[int, int]) -> int:
        """Tokens on the side where there are fewer; the text's own ends take nothing away."""
        left = token - bound[0] if bound[0] else total
        right = bound[1] - 1 - token if bound[1] < total else total
        return min(left, right)

    for bound, (first, last) in zip(bounds, parts, strict=True):
        for token in range(first, last):
            best = max(context(token, b) for b in bounds if b[0] <= token < b[1])
            # The cut in an overlap's middle lets at most one token go to its second best window.
            assert context(token, bound) >= best - 1


def test_examples() -> None:
    assert windows(0, 4) == [(0, 0)]
    assert windows(4, 4, 3) == [(0, 4)]
    assert windows(5, 4) == [(0, 4), (4, 5)]
    assert windows(5, 4, 3) == [(0, 4), (1, 5)]
    assert windows(8, 4, 1) == [(0, 4), (3, 7), (6, 8)]
    assert owned([(0, 4), (3, 7), (6, 8)]) == [(0, 3), (3, 6), (6, 8)]
    assert owned([(0, 6), (2, 8)]) == [(0, 4), (4, 8)]
    assert owned([(0, 0)]) == [(0, 0)]
    assert owned([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 0), "0 tokens of text fit into a window"),
        ((5, -3), "-3 tokens of text fit into a window"),
        ((5, 4, 4), "stride is 4, expected 0 to 3: it is the overlap"),
        ((5, 4, 9), "stride is 9, expected 0 to 3"),
        ((5, 4, -1), "stride is -1, expected 0 to 3"),
        ((5, 1, 1), "stride is 1, expected 0 to 0"),
        ((5, 4, 1.0), r"stride is 1\.0, expected an integer"),
        ((5, 4, True), "stride is True, expected an integer"),
        ((-1, 4), "total is -1, expected 0"),
    ],
)
def test_refusals(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        windows(*arguments)
