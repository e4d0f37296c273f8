"""A tokenizer from a directory's files, and back."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers

from fastbert.atomic import atomic_write
from fastbert.checks import short
from fastbert.json_file import read_json_object
from fastbert.tokenization.backend import Parts, bert_normalizer, build
from fastbert.tokenization.config import (
    Stated,
    TokenizerConfig,
    read_stated,
    stated_flags,
    write_config,
)
from fastbert.tokenization.vocab import as_vocab, read_vocab, vocab_text

_logger = logging.getLogger("fastbert")
_MAX_WORD = 2**31 - 1


def load(directory: Path, overrides: Mapping[str, Any]) -> tuple[Tokenizer, TokenizerConfig]:
    """Make the backend and the settings of a directory's tokenizer.

    tokenizer.json holds vocabulary, normalizer and added tokens; what tokenizer_config.json states
    beside it (unless its class is a bare wrapper), and then `overrides`, go before. Without
    tokenizer.json, vocab.txt and the settings are all. Truncation and padding that a tokenizer.json
    carries are the state of somebody's last call and dropped; only their sides are defaults.

    Raises:
        FileNotFoundError: neither tokenizer.json nor vocab.txt is there.
        ValueError: a file is malformed, or describes another kind of tokenizer.
    """
    stated = read_stated(directory)
    file = directory / "tokenizer.json"
    if file.is_file():
        return _from_json(file, stated, overrides)
    if not (directory / "vocab.txt").is_file():
        raise FileNotFoundError(f"{directory} holds no vocabulary: no tokenizer.json, no vocab.txt")
    config = _configure(directory, {**stated.settings, **overrides})
    vocab = read_vocab(directory / "vocab.txt")
    return build(vocab, config, Parts(), stated.added_tokens, stated.forms), config


def save(directory: Path, backend: Tokenizer, config: TokenizerConfig) -> None:
    """Write vocab.txt, tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Each file is replaced atomically. `directory` is made where it does not exist.

    Raises:
        OSError: a file can't be written; an old one of that name is still there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / "vocab.txt", "w") as out:
        out.write(vocab_text(backend.get_vocab(with_added_tokens=False)))
    with atomic_write(directory / "tokenizer.json", "w") as out:
        out.write(backend.to_str(pretty=True))
    write_config(directory, config, backend.get_added_tokens_decoder())


def _from_json(
    file: Path, stated: Stated, overrides: Mapping[str, Any]
) -> tuple[Tokenizer, TokenizerConfig]:
    raw = read_json_object(file)
    model = raw.get("model")
    if not isinstance(model, dict):
        raise ValueError(f"{file}: the model is {short(model)}, expected an object")
    # Files of the first years name no type: there only BPE has merges, only WordPiece this prefix.
    kind = model.get("type", "BPE" if "merges" in model else "WordPiece")
    prefix = model.get("continuing_subword_prefix")
    if kind != "WordPiece" or not isinstance(prefix, str):
        raise ValueError(f"{file}: the model is {short(kind)}, supported: 'WordPiece'")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise ValueError(f"{file}: the vocabulary is {short(vocab)}, expected an object")
    try:
        vocab = as_vocab(vocab)
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from error
    surrounding = _surrounding(file, raw, model)
    settings = {**_sides(raw), **stated.settings, **overrides}
    settings.setdefault("unk_token", model.get("unk_token", "[UNK]"))
    flags = stated_flags(overrides if stated.whole_json else settings)
    config, normalizer = _normalizer(file, surrounding, settings, flags, overrides)
    parts = Parts(
        continuing_subword_prefix=prefix,
        max_input_chars_per_word=_word_limit(file, model),
        normalizer=normalizer,
        pre_tokenizer=surrounding.pre_tokenizer,
        post_processor=surrounding.post_processor,
        decoder=surrounding.decoder,
    )
    added = {**_added(file, raw), **stated.added_tokens}
    return build(vocab, config, parts, added, stated.forms), config


def _surrounding(file: Path, raw: Mapping[str, Any], model: Mapping[str, Any]) -> Tokenizer:
    """Return the file's tokenizer without vocabulary, tokens and state, for the other parts.

    Half the time of reading the whole: the vocabulary then goes over as the dictionary it is.
    """
    keep = ("version", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    slim = {key: raw[key] for key in keep if key in raw}
    slim["model"] = {**model, "vocab": {}}
    try:
        return Tokenizer.from_str(json.dumps(slim))
    except Exception as error:
        if type(error) is not Exception:  # `tokenizers` raises just that class, and nothing else is
            raise
        raise ValueError(f"{file}: not a tokenizer ({error})") from error


def _normalizer(
    file: Path,
    surrounding: Tokenizer,
    settings: dict[str, Any],
    flags: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> tuple[TokenizerConfig, normalizers.Normalizer]:
    """Settle the normalizer: the file's, with the stated flags over its own."""
    given = surrounding.normalizer
    if given is None:  # BERT's own, as for vocab.txt alone
        config = _configure(file.parent, settings)
        return config, bert_normalizer(config)
    if not isinstance(given, normalizers.BertNormalizer):
        if stated_flags(overrides):
            names = ", ".join(stated_flags(overrides))
            kind = type(given).__name__
            raise ValueError(f"{file}: {names} can't be set on a normalizer of type {kind}")
        return _configure(file.parent, settings), given
    if not given.lowercase and "do_lower_case" not in flags:
        _logger.info(
            "%s does not lower-case and nothing beside it states do_lower_case: text keeps its "
            "case (transformers' BertTokenizer would lower-case)",
            file,
        )
    own = {
        "do_lower_case": given.lowercase,
        "strip_accents": given.strip_accents,
        "tokenize_chinese_chars": given.handle_chinese_chars,
    }
    config = _configure(file.parent, {**settings, **own, **flags})
    normalizer = bert_normalizer(config)
    normalizer.clean_text = given.clean_text
    return config, normalizer


def _configure(directory: Path, settings: Mapping[str, Any]) -> TokenizerConfig:
    try:
        return TokenizerConfig(**settings)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error


def _sides(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sides that the file's padding and truncation name: they are its defaults."""
    sides = {}
    for key in ("padding", "truncation"):
        state = raw.get(key)
        if isinstance(state, dict) and isinstance(state.get("direction"), str):
            sides[f"{key}_side"] = state["direction"].lower()
    return sides


def _added(file: Path, raw: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Return the file's added tokens by id."""
    added = {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for token in raw.get("added_tokens") or ():
        index = token.get("id") if isinstance(token, dict) else None
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(index, int) or index < 0 or not isinstance(content, str) or not content:
            raise ValueError(f"{file}: {short(token)} stands for an added token")
        added[index] = AddedToken(content, **{f: bool(token[f]) for f in flags if f in token})
    return added


def _word_limit(file: Path, model: Mapping[str, Any]) -> int:
    limit = model.get("max_input_chars_per_word", 100)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= _MAX_WORD:
        raise ValueError(f"{file}: max_input_chars_per_word is {short(limit)}")
    return limit
