"""The commands of the tasks: what the library finds, written one record a line."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cli_models import COMMANDS, LONG, places, rows, runner, save_all

from fastbert.cli import classify, main, rerank, similar
from fastbert.cross_encoder import CrossEncoder
from fastbert.sentence_encoder import SentenceEncoder
from fastbert.tasks.fill_mask import FillMask
from fastbert.tasks.next_sentence import NextSentence
from fastbert.tasks.question_answering import QuestionAnswering
from fastbert.tasks.text_classification import TextClassification
from fastbert.tasks.token_classification import TokenClassification


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return save_all(tmp_path_factory.mktemp("models"))


@pytest.fixture
def cli(models, tmp_path, monkeypatch, capsysbinary):
    monkeypatch.chdir(tmp_path)
    return runner(models, capsysbinary)


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(threads=1)


def test_fill_mask_keeps_a_line_for_each_line(cli, models):
    Path("a.txt").write_text("paris is [MASK].\n\nthe [MASK] of [MASK]\n")
    found = rows(cli("fill-mask", "a.txt", "--top-k", "3"))
    task = FillMask(models / "masked")
    wanted = [task("paris is [MASK].", top_k=3), [], task("the [MASK] of [MASK]", top_k=3)]
    assert places(found) == [("a.txt", 1), ("a.txt", 2), ("a.txt", 3)]
    assert [len(row["masks"]) for row in found] == [1, 0, 2]
    for row, masks in zip(found, wanted, strict=True):
        for fills, expected in zip(row["masks"], masks, strict=True):
            assert fills == [
                {**asdict(fill), "score": pytest.approx(fill.score, abs=1e-6)} for fill in expected
            ]


def test_fill_mask_of_a_text_on_the_command_line_and_targets(cli):
    (row,) = rows(cli("fill-mask", "--text", "a [MASK]", "--target", "cat", "--target", "paris"))
    assert (row["file"], row["line"]) == ("<arguments>", 1)
    assert {fill["token"] for fill in row["masks"][0]} == {"cat", "paris"}
    code, out, err = cli("fill-mask", "--text", "a [MASK]", "--target", "zebra")
    assert (code, out) == (1, "")
    assert err == "fastbert: error: target 'zebra' is 5 tokens, expected one\n"


def test_next_sentence_reads_pairs_from_every_format(cli, models):
    Path("a.txt").write_text("paris is\ta cat\n")
    Path("b.csv").write_text('pair,text\n"a\ncat","paris is"\n')
    Path("c.jsonl").write_text('{"text": "who", "pair": "a cat"}\n')
    found = rows(cli("next-sentence", "a.txt", "b.csv", "c.jsonl"))
    task = NextSentence(models / "next")
    wanted = task(["paris is", "paris is", "who"], ["a cat"] * 3)
    assert places(found) == [("a.txt", 1), ("b.csv", 2), ("c.jsonl", 1)]
    assert [(row["is_next"], row["score"]) for row in found] == [
        (result.is_next, pytest.approx(result.score, abs=1e-6)) for result in wanted
    ]
    assert found[0]["score"] == found[1]["score"] != found[2]["score"]
    inline = rows(cli("next-sentence", "--text", "paris is", "--pair", "a cat"))
    assert inline[0]["score"] == pytest.approx(found[0]["score"], abs=1e-6)


def test_classify_gives_the_checkpoints_labels(cli, models):
    Path("a.csv").write_text("id,body\n1,a cat\n2,\n")
    found = rows(cli("classify", "a.csv", "--text-field", "body", "-k", "all"))
    wanted = TextClassification(models / "classifier")(["a cat", ""], top_k=None)
    assert places(found) == [("a.csv", 2), ("a.csv", 3)]
    assert [[asdict(label) for label in labels] for labels in wanted] == [
        [{**label, "score": pytest.approx(label["score"], abs=1e-6)} for label in row["labels"]]
        for row in found
    ]
    (row,) = rows(cli("classify", "--text", "a cat", "--function", "none"))
    assert len(row["labels"]) == 1
    assert row["labels"][0]["label"] == found[0]["labels"][0]["label"]
    assert row["labels"][0]["score"] != found[0]["labels"][0]["score"]


def test_classify_pairs_are_asked_for(cli, models):
    Path("a.txt").write_text("a cat\tsleeps\n")
    (alone,) = rows(cli("classify", "a.txt"))
    (paired,) = rows(cli("classify", "a.txt", "--pair-field", "pair"))
    wanted = TextClassification(models / "classifier")(["a cat\tsleeps"])[0]
    assert alone["labels"][0]["score"] == pytest.approx(wanted[0].score, abs=1e-6)
    wanted = TextClassification(models / "classifier")(["a cat"], ["sleeps"])[0]
    assert paired["labels"][0]["score"] == pytest.approx(wanted[0].score, abs=1e-6)
    (inline,) = rows(cli("classify", "--text", "a cat", "--pair", "sleeps"))
    assert inline["labels"] == paired["labels"]


def test_classify_cuts_long_texts_and_says_so_or_reads_them_whole(cli, models):
    Path("a.txt").write_text(f"{LONG}\n{LONG}\na cat\n")
    code, _, err = cli("classify", "a.txt", "--chunk-lines", "1")
    assert code == 0
    assert err == "fastbert: warning: 2 texts were longer than 32 tokens and cut there\n"
    found = rows(cli("classify", "a.txt", "--combine", "mean", "--stride", "8"))
    wanted = TextClassification(models / "classifier")([LONG], combine="mean", stride=8)[0]
    assert found[0]["labels"] == [
        {"label": wanted[0].label, "score": pytest.approx(wanted[0].score, abs=1e-6)}
    ]


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_tag_reports_spans_of_the_text_as_given(cli, models, strategy):
    text = f"\ufeffPARIS is  a çat {LONG}"
    Path("a.txt").write_text(f"x\n{text}\n\n")
    found = rows(cli("tag", "a.txt", "--strategy", strategy, "--ignore-label", ""))
    task = TokenClassification(models / "tagger")
    wanted = task([text], strategy=strategy, ignore_labels=())[0]
    assert [(s["label"], s["start"], s["end"]) for s in found[1]["spans"]] == [
        (span.label, span.start, span.end) for span in wanted
    ]
    assert found[1]["spans"]
    assert all(s["text"] == text[s["start"] : s["end"]] for s in found[1]["spans"])
    assert all(("index" in s) == (strategy == "none") for s in found[1]["spans"])
    assert found[2] == {"file": "a.txt", "line": 3, "spans": []}


def test_tag_words_gives_each_word_its_own_tag(cli, models):
    Path("a.txt").write_text("Paris  is \x01 nice\n\n")
    found = rows(cli("tag", "a.txt", "--words"))
    assert [tag["word"] for tag in found[0]["words"]] == ["Paris", "is", "\x01", "nice"]
    wanted = TokenClassification(models / "tagger").tag_words([["Paris", "is", "\x01", "nice"]])
    assert [tag["label"] for tag in found[0]["words"]] == [tag.label for tag in wanted[0]]
    assert found[1]["words"] == []


def test_tag_leaves_out_the_labels_named(cli):
    options = ["--text", LONG, "--strategy", "none", "--ignore-label"]
    everything = rows(cli("tag", *options, ""))[0]["spans"]
    labels = {span["label"] for span in everything}
    assert len(labels) > 1
    for label in labels:
        kept = rows(cli("tag", *options, label))[0]["spans"]
        assert kept == [span for span in everything if span["label"] != label]


def test_answer_asks_each_its_own_question_or_all_the_same(cli, models):
    Path("a.csv").write_text(f"context,question\n{LONG},who\na cat,is the ?\n")
    task = QuestionAnswering(models / "reader")
    found = rows(cli("answer", "a.csv", "--top-k", "2"))
    for row, (question, context) in zip(found, [("who", LONG), ("is the ?", "a cat")], strict=True):
        answers = task(question, context, top_k=2)
        assert [(a["start"], a["end"]) for a in row["answers"]] == [
            (a.start, a.end) for a in answers
        ]
        assert all(a["text"] == context[a["start"] : a["end"]] for a in row["answers"])
    Path("a.txt").write_text(f"who\t{LONG}\n\n")
    asked = rows(cli("answer", "a.txt"))
    assert asked[0]["answers"] == found[0]["answers"][:1]
    assert asked[1] == {"file": "a.txt", "line": 2, "answers": []}
    inline = rows(cli("answer", "--question", "who", "--context", LONG))
    assert inline[0]["answers"] == asked[0]["answers"]


def test_answer_reads_a_document_whole(cli, models):
    Path("a.txt").write_text("paris is\n\nthe capital\n")
    (row,) = rows(cli("answer", "--question", "who", "a.txt", "--document"))
    answer = QuestionAnswering(models / "reader")("who", "paris is\n\nthe capital\n")
    assert row["line"] == 1
    assert row["answers"][0]["text"] == answer.text
    lines = rows(cli("answer", "--question", "who", "a.txt"))
    assert places(lines) == [("a.txt", 1), ("a.txt", 2), ("a.txt", 3)]
    assert lines[1]["answers"] == [{"text": "", "score": 1.0, "start": 0, "end": 0}]


def test_rerank_prints_the_best_first_whatever_the_chunks(cli, models):
    lines = ["a cat", "", "who is the", "paris", "paris", "of france", " "]
    Path("a.txt").write_text("\n".join(lines) + "\n")
    found = rows(cli("rerank", "who", "a.txt"))
    scores = CrossEncoder(models / "ranker").predict([("who", t) for t in lines if t.strip()])
    assert [row["score"] for row in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    assert sorted((row["line"], row["text"]) for row in found) == [
        (i + 1, text) for i, text in enumerate(lines) if text.strip()
    ]
    order = [row["line"] for row in found]
    assert order.index(4) + 1 == order.index(5)  # equal scores keep their order
    parts = rows(cli("rerank", "who", "a.txt", "--chunk-lines", "2"))
    assert [row["line"] for row in parts] == order
    cut = rows(cli("rerank", "who", "a.txt", "--top-k", "2", "--chunk-lines", "2"))
    assert [row["line"] for row in cut] == order[:2]


def test_similar_scores_two_texts_or_the_pairs_of_files(cli, encoder, monkeypatch):
    monkeypatch.setattr(similar, "load_encoder", lambda args: encoder)
    (row,) = rows(cli("similar", "a cat sleeps", "the kitten naps"))
    a, b = encoder.encode(["a cat sleeps", "the kitten naps"])
    assert row["score"] == pytest.approx(float(a @ b), abs=1e-6)
    Path("a.tsv").write_text("text\tpair\na cat sleeps\tthe kitten naps\n")
    Path("b.txt").write_text("snow\tsnow\n")
    found = rows(cli("similar", "--pairs", "a.tsv", "b.txt"))
    assert [r["score"] for r in found] == [pytest.approx(row["score"]), pytest.approx(1.0)]
    assert places(found) == [("a.tsv", 2), ("b.txt", 1)]
    code, _, err = cli("similar", "a.tsv", "b")
    assert code == 0
    assert "files come after --pairs" in err


def test_similar_takes_the_default_model(tmp_path, capsys):
    assert main(["similar", "same", "same", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(1.0)


def test_tables_show_every_command(cli, encoder, monkeypatch):
    monkeypatch.setattr(similar, "load_encoder", lambda args: encoder)
    Path("p.txt").write_text("who\ta \x1b[31mcat\n")
    Path("t.txt").write_text("a [MASK]\x1b[31m\n")
    files = {"next-sentence": ["p.txt"], "answer": ["p.txt"], "similar": ["--pairs", "p.txt"]}
    for command in COMMANDS:
        first = ["who"] if command == "rerank" else []
        given = [*first, *files.get(command, ["t.txt"])]
        code, out, err = cli(command, *given, "--output-format", "table")
        assert (code, err) == (0, "")
        assert out.startswith("place")
        assert out.count("\n") > 1
        assert "\x1b" not in out


def test_chunks_do_not_change_the_results(cli):
    Path("a.txt").write_text("".join(f"a cat is {c} .\n" for c in string.ascii_lowercase))
    whole, parts = (rows(cli("tag", "a.txt", *o)) for o in ([], ["--chunk-lines", "3"]))
    assert places(whole) == places(parts) == [("a.txt", i + 1) for i in range(26)]
    for a, b in zip(whole, parts, strict=True):
        assert [s["label"] for s in a["spans"]] == [s["label"] for s in b["spans"]]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "rerank"])
def test_an_empty_file_gives_nothing(cli, encoder, monkeypatch, command):
    monkeypatch.setattr(similar, "load_encoder", lambda args: encoder)
    Path("a.txt").write_text("")
    files = ["--pairs", "a.txt"] if command == "similar" else ["a.txt"]
    assert cli(command, *files) == (0, "", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command, capsys):
    assert main([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: fastbert {command}")
    assert f"examples:\n  fastbert {command}" in captured.out
    assert captured.err == ""


def test_help_of_a_task_loads_nothing_heavy_and_is_quick():
    code = (
        "import sys\nfrom fastbert.cli import main\n"
        f"for command in {COMMANDS}:\n    main([command, '--help'])\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    one = [sys.executable, "-m", "fastbert", "answer", "--help"]
    before = os.times()
    subprocess.run(one, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    user, system = (after[i] - before[i] for i in (2, 3))  # of children
    assert user + system < 0.3


@pytest.mark.parametrize("command", ["classify", "rerank"])
def test_memory_does_not_grow_with_the_input(command, cli, monkeypatch):
    class Ranker:
        def predict(self, pairs, **options):
            return torch.zeros(len(pairs))

    monkeypatch.setattr(classify, "_load", lambda args: lambda chunk: [()] * len(chunk))
    monkeypatch.setattr(rerank, "_load", lambda args: Ranker())
    given = ["rerank", "q", "--top-k", "5"] if command == "rerank" else [command]
    peaks = []
    for lines in (1_000, 1_000, 8_000):  # the first one warms up
        Path("a.csv").write_text("text,n\n" + '"a line of\nsome length, as lines are",1\n' * lines)
        tracemalloc.start()
        assert cli(*given, "a.csv", "--chunk-lines", "250", "-o", "out.jsonl")[0] == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]
