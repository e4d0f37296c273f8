"""Long texts on their way to windows: read in pieces, cut into rows, folded, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_pairs import WORDS, tokenizer
from tokenizer_texts import PIECES
from tokenizers import AddedToken

import fastbert.long_text as module
from fastbert import BertTokenizer
from fastbert.long_text import Folded, WindowRows, read_tokens

UNCASED, CASED = tokenizer(), tokenizer(do_lower_case=False, strip_accents=False)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 7)
    monkeypatch.setattr(module, "_GROUP", 20)


TEXT = st.lists(
    st.sampled_from(
        [*PIECES, *WORDS, " ", "\n", "  ", "\t", "\r\n", "\u0301", " \u0301", "x" * 30]
    ),
    max_size=40,
).map("".join)


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, max_size=4))
def test_pieces_give_the_tokens_of_the_whole(
    minilm_tokenizer: BertTokenizer, texts: list[str]
) -> None:
    for reader in (UNCASED, CASED, minilm_tokenizer):
        found = read_tokens(reader, texts)
        assert len(found) == len(texts)
        for ids, text in zip(found, texts, strict=True):
            assert ids.dtype == np.int32
            whole = reader(text, add_special_tokens=False, verbose=False)
            assert ids.tolist() == whole["input_ids"]


@pytest.fixture(scope="module")
def minilm_tokenizer() -> BertTokenizer:
    return BertTokenizer.from_pretrained()


@pytest.mark.usefixtures("small_pieces")
def test_a_tokenizer_that_can_not_be_cut_reads_whole_texts() -> None:
    for added, filler in (("old house", "the "), ("中。國", "文")):
        reader = tokenizer()
        reader.add_tokens(AddedToken(added, normalized=False))  # across a place to cut
        text = "".join(filler * count + added + " " for count in range(20))
        found = read_tokens(reader, [text])[0].tolist()
        assert found == reader.encode_ids([text], truncation=False).ids[0][1:-1]
        assert found.count(len(reader) - 1) == 20


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 120), max_size=5),
    st.integers(3, 30),
    st.integers(0, 26),
    st.integers(0, 3),
)
def test_windows_hold_every_token_on_the_way(
    lengths: list[int], length: int, stride: int, head: int
) -> None:
    reader, room = UNCASED, length - 2 - head
    random = np.random.default_rng(sum(lengths))
    tokens = [random.integers(5, 60, n).astype(np.int32) for n in lengths]
    if room < 1 or stride >= room:
        with pytest.raises(ValueError, match="fit into"):
            WindowRows(reader, tokens, length, stride, head)
        return
    rows = WindowRows(reader, tokens, length, stride, head)
    assert len(rows) == len(rows.types) == len(rows.owners) == sum(rows.counts)
    for index, ids in enumerate(tokens):
        mine = [rows[i] for i in np.flatnonzero(rows.owners == index)]
        assert len(mine) == rows.counts[index] >= 1
        before = ids[:head].tolist()
        read = list(before)
        for number, row in enumerate(mine):
            assert (row[0], row[-1]) == (2, 3)
            assert len(row) <= length
            assert row[1 : 1 + len(before)] == before
            part = row[1 + len(before) : -1]
            if number:
                assert part[:stride] == read[len(read) - stride :]  # exactly the stride is shared
                part = part[stride:]
                assert part
            read += part
        assert read == ids.tolist()
    assert all(len(a) == len(b) and not any(b) for a, b in zip(rows, rows.types, strict=True))


def test_long_texts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = tokenizer()
    sizes = []
    encode_ids = reader.encode_ids

    def seen(texts: list[str], **options: Any) -> Any:
        sizes.append((sum(map(len, texts)), max(map(len, texts))))
        return encode_ids(texts, **options)

    monkeypatch.setattr(reader, "encode_ids", seen)
    for text in ("the cat " * 20_000, "the\ncat\n" * 20_000, "國中文。" * 40_000):
        sizes.clear()
        read_tokens(reader, [text])
        assert len(sizes) == 3
        assert max(total for total, _ in sizes) <= 2**16 + 2**13
        assert max(longest for _, longest in sizes) <= 2**13 + 10


def test_folding() -> None:
    owners = np.array([1, 0, 1, 1])
    vectors = np.array([[-1.0, 5.0], [-3.0, -4.0], [-2.0, 7.0], [0.0, 0.0]])
    expected = {
        "sum": [[-3.0, -4.0], [-3.0, 12.0]],
        "mean": [[-3.0, -4.0], [-1.0, 4.0]],
        "max": [[-3.0, -4.0], [0.0, 7.0]],
    }
    for combine, values in expected.items():
        folded = Folded(np.array([1, 3]), 2, combine)
        folded.add(owners[:3], vectors[:3])
        folded.add(owners[3:], vectors[3:])
        assert np.array_equal(folded.result(), np.array(values))


MEMORY = """
import pydoc_data.topics, resource, sys, torch
from fastbert import BertConfig, BertModel, BertTokenizer, SentenceEncoder
from fastbert.heads import BertForSequenceClassification
from fastbert.long_text import encode_long
from fastbert.tasks.text_classification import TextClassification

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MiB

torch.set_num_threads(1)
text = "\\n".join(pydoc_data.topics.topics.values())
text = (text * (1_000_000 // len(text) + 1))[:1_000_000]
reader = BertTokenizer.from_pretrained()
config = BertConfig(
    hidden_size=256, num_hidden_layers=1, num_attention_heads=4, intermediate_size=256
)
torch.manual_seed(0)
model = BertForSequenceClassification(config)
model.bert.save_pretrained(sys.argv[1])
reader.save_pretrained(sys.argv[1])
encoder = SentenceEncoder(sys.argv[1])
task = TextClassification(model, reader)
encode_long(encoder, text[:30_000])
task(text[:30_000], combine="sum")
before = peak()
vector = encode_long(encoder, text, stride=64)
label = task(text, combine="mean", stride=64)
assert len(text.encode()) >= 1_000_000 and vector.shape == (256,) and len(label) == 1
print(peak() - before)
"""


@pytest.mark.slow
def test_a_text_of_a_megabyte_in_bounded_memory(tmp_path: Path) -> None:
    """At most 64 MiB more than for 30 kB of it; 36 were measured.

    It has some 270,000 tokens: their hidden states alone would be 270 MiB, and with the text read
    by the tokenizer in one go it is 120 MiB.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert int(done.stdout) <= 64
