"""An estimate of the share of tensor peak that a kernel's hottest loop can reach, from its SASS.

Every instruction of a warp keeps one pipe of an SM's sub-partition busy for some cycles. With T the
tensor pipe's cycles of one iteration,

    phase = T / max(T + max(MUFU, FMA, ALU, issue), shared memory)

that is: softmax and products of one warp do not overlap, the pipes among themselves do. On the
kernels whose rates are published it came within -40 % / +5 %. It is an estimate, not a bound, and
unmeasured on GPU.

Sources of the rates: NVIDIA, CUDA C++ Programming Guide, "Arithmetic Instructions" (results per
clock and SM: FFMA 64 on 8.0 and 128 on 9.0, special functions 16, shuffles 32, integer and
comparisons 64); NVIDIA, A100 and H100 Tensor Core GPU whitepapers (1,024 and 2,048 dense 16-bit
multiply-adds per clock and SM); shared memory at 128 bytes per clock and SM; 6.35 cycles for
``mma.sync`` on sm_90 from published microbenchmarks. F2FP's rate on sm_90 is unconfirmed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.sass import TENSOR_NAMES, Instruction

_MUFU = ("MUFU", "I2F", "F2I", "F2F", "I2I", "FRND", "POPC", "FLO", "BREV")
_FLOAT = ("FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2", "HFMA2", "HADD2", "HMUL2")
_INTEGER = ("IMAD", "IDP")
_SHARED = ("LDS", "STS", "LDSM", "STSM", "LDGSTS", "ATOMS")
_ALU = (
    "FMNMX", "FMNMX3", "SEL", "FSEL", "LOP3", "LOP", "IADD3", "IADD", "LEA", "SHF", "SHL", "SHR",
    "ISETP", "FSETP", "PLOP3", "PRMT", "MOV", "IABS", "IMNMX", "VIMNMX", "VIADD", "F2FP", "SGXT",
    "P2R", "R2P", "CSEL", "FCHK", "HMNMX2", "HSETP2", "BMSK", "FSET", "ISCADD", "VIADDMNMX",
)  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """Cycles of a sub-partition's pipe per warp instruction.

    Attributes:
        hmma: per HMMA.16816; other shapes in proportion.
        floats: FFMA, FADD, FMUL and their packed kin.
    """

    hmma: float
    floats: float


RATES = {"sm_80": Rates(hmma=8, floats=2), "sm_90": Rates(hmma=6.35, floats=1)}
BORROWED = {"sm_86": "sm_80", "sm_89": "sm_80", "sm_120": "sm_80"}
"""Architectures that have the same instructions at other rates: the table they are read by."""


@dataclass(frozen=True)
class Pipes:
    """Cycles that one iteration keeps each pipe of a sub-partition busy, for one warp.

    Attributes:
        tensor, mufu, fma, alu, issue, shared: in cycles; `issue` counts what is not tensor work.
        table: the architecture whose rates were used.
    """

    tensor: float
    mufu: float
    fma: float
    alu: float
    issue: float
    shared: float
    table: str

    @property
    def phase(self) -> float:
        """The estimate; see the module."""
        other = max(self.mufu, self.fma, self.alu, self.issue)
        return self.tensor / max(self.tensor + other, self.shared)


def table_of(arch: str) -> str | None:
    """Which table serves an architecture; None where there is none."""
    return arch if arch in RATES else BORROWED.get(arch)


def pipes(instructions: Iterable[Instruction], arch: str) -> Pipes | None:
    """Sum up one iteration; None without a table, or without tensor work that shows its shape.

    Args:
        instructions: of the loop.
        arch: e.g. ``sm_80``.
    """
    table = table_of(arch)
    if table is None:
        return None
    rates = RATES[table]
    tensor = mufu = fma = alu = issue = shared = 0.0
    for i in instructions:
        if i.name in TENSOR_NAMES:
            tensor += _tensor_cycles(i, rates)
            shared += _operand_cycles(i)
            continue
        issue += 1
        if i.name in _MUFU:
            mufu += 8
        elif i.name in _FLOAT:
            fma += rates.floats
        elif i.name in _INTEGER:
            fma += 2
        elif i.name in _ALU:
            alu += 2
        elif i.name == "SHFL":
            shared += 4
        elif i.name in _SHARED:
            shared += i.width * 32 / 128 * 4
    return Pipes(tensor, mufu, fma, alu, issue, shared, table) if tensor else None


def _tensor_cycles(i: Instruction, rates: Rates) -> float:
    if i.tensor_shape is None:
        return 0.0
    m, n, k = i.tensor_shape
    if i.name == "HGMMA":
        return m * n * k / 2048
    # TF32 has half the rate of 16-bit operands
    return rates.hmma * m * n * k / 2048 * (2 if "TF32" in i.op else 1)


def _operand_cycles(i: Instruction) -> float:
    """Shared memory that HGMMA reads: B always, A unless it comes from registers."""
    if i.name != "HGMMA" or i.tensor_shape is None:
        return 0.0
    m, n, k = i.tensor_shape
    itemsize = 4 if "TF32" in i.op else 2
    a_in_shared = i.operands.split(",")[1].strip().startswith("gdesc")
    return (n * k + (m * k if a_in_shared else 0)) * itemsize / 128
