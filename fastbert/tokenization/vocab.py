"""WordPiece vocabularies: token to id, read from and written to `vocab.txt`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastbert.checks import short

MAX_VOCAB_BYTES = 100_000_000  # a million tokens of a hundred bytes; more is no vocabulary
_MAX_ID = 2**31 - 1


def read_vocab(file: str | os.PathLike[str]) -> dict[str, int]:
    r"""Read a `vocab.txt`: a token a line, its id the number of the line counted from 0.

    Only `\n` ends a line (and a `\r` before it belongs to the line end, not to the token), so blank
    lines, U+2028 and U+0085 are entries that keep every later id in place. A byte order mark is
    skipped, a missing last newline is fine, and of a token on two lines the later one wins.

    Returns:
        token → id, V entries or fewer where tokens repeat.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is empty, larger than `MAX_VOCAB_BYTES`, or not UTF-8.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such vocabulary file")
    size = path.stat().st_size
    if size > MAX_VOCAB_BYTES:
        raise ValueError(
            f"{path}: {size} bytes, expected a vocabulary of at most {MAX_VOCAB_BYTES}"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the vocabulary is not UTF-8 ({error})") from error
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()  # what follows the last newline is not a line
    if not lines:
        raise ValueError(f"{path}: the vocabulary is empty")
    return {line.removesuffix("\r"): index for index, line in enumerate(lines)}


def as_vocab(vocab: Mapping[str, int] | Sequence[str]) -> dict[str, int]:
    """Check a vocabulary given in memory and return it as token → id.

    Args:
        vocab: token → id, every id once, or tokens whose place is their id (the later of two wins).

    Raises:
        TypeError: A token is not a string or an id not an integer.
        ValueError: No token at all, an id out of range, or one id with two tokens.
    """
    if not isinstance(vocab, Mapping):
        vocab = {token: index for index, token in enumerate(vocab)}
    result: dict[str, int] = {}
    for token, index in vocab.items():
        if not isinstance(token, str):
            raise TypeError(f"the vocabulary holds {short(token)}, expected strings")
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"token {short(token)} has the id {short(index)}, expected an integer")
        if not 0 <= index <= _MAX_ID:
            raise ValueError(f"token {short(token)} has the id {index}, expected 0 to {_MAX_ID}")
        result[token] = index
    if not result:
        raise ValueError("the vocabulary is empty")
    if len(set(result.values())) != len(result):
        raise ValueError("the vocabulary gives one id to two tokens")
    return result


def vocab_text(vocab: Mapping[str, int]) -> str:
    r"""Return the `vocab.txt` that `read_vocab` turns into `vocab` again.

    An id without a token (a duplicate's earlier line), and a token that no line can hold (one with
    `\n` in it; text never yields it), become a repetition of the last token: there the later wins.
    """
    by_id = {index: token for token, index in vocab.items() if _fits_a_line(token)}
    last = max(by_id)
    return "".join(by_id.get(index, by_id[last]) + "\n" for index in range(last + 1))


def _fits_a_line(token: str) -> bool:
    return "\n" not in token and not token.endswith("\r") and not token.startswith("\ufeff")
