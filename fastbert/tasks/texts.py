"""Texts as callers pass them to a task, checked before anything is computed."""

from __future__ import annotations

from fastbert.tokenization.inputs import explain, read_texts


def check_texts(name: str, texts: object) -> list[str]:
    """Return a list of texts that the tokenizer can read.

    Args:
        name: what a text is called in errors, such as "question".
        texts: what the caller passed.

    Raises:
        TypeError: `texts` is no list, or something in it no `str`, with its index.
        ValueError: a text holds a lone surrogate, with its index.
    """
    checked = read_texts(name, texts)
    try:
        explain(checked)
    except ValueError as error:
        raise ValueError(f"{name}{str(error).removeprefix('text')}") from None
    return checked
