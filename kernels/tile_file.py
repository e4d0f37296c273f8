"""The file in which an autotuner keeps its answers: JSON, replaced whole, shared by processes."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastbert.atomic import atomic_write
from fastbert.kernels.tiles import Tile

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """The tile that won, and its seconds."""

    tile: Tile
    seconds: float


class TileFile:
    """Key → `Entry` in a JSON file.

    What is no such file (broken, of another format or machine, unreadable) is ignored with one
    warning. A broken one is replaced when there is something to write, a foreign one left alone.

    Args:
        path: its place; directories above it are made when it is written.
        identity: what its answers are valid for.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path = path
        self._identity = dict(identity)
        self._warned = False
        self._foreign = False

    def read(self) -> dict[str, Entry]:
        """What is kept; nothing where there is no such file."""
        try:
            text = self.path.read_text(encoding="utf-8")
            data = json.loads(text)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self._warn(f"{self.path} can't be read ({type(error).__name__}): ignored")
            return {}
        self._foreign = isinstance(data, dict) and self._header(data) != self._header(None)
        if self._foreign:
            self._warn(f"{self.path} is of another format or machine: ignored")
            return {}
        tiles = data.get("tiles") if isinstance(data, dict) else None
        if not isinstance(tiles, dict):
            self._warn(f"{self.path} holds no tiles: ignored")
            return {}
        entries = {name: _entry(value) for name, value in tiles.items()}
        if None in entries.values():
            self._warn(f"{self.path} holds tiles that are none: those are ignored")
        return {name: entry for name, entry in entries.items() if entry is not None}

    def add(self, key: str, entry: Entry) -> None:
        """Keep one more, beside whatever other processes have kept meanwhile."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path.with_suffix(".lock")):
                entries = {**self.read(), key: entry}
                if self._foreign:
                    return
                data = self._header(None) | {"tiles": _plain(entries)}
                with atomic_write(self.path, "w") as file:
                    file.write(json.dumps(data, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            self._warn(f"{self.path} can't be written ({error.strerror}): kept in memory only")

    def _header(self, data: dict[str, Any] | None) -> dict[str, Any]:
        """Format and machine: those of `data`, or those that are ours."""
        ours = {"format": FORMAT, **self._identity}
        return ours if data is None else {name: data.get(name) for name in ours}

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, stacklevel=4)


def _plain(entries: Mapping[str, Entry]) -> dict[str, Any]:
    return {name: {**asdict(e.tile), "seconds": e.seconds} for name, e in entries.items()}


def _entry(value: Any) -> Entry | None:
    """What JSON holds as an entry, None if it is none."""
    names = [field.name for field in fields(Tile)]
    if not isinstance(value, dict) or set(value) != {*names, "seconds"}:
        return None
    sizes = [value[name] for name in names]
    if not all(type(size) is int and size > 0 for size in sizes):
        return None
    seconds = value["seconds"]
    return Entry(Tile(*sizes), float(seconds)) if isinstance(seconds, int | float) else None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Only one process at a time; where locks are unknown, the last one to write wins."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # closing it, or dying, gives it back
        yield
    finally:
        os.close(descriptor)
