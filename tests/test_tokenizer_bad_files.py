"""Each malformed file of a tokenizer gets an error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_texts import SPECIAL, json_directory

from fastbert.tokenization.vocab import as_vocab
from fastbert.tokenizer import BertTokenizer

ENTRIES = [*SPECIAL, "hello", "a", "##b"]


def write_bytes(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def config_directory(directory: Path, config: dict[str, Any]) -> Path:
    (directory / "vocab.txt").write_text("".join(f"{e}\n" for e in ENTRIES))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\xff\xfe[\x00", "not UTF-8"), (b"a\nb\n", "unknown token '\\[UNK\\]'")],
)
def test_bad_vocab_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertTokenizer(write_bytes(tmp_path / "vocab.txt", content))


def test_bad_vocabularies_in_memory() -> None:
    for vocab in ({}, [], {"a": 0, "[UNK]": 0}, {"[UNK]": -1}, {"[UNK]": 2**31}):
        with pytest.raises(ValueError, match=r"empty|one id to two|expected 0"):
            as_vocab(vocab)
    for vocab in ({"a": "0"}, {1: 0}, ["a", None], {"a": True}):
        with pytest.raises(TypeError, match="expected"):
            as_vocab(vocab)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no such vocabulary"):
        BertTokenizer("nowhere/vocab.txt")
    with pytest.raises(TypeError, match="unknown setting lower_case; known: do_lower_case"):
        BertTokenizer(SPECIAL, lower_case=True)
    for settings, message in (
        ({"do_lower_case": 1}, "do_lower_case is 1, expected true or false"),
        ({"strip_accents": "no"}, "strip_accents"),
        ({"cls_token": None}, "cls_token is None"),
        ({"model_max_length": 0}, "model_max_length is 0"),
        ({"padding_side": "both"}, "supported: right, left"),
    ):
        with pytest.raises(ValueError, match=message):
            BertTokenizer(SPECIAL, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "the model is None"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "model is 'BPE', supported"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "supported: 'WordPiece'"),
        ({"normalizer": {"type": "Nonsense"}}, "not a tokenizer"),
        ({"added_tokens": [{"id": -1, "content": "x"}]}, "stands for an added token"),
        ({"added_tokens": [5]}, "stands for an added token"),
    ],
)
def test_malformed_tokenizer_json(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertTokenizer.from_pretrained(json_directory(ENTRIES, tmp_path, change))


@pytest.mark.parametrize("vocab", [[], {"[UNK]": "0"}, {"[UNK]": 1.5}, {}, {"a": 0}, None])
def test_malformed_vocabulary_in_tokenizer_json(tmp_path: Path, vocab: Any) -> None:
    place = json_directory(ENTRIES, tmp_path, {})
    raw = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
    raw["model"]["vocab"] = vocab
    (place / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"vocabulary|token"):
        BertTokenizer.from_pretrained(place)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_no_json_object(tmp_path: Path, content: bytes) -> None:
    place = config_directory(tmp_path, {})
    for name in ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
        file = write_bytes(place / name, content)
        with pytest.raises(ValueError, match=name):
            BertTokenizer.from_pretrained(place)
        file.unlink()


@pytest.mark.parametrize(
    "config",
    [
        {"do_lower_case": "yes"},
        {"unk_token": 5},
        {"pad_token": ["[PAD]"]},
        {"model_max_length": "long"},
        {"model_max_length": float("nan")},
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"x": "<e>"}},
        {"added_tokens_decoder": {"28": {"content": None}}},
        {"padding_side": "top"},
    ],
)
def test_malformed_tokenizer_config(tmp_path: Path, config: dict[str, Any]) -> None:
    if config == {"added_tokens_decoder": []}:
        config = {"added_tokens_decoder": [1]}
    place = config_directory(tmp_path, config)
    with pytest.raises(ValueError, match=str(place)):
        BertTokenizer.from_pretrained(place)


def test_missing_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json, no vocab.txt"):
        BertTokenizer.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="unknown setting lowercase"):
        BertTokenizer.from_pretrained(tmp_path, lowercase=True)
