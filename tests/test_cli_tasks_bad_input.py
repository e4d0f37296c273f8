"""What the commands of the tasks refuse, in one line, and what they leave behind: nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from cli_models import COMMAND_OF, KINDS, LONG, VOCABULARY, runner, save, save_all

from fastbert import heads
from fastbert.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return save_all(tmp_path_factory.mktemp("models"))


@pytest.fixture
def cli(models, tmp_path, monkeypatch, capsysbinary):
    monkeypatch.chdir(tmp_path)
    return runner(models, capsysbinary)


def test_an_output_file_is_whole_or_as_it_was(cli, models):
    Path("a.txt").write_text("a [MASK]\nno mask\nthe [MASK]\n")
    Path("out.jsonl").write_text("old")
    code, out, err = cli("fill-mask", "a.txt", "-o", "out.jsonl", "--chunk-lines", "1")
    assert (code, out, err) == (1, "", "fastbert: error: a.txt:2: text has no [MASK] to fill\n")
    assert Path("out.jsonl").read_text() == "old"
    code, out, err = cli("fill-mask", "a.txt", "-o", "out.jsonl", "--skip-bad")
    assert (code, out) == (0, "")
    assert err == "fastbert: skipped 1 bad line, first a.txt:2: text has no [MASK] to fill\n"
    kept = Path("out.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in kept] == [1, 3]
    assert sorted(path.name for path in Path().iterdir()) == ["a.txt", "out.jsonl"]


BAD_INPUT = [
    ("classify", ["a.csv", "--text-field", "no"], 1, "a.csv: no column 'no', its columns are"),
    ("classify", ["latin.txt"], 1, "latin.txt:2: not UTF-8: byte 0xe9 at offset 3"),
    ("classify", ["no.txt"], 1, "no.txt: No such file or directory"),
    ("classify", ["."], 1, ".: is a directory"),
    ("classify", ["a.txt", "-o", "no/out.jsonl"], 1, "no: the directory to write into does not"),
    ("classify", ["a.txt", "-o", "a.txt"], 2, "a.txt is both input and output"),
    ("classify", [], 2, "nothing to read"),
    ("classify", ["a.txt", "--stride", "4"], 2, "--stride is for windows"),
    ("classify", ["a.txt", "--combine", "sum", "--stride", "40"], 1, "stride is 40, expected"),
    ("classify", ["a.txt", "--text", "x", "--pair", "y", "--combine", "sum"], 2, "no windows"),
    ("classify", ["--text", "x", "--pair", "y", "--pair", "z"], 2, "got 1 and 2"),
    ("classify", ["--text", "\udcff"], 2, "a text of the command line is not UTF-8"),
    ("classify", ["a.csv", "--document", "--format", "csv"], 2, "--document reads text"),
    ("classify", ["a.txt", "--max-length", "99"], 1, "max_length"),
    ("tag", ["a.txt", "--stride", "40"], 1, "stride is 40, expected 0 to 29"),
    ("tag", ["a.txt", "--words", "--strategy", "simple"], 2, "expected first, average or max"),
    ("tag", ["a.txt", "--words", "--ignore-label", "O"], 2, "no --ignore-label"),
    ("answer", ["a.txt", "--question", "  "], 2, "the question is blank"),
    ("answer", ["p.txt"], 1, "p.txt:2: question is empty"),
    ("answer", ["a.txt"], 1, "a.txt:1: expected 2 texts with a tab between them, found 1"),
    ("answer", ["a.txt", "--document"], 2, "need a --question"),
    ("answer", ["a.txt", "--question", "who", "--stride", "40"], 1, "stride is 40, expected"),
    ("answer", ["a.txt", "--question", LONG], 1, "leaves no room for context"),
    ("rerank", [" ", "a.txt"], 2, "the query is blank"),
    ("similar", ["one"], 2, "expected two texts, got 1; files of pairs come after --pairs"),
    ("similar", [], 2, "nothing to read"),
]


@pytest.mark.parametrize(("command", "arguments", "code", "message"), BAD_INPUT)
def test_bad_input_is_one_line(cli, command, arguments, code, message):
    Path("a.txt").write_text("a cat\n")
    Path("a.csv").write_text("text,n\na cat,1\n")
    Path("p.txt").write_text("who\ta cat\n \ta cat\n")
    Path("latin.txt").write_bytes(b"a cat\ncaf\xe9\n")
    before = sorted(path.name for path in Path().iterdir())
    found, out, err = cli(command, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("fastbert: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == before


def test_options_are_refused_even_where_bad_records_are_skipped(cli):
    Path("a.txt").write_text("a [MASK]\n")
    for command, options in (
        ("tag", ["--stride", "40"]),
        ("fill-mask", ["--target", "zebra"]),
        ("classify", ["--combine", "max", "--stride", "40"]),
        ("answer", ["--question", "who", "--stride", "40"]),
    ):
        code, out, err = cli(command, "a.txt", "--skip-bad", *options)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        assert "a.txt" not in err


def test_no_candidates_are_no_error(cli):
    Path("a.txt").write_text("\n \n")
    Path("b.txt").write_text("")
    code, out, err = cli("rerank", "who", "a.txt", "b.txt")
    assert (code, out) == (0, "")
    assert err == "fastbert: no candidates: every text is blank, or there is none\n"


@pytest.mark.parametrize("command", COMMAND_OF)
def test_a_checkpoint_without_the_head_is_refused_by_name(command, minilm_dir, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a\tb\n")
    first = ["query"] if command == "rerank" else []
    given = [command, *first, str(tmp_path / "a.txt")]
    head = KINDS[COMMAND_OF[command]][0]
    assert main([*given, "--model", str(minilm_dir)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err
    assert line.startswith(f"fastbert: error: {minilm_dir}: is no checkpoint of a {head}: it lacks")
    assert f"({command} needs a" in line
    assert line.count("\n") == 1
    assert main(given) == 1
    line = capsys.readouterr().err
    assert head in line
    assert "--model" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "model", "said"),
    [
        ("tag", "classifier", "BertForSequenceClassification"),
        ("tag", "chooser", "BertForMultipleChoice"),
        ("rerank", "chooser", "BertForMultipleChoice"),
        ("rerank", "classifier", "gives 3 scores a pair"),
        ("classify", "tagger", "bert.pooler"),
    ],
)
def test_a_head_that_only_looks_alike_is_refused(cli, models, command, model, said):
    Path("a.txt").write_text("a cat\n")
    first = ["query"] if command == "rerank" else []
    code, out, err = cli(command, *first, "a.txt", model=model)
    assert (code, out) == (1, "")
    assert said in err
    assert f"({command} needs a" in err
    assert err.count("\n") == 1


def test_a_broken_checkpoint_is_told_without_advice_on_heads(cli, models, tmp_path):
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((models / "tagger" / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    code, _, err = cli("tag", "--text", "a", model=str(tmp_path))
    assert code == 1
    assert "model.safetensors" in err
    assert "needs" not in err
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "--allow-pickle" in cli("tag", "--text", "a", model=str(tmp_path))[2]


def test_a_model_that_overflows_is_told_with_its_place(cli, models, tmp_path):
    save(tmp_path / "nan", "BertForSequenceClassification", ("neg", "pos"))
    model = heads.BertForSequenceClassification.from_pretrained(tmp_path / "nan")
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    Path("a.txt").write_text("a cat\n")
    code, out, err = cli("classify", "a.txt", model=str(tmp_path / "nan"))
    assert (code, out) == (1, "")
    assert re.match("fastbert: error: .*not finite", err)


def test_candidates_without_an_order_are_told_with_their_place(cli, models, tmp_path):
    save(tmp_path / "nan", "BertForSequenceClassification", ("score",))
    model = heads.BertForSequenceClassification.from_pretrained(tmp_path / "nan")
    with torch.no_grad():
        words = model.bert.embeddings.word_embeddings.weight
        words[VOCABULARY.index("cat")] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    Path("a.txt").write_text("the\n\nparis\na cat\nfrance\n")
    for options in ([], ["--top-k", "1"], ["--chunk-lines", "2"]):
        code, out, err = cli("rerank", "who", "a.txt", *options, model=str(tmp_path / "nan"))
        assert (code, out) == (1, "")
        assert err.startswith("fastbert: error: a.txt:4: the score is not finite")
