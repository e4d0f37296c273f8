"""Writing vectors and lines: ``.npy`` and ``.jsonl`` files that appear whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from fastbert.cli.common import CommandError

if TYPE_CHECKING:
    from fastbert.cli.inputs import Record

FloatRows = Any  # a NumPy array of shape (N, C); numpy is not imported to parse arguments

NPY_HEADER_BYTES = 128


def to_bytes(text: str) -> bytes:
    r"""Encode a line for output as UTF-8, whatever the locale says.

    A lone surrogate (JSON can carry one) becomes ``\udXXX``, which inside a JSON string is again
    that surrogate.
    """
    return text.encode("utf-8", "backslashreplace")


def stdout_bytes() -> IO[bytes]:
    """Return stdout as a binary stream.

    Raises:
        CommandError: stdout is closed.
    """
    if sys.stdout is None:
        raise CommandError("stdout is closed")
    sys.stdout.flush()
    return sys.stdout.buffer


@contextmanager
def open_output(path: str | None) -> Iterator[IO[bytes]]:
    """Open the binary file that takes the output; ``None`` and ``-`` are stdout.

    A file is written beside its name and renamed at the end: on any error, a full disk or an
    interrupt, the old file stays and nothing new is left.
    """
    if path in (None, "-"):
        stream = stdout_bytes()
        yield stream
        stream.flush()
        return
    from fastbert.atomic import atomic_write

    with atomic_write(path, "wb") as file:
        yield file


def npy_header(rows: int, columns: int) -> bytes:
    """Return the header of a float32 ``.npy`` file of shape (rows, columns).

    Its length is the same for every shape (NumPy's format 1.0, padded with spaces), so that it
    can be written again once the number of rows is known.
    """
    shape = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    prefix = b"\x93NUMPY\x01\x00"
    size = NPY_HEADER_BYTES - len(prefix) - 2
    return prefix + size.to_bytes(2, "little") + shape.ljust(size - 1).encode("ascii") + b"\n"


def _check_finite(records: Sequence[Record], vectors: FloatRows) -> None:
    import numpy as np

    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        record = records[int(bad[0])]
        raise CommandError(
            f"{record.file}:{record.line}: the vector is not finite (the model overflows in this "
            "precision, or its weights hold NaN)"
        )


class NpyWriter:
    """Stream rows into a ``.npy`` file: float32, little-endian, C order, shape (N, C)."""

    def __init__(self, file: IO[bytes], columns: int) -> None:
        if not file.seekable():  # its header holds the number of rows, known at the end
            raise CommandError("a .npy output must be a file, not a pipe; write .jsonl instead")
        self._file = file
        self._columns = columns
        self._rows = 0
        file.write(npy_header(0, columns))

    def write(self, records: Sequence[Record], vectors: FloatRows) -> None:
        """Append ``vectors`` (N, C), one row a record; they must be finite."""
        _check_finite(records, vectors)
        self._file.write(vectors.astype("<f4", order="C", copy=False).tobytes())
        self._rows += len(records)

    def finish(self) -> None:
        """Write the header again, now with the number of rows."""
        self._file.seek(0)
        self._file.write(npy_header(self._rows, self._columns))


class JsonlWriter:
    """Stream rows as JSON lines: ``{"file": …, "line": …, "embedding": […]}``.

    Numbers have nine significant digits, which give back the same float32.
    """

    def __init__(self, file: IO[bytes], columns: int) -> None:
        self._file = file
        self._numbers = "[" + ", ".join(["%.9g"] * columns) + "]"

    def write(self, records: Sequence[Record], vectors: FloatRows) -> None:
        """Append one line a record; ``vectors`` (N, C) must be finite."""
        _check_finite(records, vectors)
        for record, row in zip(records, vectors.tolist(), strict=True):
            name = json.dumps(record.file, ensure_ascii=False)
            numbers = self._numbers % tuple(row)
            line = f'{{"file": {name}, "line": {record.line}, "embedding": {numbers}}}\n'
            self._file.write(to_bytes(line))

    def finish(self) -> None:
        """Nothing is left to write."""
