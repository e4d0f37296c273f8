"""What the tasks on a whole encoder share: an encoder in memory, or one to load."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Generic, TypeVar

import torch

from fastbert.checks import check_int
from fastbert.cross_encoder import CrossEncoder
from fastbert.sentence_encoder import TOKENS_PER_TEXT, SentenceEncoder

Encoder = TypeVar("Encoder", bound=SentenceEncoder | CrossEncoder)


class EncoderTask(Generic[Encoder]):
    """Base of the tasks that compare texts.

    Args:
        encoder: an encoder in memory, the directory or hub id of one, or None for the default
            model (which makes vectors, and can't rerank).
        dtype, device, threads, max_length, allow_pickle: of an encoder to load, as its class has
            them.

    Raises:
        FileNotFoundError, TypeError, ValueError: as the encoder's class does; for an encoder in
            memory with any of its options beside it.
    """

    encoder_class: ClassVar[Any]

    def __init__(
        self,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        allow_pickle: bool = False,
    ) -> None:
        if isinstance(encoder, self.encoder_class):
            given = device, threads, max_length
            if dtype != "auto" or given != (None, None, None) or allow_pickle:
                raise ValueError("an encoder in memory has its own options: pass none beside it")
            self.encoder: Encoder = encoder
        elif encoder is None or isinstance(encoder, str | os.PathLike):
            self.encoder = self.encoder_class(
                encoder,
                dtype=dtype,
                device=device,
                threads=threads,
                max_length=max_length,
                allow_pickle=allow_pickle,
            )
        else:
            raise TypeError(
                f"encoder is a {type(encoder).__name__}, expected a {self.encoder_class.__name__},"
                " a directory or a hub id"
            )
        self._prepare()

    def _prepare(self) -> None:
        """Look at the encoder before the first call."""


def texts_at_once(batch_tokens: int) -> int:
    """The encoders' `batch_size` for so many tokens; it counts by 128, and one is the least."""
    return max(1, check_int("batch_tokens", batch_tokens, 1, 2**31 - 1) // TOKENS_PER_TEXT)
