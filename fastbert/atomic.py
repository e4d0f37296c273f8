"""Files that appear whole or not at all: written beside their target, fsynced, renamed over it."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Literal, overload

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_DIRECTORY_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)


@overload
def atomic_write(path: str | os.PathLike[str]) -> AbstractContextManager[IO[bytes]]: ...
@overload
def atomic_write(
    path: str | os.PathLike[str], mode: Literal["wb"]
) -> AbstractContextManager[IO[bytes]]: ...
@overload
def atomic_write(
    path: str | os.PathLike[str], mode: Literal["w"]
) -> AbstractContextManager[IO[str]]: ...
@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    r"""Open a file that replaces `path` when the block ends well, and leaves no trace otherwise.

    A reader of `path` sees the old bytes or all of the new ones, after a crash too. A symbolic link
    is itself replaced, its target is left alone (so a hub cache's blobs stay what they were). A
    device or a pipe (`/dev/stdout`) has nothing to keep and is written straight.

    Args:
        path: The target. Its directory must exist. An existing file's permissions are kept.
        mode: `"wb"` for bytes, `"w"` for UTF-8 text in which `\n` stays `\n`.

    Raises:
        ValueError: Another mode.
        FileNotFoundError: The directory does not exist.
        IsADirectoryError: `path` is a directory.
        OSError: The file can't be written, a full disk included; the old file is still there.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode is {mode!r}, expected 'w' or 'wb'")
    target = Path(path)
    old_mode = _mode_of(target)
    if _is_written_straight(target, old_mode):
        with _open(os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), mode) as file:
            yield file
        return
    beside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        # 0o666 lets the umask decide, which a mkstemp file (0o600) would not.
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with _open(descriptor, mode) as file:
            if old_mode is not None:
                os.fchmod(descriptor, stat.S_IMODE(old_mode))
            yield file
            file.flush()
            os.fsync(descriptor)
        beside.replace(target)
    except OSError as error:
        if error.filename == str(beside) or (error.filename is None and error.errno in _FULL):
            error.filename = str(target)
        raise
    finally:
        beside.unlink(missing_ok=True)  # gone already when the rename succeeded
    _sync_directory(target.parent)


def _mode_of(target: Path) -> int | None:
    """Return `st_mode` of what stands at `target`, None where nothing does."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, "the directory to write into does not exist", str(target.parent)
            ) from None
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file to write, got a directory", target)
    return mode


def _is_written_straight(target: Path, mode: int | None) -> bool:
    """Say whether `target` is a device, a pipe or another name of an open file.

    `/dev/stdout` is one even where the shell sent it to a regular file, and a rename would take the
    name away from the whole machine.
    """
    place = target.parent.resolve()
    if place == Path("/dev") or place.is_relative_to("/proc"):
        return True
    return mode is not None and not stat.S_ISREG(mode)


def _open(descriptor: int, mode: str) -> IO[Any]:
    if mode == "wb":
        return os.fdopen(descriptor, "wb")
    return os.fdopen(descriptor, "w", encoding="utf-8", newline="\n")


def _sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` durable, where its file system knows how to."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_DIRECTORY_FSYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_FSYNC:
            raise
    finally:
        os.close(descriptor)
