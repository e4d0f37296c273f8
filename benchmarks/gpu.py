"""Everything that only a GPU can say, by one command: parity, sanitizers, races, speed.

Run ``python -m benchmarks.gpu --output DIR`` on a machine with a GPU, in a checkout with the extras
`test` and `bench`. It writes ``report.md``, ``report.json`` and plots there. With ``--dry`` the
same code runs on a CPU on tiny shapes under Triton's interpreter: that shows that the command
works, and nothing about a GPU. Every section is a process of its own, so no fault of a device
reaches another.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import gpu_report
from benchmarks.machine import ROOT

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SECTIONS = ("environment", "peaks", "parity", "sanitizers", "races", "kernels", "models")
FOUND = 77
"""What a sanitizer is told to exit with when it has found something."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the sections are run with.

    Attributes:
        dry: on the CPU under the interpreter.
        repeats: of every call, in the hunt for races.
        seconds: of timing one thing.
        limit: seconds after which a section is ended.
    """

    dry: bool
    repeats: int
    seconds: float
    limit: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections and write the report; 1 if anything failed."""
    args = _parser().parse_args(arguments)
    if not args.dry and not _has_gpu():
        sys.stderr.write("no CUDA device here; --dry shows on a CPU that the command works\n")
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    repeats = args.repeats or (2 if args.dry else 1000)
    options = Options(args.dry, repeats, args.seconds, args.limit)
    rows = run_all([name for name in SECTIONS if name in args.sections], options)
    gpu_report.write(rows, args.output, dry=args.dry)
    for name, found in rows.items():
        sys.stdout.write(f"{name}: {gpu_report.tally(found)}\n")
    return int(_failed(rows, args.dry))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Check and measure fastbert on a GPU, and write one report.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="where the report goes")
    add("--dry", action="store_true", help="tiny shapes on a CPU under Triton's interpreter")
    add("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="default: all")
    add("--repeats", type=int, help="of each call, in the hunt for races; default: 1000, dry: 2")
    add("--seconds", type=float, default=0.5, help="of timing one thing; default: 0.5")
    add("--limit", type=float, default=3600.0, help="seconds of one section; default: 3600")
    return parser


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _failed(rows: dict[str, list[Row]], dry: bool) -> bool:
    """Whether something failed, or, on a GPU, a kernel of ours did not run at all."""
    states = {row["state"] for found in rows.values() for row in found}
    ours = {row["state"] for name in ("parity", "races", "kernels") for row in rows.get(name, [])}
    return "failed" in states or (not dry and "could not run" in ours)


def run_all(names: Sequence[str], options: Options) -> dict[str, list[Row]]:
    """Section → rows. One after the other on a GPU; two at a time where nothing is measured."""
    with tempfile.TemporaryDirectory() as directory:
        run: Callable[[str], list[Row]] = partial(_section, options, Path(directory))
        with ThreadPoolExecutor(2 if options.dry else 1) as pool:
            return dict(zip(names, pool.map(run, names), strict=True))


def _section(options: Options, directory: Path, name: str) -> list[Row]:
    start = time.monotonic()
    sys.stderr.write(f"{name} …\n")
    rows = sanitizers(options, directory) if name == "sanitizers" else None
    if rows is None:
        rows = worker(name, options, directory / f"{name}.json").rows
    sys.stderr.write(f"{name}: {time.monotonic() - start:.0f} s\n")
    return rows


@dataclass(frozen=True)
class Done:
    """What became of a worker: its exit code, what it printed, and its rows."""

    code: int
    printed: str
    rows: list[Row]


def worker(name: str, options: Options, output: Path, prefix: Sequence[str] = ()) -> Done:
    """Run a section of `benchmarks.gpu_worker`; what ends without rows is itself a row."""
    command = [*prefix, sys.executable, "-m", "benchmarks.gpu_worker", name,
               "--output", str(output), "--repeats", str(options.repeats),
               "--seconds", str(options.seconds)]  # fmt: skip
    environment = {**os.environ, "FASTBERT_AUTOTUNE": os.environ.get("FASTBERT_AUTOTUNE", "0")}
    environment.pop("TRITON_INTERPRET", None)
    if options.dry:
        command.append("--dry")
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if prefix:  # or else a sanitizer sees one large block instead of tensors
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, cwd=ROOT,
            timeout=options.limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        reason = f"ended after {options.limit:.0f} s"
        return Done(-1, "", [_row(name, "failed", reason)])
    printed = done.stdout + done.stderr
    if done.returncode == 0 or output.exists():
        return Done(done.returncode, printed, json.loads(output.read_text(encoding="utf-8")))
    reason = f"exit {done.returncode}: {printed.strip()[-300:]}"
    return Done(done.returncode, printed, [_row(name, "failed", reason)])


def sanitizers(options: Options, directory: Path) -> list[Row]:
    """Each tool of compute-sanitizer on every op at tiny shapes."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        reason = "compute-sanitizer is not on PATH"
        return [_row(tool, "could not run", reason) for tool in TOOLS]
    rows = []
    for tool in TOOLS:
        prefix = (program, "--tool", tool, "--error-exitcode", str(FOUND))
        done = worker("small", options, directory / f"{tool}.json", prefix)
        rows.append(_verdict(tool, done, options))
    return rows


def _verdict(tool: str, done: Done, options: Options) -> Row:
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY:.*", done.printed)
    said = " ".join(found)
    others = [row for row in done.rows if row["state"] != "passed"]
    if done.code != 0:
        return _row(tool, "failed", said or f"exit {done.code}: {done.printed.strip()[-300:]}")
    if others:  # it watched fewer kernels than there are
        names = ", ".join(row["what"] for row in others)
        return _row(tool, "failed", f"did not watch {names}")
    if options.dry:  # no kernel ran on a device: nothing was watched
        return _row(tool, "could not run", "there is no device to watch in the dry mode")
    return _row(tool, "passed", said)


def _row(what: str, state: str, detail: str) -> Row:
    return {"what": what, "dtype": "", "state": state, "detail": detail}


if __name__ == "__main__":
    sys.exit(main())
