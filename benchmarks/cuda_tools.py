"""NVIDIA's disassembler and its kin, as Triton's wheel brings them; no GPU is needed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path


@cache
def tool(name: str) -> str:
    """Path of `nvdisasm` or `cuobjdump` in Triton's wheel."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def disassemble(cubin: bytes) -> str:
    """SASS of a cubin, as text."""
    return _run("nvdisasm", "-c", cubin=cubin)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, STACK, SHARED, LOCAL and so on, as ``cuobjdump -res-usage`` says them."""
    text = _run("cuobjdump", "-res-usage", cubin=cubin)
    line = next(line for line in text.splitlines() if "REG:" in line)
    return {name: int(value) for name, value in re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", line)}


def _run(name: str, flag: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [tool(name), flag, file.name], capture_output=True, text=True, check=True
        )
    return done.stdout
