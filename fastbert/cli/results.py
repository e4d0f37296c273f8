"""What a task found, as JSON lines or as a table, streamed into a file or to stdout."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, Generic, TypeVar

from fastbert.cli.common import CommandError
from fastbert.cli.inputs import Record
from fastbert.cli.outputs import to_bytes
from fastbert.cli.table import Table

Result = TypeVar("Result")
Cells = tuple[str, ...]

OUTPUT_FORMATS = ("auto", "jsonl", "table")
NOTHING = "-"  # in a table, the cells of a record of which nothing was found


@dataclass(frozen=True)
class View(Generic[Result]):
    """How the result of a record is shown.

    Attributes:
        header: names of the table's columns, beside the first one, ``place``.
        fields: the result's fields of the JSON object, beside ``file`` and ``line``.
        rows: the result's rows of the table.
    """

    header: Cells
    fields: Callable[[Result], dict[str, Any]]
    rows: Callable[[Record, Result], Iterable[Cells]]


class ResultWriter(Generic[Result]):
    """Stream results, one record after the other; a record without any keeps its line.

    Args:
        file: takes the bytes.
        view: how a result is shown.
        table: a table instead of JSON lines.
        width: columns of the terminal, None to cut nothing.
    """

    def __init__(
        self, file: IO[bytes], view: View[Result], *, table: bool, width: int | None = None
    ) -> None:
        self._file = file
        self._view = view
        self._table = Table(file, ("place", *view.header), width) if table else None

    def write(self, records: Sequence[Record], results: Sequence[Result]) -> None:
        """Append one result a record."""
        pairs = zip(records, results, strict=True)
        if self._table is None:
            for record, result in pairs:
                self._file.write(json_line(record, self._view.fields(result)))
            return
        nothing = (NOTHING,) * len(self._view.header)
        self._table.write(
            [
                (record.place, *cells)
                for record, result in pairs
                for cells in (list(self._view.rows(record, result)) or [nothing])
            ]
        )


def json_line(record: Record, fields: dict[str, Any]) -> bytes:
    """Return ``{"file": …, "line": …, fields}`` and a line end.

    Raises:
        CommandError: a number is not finite; JSON has no such number.
    """
    whole = {"file": record.file, "line": record.line, **fields}
    try:
        return to_bytes(json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n")
    except ValueError:
        raise CommandError(not_finite(record)) from None


def not_finite(record: Record) -> str:
    """Return what is said of a record whose score is no number that JSON has."""
    return (
        f"{record.place}: the score is not finite (the model overflows in this precision, or its"
        " weights hold NaN)"
    )


def as_fields(found: Any) -> dict[str, Any]:
    """Return the fields of a task's result, without those that don't apply (None)."""
    return {name: value for name, value in asdict(found).items() if value is not None}


def shown_score(score: float) -> str:
    """Return a score as tables show it."""
    return f"{score:.4f}"


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where results go, and how they look."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="a file, which appears whole or not at all, or - for stdout (default)",
    )
    group.add_argument(
        "--output-format",
        choices=OUTPUT_FORMATS,
        default="auto",
        help="auto: a table on a terminal, else JSON lines",
    )


def on_terminal(args: argparse.Namespace) -> bool:
    """Say whether the results of a command go to a terminal."""
    return args.output in (None, "-") and sys.stdout is not None and sys.stdout.isatty()


def result_writer(
    args: argparse.Namespace, file: IO[bytes], view: View[Result]
) -> ResultWriter[Result]:
    """Return the writer that the options of ``add_output_options`` ask for."""
    terminal = on_terminal(args)
    table = args.output_format == "table" or (args.output_format == "auto" and terminal)
    width = shutil.get_terminal_size().columns if terminal else None
    return ResultWriter(file, view, table=table, width=width)
