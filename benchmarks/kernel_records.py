"""What a compiled kernel's binary says about it, as plain values.

Static figures only: *static estimate, unmeasured on GPU*.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks import cuda_tools, occupancy, phase, sass
from benchmarks.sass import Instruction
from fastbert.kernels.variant import Variant

STATUS = "static estimate, unmeasured on GPU"

Record = dict[str, Any]

_GLOBAL = ("LDG", "STG", "LDGSTS", "UTMALDG", "UTMASTG")
_AMD_SIZES = {
    "ubyte": 8, "sbyte": 8, "byte": 8, "ushort": 16, "sshort": 16, "short": 16, "dword": 32,
    "dwordx2": 64, "dwordx3": 96, "dwordx4": 128,
}  # fmt: skip


def keys(variant: Variant) -> Record:
    """What names a record; `binary` is the file of `--cubins`."""
    ending = "hsaco" if variant.arch.startswith("gfx") else "cubin"
    return {
        "kernel": f"{variant.stem}-{variant.name}",
        "detail": variant.detail,
        "dtype": variant.dtype,
        "arch": variant.arch,
        "tile": str(variant.tile),
        "stem": variant.stem,
        "binary": f"{variant.label}.{ending}",
    }


def analyse(variant: Variant, compiled: Any) -> Record:
    """The record of a kernel that `compile_ahead` made from a variant.

    Counts are integers, also where an architecture has no such thing.
    """
    if variant.arch.startswith("gfx"):
        found = _amd(compiled.asm["amdgcn"])
    else:
        found = _nvidia(compiled.asm["cubin"], variant.arch, compiled.metadata.num_warps)
    record = {
        **keys(variant),
        **found,
        "warps": int(compiled.metadata.num_warps),
        "stages": variant.tile.stages,
        "shared": int(compiled.metadata.shared),
        "status": STATUS,
    }
    resident = occupancy.programs(
        variant.arch, record["warps"], record["registers"], record["shared"], found["scalars"]
    )
    record["programs"] = resident
    record["occupancy"] = occupancy.occupancy(variant.arch, record["warps"], resident)
    return record


def _nvidia(cubin: bytes, arch: str, warps: int) -> Record:
    used = cuda_tools.resources(cubin)
    program = sass.parse(cuda_tools.disassemble(cubin))
    flow = sass.Flow(program)
    loop = sass.hottest(flow)
    everything = sass.select(program, range(len(program.code)))
    hot = sass.select(program, loop.members) if loop else []
    pipes = phase.pipes(hot, arch)
    return {
        "registers": used["REG"],
        "scalars": 0,
        "spill_stores": _named(everything, "STL"),
        "spill_loads": _named(everything, "LDL"),
        "spills": _named(everything, "STL") + _named(everything, "LDL"),
        "stack": used["STACK"],
        "tensor_op": _tensor_op(everything),
        "phase": pipes and round(pipes.phase, 3),
        "phase_table": pipes and pipes.table,
        "pipes": pipes and {**vars(pipes)},
        "instructions": len(everything),
        "accesses": _accesses(everything),
        "hot_loop": hot_loop(hot, warps) if loop else None,
        "after_loop": len(sass.select(program, flow.after(loop))) if loop else 0,
    }


def hot_loop(code: Sequence[Instruction], warps: int) -> Record:
    """What one iteration of a loop does; bytes and multiply-adds are a program's, not a warp's."""
    groups = {"HMMA": warps, "HGMMA": warps / 4}
    shapes = Counter(i.tensor_shape for i in code if i.tensor_shape)
    return {
        "instructions": len(code),
        "mix": sass.counts(code),
        "macs": round(sum(groups[i.name] * sass.tensor_macs([i]) for i in code if i.tensor_shape)),
        "shapes": {"x".join(map(str, shape)): n for shape, n in shapes.items()},
        "copied_bytes": sum(16 * 32 * warps for i in code if i.name == "LDGSTS" and i.width == 16),
        "narrow_copies": sum(i.name == "LDGSTS" and i.width < 16 for i in code),
        "plain_loads": _named(code, "LDG"),
        "descriptor_loads": _named(code, "UTMALDG"),
        "spills": _named(code, "STL") + _named(code, "LDL"),
        "copies_in_flight": _in_flight(code, "DEPBAR", r"SB0, (0x[0-9a-f]+)"),
        "products_in_flight": _in_flight(code, "WARPGROUP", r"gsb0, (0x[0-9a-f]+)"),
    }


def _named(code: Sequence[Instruction], name: str) -> int:
    return sum(i.name == name for i in code)


def _in_flight(code: Sequence[Instruction], name: str, pattern: str) -> int:
    """The most groups that a wait leaves unfinished; 0 without one."""
    waits = [re.search(pattern, i.operands) for i in code if i.name == name]
    return max((int(found[1], 16) for found in waits if found), default=0)


def _tensor_op(code: Sequence[Instruction]) -> str | None:
    """The tensor instruction that occurs most often, with its shape and types."""
    ops = Counter(i.op for i in code if i.name in sass.TENSOR_NAMES)
    return ops.most_common(1)[0][0] if ops else None


def _accesses(code: Sequence[Instruction]) -> dict[str, int]:
    """Loads and stores of global memory by bits a thread, e.g. ``LDG.128``."""
    found: Counter[str] = Counter()
    for i in code:
        if i.name.startswith("UTMA") and i.name in _GLOBAL:
            found[i.name] += 1
        elif i.name in _GLOBAL:
            found[f"{i.name}.{8 * i.width}"] += 1
    return dict(sorted(found.items()))


def _amd(text: str) -> Record:
    """From the metadata and mnemonics of AMD's assembly; its loops are not analysed."""

    def count(name: str) -> int:
        value = re.search(rf"^\s*(?:- )?\.{name}:\s+(\d+)$", text, re.MULTILINE)
        if value is None:
            raise ValueError(f"the AMDGPU metadata say nothing of {name}")
        return int(value[1])

    mnemonics = Counter(re.findall(r"^\t([a-z]\w+)(?=\s|$)", text, re.MULTILINE))
    tensor = {op: n for op, n in mnemonics.items() if op.startswith(("v_mfma", "v_smfmac"))}
    accesses: Counter[str] = Counter()
    for op, n in mnemonics.items():
        if found := re.match(r"(?:global|buffer|flat)_(load|store)_(\w+)", op):
            size = next((s for s in found[2].split("_") if s in _AMD_SIZES), None)
            if size:
                accesses[f"{found[1]}.{_AMD_SIZES[size]}"] += n
    return {
        "registers": count("vgpr_count"),
        "scalars": count("sgpr_count"),
        "spill_stores": 0,
        "spill_loads": 0,
        "vector_spills": count("vgpr_spill_count"),
        "scalar_spills": count("sgpr_spill_count"),
        "spills": count("vgpr_spill_count") + count("sgpr_spill_count"),
        "stack": count("private_segment_fixed_size"),
        "tensor_op": max(tensor, key=lambda op: tensor[op]) if tensor else None,
        "phase": None,
        "phase_table": None,
        "pipes": None,
        "instructions": sum(mnemonics.values()),
        "accesses": dict(sorted(accesses.items())),
        "hot_loop": None,
        "after_loop": 0,
    }
