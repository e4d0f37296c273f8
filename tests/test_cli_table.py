"""Results out: tables that fit, lines that keep their place, numbers that JSON has."""

from __future__ import annotations

import argparse
import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbert.cli import results
from fastbert.cli.common import CommandError
from fastbert.cli.inputs import Record
from fastbert.cli.results import ResultWriter, View, result_writer
from fastbert.cli.table import WIDEST_COLUMN, Table, cut_to_width, shown_width

RECORDS = [Record("a.txt", line, f"text {line}", 0) for line in (1, 2, 3)]
VIEW = View(
    ("score", "text"),
    lambda scores: {"scores": list(scores)},
    lambda record, scores: [(f"{score:.1f}", record.text) for score in scores],
)


def table(header, *groups, width=None) -> list[str]:
    file = io.BytesIO()
    writer = Table(file, header, width)
    for rows in groups:
        writer.write(rows)
    return file.getvalue().decode().split("\n")


def test_columns_stand_under_their_header():
    assert table(("a", "long", "c"), [("one", "b", "x"), ("two", "b", "y z")]) == [
        "a    long  c",
        "one  b     x",
        "two  b     y z",
        "",
    ]


def test_wide_characters_and_accents_count_as_a_terminal_shows_them():
    lines = table(("n", "t"), [("日本", "x"), ("e\u0301", "y")])
    assert lines == ["n     t", "日本  x", "e\u0301     y", ""]


def test_later_rows_widen_columns_and_the_header_comes_once():
    lines = table(("n", "t"), [("a", "x")], [], [("longer", "y"), ("b", "z")], [("c", "u")])
    assert lines == ["n  t", "a  x", "longer  y", "b       z", "c       u", ""]


def test_nothing_found_prints_nothing():
    assert table(("n", "t"), []) == [""]


def test_control_characters_never_reach_the_table():
    lines = table(("n", "t"), [("a\x1b[31m", "b\nc\td\u2028e\u202ef\x9b1m")], width=None)
    assert lines == ["n       t", "a [31m  b c d ef 1m", ""]


CELL = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=4), st.integers(30, 60))
def test_on_a_terminal_every_row_is_one_line_that_fits(rows, width):
    lines = table(("one", "two", "three"), rows, width=width)
    assert len(lines) == len(rows) + 2
    assert all(shown_width(line) <= width for line in lines)
    assert all(cut_to_width(line, width) == line for line in lines)


def test_in_a_file_texts_stay_whole_but_do_not_widen_the_others():
    long = "x" * 500
    lines = table(("n", "t"), [(long, long), ("a", "b")])
    assert lines[1] == f"{long}  {long}"
    assert lines[2] == "a" + " " * (WIDEST_COLUMN - 1) + "  b"


def write(table: bool, *results_of_records) -> bytes:
    file = io.BytesIO()
    writer = ResultWriter(file, VIEW, table=table)
    writer.write(RECORDS[: len(results_of_records)], results_of_records)
    return file.getvalue()


def test_jsonl_has_a_line_a_record_and_a_table_a_row_a_finding():
    rows = [json.loads(line) for line in write(False, (0.5, 0.25), (), (1.0,)).splitlines()]
    assert rows == [
        {"file": "a.txt", "line": 1, "scores": [0.5, 0.25]},
        {"file": "a.txt", "line": 2, "scores": []},
        {"file": "a.txt", "line": 3, "scores": [1.0]},
    ]
    assert write(True, (0.5, 0.25), (), (1.0,)).decode().splitlines() == [
        "place    score  text",
        "a.txt:1  0.5    text 1",
        "a.txt:1  0.2    text 1",
        "a.txt:2  -      -",
        "a.txt:3  1.0    text 3",
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_json_lacks_is_refused(bad):
    with pytest.raises(CommandError, match=r"a\.txt:2: the score is not finite"):
        write(False, (0.5,), (bad,))


def test_json_keeps_every_character_and_line_separators_inside_strings():
    record = Record('n"\udcff\u2028', 1, "", 0)
    file = io.BytesIO()
    ResultWriter(file, VIEW, table=False).write([record], [(1.0,)])
    assert file.getvalue().count(b"\n") == 1
    assert json.loads(file.getvalue())["file"] == 'n"\udcff\u2028'


class Stdout(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize(
    ("terminal", "output", "output_format", "shown"),
    [
        (True, None, "auto", "table"),
        (True, "-", "auto", "table"),
        (True, None, "jsonl", "jsonl"),
        (True, "out.jsonl", "auto", "jsonl"),
        (False, None, "auto", "jsonl"),
        (False, None, "table", "table"),
    ],
)
def test_a_table_is_for_terminals(terminal, output, output_format, shown, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Stdout(terminal))
    args = argparse.Namespace(output=output, output_format=output_format)
    file = io.BytesIO()
    result_writer(args, file, VIEW).write(RECORDS[:1], [(1.0,)])
    assert file.getvalue().startswith(b"place" if shown == "table" else b"{")


def test_a_terminals_table_is_cut_to_its_width(monkeypatch):
    monkeypatch.setattr(results, "on_terminal", lambda args: True)
    monkeypatch.setenv("COLUMNS", "30")
    args = argparse.Namespace(output=None, output_format="auto")
    file = io.BytesIO()
    record = Record("a.txt", 1, "many words " * 9, 0)
    result_writer(args, file, VIEW).write([record], [(1.0,)])
    assert file.getvalue().decode().splitlines()[1] == "a.txt:1  1.0    many words ma…"
