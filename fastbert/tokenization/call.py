"""One call of the tokenizer: rows to encodings, encodings to values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from fastbert.tokenization.backend import cutting, pad, run
from fastbert.tokenization.cutting import (
    beginning,
    check_rows,
    cuts_at_spaces,
    encode_beginnings,
    read_whole,
)
from fastbert.tokenization.inputs import Row
from fastbert.tokenization.options import CallOptions, kept_lengths


@dataclass(frozen=True)
class Piece:
    """A part of a row: text number `text` of it, or else the special token `id`."""

    text: int | None
    id: int
    type: int


@dataclass(frozen=True)
class Shared:
    """What every call reads and none changes.

    Attributes:
        backend: encodes without truncation and padding.
        single, pair: the parts of a row with one text, and with two.
        cuts_at_spaces: as the function of that name says.
    """

    backend: Tokenizer
    single: tuple[Piece, ...]
    pair: tuple[Piece, ...]
    cuts_at_spaces: bool

    @classmethod
    def of(cls, backend: Tokenizer, unk_token: str) -> Shared:
        """Study a backend: the unknown token, as a text, is one token in every vocabulary.

        Raises:
            ValueError: it leaves a text out, or turns two around.
        """
        single = _pieces(backend.encode(unk_token))
        pair = _pieces(backend.encode(unk_token, unk_token))
        texts = [piece.text for piece in (*single, *pair) if piece.text is not None]
        if texts != [0, 0, 1]:
            raise ValueError(
                f"the tokenizer does not set its special tokens around one text and two: {texts}"
            )
        return cls(backend, single, pair, cuts_at_spaces(backend))


@dataclass(frozen=True)
class Wanted:
    """Which values a call returns beside `input_ids`."""

    token_type_ids: bool
    attention_mask: bool
    special_tokens_mask: bool
    offset_mapping: bool
    length: bool
    overflow: bool


def encode_rows(
    shared: Shared, rows: Sequence[Row], options: CallOptions, split: bool, overflow: bool
) -> list[Encoding]:
    """Encode B rows, cut as the options say, not padded yet.

    Args:
        shared: the tokenizer.
        rows: texts and pairs.
        options: the call's.
        split: the texts are lists of words.
        overflow: the pieces that are cut off are wanted, so every text is read to its end.

    Raises:
        TypeError, ValueError: what a row holds, or can't be cut to.
    """
    if not rows:
        return []
    cut = options.truncates
    if cut:
        check_rows(shared.backend, rows, options, split)
    backend = cutting(shared.backend, options, cut)
    special = options.add_special_tokens
    limit = options.max_length
    short = {}
    if cut and limit and not overflow and shared.cuts_at_spaces and _from_the_start(options):
        parts = {i: beginning(row, limit) for i, row in enumerate(rows) if isinstance(row, str)}
        short = {i: part for i, part in parts.items() if part is not None}
    given = [short.get(i, row) for i, row in enumerate(rows)] if short else rows
    encodings = run(backend, given, add_special_tokens=special, split=split)
    again = [i for i in short if len(encodings[i]) < (limit or 0)]
    whole = run(backend, [rows[i] for i in again], add_special_tokens=special)
    for i, encoding in zip(again, whole, strict=True):
        encodings[i] = encoding
    return encodings


def collect(
    encodings: Sequence[Encoding],
    options: CallOptions,
    wanted: Wanted,
    padding: tuple[int, str] | None,
) -> tuple[dict[str, Any], list[Encoding]]:
    """Pad encodings and read the values of a call out of them.

    Args:
        encodings: B rows.
        options: the call's.
        wanted: names of the values.
        padding: id and text of the padding token; None for no padding.

    Returns:
        name → list of lists (or of numbers), and the encodings they belong to, one a piece.
    """
    if padding is not None:
        pad(encodings, options, *padding)
    samples = list(range(len(encodings)))
    pieces = list(encodings)
    if wanted.overflow:
        groups = [[encoding, *encoding.overflowing] for encoding in encodings]
        samples = [i for i, group in enumerate(groups) for _ in group]
        pieces = [piece for group in groups for piece in group]
    values: dict[str, Any] = {"input_ids": [piece.ids for piece in pieces]}
    if wanted.token_type_ids:
        values["token_type_ids"] = [piece.type_ids for piece in pieces]
    if wanted.attention_mask:
        values["attention_mask"] = [piece.attention_mask for piece in pieces]
    if wanted.special_tokens_mask:
        values["special_tokens_mask"] = [piece.special_tokens_mask for piece in pieces]
    if wanted.offset_mapping:
        values["offset_mapping"] = [piece.offsets for piece in pieces]
    if wanted.length:
        values["length"] = [len(piece) for piece in pieces]
    if wanted.overflow:
        values["overflow_to_sample_mapping"] = samples
    return values, pieces


def encode_plain(
    shared: Shared,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    options: CallOptions,
) -> tuple[list[list[int]], list[list[int]], int]:
    """Encode texts to ids and types alone: no offsets, no masks, nothing padded.

    Returns:
        B lists of ids, B lists of types, and how many rows were cut.

    Raises:
        TypeError, ValueError: as `encode_rows`.
    """
    template = shared.single if pairs is None else shared.pair
    room = None
    if options.truncates:
        room = options.room(sum(piece.text is None for piece in template))
    skip = room if shared.cuts_at_spaces and _from_the_start(options, pairs is not None) else None
    backend = cutting(shared.backend, options, cut=False)
    first, partial = encode_beginnings(backend, texts, skip)
    second: list[list[int]] | None = None
    if pairs is not None:
        second, partial_second = encode_beginnings(backend, pairs, skip)
        if skip is not None and options.truncation == "longest_first":
            # Of two that are both beyond the room, the longer gets an odd token: beginnings don't
            # tell which that is.
            both = [min(len(a), len(b)) > skip for a, b in zip(first, second, strict=True)]
            for side, ids, part in ((texts, first, partial), (pairs, second, partial_second)):
                again = [i for i, unsure in enumerate(both) if unsure and part[i]]
                read_whole(backend, side, ids, part, again)
    return _assemble(first, second, template, room, options)


def _assemble(
    first: list[list[int]],
    second: list[list[int]] | None,
    template: tuple[Piece, ...],
    room: int | None,
    options: CallOptions,
) -> tuple[list[list[int]], list[list[int]], int]:
    """Cut the texts of every row to `room` tokens and set the special tokens around them."""
    ids: list[list[int]] = []
    types: list[list[int]] = []
    truncated = 0
    for index, a in enumerate(first):
        row: tuple[list[int], ...] = (a,) if second is None else (a, second[index])
        if room is not None and sum(map(len, row)) > room:
            other = None if second is None else len(second[index])
            try:
                kept = kept_lengths(len(a), other, room, options.truncation)
            except ValueError as error:
                raise ValueError(f"text {index}: {error}") from None
            left = options.truncation_side == "left"
            row = tuple(
                part[len(part) - n :] if left and n < len(part) else part[:n]
                for part, n in zip(row, kept, strict=False)
            )
            truncated += 1
        row_ids: list[int] = []
        row_types: list[int] = []
        for piece in template:
            part = [piece.id] if piece.text is None else row[piece.text]
            row_ids += part
            row_types += [piece.type] * len(part)
        ids.append(row_ids)
        types.append(row_types)
    return ids, types, truncated


def _from_the_start(options: CallOptions, pairs: bool = False) -> bool:
    """Whether the cut keeps the beginning of every text, so that its end need not be read."""
    return options.truncation_side == "right" and (pairs or options.truncation != "only_second")


def _pieces(encoding: Encoding) -> tuple[Piece, ...]:
    places = zip(encoding.sequence_ids, encoding.ids, encoding.type_ids, strict=True)
    return tuple(Piece(text, index, kind) for text, index, kind in places)
