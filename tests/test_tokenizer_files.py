"""Loading and saving: every form of the files, and directories that both sides read alike."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizer_texts import SPECIAL, json_directory
from tokenizers import AddedToken

from fastbert.tokenization.backend import Parts, build
from fastbert.tokenization.vocab import read_vocab, vocab_text
from fastbert.tokenizer import BertTokenizer

TEXTS = ["Hello wörld, hello!", "ÀB 中文 [MASK] extra <e1> <E1>", "", "hello\u200bab \x00 a\u0301b"]
ENTRIES = [*SPECIAL, "hello", "Hello", "world", "wörld", "a", "b", "ab", "àb", "##b", "##á", "!"]
ENTRIES += ["中", "文", "extra", ",", "á", "Àb", "<", ">", "e", "##1", "E", "中文"]


def make_directory(
    directory: Path, config: dict[str, Any] | None = None, entries: Sequence[str] = ENTRIES
) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_bytes("".join(f"{e}\n" for e in entries).encode())
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def assert_agree(ours: BertTokenizer, theirs: Any, texts: Sequence[str] = TEXTS) -> None:
    got = ours(list(texts), list(texts)[::-1], return_offsets_mapping=True)
    expected = theirs(list(texts), list(texts)[::-1], return_offsets_mapping=True)
    assert dict(got) == dict(expected)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.model_max_length == theirs.model_max_length
    assert ours.special_tokens_map == {
        k: v for k, v in theirs.special_tokens_map.items() if isinstance(v, str)
    }


def write_bytes(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    lines = ["[UNK]", "", "a\u2028b", "\u0085", "\x0b\x0c\x1c", " ", "x\u3000", "é", "last"]
    expected = {line: index for index, line in enumerate(lines)}
    for end in ("\n", "\r\n"):
        for bom in (b"", b"\xef\xbb\xbf"):
            for last in (end, ""):
                content = bom + (end.join(lines) + last).encode()
                assert read_vocab(write_bytes(tmp_path / "vocab.txt", content)) == expected


def test_the_later_of_two_lines_wins_and_keeps_every_id(tmp_path: Path) -> None:
    file = write_bytes(tmp_path / "vocab.txt", b"[UNK]\na\n\nb\na\n\nc\n")
    vocab = read_vocab(file)
    assert vocab == {"[UNK]": 0, "a": 4, "": 5, "b": 3, "c": 6}
    assert read_vocab(write_bytes(file, vocab_text(vocab).encode())) == vocab


def test_vocab_text_round_trip_of_what_no_line_can_hold(tmp_path: Path) -> None:
    vocab = {"\ufeffa": 0, "x\ny": 1, "b": 2, "r\r": 4, "c": 5, "\u2028": 7}
    again = read_vocab(write_bytes(tmp_path / "vocab.txt", vocab_text(vocab).encode()))
    assert again == {"b": 2, "c": 5, "\u2028": 7}


def test_vocabulary_as_file_mapping_and_list_are_one(tmp_path: Path) -> None:
    file = make_directory(tmp_path) / "vocab.txt"
    made = [
        BertTokenizer(v)
        for v in (file, str(file), ENTRIES, dict(zip(ENTRIES, range(28), strict=True)))
    ]
    rows = [t(TEXTS)["input_ids"] for t in made]
    assert rows[0] == rows[1] == rows[2] == rows[3]


CONFIGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "cased": {"do_lower_case": False},
    "kept_accents": {"strip_accents": False, "model_max_length": 1e30},
    "cased_stripped": {"do_lower_case": False, "strip_accents": True, "max_len": 128},
    "whole_chinese": {"tokenize_chinese_chars": False, "model_max_length": 512},
    "objects": {
        "unk_token": {"content": "[UNK]", "__type": "AddedToken", "lstrip": False},
        "mask_token": {
            "__type": "AddedToken",
            "content": "[MASK]",
            "lstrip": True,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
        },
    },
    "decoder": {
        "added_tokens_decoder": {
            str(i): {"content": t, "special": True, "normalized": False}
            for i, t in [*enumerate(SPECIAL), (28, "<e1>")]
        },
        "extra_special_tokens": ["<e1>"],
    },
    "normalized_added_token": {
        "added_tokens_decoder": {
            "28": {"content": "<E1>", "special": False, "normalized": True, "lstrip": True}
        }
    },
    "additional": {"additional_special_tokens": ["<e1>", "<e2>"]},
    "no_mask": {"mask_token": None, "pad_token": "[MASK]"},
    "left": {"padding_side": "left", "truncation_side": "left"},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("first", ["ours", "theirs", "vocab"])
def test_every_form_loads_saves_and_loads_alike(tmp_path: Path, name: str, first: str) -> None:
    """vocab.txt alone, then our save and transformers' save, each loaded by both."""
    assert len(ENTRIES) == 28
    source = make_directory(tmp_path / "source", CONFIGS[name])
    ours = BertTokenizer.from_pretrained(source)
    theirs = transformers.BertTokenizer.from_pretrained(source)
    if first == "vocab":
        assert_agree(ours, theirs)
        return
    target = tmp_path / "target"
    (ours if first == "ours" else theirs).save_pretrained(target)
    assert_agree(BertTokenizer.from_pretrained(target), theirs)
    assert_agree(ours, transformers.BertTokenizer.from_pretrained(target))
    (target / "config.json").write_text('{"model_type": "bert"}')
    assert_agree(ours, transformers.AutoTokenizer.from_pretrained(target))
    if first == "ours":
        assert read_vocab(target / "vocab.txt") == {e: i for i, e in enumerate(ENTRIES)}
        (target / "tokenizer.json").unlink()
        assert_agree(BertTokenizer.from_pretrained(target), theirs)


def test_special_tokens_map_and_added_tokens_files(tmp_path: Path) -> None:
    entries = [e.replace("[CLS]", "<s>").replace("[SEP]", "</s>") for e in ENTRIES]
    source = make_directory(tmp_path / "source", {"do_lower_case": True}, entries)
    (source / "special_tokens_map.json").write_text(
        json.dumps({"cls_token": "<s>", "sep_token": {"content": "</s>", "lstrip": False}})
    )
    (source / "added_tokens.json").write_text(json.dumps({"<e1>": 28, "<E2>": 29}))
    ours = BertTokenizer.from_pretrained(source)
    assert ours("hello")["input_ids"] == [2, 5, 3]
    assert_agree(ours, transformers.BertTokenizer.from_pretrained(source), [*TEXTS, "<E2><e2>"])


def test_state_in_tokenizer_json_is_dropped(minilm_dir: Path, tmp_path: Path) -> None:
    raw = json.loads((minilm_dir / "tokenizer.json").read_text(encoding="utf-8"))
    assert raw["truncation"]["max_length"] == 128
    ours = BertTokenizer.from_pretrained(minilm_dir)
    row = ours("hello " * 300, truncation=False, verbose=False)
    assert len(row["input_ids"]) == 302
    assert len(ours("hello")["input_ids"]) == 3
    assert ours.model_max_length == 512
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is saved["padding"] is None
    raw["truncation"]["direction"] = raw["padding"]["direction"] = "Left"
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "tokenizer_config.json").unlink()
    ours = BertTokenizer.from_pretrained(tmp_path)
    assert (ours.padding_side, ours.truncation_side) == ("left", "left")


def test_flags_file_then_config_then_overrides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = json_directory(ENTRIES, tmp_path, {})
    with caplog.at_level(logging.INFO, "fastbert"):
        cased = BertTokenizer.from_pretrained(place)
    assert "keeps its case" in caplog.text
    assert cased.tokenize("Hello hello") == ["Hello", "hello"]
    assert cased.config.do_lower_case is False
    lower = BertTokenizer.from_pretrained(place, do_lower_case=True)
    assert lower.tokenize("Hello hello") == ["hello", "hello"]
    (place / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert BertTokenizer.from_pretrained(place).tokenize("Hello") == ["hello"]
    assert BertTokenizer.from_pretrained(place, do_lower_case=False).tokenize("Hello") == ["Hello"]
    for kind in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        config = {"do_lower_case": True, "tokenizer_class": kind}
        (place / "tokenizer_config.json").write_text(json.dumps(config))
        (place / "config.json").write_text('{"model_type": "bert"}')
        ours = BertTokenizer.from_pretrained(place)
        assert ours.tokenize("Hello") == ["Hello"]
        theirs = transformers.AutoTokenizer.from_pretrained(place)
        assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]


def test_other_parts_of_tokenizer_json_are_kept(tmp_path: Path) -> None:
    lower = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    bert = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    place = json_directory(ENTRIES, tmp_path, {"normalizer": lower, "post_processor": bert})
    ours = BertTokenizer.from_pretrained(place)
    assert ours("ＨELLO", "b")["input_ids"] == [2, 5, 3, 10, 3]
    assert ours("hello", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert ours.encode_ids(["ＨELLO"], ["b"]).types == [[0, 0, 0, 1, 1]]
    with pytest.raises(ValueError, match="do_lower_case can't be set on a normalizer of type"):
        BertTokenizer.from_pretrained(place, do_lower_case=True)
    nothing = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    ours = BertTokenizer.from_pretrained(json_directory(ENTRIES, tmp_path, nothing))
    assert_agree(ours, transformers.BertTokenizer.from_pretrained(tmp_path))


def test_added_tokens_and_gaps() -> None:
    ours = BertTokenizer(ENTRIES)
    assert ours.add_tokens(["<e1>", "hello"]) == 1
    assert ours.add_tokens("<s1>", special_tokens=True) == 1
    assert len(ours) == 30
    assert ours.vocab_size == 28
    assert ours.tokenize("hello<E1>hello") == ["hello", "<e1>", "hello"]
    assert ours.get_added_vocab()["<s1>"] == 29
    assert ours.decode([28, 29, 5], skip_special_tokens=True) == "<e1> hello"
    with pytest.raises(ValueError, match="would get the id 5 of another token"):
        BertTokenizer(["[UNK]", "a", "a", "[CLS]", "[SEP]", "b"], pad_token="<p>")
    vocab = dict(zip(ENTRIES, range(28), strict=True))
    with pytest.warns(UserWarning, match="stated to have the id 40, but gets 28"):
        build(vocab, ours.config, Parts(), {40: AddedToken("q")}, {})


def test_saving_replaces_files_whole(tmp_path: Path) -> None:
    ours = BertTokenizer(ENTRIES, model_max_length=77, pad_token="[MASK]")
    ours.padding_side = "left"
    ours.save_pretrained(tmp_path / "a" / "b")
    again = BertTokenizer.from_pretrained(tmp_path / "a" / "b")
    assert again.config == ours.config.__class__(**{**ours.config.__dict__, "padding_side": "left"})
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        ours.save_pretrained(blocked)


def test_unknown_keys_of_the_config_survive(tmp_path: Path) -> None:
    config = {"never_split": None, "chat": {"a": 1}, "name_or_path": "/private", "stride": 3}
    ours = BertTokenizer.from_pretrained(make_directory(tmp_path / "a", config))
    ours.save_pretrained(tmp_path / "b")
    saved = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert saved["never_split"] is None
    assert saved["chat"] == {"a": 1}
    assert "name_or_path" not in saved
    assert "stride" not in saved


def test_pickle(minilm_dir: Path) -> None:
    ours = BertTokenizer.from_pretrained(minilm_dir)
    again = pickle.loads(pickle.dumps(ours))
    assert dict(again(TEXTS)) == dict(ours(TEXTS))
    encoding = pickle.loads(pickle.dumps(ours(TEXTS, padding=True, return_tensors="np")))
    assert encoding.word_ids(0) == ours(TEXTS, padding=True).word_ids(0)


def test_import_and_load_need_neither_torch_nor_transformers(minilm_dir: Path) -> None:
    code = (
        "import sys; from fastbert.tokenizer import BertTokenizer; "
        f"t = BertTokenizer.from_pretrained({str(minilm_dir)!r}); t(['a'], return_tensors='np'); "
        "t.pack(['a b', 'c']); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.strip() == "[]"
