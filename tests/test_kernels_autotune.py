"""The autotuner and its file, with a clock that the test holds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastbert.kernels import autotune
from fastbert.kernels.autotune import Autotuner, Machine
from fastbert.kernels.tile_file import Entry, TileFile
from fastbert.kernels.tiles import Tile

MACHINE = Machine("NVIDIA H100 80GB HBM3", "550.54.15", "3.7.1")
TABLE, WIDE, DEEP = Tile(128, 64, 32), Tile(128, 128, 32, warps=8), Tile(64, 64, 64, stages=4)
CANDIDATES = (TABLE, WIDE, DEEP)
IDENTITY = {"device": "A", "driver": "B", "triton": "C"}


class Bench:
    """Launches that take as long as the test says; a tile without a time does not compile."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = {str(tile): seconds[name] for name, tile in NAMES.items() if name in seconds}
        self.ran: list[Tile] = []
        self._last: Tile | None = None

    def run(self, tile: Tile) -> None:
        from triton.runtime.errors import OutOfResources

        self.ran.append(tile)
        self._last = tile
        if str(tile) not in self.seconds:
            raise OutOfResources(300_000, 232_448, "shared memory")

    def timer(self, call: Callable[[], object]) -> float:
        call()
        return self.seconds[str(self._last)]


NAMES = {"table": TABLE, "wide": WIDE, "deep": DEEP}


def tuner(directory: Path, bench: Bench, machine: Machine = MACHINE) -> Autotuner:
    return Autotuner(machine, directory, bench.timer)


def only_file(directory: Path) -> Path:
    (file,) = directory.glob("tiles-*.json")
    return file


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_the_fastest_wins_and_is_timed_once(tmp_path: Path, no_warning: None) -> None:
    bench = Bench(table=3.0, wide=2.0, deep=2.5)
    ours = tuner(tmp_path / "new" / "fastbert", bench)
    assert ours.choose("k", CANDIDATES, bench.run) == WIDE
    assert bench.ran == [TABLE, WIDE, DEEP]
    assert ours.choose("k", CANDIDATES, bench.run) == WIDE
    assert len(bench.ran) == 3
    assert ours.choose("another key", CANDIDATES, bench.run) == WIDE
    assert len(bench.ran) == 6


def test_another_process_of_the_machine_times_nothing(tmp_path: Path, no_warning: None) -> None:
    first, second = Bench(table=3.0, wide=2.0, deep=2.5), Bench()
    tuner(tmp_path, first).choose("k", CANDIDATES, first.run)
    assert tuner(tmp_path, second).choose("k", CANDIDATES, second.run) == WIDE
    assert second.ran == []
    data = json.loads(only_file(tmp_path).read_text())
    assert data == {
        "format": 1,
        "device": MACHINE.device,
        "driver": "550.54.15",
        "triton": "3.7.1",
        "tiles": {"k": {"m": 128, "n": 128, "k": 32, "warps": 8, "stages": 2, "seconds": 2.0}},
    }


@pytest.mark.parametrize(
    "other",
    [
        Machine("NVIDIA A100-SXM4-40GB", MACHINE.driver, MACHINE.triton),
        Machine(MACHINE.device, "560.1", MACHINE.triton),
        Machine(MACHINE.device, MACHINE.driver, "3.8.0"),
    ],
)
def test_another_device_driver_or_triton_times_anew(tmp_path: Path, other: Machine) -> None:
    first, second = Bench(table=3.0, wide=2.0, deep=2.5), Bench(table=1.0, wide=2.0, deep=0.5)
    tuner(tmp_path, first).choose("k", CANDIDATES, first.run)
    assert tuner(tmp_path, second, other).choose("k", CANDIDATES, second.run) == DEEP
    assert len(list(tmp_path.glob("tiles-*.json"))) == 2


def test_noise_does_not_displace_the_table(tmp_path: Path) -> None:
    bench = Bench(table=1.0, wide=0.98, deep=1.2)
    assert tuner(tmp_path, bench).choose("k", CANDIDATES, bench.run) == TABLE
    bench = Bench(table=1.0, wide=0.96, deep=1.2)
    assert tuner(tmp_path, bench).choose("l", CANDIDATES, bench.run) == WIDE


def test_tiles_that_do_not_fit_the_device_never_win(tmp_path: Path) -> None:
    bench = Bench(table=3.0, deep=4.0)
    assert tuner(tmp_path, bench).choose("k", CANDIDATES, bench.run) == TABLE
    bench = Bench(deep=4.0)  # not even the table's
    assert tuner(tmp_path, bench).choose("l", CANDIDATES, bench.run) == DEEP


def test_when_none_fits_the_table_serves_and_nothing_is_kept(tmp_path: Path) -> None:
    bench = Bench()
    assert tuner(tmp_path, bench).choose("k", CANDIDATES, bench.run) == TABLE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nonsense", [math.nan, 0.0, -1.0, math.inf])
def test_a_time_that_is_none_never_wins(tmp_path: Path, nonsense: float) -> None:
    bench = Bench(table=3.0, wide=nonsense, deep=5.0)
    assert tuner(tmp_path, bench).choose("k", CANDIDATES, bench.run) == TABLE


def test_other_errors_of_a_launch_come_through(tmp_path: Path) -> None:
    def run(tile: Tile) -> None:
        raise ValueError("a bug, not a tile that is too large")

    with pytest.raises(ValueError, match="a bug"):
        tuner(tmp_path, Bench()).choose("k", CANDIDATES, run)


def test_without_leave_nothing_is_timed_and_nothing_is_remembered(tmp_path: Path) -> None:
    bench = Bench(table=3.0, wide=2.0, deep=2.5)
    ours = tuner(tmp_path, bench)
    assert ours.choose("k", CANDIDATES, bench.run, may_time=False) == TABLE
    assert bench.ran == []
    assert ours.choose("k", CANDIDATES, bench.run) == WIDE
    assert ours.choose("k", CANDIDATES, bench.run, may_time=False) == WIDE  # known by now


def test_a_remembered_tile_that_is_no_candidate_is_not_trusted(tmp_path: Path) -> None:
    first, second = Bench(table=3.0, wide=2.0, deep=2.5), Bench(table=3.0, deep=2.5)
    tuner(tmp_path, first).choose("k", CANDIDATES, first.run)
    assert tuner(tmp_path, second).choose("k", (TABLE, DEEP), second.run) == DEEP
    assert second.ran == [TABLE, DEEP]


BROKEN = {
    "empty": "",
    "cut": '{"format": 1, "tiles": {"k": {"m"',
    "nested": "[" * 100_000,
    "list": "[]",
    "no tiles": json.dumps({"format": 1, **IDENTITY}),
    "binary": "\x00\x01",
    "number": "7",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_ignored_with_one_warning_and_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tiles-x.json"
    path.write_text(text)
    file = TileFile(path, IDENTITY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert file.read() == {}
        file.add("k", Entry(TABLE, 1.0))
        assert file.read() == {"k": Entry(TABLE, 1.0)}
    assert [str(path) in str(w.message) for w in caught] == [True]


FOREIGN = {
    "format": {"format": 2, **IDENTITY, "tiles": {}},
    "device": {"format": 1, **IDENTITY, "device": "Z", "tiles": {}},
    "other": {"somebody": "else's"},
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_ignored_with_one_warning_and_left_alone(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    path = tmp_path / "tiles-x.json"
    path.write_text(json.dumps(data))
    file = TileFile(path, IDENTITY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert file.read() == {}
        file.add("k", Entry(TABLE, 1.0))
    assert len(caught) == 1
    assert json.loads(path.read_text()) == data


BAD_ENTRY: dict[str, Any] = {
    "no dict": 3,
    "size missing": {"m": 1, "n": 1, "k": 1, "warps": 4, "seconds": 1.0},
    "more": {"m": 1, "n": 1, "k": 1, "warps": 4, "stages": 2, "seconds": 1.0, "x": 0},
    "zero": {"m": 0, "n": 1, "k": 1, "warps": 4, "stages": 2, "seconds": 1.0},
    "bool": {"m": True, "n": 1, "k": 1, "warps": 4, "stages": 2, "seconds": 1.0},
    "text": {"m": "1", "n": 1, "k": 1, "warps": 4, "stages": 2, "seconds": 1.0},
    "no time": {"m": 1, "n": 1, "k": 1, "warps": 4, "stages": 2, "seconds": None},
}


@pytest.mark.parametrize("bad", BAD_ENTRY.values(), ids=BAD_ENTRY)
def test_a_bad_entry_costs_only_itself(tmp_path: Path, bad: Any) -> None:
    path = tmp_path / "tiles-x.json"
    good = {"m": 128, "n": 64, "k": 32, "warps": 4, "stages": 2, "seconds": 1.5}
    path.write_text(json.dumps({"format": 1, **IDENTITY, "tiles": {"bad": bad, "good": good}}))
    with pytest.warns(UserWarning, match="tiles that are none"):
        assert TileFile(path, IDENTITY).read() == {"good": Entry(TABLE, 1.5)}


def test_a_place_that_cannot_be_written_costs_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    bench = Bench(table=3.0, wide=2.0, deep=2.5)
    ours = tuner(tmp_path / "file", bench)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ours.choose("k", CANDIDATES, bench.run) == WIDE
        assert ours.choose("l", CANDIDATES, bench.run) == WIDE
    assert len(caught) == 1
    assert ours.choose("k", CANDIDATES, bench.run) == WIDE
    assert len(bench.ran) == 6


WRITER = """
import sys
from pathlib import Path
from fastbert.kernels.tile_file import Entry, TileFile
from fastbert.kernels.tiles import Tile
file = TileFile(Path(sys.argv[1]), {"device": "A", "driver": "B", "triton": "C"})
for number in range(40):
    file.add(f"{sys.argv[2]} {number}", Entry(Tile(16, 16), 1.0))
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tiles-x.json"
    writers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, str(path), name])
        for name in ("a", "b", "c")
    ]
    reader = TileFile(path, IDENTITY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a reader never sees half a file
        while any(writer.poll() is None for writer in writers):
            reader.read()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert set(reader.read()) == {f"{name} {n}" for name in "abc" for n in range(40)}


@pytest.mark.parametrize(("value", "on"), [("", False), ("0", False), ("1", True)])
def test_the_variable_decides(value: str, on: bool, no_warning: None) -> None:
    assert autotune.enabled({autotune.VARIABLE: value}) is on
    assert not autotune.enabled({})


def test_another_value_is_said_once_and_means_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune._Process, "warned", set())
    with pytest.warns(UserWarning, match="'yes'"):
        assert not autotune.enabled({autotune.VARIABLE: "yes"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not autotune.enabled({autotune.VARIABLE: "yes"})


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = autotune.cache_directory({"XDG_CACHE_HOME": str(tmp_path)})
    assert found == tmp_path / "fastbert"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert autotune.cache_directory(ignored) == tmp_path / ".cache" / "fastbert"


def test_a_file_name_holds_nothing_strange() -> None:
    assert MACHINE.file_name == "tiles-NVIDIA-H100-80GB-HBM3-550.54.15-3.7.1.json"
    strange = Machine("../../etc/x (a; b)", "runtime 12.8", "3.7.1+git")
    assert strange.file_name == "tiles-..-..-etc-x-a-b-runtime-12.8-3.7.1-git.json"


def test_keys_are_buckets_of_rows() -> None:
    def of(rows: int, dtype: torch.dtype = torch.bfloat16) -> str:
        return autotune.key("linear", dtype, rows, (768, 3072))

    assert of(1024) == "linear bfloat16 1024x768x3072"
    assert of(513) == of(1000) == of(1024) != of(1025)
    assert of(1024, torch.float16) != of(1024)
    assert autotune.key("norm", torch.float32, 1, ()) == "norm float32 1"
    assert autotune.key("norm", torch.float32, 0, ()) == "norm float32 1"


class Refining:
    """`refine` as a launcher calls it, on a device that isn't there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.bench = Bench(table=3.0, wide=2.0, deep=2.5)
        ours = tuner(directory, self.bench)
        self.capturing = False
        monkeypatch.setattr(autotune, "_tuner", lambda index: ours)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setenv(autotune.VARIABLE, "1")
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def __call__(self, rows: int = 100, candidates: tuple[Tile, ...] = CANDIDATES) -> Tile:
        return autotune.refine(
            "linear",
            torch.float16,
            rows,
            (768,),
            candidates,
            self.bench.run,
            torch.device("cuda", 0),
        )


@pytest.fixture
def refining(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Refining:
    return Refining(monkeypatch, tmp_path)


def test_the_first_use_of_a_bucket_is_timed(refining: Refining) -> None:
    assert refining(100) == WIDE
    assert refining(128) == WIDE
    assert len(refining.bench.ran) == 3
    refining(129)
    assert len(refining.bench.ran) == 6


@pytest.mark.parametrize("value", ["0", ""])
def test_nothing_is_timed_unless_asked(
    refining: Refining, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(autotune.VARIABLE, value)
    assert refining() == TABLE
    assert refining.bench.ran == []


def test_nothing_is_timed_under_the_interpreter(
    refining: Refining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert refining() == TABLE
    assert refining.bench.ran == []


def test_nothing_is_timed_inside_a_capture_but_what_is_known_serves(refining: Refining) -> None:
    refining.capturing = True
    assert refining() == TABLE
    assert refining.bench.ran == []
    refining.capturing = False
    assert refining() == WIDE
    refining.capturing = True
    assert refining() == WIDE


def test_fixed_tiles_are_the_tables_even_where_another_won(
    refining: Refining, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastbert.ops.determinism import deterministic, is_deterministic

    monkeypatch.setattr(autotune._Process, "fixed", autotune._Process.fixed)  # set back afterwards
    assert refining() == WIDE
    autotune.follow(is_deterministic)
    assert not autotune.fixed()
    with deterministic():
        assert autotune.fixed()
        assert refining() == TABLE
        assert refining(4000) == TABLE
    assert refining() == WIDE
    assert len(refining.bench.ran) == 3


def test_one_candidate_needs_no_clock(refining: Refining) -> None:
    assert refining(candidates=(DEEP,)) == DEEP
    assert refining.bench.ran == []


def test_importing_times_nothing_and_touches_no_directory(tmp_path: Path) -> None:
    code = "import fastbert.kernels.autotune, sys; sys.exit('triton' in sys.modules)"
    environment = {
        "PATH": "/usr/bin",
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        autotune.VARIABLE: "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_driver_is_the_systems_or_the_runtimes(tmp_path: Path) -> None:
    assert autotune.driver(tmp_path).startswith("runtime ")
    for text in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build",
    ):
        (tmp_path / "version").write_text(text)
        assert autotune.driver(tmp_path) == "550.54.15"
