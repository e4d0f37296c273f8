"""Compiles a sample of a kernel file's variants ahead of time, in one process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_PROGRAM = """
import json, re, subprocess, sys, tempfile
from collections import Counter
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
import triton
from fastbert.kernels.variant import compile_ahead

tools = Path(triton.__file__).parent / "backends/nvidia/bin"
for variant in import_module(sys.argv[1]).variants():
    if not any(fnmatch(variant.label, pattern) for pattern in sys.argv[2:]):
        continue
    done = compile_ahead(variant)
    if variant.arch.startswith("gfx"):
        code = done.asm["amdgcn"]
        ops = re.findall(r"^\\t([a-z]\\w+)", code, re.M)
        stack = int(re.search(r"\\.private_segment_fixed_size: (\\d+)", code)[1])
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(done.asm["cubin"])
            file.flush()
            run = lambda *c: subprocess.run([str(tools / c[0]), *c[1:], file.name], check=True,
                                            capture_output=True, text=True).stdout
            stack = int(re.search(r"STACK:(\\d+)", run("cuobjdump", "-res-usage"))[1])
            code = run("nvdisasm", "-c")
        ops = re.findall(r"^\\s*/\\*\\w+\\*/\\s+(?:@!?U?P\\w+\\s+)?([A-Z][\\w.]*)", code, re.M)
    print(json.dumps([variant.label, stack, done.metadata.shared, Counter(ops), done.asm["ttir"]]))
"""


@dataclass(frozen=True)
class Compiled:
    """A variant's label, bytes of stack and shared memory, instructions, and Triton's own IR."""

    label: str
    stack: int
    shared: int
    ops: dict[str, int]
    ttir: str

    def count(self, *prefixes: str) -> int:
        """Instructions whose mnemonic begins so."""
        return sum(n for op, n in self.ops.items() if op.startswith(prefixes))


def compiled(module: str, *patterns: str) -> Iterator[Compiled]:
    """Those of a module's variants whose label fits one of the patterns of `fnmatch`."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, module, *patterns], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [Compiled(*json.loads(line)) for line in done.stdout.splitlines()]
    assert found, f"no variant is like {patterns}"
    yield from found
