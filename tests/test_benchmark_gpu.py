"""`benchmarks.gpu`: who is judged and how, what is said of what did not run, and a dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import ROOT, benchmarks

from fastbert import ops

gpu = benchmarks("gpu")
gpu_cases = benchmarks("gpu_cases")
gpu_report = benchmarks("gpu_report")
gpu_stage = benchmarks("gpu_stage")
CPU = torch.device("cpu")
DRY = gpu.Options(dry=True, repeats=2, seconds=0.1, limit=60.0)
CASES = {case.name: case for case in gpu_cases.cases(gpu_cases.TINY, CPU, torch.float32)}


# --- judging


@pytest.mark.parametrize("name", CASES)
def test_plain_torch_is_within_what_it_is_allowed(name: str) -> None:
    case = CASES[name]
    if case.judged:
        shares = gpu_cases.judge(case, gpu_cases.results(case))
        assert len(shares) == 1 + len(case.inputs)
        assert max(shares) <= 1
    else:
        assert "dropout" in name


@pytest.mark.parametrize("spoilt", ["value", "gradient", "nan", "dtype", "shape"])
def test_what_is_wrong_is_beyond_what_is_allowed(spoilt: str) -> None:
    case = CASES["residual_layer_norm C=64"]
    ours = gpu_cases.results(case)
    if spoilt == "value":
        ours[0][3, 4] += 1e-5
    elif spoilt == "gradient":
        ours[2][3, 4] += 1e-5
    elif spoilt == "nan":
        ours[0][0, 0] = float("nan")
    elif spoilt == "dtype":
        ours[0] = ours[0].double()
    else:
        ours[0] = ours[0][:-1]
    assert max(gpu_cases.judge(case, ours)) > 1


def test_every_op_of_the_waist_has_a_case() -> None:
    named = {name.split()[0] for name in CASES}
    assert named == {
        "bias_gelu",
        "embed_layer_norm",
        "linear",
        "linear_cross_entropy",
        "residual_layer_norm",
        "varlen_attention",
    }
    dims = {size.dim for size in gpu_cases.PARITY}
    assert dims == {32, 64, 80, 96, 128}


def test_inputs_are_the_same_each_time() -> None:
    again = gpu_cases.cases(gpu_cases.TINY, CPU, torch.float32)
    for case in again:
        for a, b in zip(case.inputs, CASES[case.name].inputs, strict=True):
            assert torch.equal(a, b)


# --- who served


def test_what_the_reference_served_is_no_success() -> None:
    def run() -> dict[str, Any]:
        gpu_cases.results(CASES["bias_gelu 96"])
        return {"state": "passed"}

    before = dict(ops.registry._IMPLEMENTATIONS["reference"])
    with gpu_stage.counting() as served:
        run()
        with gpu_stage.uncounted():
            run()
    assert served == {"bias_gelu": 1, "bias_gelu_backward": 1}
    assert ops.registry._IMPLEMENTATIONS["reference"] == before


def test_an_attempt_says_why_it_could_not_run() -> None:
    def run() -> dict[str, Any]:
        raise NotImplementedError("no such tile")

    row = gpu_stage.attempt("x", torch.bfloat16, run, ours=False)
    assert row == {
        "what": "x",
        "dtype": "bfloat16",
        "state": "could not run",
        "detail": "NotImplementedError: no such tile",
    }


def test_an_attempt_of_ours_that_the_reference_served_could_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ops.registry._IMPLEMENTATIONS, "triton", {})  # a Triton without kernels
    monkeypatch.setattr(ops.registry, "_LOADERS", {})

    def run() -> dict[str, Any]:
        gpu_cases.results(CASES["bias_gelu 96"])
        return {"state": "passed"}

    row = gpu_stage.attempt("bias_gelu", torch.float32, run)
    assert row["state"] == "could not run"
    assert row["detail"] == "the reference served bias_gelu, bias_gelu_backward"
    assert gpu_stage.attempt("peer", torch.float32, run, ours=False)["state"] == "passed"


# --- sections as processes


def test_without_a_gpu_and_without_dry_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "out")]) == 2
    assert "--dry" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_section_that_dies_is_a_row_that_says_so(tmp_path: Path) -> None:
    done = gpu.worker("no such section", DRY, tmp_path / "x.json")
    (row,) = done.rows
    assert (row["what"], row["state"]) == ("no such section", "failed")
    assert "exit 2" in row["detail"]
    assert "invalid choice" in row["detail"]


def test_a_section_that_hangs_is_ended(tmp_path: Path) -> None:
    options = replace(DRY, limit=0.05)
    (row,) = gpu.worker("small", options, tmp_path / "x.json").rows
    assert row["state"] == "failed"
    assert "ended after" in row["detail"]


# Notes how it was called, and writes the rows that a worker would have written.
SANITIZER = """#!{python}
import json, os, sys
from pathlib import Path
noted = {{"arguments": sys.argv[1:], "caching": os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING")}}
with Path({log!r}).open("a") as file:
    file.write(json.dumps(noted) + "\\n")
output = Path(sys.argv[sys.argv.index("--output") + 1])
output.write_text(json.dumps([{{"what": "linear", "dtype": "", "state": {state!r}, "detail": ""}}]))
print("========= ERROR SUMMARY: {errors} errors")
sys.exit({code})
"""


def sanitized(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    dry: bool = False,
    state: str = "passed",
    errors: int = 0,
    code: int = 0,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the sanitizers, and how a stand-in for the tool was called."""
    program, log = directory / "compute-sanitizer", directory / "log"
    text = SANITIZER.format(
        python=sys.executable, log=str(log), state=state, errors=errors, code=code
    )
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
    rows = gpu.sanitizers(replace(DRY, dry=dry), directory)
    return rows, [json.loads(line) for line in log.read_text().splitlines()]


def test_each_sanitizer_watches_every_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, calls = sanitized(tmp_path, monkeypatch)
    assert [row["what"] for row in rows] == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert {row["state"] for row in rows} == {"passed"}
    assert [call["arguments"][1] for call in calls] == [row["what"] for row in rows]
    for call in calls:
        assert call["arguments"][2:5] == ["--error-exitcode", "77", sys.executable]
        assert "small" in call["arguments"]
        assert call["caching"] == "1"


@pytest.mark.parametrize(
    ("told", "state", "detail"),
    [
        ({"errors": 3, "code": 77}, "failed", "3 errors"),
        ({"code": 139}, "failed", "0 errors"),
        ({"state": "could not run"}, "failed", "did not watch linear"),
        ({"dry": True}, "could not run", "dry mode"),
    ],
)
def test_what_a_sanitizer_did_not_prove_is_not_claimed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, Any],
    state: str,
    detail: str,
) -> None:
    rows, _ = sanitized(tmp_path, monkeypatch, **told)
    assert {row["state"] for row in rows} == {state}
    assert detail in rows[0]["detail"]


def test_without_the_sanitizer_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = gpu.sanitizers(DRY, tmp_path)
    assert [row["state"] for row in rows] == ["could not run"] * 4
    assert "PATH" in rows[0]["detail"]


# --- the report


def row(what: str, state: str = "passed", dtype: str = "bfloat16", **more: Any) -> dict[str, Any]:
    return {"what": what, "dtype": dtype, "state": state, "detail": "", **more}


ROWS: dict[str, list[dict[str, Any]]] = {
    "environment": [row("environment", "ran", "", device="GPU X", versions={"torch": "2"})],
    "peaks": [
        row("GEMM", "ran", flops_per_second=100e12),
        row("copy", "ran", "", bytes_per_second=1e12),
    ],
    "parity": [
        row("linear", of_allowed=0.5),
        {**row("attention", "could not run"), "detail": "D=80 is\nnot served"},
    ],
    "races": [{**row("norm", "failed", repeats=1000, differing=3), "detail": "3 of 1000 differ"}],
    "kernels": [
        row("linear", "ran", seconds=0.001, flops=50e9, moved=1e8),
        row("norm", "ran", "float32", seconds=0.001, flops=0.0, moved=4e8),
    ],
    "models": [
        row("fastbert", workload="mixed", median_s=0.01, work={"tokens": 5000, "flops": 2e11}),
        row("peer", "failed", workload="mixed", median_s=None, work={"tokens": 5000, "flops": 1.0}),
    ],
}


def test_shares_refer_to_the_peaks_of_the_same_run() -> None:
    rows = gpu_report.with_shares(ROWS)
    linear, norm = rows["kernels"]
    assert linear["share_of_gemm"] == pytest.approx(0.5)
    assert linear["share_of_copy"] == pytest.approx(0.1)
    assert norm["share_of_copy"] == pytest.approx(0.4)
    assert "share_of_gemm" not in norm  # no peak was measured in that precision
    ours, peer = rows["models"]
    assert ours["tokens_per_second"] == pytest.approx(500_000)
    assert ours["share_of_gemm"] == pytest.approx(0.2)
    assert "tokens_per_second" not in peer


def test_the_report_names_what_failed_and_what_could_not_run(tmp_path: Path) -> None:
    gpu_report.write(ROWS, tmp_path, dry=False)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "- races: norm bfloat16: 3 of 1000 differ" in text
    assert "- models: peer bfloat16 mixed" in text
    assert "- parity: attention bfloat16: D=80 is not served" in text
    assert "GPU X" in text
    assert "unmeasured" not in text
    assert json.loads((tmp_path / "report.json").read_text())["dry"] is False
    for name in ("models.png", "kernels.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
        assert f"({name})" in text


def test_a_dry_report_says_that_it_is_one() -> None:
    text = gpu_report.to_markdown(ROWS, [], dry=True)
    assert "Dry run" in text
    assert "unmeasured on GPU" in text
    assert "bfloat16 and float16 did not" in text
    assert "No plots" in text


def test_exit_codes() -> None:
    assert gpu._failed(ROWS, dry=True)
    fine = {"parity": [row("x", "could not run")], "models": [row("flash", "could not run")]}
    assert not gpu._failed(fine, dry=True)
    assert gpu._failed(fine, dry=False)  # a kernel of ours did not run on a GPU
    assert not gpu._failed({"parity": [row("x")], "models": fine["models"]}, dry=False)


@pytest.mark.slow
def test_a_dry_run_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert data["dry"] is True
    states = {name: {r["state"] for r in rows} for name, rows in data["sections"].items()}
    assert set(states) == set(gpu.SECTIONS)
    not_run = [r for rows in data["sections"].values() for r in rows if r["state"] not in
               ("passed", "ran")]  # fmt: skip
    named = {r["what"] for r in not_run}
    assert named == {*gpu.TOOLS, "graphs", "fastbert graphs", "transformers flash"}, not_run
    assert {r["differing"] for r in data["sections"]["races"]} == {0}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(name in text for name in named)
    assert {p.name for p in tmp_path.iterdir()} == {
        "report.md",
        "report.json",
        "models.png",
        "kernels.png",
    }
