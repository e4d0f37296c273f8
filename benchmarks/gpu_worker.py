"""One section of `benchmarks.gpu` in a process of its own, so that no fault reaches the others.

Writes a list of rows, each with at least ``what``, ``state`` and ``detail``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_cases import BENCH, PARITY, TINY, Case, Size, cases, judge, results
from benchmarks.gpu_stage import FAILED, PASSED, RAN, Row, Stage, attempt, uncounted
from benchmarks.machine import _version, facts
from fastbert.atomic import atomic_write
from fastbert.kernels.autotune import driver
from fastbert.ops.determinism import deterministic


def every_case(
    stage: Stage,
    sizes: Sequence[Size],
    run: Callable[[Case, torch.dtype], Row],
    wanted: Callable[[Case], bool] = lambda case: True,
) -> list[Row]:
    """`run` on all wanted cases of all sizes and precisions."""
    return [
        attempt(case.name, dtype, partial(run, case, dtype))
        for size in sizes
        for dtype in stage.dtypes
        for case in filter(wanted, cases(size, stage.device, dtype))
    ]


def parity(stage: Stage, args: argparse.Namespace) -> list[Row]:
    """Results and gradients of every op against float64; then encoder and graphs."""
    from benchmarks.gpu_model import encoder_parity

    def run(case: Case, dtype: torch.dtype) -> Row:
        ours = results(case)
        if not case.judged:
            finite = all(bool(t.isfinite().all()) for t in ours)
            return {"state": RAN if finite else FAILED, "detail": "" if finite else "not finite"}
        with uncounted():
            shares = judge(case, ours)
        return {"state": PASSED if max(shares) <= 1 else FAILED, "of_allowed": max(shares)}

    rows = every_case(stage, (TINY,) if stage.dry else PARITY, run)
    return rows + encoder_parity(stage)


def races(stage: Stage, args: argparse.Namespace) -> list[Row]:
    """The same call again and again, bit for bit; the results are compared on the device."""

    def run(case: Case, dtype: torch.dtype) -> Row:
        first = [_bits(t) for t in results(case)]
        wrong = torch.zeros((), dtype=torch.int64, device=stage.device)
        for _ in range(args.repeats - 1):
            again = [_bits(t) for t in results(case)]
            wrong += torch.stack([(a != b).any() for a, b in zip(first, again, strict=True)]).any()
        differing = int(wrong)
        detail = f"{differing} of {args.repeats} differ" if differing else ""
        state = FAILED if differing else PASSED
        return {"state": state, "repeats": args.repeats, "differing": differing, "detail": detail}

    sizes = (TINY,) if stage.dry else (PARITY[0],)
    rows = every_case(stage, sizes, run)
    with deterministic():
        fixed = every_case(stage, sizes, run, lambda case: case.name.startswith("linear "))
    return rows + [{**row, "what": f"{row['what']} deterministic"} for row in fixed]


def _bits(x: Tensor) -> Tensor:
    wide = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(wide[x.element_size()])


def small(stage: Stage, args: argparse.Namespace) -> list[Row]:
    """Every op once on tiny shapes: what the sanitizers watch."""

    def run(case: Case, dtype: torch.dtype) -> Row:
        results(case)
        stage.wait()
        return {"state": PASSED}

    return every_case(stage, (TINY,), run)


def peaks(stage: Stage, args: argparse.Namespace) -> list[Row]:
    """What this device reaches: the vendor's GEMM in each precision, and a copy."""
    n = 64 if stage.dry else 8192
    rows: list[Row] = []
    for dtype in stage.dtypes:
        a, b = (torch.randn(n, n, device=stage.device, dtype=dtype) for _ in range(2))
        took = stage.seconds(partial(torch.matmul, a, b), args.seconds)
        name = str(dtype).removeprefix("torch.")
        what = f"GEMM {n}×{n}×{n}"
        rows.append({"what": what, "dtype": name, "state": RAN, "detail": "",
                     "flops_per_second": 2.0 * n**3 / took})  # fmt: skip
    source = torch.empty((1 << 16) if stage.dry else (1 << 30), dtype=torch.uint8)
    source = source.to(stage.device).zero_()
    target = torch.empty_like(source)
    took = stage.seconds(lambda: target.copy_(source), args.seconds)
    rows.append({"what": f"copy of {source.numel()} bytes", "dtype": "", "state": RAN,
                 "detail": "", "bytes_per_second": 2.0 * source.numel() / took})  # fmt: skip
    return rows


def kernels(stage: Stage, args: argparse.Namespace) -> list[Row]:
    """Every op at BERT-base's size: seconds forward, and forward with backward."""

    def run(case: Case, dtype: torch.dtype) -> Row:
        def forward() -> object:
            with torch.inference_mode():
                return case.call(*case.inputs)

        return {
            "state": RAN,
            "seconds": stage.seconds(forward, args.seconds),
            "seconds_with_backward": stage.seconds(lambda: results(case), args.seconds),
            "flops": case.flops,
            "moved": case.moved,
        }

    return every_case(stage, (TINY,) if stage.dry else (BENCH,), run)


def models(stage: Stage, args: argparse.Namespace) -> list[Row]:
    """Whole encoders beside their peers."""
    from benchmarks.gpu_model import beside_peers

    return beside_peers(stage, args.seconds)


def environment(stage: Stage, args: argparse.Namespace) -> list[Row]:
    """Where this runs: processor, versions, and the device with its driver."""
    from triton import __version__ as triton

    found = facts()
    found["versions"] = {**found["versions"], "triton": triton, "CUDA": torch.version.cuda,
                         "flash-attn": _version("flash-attn")}  # fmt: skip
    if stage.dry:
        gpu: Row = {"device": "none: dry mode"}
    else:
        device = torch.cuda.get_device_properties(stage.device)
        gpu = {"device": device.name, "driver": driver(), "memory_bytes": device.total_memory,
               "capability": f"{device.major}.{device.minor}",
               "processors": device.multi_processor_count}  # fmt: skip
    return [{"what": "environment", "dtype": "", "state": RAN, "detail": "", **found, **gpu}]


SECTIONS: dict[str, Callable[[Stage, argparse.Namespace], list[Row]]] = {
    "environment": environment,
    "parity": parity,
    "races": races,
    "small": small,
    "peaks": peaks,
    "kernels": kernels,
    "models": models,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one section and write its rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_worker", allow_abbrev=False)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.5)
    args = parser.parse_args(arguments)
    rows = SECTIONS[args.section](Stage(args.dry), args)
    with atomic_write(args.output, "w") as file:
        file.write(json.dumps(rows, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
