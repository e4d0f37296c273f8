"""JSON objects from and to files, with errors that name the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fastbert.atomic import atomic_write

MAX_JSON_BYTES = 100_000_000  # a configuration or an index; more is not one


def read_json(file: str | os.PathLike[str]) -> Any:
    """Return the value that a UTF-8 JSON file holds (a byte order mark is skipped).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: More than `MAX_JSON_BYTES`, not UTF-8, not JSON, or nested too deeply.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {size} bytes, expected JSON of at most {MAX_JSON_BYTES}")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path}: JSON nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of 5,000 digits
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def read_json_object(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the object that a JSON file holds; as `read_json`, ValueError for another value."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise ValueError(f"{file}: holds a JSON {type(value).__name__}, expected an object")
    return value


def write_json(file: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, atomically, with a newline at the end.

    Raises:
        TypeError: The value is not made of what JSON knows.
        OSError: The file can't be written; an old one is still there.
    """
    text = json_text(value)
    with atomic_write(file, "w") as out:
        out.write(text)


def json_text(value: Any) -> str:
    """Return a value as indented JSON with a newline at the end; TypeError where it is none."""
    return json.dumps(value, indent=2) + "\n"
