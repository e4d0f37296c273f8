from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastbert.atomic import _is_written_straight, atomic_write
from fastbert.json_file import read_json, read_json_object, write_json


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write_then_raise(path: Path, error: type[BaseException]) -> None:
    with atomic_write(path) as file:
        file.write(b"new")
        raise error


@contextmanager
def small_disk() -> Iterator[int]:
    """No file of this process may pass 4096 bytes: the kernel itself refuses the write.

    Not a fixture: pytest's own output, sent to a file, would meet the limit too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield 4096
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_bytes_and_text(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as file:
        file.write(b"\x00\xff")
        assert not (tmp_path / "a").exists()  # nothing to see before the end
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    with atomic_write(tmp_path / "b", "w") as text:
        text.write("é\nx\r\n\u2028")
    assert (tmp_path / "b").read_bytes() == "é\nx\r\n\u2028".encode()
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_error_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error):
        write_then_raise(tmp_path / "a", error)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with (
        small_disk() as size,
        pytest.raises(OSError, match="a'") as caught,
        atomic_write(tmp_path / "a") as file,
    ):
        file.write(bytes(size * 4))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_disk_that_fills_only_at_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "a") as f:
        f.write(b"new")
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_file_and_directory_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        there = (tmp_path / "a").exists()
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), there))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert synced == [(False, False), (True, True)]  # the bytes before the rename, the name after


def test_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    code = """
        import os, sys
        from fastbert.atomic import _is_written_straight, atomic_write
        with atomic_write(sys.argv[1]) as file:
            file.write(b"new" * 100_000)
            os._exit(9)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")], check=False
    )
    assert done.returncode == 9
    assert (tmp_path / "a").read_bytes() == b"old"


def test_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "new") as file:
            file.write(b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o604)
    with atomic_write(tmp_path / "new") as file:
        file.write(b"y")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604


def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"blob")
    (tmp_path / "link").symlink_to("blob")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "blob").read_bytes() == b"blob"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"


def test_devices_and_pipes_are_written_straight(tmp_path: Path) -> None:
    # Through links of our own: a fault would replace the link, never the machine's device.
    for device in ("null", "full"):
        (tmp_path / device).symlink_to(f"/dev/{device}")
    with atomic_write(tmp_path / "null") as file:
        file.write(b"gone")
    with pytest.raises(OSError, match="No space left"), atomic_write(tmp_path / "full") as file:
        file.write(b"x")
    assert all((tmp_path / device).is_symlink() for device in ("null", "full"))
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(tmp_path / "pipe", "w") as text:
        text.write("through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_names_of_open_files_are_written_straight(tmp_path: Path) -> None:
    with (tmp_path / "redirected").open("wb", buffering=0) as file:
        file.write(b"before, ")
        with atomic_write(f"/dev/fd/{file.fileno()}") as out:
            out.write(b"through")
        assert os.fstat(file.fileno()).st_nlink == 1  # the same file still, not a new one
    assert (tmp_path / "redirected").read_bytes() == b"before, through"
    # Sent to a file, these look like one: their names are the machine's all the same.
    for name in ("/dev/stdout", "/dev/stderr", "/proc/self/fd/1"):
        assert _is_written_straight(Path(name), stat.S_IFREG)
    assert not _is_written_straight(tmp_path / "a", stat.S_IFREG)
    assert not _is_written_straight(Path("/dev/shm/a"), None)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), atomic_write(tmp_path / "absent" / "a"):
        pass
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path):
        pass
    with pytest.raises(ValueError, match="'a'"), atomic_write(tmp_path / "x", "a"):  # type: ignore[call-overload]
        pass
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"), atomic_write(tmp_path / "file" / "a"):
        pass
    assert names(tmp_path) == ["file"]


def test_names_near_the_limit(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("n" * 255)) as file:
        file.write(b"x")
    with pytest.raises(OSError, match="nnn"), atomic_write(tmp_path / ("n" * 256)):
        pass


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "é\ud800"], "b": {}}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    assert (tmp_path / "v.json").read_bytes().endswith(b"}\n")
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_object(tmp_path / "bom.json") == {"a": 1}
    with pytest.raises(TypeError):
        write_json(tmp_path / "v.json", {"a": {1, 2}})
    assert read_json(tmp_path / "v.json") == value


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 200_000, "nested"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "expected an object"),
        (b"3", "expected an object"),
    ],
)
def test_bad_json_names_the_file(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        read_json_object(tmp_path / "v.json")
    assert str(tmp_path / "v.json") in str(caught.value)


def test_absent_or_huge_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"v\.json"):
        read_json(tmp_path / "v.json")
    with (tmp_path / "v.json").open("wb") as file:
        file.truncate(10**10)  # sparse: 10 GB that take no space
    with pytest.raises(ValueError, match="10000000000 bytes"):
        read_json(tmp_path / "v.json")
