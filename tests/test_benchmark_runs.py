"""What the benchmarks run: workloads, peers, ops, and the command from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkout import ROOT, benchmarks

from fastbert import BertConfig, BertModel

model = benchmarks("model")
op_benchmarks = benchmarks("conftest")
machine = benchmarks("machine")
peers = benchmarks("peers")
workload = benchmarks("workload")


def test_mixed_workloads_hold_the_same_texts_in_another_order(minilm_dir: Path) -> None:
    mixed, ordered = (workload.make_workload(n, minilm_dir, 70) for n in ("mixed", "mixed-sorted"))
    lengths = workload.mixed_lengths(70).tolist()
    assert mixed.lengths == lengths
    assert ordered.lengths == sorted(lengths, reverse=True)
    assert min(lengths) >= 3
    assert max(lengths) <= 512
    assert [len(batch) for batch in mixed.batches] == [32, 32, 6]
    assert sum(lengths) < ordered.padded_tokens < mixed.padded_tokens
    ends = {(text[0], text[-1]) for batch in mixed.batches for text in batch}
    assert ends == {(101, 102)}  # [CLS] and [SEP] of the vocabulary
    assert len({tuple(text[1:-1]) for text in mixed.batches[0]}) == 32


def test_fixed_workloads_have_nothing_to_pad(minilm_dir: Path) -> None:
    for name, (batch, length) in workload.FIXED.items():
        made = workload.make_workload(name, minilm_dir, 0)
        assert made.lengths == [length] * batch
        assert made.padded_tokens == batch * length
    with pytest.raises(ValueError, match="1x16"):
        workload.make_workload("2x2", minilm_dir, 0)


def test_sentences_are_real_and_spread_over_the_text() -> None:
    few, many = workload.sentences(10), workload.sentences(500)
    assert (len(few), len(many)) == (10, 500)
    assert len(set(many)) > 450
    assert few[0] == many[0]


def tiny_config() -> BertConfig:
    return BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        initializer_range=0.3,  # so that attention matters
    )


@pytest.fixture(scope="module")
def tiny_dir(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two narrow layers, with the real tokenizer beside it."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    BertModel(tiny_config()).save_pretrained(directory)
    (directory / "tokenizer.json").write_bytes((minilm_dir / "tokenizer.json").read_bytes())
    return directory


def test_operations_are_those_that_torch_counts(tiny_dir: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    peer = peers.transformers_model(tiny_dir, "float32", "eager")
    for length in (3, 17):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            peer.encoder(peer.embeddings(torch.ones(1, length, dtype=torch.int64)))
        expected = counter.get_total_flops()
        assert workload.encoder_flops([length], peer.config) == expected
    counted = workload.Workload("two", ([[1] * 3], [[1] * 17, [1] * 17])).work(peer.config)
    assert counted["tokens"] == 37
    assert counted["flops"] == pytest.approx(
        workload.encoder_flops([3], peer.config) + 2 * expected
    )


def test_every_model_peer_is_right_and_a_lost_mask_is_not(tiny_dir: Path) -> None:
    mixed = workload.make_workload("mixed", tiny_dir, 5)
    truth = peers.float64_truth(tiny_dir, mixed)
    bound = peers.BOUNDS["float32"]
    for name in ("fastbert packed", "fastbert padded call", peers.BASELINE, "transformers eager"):
        peer = peers.PEERS[name](tiny_dir, "float32")
        candidate = peers.candidate(name, peer, mixed, truth, bound)
        assert candidate.error(candidate.run()) <= bound / 4

    class Unmasked(peers.PaddedPeer):  # type: ignore[name-defined, misc]
        def run(self, prepared: Any) -> Any:
            return self.model(input_ids=prepared["input_ids"]).last_hidden_state

    candidate = peers.candidate("wrong", Unmasked(peer.model), mixed, truth, bound)
    assert candidate.error(candidate.run()) > 100 * bound


def test_the_worst_row_counts() -> None:
    truth = np.array([[3.0, 4.0], [0.0, 2.0]])
    assert peers.worst_row(truth, truth) == 0.0
    assert peers.worst_row(truth + np.array([[0.0, 0.0], [0.0, 0.5]]), truth) == 0.25
    assert np.isnan(peers.worst_row(truth * np.nan, truth))
    with pytest.raises(ValueError, match="compared"):
        peers.worst_row(truth[:1], truth)


@pytest.mark.parametrize("off", [1.1, float("nan")])
def test_an_op_that_is_off_is_not_timed(off: float) -> None:
    rates = op_benchmarks.Rates()
    meter = op_benchmarks.Meter(lambda run: pytest.fail("timed"), rates)
    truth = torch.ones(3, dtype=torch.float64)
    with pytest.raises(pytest.fail.Exception, match="not timed"):
        meter(lambda: torch.full((3,), off), truth, torch.float32, moved=1.0)
    assert rates.lines == []


def test_an_op_that_is_right_gets_its_rate() -> None:
    class Benchmark(SimpleNamespace):
        def __call__(self, run: Callable[[], Any]) -> None:
            self.stats = SimpleNamespace(stats=SimpleNamespace(median=0.5))

    benchmark = Benchmark(name="op", extra_info={}, stats=None)
    rates = op_benchmarks.Rates()
    truth = torch.ones(3, dtype=torch.float64)
    op_benchmarks.Meter(benchmark, rates)(lambda: truth.float(), truth, torch.float32, flops=3e9)
    assert benchmark.extra_info == {"error": 0.0, "GFLOP/s": 6.0}
    assert "6.0 GFLOP/s" in rates.lines[0]


def test_cpu_time_of_others_leaves_out_idling_and_our_own(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 200 300 90000 5000 40 50 60 1000 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    before = time.process_time()
    others = machine.cpu_seconds_of_others(stat)
    busy = 1650 / os.sysconf("SC_CLK_TCK")  # guests are in user's time already
    assert busy - time.process_time() <= others <= busy - before
    assert np.isnan(machine.cpu_seconds_of_others(tmp_path / "absent"))


def run_in_checkout(*command: str) -> subprocess.CompletedProcess[str]:
    # Under xdist, pytest-benchmark would time nothing: the inner pytest is no part of it.
    kept = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_model_benchmark_end_to_end(tmp_path: Path) -> None:
    page = (ROOT / "benchmarks" / "README.md").read_bytes()
    names = [f"{tmp_path}/out.{end}" for end in ("json", "md", "png")]
    done = run_in_checkout(
        *("benchmarks.model", "--cases", "1x16", "--peers", "fastbert packed", peers.BASELINE),
        *("--seconds", "0", "--min-rounds", "2", "--threads", "1"),
        *("--json", names[0], "--markdown", names[1], "--plot", names[2]),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == Path(names[1]).read_text(encoding="utf-8")
    data = json.loads(Path(names[0]).read_text(encoding="utf-8"))
    assert data["machine"]["threads"] == 1
    assert data["groups"][0]["gemm_flops_per_second"] > 0
    (case,) = data["groups"][0]["results"]
    assert case["work"]["tokens"] == 16
    assert [c["right"] for c in case["candidates"]] == [True, True]
    assert [len(c["seconds"]) for c in case["candidates"]] == [2, 2]
    assert Path(names[2]).read_bytes().startswith(b"\x89PNG")
    assert (ROOT / "benchmarks" / "README.md").read_bytes() == page


@pytest.mark.parametrize("flag", [["--threads", "0"], ["--cases", "9x9"], ["--dtype", "int8"]])
def test_bad_arguments_are_usage_errors(
    flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        model.main(flag)
    assert caught.value.code == 2
    assert flag[1] in capsys.readouterr().err


@pytest.mark.slow
def test_every_op_benchmark_passes_its_check() -> None:
    stems = ("attention", "cross_entropy", "edges", "embedding", "layer_norm", "linear")
    files = [f"benchmarks/{stem}.py" for stem in stems]
    done = run_in_checkout("pytest", "-q", "--benchmark-max-time=0.01", *files)
    assert done.returncode == 0, done.stdout
    assert "GFLOP/s" in done.stdout
    assert "GB/s" in done.stdout
