"""The kernel report: its reading of SASS, its estimates, and the faults that it must find."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted_kernels as planted
import pytest
from checkout import ROOT, benchmarks

from fastbert.kernels.tiles import ARCHITECTURES, Tile

cuda_tools = benchmarks("cuda_tools")
kernel_report = benchmarks("kernel_report")
kernel_plot = benchmarks("kernel_plot")
kernel_worker = benchmarks("kernel_worker")

KEYS = {"kernel", "dtype", "arch", "tile", "registers", "spills", "stack", "shared", "occupancy",
        "tensor_op", "phase"}  # fmt: skip
COUNTS = ("registers", "spills", "stack", "shared", "programs")


def compiled(variants: list[Any], cache: Path) -> dict[str, Any]:
    """Label → outcome."""
    jobs = [kernel_worker.Job("planted_kernels", variant) for variant in variants]
    here = str(Path(__file__).parent)
    outcomes = kernel_worker.compile_all(jobs, cache, paths=[here])
    return {outcome.job.variant.label: outcome for outcome in outcomes}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def outcomes(cache: Path) -> dict[str, Any]:
    """Two sound kernels and the compiler's end, which the fast tests share."""
    few = [planted.gemm_variant("sm_80", planted.GEMM_80),
           planted.flash_variant("sm_90", 64, planted.FLASH_90, dtype="fp16"),
           planted.faulty()["the compiler's end"][0]]  # fmt: skip
    return compiled(few, cache)


def outcome_of(outcomes: dict[str, Any], variant: Any) -> Any:
    return outcomes[variant.label]


def test_the_sm_80_gemm_is_as_counted_by_hand(outcomes: dict[str, Any]) -> None:
    """128×128×32 with 4 warps, counted in the text of nvdisasm: one loop of 134 instructions."""
    record = outcome_of(outcomes, planted.gemm_variant("sm_80", planted.GEMM_80)).record
    loop = record["hot_loop"]
    assert loop["mix"]["HMMA"] == 64
    assert loop["mix"]["LDSM"] == 16
    assert loop["mix"]["LDGSTS"] == 8
    assert loop["macs"] == 128 * 128 * 32
    assert loop["copied_bytes"] == (128 + 128) * 32 * 2
    assert (loop["plain_loads"], loop["narrow_copies"], loop["spills"]) == (0, 0, 0)
    assert loop["copies_in_flight"] == 2
    assert record["tensor_op"] == "HMMA.16816.F32.BF16"
    assert (record["registers"], record["stack"], record["shared"]) == (216, 0, 32768)
    # 64 HMMA of 8 cycles; 67 others of 1 are issued beside them, and no pipe takes longer
    assert record["pipes"]["tensor"] == 512
    assert record["phase"] == pytest.approx(512 / (512 + record["pipes"]["issue"]), abs=5e-4)
    assert record["phase"] == pytest.approx(0.88, abs=0.01)


def test_the_sm_90_attention_is_as_counted_by_hand(outcomes: dict[str, Any]) -> None:
    """128×128 at D = 64, 8 warps: 4 HGMMA.64x128x16 and 8 of 64x64x16 for each warpgroup."""
    variant = planted.flash_variant("sm_90", 64, planted.FLASH_90, dtype="fp16")
    record = outcome_of(outcomes, variant).record
    loop = record["hot_loop"]
    assert loop["shapes"] == {"64x128x16": 4, "64x64x16": 8}
    assert loop["macs"] == 2 * 128 * 128 * 64
    scores = 128 * 128 // (8 * 32)
    assert loop["mix"]["MUFU"] == scores + 2  # and two rows' rescaling
    assert loop["mix"]["F2FP"] == scores // 2
    assert loop["mix"]["FMNMX"] == scores + 4  # and the exchange between 4 lanes, for two rows
    assert loop["copied_bytes"] == 2 * 128 * 64 * 2
    # 4 × 64 + 8 × 32 cycles of tensor work; 66 MUFU of 8
    assert record["pipes"]["tensor"] == 512
    assert record["pipes"]["mufu"] == 528
    assert record["phase"] == pytest.approx(512 / (512 + 528), abs=5e-4)  # .49 is published


def test_a_record_has_its_keys_and_whole_counts(outcomes: dict[str, Any]) -> None:
    records = [o.record for o in outcomes.values() if o.record]
    for record in records:
        assert record.keys() >= KEYS
        assert all(type(record[key]) is int for key in COUNTS)
        assert record["status"] == "static estimate, unmeasured on GPU"
        for key in ("stem", "kernel", "dtype", "arch", "tile"):
            assert record[key] in record["binary"]


def test_a_crash_is_reported_and_the_others_go_on(outcomes: dict[str, Any]) -> None:
    variant, words = planted.faulty()["the compiler's end"]
    bad = kernel_report.wrong(outcomes.values())
    assert list(bad) == [variant.label]
    assert words in bad[variant.label][0]
    assert "ended with status" in bad[variant.label][0]
    assert sum(o.record is not None for o in outcomes.values()) == 2


def test_records_come_from_the_cache_and_binaries_are_kept(
    outcomes: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    sound = [o for o in outcomes.values() if o.record]
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    again = [kernel_worker.compile_one(o.job.variant, cache) for o in sound]
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    assert again == [(o.record, o.binary) for o in sound]
    kept = tmp_path / "kept"
    kernel_report.keep_binaries(outcomes.values(), kept)
    assert {path.name for path in kept.iterdir()} == {o.record["binary"] for o in sound}
    used = cuda_tools.resources((kept / sound[0].record["binary"]).read_bytes())
    assert used["REG"] == sound[0].record["registers"]


def test_a_fingerprint_follows_everything_that_decides() -> None:
    first = planted.gemm_variant("sm_80", planted.GEMM_80)
    others = [
        planted.gemm_variant("sm_90", planted.GEMM_80),
        planted.gemm_variant("sm_80", replace(planted.GEMM_80, stages=2)),
        planted.gemm_variant("sm_80", planted.GEMM_80, divisible=()),
        planted.gemm_variant("sm_80", planted.GEMM_80, options={"maxnreg": 128}),
        planted.gemm_variant("sm_80", planted.GEMM_80, gelu=True, detail=""),
        replace(first, kernel=planted.norm),
    ]
    prints = [kernel_worker.fingerprint(variant) for variant in (first, *others)]
    assert len(set(prints)) == len(prints)
    assert kernel_worker.fingerprint(replace(first)) == prints[0]


def test_markdown_json_and_plot(outcomes: dict[str, Any], tmp_path: Path) -> None:
    found = list(outcomes.values())
    text = kernel_report.to_markdown(found)
    assert text.startswith("**Static estimate, unmeasured on GPU.**")
    for words in ("### sm_80", "### sm_90", "HGMMA", "does not compile", "| 7 launches |"):
        assert words in text
    tables = [part.split("\n") for part in text.strip().split("\n\n") if part.startswith("|")]
    for lines in tables:
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    records = json.loads(kernel_report.to_json(found))
    assert len(records) == 2
    assert all(record["faults"] == [] for record in records)
    kernel_plot.plot([o.record for o in found if o.record], tmp_path / "plot.png")
    data = (tmp_path / "plot.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert 5_000 < len(data) < 200_000


def test_two_variants_of_one_label_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = planted.norm_variant("sm_90")
    monkeypatch.setattr(planted, "variants", lambda: iter([twice, twice]))
    with pytest.raises(ValueError, match="two variants bear one label"):
        kernel_report.list_jobs(["planted_kernels"], ARCHITECTURES)


def test_fewer_kernels_still_meet_every_tile() -> None:
    tiles = [Tile(64, 64, 32), Tile(128, 128, 32)]
    made = [
        planted.gemm_variant(arch, tile, dtype=dtype, detail=detail)
        for arch in ("sm_80", "sm_86")
        for tile in tiles
        for dtype in ("fp32", "bf16")
        for detail in ("", "a", "dropout")
    ]
    jobs = [kernel_worker.Job("planted_kernels", variant) for variant in made]
    sampled = [job.variant for job in kernel_report.sample(jobs)]
    assert {v.dtype for v in sampled} == {"bf16"}
    assert len(sampled) == 2 * (2 + 1)  # dropout apart on sm_80 alone
    assert [job.variant.arch for job in kernel_report.quick(jobs)] == ["sm_80"]


@pytest.mark.parametrize("flag", [["--arch", "sm_70"], ["--stems", "norms"], ["--workers", "9"],
                                  ["--quick", "--sample"]])  # fmt: skip
def test_bad_arguments_are_usage_errors(
    flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        kernel_report.main(flag)
    assert caught.value.code == 2
    assert flag[-1] in capsys.readouterr().err


@pytest.fixture(scope="module")
def everything(cache: Path) -> dict[str, Any]:
    """All kernels with and without planted faults."""
    return compiled(list(planted.variants()), cache)


@pytest.mark.slow
def test_sound_kernels_have_no_fault(everything: dict[str, Any]) -> None:
    for variant in planted.sound():
        outcome = everything[variant.label]
        assert kernel_report.wrong([outcome]) == {}
        assert all(type(outcome.record[key]) is int for key in COUNTS)
        if variant.arch == "gfx942":
            assert outcome.record["tensor_op"].startswith("v_mfma")


@pytest.mark.slow
@pytest.mark.parametrize("fault", planted.faulty())
def test_a_planted_fault_turns_the_report_red(fault: str, everything: dict[str, Any]) -> None:
    variant, words = planted.faulty()[fault]
    reasons = kernel_report.wrong([everything[variant.label]])[variant.label]
    assert words in "; ".join(reasons)


@pytest.mark.slow
def test_a_mask_in_every_iteration_costs_phase(everything: dict[str, Any]) -> None:
    masked = everything[planted.faulty()["a mask in every iteration"][0].label].record
    plain = everything[planted.flash_variant("sm_80", 64, planted.FLASH_80).label].record
    assert plain["phase"] == pytest.approx(0.65, abs=0.01)
    assert masked["phase"] < plain["phase"] - 0.02


def run_report(*flags: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.kernel_report", *flags],
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_with_benchmarks_alone_beside_the_package(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__")
    )
    names = [str(tmp_path / f"out.{end}") for end in ("md", "json", "png")]
    done = run_report(
        *("--stems", "layer_norm", "--quick", "--no-cache", "--cubins", str(tmp_path / "kept")),
        *("--markdown", names[0], "--json", names[1], "--plot", names[2]),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == Path(names[0]).read_text(encoding="utf-8")
    records = json.loads(Path(names[1]).read_text(encoding="utf-8"))
    assert {record["binary"] for record in records} == {
        p.name for p in (tmp_path / "kept").iterdir()
    }
    assert {record["arch"] for record in records} == set(kernel_report.QUICK)
    assert Path(names[2]).read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """Faults of every tile of every kernel on every architecture, one dtype and option a tile."""
    modules = [f"fastbert.kernels.{stem}" for stem in kernel_report.STEMS]
    jobs = kernel_report.sample(kernel_report.list_jobs(modules, ARCHITECTURES))
    assert {job.variant.arch for job in jobs} == set(ARCHITECTURES)
    cache = tmp_path_factory.mktemp("matrix")
    outcomes = kernel_worker.compile_all(jobs, cache)
    bad = kernel_report.wrong(outcomes)
    yield {
        stem: [f"{j.variant.label}: {bad[j.variant.label]}" for j in jobs
               if j.variant.stem == stem and j.variant.label in bad]
        for stem in kernel_report.STEMS
    }  # fmt: skip
    shutil.rmtree(cache)


@pytest.mark.slow
@pytest.mark.parametrize("stem", kernel_report.STEMS)
def test_every_shipped_tile_is_sound(stem: str, matrix: dict[str, list[str]]) -> None:
    assert matrix[stem] == []
