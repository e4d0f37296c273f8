"""Runs test functions under Triton's interpreter, which a process decides once for all kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
_RESULT = re.compile(r"^(?:\[gw\d+\] )?(PASSED|FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What became of a file's cases.

    Attributes:
        output: pytest's own.
        failed: names of cases that failed.
        passed: how many passed.
    """

    output: str
    failed: tuple[str, ...]
    passed: int


@cache
def run(file: str, marks: str) -> Outcome:
    """Run a file's cases of these marks in one process of its own.

    Args:
        file: the test file, which is collected again there.
        marks: pytest's ``-m``.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_XDIST")]:
        del environment[name]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-p",
               "no:randomly", "-m", marks, "--no-header", file]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(file).parent.parent
    )
    found = _RESULT.findall(done.stdout)
    failed = tuple(name for result, name in found if result != "PASSED")
    passed = sum(result == "PASSED" for result, _ in found)
    if done.returncode not in (0, 1):  # neither passed nor failed: it did not run at all
        raise RuntimeError(f"{done.stdout}\n{done.stderr}")
    return Outcome(done.stdout + done.stderr, failed, passed)


def check(file: str, marks: str) -> None:
    """Assert that every such case passes under the interpreter, and that there are some."""
    outcome = run(file, marks)
    assert not outcome.failed, f"{', '.join(outcome.failed)}\n\n{outcome.output[-6000:]}"
    assert outcome.passed, outcome.output[-3000:]
