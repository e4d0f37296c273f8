"""`GraphRunner`: the GPU inference way. One recorded graph a bucket of total tokens, replayed.

A short batch on a GPU is bound by its launches (seven a layer), which a CUDA graph issues as one.
A graph's sizes are fixed, so a batch is padded to a bucket of *total* tokens: texts themselves are
never padded, and a bucket serves any mix of lengths. Choosing, padding and replaying know no CUDA:
`graph_recorder` does. Unmeasured on GPU.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastbert.graph_buckets import Bucket, Buckets, Buffers
from fastbert.graph_recorder import CudaRecorder, Recorder
from fastbert.ops import registry
from fastbert.ops.determinism import is_deterministic
from fastbert.packing import Packed

MOST_GRAPHS = 32


class Encoder(Protocol):
    """What is recorded: `BertModel`, or anything like it."""

    training: bool

    def encode(self, packed: Packed) -> Tensor:
        """Hidden states (T, C) of tensors on the model's device."""

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""

    def modules(self) -> Any:
        """As `torch.nn.Module.modules`."""


class GraphRunner:
    """Hidden states of a `Packed` by replaying graphs; plain where no graph serves.

    A batch is served plainly if it is empty, outside the buckets, asked for while something else is
    being captured or compiled, or after the model has left the recorder's device. A graph reads the
    weights where they lie, so it follows changes in place; when weights move, all graphs are
    dropped. `deterministic`, `ops.use` and autocast each have graphs of their own. A bucket that
    can't be recorded is said once and served plainly.

    Args:
        model: in eval mode. It is not changed.
        buckets: the graphs' sizes.
        most_graphs: kept at a time, the least recently used is dropped; they share their memory.
        recorder: None records CUDA graphs on the model's device.

    Raises:
        ValueError: if `most_graphs` is not positive, or no recorder is given and the model is not
            on a CUDA device.
    """

    def __init__(
        self,
        model: Encoder,
        *,
        buckets: Buckets | None = None,
        most_graphs: int = MOST_GRAPHS,
        recorder: Recorder | None = None,
    ) -> None:
        if most_graphs < 1:
            raise ValueError(f"most_graphs must be at least 1, not {most_graphs}")
        self.buckets = Buckets() if buckets is None else buckets
        self._model, self._most_graphs = model, most_graphs
        self._recorder = CudaRecorder(model.device) if recorder is None else recorder
        self._forget()

    def __call__(self, packed: Packed) -> Tensor:
        """Hidden states of every token.

        Args:
            packed: a batch; arrays and tensors that lie elsewhere are copied to the model's device.

        Returns:
            (T, C) in the model's dtype, a tensor of its own each call, without gradients.

        Raises:
            TypeError: if it is given anything else.
            ValueError: if the model was put into train mode.
        """
        if not isinstance(packed, Packed):
            raise TypeError(f"the runner takes a Packed, not {type(packed).__name__}")
        if self._model.training:
            raise ValueError("the runner's model was put into train mode: call its eval() first")
        packed = packed.to(self._model.device)
        bucket = None if torch.compiler.is_compiling() else self.buckets.choose(packed)
        with torch.no_grad():
            if bucket is None or not self._recorder.ready(self._model.device):
                return self._model.encode(packed)
            with self._lock, self._recorder.turn():
                graph = self._graph(bucket, packed)
                if graph is not None:
                    graph.buffers.fill(packed)
                    return graph.repeat()[: packed.total].clone()
            return self._model.encode(packed)

    def __len__(self) -> int:
        """How many graphs are kept."""
        return sum(graph is not None for graph in self._graphs.values())

    def __getstate__(self) -> dict[str, Any]:
        """Without graphs and lock: a copy records its own."""
        own = ("_graphs", "_lock", "_places", "_walk")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()  # oldest use first
        self._walk: _Walk | None = None
        self._places: tuple[int, ...] = ()

    def _graph(self, bucket: Bucket, packed: Packed) -> _Graph | None:
        """The bucket's graph, recorded now if need be; None if it can't be recorded."""
        self._drop_if_weights_moved()
        key = (bucket, *_modes(packed.input_ids.device.type))
        if key not in self._graphs:
            self._make_room()
            self._graphs[key] = self._record(bucket, packed)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _record(self, bucket: Bucket, packed: Packed) -> _Graph | None:
        # Normal tensors even in inference mode, since later calls may come from outside of it.
        with torch.inference_mode(False), torch.no_grad():
            buffers = Buffers(bucket, packed.input_ids.device)
            buffers.fill(packed)
            try:
                repeat = self._recorder.record(lambda: self._model.encode(buffers.packed))
            except RuntimeError as error:
                reason = str(error).split("\n", 1)[0]
                warnings.warn(
                    f"no graph for {bucket.tokens} tokens, they are served without: {reason}",
                    stacklevel=5,
                )
                return None
        return _Graph(buffers, repeat)

    def _make_room(self) -> None:
        if len(self._graphs) >= self._most_graphs:
            self._recorder.settle()
            self._graphs.popitem(last=False)

    def _drop_if_weights_moved(self) -> None:
        if self._walk is None or not self._walk.holds():
            self._walk = _Walk(self._model)
        places = self._walk.places()
        if places != self._places:
            if self._graphs:
                self._recorder.settle()
                self._graphs.clear()
            self._places = places


@dataclass(frozen=True)
class _Graph:
    buffers: Buffers
    repeat: Callable[[], Tensor]


class _Walk:
    """Where a model's tensors lie, looked up in its modules' own dicts.

    0.035 ms for twelve layers on a Zen 4 core; `Module.parameters` would take 0.19 ms a call.
    """

    def __init__(self, model: Encoder) -> None:
        modules: list[nn.Module] = list(model.modules())
        self._children = [m._modules for m in modules if m._modules]
        self._tensors = [held for m in modules for held in (m._parameters, m._buffers) if held]
        self._seen = self._identities()

    def holds(self) -> bool:
        """Whether no module was replaced since."""
        return self._identities() == self._seen

    def places(self) -> tuple[int, ...]:
        """Addresses of all parameters and buffers."""
        tensors = (t for held in self._tensors for t in held.values())
        return tuple(0 if t is None else t.data_ptr() for t in tensors)

    def _identities(self) -> tuple[int, ...]:
        return tuple(id(m) for children in self._children for m in children.values())


def _modes(device_type: str) -> tuple[Hashable, ...]:
    """What of the process's state decides which kernels a graph holds."""
    autocast = torch.is_autocast_enabled(device_type)
    return (
        torch.get_autocast_dtype(device_type) if autocast else None,
        is_deterministic(),
        registry._forced,
    )
