"""From the bytes of a file to rows: where a row begins, how long it is, and its texts."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

Texts = tuple[str, ...]


class BadLineError(Exception):
    """A line that holds no text; the message says why, without quoting the line."""


class Row(NamedTuple):
    """What stands at a line: texts, or why there are none."""

    line: int  # counted from 1
    size: int  # bytes in the file, line end included
    texts: Texts | BadLineError


def is_unicode(text: str) -> bool:
    """Say whether ``text`` has no lone surrogate: JSON and arguments can carry one, UTF-8 not."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def decode(raw: bytes) -> str:
    """Return the text of UTF-8 bytes, or raise BadLineError with the place of the bad one."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise BadLineError(f"not UTF-8: byte 0x{byte:02x} at offset {error.start}") from None


def parse_text(raw: bytes, count: int = 1) -> Texts:
    """Return the ``count`` texts of a line, between tabs if there are several.

    A blank line is as many empty texts, so that it keeps its place.
    """
    if raw.endswith(b"\n"):
        raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
    line = decode(raw)
    if count == 1:
        return (line,)
    if not line.strip():
        return ("",) * count
    texts = tuple(line.split("\t"))
    if len(texts) != count:
        raise BadLineError(f"expected {count} texts with a tab between them, found {len(texts)}")
    return texts


def parse_json(raw: bytes, fields: Sequence[str]) -> Texts:
    """Return the texts that a line's JSON object has in ``fields``."""
    line = decode(raw).rstrip()
    if not line:
        raise BadLineError("a blank line, expected a JSON object")
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadLineError(f"not JSON: {error.msg} at column {error.pos + 1}") from None
    except (ValueError, RecursionError):  # an integer or a nesting beyond Python's limits
        raise BadLineError("not JSON that Python can hold") from None
    if not isinstance(value, dict):
        raise BadLineError(f"expected a JSON object, found {type(value).__name__}")
    return tuple(_field(value, field) for field in fields)


def _field(value: dict[str, Any], field: str) -> str:
    if field not in value:
        raise BadLineError(f"the object has no field {field!r}")
    text = value[field]
    if not isinstance(text, str):
        raise BadLineError(f"the field {field!r} is {type(text).__name__}, expected a string")
    if not is_unicode(text):
        raise BadLineError(f"the field {field!r} holds half of a surrogate pair")
    return text


def line_rows(file: BinaryIO, parse: Callable[[bytes], Texts], limit: int) -> Iterator[Row]:
    """Yield a row a line; one of more than ``limit`` bytes is a bad line."""
    for number, raw in _lines(file, limit):
        texts: Texts | BadLineError
        if raw is None:
            texts = BadLineError(f"a line of more than {limit} bytes")
        else:
            try:
                texts = parse(raw)
            except BadLineError as error:
                texts = error
        yield Row(number, 0 if raw is None else len(raw), texts)


def _lines(file: BinaryIO, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line with its number; None for one that is too long."""
    number = 0
    while raw := file.readline(limit + 1):
        number += 1
        if len(raw) > limit:
            yield number, None
            # Only who goes on after that pays for the rest of the line, which may have no end.
            while not raw.endswith(b"\n") and (rest := file.readline(limit)):
                raw = rest
            continue
        yield number, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw


def document_row(file: BinaryIO, limit: int) -> Row:
    """Return a whole file as one text, its line ends as they are."""
    raw = file.read(limit + 1)
    if len(raw) > limit:
        return Row(1, len(raw), BadLineError(f"a document of more than {limit} bytes"))
    try:
        return Row(1, len(raw), (decode(raw.removeprefix(codecs.BOM_UTF8)),))
    except BadLineError as error:
        return Row(1, len(raw), error)
