"""Where and with what a measurement was made."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import linear

from fastbert.cli.machine import this_machine
from fastbert.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "tokenizers", "transformers", "sentence-transformers")
GEMM_SHAPE = (2048, 4096, 1024)
"""T, N, K of the matrix product that stands for what torch's GEMM can reach here."""


def facts() -> dict[str, Any]:
    """Processor, threads, versions, load, date and commit, as plain values.

    Call it before measuring: the load is then other processes' load.
    """
    machine = this_machine()
    return {
        **asdict(machine),
        "usable_cpus": machine.usable_cpus,
        "cpu_model_numbers": _cpu_model_numbers(),
        "threads": torch.get_num_threads(),
        "load_average_1min": os.getloadavg()[0],
        "versions": {
            "fastbert": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def gemm_flops(
    dtype: torch.dtype, rounds: int = 15, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of torch's own matrix product at `GEMM_SHAPE`, the median of some rounds.

    The reference ops can't be faster than the GEMM they call: 2·T·N·K operations each time.
    """
    T, N, K = GEMM_SHAPE
    x, weight = torch.ones(T, K, dtype=dtype), torch.ones(N, K, dtype=dtype)
    durations = []
    for _ in range(rounds):
        start = clock()
        linear(x, weight)
        durations.append(clock() - start)
    return 2.0 * T * N * K / median(durations)


def cpu_seconds_of_others(stat: Path = Path("/proc/stat")) -> float:
    """CPU time that all other processes of this machine have used since it started.

    NaN where the system has no such file. It counts in steps of 1/100 s on each core.
    """
    try:
        first = stat.read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return math.nan
    user, nice, system, _, _, irq, softirq, steal = map(int, first.split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model_numbers() -> str | None:
    """Family and model as the processor itself says them: its name alone may say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n")
    except OSError:
        return None
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if "cpu family" not in fields or "model" not in fields:
        return None
    return f"family {fields['cpu family']} model {fields['model']}"


def _commit() -> str | None:
    """The checkout's commit, with a mark where files differ from it; None without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
