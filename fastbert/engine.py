"""`Engine`: the CPU inference way. Weights prepared once, packed tokens in, hidden states out."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray

from fastbert.checks import check_int
from fastbert.config import BertConfig
from fastbert.forks import set_threads
from fastbert.model import BertModel
from fastbert.packing import Packed
from fastbert.pretrained import float_dtype

DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")


class Engine:
    """The encoder as one function of a `Packed`, on the CPU.

    It runs on the plain-torch reference; ``auto`` therefore means float32.

    Args:
        model: the encoder, in eval mode; its pooler does not matter, and it is not changed.
        threads: torch's threads for this engine's calls; None leaves torch's number alone. The
            pool is the process's: the number stays set after a call. A forked child has one.

    Raises:
        TypeError: if `model` is no `BertModel`.
        ValueError: if the model is not on the CPU or in train mode, or `threads` is not positive.
    """

    def __init__(self, model: BertModel, *, threads: int | None = None) -> None:
        if not isinstance(model, BertModel):
            raise TypeError(f"model must be a BertModel, not {type(model).__name__}")
        if model.device.type != "cpu":
            raise ValueError(f"the engine runs on the CPU, the model is on {model.device}")
        if model.training:
            raise ValueError("the model is in train mode: call its eval() first")
        self.config: BertConfig = model.config
        self.threads = None if threads is None else check_int("threads", threads, 1, 4096)
        self._model = model

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        dtype: torch.dtype | str = "float32",
        threads: int | None = None,
        allow_pickle: bool = False,
    ) -> Engine:
        """Load a model directory or hub id (None: the default model).

        Args:
            path: as for `BertModel.from_pretrained`.
            dtype: auto, float32, float64, bfloat16 or float16.
            threads: as for the class.
            allow_pickle: as for `BertModel.from_pretrained`.

        Raises:
            ValueError: on another dtype, or as `BertModel.from_pretrained`.
        """
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        model = BertModel.from_pretrained(
            path,
            dtype=float_dtype("float32" if name == "auto" else name),
            allow_pickle=allow_pickle,
            add_pooling_layer=False,
        )
        return cls(model.requires_grad_(False), threads=threads)

    @property
    def dtype(self) -> torch.dtype:
        """The precision it computes in."""
        return self._model.dtype

    def __call__(self, packed: Packed) -> NDArray[np.float32]:
        """Hidden states of every token.

        Args:
            packed: a batch, as `pack` or `BertTokenizer.pack` makes it.

        Returns:
            (T, C) float32 in the order of the tokens (float64 where the engine computes in it), an
            array of its own each call.

        Raises:
            TypeError: if it is given anything else.
            ValueError: if the batch's fields disagree, or the model was put into train mode.
            IndexError: if an id, type or position has no embedding; nothing was computed then.
        """
        if not isinstance(packed, Packed):
            raise TypeError(f"the engine takes a Packed, not {type(packed).__name__}")
        packed.check()
        if self._model.training:
            raise ValueError("the engine's model was put into train mode: call its eval() first")
        if self.threads is not None:
            set_threads(self.threads)
        with torch.no_grad():
            hidden = self._model.encode(packed.to("cpu"))  # (T, C)
            wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            return hidden.to(wide).numpy()
