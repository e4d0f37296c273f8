"""`fastbert verify` and `fastbert demo`, and what they measure with, on a small random model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastbert.cli import corpus, main, parity, speed, verify
from fastbert.cli.padded import pad, padded_forward
from fastbert.cli.parity import BARS, Bar, Difference
from fastbert.cli.timing import interleave
from fastbert.config import BertConfig
from fastbert.model import BertModel
from fastbert.packing import pack
from fastbert.sentence_encoder import SentenceEncoder
from fastbert.tokenizer import BertTokenizer


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A random BERT of 3 layers with the default model's tokenizer."""
    directory = tmp_path_factory.mktemp("small")
    tokenizer = BertTokenizer.from_pretrained(None)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def without_transformers(monkeypatch):
    monkeypatch.setattr(parity, "transformers_installed", lambda: False)
    monkeypatch.setattr(speed, "transformers_installed", lambda: False)


def test_verify_passes_and_compares_with_transformers(small, capsys):
    assert main(["verify", str(small), "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert set(report["checks"]) == {"vectors", "reference", "tokens"}
    assert len(report["layers"]) == 4
    assert 0 < report["vectors"]["max_abs"] < 1e-5
    assert report["transformers"]["reference_max_abs"] < 1e-10
    assert report["longest"] == 128
    assert report["shortest"] == 3


def test_verify_in_words_and_without_transformers(small, capsys, without_transformers):
    assert main(["verify", str(small), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    for row in ("embeddings ", "layer 3 ", "engine ", "sentence vectors "):
        assert f"\n{row}" in shown
    assert "passed   sentence vectors" in shown
    assert "absent   transformers" in shown


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_verify_judges_half_precision_by_its_own_bar(small, capsys, without_transformers, dtype):
    command = ["verify", str(small), "--dtype", dtype, "--json", "--device", "cpu"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bar"] == {"cosine_mean": 0.9999, "cosine_min": 0.9995, "max_abs": None}
    assert report["vectors"]["max_abs"] > 1e-5


def test_verify_finds_a_wrong_layer(small, capsys, without_transformers, monkeypatch):
    load = verify.load_encoder

    def load_wrong(args):
        encoder = load(args)
        if args.dtype != "float64":
            encoder.model.encoder.layer[1].output.dense.weight.mul_(1.5)
        return encoder

    monkeypatch.setattr(verify, "load_encoder", load_wrong)
    assert main(["verify", str(small), "--json", "--device", "cpu"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [layer["max_abs"] > 1e-4 for layer in report["layers"]] == [False, False, True, True]
    assert report["checks"] == {"vectors": False}
    assert "FAILED   sentence vectors" in verify.render(report)


def test_verify_of_no_model_is_one_line(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fastbert: error: ")
    assert error.count("\n") == 1


def test_difference_counts_over_batches():
    difference = Difference()
    difference.add(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 0.5], [0.0, 0.0]]))
    difference.add(np.array([[0.0, 2.0]], np.float32), np.array([[0.0, -1.0]]))
    difference.add(np.zeros((0, 2)), np.zeros((0, 2)))
    assert difference.rows == 3
    assert difference.max_abs == 3.0
    assert difference.cosine_min == -1.0
    assert difference.cosine_mean == pytest.approx((1 / 1.25**0.5 + 1 - 1) / 3)
    one_is_zero = Difference()
    one_is_zero.add(np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]]))
    assert one_is_zero.cosine_min == 0.0
    with pytest.raises(ValueError, match="shapes"):
        difference.add(np.zeros((1, 2)), np.zeros((1, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number_is_within_no_bar(bad):
    difference = Difference()
    with np.errstate(invalid="ignore"):
        difference.add(np.array([[bad, 1.0]]), np.array([[1.0, 1.0]]))
    assert not any(difference.within(bar) for bar in BARS.values())
    json.dumps(difference.as_dict(), allow_nan=False)


def test_every_figure_of_a_bar_counts():
    difference = Difference()
    difference.add(np.array([[1.0, 0.0]] * 9 + [[1.0, 0.1]]), np.array([[1.0, 0.0]] * 10))
    mean, low = difference.cosine_mean, difference.cosine_min
    assert difference.within(Bar(mean, low, 0.1))
    assert not difference.within(Bar(mean + 1e-9, low, 0.1))
    assert not difference.within(Bar(mean, low + 1e-9, 0.1))
    assert not difference.within(Bar(mean, low, 0.09))
    assert difference.within(Bar(mean, low, None))


def test_padded_forward_equals_packed(small):
    model = BertModel.from_pretrained(small)
    ids = [[101, *range(1000, 1000 + n), 102] for n in (0, 1, 30, 7)]
    padded, mask = pad(ids, 0)
    with torch.no_grad():
        got = padded_forward(model, padded, mask)[mask]
        want = model.encode(pack(ids).to("cpu"))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_speed_compares_before_it_times(small, monkeypatch, without_transformers):
    encoder = SentenceEncoder(small, device="cpu", max_length=64)
    texts = corpus.sample_texts(8)
    found = speed.measure(encoder, texts, rounds=3)
    assert set(found.timings) == set(found.padding)
    assert found.rounds == 3
    assert found.padding["packed"] == 0
    assert 0 < found.padding["padded, as they come"] < 1
    monkeypatch.setattr(
        speed, "padded_forward", lambda model, ids, mask: torch.randn(*ids.shape, 32)
    )
    with pytest.raises(ValueError, match="nothing was timed"):
        speed.measure(encoder, texts)


def test_timing_is_interleaved_and_ends_when_patience_does():
    calls = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 3
    assert all(len(timing.seconds) == 3 for timing in timings.values())
    low, high = timings["a"].spread
    assert low <= timings["a"].median <= high
    assert len(interleave({"a": lambda: None}, 9, patience=0)["a"].seconds) == 3


def test_demo_answers_proves_and_times(small, capsys, without_transformers):
    assert main(["demo", "--model", str(small), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("indexed ")
    assert shown.count("?\n  ") == 3
    assert ": passed\n" in shown
    assert "padded, sorted by length" in shown
    assert "1.00x the time of packed" in shown


def test_demo_fails_without_parity_and_times_nothing(small, capsys, monkeypatch):
    monkeypatch.setitem(parity.BARS, "float32", Bar(1.1, 1.1, 0.0))
    assert main(["demo", "--model", str(small), "--device", "cpu"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "the time of packed" not in shown


def test_verify_works_where_transformers_cannot_be_imported(small):
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['transformers', 'sentence_transformers', 'triton']))\n"
        "from fastbert.cli import main\n"
        f"sys.exit(main(['verify', {str(small)!r}]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "absent   transformers" in result.stdout
