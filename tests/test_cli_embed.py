"""`fastbert embed` and `fastbert search` on the real default model."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import fastbert.atomic
from fastbert.cli import embed, main, search
from fastbert.sentence_encoder import SentenceEncoder

CLI = [sys.executable, "-m", "fastbert"]
LINES = ["A cat sleeps on the sofa.", "", "The stock market fell.", "a\u2028b", "  ", "Dogs bark."]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(threads=1)


@pytest.fixture(autouse=True)
def _one_model(encoder, monkeypatch):
    """Load the model once for all in-process runs that don't ask for another one."""
    for command in (embed, search):
        monkeypatch.setattr(command, "load_encoder", lambda args: encoder)


@pytest.fixture
def text_file(tmp_path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes("\n".join(LINES).encode())
    return path


def test_npy_has_one_row_a_line_in_order(text_file, tmp_path, encoder):
    out = tmp_path / "v.npy"
    assert main(["embed", str(text_file), "-o", str(out)]) == 0
    vectors = np.load(out)
    assert vectors.shape == (len(LINES), 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, encoder.encode(LINES), atol=1e-6)


def test_chunks_do_not_change_the_result(text_file, tmp_path, encoder):
    out = tmp_path / "v.npy"
    assert main(["embed", str(text_file), "-o", str(out), "--chunk-lines", "2"]) == 0
    np.testing.assert_allclose(np.load(out), encoder.encode(LINES), atol=1e-6)


def test_jsonl_to_stdout_and_to_a_file_agree(text_file, tmp_path, capsysbinary, encoder):
    assert main(["embed", str(text_file)]) == 0
    shown = capsysbinary.readouterr().out
    out = tmp_path / "v.jsonl"
    assert main(["embed", str(text_file), "-o", str(out)]) == 0
    assert out.read_bytes() == shown
    rows = [json.loads(line) for line in shown.decode().split("\n")[:-1]]
    assert [(row["file"], row["line"]) for row in rows] == [
        (str(text_file), i + 1) for i in range(6)
    ]
    got = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_allclose(got, encoder.encode(LINES), atol=1e-6)


def test_stdin_and_several_files_follow_each_other(text_file, tmp_path, monkeypatch, encoder):
    (tmp_path / "b.jsonl").write_text('{"body": "Snow falls."}\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from stdin\r\n")))
    out = tmp_path / "v.npy"
    names = ["-", str(text_file), str(tmp_path / "b.jsonl")]
    assert main(["embed", *names, "--text-field", "body", "-o", str(out)]) == 0
    wanted = encoder.encode(["from stdin", *LINES, "Snow falls."])
    np.testing.assert_allclose(np.load(out), wanted, atol=1e-6)


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_an_empty_file_gives_no_rows(suffix, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    out = tmp_path / f"v{suffix}"
    assert main(["embed", str(tmp_path / "empty.txt"), "-o", str(out)]) == 0
    assert np.load(out).shape == (0, 384) if suffix == ".npy" else out.read_bytes() == b""


def test_truncated_dimension_and_normalisation(text_file, tmp_path):
    out = tmp_path / "v.npy"
    options = ["--truncate-dim", "16", "--normalize"]
    assert main(["embed", str(text_file), "-o", str(out), *options]) == 0
    vectors = np.load(out)
    assert vectors.shape == (6, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_bad_line_leaves_the_old_output(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text"\n{"text": "last"}\n')
    out = tmp_path / "v.npy"
    out.write_bytes(b"old")
    command = ["embed", str(tmp_path / "a.jsonl"), "-o", str(out)]
    assert main(command) == 1
    assert f"{tmp_path / 'a.jsonl'}:2: not JSON" in capsys.readouterr().err
    assert out.read_bytes() == b"old"
    assert main([*command, "--skip-bad"]) == 0
    assert "skipped 1 bad line, first" in capsys.readouterr().err
    assert np.load(out).shape == (2, 384)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "v.npy"]


def test_texts_that_were_cut_are_counted_once_for_the_run(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(("word " * 300 + "\n") * 5 + "short\n")
    out = tmp_path / "v.npy"
    assert main(["embed", str(tmp_path / "a.txt"), "-o", str(out), "--chunk-lines", "2"]) == 0
    assert capsys.readouterr().err == (
        "fastbert: warning: 5 texts were longer than 256 tokens and cut there\n"
    )


def test_input_and_output_must_differ(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    (tmp_path / "link.jsonl").symlink_to(path)
    for name in ("a.jsonl", "link.jsonl"):
        assert main(["embed", str(path), "-o", str(tmp_path / name)]) == 2
        assert "both input and output" in capsys.readouterr().err
    assert path.read_text() == '{"text": "x"}\n'


def test_an_output_that_cannot_be_written_is_told_before_the_model_loads(text_file, monkeypatch):
    def unreachable(args):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(embed, "load_encoder", unreachable)
    assert main(["embed", str(text_file), "-o", str(text_file.parent / "no" / "v.npy")]) == 1


def test_a_full_disk_leaves_the_old_file(text_file, tmp_path, capsys, monkeypatch):
    out = tmp_path / "v.npy"
    out.write_bytes(b"old")
    real = fastbert.atomic.atomic_write

    class Full:
        def __init__(self, file):
            self.file = file

        def seekable(self):
            return True

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def on_a_full_disk(path, mode):
        with real(path, mode) as file:
            yield Full(file)

    monkeypatch.setattr(fastbert.atomic, "atomic_write", on_a_full_disk)
    assert main(["embed", str(text_file), "-o", str(out)]) == 1
    assert capsys.readouterr().err == f"fastbert: error: {out}: No space left on device\n"
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "v.npy"]


def test_embed_into_a_closed_pipe_is_quiet(text_file):
    embedding = subprocess.Popen(
        [*CLI, "embed", str(text_file), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    embedding.stdout.close()
    errors = embedding.stderr.read()
    embedding.stderr.close()
    assert embedding.wait(timeout=60) == 141
    assert b"Broken" not in errors
    assert b"Traceback" not in errors


def test_search_prints_the_best_first(text_file, capsys):
    assert main(["search", "sleeping pet", str(text_file), "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 3
    score, place, passage = lines[0].split("  ")
    assert (place, passage) == (f"{text_file}:1", LINES[0])
    assert 1 > float(score) > float(lines[1].split("  ")[0])


def test_search_leaves_out_blank_lines_and_keeps_real_line_numbers(text_file, capsysbinary):
    assert main(["search", "anything", str(text_file), "--json"]) == 0
    rows = [json.loads(row) for row in capsysbinary.readouterr().out.decode().split("\n")[:-1]]
    assert sorted((row["line"], row["text"]) for row in rows) == [
        (1, LINES[0]),
        (3, LINES[2]),
        (4, "a\u2028b"),
        (6, LINES[5]),
    ]
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_search_in_chunks_finds_what_search_at_once_finds(tmp_path, real_texts, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in real_texts[:60]))
    found = []
    for size in ("7", "4096"):
        command = ["search", "what does an assignment do", str(path), "--json", "-k", "5"]
        assert main([*command, "--chunk-lines", size]) == 0
        found.append([json.loads(row) for row in capsys.readouterr().out.splitlines()])
    assert [row["line"] for row in found[0]] == [row["line"] for row in found[1]]
    assert len(found[0]) == 5


def test_search_ties_keep_reading_order(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("same words\n" * 5)
    command = ["search", "same words", str(tmp_path / "a.txt"), "-k", "3", "--chunk-lines", "2"]
    assert main(command) == 0
    places = [
        line.split("  ")[1].rpartition(":")[2] for line in capsys.readouterr().out.split("\n")[:3]
    ]
    assert places == ["1", "2", "3"]


def test_search_shows_a_text_of_several_lines_as_one(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one\r\ntwo\nthree"}) + "\n")
    assert main(["search", "one", str(tmp_path / "a.jsonl")]) == 0
    assert capsys.readouterr().out.endswith("  one two three\n")


def test_search_without_passages_says_so(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n \n")
    assert main(["search", "q", str(tmp_path / "a.txt")]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no passages" in captured.err
