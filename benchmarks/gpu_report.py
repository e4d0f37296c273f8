"""The rows of `benchmarks.gpu` as Markdown, JSON and plots."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import COLOURS, save, table
from fastbert.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
Rows = dict[str, list[Row]]
DRY = (
    "**Dry run.** Tiny shapes on a CPU under Triton's interpreter: it shows that the command works."
    " Every figure here is meaningless for a GPU; fastbert stays *unmeasured on GPU*. Only float32"
    " ran: bfloat16 and float16 did not, since the interpreter computes them wrongly."
)
_NOTES = {
    "parity": "Of allowed: the largest error, of the result or a gradient, over what is allowed:"
    " 1.5 times (gradients and encoder: 2 times) the error of plain torch in the same dtype plus"
    " one ulp, both against float64. Graphs: replay against a plain call. With dropout,"
    " whose mask is the kernel's own, results are only seen to be finite (*ran*).",
    "races": "The same call again and again, results and gradients compared bit for bit.",
    "sanitizers": "compute-sanitizer on every op at tiny shapes, forward and backward.",
    "peaks": "What this device reached in this run; shares below refer to it.",
    "kernels": "BERT-base, 16,384 tokens (M = 2,048 labels). Bytes: what must be read and written."
    " Timed, not compared: parity does that.",
    "models": "Shares: operations on real tokens, of the GEMM peak in that precision.",
}


def tally(rows: Sequence[Row]) -> str:
    """How many rows there are of each state."""
    counted = Counter(row["state"] for row in rows)
    return ", ".join(f"{count} {state}" for state, count in counted.items()) or "nothing"


def write(rows: Rows, directory: Path, *, dry: bool) -> None:
    """``report.json``, ``report.md`` and, where matplotlib is installed, the plots."""
    rows = with_shares(rows)
    data = {"dry": dry, "sections": rows}
    text = json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n"
    plots = _plots(rows, directory, dry)
    for name, content in (("report.json", text), ("report.md", to_markdown(rows, plots, dry=dry))):
        with atomic_write(directory / name, "w") as file:
            file.write(content)


def with_shares(rows: Rows) -> Rows:
    """Rates, and shares of the peaks that the same run measured, beside every duration."""
    gemm, copy = _peaks(rows.get("peaks", []))
    return {name: [_with_shares(row, gemm, copy) for row in found] for name, found in rows.items()}


def _peaks(rows: Sequence[Row]) -> tuple[dict[str, float], float | None]:
    gemm = {row["dtype"]: row["flops_per_second"] for row in rows if "flops_per_second" in row}
    copies = [row["bytes_per_second"] for row in rows if "bytes_per_second" in row]
    return gemm, copies[0] if copies else None


def _with_shares(row: Row, gemm: dict[str, float], copy: float | None) -> Row:
    seconds = row.get("median_s") or row.get("seconds")
    if row["state"] not in ("passed", "ran") or not isinstance(seconds, float):
        return row
    work = row.get("work", row)
    more: Row = {"flops_per_second": work["flops"] / seconds}
    if "tokens" in work:
        more["tokens_per_second"] = work["tokens"] / seconds
    if row["dtype"] in gemm:
        more["share_of_gemm"] = more["flops_per_second"] / gemm[row["dtype"]]
    if copy is not None and "moved" in work:
        more["bytes_per_second"] = work["moved"] / seconds
        more["share_of_copy"] = more["bytes_per_second"] / copy
    return row | more


def to_markdown(rows: Rows, plots: Sequence[str], *, dry: bool) -> str:
    """The whole report."""
    parts = ["# fastbert on a GPU", *([DRY] if dry else []), _environment(rows)]
    parts += ["## Summary", table(["section", "rows"], [(n, tally(r)) for n, r in rows.items()])]
    for state, title in (("failed", "## Failed"), ("could not run", "## Could not run")):
        lines = list(_named(rows, state))
        if lines:
            parts += [title, "\n".join(lines)]
    for name, found in rows.items():
        if name != "environment" and found:
            parts += [f"## {name.capitalize()}", _NOTES.get(name, ""), _section(found)]
    parts += [f"![{name}]({name})" for name in plots]
    if not plots:
        parts.append("No plots: matplotlib is not installed, or nothing was timed.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _environment(rows: Rows) -> str:
    (row,) = rows.get("environment") or [{}]
    left_out = ("what", "dtype", "state", "detail", "versions")
    facts = [(k, v) for k, v in row.items() if k not in left_out]
    versions = ", ".join(f"{name} {v}" for name, v in row.get("versions", {}).items() if v)
    return table(["", "this run"], [*facts, ("versions", versions)])


def _named(rows: Rows, state: str) -> Iterator[str]:
    """A line each: what, in which precision, and why."""
    for section, found in rows.items():
        for row in found:
            if row["state"] == state:
                named = " ".join(filter(None, (row["what"], row["dtype"], row.get("workload"))))
                reason = " ".join(str(row["detail"]).split())
                yield f"- {section}: {named}" + (f": {reason}" if reason else "")


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("workload", "workload", str),
    ("of_allowed", "of allowed", "{:.2f}".format),
    ("repeats", "repeats", str),
    ("differing", "differing", str),
    ("seconds", "forward ms", lambda value: _milliseconds(value)),
    ("seconds_with_backward", "with backward ms", lambda value: _milliseconds(value)),
    ("median_s", "ms", lambda value: _milliseconds(value)),
    ("tokens_per_second", "tokens/s", "{:,.0f}".format),
    ("speedup", "times as fast", "{:.2f}".format),
    ("flops_per_second", "TFLOP/s", lambda value: f"{value / 1e12:.3g}"),
    ("share_of_gemm", "of GEMM", "{:.0%}".format),
    ("bytes_per_second", "GB/s", lambda value: f"{value / 1e9:.3g}"),
    ("share_of_copy", "of copy", "{:.0%}".format),
)


def _milliseconds(value: Any) -> str:
    return f"{1e3 * value:.3g}" if isinstance(value, float) else "–"


def _section(rows: Sequence[Row]) -> str:
    """A table with those columns that some row has."""
    shown = [c for c in _COLUMNS if any(row.get(c[0]) is not None for row in rows)]
    header = ["", "dtype", "state", *(title for _, title, _ in shown)]
    lines = []
    for row in rows:
        cells = ["–" if row.get(key) is None else as_text(row[key]) for key, _, as_text in shown]
        lines.append([row["what"], row["dtype"], row["state"], *cells])
    return table(header, lines)


def _plots(rows: Rows, directory: Path, dry: bool) -> list[str]:
    """Names of the plots that were drawn."""
    if find_spec("matplotlib") is None:
        return []
    drawn = []
    speed = [row for row in rows.get("models", []) if "tokens_per_second" in row]
    if speed:
        found = {
            (row["what"], f"{row['workload']}\n{row['dtype']}"): row["tokens_per_second"]
            for row in speed
        }
        _bars(directory / "models.png", "tokens/s", found, dry)
        drawn.append("models.png")
    kernels = [row for row in rows.get("kernels", []) if "seconds" in row]
    if kernels:
        found = {}
        for row in kernels:
            bound = "share_of_gemm" if row["flops"] else "share_of_copy"
            found[row["dtype"], row["what"]] = 100 * row.get(bound, 0.0)
        title = "% of GEMM peak, of copy bandwidth where no GEMM"
        _bars(directory / "kernels.png", title, found, dry)
        drawn.append("kernels.png")
    return drawn


def _bars(path: Path, title: str, values: dict[tuple[str, str], float], dry: bool) -> None:
    """Horizontal bars of (series, group) → value: a colour a series, side by side in a group."""
    from matplotlib.figure import Figure

    series, groups = (list(dict.fromkeys(key[place] for key in values)) for place in (0, 1))
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(groups) * len(series)), layout="constrained")
    axes: Axes = figure.subplots()
    height = 0.84 / len(series)
    for place, name in enumerate(series):
        shown = [(y, values[name, g]) for y, g in enumerate(groups) if (name, g) in values]
        axes.barh(
            [y + (place + 0.5) * height - 0.42 for y, _ in shown],
            [value for _, value in shown],
            height * 0.94,
            label=name,
            color=COLOURS[place % len(COLOURS)],
        )
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title + (" (dry run: meaningless)" if dry else ""), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    save(figure, path)
