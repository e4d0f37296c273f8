"""Tiles refined on the device they run on: timed once, remembered in a file, never a surprise.

A launcher asks `refine` with the table's tile first and the others that could serve. It is given
the table's tile wherever nothing may be timed: by default, under the interpreter, when tiles are
fixed (`follow`), and, unless the answer is already known, inside the capture of a CUDA graph.

The environment variable ``FASTBERT_AUTOTUNE`` decides: ``0`` (or unset) never; ``1`` on the first
use of a bucket of shapes. Unset means never, because a first use would stall for seconds, and
because the tile decides the order of a sum: with a table, two machines of one kind round alike.
Answers lie in ``$XDG_CACHE_HOME/fastbert`` (``~/.cache/fastbert``), a file a device, driver and
Triton version. Unmeasured on GPU.
"""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from fastbert.kernels.tile_file import Entry, TileFile
from fastbert.kernels.tiles import Tile, interpreting

VARIABLE = "FASTBERT_AUTOTUNE"
MARGIN = 0.03
"""By how much of its time another tile must beat the table's: below that, it is noise."""

Timer = Callable[[Callable[[], object]], float]
"""Seconds that one call takes."""


@dataclass(frozen=True)
class Machine:
    """What a timing is valid for.

    Attributes:
        device: the GPU's name.
        driver: its version, or of CUDA's runtime where the system doesn't say.
        triton: version of Triton, whose code the tiles are.
    """

    device: str
    driver: str
    triton: str

    @property
    def file_name(self) -> str:
        """``tiles-….json``, with nothing but letters, digits, dots and dashes."""
        words = "-".join((self.device, self.driver, self.triton))
        return f"tiles-{re.sub(r'[^A-Za-z0-9.]+', '-', words).strip('-')}.json"


class Autotuner:
    """Chooses among tiles by time, once a key, for all processes of a machine.

    Args:
        machine: what the timings are valid for.
        directory: where they are kept; it is made when there is something to keep.
        timer: how a call is timed.
    """

    def __init__(self, machine: Machine, directory: Path, timer: Timer) -> None:
        identity = {"device": machine.device, "driver": machine.driver, "triton": machine.triton}
        self._file = TileFile(directory / machine.file_name, identity)
        self._timer = timer
        self._known: dict[str, Tile] | None = None
        self._lock = threading.Lock()

    def choose(
        self,
        key: str,
        candidates: Sequence[Tile],
        run: Callable[[Tile], object],
        may_time: bool = True,
    ) -> Tile:
        """The fastest candidate: as remembered, else as timed now.

        Args:
            key: op, dtype and bucket of shapes.
            candidates: the table's tile, then the others; a remembered tile that is not among them
                is not trusted.
            run: launches the kernel with that tile; it may be called many times.
            may_time: False takes what is remembered or the table's tile.
        """
        with self._lock:
            if self._known is None:
                self._known = {name: entry.tile for name, entry in self._file.read().items()}
            found = self._known.get(key)
            if found is not None and found in candidates:
                return found
            if not may_time:
                return candidates[0]
            entry = self._fastest(candidates, run)
            self._known[key] = entry.tile
            if math.isfinite(entry.seconds):  # else no candidate ran: nothing to pass on
                self._file.add(key, entry)
            return entry.tile

    def _fastest(self, candidates: Sequence[Tile], run: Callable[[Tile], object]) -> Entry:
        seconds = [self._time(tile, run) for tile in candidates]
        best = min(range(len(candidates)), key=seconds.__getitem__)
        if not seconds[best] < seconds[0] * (1.0 - MARGIN):
            best = 0
        return Entry(candidates[best], seconds[best])

    def _time(self, tile: Tile, run: Callable[[Tile], object]) -> float:
        """Seconds of one launch; inf for a tile that this device can't take."""
        from triton.errors import TritonError

        try:
            seconds = self._timer(lambda: run(tile))
        except (TritonError, torch.OutOfMemoryError):
            return math.inf
        return seconds if seconds > 0 else math.inf  # NaN and nonsense never win


class _Process:
    fixed: Callable[[], bool] = staticmethod(lambda: False)
    warned: set[str] = set()  # noqa: RUF012  # of the process


def follow(fixed: Callable[[], bool]) -> None:
    """Let the caller of the kernels say when tiles are fixed: asked at each launch."""
    _Process.fixed = staticmethod(fixed)


def fixed() -> bool:
    """Whether one tile must serve every shape, so that a row's bits depend on nothing else."""
    return _Process.fixed()


def enabled(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``FASTBERT_AUTOTUNE`` asks for timings; another value than 0 or 1 warns, once."""
    value = environment.get(VARIABLE, "")
    if value not in ("", "0", "1") and value not in _Process.warned:
        _Process.warned.add(value)
        warnings.warn(f"{VARIABLE} must be 0 or 1, not {value!r}: nothing is tuned", stacklevel=2)
    return value == "1"


def refine(
    op: str,
    dtype: torch.dtype,
    rows: int,
    widths: tuple[int, ...],
    candidates: Sequence[Tile],
    run: Callable[[Tile], object],
    device: torch.device,
) -> Tile:
    """The tile for a launch.

    Args:
        op: name of the kernel.
        dtype: of its data.
        rows: the size that changes from batch to batch; its bucket is the next power of two.
        widths: sizes that a model fixes.
        candidates: at least one; the first is the table's, which serves when nothing may be timed.
        run: launches the kernel with a tile on the caller's own tensors, again and again; so it
            must write nothing that it reads.
        device: of the tensors.
    """
    if len(candidates) == 1 or fixed() or interpreting() or not enabled():
        return candidates[0]
    index = torch.cuda.current_device() if device.index is None else device.index
    capturing = torch.cuda.is_current_stream_capturing()
    return _tuner(index).choose(key(op, dtype, rows, widths), candidates, run, not capturing)


def key(op: str, dtype: torch.dtype, rows: int, widths: tuple[int, ...]) -> str:
    """Op, dtype and bucket of shapes, e.g. ``linear bfloat16 1024x768x3072``."""
    bucket = 1 << max(0, rows - 1).bit_length()
    return f"{op} {str(dtype).removeprefix('torch.')} {'x'.join(map(str, (bucket, *widths)))}"


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where timings are kept: ``fastbert`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    base = environment.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "fastbert"


def do_bench(call: Callable[[], object]) -> float:
    """Median seconds of a call on the device, the second-level cache emptied between calls."""
    from triton import testing

    return 1e-3 * float(testing.do_bench(call, warmup=5, rep=25, return_mode="median"))


@cache
def _tuner(index: int) -> Autotuner:
    import triton

    name = torch.cuda.get_device_properties(index).name
    return Autotuner(Machine(name, driver(), triton.__version__), cache_directory(), do_bench)


def driver(root: Path = Path("/proc/driver/nvidia")) -> str:
    """The kernel driver's version; torch's CUDA or ROCm version where the system does not say."""
    try:
        text = (root / "version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else f"runtime {torch.version.cuda or torch.version.hip}"
