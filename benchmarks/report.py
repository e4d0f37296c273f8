"""Results as JSON, as Markdown tables, and as a plot."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Result, Spread, as_data
from fastbert.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b5e9e", "#8ab6dc", "#d9822b", "#efc08a", "#7a7a7a")

Facts = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """One model in one precision.

    Attributes:
        model: its name, for headings.
        dtype: float32 or bfloat16.
        gemm_flops: FLOP/s of torch's own matrix product in that precision, measured beside it.
        results: one a case.
    """

    model: str
    dtype: str
    gemm_flops: float
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        """For headings and plots."""
        return f"{self.model}, {self.dtype}"

    @property
    def names(self) -> list[str]:
        """Every candidate of any case, in order of appearance."""
        return list(dict.fromkeys(m.name for r in self.results for m in r.measurements))


def to_json(groups: Sequence[Group], facts: Facts) -> str:
    """Everything that was measured, every single duration included."""
    data = {
        "machine": facts,
        "groups": [
            {
                "model": group.model,
                "dtype": group.dtype,
                "gemm_flops_per_second": group.gemm_flops,
                "results": [as_data(result) for result in group.results],
            }
            for group in groups
        ],
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(groups: Sequence[Group], facts: Facts) -> str:
    """The machine, then for each group milliseconds, ratios, and what the work was."""
    parts = [machine_table(facts)]
    for group in groups:
        parts += [
            f"### {group.title}",
            "Milliseconds, median (quartiles):",
            _by_candidate(group, _milliseconds),
            "Times as fast as the baseline (marked 1), median of the ratios of each round"
            " (quartiles):",
            _by_candidate(group, speedup_cell),
            "The work, and what the first candidate makes of it. Share: of the"
            f" {group.gemm_flops / 1e9:.0f} GFLOP/s that torch's own large matrix product reaches"
            " in this run. Others: cores that other processes kept busy meanwhile.",
            _work_table(group),
        ]
    return "\n\n".join(parts) + "\n"


def markers(name: str) -> tuple[str, str]:
    """What stands before and after the generated part of that name on a page."""
    return f"<!-- {name}: start -->", f"<!-- {name}: end -->"


def write_between(path: Path, text: str, name: str = "results") -> None:
    """Replace what stands between the two markers of that name in a file.

    Raises:
        ValueError: if the file has not exactly one of each, in order.
    """
    first, last = markers(name)
    page = path.read_text(encoding="utf-8")
    before, start, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not start or not end or first in after or last in before + after:
        raise ValueError(f"{path} must hold {first} and then {last}, once each")
    with atomic_write(path, "w") as file:
        file.write(f"{before}{first}\n\n{text.strip()}\n\n{last}{after}")


def plot(groups: Sequence[Group], path: Path) -> None:
    """Bars of the ratio to the baseline, a panel a group; needs the extra `bench`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.5 + 2.7 * len(groups)), layout="constrained")
    for axes, group in zip(figure.subplots(len(groups), squeeze=False)[:, 0], groups, strict=True):
        _panel(axes, group)
    named = {name: bars for axes in figure.axes for bars, name in _legend(axes)}
    figure.legend(
        named.values(), named.keys(), loc="outside upper left", ncols=5, fontsize=8, frameon=False
    )
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of few colours, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    with Image.open(drawn) as image, atomic_write(path) as file:
        image.convert("RGB").quantize(64).save(file, format="png", optimize=True)  # a third as big


def _legend(axes: Axes) -> Iterator[tuple[Any, str]]:
    """Bars and their names."""
    yield from zip(*axes.get_legend_handles_labels(), strict=True)


def _panel(axes: Axes, group: Group) -> None:
    width = 0.84 / len(group.names)
    top = 1.0
    for place, name in enumerate(group.names):
        found = [(x, r.speedup(name)) for x, r in enumerate(group.results)]
        shown = [(x + (place + 0.5) * width - 0.42, s) for x, s in found if s is not None]
        axes.bar(
            [x for x, _ in shown],
            [s.median for _, s in shown],
            width * 0.94,
            yerr=([s.median - s.low for _, s in shown], [s.high - s.median for _, s in shown]),
            error_kw={"linewidth": 0.8, "ecolor": "0.3"},
            label=name,
            color=COLOURS[place % len(COLOURS)],
        )
        for x, s in shown:
            _label(axes, x, s)
        top = max([top, *(s.high for _, s in shown)])
    axes.axhline(1.0, color="0.3", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_ylim(0, top * 1.25)
    axes.set_xticks(range(len(group.results)), [_tick(result) for result in group.results])
    axes.tick_params(labelsize=8)
    axes.set_title(f"{group.title}: speed relative to {_baselines(group)}", loc="left", fontsize=10)
    axes.set_ylabel("times as fast\n(bars: quartiles)")
    axes.spines[["top", "right"]].set_visible(False)


def _label(axes: Axes, x: float, spread: Spread) -> None:
    """The median above its bar, readable where it meets the line at 1."""
    axes.annotate(
        f"{spread.median:#.2g}".rstrip("."),
        (x, spread.high),
        (0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=7,
        rotation=90,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )


def _baselines(group: Group) -> str:
    """The usual baseline, and which cases have another."""
    usual = group.results[0].baseline
    others = [f"{r.case}: {r.baseline}" for r in group.results if r.baseline != usual]
    return usual + (f" ({'; '.join(others)})" if others else "")


def _tick(result: Result) -> str:
    lines = [result.case, f"{result.work['tokens']:,.0f} tokens"]
    if "padded_tokens" in result.work:
        lines.append(f"({result.work['padded_tokens']:,.0f} padded)")
    return "\n".join(lines)


def machine_table(facts: Facts) -> str:
    """Where and with what it was measured."""
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items() if v)
    cpu = facts["cpu"] + (f" ({facts['cpu_model_numbers']})" if facts["cpu_model_numbers"] else "")
    rows = [
        ("processor", cpu),
        ("instruction sets", " ".join(facts["instruction_sets"])),
        ("cores usable / of the machine", f"{facts['usable_cpus']} / {facts['cpus']}"),
        ("threads, the same for everyone", facts["threads"]),
        ("load average of the minute before", f"{facts['load_average_1min']:.2f}"),
        ("system", facts["system"]),
        ("versions", versions),
        ("date (UTC), commit", f"{facts['date']}, {facts['commit'] or 'none'}"),
    ]
    return table(["", "this run"], rows)


def _by_candidate(group: Group, cell: Callable[[Result, str], str]) -> str:
    header = ["", *(result.case for result in group.results)]
    return table(header, [[n, *(cell(r, n) for r in group.results)] for n in group.names])


def _work_table(group: Group) -> str:
    units = ("texts", "real tokens", "padded", "real tokens/s", "GFLOP/s", "share", "error")
    header = ["", *units, "others"]
    return table(header, [_work_row(result, group.gemm_flops) for result in group.results])


def _work_row(result: Result, gemm_flops: float) -> list[str]:
    first = result.measurements[0]
    tokens, flops = result.rate(first.name, "tokens"), result.rate(first.name, "flops")
    work = result.work
    return [
        result.case,
        f"{work['texts']:,.0f}",
        f"{work['tokens']:,.0f}",
        f"{work['padded_tokens']:,.0f}" if "padded_tokens" in work else "–",
        "–" if tokens is None else f"{tokens:,.0f}",
        "–" if flops is None else f"{flops / 1e9:.0f}",
        "–" if flops is None else f"{flops / gemm_flops:.0%}",
        f"{first.error:.1e}",
        "–" if math.isnan(result.disturbance) else f"{max(0.0, result.disturbance):.2f}",
    ]


def _milliseconds(result: Result, name: str) -> str:
    measured = result.find(name)
    if measured is None:
        return "–"
    if not measured.right:
        return f"wrong: error {measured.error:.1e}, allowed {measured.bound:.1e}"
    return cell(measured.spread, 1e3)


def speedup_cell(result: Result, name: str) -> str:
    """Times as fast as the baseline, with quartiles; 1 for the baseline itself."""
    spread = result.speedup(name)
    if spread is None:
        return "–"
    return "1" if name == result.baseline else cell(spread, 1.0, bold=spread.low > 1.0)


def cell(spread: Spread | None, scale: float, bold: bool = False) -> str:
    """Median with quartiles, scaled."""
    if spread is None:
        return "–"
    median, low, high = (_digits(scale * v) for v in (spread.median, spread.low, spread.high))
    mark = "**" if bold else ""
    return f"{mark}{median}{mark} ({low}–{high})"


def _digits(value: float) -> str:
    """Three significant digits, whole numbers from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
