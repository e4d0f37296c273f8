r"""Records in: one a "\n" line, whatever else the text holds. Rows out: whole files."""

from __future__ import annotations

import io
import json
import os
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbert.cli import inputs
from fastbert.cli.common import CommandError
from fastbert.cli.inputs import Record, RecordReader, chunks
from fastbert.cli.outputs import JsonlWriter, NpyWriter, npy_header, open_output, to_bytes


def read(tmp_path, raw: bytes, name: str = "a.txt", **options) -> list[Record]:
    path = tmp_path / name
    path.write_bytes(raw)
    return list(RecordReader([str(path)], **options))


@pytest.mark.parametrize(
    ("raw", "texts"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"\n\n", ["", ""]),
        (b"a", ["a"]),
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\n", ["a\rb"]),
        (b"a\r", ["a\r"]),
        (b"\r\r\n", ["\r"]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n".encode(), ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        (b"a\x00b\n", ["a\x00b"]),
    ],
)
def test_only_newline_ends_a_record(tmp_path, raw, texts):
    records = read(tmp_path, raw)
    assert [record.text for record in records] == texts
    assert [record.line for record in records] == list(range(1, len(texts) + 1))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"))))
def test_any_lines_come_back(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    wanted = [line.removeprefix("\ufeff") if i == 0 else line for i, line in enumerate(lines)]
    assert [record.text for record in RecordReader([str(path)])] == wanted


def test_files_follow_each_other_and_sizes_add_up(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "three"}\n')
    names = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    reader = RecordReader(names)
    records = list(reader)
    assert [(r.file, r.line, r.text) for r in records] == [
        (names[0], 1, "one"),
        (names[0], 2, "two"),
        (names[1], 1, "three"),
    ]
    assert sum(record.size for record in records) == reader.total_bytes() == 8 + 18


def test_format_overrides_the_suffix(tmp_path):
    assert read(tmp_path, b'{"text": "x"}\n', "a.txt", file_format="jsonl")[0].text == "x"
    assert read(tmp_path, b"{}\n", "a.jsonl", file_format="text")[0].text == "{}"


def test_jsonl_field_and_its_inner_line_ends(tmp_path):
    raw = json.dumps({"body": "a\nb\u2028c", "text": 1}).encode() + b"\n"
    assert read(tmp_path, raw, "a.jsonl", text_field="body")[0].text == "a\nb\u2028c"
    raw = b'{"text": "\\ud83d\\ude00"}'
    assert read(tmp_path, raw, "a.jsonl")[0].text == "\U0001f600"


BAD_JSON = [
    (b"{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    (b"", "a blank line, expected a JSON object"),
    (b"  ", "a blank line, expected a JSON object"),
    (b"[]", "expected a JSON object, found list"),
    (b"null", "expected a JSON object, found NoneType"),
    (b"{}", "the object has no field 'text'"),
    (b'{"text": null}', "the field 'text' is NoneType, expected a string"),
    (b'{"text": 3}', "the field 'text' is int, expected a string"),
    (b'{"text": "\xff"}', "not UTF-8: byte 0xff at offset 10"),
    (b'{"text": "\\ud83d"}', "the field 'text' holds half of a surrogate pair"),
    (b"1" * 5000, "not JSON that Python can hold"),
    (b"[" * 200_000, "not JSON that Python can hold"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_JSON)
def test_a_bad_jsonl_line_names_file_line_and_reason(tmp_path, line, reason):
    raw = b'{"text": "good"}\n' + line + b'\n{"text": "last"}\n'
    with pytest.raises(CommandError) as caught:
        read(tmp_path, raw, "a.jsonl")
    assert str(caught.value) == f"{tmp_path / 'a.jsonl'}:2: {reason}"


def test_skip_bad_counts_and_keeps_line_numbers(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "first"}', *(line for line, _ in BAD_JSON)]))
    with path.open("ab") as file:
        file.write(b'\n{"text": "last"}\n')
    reader = RecordReader([str(path)], skip_bad=True)
    last = len(BAD_JSON) + 2
    assert [(r.line, r.text) for r in reader] == [(1, "first"), (last, "last")]
    assert reader.skipped == len(BAD_JSON)
    reader.report_skipped()
    assert capsys.readouterr().err.startswith(
        f"fastbert: skipped {len(BAD_JSON)} bad lines, first {path}:2: not JSON"
    )


def test_undecodable_text_names_file_and_line(tmp_path):
    with pytest.raises(CommandError, match=r"a\.txt:2: not UTF-8: byte 0xe9 at offset 3"):
        read(tmp_path, b"caf\xc3\xa9\ncaf\xe9\n")
    assert [r.line for r in read(tmp_path, b"a\n\xff\nb\n", skip_bad=True)] == [1, 3]


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_LINE_BYTES", 100)
    assert len(read(tmp_path, b"a" * 99 + b"\n")[0].text) == 99
    with pytest.raises(CommandError, match=r"a\.txt:2: a line of more than 100 bytes"):
        read(tmp_path, b"x\n" + b"a" * 101 + b"\n")
    kept = read(tmp_path, b"short\n" + b"a" * 350 + b"\nend\n", skip_bad=True)
    assert [(record.line, record.text) for record in kept] == [(1, "short"), (3, "end")]
    monkeypatch.undo()
    with pytest.raises(CommandError, match="/dev/zero:1: a line of more than"):
        list(RecordReader(["/dev/zero"]))


def test_missing_directory_and_unreadable_are_told_before_anything_is_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        RecordReader([str(tmp_path / "no.txt")])
    with pytest.raises(CommandError, match="is a directory"):
        RecordReader([str(tmp_path)])


def test_permission_denied(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(CommandError, match="Permission denied"):
        RecordReader([str(tmp_path / "a")])


def test_stdin_is_text_unless_told_otherwise(monkeypatch):
    for options, text in (({}, '{"text": "x"}'), ({"file_format": "jsonl"}, "x")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "x"}\n')))
        reader = RecordReader(["-"], **options)
        assert reader.total_bytes() is None
        assert [(r.file, r.text) for r in reader] == [("-", text)]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CommandError, match="stdin is closed"):
        list(RecordReader(["-"]))
    with pytest.raises(CommandError, match="only once"):
        RecordReader(["-", "-"])


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 9), st.integers(1, 100))
def test_chunks_keep_order_and_stay_bounded(sizes, most, characters):
    records = [Record("f", i, "x" * size, size) for i, size in enumerate(sizes)]
    grouped = list(chunks(iter(records), most, characters))
    assert [record for chunk in grouped for record in chunk] == records
    for chunk in grouped:
        assert 1 <= len(chunk) <= most
        assert sum(len(record.text) for record in chunk[:-1]) < characters


@pytest.mark.parametrize("rows", [0, 1, 10**6, 10**18])
def test_npy_headers_have_one_length_and_numpy_reads_them(rows):
    header = npy_header(rows, 384)
    assert len(header) == 128
    assert len(header) % 64 == 0
    assert header.endswith(b"\n")
    stream = io.BytesIO(header)
    assert np.lib.format.read_magic(stream) == (1, 0)
    assert np.lib.format.read_array_header_1_0(stream) == ((rows, 384), False, np.dtype("<f4"))


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
def test_npy_writer_streams_what_numpy_loads(tmp_path, dtype):
    path = tmp_path / "v.npy"
    rows = np.arange(24).reshape(8, 3).astype(dtype)
    records = [Record("f", i, "", 0) for i in range(8)]
    with open_output(str(path)) as file:
        writer = NpyWriter(file, 3)
        writer.write(records[:5], np.asfortranarray(rows[:5]))
        writer.write(records[5:], rows[5:])
        writer.finish()
    loaded = np.load(path)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, rows)


def test_an_empty_npy_has_no_rows(tmp_path):
    path = tmp_path / "v.npy"
    with open_output(str(path)) as file:
        NpyWriter(file, 5).finish()
    assert np.load(path).shape == (0, 5)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_jsonl_numbers_give_back_the_same_float32(values):
    rows = np.array([values], np.float32)
    file = io.BytesIO()
    JsonlWriter(file, 4).write([Record('n"ame\udcff', 7, "", 0)], rows)
    row = json.loads(file.getvalue())
    assert (row["file"], row["line"]) == ('n"ame\udcff', 7)
    np.testing.assert_array_equal(np.array(row["embedding"], np.float32), rows[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("writer", [NpyWriter, JsonlWriter])
def test_a_vector_that_is_not_finite_is_refused(writer, bad):
    rows = np.ones((2, 3), np.float32)
    rows[1, 2] = bad
    records = [Record("a.txt", line, "", 0) for line in (8, 9)]
    with pytest.raises(CommandError, match=r"a\.txt:9: the vector is not finite"):
        writer(io.BytesIO(), 3).write(records, rows)


def test_lone_surrogates_can_be_written():
    assert to_bytes("é\ud800") == b"\xc3\xa9\\ud800"


def test_an_output_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "v.npy"

    def write_half() -> None:
        with open_output(str(path)) as file:
            file.write(b"half")
            raise CommandError("stopped")

    with pytest.raises(CommandError, match="stopped"):
        write_half()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="does not exist"), open_output(str(tmp_path / "no/v.npy")):
        pass
