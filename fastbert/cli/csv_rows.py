"""Rows of CSV files: a header names the columns, and a quoted field may hold line ends."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from fastbert.cli.common import CommandError
from fastbert.cli.rows import BadLineError, Row, Texts, is_unicode

# What Python's csv module says, and what a user can do something about.
_REASONS = {
    "unexpected end of data": "a quote is opened and never closed",
    "new-line character seen": "a carriage return that is neither quoted nor part of a line end",
}
_MOST_NAMES, _LONGEST_NAME = 12, 40  # of a header, in an error message


class _Lines:
    """A file's lines as text, for `csv.reader`; counts lines and the bytes of the current row.

    A byte that is not UTF-8 becomes a lone surrogate: raising from here would make the reader
    forget that it is inside quotes, and what follows would be taken for rows.
    """

    def __init__(self, file: BinaryIO, name: str, limit: int) -> None:
        self._file, self._name, self._limit = file, name, limit
        self.line = 0
        self.row_line = 1
        self.row_bytes = 0

    def begin_row(self) -> None:
        self.row_line, self.row_bytes = self.line + 1, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(self._limit + 1)
        if not raw:
            raise StopIteration
        self.line += 1
        self.row_bytes += len(raw)
        if self.row_bytes > self._limit:
            # Nothing tells where the next row would begin, so there is no going on after this.
            raise CommandError(
                f"{self._name}:{self.row_line}: a row of more than {self._limit} bytes; is a quote"
                " opened there and never closed?"
            )
        if self.line == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        return raw.decode("utf-8", "surrogateescape")


class CsvRows:
    """Iterate over the rows of a CSV file.

    A blank line is a row with an empty text where there is one column, else it is none.

    Args:
        file: opened in binary, at its start.
        name: for messages.
        delimiter: one character.
        columns: names of the columns wanted, as the header spells them.
        limit: most bytes of a row.

    Raises:
        CommandError: the header lacks a column or has it twice, or (while iterating) a row is
            longer than ``limit``.
    """

    def __init__(
        self, file: BinaryIO, name: str, delimiter: str, columns: Sequence[str], limit: int
    ) -> None:
        self._lines = _Lines(file, name, limit)
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        self._limit = limit
        header = self._header(name)
        for column in columns:
            _check_column(name, header, column)
        self._width = len(header)
        self._places = [header.index(column) for column in columns]

    def _header(self, name: str) -> list[str]:
        try:
            header = self._next()
            while header == []:
                header = self._next()
        except csv.Error as error:
            raise CommandError(f"{name}:{self._lines.row_line}: {_reason(error)}") from None
        if header is None:
            raise CommandError(f"{name}: is empty, expected a CSV header that names the columns")
        try:
            _check_utf8(header)
        except BadLineError as error:
            raise CommandError(f"{name}:{self._lines.row_line}: {error}") from None
        return header

    def _next(self) -> list[str] | None:
        """Return the fields of the next row, [] for a blank line, None at the end."""
        self._lines.begin_row()
        # The limit is the csv module's own, for the whole process; its default cuts at 131,072
        # characters, and a book has more.
        old = csv.field_size_limit(self._limit)
        try:
            return next(self._reader, None)
        finally:
            csv.field_size_limit(old)

    def __iter__(self) -> Iterator[Row]:
        """Yield every row after the header, with the line it begins at."""
        while True:
            texts: Texts | BadLineError
            try:
                cells = self._next()
                if cells is None:
                    return
                if not cells and self._width > 1:
                    continue
                texts = self._pick(cells or [""])
            except csv.Error as error:
                texts = BadLineError(_reason(error))
            except BadLineError as error:
                texts = error
            yield Row(self._lines.row_line, self._lines.row_bytes, texts)

    def _pick(self, cells: list[str]) -> Texts:
        _check_utf8(cells)
        if len(cells) != self._width:
            raise BadLineError(f"a row of {len(cells)} fields, the header has {self._width}")
        return tuple(cells[place] for place in self._places)


def _reason(error: csv.Error) -> str:
    message = str(error)
    for start, reason in _REASONS.items():
        if message.startswith(start):
            return f"not CSV: {reason}"
    return f"not CSV: {message}"


def _check_utf8(cells: Sequence[str]) -> None:
    for number, cell in enumerate(cells, start=1):
        if not is_unicode(cell):
            byte = next(ord(c) - 0xDC00 for c in cell if "\udc80" <= c <= "\udcff")
            raise BadLineError(f"not UTF-8: byte 0x{byte:02x} in field {number}")


def _check_column(name: str, header: Sequence[str], column: str) -> None:
    count = header.count(column)
    if count == 1:
        return
    if count:
        raise CommandError(f"{name}: {count} columns are called {column!r}, expected one")
    names = [repr(cell[:_LONGEST_NAME]) for cell in header[:_MOST_NAMES]]
    more = f" and {len(header) - len(names)} more" if len(header) > len(names) else ""
    raise CommandError(
        f"{name}: no column {column!r}, its columns are {', '.join(names)}{more}"
        " (a file without a header line: --format text)"
    )
