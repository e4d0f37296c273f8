"""What the compiled Triton kernels look like: *static estimate, unmeasured on GPU*.

Run ``python -m benchmarks.kernel_report --help``. Every variant of every kernel is compiled ahead
of time, without a GPU, for every architecture. Markdown goes to stdout, progress to stderr. Exit 1
if a kernel does not compile or a shipped tile has a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from benchmarks import kernel_plot, layer_traffic
from benchmarks.kernel_faults import faults
from benchmarks.kernel_records import STATUS, Record
from benchmarks.kernel_worker import Job, Outcome, compile_all
from benchmarks.report import table
from fastbert.atomic import atomic_write
from fastbert.kernels.tiles import ARCHITECTURES
from fastbert.kernels.variant import Variant

__all__ = ["faults", "main"]

STEMS = ("attention", "linear", "layer_norm", "cross_entropy", "embedding")
QUICK = ("sm_80", "sm_90", "gfx942")
"""Architectures of ``--quick``."""
LAYER = layer_traffic.Shape(T=8192, C=768, F=3072, H=12, B=64, W=96)
"""BERT-base on 64 texts of 128 tokens, in 16 bits."""


def list_jobs(modules: Iterable[str], archs: Sequence[str]) -> list[Job]:
    """Every variant of these modules for these architectures.

    Args:
        modules: whose `variants()` to take.
        archs: names in `ARCHITECTURES`.

    Raises:
        ValueError: if two variants bear one label.
    """
    jobs = [
        Job(name, variant)
        for name in modules
        for variant in import_module(name).variants()
        if variant.arch in archs
    ]
    twice = [label for label, n in Counter(j.variant.label for j in jobs).items() if n > 1]
    if twice:
        raise ValueError(f"two variants bear one label: {', '.join(twice)}")
    return jobs


def quick(jobs: Iterable[Job]) -> list[Job]:
    """Each kernel once on each of a few architectures (`QUICK`), in 16 bits where it can."""
    chosen = [job for job in jobs if job.variant.arch in QUICK]
    return _first(chosen, lambda v: (v.stem, v.name, v.arch))


def sample(jobs: Iterable[Job]) -> list[Job]:
    """Each kernel once with each tile that it has on each architecture; on some, dropout too.

    About a fifth of all: what continuous integration has time for.
    """

    def key(v: Variant) -> Hashable:
        return v.stem, v.name, v.arch, v.tile, v.arch in QUICK and "dropout" in v.detail

    return _first(jobs, key)


def _first(jobs: Iterable[Job], key: Callable[[Variant], Hashable]) -> list[Job]:
    found: dict[Hashable, Job] = {}
    for job in sorted(jobs, key=lambda job: job.variant.dtype != "bf16"):
        found.setdefault(key(job.variant), job)
    return list(found.values())


def wrong(outcomes: Iterable[Outcome]) -> dict[str, list[str]]:
    """Label → what is wrong with it, of those with a fault or without a record."""
    found = {
        outcome.job.variant.label: [f"does not compile: {outcome.error}"]
        if outcome.record is None
        else faults(outcome.record, outcome.job.variant)
        for outcome in outcomes
    }
    return {label: reasons for label, reasons in found.items() if reasons}


def to_json(outcomes: Sequence[Outcome]) -> str:
    """Records, the faults of each among them; what did not compile has none."""
    records = [
        {**o.record, "faults": faults(o.record, o.job.variant)} for o in outcomes if o.record
    ]
    return json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Tables by architecture, what is wrong, and the layer's launches and bytes."""
    records = [o.record for o in outcomes if o.record]
    parts = [
        f"**{STATUS[0].upper()}{STATUS[1:]}.** Phase: an estimate of the hottest loop's share of"
        " tensor peak, T / max(T + max(MUFU, FMA, ALU, issue), shared memory) in cycles of a"
        " sub-partition; sm_86, 89 and 120 are read by sm_80's rates, the others have no table."
        " Occupancy: programs on a multiprocessor × warps / most warps. Spills: STL + LDL, on"
        " gfx942 vector + scalar registers by the AMDGPU metadata. Sources: `benchmarks/phase.py`,"
        " `benchmarks/occupancy.py`.",
    ]
    for arch in ARCHITECTURES:
        of_arch = [r for r in records if r["arch"] == arch]
        if of_arch:
            parts += [f"### {arch}", _kernel_table(of_arch)]
            if any(r["hot_loop"] for r in of_arch):
                parts += ["Hottest loop, one iteration, instructions of a warp:", _mix(of_arch)]
    bad = wrong(outcomes)
    parts += ["### Faults", table(["tile", "fault"], _fault_rows(bad)) if bad else "None."]
    return "\n\n".join([*parts, "### A BERT layer, forward", *_layer(LAYER)]) + "\n"


def _fault_rows(bad: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    for label, reasons in bad.items():
        yield f"`{label}`", "; ".join(reasons).replace("|", "\\|").replace("\n", " ")


def _name(record: Record) -> str:
    return " ".join(part for part in (record["kernel"], record["detail"]) if part)


def _kernel_table(records: Sequence[Record]) -> str:
    header = ["kernel", "dtype", "tile", "registers", "spills", "stack", "shared", "programs",
              "occupancy", "tensor op", "phase", "loads and stores"]  # fmt: skip
    return table(header, map(_kernel_row, records))


def _kernel_row(r: Record) -> list[str]:
    accesses = ", ".join(f"{count}×{name}" for name, count in r["accesses"].items())
    phase = "–" if r["phase"] is None else f"{r['phase']:.2f}"
    return [
        *(_name(r), r["dtype"], r["tile"]),
        *(str(r[key]) for key in ("registers", "spills", "stack", "shared", "programs")),
        *(f"{r['occupancy']:.0%}", r["tensor_op"] or "–", phase, accesses or "–"),
    ]


def _mix(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        loop = r["hot_loop"]
        if loop:
            most = ", ".join(f"{n} {name}" for name, n in list(loop["mix"].items())[:12])
            rows.append([_name(r), r["dtype"], r["tile"], loop["instructions"], most])
    return table(["kernel", "dtype", "tile", "instructions", "of which"], rows)


def _layer(shape: layer_traffic.Shape) -> list[str]:
    launches = layer_traffic.launches(shape)
    rows: list[tuple[str, str, str, str]] = [
        (launch.name, f"`{launch.op}`", f"{launch.read:,}", f"{launch.written:,}")
        for launch in launches
    ]
    read, written = sum(x.read for x in launches), sum(x.written for x in launches)
    rows.append((f"{len(launches)} launches", "", f"{read:,}", f"{written:,}"))
    sizes = ", ".join(f"{name} = {value}" for name, value in vars(shape).items())
    return [
        table(["launch", "op", "bytes read", "bytes written"], rows),
        f"With {sizes}. Every tensor that crosses a launch is written once and read once:"
        f" {layer_traffic.FORMULA} = {layer_traffic.layer_bytes(shape):,} bytes, and the table's"
        f" sum is {read + written:,}.",
    ]


def keep_binaries(outcomes: Iterable[Outcome], directory: Path) -> None:
    """Copy each binary into a directory, under its record's `binary` name."""
    directory.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        if outcome.record is not None and outcome.binary is not None:
            with atomic_write(directory / outcome.record["binary"]) as file:
                file.write(outcome.binary.read_bytes())


@contextmanager
def _cache(directory: Path | None, keep: bool) -> Iterator[Path]:
    if not keep:
        with tempfile.TemporaryDirectory() as passing:
            yield Path(passing)
        return
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    yield directory or Path(base) / "fastbert" / "kernel_report"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_report", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--stems", nargs="+", choices=STEMS, default=STEMS)
    fewer = parser.add_mutually_exclusive_group()
    for choose in (quick, sample):
        fewer.add_argument(
            f"--{choose.__name__}", dest="choose", action="store_const", const=choose,
            help=str(choose.__doc__).partition("\n")[0].replace("`QUICK`", ", ".join(QUICK)),
        )  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one record a kernel")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG")
    parser.add_argument("--cubins", type=Path, metavar="DIR", help="keep every binary there")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of records and binaries")
    parser.add_argument("--no-cache", action="store_true", help="compile everything anew")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 1 if anything is wrong with a kernel."""
    arguments = _parser().parse_args(argv)
    jobs = list_jobs([f"fastbert.kernels.{stem}" for stem in arguments.stems], arguments.arch)
    jobs = arguments.choose(jobs) if arguments.choose else jobs
    with _cache(arguments.cache, not arguments.no_cache) as cache:
        outcomes = _compile(jobs, cache, arguments.workers)
        if arguments.cubins:
            keep_binaries(outcomes, arguments.cubins)
    markdown = to_markdown(outcomes)
    sys.stdout.write(markdown)
    for path, text in ((arguments.markdown, markdown), (arguments.json, to_json(outcomes))):
        if path:
            with atomic_write(path, "w") as file:
                file.write(text)
    if arguments.plot:
        kernel_plot.plot([o.record for o in outcomes if o.record], arguments.plot)
    bad = wrong(outcomes)
    for label, reasons in bad.items():
        print(f"{label}: {'; '.join(reasons)}", file=sys.stderr)
    return 1 if bad else 0


def _compile(jobs: Sequence[Job], cache: Path, workers: int) -> list[Outcome]:
    with tqdm(total=len(jobs), unit="kernel", disable=not sys.stderr.isatty()) as bar:
        return compile_all(jobs, cache, workers=workers, done=lambda _: bar.update())


if __name__ == "__main__":
    sys.exit(main())
