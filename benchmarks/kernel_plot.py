"""The kernel report as a picture: phase, registers and occupancy, a row a kernel."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.kernel_records import STATUS, Record
from benchmarks.report import save
from fastbert.kernels.tiles import ARCHITECTURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rows_of(records: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """Kernel → architecture → the record to show: of its best phase, else of most occupancy.

    One dtype stands for all: bf16 where there is any.
    """
    dtypes = {record["dtype"] for record in records}
    dtype = "bf16" if "bf16" in dtypes else min(dtypes, default="")
    rows: dict[str, dict[str, Record]] = {}
    for record in records:
        if record["dtype"] == dtype:
            name = " ".join(part for part in (record["kernel"], record["detail"]) if part)
            row = rows.setdefault(name, {})
            shown = row.get(record["arch"])
            if shown is None or _rank(record) > _rank(shown):
                row[record["arch"]] = record
    return dict(sorted(rows.items(), key=lambda row: _natural(row[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in a name by their size."""
    return [(int(p) if p.isdigit() else 0, p) for p in re.split(r"(\d+)", name)]


def _rank(record: Record) -> tuple[float, float]:
    return (record["phase"] or 0.0, record["occupancy"])


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw three tables of numbers with a shade for each; needs the extra `bench`.

    Args:
        records: of the report.
        path: of a PNG.
    """
    from matplotlib.figure import Figure

    rows = rows_of(records)
    archs = [a for a in ARCHITECTURES if any(a in row for row in rows.values())]
    longest = max((len(name) for name in rows), default=0)
    figure = Figure(
        figsize=(4.0 + 0.075 * longest + 3 * 0.52 * len(archs), 1.5 + 0.24 * len(rows)),
        layout="constrained",
    )
    panels = figure.subplots(1, 3, sharey=True)
    shades: tuple[tuple[str, str, float, Callable[[Record], float | None], str], ...] = (
        ("phase: share of tensor peak", "Blues", 1.0, lambda r: r["phase"], ".2f"),
        ("registers of a thread", "Oranges", 255.0, lambda r: r["registers"], ".0f"),
        ("occupancy", "Blues", 1.0, lambda r: r["occupancy"], ".0%"),
    )
    for axes, (title, shade, most, value, form) in zip(panels, shades, strict=True):
        _panel(axes, [[row.get(a) for a in archs] for row in rows.values()], shade, most, value)
        _numbers(axes, [[row.get(a) for a in archs] for row in rows.values()], value, form, most)
        axes.set_title(title, loc="left", fontsize=9, pad=16)
        axes.set_xticks(range(len(archs)), [a.removeprefix("sm_") for a in archs], fontsize=8)
        axes.set_yticks(range(len(rows)), list(rows), fontsize=7)
        axes.tick_params(length=0, labeltop=True)
        axes.spines[:].set_visible(False)
    figure.suptitle(
        f"Kernels by architecture (sm_ left out), {_dtype(rows)}; {STATUS}", x=0.01, ha="left",
        fontsize=10,
    )  # fmt: skip
    save(figure, path)


def _dtype(rows: dict[str, dict[str, Record]]) -> str:
    return next((r["dtype"] for row in rows.values() for r in row.values()), "nothing")


Cells = Sequence[Sequence["Record | None"]]


def _panel(
    axes: Axes, cells: Cells, shade: str, most: float, value: Callable[[Record], float | None]
) -> None:
    shades = [[_or_nan(record, value) for record in row] for row in cells]
    if shades:
        axes.imshow(shades, cmap=shade, vmin=0, vmax=1.25 * most, aspect="auto")


def _or_nan(record: Record | None, value: Callable[[Record], float | None]) -> float:
    found = None if record is None else value(record)
    return float("nan") if found is None else float(found)


def _numbers(
    axes: Axes, cells: Cells, value: Callable[[Record], float | None], form: str, most: float
) -> None:
    for y, row in enumerate(cells):
        for x, record in enumerate(row):
            number = _or_nan(record, value)
            blank = number != number  # NaN: no such figure
            text = ("–" if record is not None else "") if blank else format(number, form)
            dark = not blank and number > 0.8 * most
            axes.text(
                x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "0.1"
            )
