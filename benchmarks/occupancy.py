"""How many programs of a kernel fit on one multiprocessor at a time, and its limits.

    programs = min(blocks, by warps, by registers, by shared memory)
    occupancy = programs · warps / warps that can be resident

Sources. NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and
the allocation units of the CUDA occupancy calculator: registers come by 256 a warp from a quarter
of the SM's, and 1 KiB of shared memory belongs to the system from 8.0 on. AMD: "CDNA3 Instruction
Set Architecture" (512 vector registers a lane and SIMD, 4 SIMDs, 64 KiB of LDS) and LLVM's AMDGPU
backend (8 waves a SIMD, registers by 8, 800 scalar registers a SIMD by 16, 6 for the system).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor has room for.

    Attributes:
        warps: resident ones.
        programs: resident ones (blocks, work groups).
        shared: bytes of shared memory on it.
        shared_of_program: bytes that one program may ask for.
        reserved: bytes that the system takes for each program.
        threads_of_warp: 32, or 64 on AMD.
    """

    warps: int
    programs: int
    shared: int
    shared_of_program: int
    reserved: int = 1024
    threads_of_warp: int = 32


_KIB = 1024
LIMITS = {
    "sm_75": Limits(32, 16, 64 * _KIB, 64 * _KIB, reserved=0),
    "sm_80": Limits(64, 32, 164 * _KIB, 163 * _KIB),
    "sm_86": Limits(48, 16, 100 * _KIB, 99 * _KIB),
    "sm_89": Limits(48, 24, 100 * _KIB, 99 * _KIB),
    "sm_90": Limits(64, 32, 228 * _KIB, 227 * _KIB),
    "sm_100": Limits(64, 32, 228 * _KIB, 227 * _KIB),
    "sm_120": Limits(48, 24, 100 * _KIB, 99 * _KIB),
    "gfx942": Limits(32, 32, 64 * _KIB, 64 * _KIB, reserved=0, threads_of_warp=64),
}
REGISTERS = 65536
"""32-bit registers of a CUDA multiprocessor, on all of these."""
MOST_REGISTERS = {"cuda": 255, "hip": 512}
"""That one thread can have."""


def most_registers(arch: str) -> int:
    """Registers that one thread can have."""
    return MOST_REGISTERS["hip" if arch.startswith("gfx") else "cuda"]


def programs(arch: str, warps: int, registers: int, shared: int, scalars: int = 0) -> int:
    """Programs that are resident on a multiprocessor together; 0 if not even one fits.

    Args:
        arch: a key of `LIMITS`.
        warps: of one program.
        registers: of one thread (vector registers on AMD).
        shared: bytes of one program.
        scalars: scalar registers of one wave, on AMD.
    """
    limits = LIMITS[arch]
    if shared > limits.shared_of_program or registers > most_registers(arch):
        return 0
    by_registers = _amd_warps(registers, scalars) if arch == "gfx942" else _cuda_warps(registers)
    fitting = [limits.programs, limits.warps // warps, by_registers // warps]
    if shared + limits.reserved:
        fitting.append(limits.shared // (shared + limits.reserved))
    return min(fitting)


def occupancy(arch: str, warps: int, resident: int) -> float:
    """Share of the warps that could be resident.

    Args:
        arch: a key of `LIMITS`.
        warps: of one program.
        resident: programs on a multiprocessor.
    """
    return resident * warps / LIMITS[arch].warps


def _cuda_warps(registers: int) -> int:
    of_warp = -(-max(registers, 1) * 32 // 256) * 256
    return REGISTERS // 4 // of_warp * 4  # each of the four sub-partitions has its own quarter


def _amd_warps(registers: int, scalars: int) -> int:
    by_vector = 512 // (-(-max(registers, 1) // 8) * 8)
    by_scalar = 800 // (-(-max(scalars + 6, 1) // 16) * 16)
    return 4 * min(8, by_vector, by_scalar)
