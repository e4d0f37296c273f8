"""What the kernel report computes without compiling: SASS, loops, phase, occupancy, traffic."""

from __future__ import annotations

from typing import Any

import pytest
from checkout import benchmarks

layer_traffic = benchmarks("layer_traffic")
occupancy = benchmarks("occupancy")
phase = benchmarks("phase")
sass = benchmarks("sass")


def lines(*code: str) -> str:
    """SASS as nvdisasm prints it; a name with a colon is a label."""
    found, address = [], 0
    for line in code:
        if line.endswith(":"):
            found.append(line)
        else:
            found.append(f"        /*{address:04x}*/   {line} ;")
            address += 16
    return "\n".join(found)


HMMA = "HMMA.16816.F32 R0, R4, R8, R0"


def hottest(text: str) -> tuple[Any, list[str]]:
    flow = sass.Flow(sass.parse(text))
    loop = sass.hottest(flow)
    return flow, [] if loop is None else [i.name for i in sass.select(flow.program, loop.members)]


def test_a_loop_left_by_a_call_without_return_address_is_found() -> None:
    text = lines(
        "MOV R0, R1", ".L_1:", HMMA, "@P0 CALL.REL.NOINC `(.L_2)", "BRA `(.L_1)",
        ".L_2:", "STG.E.128 [R2.64], R4", "EXIT", ".L_3:", "BRA `(.L_3)",
    )  # fmt: skip
    flow, names = hottest(text)
    assert names == ["HMMA", "CALL", "BRA"]
    assert len(flow.loops()) == 1  # the padding after EXIT is never reached
    loop = sass.hottest(flow)
    assert [flow.program.code[i].name for i in flow.after(loop)] == ["STG", "EXIT"]


def test_a_wait_loop_out_of_line_belongs_to_its_loop_alone() -> None:
    text = lines(
        ".L_1:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1], R2", "@!P0 BRA `(.L_8)", ".L_2:",
        HMMA, "@P1 BRA `(.L_1)", "FADD R1, R1, R2", "EXIT",
        ".L_8:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1], R2", "@!P0 BRA `(.L_8)",
        "BRA `(.L_2)",
    )  # fmt: skip
    flow, names = hottest(text)
    assert names == ["SYNCS", "BRA", "HMMA", "BRA", "SYNCS", "BRA", "BRA"]
    assert len(flow.loops()) == 2
    assert [flow.program.code[i].name for i in flow.after(sass.hottest(flow))] == ["FADD", "EXIT"]


def test_the_innermost_tensor_loop_is_the_hottest_and_the_masked_one_is_not() -> None:
    text = lines(
        ".L_0:", "MOV R9, R9", ".L_1:", HMMA, HMMA, "@P0 BRA `(.L_1)",
        ".L_2:", "FSEL R1, R1, R2, P1", HMMA, HMMA, "@P0 BRA `(.L_2)",
        ".L_3:", "FADD R1, R1, R2", "FADD R1, R1, R2", "FADD R1, R1, R2", "@P0 BRA `(.L_3)",
        "BRA P2, `(.L_0)", "EXIT",
    )  # fmt: skip
    flow, names = hottest(text)
    assert names == ["HMMA", "HMMA", "BRA"]
    assert len(flow.loops()) == 4


def test_an_epilogue_ends_where_the_outer_loop_starts_again() -> None:
    text = lines(
        ".L_0:", "MOV R9, R9", ".L_1:", HMMA, "@P0 BRA `(.L_1)", "STG.E [R2.64], R4",
        "@P1 BRA `(.L_0)", "EXIT",
    )  # fmt: skip
    flow, names = hottest(text)
    assert names == ["HMMA", "BRA"]
    assert [flow.program.code[i].name for i in flow.after(sass.hottest(flow))] == [
        "STG", "BRA", "EXIT",
    ]  # fmt: skip


def test_what_a_jump_passes_over_is_no_loop() -> None:
    flow, names = hottest(lines("BRA `(.L_2)", ".L_1:", HMMA, "@P0 BRA `(.L_1)", ".L_2:", "EXIT"))
    assert names == []
    assert flow.loops() == []


def test_instructions_that_never_run_and_predicated_ends() -> None:
    text = lines(".L_1:", "@!PT LDS RZ, [RZ]", "@P0 EXIT", "FADD R1, R1, R2", "BRA `(.L_1)")
    _, names = hottest(text)
    assert names == ["EXIT", "FADD", "BRA"]
    with pytest.raises(ValueError, match="not a kernel"):
        sass.parse("nothing here")
    with pytest.raises(ValueError, match="unknown labels"):
        sass.parse(lines("BRA `(.L_9)"))


@pytest.mark.parametrize(
    ("op", "width"),
    [
        ("LDG.E.U16", 2), ("LDG.E", 4), ("LDG.E.64", 8), ("LDG.E.128.CONSTANT", 16),
        ("LDGSTS.E.BYPASS.LTC128B.128", 16), ("LDGSTS.E", 4), ("STS.U16", 2),
        ("LDSM.16.M88.4", 16), ("LDSM.16.MT88.2", 8), ("LDSM.16.M88", 4), ("STG.E.U8", 1),
    ],
)  # fmt: skip
def test_widths_of_accesses(op: str, width: int) -> None:
    assert sass.Instruction(0, "", op, "", None).width == width


def test_hgmma_reads_shared_memory_for_what_is_not_in_registers() -> None:
    def shared(operands: str) -> float:
        one = sass.Instruction(0, "", "HGMMA.64x128x16.F32.BF16", operands, None)
        return phase.pipes([one], "sm_90").shared

    assert shared("R24, gdesc[UR8], R24") == (128 * 16 + 64 * 16) * 2 / 128
    assert shared("R24, R4, gdesc[UR8], R24, gsb0") == 128 * 16 * 2 / 128


def test_the_busiest_pipe_decides_beside_the_tensor_cores() -> None:
    def estimate(*code: str) -> float:
        return phase.pipes(sass.parse(lines(HMMA, *code)).code, "sm_80").phase

    assert estimate("MUFU.EX2 R1, R2", *["FFMA R1, R2, R3, R4"] * 3) == 8 / (8 + 8)
    assert estimate(*["FMNMX R1, R2, R3, PT"] * 5, "F2FP.BF16.PACK_AB R1, R2, R3") == 8 / (8 + 12)
    assert estimate(*["UMOV UR1, UR2"] * 20) == 8 / (8 + 20)
    assert estimate(*["LDS.128 R4, [R8]"] * 4) == 8 / 64
    one = sass.Instruction(0, "", "HGMMA.64x128x16.F32.BF16", "R24, gdesc[UR8], R24", None)
    assert phase.pipes([one], "sm_90").tensor == 64


def test_tables_are_borrowed_by_name_or_absent() -> None:
    code = sass.parse(lines(HMMA, "MUFU.EX2 R1, R2", "EXIT")).code
    assert phase.pipes(code, "sm_86").table == "sm_80"
    assert phase.pipes(code, "sm_80").phase == 8 / (8 + 8)
    assert phase.pipes(code, "sm_90").phase == pytest.approx(6.35 / (6.35 + 8))
    for arch in ("sm_75", "sm_100", "gfx942"):
        assert phase.pipes(code, arch) is None


@pytest.mark.parametrize(
    ("arch", "warps", "registers", "shared", "programs"),
    [
        ("sm_80", 4, 32, 0, 16),  # 64 warps
        ("sm_80", 4, 168, 0, 3),  # 65,536 / (168 · 128) = 3.05
        ("sm_80", 4, 172, 0, 2),  # rounded up to 176
        ("sm_80", 4, 33, 0, 12),  # 40 registers a thread, since a warp's come by 256
        ("sm_80", 1, 32, 0, 32),  # programs
        ("sm_80", 4, 32, 49152, 3),  # 164 KiB / 49 KiB
        ("sm_86", 4, 255, 65536, 1),
        ("sm_86", 4, 32, 102400, 0),  # more than one program may have
        ("sm_89", 8, 64, 1024, 4),
        ("sm_75", 4, 64, 65536, 1),
        ("gfx942", 4, 132, 32768, 2),  # two by LDS, three waves by registers
        ("gfx942", 4, 132, 0, 3),
        ("gfx942", 4, 64, 0, 8),
    ],
)
def test_occupancy_by_hand(
    arch: str, warps: int, registers: int, shared: int, programs: int
) -> None:
    assert occupancy.programs(arch, warps, registers, shared) == programs


def test_a_layer_is_seven_launches_whose_bytes_the_formula_sums() -> None:
    shape = layer_traffic.Shape(T=7, C=96, F=250, H=3, B=2, W=5, itemsize=4)
    launches = layer_traffic.launches(shape)
    assert [launch.name for launch in launches] == [
        "QKV", "attention", "projection", "norm", "up + GELU", "down", "norm",
    ]  # fmt: skip
    assert sum(x.read + x.written for x in launches) == layer_traffic.layer_bytes(shape)
    assert layer_traffic.launches(layer_traffic.Shape(1, 1, 1, 1, 1, 1))[0].read == 2 * (1 + 3 + 3)
