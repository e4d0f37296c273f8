r"""Reading records: text files, JSONL files and stdin, in bounded memory.

One record is one line, and only ``\n`` ends a line: U+2028, U+0085, ``\f`` and a lone ``\r`` are
text. Blank lines are records, a last line without ``\n`` is one too, the ``\r`` of a CRLF is
dropped, and so is a byte order mark at the start of a file.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastbert.cli.common import CommandError, note, positive_int

FORMATS = ("auto", "text", "jsonl")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
# A line is held whole. Books have about 1 MB, so this stops a binary file or a device that never
# sends "\n", and no real text.
MAX_LINE_BYTES = 1 << 24
# A chunk is what is tokenised and sorted by length at once: enough lines for even batches, and
# a bound in characters so that long lines don't add up.
CHUNK_RECORDS = 4096
BATCH_TOKENS = 4096
CHUNK_CHARACTERS = 1 << 22


class Record(NamedTuple):
    """One text and where it stands: file as the user named it, line counted from 1."""

    file: str
    line: int
    text: str
    size: int  # bytes in the file, line end included


class _BadLineError(Exception):
    """A line that holds no text; the message says why, without quoting the line."""


def is_unicode(text: str) -> bool:
    """Say whether ``text`` has no lone surrogate: JSON and arguments can carry one, UTF-8 not."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise _BadLineError(f"not UTF-8: byte 0x{byte:02x} at offset {error.start}") from None


def _parse_text(raw: bytes) -> str:
    if raw.endswith(b"\n"):
        raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
    return _decode(raw)


def _parse_json(raw: bytes, field: str) -> str:
    line = _decode(raw).rstrip()
    if not line:
        raise _BadLineError("a blank line, expected a JSON object")
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _BadLineError(f"not JSON: {error.msg} at column {error.pos + 1}") from None
    except (ValueError, RecursionError):  # an integer or a nesting beyond Python's limits
        raise _BadLineError("not JSON that Python can hold") from None
    if not isinstance(value, dict):
        raise _BadLineError(f"expected a JSON object, found {type(value).__name__}")
    if field not in value:
        raise _BadLineError(f"the object has no field {field!r}")
    text = value[field]
    if not isinstance(text, str):
        raise _BadLineError(f"the field {field!r} is {type(text).__name__}, expected a string")
    if not is_unicode(text):
        raise _BadLineError(f"the field {field!r} holds half of a surrogate pair")
    return text


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line with its number; None for one that is too long."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            yield number, None
            # Only who goes on after that pays for the rest of the line, which may have no end.
            while not raw.endswith(b"\n") and (rest := file.readline(MAX_LINE_BYTES)):
                raw = rest
            continue
        yield number, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw


class RecordReader:
    """Iterate over the records of several files, in order.

    Args:
        names: files, ``-`` for stdin (at most once).
        file_format: "text", "jsonl", or "auto" for the file's suffix (stdin: text).
        text_field: the field of a JSONL object that holds the text.
        skip_bad: leave out lines that hold no text and count them in ``skipped``, instead of
            failing at the first one.

    Raises:
        CommandError: a name is given that cannot be read, or (while iterating) a bad line.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        file_format: str = "auto",
        text_field: str = "text",
        skip_bad: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.file_format = file_format
        self.text_field = text_field
        self.skip_bad = skip_bad
        self.skipped = 0
        self.first_skipped = ""
        self._check_names()

    def _check_names(self) -> None:
        if self.names.count("-") > 1:
            raise CommandError("stdin (-) can be read only once", code=2)
        for name in self.names:
            if name != "-" and stat.S_ISDIR(Path(name).stat().st_mode):
                raise CommandError(f"{name}: is a directory, expected a file")
            if name != "-" and not os.access(name, os.R_OK):
                raise CommandError(f"{name}: Permission denied")

    def total_bytes(self) -> int | None:
        """Return the size of all inputs, None where one of them is a stream."""
        total = 0
        for name in self.names:
            if name == "-" or not Path(name).is_file():
                return None
            total += Path(name).stat().st_size
        return total

    def _is_jsonl(self, name: str) -> bool:
        if self.file_format == "auto":
            return Path(name).suffix.lower() in JSONL_SUFFIXES
        return self.file_format == "jsonl"

    def _records(self, file: BinaryIO, name: str) -> Iterator[Record]:
        jsonl = self._is_jsonl(name)
        for number, raw in _lines(file):
            try:
                if raw is None:
                    raise _BadLineError(f"a line of more than {MAX_LINE_BYTES} bytes")
                text = _parse_json(raw, self.text_field) if jsonl else _parse_text(raw)
            except _BadLineError as error:
                where = f"{name}:{number}: {error}"
                if not self.skip_bad:
                    raise CommandError(where) from None
                self.first_skipped = self.first_skipped or where
                self.skipped += 1
                continue
            yield Record(name, number, text, len(raw))

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
        characters += len(record.text)
        if len(chunk) >= max_records or characters >= max_characters:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how inputs are read."""
    group = parser.add_argument_group("input")
    group.add_argument(
        "--format",
        choices=FORMATS,
        default="auto",
        help="of every input; auto: .jsonl and .ndjson are JSONL, all else and stdin is text",
    )
    group.add_argument(
        "--text-field", default="text", metavar="NAME", help="JSONL field (default: %(default)s)"
    )
    group.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out lines that do not parse or are not UTF-8, and report their number",
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


def batch_size(args: argparse.Namespace) -> int:
    """Return ``--batch-tokens`` as the ``batch_size`` of `SentenceEncoder.encode`."""
    from fastbert.sentence_encoder import TOKENS_PER_TEXT

    return max(1, round(args.batch_tokens / TOKENS_PER_TEXT))


def reader_from(args: argparse.Namespace, names: Sequence[str]) -> RecordReader:
    """Return the reader that the options of ``add_input_options`` ask for."""
    return RecordReader(
        names, file_format=args.format, text_field=args.text_field, skip_bad=args.skip_bad
    )
