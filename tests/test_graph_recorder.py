"""The CUDA recorder against stand-ins for `torch.cuda`: the order of its calls, and their names."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert.graph_recorder import CudaRecorder

CPU = torch.device("cpu")


class FakeCuda:
    """The names of `torch.cuda` that the recorder uses, noting the order of calls."""

    def __init__(self, fails: bool = False) -> None:
        self.log: list[str] = []
        self.fails = fails
        self.current = self._stream("main")
        self.made = 0

    def _stream(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.log.append(f"{name} waits for event"),
        )

    def Stream(self) -> Any:  # noqa: N802
        return self._stream("side")

    def Event(self) -> Any:  # noqa: N802
        return SimpleNamespace(record=lambda stream: self.log.append(f"event on {stream.name}"))

    def CUDAGraph(self) -> Any:  # noqa: N802
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    def graph_pool_handle(self) -> str:
        self.made += 1
        return f"pool {self.made}"

    def current_stream(self) -> Any:
        return self.current

    def set_stream(self, stream: Any) -> None:
        self.current = stream

    def device(self, device: torch.device) -> Any:
        return nullcontext()

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(
        self, graph: Any, *, pool: str, stream: Any, capture_error_mode: str
    ) -> Iterator[None]:
        self.log.append(f"capture on {stream.name} in {pool}, {capture_error_mode}")
        self.current = stream
        yield
        if self.fails:
            raise RuntimeError("capture failed")  # as torch: the stream is not set back
        self.current = self._stream("main")

    def is_current_stream_capturing(self) -> bool:
        return False

    def synchronize(self, device: torch.device) -> None:
        self.log.append("synchronize")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    return fake


def test_cuda_graphs_are_warmed_up_and_share_a_pool(cuda: FakeCuda) -> None:
    recorder = CudaRecorder(torch.device("cuda", 0))
    ran: list[str] = []

    def compute() -> Tensor:
        ran.append(cuda.current.name)
        return torch.zeros(1)

    first, _ = recorder.record(compute), recorder.record(compute)
    assert ran == ["side"] * 6
    assert cuda.current.name == "main"
    captures = [line for line in cuda.log if line.startswith("capture")]
    assert captures == ["capture on side in pool 1, thread_local"] * 2
    assert cuda.log[:2] == ["side waits for main", "main waits for side"]
    cuda.log.clear()
    with recorder.turn():
        first()
    with recorder.turn():
        first()
    turn = ["replay", "event on main"]
    assert cuda.log == [*turn, "main waits for event", *turn]
    assert len(ran) == 6
    recorder.settle()
    assert cuda.log[-1] == "synchronize"


def test_a_capture_that_fails_leaves_the_callers_stream(cuda: FakeCuda) -> None:
    cuda.fails = True
    recorder = CudaRecorder(torch.device("cuda", 0))
    with pytest.raises(RuntimeError, match="capture failed"):
        recorder.record(lambda: torch.zeros(1))
    assert cuda.current.name == "main"


def test_the_cuda_recorder_serves_its_own_device_and_travels_without_its_graphs(
    cuda: FakeCuda,
) -> None:
    recorder = CudaRecorder(torch.device("cuda", 0))
    assert recorder.ready(torch.device("cuda", 0))
    assert not recorder.ready(torch.device("cuda", 1))
    assert not recorder.ready(CPU)
    recorder.record(lambda: torch.zeros(1))
    twin = pickle.loads(pickle.dumps(recorder))
    assert twin.ready(torch.device("cuda", 0))
    twin.record(lambda: torch.zeros(1))
    assert cuda.made == 2


def test_torch_has_the_names_that_the_recorder_uses() -> None:
    wanted = {"cuda_graph", "pool", "stream", "capture_error_mode"}
    assert wanted <= set(inspect.signature(torch.cuda.graph).parameters)
    for name in [n for n in vars(FakeCuda) if not n.startswith("_")]:
        assert hasattr(torch.cuda, name), name
