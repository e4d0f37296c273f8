r"""Reading records: text, JSONL and CSV files and stdin, in bounded memory.

One record is one line, and only ``\n`` ends a line: U+2028, U+0085, ``\f`` and a lone ``\r`` are
text. Blank lines are records, a last line without ``\n`` is one too, the ``\r`` of a CRLF is
dropped, and so is a byte order mark at the start of a file. In CSV a record is a row, and quoted
fields may hold line ends.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from fastbert.cli.common import CommandError, note, positive_int
from fastbert.cli.csv_rows import CsvRows
from fastbert.cli.rows import BadLineError, Row, document_row, line_rows, parse_json, parse_text

FORMATS = ("auto", "text", "jsonl")
SUFFIXES: Mapping[str, str] = MappingProxyType({".jsonl": "jsonl", ".ndjson": "jsonl"})
DELIMITERS: Mapping[str, str] = MappingProxyType({"csv": ",", "tsv": "\t"})
# A line is held whole. Books have about 1 MB, so this stops a binary file or a device that never
# sends "\n", and no real text.
MAX_LINE_BYTES = 1 << 24
# A chunk is what is tokenised and sorted by length at once: enough lines for even batches, and
# a bound in characters so that long lines don't add up.
CHUNK_RECORDS = 4096
BATCH_TOKENS = 4096
CHUNK_CHARACTERS = 1 << 22


class Record(NamedTuple):
    """One text (or several fields) and where it stands: file as named, line counted from 1."""

    file: str
    line: int
    text: str
    size: int  # bytes in the file, line end included
    more: tuple[str, ...] = ()  # texts beside the first, where a record has several

    @property
    def place(self) -> str:
        """The record's address in a message."""
        return f"{self.file}:{self.line}"


class RecordReader:
    """Iterate over the records of several files, in order.

    Args:
        names: files, ``-`` for stdin (at most once).
        file_format: "text", "jsonl", "csv" or "tsv" for all of them; "document" makes each file
            one text; "auto" goes by the file's suffix (stdin: text).
        text_field: the field of a JSONL object, or the column, that holds the text.
        more_fields: those of the texts beside it; in a text file, tabs stand between them.
        suffixes: which format "auto" takes for which suffix; all else is text.
        skip_bad: leave out lines that hold no text and count them in ``skipped``, instead of
            failing at the first one.

    Raises:
        CommandError: a name is given that cannot be read, a CSV file lacks a column, or (while
            iterating) a bad line.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        file_format: str = "auto",
        text_field: str = "text",
        more_fields: Sequence[str] = (),
        suffixes: Mapping[str, str] = SUFFIXES,
        skip_bad: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.file_format = file_format
        self.fields = (text_field, *more_fields)
        self.suffixes = suffixes
        self.skip_bad = skip_bad
        self.skipped = 0
        self.first_skipped = ""
        self._check_names()

    def _check_names(self) -> None:
        if self.names.count("-") > 1:
            raise CommandError("stdin (-) can be read only once", code=2)
        for name in self.names:
            if name == "-":
                continue
            if stat.S_ISDIR(Path(name).stat().st_mode):
                raise CommandError(f"{name}: is a directory, expected a file")
            if not os.access(name, os.R_OK):
                raise CommandError(f"{name}: Permission denied")
            if Path(name).is_file() and self._format_of(name) in DELIMITERS:
                with Path(name).open("rb") as file:  # tell of its columns before a model loads
                    self._rows(file, name)

    def total_bytes(self) -> int | None:
        """Return the size of all inputs, None where one of them is a stream."""
        total = 0
        for name in self.names:
            if name == "-" or not Path(name).is_file():
                return None
            total += Path(name).stat().st_size
        return total

    def _format_of(self, name: str) -> str:
        if self.file_format == "auto":
            return self.suffixes.get(Path(name).suffix.lower(), "text")
        return self.file_format

    def _rows(self, file: BinaryIO, name: str) -> Iterable[Row]:
        kind = self._format_of(name)
        if kind in DELIMITERS:
            return CsvRows(file, name, DELIMITERS[kind], self.fields, MAX_LINE_BYTES)
        if kind == "document":
            return [document_row(file, MAX_LINE_BYTES)]
        if kind == "jsonl":
            return line_rows(file, partial(parse_json, fields=self.fields), MAX_LINE_BYTES)
        return line_rows(file, partial(parse_text, count=len(self.fields)), MAX_LINE_BYTES)

    def _records(self, file: BinaryIO, name: str) -> Iterator[Record]:
        for line, size, texts in self._rows(file, name):
            if isinstance(texts, BadLineError):
                self.refuse(f"{name}:{line}", str(texts))
            else:
                yield Record(name, line, texts[0], size, texts[1:])

    def refuse(self, place: str, reason: str) -> None:
        """Raise CommandError for a bad record, or count it where bad ones are skipped."""
        where = f"{place}: {reason}"
        if not self.skip_bad:
            raise CommandError(where)
        self.first_skipped = self.first_skipped or where
        self.skipped += 1

    def __iter__(self) -> Iterator[Record]:
        """Yield every record of every file."""
        for name in self.names:
            if name == "-":
                if sys.stdin is None:
                    raise CommandError("stdin is closed")
                yield from self._records(sys.stdin.buffer, name)
            else:
                with Path(name).open("rb") as file:
                    yield from self._records(file, name)

    def report_skipped(self) -> None:
        """Say on stderr how many lines ``skip_bad`` left out, and the first of them."""
        if self.skipped:
            lines = "line" if self.skipped == 1 else "lines"
            note(f"skipped {self.skipped} bad {lines}, first {self.first_skipped}")


def chunks(
    records: Iterable[Record],
    max_records: int = CHUNK_RECORDS,
    max_characters: int = CHUNK_CHARACTERS,
) -> Iterator[list[Record]]:
    """Group records, in order, into lists of at most ``max_records``.

    A list is closed too when its texts reach ``max_characters``, so memory is bounded by that
    plus one line.
    """
    chunk: list[Record] = []
    characters = 0
    for record in records:
        chunk.append(record)
        characters += len(record.text) + sum(map(len, record.more))
        if len(chunk) >= max_records or characters >= max_characters:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def add_input_options(
    parser: argparse.ArgumentParser,
    *,
    formats: Sequence[str] = FORMATS,
    fields: Mapping[str, str | None] = MappingProxyType({"text": "text"}),
) -> None:
    """Add the options that say how inputs are read.

    Args:
        parser: the command's.
        formats: what it reads.
        fields: NAME → default of each ``--NAME-field``; None where it is not read by default.
    """
    group = parser.add_argument_group("input")
    tables = set(DELIMITERS) <= set(formats)
    group.add_argument(
        "--format",
        choices=formats,
        default="auto",
        help="of every input; auto: .jsonl and .ndjson are JSONL, "
        + (".csv and .tsv are CSV with a header, " if tables else "")
        + "all else and stdin is text",
    )
    what = "JSONL field or CSV column" if tables else "JSONL field"
    for name, default in fields.items():
        group.add_argument(
            f"--{name}-field",
            default=default,
            metavar="NAME",
            help=f"{what} (default: {default or 'none is read'})",
        )
    group.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out lines that do not parse or are not UTF-8, and report their number"
        if not tables
        else "leave out records that can't be read or worked on, and report their number",
    )
    group.add_argument(
        "--batch-tokens",
        type=positive_int,
        default=BATCH_TOKENS,
        metavar="N",
        help="tokens computed at a time, which sets the memory (default: %(default)s)",
    )
    group.add_argument(
        "--chunk-lines",
        type=positive_int,
        default=CHUNK_RECORDS,
        metavar="N",
        help="lines held and sorted by length at a time (default: %(default)s)",
    )


def refuse_overwriting_an_input(output: str | None, names: Sequence[str]) -> None:
    """Raise CommandError where an output file is one of the inputs."""
    if output in (None, "-") or not Path(output).exists():
        return
    for name in names:
        if name != "-" and Path(name).samefile(output):
            raise CommandError(f"{output} is both input and output", code=2)


def batch_size(args: argparse.Namespace) -> int:
    """Return ``--batch-tokens`` as the ``batch_size`` of `SentenceEncoder.encode`."""
    from fastbert.sentence_encoder import TOKENS_PER_TEXT

    return max(1, round(args.batch_tokens / TOKENS_PER_TEXT))


def reader_from(args: argparse.Namespace, names: Sequence[str]) -> RecordReader:
    """Return the reader that the options of ``add_input_options`` ask for."""
    return RecordReader(
        names, file_format=args.format, text_field=args.text_field, skip_bad=args.skip_bad
    )
