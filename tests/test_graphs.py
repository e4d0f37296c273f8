"""Graphs for inference, recorded by a stand-in that repeats the model on the padded buffers."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import random_batch
from torch import Tensor

from fastbert import BertConfig, BertModel, Packed, ops, pack
from fastbert.graph_buckets import Bucket, Buckets, Buffers
from fastbert.graphs import GraphRunner
from fastbert.ops.determinism import deterministic
from fastbert.packing import QUERY_TILE

CPU = torch.device("cpu")


class FakeRecorder:
    """Repeats a recording by running it again, into one result that the next run overwrites."""

    def __init__(self) -> None:
        self.recorded = self.repeated = self.settled = 0
        self.is_ready = True
        self.fails: str | None = None
        self.inside = 0  # turns at a time

    def ready(self, device: torch.device) -> bool:
        return self.is_ready and device == CPU

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        if self.fails is not None:
            raise RuntimeError(self.fails)
        result = torch.full_like(compute(), float("nan"))
        self.recorded += 1

        def repeat() -> Tensor:
            self.repeated += 1
            return result.copy_(compute())

        return repeat

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.inside += 1
        assert self.inside == 1, "two turns at a time would share buffers"
        try:
            yield
        finally:
            self.inside -= 1

    def settle(self) -> None:
        self.settled += 1


def tiny(seed: int = 0, dtype: torch.dtype = torch.float64) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=600,
        initializer_range=0.3,
    )
    return BertModel(config, add_pooling_layer=False).eval().to(dtype)


def runner(model: BertModel, **options: Any) -> tuple[GraphRunner, FakeRecorder]:
    recorder = FakeRecorder()
    return GraphRunner(model, recorder=recorder, **options), recorder


def plain(model: BertModel, packed: Packed) -> Tensor:
    with torch.no_grad():
        return model.encode(packed.to("cpu"))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# --- buckets


@given(total=st.integers(1, 100_000), step=st.sampled_from([1, 16, 128]))
def test_waste_is_bounded(total: int, step: int) -> None:
    tokens = Buckets(step=step).tokens(total)
    assert tokens % step == 0
    assert 0 <= tokens - total < max(step, tokens / 8)


def test_buckets_are_few_and_grow() -> None:
    buckets = Buckets()
    sizes = sorted({buckets.tokens(n) for n in range(1, buckets.most_tokens + 1)})
    assert len(sizes) == 40
    assert sizes[:10] == [128 * n for n in range(1, 11)]
    assert sizes[-1] == 16_384
    assert all(buckets.tokens(size) == size for size in sizes)
    assert [buckets.sequences(n) for n in (128, 256, 1024, 16_384)] == [16, 32, 128, 512]


@given(lengths=st.lists(st.integers(0, 600), min_size=1, max_size=60))
@settings(deadline=None)
def test_a_bucket_holds_what_it_is_chosen_for(lengths: list[int]) -> None:
    packed = pack([[1] * n for n in lengths])
    bucket = Buckets().choose(packed)
    if bucket is None:
        assert packed.total == 0 or len(lengths) > max(16, packed.total // 8)
        return
    assert packed.total <= bucket.tokens
    assert len(lengths) <= bucket.sequences
    # Both work lists fit: the exact one of the host and the bounded one of a device.
    assert packed.work.shape[0] <= bucket.work
    assert packed.total // QUERY_TILE + len(lengths) <= bucket.work


def test_outside_of_all_buckets() -> None:
    buckets = Buckets(most_tokens=256, most_sequences=20)
    assert buckets.choose(random_batch([0, 0])) is None
    assert buckets.choose(random_batch([])) is None
    assert buckets.choose(random_batch([257])) is None
    assert buckets.choose(random_batch([256])) == Bucket(256, 20)
    assert buckets.choose(random_batch([10] * 20)) == Bucket(256, 20)
    assert buckets.choose(random_batch([10] * 21)) is None
    assert buckets.choose(random_batch([1] * 17)) is None  # 16 of them in 128 tokens


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_sizes_must_be_positive(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Buckets(*sizes)


# --- padding


def test_padding_belongs_to_no_sequence() -> None:
    packed = random_batch([5, 0, 130]).to("cpu")
    buffers = Buffers(Bucket(256, 8), CPU)
    buffers.fill(random_batch([100, 100, 1, 1, 1]).to("cpu"))  # something to forget
    before = [value.data_ptr() for value in vars(buffers.packed).values() if torch.is_tensor(value)]
    buffers.fill(packed)
    padded = buffers.packed
    assert padded.total == padded.max_seqlen == 256
    for name in ("input_ids", "token_type_ids", "position_ids"):
        assert torch.equal(getattr(padded, name)[:135], getattr(packed, name))
        assert not getattr(padded, name)[135:].any()
        assert getattr(padded, name).dtype == torch.int64
    assert padded.cu_seqlens.tolist() == [0, 5, 5, 135, 135, 135, 135, 135, 135]
    assert padded.lengths.tolist() == [5, 0, 130, 0, 0, 0, 0, 0]
    assert padded.work.shape == (256 // QUERY_TILE + 8, 2)
    assert torch.equal(padded.work[:3], packed.work)
    assert (padded.work[3:] == -1).all()
    assert padded.work.dtype == padded.cu_seqlens.dtype == torch.int32
    after = [value.data_ptr() for value in vars(padded).values() if torch.is_tensor(value)]
    assert before == after


# --- replay

LENGTHS: list[Sequence[int]] = [
    [1],
    [7, 3],
    [128],
    [129],
    [127, 1],
    [0, 5, 0],
    [300, 17, 17, 1],
    [64] * 16,
    [512, 513],
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_padded_run_equals_the_plain_run(lengths: Sequence[int]) -> None:
    model = tiny()
    ours, recorder = runner(model)
    packed = random_batch(lengths, types=2)
    for _ in range(2):  # recorded, then repeated
        assert_same(ours(packed), plain(model, packed))
    assert (recorder.recorded, recorder.repeated) == (1, 2)


@given(batches=st.lists(st.lists(st.integers(0, 40), max_size=12), min_size=1, max_size=5))
@settings(deadline=None, max_examples=20)
def test_one_runner_serves_batch_after_batch(batches: list[list[int]]) -> None:
    ours, _ = runner(MODEL)
    for number, lengths in enumerate(batches):
        packed = random_batch(lengths, seed=number)
        assert_same(ours(packed), plain(MODEL, packed))


MODEL = tiny()


def test_a_bucket_is_recorded_once_and_serves_every_mix_of_lengths() -> None:
    ours, recorder = runner(MODEL)
    for lengths in ([100], [50, 50], [1] * 16, [128], [3, 90, 2]):
        packed = random_batch(lengths)
        assert_same(ours(packed), plain(MODEL, packed))
    assert (recorder.recorded, len(ours)) == (1, 1)
    ours(random_batch([129]))
    assert (recorder.recorded, len(ours)) == (2, 2)


def test_results_are_never_overwritten() -> None:
    ours, recorder = runner(MODEL)
    batches = [random_batch([20, 30], seed=n) for n in range(3)]
    kept = [ours(packed) for packed in batches]
    copies = [hidden.clone() for hidden in kept]
    for packed in reversed(batches):
        ours(packed)
    assert recorder.recorded == 1
    for hidden, copied, packed in zip(kept, copies, batches, strict=True):
        assert torch.equal(hidden, copied)
        assert_same(hidden, plain(MODEL, packed))
    kept[0].zero_()  # it is the caller's own
    assert_same(ours(batches[1]), plain(MODEL, batches[1]))


def test_outside_the_buckets_it_is_plain() -> None:
    ours, recorder = runner(MODEL, buckets=Buckets(most_tokens=128))
    for lengths in ([129], [], [0, 0], [1] * 17):
        packed = random_batch(lengths)
        hidden = ours(packed)
        assert hidden.shape == (packed.total, 32)
        assert torch.equal(hidden, plain(MODEL, packed))
    assert recorder.recorded == recorder.repeated == 0


def test_while_a_caller_captures_it_is_plain() -> None:
    ours, recorder = runner(MODEL)
    packed = random_batch([5])
    ours(packed)
    recorder.is_ready = False
    assert torch.equal(ours(packed), plain(MODEL, packed))
    assert recorder.repeated == 1


def test_while_compiling_it_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, recorder = runner(MODEL)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ours(random_batch([5]))
    assert recorder.recorded == 0


def test_a_bucket_that_cannot_be_recorded_is_said_once_and_served() -> None:
    ours, recorder = runner(MODEL)
    recorder.fails = "operation not permitted when stream is capturing\nmore lines"
    packed = random_batch([5])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert torch.equal(ours(packed), plain(MODEL, packed))
    assert len(caught) == 1
    assert "128 tokens" in str(caught[0].message)
    assert "not permitted" in str(caught[0].message)
    assert "more lines" not in str(caught[0].message)
    assert (recorder.recorded, len(ours)) == (0, 0)
    recorder.fails = None
    assert_same(ours(random_batch([129])), plain(MODEL, random_batch([129])))  # others go on
    assert recorder.recorded == 1


def test_the_least_recently_used_graph_is_dropped() -> None:
    ours, recorder = runner(MODEL, most_graphs=2)
    small, middle, large = (random_batch([n]) for n in (100, 200, 300))
    ours(small), ours(middle), ours(small)
    assert (recorder.recorded, recorder.settled) == (2, 0)
    ours(large)  # drops the middle one, once nothing runs
    assert (recorder.recorded, recorder.settled, len(ours)) == (3, 1, 2)
    ours(small)
    assert recorder.recorded == 3
    assert_same(ours(middle), plain(MODEL, middle))
    assert (recorder.recorded, len(ours)) == (4, 2)
    with pytest.raises(ValueError, match="most_graphs"):
        GraphRunner(MODEL, most_graphs=0, recorder=recorder)


# --- what a graph was recorded for


def test_weights_changed_in_place_are_followed() -> None:
    model, packed = tiny(), random_batch([9, 4])
    ours, recorder = runner(model)
    before = ours(packed)
    model.load_state_dict(tiny(seed=1).state_dict())
    after = ours(packed)
    assert not torch.allclose(before, after)
    assert_same(after, plain(model, packed))
    assert recorder.recorded == 1


def _retyped(model: BertModel) -> None:
    model.to(torch.float32)


def _other_table(model: BertModel) -> None:
    model.set_input_embeddings(torch.nn.Embedding(50, 32, dtype=torch.float64))


def _other_parameter(model: BertModel) -> None:
    norm = model.encoder.layer[1].output.LayerNorm
    norm.weight = torch.nn.Parameter(norm.weight.detach() * 2)


def _other_data(model: BertModel) -> None:
    dense = model.encoder.layer[0].intermediate.dense
    dense.weight.data = dense.weight.data * 2


@pytest.mark.parametrize("change", [_retyped, _other_table, _other_parameter, _other_data])
def test_weights_that_moved_drop_all_graphs(change: Callable[[BertModel], None]) -> None:
    model, packed = tiny(), random_batch([9, 4])
    ours, recorder = runner(model)
    ours(packed)
    ours(random_batch([200]))
    change(model)
    hidden = ours(packed)
    assert hidden.dtype == model.dtype
    torch.testing.assert_close(hidden, plain(model, packed), rtol=1e-5, atol=1e-5)
    assert (recorder.recorded, recorder.settled, len(ours)) == (3, 1, 1)
    ours(packed)
    assert recorder.recorded == 3


@pytest.mark.parametrize(
    "mode",
    [
        lambda: deterministic(True),
        lambda: ops.use("reference"),
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
    ids=["deterministic", "use", "autocast"],
)
def test_modes_have_graphs_of_their_own(mode: Callable[[], Any]) -> None:
    ours, recorder = runner(MODEL)
    packed = random_batch([9, 4])
    ours(packed)
    with mode():
        ours(packed)
        assert recorder.recorded == 2
    ours(packed)
    with mode():
        ours(packed)
    assert recorder.recorded == 2


def test_a_model_that_left_the_recorders_device_is_plain() -> None:
    ours, recorder = runner(MODEL)
    seen: list[Packed] = []
    elsewhere = SimpleNamespace(
        training=False, device=torch.device("meta"), encode=lambda packed: seen.append(packed)
    )
    ours._model = elsewhere  # type: ignore[assignment]
    ours(random_batch([5]))
    assert recorder.recorded == 0
    assert seen[0].input_ids.device.type == "meta"


# --- callers


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_every_grad_mode_may_follow_every_other(mode: Callable[[], Any]) -> None:
    ours, _ = runner(MODEL)
    packed = random_batch([9, 4])
    for context in (mode, torch.inference_mode, nullcontext, torch.no_grad):
        with context():
            hidden = ours(packed)
            assert not hidden.requires_grad
            assert_same(hidden, plain(MODEL, packed))


def test_it_runs_the_model(minilm_dir: Any) -> None:
    model = BertModel.from_pretrained(minilm_dir)
    packed = random_batch([12, 30, 7], vocabulary=30_000)
    with torch.no_grad():
        without = model(packed)
        model.runner, recorder = runner(model)
        with_runner = model(packed)
    assert recorder.repeated == 1
    # Another number of rows is another GEMM of the CPU's library: equal up to rounding.
    torch.testing.assert_close(
        with_runner.last_hidden_state, without.last_hidden_state, rtol=0, atol=2e-5
    )
    assert model(packed).last_hidden_state.requires_grad  # with gradients, not the runner
    assert recorder.repeated == 1


def test_threads_take_turns() -> None:
    ours, _ = runner(MODEL)
    batches = [random_batch([10 + n, 20], seed=n) for n in range(8)]
    expected = [plain(MODEL, packed) for packed in batches]
    wrong: list[int] = []

    def work(number: int) -> None:
        results = [ours(batches[number]) for _ in range(10)]
        if not all(torch.allclose(hidden, expected[number], rtol=1e-12) for hidden in results):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(ours) == 1


def test_a_copy_of_the_model_has_graphs_of_its_own() -> None:
    model, packed = tiny(), random_batch([9, 4])
    ours, recorder = runner(model)
    model.runner = ours
    ours(packed)
    twin = copy.deepcopy(model)
    assert isinstance(twin.runner, GraphRunner)
    assert len(twin.runner) == 0
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        assert_same(twin(packed).last_hidden_state, plain(twin, packed))
    assert_same(ours(packed), plain(model, packed))
    assert recorder.recorded == 1


def test_bad_input_is_refused() -> None:
    model = tiny()
    ours, recorder = runner(model)
    with pytest.raises(TypeError, match="ndarray"):
        ours(np.zeros(3))  # type: ignore[arg-type]
    model.train()
    with pytest.raises(ValueError, match="train mode"):
        ours(random_batch([3]))
    model.eval()
    with pytest.raises(IndexError):  # bad ids come through, and spoil nothing
        ours(pack([[1, 77]]))
    assert_same(ours(random_batch([3])), plain(model, random_batch([3])))
    assert (recorder.inside, recorder.recorded) == (0, 1)


def test_cuda_graphs_need_a_cuda_device() -> None:
    with pytest.raises(ValueError, match="cpu"):
        GraphRunner(tiny())
