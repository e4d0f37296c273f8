"""What a tokenizer call returns: lists or arrays by name, with the way back to words and text."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding

TENSOR_TYPES = ("np", "pt")


class CharSpan(NamedTuple):
    """Characters `start` to `end` (exclusive) of a text as the user gave it."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (exclusive) of a row."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """The result of a tokenizer call: a dictionary that also maps tokens to words and characters.

    Values are reached as `encoding["input_ids"]` or `encoding.input_ids`; `encoding[0]` is the
    `tokenizers.Encoding` of a row. In every method with a `batch_index`, that row may be left out
    where there is but one: `char_to_token(5)` is `char_to_token(0, 5)`. Negative indices of rows
    and tokens count from the end.

    Args:
        data: name → list, or list of lists (B rows), of integers.
        encodings: the rows, B of them; None where they are unknown.
        tensor_type: "np" or "pt" to turn every value into an int64 array or tensor.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encodings: Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
    ) -> None:
        super().__init__(data)
        self._encodings = None if encodings is None else list(encodings)
        self.convert_to_tensors(tensor_type)

    def __getitem__(self, item: Any) -> Any:
        """Return a value by name, a row's encoding by index, or encodings by slice."""
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None:
            return self._encodings[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.data.items()}
        raise KeyError(f"{item!r}: expected a name, or encodings to index, which are not here")

    def __getattr__(self, name: str) -> Any:
        # Reached only where no attribute is: `data` itself is missing while unpickling.
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"BatchEncoding has no attribute or value {name!r}")

    @property
    def encodings(self) -> list[Encoding] | None:
        """The rows as `tokenizers` made them, padded like the values."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether the way back to words and characters is there."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """Texts in each row: 1, or 2 for pairs; None where unknown."""
        return self._encodings[0].n_sequences if self._encodings else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the tokens of a row."""
        return self._row(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return each token's word of a row (of the given words, if they were); None: special."""
        return self._row(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return each token's text of a row: 0 the first, 1 the second of a pair, None special."""
        return self._row(batch_index).sequence_ids

    def token_to_sequence(self, batch_index: int, token_index: int | None = None) -> int | None:
        """Return which text of a pair (0 or 1) a token comes from, None for a special token."""
        row, index = self._token(batch_index, token_index)
        return row.token_to_sequence(index)

    def token_to_word(self, batch_index: int, token_index: int | None = None) -> int | None:
        """Return a token's word, None for a special token."""
        row, index = self._token(batch_index, token_index)
        return row.token_to_word(index)

    def token_to_chars(self, batch_index: int, token_index: int | None = None) -> CharSpan | None:
        """Return the characters of a token in its own text, None for a special token."""
        row, index = self._token(batch_index, token_index)
        span = row.token_to_chars(index)
        return None if span is None else CharSpan(*span)

    def word_to_tokens(
        self, batch_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Return the tokens of a word, None where it has none (vanished, or cut off)."""
        row, index = self._split(batch_index, word_index)
        span = row.word_to_tokens(index, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Return the characters of a word, None where it has no token."""
        row, index = self._split(batch_index, word_index)
        span = row.word_to_chars(index, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the token that holds a character, None where no token does."""
        row, index = self._split(batch_index, char_index)
        return row.char_to_token(index, sequence_index)

    def char_to_word(
        self, batch_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the word that holds a character, None where no word does."""
        row, index = self._split(batch_index, char_index)
        return row.char_to_word(index, sequence_index)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchEncoding:
        """Turn every value into an int64 array ("np") or tensor ("pt"), in place.

        Raises:
            ValueError: Another type, or rows of unequal lengths.
        """
        if tensor_type is None:
            return self
        if tensor_type not in TENSOR_TYPES:
            raise ValueError(f"return_tensors is {tensor_type!r}, supported: 'np', 'pt'")
        arrays = {key: _array(key, value) for key, value in self.data.items()}
        if tensor_type == "pt":
            import torch

            self.data = {key: torch.from_numpy(value) for key, value in arrays.items()}
        else:
            self.data = arrays
        return self

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> BatchEncoding:
        """Move every tensor to `device`, in place, and return self; other values stay."""
        import torch

        if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
            raise TypeError(f"device is a {type(device).__name__}, expected a torch device")
        for key, value in self.data.items():
            if isinstance(value, torch.Tensor):
                self.data[key] = value.to(device=device, non_blocking=non_blocking)
        return self

    def _row(self, batch_index: int) -> Encoding:
        if not self._encodings:
            raise ValueError("this BatchEncoding holds no encodings, so no way back to the text")
        return self._encodings[batch_index]

    def _split(self, first: int, second: int | None) -> tuple[Encoding, int]:
        """Read (batch, index), or the index alone for row 0."""
        batch_index, index = (0, first) if second is None else (first, second)
        if index < 0:
            raise IndexError(f"index {index}: words and characters are counted from 0")
        return self._row(batch_index), index

    def _token(self, first: int, second: int | None) -> tuple[Encoding, int]:
        batch_index, index = (0, first) if second is None else (first, second)
        row = self._row(batch_index)
        if not -len(row) <= index < len(row):
            raise IndexError(f"token {index}, but the row has {len(row)} tokens")
        return row, index % len(row)


def _array(key: str, value: Any) -> np.ndarray[Any, Any]:
    """Return lists of integers (flat, rows, or rows of pairs) as one int64 array."""
    if not isinstance(value, list):
        return np.asarray(value)
    if not value or not isinstance(value[0], list):
        # No rows are (0, 0), so that the result still has a batch and a width.
        flat_keys = ("length", "overflow_to_sample_mapping")
        return np.zeros((0, 0), np.int64) if not value and key not in flat_keys else _flat(value)
    widths = {len(row) for row in value}
    if len(widths) > 1:
        raise ValueError(
            f"{key}: rows of {min(widths)} to {max(widths)} tokens make no array; "
            "ask for padding=True (and truncation=True with a max_length to bound it)"
        )
    width = widths.pop()
    if key == "offset_mapping":
        return np.array(value, dtype=np.int64).reshape(len(value), width, 2)
    flat = np.fromiter(chain.from_iterable(value), np.int64, len(value) * width)
    return flat.reshape(len(value), width)


def _flat(value: list[int]) -> np.ndarray[Any, Any]:
    return np.array(value, dtype=np.int64)
