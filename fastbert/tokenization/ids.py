"""Tokens and ids: the vocabulary, the special tokens, and the way back from ids to text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer

from fastbert.checks import short
from fastbert.tokenization.backend import copy
from fastbert.tokenization.call import Shared
from fastbert.tokenization.config import TokenizerConfig

_logger = logging.getLogger("fastbert")
# In this order, each without what an earlier one did; the WordPiece decoder has done most of it.
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class TokenIds:
    """The part of a tokenizer that needs no text: its vocabulary both ways.

    Attributes:
        model_max_length: default of `max_length` in tokens, special ones included.
        padding_side, truncation_side: "right" or "left", defaults of every call.
    """

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")
    pad_token_type_id = 0
    is_fast = True

    def __init__(self, backend: Tokenizer, config: TokenizerConfig) -> None:
        self._config = config
        self._warned = False
        self._set_backend(backend)
        self.model_max_length = config.model_max_length
        self.padding_side = config.padding_side
        self.truncation_side = config.truncation_side

    def _set_backend(self, backend: Tokenizer) -> None:
        # One assignment, so that a call in another thread reads all of the old or all of the new.
        self._shared = Shared.of(backend, self._config.unk_token)

    @property
    def _backend(self) -> Tokenizer:
        return self._shared.backend

    def __len__(self) -> int:
        """Tokens in all, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        """A tokenizer is true, whatever its vocabulary."""
        return True

    @property
    def config(self) -> TokenizerConfig:
        """The settings it was made with."""
        return self._config

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """A copy of the `tokenizers` object: what is done to it does not reach this tokenizer."""
        return copy(self._backend)

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary V, without added ones."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Return token → id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are matched in the text as they stand, by id; special ones among them."""
        return self._backend.get_added_tokens_decoder()

    def get_added_vocab(self) -> dict[str, int]:
        """Return token → id of the added tokens."""
        return {token.content: index for index, token in sorted(self.added_tokens_decoder.items())}

    @property
    def unk_token(self) -> str:
        """What stands for a word that the vocabulary can't spell."""
        return self._config.unk_token

    @property
    def sep_token(self) -> str:
        """What ends a text."""
        return self._config.sep_token

    @property
    def cls_token(self) -> str:
        """What begins a row."""
        return self._config.cls_token

    @property
    def pad_token(self) -> str | None:
        """What fills short rows, None where there is none."""
        return self._config.pad_token

    @property
    def mask_token(self) -> str | None:
        """What hides a token in masked language modelling, None where there is none."""
        return self._config.mask_token

    @property
    def unk_token_id(self) -> int:
        """Id of `unk_token`."""
        return self._id(self.unk_token)

    @property
    def sep_token_id(self) -> int:
        """Id of `sep_token`."""
        return self._id(self.sep_token)

    @property
    def cls_token_id(self) -> int:
        """Id of `cls_token`."""
        return self._id(self.cls_token)

    @property
    def pad_token_id(self) -> int | None:
        """Id of `pad_token`; not always 0."""
        return None if self.pad_token is None else self._id(self.pad_token)

    @property
    def mask_token_id(self) -> int | None:
        """Id of `mask_token`."""
        return None if self.mask_token is None else self._id(self.mask_token)

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens beside the named five."""
        return list(self._config.extra_special_tokens)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens that are there."""
        named = self._config.named_tokens()
        return {name: token for name, token in named.items() if token is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once."""
        return self._config.special_tokens()

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self._id(token) for token in self.all_special_tokens]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens a row gets."""
        return self._backend.num_special_tokens_to_add(pair)

    def get_special_tokens_mask(
        self,
        token_ids_0: Iterable[int],
        token_ids_1: Iterable[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for each special token and 0 for all else, in a row or in what becomes one.

        Args:
            token_ids_0: a row of ids; or, without special tokens yet, the first text's.
            token_ids_1: the second text's ids, or None.
            already_has_special_tokens: whether `token_ids_0` is a whole row.

        Raises:
            ValueError: if there is a second text beside a whole row.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError("a row that has its special tokens holds both texts already")
            special = set(self.all_special_ids)
            return [int(index in special) for index in _plain(token_ids_0)]
        counts = [len(list(token_ids_0)), 0 if token_ids_1 is None else len(list(token_ids_1))]
        template = self._shared.single if token_ids_1 is None else self._shared.pair
        mask: list[int] = []
        for piece in template:
            mask += [1] if piece.text is None else [0] * counts[piece.text]
        return mask

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Return the id of a token, or the ids of several; an unknown one gets `unk_token_id`."""
        if isinstance(tokens, str):
            return self._id(tokens)
        return [self._id(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or those of several; None for an id that is none."""
        ids = _plain(ids)
        if isinstance(ids, int):
            return self._backend.id_to_token(_check_id(ids))
        skip = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._backend.id_to_token(_check_id(index)) for index in ids if index not in skip]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text: pieces of words without their mark, words with spaces."""
        return self._backend.decoder.decode(tokens) if tokens else ""

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Turn ids back into text: `str` for one row of ids, a list of them for a batch.

        Args:
            token_ids: an id, a row (list, 1-D array or tensor), or a batch of rows.
            skip_special_tokens: leave [CLS], [SEP] and the like out.
            clean_up_tokenization_spaces: remove spaces before punctuation once more; None means as
                the settings say.

        Raises:
            TypeError, ValueError: something is no id (a -100 from labels, say).
        """
        ids = _plain(token_ids)
        if isinstance(ids, list | tuple) and ids and isinstance(ids[0], list | tuple):
            options = (skip_special_tokens, clean_up_tokenization_spaces)
            return [self.decode(row, *options) for row in ids]
        row = [_check_id(index) for index in (ids if isinstance(ids, list | tuple) else [ids])]
        text = self._backend.decode(row, skip_special_tokens=skip_special_tokens)
        clean = clean_up_tokenization_spaces
        if self._config.clean_up_tokenization_spaces if clean is None else clean:
            for pattern in _CLEAN_UP:
                text = text.replace(pattern, pattern.strip())
        return text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Turn a batch of rows of ids into texts; as `decode` for each."""
        options = (skip_special_tokens, clean_up_tokenization_spaces)
        return [self.decode(row, *options) for row in _plain(sequences)]

    def _warn_of_length(self, rows: Sequence[Encoding]) -> None:
        """Say once that a row is longer than the model takes."""
        longest = max(map(len, rows), default=0)
        if longest > self.model_max_length and not self._warned:
            self._warned = True
            _logger.warning(
                "a row has %d tokens, the model takes %d: pass truncation=True (said once)",
                longest,
                self.model_max_length,
            )

    def _id(self, token: str) -> int:
        index = self._backend.token_to_id(token)
        if index is None:
            index = self._backend.token_to_id(self._config.unk_token)
        return int(index or 0)


def _plain(ids: Any) -> Any:
    """Return arrays and tensors as lists of integers; a BatchEncoding as its ids."""
    if isinstance(ids, Mapping):
        ids = ids["input_ids"]
    if isinstance(ids, list) and ids and not isinstance(ids[0], int | list | tuple):
        return [_plain(row) for row in ids]
    return ids if isinstance(ids, int | list | tuple) else ids.tolist()


def _check_id(index: object) -> int:
    if isinstance(index, bool) or not isinstance(index, int):
        raise TypeError(f"{short(index)} stands for a token id, expected an integer")
    if not 0 <= index < 2**32:
        raise ValueError(f"{short(index)} is no token id, expected 0 or more")
    return index
