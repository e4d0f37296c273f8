"""How hits are shown and merged, and that memory stays bounded: no model needed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastbert.cli import embed, main, search
from fastbert.cli.inputs import RecordReader
from fastbert.cli.table import cut_to_width


@pytest.mark.parametrize(
    ("line", "width", "shown"),
    [
        ("short", 10, "short"),
        ("exactly ten", 11, "exactly ten"),
        ("one too long", 11, "one too lo…"),
        ("日本語日本語", 12, "日本語日本語"),
        ("日本語日本語", 11, "日本語日本…"),
        ("日本語日本語", 6, "日本…"),
        ("e\u0301" * 4, 4, "e\u0301" * 4),
        ("a\x1b[31mb\u2028c\td", 20, "a [31mb c d"),
        ("a\u202eb\u200bc", 20, "abc"),
        ("abc", 1, "…"),
    ],
)
def test_terminal_lines_fit_and_carry_no_control_characters(line, width, shown):
    assert cut_to_width(line, width) == shown


def test_search_uses_the_models_own_similarity_and_prompts(tmp_path):
    class Fake:
        def encode_query(self, texts, **options):
            return np.array([[1.0, 0.0]])

        def encode_document(self, texts, **options):
            return np.array([[len(text), 0.0] for text in texts])

        def similarity(self, a, b):
            return a @ b.T

    path = tmp_path / "a.txt"
    path.write_text("".join("x" * i + "\n" for i in range(1, 6)))
    hits = search.search(Fake(), "q", RecordReader([str(path)]), 2)
    assert [(hit.score, hit.record.line) for hit in hits] == [(5.0, 5), (4.0, 4)]


class Blank:
    """An encoder that costs nothing."""

    def encode(self, texts, **options):
        return np.zeros((len(texts), 64), np.float32)

    encode_query = encode_document = encode

    def similarity(self, a, b):
        return a @ b.T


@pytest.mark.parametrize(
    "command", [["embed", "-o", "v.npy"], ["embed", "-o", "v.jsonl"], ["search", "q"]]
)
def test_memory_does_not_grow_with_the_input(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (embed, search):
        monkeypatch.setattr(module, "load_encoder", lambda args: Blank())
    peaks = []
    for lines in (3_000, 3_000, 24_000):  # the first one warms up
        Path("a.txt").write_text("a line of some length, as lines are\n" * lines)
        tracemalloc.start()
        assert main([*command, "a.txt", "--chunk-lines", "500"]) == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]


def test_batch_tokens_reach_the_encoder(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x\n")
    seen = []

    class Listening(Blank):
        def encode(self, texts, **options):
            seen.append(options["batch_size"])
            return super().encode(texts)

    monkeypatch.setattr(embed, "load_encoder", lambda args: Listening())
    for tokens, size in (("1", 1), ("1280", 10), ("4096", 32)):
        out = str(tmp_path / "v.npy")
        assert main(["embed", str(tmp_path / "a.txt"), "-o", out, "--batch-tokens", tokens]) == 0
        assert seen.pop() == size
