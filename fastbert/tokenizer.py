"""BERT's tokenizer: text to ids, as padded batches like transformers' or as packed ones."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

from tokenizers import AddedToken

from fastbert.checks import check_choice
from fastbert.messages import TruncationWarning
from fastbert.tokenization import backend as backends
from fastbert.tokenization import files
from fastbert.tokenization.batch_encoding import BatchEncoding
from fastbert.tokenization.call import Wanted, collect, encode_plain, encode_rows
from fastbert.tokenization.config import SETTINGS, TokenizerConfig
from fastbert.tokenization.ids import TokenIds
from fastbert.tokenization.inputs import read_rows, read_texts
from fastbert.tokenization.options import CallOptions, as_count, settle_lengths
from fastbert.tokenization.padding import pad_rows
from fastbert.tokenization.vocab import as_vocab, read_vocab

if TYPE_CHECKING:
    from fastbert.packing import Packed


class EncodedIds(NamedTuple):
    """Ids and types of B rows, and how many of them were cut."""

    ids: list[list[int]]
    types: list[list[int]]
    truncated: int


class BertTokenizer(TokenIds):
    """WordPiece on BERT's clean-up (Devlin et al. 2018, appendix; the `tokenizers` library).

    May be shared by any number of threads: the options of a call stay with that call. Assigning to
    `model_max_length`, `padding_side` or `truncation_side` changes the defaults of later calls.

    Args:
        vocab: a `vocab.txt`, or token → id, or tokens whose place is their id.
        settings: the fields of `TokenizerConfig`, such as `do_lower_case=False`,
            `strip_accents=False`, `tokenize_chinese_chars=True`, `pad_token="[PAD]"`.

    Raises:
        FileNotFoundError: the file is not there.
        TypeError: an unknown setting, or a vocabulary of another type.
        ValueError: a vocabulary without the unknown token, a setting of a wrong value.
    """

    def __init__(
        self,
        vocab: str | os.PathLike[str] | Mapping[str, int] | Sequence[str],
        **settings: Any,
    ) -> None:
        config = TokenizerConfig(**_check_settings(settings))
        entries = read_vocab(vocab) if isinstance(vocab, str | os.PathLike) else as_vocab(vocab)
        super().__init__(backends.build(entries, config, backends.Parts(), {}, {}), config)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        **overrides: Any,
    ) -> BertTokenizer:
        """Load the tokenizer of a model's directory or hub id (None: the default model).

        Args:
            path_or_id: where tokenizer.json or vocab.txt lies.
            revision: of a hub id.
            overrides: settings that go before what the files say; see `TokenizerConfig`.

        Raises:
            FileNotFoundError: no such model, or no vocabulary in it.
            TypeError: an unknown setting.
            ValueError: a malformed file, or a tokenizer of another kind than WordPiece.
        """
        from fastbert.hub import resolve_directory

        _check_settings(overrides)
        directory = resolve_directory(path_or_id, revision=revision)
        made = cls.__new__(cls)
        TokenIds.__init__(made, *files.load(directory, overrides))
        return made

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write the four files that this class and transformers load again, each atomically."""
        config = replace(
            self._config,
            model_max_length=self.model_max_length,
            padding_side=self.padding_side,
            truncation_side=self.truncation_side,
        )
        files.save(Path(directory), self._backend, config)

    def add_tokens(
        self, tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Add tokens that are matched as they stand; return by how many the vocabulary grew.

        Grow the model too (`resize_token_embeddings(len(tokenizer))`). Calls that run in other
        threads meanwhile finish without the new tokens.
        """
        listed = [tokens] if isinstance(tokens, str | AddedToken) else list(tokens)
        new = [
            AddedToken(t, special=special_tokens, normalized=not special_tokens)
            if isinstance(t, str)
            else t
            for t in listed
        ]
        before = len(self)
        grown = backends.copy(self._backend)
        backends.add_tokens(grown, new, grown.get_vocab(with_added_tokens=False))
        self._set_backend(grown)
        return len(self) - before

    def __call__(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[Any] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: SupportsIndex | None = None,
        stride: SupportsIndex = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: SupportsIndex | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Turn texts into `input_ids`, `token_type_ids` and `attention_mask`, as transformers does.

        Args:
            text: `str`, or a list of B; with `is_split_into_words` a list of words, or B such
                lists. In a list, a couple of texts is a pair.
            text_pair: second texts in the same form.
            add_special_tokens: set [CLS] and [SEP].
            padding: True or "longest", "max_length", or False.
            truncation: True or "longest_first", "only_first", "only_second", or False.
            max_length: tokens a row, special ones included; alone it means truncation=True.
            stride: tokens that an overflowing piece repeats (an overlap, not a step).
            is_split_into_words: texts are lists of words, to which `word_ids` then refers.
            pad_to_multiple_of: round padded lengths up.
            padding_side: "right" or "left".
            return_tensors: "np" or "pt" for int64 arrays (B, S); None for lists.
            return_overflowing_tokens: give what is cut off as further rows, with
                `overflow_to_sample_mapping`.
            split_special_tokens: read special tokens in a text as plain text.
            verbose: warn about a row beyond `model_max_length`, once.
            return_token_type_ids, return_attention_mask, return_special_tokens_mask,
                return_offsets_mapping, return_length: which values to give; offsets count
                characters of the text (or word) as given.

        Raises:
            TypeError: something among the texts is no text, with its index.
            ValueError: a lone surrogate; options that can't be met; rows of unequal length with
                `return_tensors` but no padding.
        """
        pad, cut, limit = settle_lengths(
            padding, truncation, max_length, self.model_max_length, verbose
        )
        options = CallOptions(
            add_special_tokens=add_special_tokens,
            padding=pad,
            truncation=cut,
            max_length=limit,
            stride=as_count("stride", stride),
            pad_to_multiple_of=None
            if pad_to_multiple_of is None
            else as_count("pad_to_multiple_of", pad_to_multiple_of, least=1),
            padding_side=self.padding_side if padding_side is None else padding_side,
            truncation_side=self.truncation_side,
            split_special_tokens=self._config.split_special_tokens
            if split_special_tokens is None
            else split_special_tokens,
        )
        wanted = Wanted(
            token_type_ids=return_token_type_ids is not False,
            attention_mask=return_attention_mask is not False,
            special_tokens_mask=return_special_tokens_mask,
            offset_mapping=return_offsets_mapping,
            length=return_length,
            overflow=return_overflowing_tokens,
        )
        rows, batched = read_rows(text, text_pair, is_split_into_words)
        encodings = encode_rows(self._shared, rows, options, is_split_into_words, wanted.overflow)
        values, pieces = collect(encodings, options, wanted, self._padding(options))
        if max_length is None and limit is None and verbose:
            self._warn_of_length(pieces)
        if not batched and return_tensors is None and not wanted.overflow:
            values = {k: v[0] if isinstance(v[0], list) else v for k, v in values.items()}
        return BatchEncoding(values, pieces, return_tensors)

    def encode(
        self, text: str | list[str], text_pair: str | list[str] | None = None, **options: Any
    ) -> Any:
        """Return the `input_ids` alone of one text or pair; options as in a call."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Return the tokens of one text or pair."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def encode_ids(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: SupportsIndex | None = None,
        truncation: bool | str = True,
    ) -> EncodedIds:
        """Turn texts into lists of ids and types, the fast way: neither offsets nor padding.

        Args:
            texts: B texts.
            pairs: B second texts, or None.
            max_length: tokens a row, special ones included; None for `model_max_length`, without
                any limit where the model states none.
            truncation: as in a call; False leaves every text whole.

        Raises:
            TypeError, ValueError: as in a call.
        """
        _, cut, limit = settle_lengths(False, truncation, max_length, self.model_max_length)
        firsts = read_texts("text", texts)
        seconds = None if pairs is None else read_texts("pair", pairs)
        if seconds is not None and len(seconds) != len(firsts):
            raise ValueError(f"{len(firsts)} texts, but {len(seconds)} pairs")
        options = CallOptions(
            add_special_tokens=True,
            padding="do_not_pad",
            truncation=cut,
            max_length=limit,
            stride=0,
            pad_to_multiple_of=None,
            padding_side="right",
            truncation_side=self.truncation_side,
            split_special_tokens=self._config.split_special_tokens,
        )
        return EncodedIds(*encode_plain(self._shared, firsts, seconds, options))

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: SupportsIndex | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad rows that were tokenised one by one, as data collators ask for it.

        Args:
            encoded_inputs: B mappings with `input_ids`, or one mapping of rows; lists, arrays or
                tensors.
            padding: True or "longest", "max_length", or False.
            max_length: for "max_length"; None for `model_max_length`.
            pad_to_multiple_of: round the length up.
            padding_side: "right" or "left"; None for the tokenizer's.
            return_attention_mask: None gives one where something is padded.
            return_tensors: "np" or "pt"; None for lists.
            verbose: warn about arguments that have no effect.

        Returns:
            Ids, types and masks of one length; other names, labels say, as they came.

        Raises:
            TypeError, ValueError: if the rows are none, or lack a padding token they need.
        """
        how, _, limit = settle_lengths(padding, None, max_length, self.model_max_length, verbose)
        side = self.padding_side if padding_side is None else padding_side
        pad_id = self.pad_token_id
        if how != "do_not_pad" and pad_id is None:
            raise ValueError("padding was asked for, but the tokenizer has no padding token")
        return pad_rows(
            encoded_inputs,
            length=limit if how == "max_length" else None,
            multiple=pad_to_multiple_of if how != "do_not_pad" else None,
            side=check_choice("padding_side", side, ("right", "left")),
            pad_id=None if how == "do_not_pad" else pad_id,
            attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    def build_row(
        self, first: Sequence[int], second: Sequence[int] | None = None
    ) -> tuple[list[int], list[int], tuple[int, int | None]]:
        """Set the special tokens around ids without them, as a call does around texts.

        Args:
            first: ids of a text.
            second: ids of a second text, or None.

        Returns:
            Ids, types, and the places in them where the two texts begin (None without a second).
        """
        texts = (first,) if second is None else (first, second)
        ids: list[int] = []
        types: list[int] = []
        starts: list[int] = []
        for piece in self._shared.single if second is None else self._shared.pair:
            part = [piece.id] if piece.text is None else texts[piece.text]
            if piece.text is not None:
                starts.append(len(ids))
            ids += part
            types += [piece.type] * len(part)
        return ids, types, (starts[0], None if second is None else starts[1])

    def pack(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: SupportsIndex | None = None,
        truncation: bool | str = True,
    ) -> Packed:
        """Turn texts into one packed batch without padding; arguments and errors as `encode_ids`.

        Warns:
            TruncationWarning: texts were cut although no `max_length` asked for it.
        """
        from fastbert.packing import pack

        encoded = self.encode_ids(texts, pairs, max_length=max_length, truncation=truncation)
        if encoded.truncated and max_length is None:
            cut = TruncationWarning(encoded.truncated, len(encoded.ids), self.model_max_length)
            warnings.warn(cut, stacklevel=2)
        return pack(encoded.ids, encoded.types)

    def _padding(self, options: CallOptions) -> tuple[int, str] | None:
        """Return id and text of the padding token if the call pads."""
        if options.padding == "do_not_pad":
            return None
        pad_id, pad_token = self.pad_token_id, self.pad_token
        if pad_id is None or pad_token is None:
            raise ValueError("padding was asked for, but the tokenizer has no padding token")
        return pad_id, pad_token


def _check_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = [name for name in settings if name not in SETTINGS]
    if unknown:
        raise TypeError(f"unknown setting {', '.join(unknown)}; known: {', '.join(SETTINGS)}")
    return settings
