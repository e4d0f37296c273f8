"""What a shipped tile's binary must show, and what it shows instead.

The rules for 16-bit forward tiles with tensor work on sm_80, 86, 89, 90 and 120:

1. no spill in the hot loop, a stack of at most 16 bytes;
2. exactly the tile's multiply-adds, by ``HMMA.16816``, or on sm_90 by ``HGMMA`` alone, N ≥ 64 (in a
   GEMM ≥ 128);
3. the loop loads the tile's bytes by 16-byte asynchronous copies or by descriptors, nothing else;
4. copies stay in flight over an iteration; in the sm_90 GEMM a product does too;
5. attention at D = 64 and 128 without dropout keeps to counts of instructions per score element;
7. a GELU epilogue takes at most 20 instructions an element.

Backward: no spills, exact tensor work. sm_100: ``UTCHMMA``, no HMMA, no spills. float32, sm_75 and
gfx942: no spills, no stack, ``v_mfma`` on gfx942. Norms: 16-byte accesses,
each byte once. All: within limits.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.kernel_records import Record
from benchmarks.occupancy import LIMITS, most_registers
from fastbert.kernels.variant import Variant

COUNTED = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
_ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
_STACK = 16
_EPILOGUE = 20.0
_WIDE = 0.85
"""Share of a norm's bytes that 16-byte accesses must carry; the rest are a row's statistics
and a column's sums."""
_ROWS, _COLUMNS = ("x", "residual", "out"), ("weight", "bias")
"""A norm's arguments of which a program moves a tile, or one row."""


def faults(record: Record, variant: Variant) -> list[str]:
    """What is wrong with a compiled tile; empty if nothing.

    Args:
        record: from `kernel_records.analyse`.
        variant: that it was compiled from.
    """
    found = [*_limits(record, variant)]
    strict = variant.dtype == "fp32" or variant.arch in ("sm_75", "gfx942")
    if strict or not _forward(variant) or variant.arch == "sm_100":
        found += _no_spills(record, 0 if strict else _STACK)
    if variant.dtype != "fp32" and variant.tensor_work:
        if variant.arch in COUNTED:
            found += _counted(record, variant)
        else:
            found += _mnemonic(record, variant)
    if variant.stem == "layer_norm" and not variant.tensor_work:
        found += _wide(record, variant)
    return found


def _forward(variant: Variant) -> bool:
    if _attention(variant):  # its backward kernels are named by what they give
        return variant.name.startswith("forward")
    return "backward" not in variant.name


def _attention(variant: Variant) -> bool:
    return variant.stem == "attention"


def _limits(record: Record, variant: Variant) -> Iterator[str]:
    limits = LIMITS[variant.arch]
    if record["shared"] > limits.shared_of_program:
        yield f"shared memory {record['shared']} > {limits.shared_of_program} bytes"
    if record["registers"] > most_registers(variant.arch):
        yield f"{record['registers']} registers > {most_registers(variant.arch)}"
    if record["programs"] < 1:
        yield "not one program fits on a multiprocessor"


def _no_spills(record: Record, stack: int) -> Iterator[str]:
    if record["spills"]:
        yield f"{record['spills']} spills"
    if record["stack"] > stack:
        yield f"stack {record['stack']} > {stack} bytes"


def _mnemonic(record: Record, variant: Variant) -> Iterator[str]:
    wanted = {"sm_100": "UTCHMMA", "gfx942": "v_mfma"}.get(variant.arch)
    if wanted and not (record["tensor_op"] or "").startswith(wanted):
        yield f"tensor instruction {record['tensor_op']}, not {wanted}"
    loop = record["hot_loop"]
    if variant.arch == "sm_100" and loop and "HMMA" in loop["mix"]:
        yield "HMMA on sm_100"


def _counted(record: Record, variant: Variant) -> Iterator[str]:
    """Rules 1 to 5 and 7."""
    loop = record["hot_loop"]
    if loop is None:
        yield "no loop"
        return
    if loop["spills"]:
        yield f"{loop['spills']} spills in the hot loop"
    if record["stack"] > _STACK and _forward(variant):
        yield f"stack {record['stack']} > {_STACK} bytes"
    yield from _work(loop, variant)
    if not _forward(variant):
        return
    yield from _loads(loop, variant)
    yield from _pipelining(loop, variant)
    if _attention(variant) and not _dropout(variant):
        yield from _per_score(loop, variant, record["warps"])
    if _gelu(variant) and variant.elements:
        each = record["after_loop"] / _per_thread(variant, record["warps"])
        if each > _EPILOGUE:
            yield f"GELU epilogue of {each:.1f} > {_EPILOGUE:.0f} instructions an element"


def _work(loop: Record, variant: Variant) -> Iterator[str]:
    wanted = sum(m * n * k for m, n, k in variant.tensor_work)
    if loop["macs"] != wanted:
        yield f"{loop['macs']} multiply-adds an iteration, the tile has {wanted}"
    shapes = [tuple(map(int, shape.split("x"))) for shape in loop["shapes"]]
    if variant.arch != "sm_90":
        if any(shape != (16, 8, 16) for shape in shapes):
            yield f"tensor shapes {', '.join(loop['shapes'])}, not HMMA.16816 alone"
    elif _forward(variant):
        least = 64 if _attention(variant) else 128
        if "HMMA" in loop["mix"]:
            yield "HMMA on sm_90"
        least = min(least, *(n for _, n, _ in variant.tensor_work))  # a head dim of 32 has no more
        if any(n < least for _, n, _ in shapes):
            yield f"HGMMA shapes {', '.join(loop['shapes'])}: N < {least}"


def _loads(loop: Record, variant: Variant) -> Iterator[str]:
    if loop["plain_loads"]:
        yield f"{loop['plain_loads']} plain loads (LDG) in the hot loop"
    if loop["narrow_copies"]:
        yield f"{loop['narrow_copies']} copies narrower than 16 bytes"
    if loop["descriptor_loads"]:
        return
    size = _ITEMSIZE[variant.dtype]
    tiles = [n * k for _, n, k in variant.tensor_work]  # K and V, or a GEMM's weight
    if not _attention(variant):
        tiles += [m * k for m, _, k in variant.tensor_work]  # and its input
    if loop["copied_bytes"] != sum(tiles) * size:
        yield f"{loop['copied_bytes']} bytes copied by 16, the tile has {sum(tiles) * size}"


def _pipelining(loop: Record, variant: Variant) -> Iterator[str]:
    if not loop["descriptor_loads"] and not loop["copies_in_flight"]:
        yield "no copy stays in flight (DEPBAR.LE SB0 with n > 0)"
    if variant.arch == "sm_90" and not _attention(variant) and not loop["products_in_flight"]:
        yield "no product stays in flight (WARPGROUP.DEPBAR.LE gsb0, 0x1)"


def _per_thread(variant: Variant, warps: int) -> float:
    """Elements of one thread."""
    return variant.elements / (32 * warps)


def _per_score(loop: Record, variant: Variant, warps: int) -> Iterator[str]:
    _, block, head = variant.tensor_work[0]
    if head not in (64, 128) or block < 64:
        return
    mix, scores = loop["mix"], _per_thread(variant, warps)
    limits = {
        "MUFU": 1.07,
        "FMNMX": 1.13,
        "FFMA+FADD+FMUL": 2.3 + head / block,
    }
    for names, most in limits.items():
        each = sum(mix.get(name, 0) for name in names.split("+")) / scores
        if each > most:
            yield f"{each:.2f} > {most:.2f} {names} per score"
    if mix.get("F2FP", 0) != scores / 2:
        yield f"{mix.get('F2FP', 0) / scores:.2f} F2FP per score, not 0.5"
    other = sum(n for name, n in mix.items() if name not in ("HMMA", "HGMMA")) / scores
    most = 8.0 if variant.arch == "sm_90" else 9.0
    if head == 64 and other > most:
        yield f"{other:.2f} > {most:.0f} instructions beside tensor work per score"


def _flags(variant: Variant) -> str:
    values = (f"{name}={value}" for name, value in variant.constants.items() if value)
    return " ".join((variant.name, variant.detail, *values)).lower()


def _dropout(variant: Variant) -> bool:
    return "dropout" in _flags(variant)


def _gelu(variant: Variant) -> bool:
    return "gelu" in _flags(variant)


def _wide(record: Record, variant: Variant) -> Iterator[str]:
    """A norm's bytes move by 16 at a time and, forward, each of them once."""
    moved: dict[int, int] = {}
    for name, count in record["accesses"].items():
        bits = name.rpartition(".")[2]
        if bits.isdigit():
            moved[int(bits)] = moved.get(int(bits), 0) + count * int(bits) // 8
    threads = record["warps"] * LIMITS[variant.arch].threads_of_warp
    wide, total = moved.get(128, 0) * threads, sum(moved.values()) * threads
    if wide < _WIDE * total:
        yield f"only {wide / max(1, total):.0%} of its bytes move by 16"
    if variant.name != "forward":
        return
    tile = variant.tile
    shares = {**dict.fromkeys(_ROWS, tile.m * tile.n), **dict.fromkeys(_COLUMNS, tile.n)}
    once = sum(
        share * _ITEMSIZE[variant.signature[name].removeprefix("*")]
        for name, share in shares.items()
        if name in variant.signature and name not in variant.constants
    )
    if wide != once:
        yield f"{wide} bytes of a tile move by 16, once each they are {once}"
