"""How `graphs.GraphRunner` records and repeats: `Recorder`, and `CudaRecorder` on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP = 2
"""Runs before a capture: kernels compile, libraries make their handles and workspaces."""


class Recorder(Protocol):
    """How a computation on fixed buffers is recorded and repeated."""

    def ready(self, device: torch.device) -> bool:
        """Whether something on that device can be recorded or repeated now."""

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record `compute`.

        Args:
            compute: reads only buffers that stay where they are.

        Returns:
            What repeats it on what the buffers then hold. The tensor it gives may be overwritten by
            the next repetition of any recording.

        Raises:
            RuntimeError: if it can't be recorded.
        """

    def turn(self) -> AbstractContextManager[None]:
        """Filling buffers, repeating and copying the result out, after all earlier turns."""

    def settle(self) -> None:
        """Wait until no earlier turn is running any more."""


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory, and lets them run one after the other.

    Unmeasured on GPU.

    What a graph makes between its inputs and its result is dead once it has run, and a result is
    copied out in the same turn; so the pool need only hold the largest graph's, and the results.

    Args:
        device: a CUDA device.

    Raises:
        ValueError: on another device.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"graphs are recorded on a CUDA device, not on {device}")
        self._device = device
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """The device alone: pool, stream and event are this process's."""
        return {"_device": self._device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._pool: Any = None
        self._side: torch.cuda.Stream | None = None
        self._last: torch.cuda.Event | None = None

    def ready(self, device: torch.device) -> bool:
        """False elsewhere, and while a caller captures a graph of its own (of plain launches)."""
        return device == self._device and not torch.cuda.is_current_stream_capturing()

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Warm up on a side stream, then capture there."""
        with torch.cuda.device(self._device):
            if self._side is None:
                self._side = torch.cuda.Stream()
                self._pool = torch.cuda.graph_pool_handle()
            current = torch.cuda.current_stream()
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                for _ in range(WARM_UP):
                    compute()
            current.wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            try:
                # Only this thread's calls can spoil the capture: others may go on allocating.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
                ):
                    result = compute()
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own stream current

        def repeat() -> Tensor:
            graph.replay()
            return result

        return repeat

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Queue behind the last turn, on whatever stream that was."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            if self._last is None:
                self._last = torch.cuda.Event()
            else:
                stream.wait_event(self._last)
            try:
                yield
            finally:
                self._last.record(stream)

    def settle(self) -> None:
        """Wait on the host for the last turn: a graph must not be destroyed while it runs."""
        torch.cuda.synchronize(self._device)
