"""Tables for people: aligned, cut to the terminal's width, without control characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import IO

from fastbert.cli.outputs import to_bytes

GAP = "  "
# No cell is filled up to more than this, so that one long text does not widen every line.
WIDEST_COLUMN = 40
NO_LIMIT = 1 << 62


def cut_to_width(line: str, width: int) -> str:
    """Return ``line`` as a terminal of ``width`` columns shows it on one line.

    Control characters (escape sequences among them) and Unicode's line separators become spaces,
    format characters (which could reorder the line) vanish, and "…" stands for what does not fit.
    """
    shown: list[str] = []
    used = 0
    for character in line:
        category = unicodedata.category(character)
        if category == "Cf":
            continue
        if category in ("Cc", "Cs", "Zl", "Zp"):
            character = " "
        columns = _columns(character)
        if used + columns > width:
            while shown and used + 1 > width:
                used -= _columns(shown.pop())
            return "".join(shown) + "…"
        shown.append(character)
        used += columns
    return "".join(shown)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shown_width(text: str) -> int:
    """Return how many columns a terminal takes for ``text``."""
    return len(text) if text.isascii() else sum(map(_columns, text))


class Table:
    """Write rows under a header, aligned; columns grow where a later row needs it.

    Args:
        file: takes the bytes.
        header: names of the columns; the last one gets what is left of a line.
        width: columns of the terminal, None to cut nothing.
    """

    def __init__(self, file: IO[bytes], header: Sequence[str], width: int | None) -> None:
        self._file = file
        self._header: Sequence[str] | None = header
        self._width = width
        self._widths = [0] * (len(header) - 1)

    def write(self, rows: Sequence[Sequence[str]]) -> None:
        """Append rows, each with one cell a column."""
        if not rows:
            return
        widest = NO_LIMIT if self._width is None else max(10, self._width // 3)
        table = [] if self._header is None else [list(self._header)]
        self._header = None
        table += [[cut_to_width(cell, widest) for cell in row[:-1]] + [row[-1]] for row in rows]
        for place, width in enumerate(self._widths):
            needed = max(shown_width(row[place]) for row in table)
            self._widths[place] = max(width, min(needed, WIDEST_COLUMN))
        for row in table:
            line = cut_to_width(self._line(row), self._width or NO_LIMIT)
            self._file.write(to_bytes(line.rstrip() + "\n"))

    def _line(self, row: Sequence[str]) -> str:
        filled = [
            cell + " " * (width - shown_width(cell))
            for cell, width in zip(row[:-1], self._widths, strict=True)
        ]
        return GAP.join([*filled, row[-1]])
