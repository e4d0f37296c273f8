"""A training step without padding beside transformers': tokens a second, and peak memory.

Run ``python -m benchmarks.training --help`` in a checkout with the extra `bench` installed.
Markdown goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from benchmarks import report
from benchmarks import train_peers as peers
from benchmarks.harness import Candidate, Case, Result, as_data, measure
from benchmarks.machine import cpu_seconds_of_others, facts
from fastbert.atomic import atomic_write
from fastbert.cli.machine import this_machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).resolve().parent
RESULTS_PAGE, RESULTS_PLOT = HERE / "README.md", HERE / "training.png"
CANDIDATES = ("fastbert packed", "fastbert padded call", "transformers sdpa", "transformers eager")
QUIET = 0.1


@dataclass(frozen=True)
class Trained:
    """What was measured of one model and objective.

    Attributes:
        title: for headings.
        result: seconds of a pass.
        memory: candidate → peak bytes beyond the weights.
    """

    title: str
    result: Result
    memory: dict[str, int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for; 1 if any candidate was wrong."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    machine = facts()
    pairs = [(s, o) for s in args.models for o in args.objectives]
    with tqdm(disable=None, file=sys.stderr) as bar:
        trained = [_measure(shape, objective, args, bar) for shape, objective in pairs]
    markdown = to_markdown(trained, machine)
    sys.stdout.write(markdown)
    if args.json:
        _write(args.json, to_json(trained, machine))
    if args.plot:
        plot(trained, args.plot)
    if args.write_results:
        plot(trained, RESULTS_PLOT)
        report.write_between(RESULTS_PAGE, markdown, "training")
    wrong = [
        f"{t.title}: {m.name} is wrong by {m.error:.1e}"
        for t in trained
        for m in t.result.measurements
        if not m.right
    ]
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description="Verify, then time training steps on packed tokens beside transformers.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    shapes, objectives = tuple(peers.SHAPES), peers.OBJECTIVES
    add("--models", nargs="+", choices=shapes, default=shapes, help="default: all")
    add("--objectives", nargs="+", choices=objectives, default=objectives, help="default: all")
    add("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES, help="default: all")
    add("--texts", type=int, default=128, help="in batches of 32; default: 128")
    add("--threads", type=int, default=this_machine().usable_cpus, help="of torch, for everyone")
    add("--seconds", type=float, default=30.0, help="of timing a case; default: 30")
    add("--min-rounds", type=int, default=5, help="timed however long they take; default: 5")
    add("--json", type=Path, metavar="FILE", help="write every duration there")
    add("--plot", type=Path, metavar="FILE", help="write a PNG there")
    add("--write-results", action="store_true", help="replace the tables and the plot on the page")
    return parser


def _measure(shape: str, objective: str, args: argparse.Namespace, bar: tqdm[None]) -> Trained:
    title = f"{peers.SHAPES[shape][0]}, {objective}"
    batches = peers.examples(objective, args.texts)
    exact = peers.truth(shape, objective, batches[0])

    def candidate(name: str) -> Candidate:
        model = peers.build(name, shape, objective)
        return Candidate(
            name,
            peers.step_through(name, model, batches),
            lambda _: peers.error(name, model, batches[0], exact),
            peers.BOUND,
        )

    def progress(name: str) -> None:
        bar.set_description(f"{title}: {name}", refresh=False)
        bar.update()

    memory = {}
    for name in args.candidates:
        progress(f"memory of {name}")
        memory[name] = peers.peak_bytes(name, shape, objective, args.texts, args.threads)
    tokens = sum(example.tokens for example in batches)
    work = {"steps": len(batches), "tokens": tokens}
    case = Case(title, tuple(map(candidate, args.candidates)), peers.BASELINE, work)
    result = measure(
        case,
        seconds=args.seconds,
        min_rounds=args.min_rounds,
        progress=progress,
        others=cpu_seconds_of_others,
    )
    if result.disturbance > QUIET:
        sys.stderr.write(
            f"{title}: other processes kept {result.disturbance:.2f} cores busy; its numbers are"
            " worth little\n"
        )
    return Trained(title, result, memory)


def to_markdown(trained: Sequence[Trained], machine: report.Facts) -> str:
    """The machine, then a table a model and objective."""
    parts = [report.machine_table(machine)]
    header = ("", "ms a step", "real tokens/s", "times as fast", "MiB beyond the weights",
              "share of the baseline's", "error")  # fmt: skip
    for item in trained:
        result, base = item.result, item.memory.get(item.result.baseline)
        rows = []
        for m in result.measurements:
            rate = result.rate(m.name, "tokens")
            used = item.memory[m.name]
            rows.append(
                (
                    m.name,
                    report.cell(m.spread, 1e3 / result.work["steps"]),
                    "–" if rate is None else f"{rate:,.0f}",
                    report.speedup_cell(result, m.name),
                    f"{used / 2**20:,.0f}",
                    "–" if base is None else f"{used / base:.0%}",
                    f"{m.error:.1e}",
                )
            )
        work = f"{result.work['steps']:.0f} steps, {result.work['tokens']:,.0f} real tokens a pass"
        others = max(0.0, result.disturbance)
        parts += [
            f"### Training: {item.title}, float32",
            f"{work}; other processes kept {others:.2f} cores busy.",
            report.table(header, rows),
        ]
    return "\n\n".join(parts) + "\n"


def to_json(trained: Sequence[Trained], machine: report.Facts) -> str:
    """Everything that was measured, every single duration included."""
    data = {
        "machine": machine,
        "training": [
            {"title": t.title, "peak_bytes": t.memory, "result": as_data(t.result)} for t in trained
        ],
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plot(trained: Sequence[Trained], path: Path) -> None:
    """Speed and memory relative to the baseline, a panel each; needs the extra `bench`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1)
    speeds: dict[str, list[Any]] = {}
    shares: dict[str, list[Any]] = {}
    for item in trained:
        base = item.memory.get(item.result.baseline, 0)
        for name in item.memory:
            speed = item.result.speedup(name)
            speeds.setdefault(name, []).append(None if speed is None else speed.median)
            shares.setdefault(name, []).append(item.memory[name] / base if base else None)
    _bars(above, speeds, trained, "times as fast", "{:.1f}")
    _bars(below, shares, trained, "peak memory beyond the weights\n(share)", "{:.0%}")
    above.set_title(
        f"A training step on mixed lengths, relative to {peers.BASELINE}", loc="left", fontsize=10
    )
    above.legend(fontsize=8, ncols=4, frameon=False, loc="upper left")
    report.save(figure, path)


def _bars(
    axes: Axes, values: dict[str, list[Any]], trained: Sequence[Trained], label: str, form: str
) -> None:
    width = 0.84 / max(1, len(values))
    for place, (name, numbers) in enumerate(values.items()):
        shown = [(x, v) for x, v in enumerate(numbers) if v is not None]
        at = [x + (place + 0.5) * width - 0.42 for x, _ in shown]
        bars = axes.bar(at, [v for _, v in shown], width * 0.94, label=name,
                        color=report.COLOURS[place % len(report.COLOURS)])  # fmt: skip
        axes.bar_label(bars, [form.format(v) for _, v in shown], fontsize=7, padding=2)
    top = max((v for numbers in values.values() for v in numbers if v is not None), default=1.0)
    axes.set_ylim(0, 1.3 * max(1.0, top))
    axes.axhline(1.0, color="0.3", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xticks(range(len(trained)), [item.title for item in trained])
    axes.set_ylabel(label)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _write(path: Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
