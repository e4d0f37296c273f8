"""From what a caller passes as texts to the rows that `tokenizers` encodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

Text = str | list[str]
"""One text: a string, or its words where the caller split it."""
Row = Text | tuple[Text, Text]
"""One row of a batch: a text, or a pair of them."""

_LISTS = (list, tuple)


def read_rows(text: object, text_pair: object, split: bool) -> tuple[list[Row], bool]:
    """Sort out single texts, pairs and batches of either.

    Args:
        text: `str`, or a list of them; with `split`, a list of words, or a list of such lists. In a
            list, a couple of texts stands for a pair.
        text_pair: None, or the second texts in the same form; an empty second text of a single call
            counts as none.
        split: the texts are lists of words.

    Returns:
        The B rows, and whether the caller passed a batch (False: one row).

    Raises:
        TypeError: something is no text, with its index and type.
        ValueError: as many second texts as first ones were expected.
    """
    if not isinstance(text, _LISTS):
        if split or not isinstance(text, str):
            _refuse("text", text, split)
        return [_single(text, text_pair, split)], False
    if split and not (text and isinstance(text[0], _LISTS)):
        return [_single(list(text), text_pair, split)], False
    if text_pair is None:
        if not split and all(isinstance(item, str) for item in text):
            return list(text), True  # by far the most frequent call, at no further cost
        return [_row(index, item, split) for index, item in enumerate(text)], True
    if not isinstance(text_pair, _LISTS):
        raise TypeError(f"text is a list, text_pair a {type(text_pair).__name__}; expected a list")
    if len(text) != len(text_pair):
        raise ValueError(f"{len(text)} texts, but {len(text_pair)} in text_pair")
    couples = enumerate(zip(text, text_pair, strict=True))
    return [
        (_text(f"text {i}", a, split), _text(f"text_pair {i}", b, split)) for i, (a, b) in couples
    ], True


def read_texts(name: str, texts: object) -> list[str]:
    """Check a plain list of texts, as `encode_ids` and `pack` take them.

    Raises:
        TypeError: `texts` is no list, or something in it no `str`, with its index and type.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise TypeError(f"{name} is a {type(texts).__name__}, expected a list of str")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            _refuse(f"{name} {index}", text, split=False)
    return list(texts)


def explain(rows: Sequence[Row]) -> None:
    """Raise the error that says why `tokenizers` refused these rows; return where it finds none.

    Raises:
        TypeError: a word is no `str`.
        ValueError: a text holds a lone surrogate, which no UTF-8 can carry.
    """
    for index, row in enumerate(rows):
        for place, part in _parts(row):
            where = f"text {index}{place}"
            if not isinstance(part, str):
                raise TypeError(f"{where} is a {type(part).__name__}, expected str")
            try:
                part.encode("utf-8")
            except UnicodeEncodeError as error:
                code = ord(part[error.start])
                raise ValueError(
                    f"{where} holds the lone surrogate U+{code:04X} at character {error.start}; "
                    "expected text that UTF-8 can encode"
                ) from None


def _parts(row: Row) -> Iterator[tuple[str, Any]]:
    """Yield every string of a row with its place in words."""
    for place, text in enumerate(row if isinstance(row, tuple) else (row,)):
        of_pair = f" (of its pair, the {('first', 'second')[place]})" * isinstance(row, tuple)
        if isinstance(text, str):
            yield of_pair, text
        else:
            for index, word in enumerate(text):
                yield f"{of_pair}, word {index}", word


def _single(text: Text, text_pair: object, split: bool) -> Row:
    if text_pair is None or text_pair == "" or text_pair == [] or text_pair == ():
        return text
    return text, _text("text_pair", text_pair, split)


def _row(index: int, item: object, split: bool) -> Row:
    """Read one item of a list: a text, or a couple of texts."""
    inner = _LISTS if split else str
    if isinstance(item, _LISTS) and len(item) == 2 and all(isinstance(t, inner) for t in item):
        first, second = (list(t) if split else t for t in item)
        return first, second
    return _text(f"text {index}", item, split)


def _text(name: str, item: object, split: bool) -> Text:
    if split and isinstance(item, _LISTS):
        return list(item)
    if split or not isinstance(item, str):
        _refuse(name, item, split)
    return item


def _refuse(name: str, item: object, split: bool) -> NoReturn:
    expected = "a list of words, since is_split_into_words is set" if split else "str"
    hint = ""
    if not split and isinstance(item, _LISTS):
        hint = " (for a list of words, set is_split_into_words=True)"
    value = f" ({item!r})" if item is None or isinstance(item, bool | float) else ""
    raise TypeError(f"{name} is a {type(item).__name__}{value}, expected {expected}{hint}")
