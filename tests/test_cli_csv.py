"""CSV and pairs in: columns by name, quoted line ends, places that are right, bounded memory."""

from __future__ import annotations

import csv
import io
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbert.cli import inputs
from fastbert.cli.common import CommandError
from fastbert.cli.inputs import Record, RecordReader, chunks
from fastbert.cli.task_run import TASK_SUFFIXES

OPTIONS = {"suffixes": TASK_SUFFIXES}


def read(tmp_path, raw: bytes, name: str = "a.csv", **options) -> list[Record]:
    path = tmp_path / name
    path.write_bytes(raw)
    return list(RecordReader([str(path)], **OPTIONS, **options))


def texts(records: list[Record]) -> list[tuple[int, tuple[str, ...]]]:
    return [(record.line, (record.text, *record.more)) for record in records]


def test_columns_are_found_by_name_in_the_order_asked_for(tmp_path):
    raw = b"id,pair,text\n1,p,t\n2,q,\n"
    found = read(tmp_path, raw, more_fields=["pair"])
    assert texts(found) == [(2, ("t", "p")), (3, ("", "q"))]
    assert texts(read(tmp_path, raw, text_field="id")) == [(2, ("1",)), (3, ("2",))]


def test_quoted_line_ends_delimiters_and_quotes_stay_in_the_text(tmp_path):
    raw = 'text,n\r\n"a\r\nb, ""c""\n\nd",1\r\n"e\u2028f\x85",2\r\nlast,3'.encode()
    assert texts(read(tmp_path, raw)) == [
        (2, ('a\r\nb, "c"\n\nd',)),
        (6, ("e\u2028f\x85",)),
        (7, ("last",)),
    ]


def test_sizes_add_up_to_the_file_but_for_its_header(tmp_path):
    raw = b'text,n\n"a\nb",1\nc,2\n'
    assert [record.size for record in read(tmp_path, raw)] == [8, 4]


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert texts(read(tmp_path, b"\xef\xbb\xbftext\na\n")) == [(2, ("a",))]
    assert texts(read(tmp_path, b'\xef\xbb\xbf"text",n\na,1\n')) == [(2, ("a",))]


def test_tsv_and_format_decide_the_delimiter(tmp_path):
    assert texts(read(tmp_path, b'text\tn\na,b\t1\n"c\td"\t2\n', "a.TSV")) == [
        (2, ("a,b",)),
        (3, ("c\td",)),
    ]
    assert texts(read(tmp_path, b"text,n\na,1\n", "a.txt", file_format="csv")) == [(2, ("a",))]
    assert texts(read(tmp_path, b"text,n\n", file_format="text")) == [(1, ("text,n",))]


def test_stdin_reads_csv_when_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text\na\n")))
    assert texts(list(RecordReader(["-"], file_format="csv"))) == [(2, ("a",))]


def test_embed_still_reads_csv_files_as_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\na\n")
    assert [record.text for record in RecordReader([str(tmp_path / "a.csv")])] == ["text", "a"]


def test_blank_lines_are_empty_texts_of_one_column_and_nothing_in_several(tmp_path):
    assert texts(read(tmp_path, b'\n\ntext\na\n\n""\nb\n')) == [
        (4, ("a",)),
        (5, ("",)),
        (6, ("",)),
        (7, ("b",)),
    ]
    assert texts(read(tmp_path, b"text,n\na,1\n\nb,2\n\n")) == [(2, ("a",)), (4, ("b",))]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b"a,b\n1,2\n",
            "no column 'text', its columns are 'a', 'b' (a file without a header line: "
            "--format text)",
        ),
        (b"", "is empty, expected a CSV header that names the columns"),
        (b"\n\n", "is empty, expected a CSV header that names the columns"),
        (b"text,n,text\n", "2 columns are called 'text', expected one"),
        (b"t\xe9xt,n\n", "1: not UTF-8: byte 0xe9 in field 1"),
        (b'"text\n', "1: not CSV: a quote is opened and never closed"),
    ],
)
def test_a_header_that_will_not_do_is_told_before_anything_is_read(tmp_path, raw, message):
    path = tmp_path / "a.csv"
    path.write_bytes(raw)
    with pytest.raises(CommandError) as caught:
        RecordReader([str(path)], **OPTIONS)
    assert str(caught.value).removeprefix(f"{path}:").strip() == message


def test_a_header_of_many_or_long_names_is_told_in_part(tmp_path):
    raw = (",".join(f"column{i}" for i in range(40)) + "," + "x" * 999 + "\n").encode()
    with pytest.raises(CommandError) as caught:
        read(tmp_path, raw)
    assert "'column11' and 29 more" in str(caught.value)
    with pytest.raises(CommandError) as caught:
        read(tmp_path, b"x" * 999 + b"\n")
    assert "'" + "x" * 40 + "'" in str(caught.value)


BAD_ROWS = [
    (b"caf\xe9,1", "not UTF-8: byte 0xe9 in field 1"),
    (b"a,caf\xe9", "not UTF-8: byte 0xe9 in field 2"),
    (b"a", "a row of 1 fields, the header has 2"),
    (b"a,1,2", "a row of 3 fields, the header has 2"),
    (b"a\rb,1", "not CSV: a carriage return that is neither quoted nor part of a line end"),
    (b'"a"b,1', "not CSV: ',' expected after '\"'"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_names_file_line_and_reason(tmp_path, row, reason):
    raw = b'text,n\n"two\nlines",1\n' + row + b"\nlast,3\n"
    with pytest.raises(CommandError) as caught:
        read(tmp_path, raw)
    assert str(caught.value) == f"{tmp_path / 'a.csv'}:4: {reason}"
    assert texts(read(tmp_path, raw, skip_bad=True)) == [(2, ("two\nlines",)), (5, ("last",))]


def test_bytes_that_are_not_utf8_inside_quotes_spoil_their_own_row_only(tmp_path):
    raw = b'text,n\n"one\n\xff\nthree",1\nlast,2\n'
    assert texts(read(tmp_path, raw, skip_bad=True)) == [(5, ("last",))]


def test_a_quote_that_is_never_closed_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    with pytest.raises(CommandError, match=r"a\.csv:3: not CSV: a quote is opened and never"):
        read(tmp_path, b'text,n\na,1\n"b,2\nc,3\n')
    monkeypatch.setattr(inputs, "MAX_LINE_BYTES", 100)
    assert len(read(tmp_path, b"text\n" + b"a" * 99 + b"\n")[0].text) == 99
    for tail in (b'"' + b"b\n" * 80, b"b" * 200, b'"b\n",' * 40):
        for skip_bad in (False, True):  # nobody knows where the next row would begin
            with pytest.raises(CommandError, match=r"a\.csv:3: a row of more than 100 bytes"):
                read(tmp_path, b"text\na\n" + tail, skip_bad=skip_bad)


def test_a_book_in_one_field_passes_and_the_csv_module_keeps_its_own_limit(tmp_path):
    before = csv.field_size_limit()
    book = "a line, and another\n" * 60_000
    raw = b'text\n"' + book.encode() + b'"\n'
    assert read(tmp_path, raw)[0].text == book
    assert csv.field_size_limit() == before


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS)), st.sampled_from("\t,"), st.booleans())
def test_what_python_writes_comes_back(tmp_path_factory, rows, delimiter, all_quoted):
    if not all_quoted:  # Python before 3.13 writes a lone carriage return without quotes
        rows = [tuple(cell.replace("\r", " ") for cell in row) for row in rows]
    path = tmp_path_factory.mktemp("csv") / ("a.csv" if delimiter == "," else "a.tsv")
    quoting = csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=quoting)
        writer.writerows([("text", "pair"), *rows])
    records = list(RecordReader([str(path)], more_fields=["pair"], **OPTIONS))
    assert [(record.text, *record.more) for record in records] == rows
    raw = path.read_bytes().split(b"\n")
    lines = [record.line for record in records]
    assert lines == sorted(set(lines))
    assert all(2 <= line <= len(raw) for line in lines)


def test_pairs_of_a_text_file_stand_between_a_tab(tmp_path):
    found = read(tmp_path, b"a\tb\r\n\n \nc\t\n", "a.txt", more_fields=["pair"])
    assert texts(found) == [(1, ("a", "b")), (2, ("", "")), (3, ("", "")), (4, ("c", ""))]
    for line, count in ((b"a", 1), (b"a\tb\tc", 3)):
        with pytest.raises(CommandError, match=rf"expected 2 texts with a tab .* found {count}"):
            read(tmp_path, line + b"\n", "a.txt", more_fields=["pair"])


def test_pairs_of_jsonl_are_fields(tmp_path):
    raw = b'{"q": "who", "c": "me"}\n{"q": "who"}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    reader = RecordReader([str(path)], text_field="q", more_fields=["c"], skip_bad=True)
    assert texts(list(reader)) == [(1, ("who", "me"))]
    assert reader.first_skipped == f"{path}:2: the object has no field 'c'"


def test_a_document_is_a_whole_file(tmp_path, monkeypatch):
    raw = b"\xef\xbb\xbfone\r\n\ntwo"
    found = read(tmp_path, raw, "a.csv", file_format="document")
    assert texts(found) == [(1, ("one\r\n\ntwo",))]
    assert found[0].size == len(raw)
    with pytest.raises(CommandError, match=r"a\.txt:1: not UTF-8: byte 0xff at offset 1"):
        read(tmp_path, b"a\xff", "a.txt", file_format="document")
    monkeypatch.setattr(inputs, "MAX_LINE_BYTES", 10)
    with pytest.raises(CommandError, match=r"a\.txt:1: a document of more than 10 bytes"):
        read(tmp_path, b"a\n" * 6, "a.txt", file_format="document")


def test_a_chunk_counts_all_texts_of_a_record():
    records = [Record("f", i, "", 0, ("x" * 60,)) for i in range(4)]
    assert [len(chunk) for chunk in chunks(records, 10, 100)] == [2, 2]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for rows in (1_000, 1_000, 8_000):  # the first one warms up
        path = tmp_path / "a.csv"
        path.write_bytes(b"n,text\n" + b'1,"a row of\nsome length, as rows are"\n' * rows)
        tracemalloc.start()
        count = sum(1 for _ in RecordReader([str(path)], **OPTIONS))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == rows
    assert peaks[2] < 1.2 * peaks[1]
