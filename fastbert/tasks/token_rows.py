"""Tokens on their way through a model in windows, and what comes back of their words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastbert.tokenization.batch_encoding import BatchEncoding
from fastbert.tokenizer import BertTokenizer
from fastbert.windows import Bounds, owned, windows

WORD_STRATEGIES = ("first", "average", "max")


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of a text.

    Attributes:
        text: number of the text, for errors.
        ids: (N,) without special ones.
        words: (N,) the word of each token.
        second: ids of a second text that every window carries, or None.
        marked: word whose tokens get the token type 1, or None.
    """

    text: int
    ids: list[int]
    words: NDArray[np.int64]
    second: list[int] | None = None
    marked: int | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """What the model reads of a row at once.

    Attributes:
        row: place of the row among all.
        ids, types: with special tokens and the second text.
        shift: from a token's place in its row to its place in `ids`.
        owned: first token of the row that this window speaks for, and the one after its last.
    """

    row: int
    ids: list[int]
    types: list[int]
    shift: int
    owned: tuple[int, int]


def rows_of(encoded: BatchEncoding) -> list[Row]:
    """The rows of a tokenizer's call, made without special tokens."""
    return [
        Row(number, ids, np.array(encoded.word_ids(number), np.int64))
        for number, ids in enumerate(encoded["input_ids"])
    ]


def cut_row(
    tokenizer: BertTokenizer, place: int, row: Row, max_length: int, stride: int | None
) -> Iterator[Window]:
    """Cut a row into windows of at most `max_length` tokens; one without tokens gives none.

    Args:
        tokenizer: sets the special tokens.
        place: of the row among all.
        row: what is cut.
        max_length: of a window, special tokens and second text included.
        stride: tokens that neighbours share; None for a quarter of those that fit.

    Raises:
        ValueError: if nothing fits, or the stride leaves no step forward; for a row without tokens
            too.
    """
    extra = tokenizer.num_special_tokens_to_add(row.second is not None) + len(row.second or ())
    room = max_length - extra
    try:
        bounds = windows(len(row.ids), room, room // 4 if stride is None else stride)
    except ValueError as error:
        raise ValueError(f"text {row.text}: {error}") from None
    for (start, end), part in zip(bounds, owned_words(bounds, row.words), strict=True):
        if start == end:
            continue
        ids, types, (first, _) = tokenizer.build_row(row.ids[start:end], row.second)
        if row.marked is not None:
            for token in np.flatnonzero(row.words[start:end] == row.marked):
                types[first + token] = 1
        yield Window(place, ids, types, first - start, part)


def word_starts(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the first token of each word; `words` (N,) holds the word of each token."""
    return np.flatnonzero(np.diff(words, prepend=-1))


def merge_pieces(
    scores: NDArray[np.floating], starts: NDArray[np.int64], strategy: str
) -> NDArray[np.floating]:
    """One row of scores a word out of those of its pieces.

    Args:
        scores: (N, labels) probabilities.
        starts: (W,) place of each word's first piece, the first of them 0.
        strategy: first: those of the first piece; average: the mean; max: those of the piece with
            the highest one.

    Returns:
        (W, labels).
    """
    if strategy == "first" or not starts.size:
        return scores[starts]
    counts = np.diff(starts, append=len(scores))  # (W,)
    if strategy == "average":
        return np.add.reduceat(scores, starts, axis=0, dtype=np.float64) / counts[:, None]
    best = scores.max(axis=1)  # (N,)
    words = np.repeat(np.arange(len(starts)), counts)  # (N,)
    highest = np.flatnonzero(best == np.maximum.reduceat(best, starts)[words])
    _, first = np.unique(words[highest], return_index=True)
    return scores[highest[first]]


def owned_words(bounds: Bounds, words: NDArray[np.int64]) -> Bounds:
    """As `owned`, with its borders moved to the nearest border of words within the overlap.

    So one window speaks for a whole word, unless no word ends within the overlap.

    Args:
        bounds: windows over the tokens of a text.
        words: (N,) the word of each token.
    """
    parts = owned(bounds)
    for number in range(1, len(bounds)):
        low, high = bounds[number][0], bounds[number - 1][1]
        middle = parts[number][0]
        places = np.arange(max(low, 1), min(high, len(words) - 1) + 1)
        borders = places[words[places] != words[places - 1]]
        if borders.size:
            edge = int(borders[np.abs(borders - middle).argmin()])
            parts[number - 1] = (parts[number - 1][0], edge)
            parts[number] = (edge, parts[number][1])
    return parts


def read_sentences(name: str, given: object) -> tuple[list[list[str]], bool]:
    """Check one sentence as words, or a list of them.

    Args:
        name: of the argument, for errors.
        given: a list of words, or a list of such lists.

    Returns:
        B lists of words, and whether there was one sentence alone.

    Raises:
        TypeError: something is neither, with its place.
    """
    if not isinstance(given, list | tuple):
        raise TypeError(f"{name}s are a {type(given).__name__}, expected lists of words")
    single = bool(given) and isinstance(given[0], str)
    sentences = [given] if single else given
    for number, sentence in enumerate(sentences):
        where = f"{name} {number}"
        if not isinstance(sentence, list | tuple):
            raise TypeError(f"{where} is a {type(sentence).__name__}, expected a list of words")
        for place, word in enumerate(sentence):
            if not isinstance(word, str):
                raise TypeError(f"{where}, word {place} is a {type(word).__name__}, expected str")
    return [list(sentence) for sentence in sentences], single
