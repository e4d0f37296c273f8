"""What the tasks share: a checkpoint's tokenizer and head, and texts on their way through both."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fastbert import ops
from fastbert.checks import check_int
from fastbert.config import BertConfig
from fastbert.forks import set_threads
from fastbert.packing import Packed, pack, token_budget_batches
from fastbert.pretrained import PreTrainedModel
from fastbert.tokenizer import BertTokenizer

Head = TypeVar("Head", bound=PreTrainedModel)
Result = TypeVar("Result")

BATCH_TOKENS = 4096
"""Tokens computed at a time. It sets the memory; more brings no speed on the CPUs measured."""


class Task(Generic[Head]):
    """Base of the tasks: what loads, batches and runs.

    Args:
        model: a directory or hub id, or a model in memory with its `tokenizer`.
        tokenizer: of a model in memory; a directory has its own.
        dtype: auto (float32), float32, float64, bfloat16 or float16; a model in memory has its own.
        device: None takes a CUDA device where there is one, else the CPU; a model in memory stays
            where it is.
        threads: torch's threads on the CPU; None leaves torch's number alone.
        max_length: most tokens of a row, special ones included; None for as many as model and
            tokenizer take.
        allow_pickle: open PyTorch's pickles where there is no safetensors file.

    Raises:
        CheckpointError: if the checkpoint lacks the task's head; the error names its tensors.
        FileNotFoundError, TypeError, ValueError: as `BertModel.from_pretrained` does; for a model
            of another class, or a `max_length` beyond the model's positions.
    """

    head: ClassVar[type[PreTrainedModel]]

    def __init__(
        self,
        model: str | os.PathLike[str] | Head,
        tokenizer: BertTokenizer | None = None,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        allow_pickle: bool = False,
    ) -> None:
        if isinstance(model, PreTrainedModel):
            self.model = self._in_memory(model, tokenizer, dtype, device)
            assert tokenizer is not None  # for the type checker: `_in_memory` looked
            self.tokenizer = tokenizer
        else:
            self.model = self._loaded(model, dtype, device, allow_pickle)
            self.tokenizer = tokenizer or BertTokenizer.from_pretrained(model)
        self.threads = None if threads is None else check_int("threads", threads, 1, 4096)
        limit = self.config.max_position_embeddings
        if max_length is None:
            self.max_length = min(limit, self.tokenizer.model_max_length)
        else:
            self.max_length = check_int("max_length", max_length, 1, limit)

    @classmethod
    def _loaded(
        cls,
        path: str | os.PathLike[str],
        dtype: torch.dtype | str,
        device: torch.device | str | None,
        allow_pickle: bool,
    ) -> Any:
        name = str(dtype).removeprefix("torch.")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = cls.head.from_pretrained(
            path,
            dtype="float32" if name == "auto" else name,
            device=device,
            allow_pickle=allow_pickle,
            allow_missing=False,
        )
        return model.requires_grad_(False)

    @classmethod
    def _in_memory(
        cls,
        model: PreTrainedModel,
        tokenizer: BertTokenizer | None,
        dtype: torch.dtype | str,
        device: torch.device | str | None,
    ) -> Any:
        if not isinstance(model, cls.head):
            raise TypeError(
                f"{cls.__name__} needs a {cls.head.__name__}, not a {type(model).__name__}"
            )
        if tokenizer is None:
            raise TypeError("a model in memory needs its tokenizer beside it")
        if dtype != "auto" or device is not None:
            raise ValueError("a model in memory has its own dtype and device: pass neither")
        return model

    @property
    def config(self) -> BertConfig:
        """The model's."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def _run(
        self,
        ids: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None,
        compute: Callable[[Packed], Result],
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], Packed, Result]]:
        """Compute rows in batches of `batch_tokens`, longest first, without gradients.

        Args:
            ids: rows of token ids, special ones included.
            types: rows of token types; None for zeros.
            compute: what to do with a batch on the model's device, in eval mode.
            batch_tokens: most tokens of a batch.
            progress: None shows a bar on a terminal if the work takes more than 2 s.

        Yields:
            The rows' indices, the batch as NumPy arrays, and the result.
        """
        check_int("batch_tokens", batch_tokens, 1, 2**31 - 1)
        groups = token_budget_batches([len(row) for row in ids], batch_tokens)
        hide = None if progress is None else not progress
        bar = tqdm(total=len(ids), unit="row", disable=hide, delay=0 if progress else 2)
        with bar:
            for indices in groups:
                kinds = None if types is None else [types[i] for i in indices]
                packed = pack([ids[i] for i in indices], kinds)
                if self.threads is not None and self.device.type == "cpu":
                    set_threads(self.threads)
                with torch.no_grad(), _evaluating(self.model):
                    result = compute(packed.to(self.device))
                ops.raise_if_flagged(self.device)
                yield indices, packed, result
                bar.update(len(indices))

    def _special_tokens(self, pair: bool = False) -> int:
        return self.tokenizer.num_special_tokens_to_add(pair)


# Models that tasks are looking at: how many calls, and the modules to set back to train mode.
_looked_at: dict[torch.nn.Module, tuple[int, list[torch.nn.Module]]] = {}
_looking = threading.Lock()


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode, and back after the last of the threads' calls: a model may be in training."""
    with _looking:
        calls, trained = _looked_at.get(model, (0, []))
        trained = trained if calls else [part for part in model.modules() if part.training]
        _looked_at[model] = calls + 1, trained
        model.eval()
    try:
        yield
    finally:
        with _looking:
            calls, trained = _looked_at.pop(model)
            if calls > 1:
                _looked_at[model] = calls - 1, trained
            for part in trained if calls == 1 else ():
                part.training = True
