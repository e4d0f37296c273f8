"""Compiles kernels ahead of time in processes of their own, since a bad kernel may end one.

A worker (``python -m benchmarks.kernel_worker``) reads jobs, one line of JSON each, and answers
each with a line. What a kernel's compiler prints goes to stderr.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.kernel_records import Record, analyse
from fastbert.kernels.variant import Variant, compile_ahead

ROOT = Path(__file__).resolve().parent.parent
TIME_LIMIT = 300.0
"""Seconds for one kernel, after which its worker is ended."""
_SOURCES = ("cuda_tools.py", "sass.py", "phase.py", "occupancy.py", "kernel_records.py")


@dataclass(frozen=True)
class Job:
    """A variant, and the module whose `variants()` yields it."""

    module: str
    variant: Variant


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: what was to be compiled.
        record: its figures; None if it failed.
        error: why; empty if it did not.
        binary: the file with its machine code, which lives as long as the cache's directory.
    """

    job: Job
    record: Record | None
    error: str = ""
    binary: Path | None = None


def fingerprint(variant: Variant) -> str:
    """Of everything that decides a variant's binary and record."""
    import triton

    here = Path(__file__).resolve().parent
    parts = [
        triton.__version__,
        variant.kernel.cache_key,
        variant.label,
        *(repr(sorted(m.items())) for m in (variant.signature, variant.constants, variant.options)),
        repr(variant.divisible),
        *((here / name).read_text(encoding="utf-8") for name in _SOURCES),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def compile_one(variant: Variant, cache: Path) -> tuple[Record, Path]:
    """Record and binary of a variant, from the cache or compiled into it."""
    stem = cache / fingerprint(variant)
    text, binary = stem.with_suffix(".json"), stem.with_suffix(".bin")
    if text.exists():
        return json.loads(text.read_text(encoding="utf-8")), binary
    compiled = compile_ahead(variant)
    record = analyse(variant, compiled)
    for path, data in ((binary, _binary(compiled)), (text, json.dumps(record).encode())):
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(data)
        beside.replace(path)
    return record, binary


def _binary(compiled: Any) -> bytes:
    return compiled.asm["cubin"] if "cubin" in compiled.asm else compiled.asm["hsaco"]


def serve(jobs: Any, answers: Any, cache: Path) -> None:
    """Answer jobs until there are no more; an error ends the process, as a compiler's crash does.

    Args:
        jobs: lines to read, of ``{"module": …, "label": …}``.
        answers: where to write a line for each, of a record and a file.
        cache: directory of records and binaries.
    """
    known: dict[str, dict[str, Variant]] = {}
    for line in jobs:
        job = json.loads(line)
        name = job["module"]
        if name not in known:
            known[name] = {v.label: v for v in import_module(name).variants()}
        record, binary = compile_one(known[name][job["label"]], cache)
        answer = {"record": record, "binary": str(binary)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Worker:
    """A process that compiles one job at a time, and is started anew when it ended."""

    def __init__(self, cache: Path, paths: Sequence[str]) -> None:
        self.command = [sys.executable, "-m", "benchmarks.kernel_worker", str(cache)]
        old = os.environ.get("PYTHONPATH")
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([*paths, *([old] if old else [])]),
        }
        self.environment.pop("TRITON_INTERPRET", None)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the worker
        self.process: subprocess.Popen[str] | None = None

    def run(self, job: Job) -> Outcome:
        """Compile, whatever it does to the process."""
        process = self.process or self._start()
        timer = threading.Timer(TIME_LIMIT, process.kill)
        timer.start()
        try:
            line = self._ask(process, job)
        finally:
            timer.cancel()
        if not line:
            return Outcome(job, None, self._obituary())
        answer = json.loads(line)
        return Outcome(job, answer["record"], binary=Path(answer["binary"]))

    def _start(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True, cwd=ROOT, env=self.environment,
        )  # fmt: skip
        return self.process

    def _ask(self, process: subprocess.Popen[str], job: Job) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"module": job.module, "label": job.variant.label}))
            process.stdin.write("\n")
            process.stdin.flush()
        except BrokenPipeError:
            return ""
        return process.stdout.readline()

    def _obituary(self) -> str:
        """How the process ended, and the last that it said."""
        assert self.process is not None
        status = self.process.wait()
        self.process = None
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-3:]
        return f"the compiler's process ended with status {status}: {' / '.join(last)}"[:2000]

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        self.errors.close()


def compile_all(
    jobs: Sequence[Job],
    cache: Path,
    *,
    paths: Sequence[str] = (),
    workers: int = 2,
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Compile every job; the outcomes come in their order.

    Args:
        jobs: what to compile.
        cache: directory for records and binaries, made if need be.
        paths: where workers also look for modules.
        workers: processes at a time.
        done: called after each.
    """
    cache.mkdir(parents=True, exist_ok=True)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(jobs)):
        waiting.put(place)
    found: dict[int, Outcome] = {}
    lock = threading.Lock()

    def work() -> None:
        worker = Worker(cache, paths)
        try:
            while True:
                try:
                    place = waiting.get_nowait()
                except queue.Empty:
                    return
                outcome = worker.run(jobs[place])
                with lock:
                    found[place] = outcome
                    done(outcome)
        finally:
            worker.close()

    with ThreadPoolExecutor(workers) as pool:
        for working in [pool.submit(work) for _ in range(min(workers, len(jobs)))]:
            working.result()
    return [found[place] for place in range(len(jobs))]


def main() -> None:
    """Serve jobs on stdin, with stdout to ourselves alone."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
