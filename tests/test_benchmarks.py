"""The harness and its reports, with candidates whose durations are known."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, benchmarks

harness = benchmarks("harness")
report = benchmarks("report")


class FakeClock:
    """A clock that only moves when a candidate says that it worked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Lab:
    """Candidates that take a known time, and the order in which they ran."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.ran: list[str] = []

    def candidate(
        self, name: str, duration: Callable[[int], float], error: float = 0.0, bound: float = 0.1
    ) -> Any:
        def run() -> str:
            self.clock.now += duration(self.ran.count(name))
            self.ran.append(name)
            return name

        return harness.Candidate(name, run, lambda output: error, bound)

    def measure(self, *candidates: Any, baseline: str = "a", **options: Any) -> Any:
        case = harness.Case("case", candidates, baseline, {"tokens": 100.0, "flops": 1e9})
        options = {"seconds": 0.0, "min_rounds": 4, "clock": self.clock, **options}
        return harness.measure(case, **options)


def result(**seconds: tuple[float, ...]) -> Any:
    measured = tuple(harness.Measurement(name, 0.0, 1.0, s) for name, s in seconds.items())
    return harness.Result("case", "a", {"texts": 1, "tokens": 100.0, "flops": 1e9}, measured)


@pytest.mark.parametrize("error", [0.2, float("nan"), float("inf")])
def test_a_wrong_candidate_is_reported_and_never_timed(error: float) -> None:
    lab = Lab()
    found = lab.measure(
        lab.candidate("a", lambda _: 1.0), lab.candidate("b", lambda _: 1.0, error=error)
    )
    assert lab.ran.count("b") == 1  # to be verified
    assert not found.find("b").right
    assert found.find("b").seconds == ()
    assert found.find("b").spread is None
    assert found.speedup("b") is None
    assert found.rate("b", "tokens") is None
    assert len(found.find("a").seconds) == 4


def test_an_error_at_its_bound_is_right() -> None:
    lab = Lab()
    found = lab.measure(lab.candidate("a", lambda _: 1.0, error=0.5, bound=0.5))
    assert found.find("a").right


def test_every_candidate_is_verified_before_any_is_timed() -> None:
    lab = Lab()
    lab.measure(*(lab.candidate(name, lambda _: 1.0) for name in "abc"))
    assert lab.ran[:3] == ["a", "b", "c"]
    assert lab.ran[3:9] == ["a", "b", "c"] * harness.WARM_UP


def test_rounds_hold_every_candidate_once_in_changing_order() -> None:
    lab = Lab()
    lab.measure(*(lab.candidate(name, lambda _: 1.0) for name in "abc"), min_rounds=20)
    timed = lab.ran[3 + 3 * harness.WARM_UP :]
    rounds = [tuple(timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 2
    assert {order[0] for order in rounds} == {"a", "b", "c"}


def test_durations_and_ratios_follow_the_clock_when_the_machine_drifts() -> None:
    lab = Lab()
    skipped = 1 + harness.WARM_UP  # runs before the first timed one
    found = lab.measure(
        lab.candidate("a", lambda run: 6.0 * 2.0 ** (run - skipped)),
        lab.candidate("b", lambda run: 2.0 * 2.0 ** (run - skipped)),
    )
    assert found.find("a").seconds == (6.0, 12.0, 24.0, 48.0)
    assert found.find("b").seconds == (2.0, 4.0, 8.0, 16.0)
    assert found.speedup("b") == harness.Spread(3.0, 3.0, 3.0)
    assert found.speedup("a") == harness.Spread(1.0, 1.0, 1.0)
    assert found.rate("b", "tokens") == pytest.approx(100.0 / 6.0)


def test_ratios_are_taken_within_a_round() -> None:
    found = result(a=(1.0, 2.0, 9.0), b=(1.0, 4.0, 3.0))
    assert found.speedup("b").median == 1.0  # of 1, 0.5 and 3; the medians' ratio would be 2/3
    assert found.speedup("b").low == 0.75
    assert found.speedup("b").high == 2.0


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 4), (7.9, 4), (8.1, 5), (19.0, 10)])
def test_rounds_go_on_until_the_time_is_over(seconds: float, rounds: int) -> None:
    lab = Lab()
    found = lab.measure(
        lab.candidate("a", lambda _: 1.5), lab.candidate("b", lambda _: 0.5), seconds=seconds
    )
    assert len(found.find("a").seconds) == len(found.find("b").seconds) == rounds


def test_a_neighbour_that_keeps_cores_busy_is_reported() -> None:
    lab = Lab()
    busy = lab.candidate("a", lambda _: 2.0)
    quiet = lab.measure(busy, others=lambda: 7.0)
    assert quiet.disturbance == 0.0
    disturbed = lab.measure(busy, others=lambda: 1.5 * lab.clock.now)
    assert disturbed.disturbance == pytest.approx(1.5)
    assert harness.as_data(disturbed)["disturbance_cores"] == pytest.approx(1.5)
    assert harness.as_data(lab.measure(busy))["disturbance_cores"] is None


def test_without_its_baseline_a_case_has_times_and_no_ratios() -> None:
    lab = Lab()
    found = lab.measure(
        lab.candidate("a", lambda _: 1.0, error=1.0), lab.candidate("b", lambda _: 1.0)
    )
    assert found.speedup("b") is None
    assert found.find("b").spread.median == 1.0
    assert lab.measure(lab.candidate("c", lambda _: 1.0)).speedup("c") is None


def test_two_candidates_of_one_name_are_refused() -> None:
    lab = Lab()
    with pytest.raises(ValueError, match="one name"):
        lab.measure(lab.candidate("a", lambda _: 1.0), lab.candidate("a", lambda _: 1.0))


def test_garbage_is_collected_again_after_a_candidate_raises() -> None:
    lab = Lab()
    seen: list[bool] = []

    def fail_in_the_rounds() -> None:
        seen.append(gc.isenabled())
        if len(seen) > 1 + harness.WARM_UP:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        lab.measure(harness.Candidate("a", fail_in_the_rounds, lambda output: 0.0, 0.0))
    assert seen == [True] * (1 + harness.WARM_UP) + [False]
    assert gc.isenabled()


FACTS = {
    "cpu": "A processor",
    "cpu_model_numbers": None,
    "instruction_sets": ["avx2"],
    "usable_cpus": 2,
    "cpus": 2,
    "threads": 2,
    "load_average_1min": 0.0,
    "system": "Linux",
    "versions": {"torch": "2", "transformers": None},
    "date": "2026-01-01",
    "commit": None,
}


@pytest.fixture
def groups() -> list[Any]:
    """Two groups with everything that can happen: a wrong candidate, a missing one, no baseline."""
    wrong = harness.Measurement("b", float("nan"), 0.1)
    usual = result(a=(1.0, 2.0, 3.0), b=(0.5, 0.6, 0.7), c=(1.0, 1.1, 1.2))
    first = result(a=(0.1, 0.1), c=(0.2, 0.3))
    broken = harness.Result("broken", "a", {**usual.work, "padded_tokens": 400.0}, (wrong,))
    return [
        report.Group("one", "float32", 2e11, (usual, first, broken)),
        report.Group("two", "bfloat16", 2e11, (usual,)),
    ]


def test_json_is_strict_and_holds_every_duration(groups: list[Any]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(report.to_json(groups, FACTS), parse_constant=refuse)
    assert data["machine"] == FACTS
    usual, _, broken = data["groups"][0]["results"]
    assert usual["candidates"][1]["seconds"] == [0.5, 0.6, 0.7]
    assert usual["candidates"][1]["median_s"] == 0.6
    assert usual["candidates"][1]["per_second"]["tokens"] == pytest.approx(100 / 0.6)
    assert usual["candidates"][1]["speedup"] == pytest.approx(2.0 / 0.6)
    assert broken["candidates"][0]["right"] is False
    assert broken["candidates"][0]["error"] is None
    assert broken["candidates"][0]["speedup"] is None


START, END = report.markers("results")


def test_markdown_tables_are_whole_and_name_what_was_wrong(groups: list[Any]) -> None:
    text = report.to_markdown(groups, FACTS)
    tables = [part.split("\n") for part in text.strip().split("\n\n") if part.startswith("|")]
    assert len(tables) == 1 + 3 * len(groups)
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
        assert set(table[1]) <= set("| -")
    assert "| b | 600 (550–650) | – | wrong: error nan, allowed 1.0e-01 |" in text
    assert "| a | 1 | 1 | – |" in text
    assert "**3.33** (" in text
    assert "torch 2" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("value", "shown"), [(0.01234, "0.0123"), (9.999, "10.0"), (31.25, "31.2"), (1234.5, "1234")]
)
def test_three_digits_are_shown(value: float, shown: str) -> None:
    assert report._digits(value) == shown


def test_the_results_page_changes_between_its_markers_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    for text in ("| new |", "| newer |"):
        report.write_between(page, text)
        written = page.read_text(encoding="utf-8")
        assert written == f"before\n{START}\n\n{text}\n\n{END}\nafter\n"


@pytest.mark.parametrize(
    "page", ["", "{0} alone", "{1} {0}", "{0} {1} {0}", "{0} {1} {1}"], ids=range(5)
)
def test_a_page_without_clear_markers_is_left_alone(tmp_path: Path, page: str) -> None:
    file = tmp_path / "page.md"
    before = page.format(START, END)
    file.write_text(before, encoding="utf-8")
    with pytest.raises(ValueError, match="must hold"):
        report.write_between(file, "new")
    assert file.read_text(encoding="utf-8") == before


def test_the_results_page_has_its_markers_and_its_plot() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert page.index(START) < page.index(END)
    assert page.count(START) == page.count(END) == 1
    results = page.partition(START)[2].partition(END)[0]
    assert "| fastbert packed |" in results
    assert "cores" in results
    assert "results.png" in page
    assert (ROOT / "benchmarks" / "results.png").stat().st_size > 10_000


def test_the_plot_is_a_small_png(groups: list[Any], tmp_path: Path) -> None:
    report.plot(groups, tmp_path / "plot.png")
    data = (tmp_path / "plot.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    assert len(data) < 150_000
