"""Cutting texts without reading what is thrown away, and without ever making `tokenizers` panic."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from fastbert.tokenization.backend import run
from fastbert.tokenization.inputs import Row, Text
from fastbert.tokenization.options import CallOptions, kept_lengths

_CHARACTERS_A_TOKEN = 8  # English takes 4 to 5 with the space; a miss costs a second reading
_LEAST_CHARACTERS = 512  # below this, looking for a place to cut costs what it saves


def cuts_at_spaces(backend: Tokenizer) -> bool:
    """Whether the tokens before a space never depend on what follows it.

    True for BERT's clean-up and splitting, which look at characters and at words. An added token
    may hold a space itself, swallow one, or be matched in the normalized text: then False.
    """
    bert = isinstance(backend.normalizer, normalizers.BertNormalizer) and isinstance(
        backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer
    )
    return bert and not any(
        token.normalized
        or token.lstrip
        or token.rstrip
        or token.single_word
        or any(map(str.isspace, token.content))
        for token in backend.get_added_tokens_decoder().values()
    )


def beginning(text: str, room: int) -> str | None:
    """Return a beginning of a long text that likely holds more than `room` tokens, or None.

    It ends before a space or a newline, so its tokens are the first ones of the text. None where
    the text is short, or has no such place in its first half (one endless word).
    """
    guess = max(_LEAST_CHARACTERS, _CHARACTERS_A_TOKEN * room)
    if len(text) <= 2 * guess:
        return None
    places = [p for p in (text.find(c, guess, len(text) // 2) for c in " \n") if p >= 0]
    return text[: min(places)] if places else None


def encode_beginnings(
    backend: Tokenizer, texts: Sequence[str], room: int | None
) -> tuple[list[list[int]], list[bool]]:
    """Encode texts without special tokens, each at least as far as `room` + 1 tokens.

    Args:
        backend: what to encode with.
        texts: B texts.
        room: tokens that will be kept of each; None to read every text whole.

    Returns:
        B lists of ids, and for each whether it is a beginning only (of more than `room` tokens).
    """
    short = [None if room is None else beginning(text, room) for text in texts]
    rows = [text if part is None else part for text, part in zip(texts, short, strict=True)]
    ids = [e.ids for e in run(backend, rows, add_special_tokens=False, offsets=False)]
    partial = [part is not None for part in short]
    again = [i for i, part in enumerate(partial) if part and len(ids[i]) <= (room or 0)]
    read_whole(backend, texts, ids, partial, again)
    return ids, partial


def read_whole(
    backend: Tokenizer,
    texts: Sequence[str],
    ids: list[list[int]],
    partial: list[bool],
    which: Sequence[int],
) -> None:
    """Encode the texts numbered in `which` to their end, in place of their beginnings."""
    whole = run(backend, [texts[i] for i in which], add_special_tokens=False, offsets=False)
    for i, encoding in zip(which, whole, strict=True):
        ids[i], partial[i] = encoding.ids, False


def check_rows(backend: Tokenizer, rows: Sequence[Row], options: CallOptions, split: bool) -> None:
    """Refuse what `tokenizers` would answer with a panic or with an error that names no row.

    Nothing is read for the usual calls; only texts that can't be cut, or a stride that may not fit
    into what is left to a text of a pair, cost a count of tokens.

    Raises:
        ValueError: `max_length` or `stride` don't fit, or a text that should give way is too short.
    """
    singles = [i for i, row in enumerate(rows) if not isinstance(row, tuple)]
    pairs = [i for i, row in enumerate(rows) if isinstance(row, tuple)]
    if singles:
        room = options.room(backend.num_special_tokens_to_add(False))
        if options.truncation == "only_second":
            _check_counts(backend, rows, singles, room, options, split)
    if pairs:
        room = options.room(backend.num_special_tokens_to_add(True))
        if options.truncation != "longest_first":
            # The text that stays whole decides; it is the short one, as a rule.
            side = 1 if options.truncation == "only_first" else 0
            whole = _count(backend, [rows[i][side] for i in pairs], split)
            pairs = [i for i, n in zip(pairs, whole, strict=True) if n + options.stride >= room]
        elif options.stride < room // 2 or not options.stride:
            return  # a text that is cut keeps at least half
        _check_counts(backend, rows, pairs, room, options, split)


def _check_counts(
    backend: Tokenizer,
    rows: Sequence[Row],
    which: Sequence[int],
    room: int,
    options: CallOptions,
    split: bool,
) -> None:
    for i in which:
        row = rows[i]
        texts = list(row) if isinstance(row, tuple) else [row]
        counts = [*_count(backend, texts, split), None][:2]
        first, second = counts[0] or 0, counts[1]
        try:
            kept = kept_lengths(first, second, room, options.truncation)
        except ValueError as error:
            raise ValueError(f"text {i}: {error}") from None
        for had, has in zip((first, second or 0), kept, strict=True):
            if has < had and 0 < has <= options.stride:
                raise ValueError(
                    f"text {i}: stride is {options.stride}, but max_length {options.max_length} "
                    f"leaves {has} tokens to the text that is cut"
                )


def _count(backend: Tokenizer, texts: Sequence[Text], split: bool) -> list[int]:
    encodings = run(backend, texts, add_special_tokens=False, split=split, offsets=False)
    return [len(encoding) for encoding in encodings]
