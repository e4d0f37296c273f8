"""`SentenceEncoder`: texts in, vectors out, as a sentence-transformers directory prescribes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers.normalizers import Lowercase
from torch import Tensor
from tqdm import tqdm

from fastbert import ops
from fastbert.checks import check_choice, check_int
from fastbert.engine import DTYPES, Engine
from fastbert.hub import resolve_directory
from fastbert.messages import TruncationWarning
from fastbert.model import BertModel
from fastbert.packing import Packed, pack, token_budget_batches
from fastbert.pretrained import check_device
from fastbert.quantize import PRECISIONS, quantize
from fastbert.sentence_config import SentenceConfig, choose_prompt
from fastbert.sentence_steps import apply_steps, pool_tokens, without_prompt
from fastbert.similarity import similarity
from fastbert.tokenizer import BertTokenizer

logger = logging.getLogger("fastbert")

TOKENS_PER_TEXT = 128
"""What `batch_size` counts: a batch holds at most ``batch_size * TOKENS_PER_TEXT`` tokens."""

_OUTPUTS = ("sentence_embedding", "token_embeddings")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class SentenceEncoder:
    """One vector a text; a drop-in for sentence-transformers' `encode`, without padding.

    Pooling, dense layers, normalisation, prompts and length are the directory's.

    Args:
        path: directory, hub id, or None for the default model.
        dtype: auto (float32), float32, float64, bfloat16 or float16; vectors are float32.
        device: None takes a CUDA device where there is one, else the CPU.
        threads: torch's threads on the CPU; None leaves torch's number alone.
        max_length: longest text in tokens, special ones included; None: what the directory says.
        allow_pickle: open PyTorch's pickles where there is no safetensors file.

    Raises:
        FileNotFoundError, ValueError: as `BertModel.from_pretrained`, `BertTokenizer` and
            `SentenceConfig` do, and for a `max_length` beyond the model's positions.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        allow_pickle: bool = False,
    ) -> None:
        directory = resolve_directory(path, allow_pickle=allow_pickle)
        self.settings = SentenceConfig.from_directory(directory, allow_pickle=allow_pickle)
        name = check_choice("dtype", str(dtype).removeprefix("torch."), DTYPES)
        source = self.settings.transformer_directory
        self.tokenizer = BertTokenizer.from_pretrained(source)
        self.model = BertModel.from_pretrained(
            source,
            dtype="float32" if name == "auto" else name,
            allow_pickle=allow_pickle,
            add_pooling_layer=False,
        ).requires_grad_(False)
        self.config = self.model.config
        limit = self.config.max_position_embeddings
        self.max_length = self.settings.max_seq_length
        if max_length is not None:
            self.max_length = check_int("max_length", max_length, 1, limit)
        self._engine = Engine(self.model, threads=threads)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.to(device)

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return self.model.device

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self.settings.truncate_dim or self.settings.dimension

    def get_sentence_embedding_dimension(self) -> int:
        """Numbers in a vector, under sentence-transformers' name."""
        return self.dimension

    def to(self, device: torch.device | str) -> SentenceEncoder:
        """Move to a device; ValueError where there is none of that name."""
        self.model.to(check_device(device))
        return self

    def encode(
        self,
        inputs: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: torch.device | str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        sentences: str | Sequence[str] | None = None,
    ) -> Any:
        """Vectors of texts, in their order; the signature is sentence-transformers'.

        Args:
            inputs: B texts, or one.
            prompt_name: a prompt of the directory, put before each text.
            prompt: the prompt itself; wins over `prompt_name`.
            batch_size: sets memory: a batch holds at most ``batch_size * 128`` tokens.
            show_progress_bar: None shows one on a terminal if the work takes more than 2 s.
            output_value: ``sentence_embedding``; ``token_embeddings`` (a list of (n, C) tensors);
                None (a list of dicts with both and the ids).
            precision: float32, int8, uint8, binary or ubinary, see `quantize`.
            convert_to_numpy: a NumPy array; else a list of tensors.
            convert_to_tensor: one tensor, on the encoder's device; wins.
            device: moves the encoder there first.
            normalize_embeddings: divide each vector by its Euclidean norm.
            truncate_dim: keep so many leading numbers, before that norm.
            sentences: the older name of `inputs`.

        Returns:
            (B, dimension) float32; (dimension,) for one text; (0, dimension) for none.

        Raises:
            TypeError: if something among the texts is no str, with its index.
            ValueError: on an unknown prompt, output or precision, or a text UTF-8 can't hold.

        Warns:
            TruncationWarning: how many texts were longer than `max_length` and were cut.
        """
        texts, single = _texts(inputs, sentences)
        check_int("batch_size", batch_size, 1, 2**31 - 1)
        check_choice("precision", precision, PRECISIONS)
        if output_value is not None:
            check_choice("output_value", output_value, _OUTPUTS)
        keep = self._kept_dimension(truncate_dim)
        if device is not None:
            self.to(device)
        self.model.eval()
        ids, prompt_tokens = self._tokenise(texts, self._prompt(prompt_name, prompt))
        batches = self._batches(ids, batch_size * TOKENS_PER_TEXT, show_progress_bar)
        if output_value is None or output_value == "token_embeddings":
            rows = self._token_rows(batches, len(ids), prompt_tokens, output_value)
            return rows[0] if single else rows
        vectors = np.empty((len(ids), keep), np.float32)
        for indices, packed in batches:
            hidden = self._hidden(packed)  # (T, C)
            pooled = self._pool(hidden, packed, prompt_tokens)[:, :keep].float()
            if normalize_embeddings:
                pooled = F.normalize(pooled, dim=1)
            vectors[indices] = pooled.cpu().numpy()
        result = quantize(vectors, precision)
        return _converted(result, single, convert_to_numpy, convert_to_tensor, self.device)

    def encode_query(self, inputs: str | Sequence[str] | None = None, **options: Any) -> Any:
        """`encode` with the directory's prompt ``query``, where no other is named."""
        if options.get("prompt_name") is None and options.get("prompt") is None:
            options["prompt_name"] = "query" if "query" in self.settings.prompts else None
        return self.encode(inputs, **options)

    def encode_document(self, inputs: str | Sequence[str] | None = None, **options: Any) -> Any:
        """`encode` with the directory's prompt for documents, where no other is named."""
        if options.get("prompt_name") is None and options.get("prompt") is None:
            names = (name for name in _DOCUMENT_PROMPTS if name in self.settings.prompts)
            options["prompt_name"] = next(names, None)
        return self.encode(inputs, **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(A, B) scores of each vector of the first with each of the second, see `similarity`."""
        return similarity(embeddings1, embeddings2, self.settings.similarity_fn_name)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write model, tokenizer and settings as a directory that sentence-transformers loads.

        Raises:
            OSError: a file can't be written; old ones are still there.
        """
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        self.settings.save(directory)

    def _kept_dimension(self, truncate_dim: int | None) -> int:
        wanted = self.settings.truncate_dim if truncate_dim is None else truncate_dim
        if wanted is None:
            return self.settings.dimension
        return min(check_int("truncate_dim", wanted, 1, 2**31 - 1), self.settings.dimension)

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        settings = self.settings
        return choose_prompt(settings.prompts, settings.default_prompt_name, name, prompt)

    def _tokenise(self, texts: list[str], prompt: str) -> tuple[list[Any], int]:
        """Ids of each text, and how many of the first are the prompt's to be left out."""
        if prompt or self.settings.do_lower_case:
            texts = [self._prepared(prompt + text) for text in _checked(texts)]
        ids, _, cut = self.tokenizer.encode_ids(texts, max_length=self.max_length)
        if cut:
            warnings.warn(TruncationWarning(cut, len(texts), self.max_length), stacklevel=3)
        if not prompt or self.settings.pooling.include_prompt:
            return ids, 0
        alone, _, _ = self.tokenizer.encode_ids([self._prepared(prompt)])
        return ids, len(alone[0]) - 1  # its closing token belongs to the text

    def _prepared(self, text: str) -> str:
        """The text in lower case where the directory wants that, by Unicode's simple mapping.

        `str.lower` would turn a Σ at a word's end into ς, another token than the model learnt.
        """
        return Lowercase().normalize_str(text) if self.settings.do_lower_case else text

    def _batches(
        self, ids: Sequence[Any], budget: int, progress: bool | None
    ) -> Iterator[tuple[NDArray[np.int64], Packed]]:
        groups = token_budget_batches([len(row) for row in ids], budget)
        hide = None if progress is None else not progress
        bar = tqdm(total=len(ids), unit="text", disable=hide, delay=0 if progress else 2)
        with bar:
            for indices in groups:
                yield indices, pack([ids[i] for i in indices])
                bar.update(len(indices))

    def _hidden(self, packed: Packed) -> Tensor:
        """(T, C) on the encoder's device, float32, or float64 where it computes in it."""
        if self.device.type == "cpu":
            return torch.from_numpy(self._engine(packed))
        with torch.no_grad():
            hidden = self.model.encode(packed.to(self.device))
            return hidden if hidden.dtype == torch.float64 else hidden.float()

    def _pool(self, hidden: Tensor, packed: Packed, prompt_tokens: int) -> Tensor:
        """(T, C) → (B, dimension), float32, or float64 where the encoder computes in it."""
        bounds = torch.from_numpy(packed.cu_seqlens).to(hidden.device)
        if prompt_tokens:
            hidden, bounds = without_prompt(hidden, bounds, prompt_tokens)
        with torch.no_grad():
            pooled = pool_tokens(hidden, bounds, self.settings.pooling.modes)
            vectors = apply_steps(pooled, self.settings.steps)
        ops.raise_if_flagged(hidden.device)
        return vectors

    def _token_rows(
        self,
        batches: Iterator[tuple[NDArray[np.int64], Packed]],
        count: int,
        prompt_tokens: int,
        output_value: str | None,
    ) -> list[Any]:
        rows: list[Any] = [None] * count
        for indices, packed in batches:
            hidden = self._hidden(packed)
            tokens = hidden.split(packed.lengths.tolist())  # B of (n, C)
            ids = np.split(packed.input_ids.astype(np.int64), packed.cu_seqlens[1:-1])
            pooled = None
            if output_value is None:
                pooled = self._pool(hidden, packed, prompt_tokens).float()
            for place, index in enumerate(indices):
                rows[index] = tokens[place]
                if pooled is not None:
                    rows[index] = {
                        "input_ids": torch.from_numpy(ids[place]),
                        "token_embeddings": tokens[place],
                        "sentence_embedding": pooled[place],
                    }
        return rows


def _texts(inputs: object, sentences: object) -> tuple[list[Any], bool]:
    if (inputs is None) == (sentences is None):
        raise TypeError("pass the texts as inputs (or sentences, its older name), a str or a list")
    given = sentences if inputs is None else inputs
    if isinstance(given, str):
        return [given], True
    if isinstance(given, bytes | bytearray | dict) or not hasattr(given, "__iter__"):
        raise TypeError(f"inputs must be a str or a list of str, not {type(given).__name__}")
    return list(given), False


def _checked(texts: list[Any]) -> list[str]:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is a {type(text).__name__}, expected str")
    return texts


def _converted(
    vectors: NDArray[Any], single: bool, to_numpy: bool, to_tensor: bool, device: torch.device
) -> Any:
    if to_tensor:
        tensor = torch.from_numpy(vectors).to(device)
        return tensor[0] if single else tensor
    if to_numpy:
        return vectors[0] if single else vectors
    rows = [torch.from_numpy(row) for row in vectors]
    return rows[0] if single else rows
