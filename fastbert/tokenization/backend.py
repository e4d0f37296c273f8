"""The `tokenizers.Tokenizer` behind a `BertTokenizer`: made, copied cheaply, and run.

One such object is shared by all threads and never changed: where a call wants truncation, it gets a
copy of its own that shares the vocabulary (6 µs on a Zen 4), so no call's options reach another's.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    Encoding,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import WordPiece

from fastbert.tokenization.config import TokenizerConfig
from fastbert.tokenization.inputs import Row, explain
from fastbert.tokenization.options import CallOptions


@dataclass(frozen=True)
class Parts:
    """What a `Tokenizer` is made of; None stands for BERT's own."""

    unk_token: str = "[UNK]"
    continuing_subword_prefix: str = "##"
    max_input_chars_per_word: int = 100
    normalizer: normalizers.Normalizer | None = None
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None
    post_processor: processors.PostProcessor | None = None
    decoder: decoders.Decoder | None = None


def bert_normalizer(config: TokenizerConfig) -> normalizers.BertNormalizer:
    """Return BERT's text clean-up as the settings want it."""
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.tokenize_chinese_chars,
        strip_accents=config.strip_accents,
        lowercase=config.do_lower_case,
    )


def build(
    vocab: Mapping[str, int],
    config: TokenizerConfig,
    parts: Parts,
    added: Mapping[int, AddedToken],
    forms: Mapping[str, AddedToken],
) -> Tokenizer:
    """Make a `Tokenizer` from a vocabulary and the parts that surround it.

    Args:
        vocab: token → id.
        config: settings, with the special tokens.
        parts: normalizer and the like, where a file gave them.
        added: tokens beside the vocabulary by id.
        forms: how named special tokens are matched in a text, where a file says it.

    Raises:
        ValueError: the unknown token is not in the vocabulary, or an added token has no free id.
    """
    if config.unk_token not in vocab:
        raise ValueError(
            f"the unknown token {config.unk_token!r} is not among the vocabulary's {len(vocab)}"
        )
    model = WordPiece(
        dict(vocab),
        unk_token=config.unk_token,
        max_input_chars_per_word=parts.max_input_chars_per_word,
        continuing_subword_prefix=parts.continuing_subword_prefix,
    )
    backend = Tokenizer(model)
    backend.normalizer = parts.normalizer or bert_normalizer(config)
    backend.pre_tokenizer = parts.pre_tokenizer or pre_tokenizers.BertPreTokenizer()
    backend.decoder = parts.decoder or decoders.WordPiece(prefix=parts.continuing_subword_prefix)
    tokens = [token for _, token in sorted(added.items())]
    known = {token.content for token in tokens}
    tokens += [
        forms.get(token, AddedToken(token, special=True, normalized=False))
        for token in config.special_tokens()
        if token not in known
    ]
    add_tokens(backend, tokens, vocab)
    _warn_of_ids(backend, added)
    backend.post_processor = parts.post_processor or bert_template(backend, config)
    return backend


def _warn_of_ids(backend: Tokenizer, added: Mapping[int, AddedToken]) -> None:
    for index, token in added.items():
        if backend.token_to_id(token.content) != index:
            warnings.warn(
                f"added token {token.content!r} is stated to have the id {index}, but gets "
                f"{backend.token_to_id(token.content)}, as in transformers",
                stacklevel=5,
            )


def add_tokens(backend: Tokenizer, tokens: Sequence[AddedToken], vocab: Mapping[str, int]) -> None:
    """Add tokens to a `Tokenizer` that nobody else uses yet; new ones get the ids that follow.

    Raises:
        ValueError: the next free id, by count, belongs to a token: the vocabulary has gaps.
    """
    backend.add_tokens(list(tokens))
    if len(vocab) > max(vocab.values()):
        return
    taken = set(vocab.values())
    for token in tokens:
        index = backend.token_to_id(token.content)
        if token.content not in vocab and index in taken:
            raise ValueError(
                f"{token.content!r} would get the id {index} of another token: the vocabulary "
                f"counts {len(vocab)} tokens, but its ids reach {max(taken)}"
            )


def bert_template(backend: Tokenizer, config: TokenizerConfig) -> processors.PostProcessor:
    """Return what sets [CLS] and [SEP] around a text or a pair, with types 0 and 1."""
    cls, sep = config.cls_token, config.sep_token
    ids = {token: backend.token_to_id(token) for token in dict.fromkeys((cls, sep))}
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, index) for token, index in ids.items() if index is not None],
    )


def copy(backend: Tokenizer) -> Tokenizer:
    """Return a `Tokenizer` of the same behaviour that shares the vocabulary but no settings."""
    mine = Tokenizer(backend.model)
    mine.normalizer = backend.normalizer
    mine.pre_tokenizer = backend.pre_tokenizer
    mine.post_processor = backend.post_processor
    mine.decoder = backend.decoder
    mine.add_tokens([token for _, token in sorted(backend.get_added_tokens_decoder().items())])
    return mine


def cutting(backend: Tokenizer, options: CallOptions, cut: bool) -> Tokenizer:
    """Return a `Tokenizer` that cuts as one call asks: a copy, unless nothing is to be set."""
    if not cut and not options.split_special_tokens:
        return backend
    mine = copy(backend)
    mine.encode_special_tokens = options.split_special_tokens
    if cut and options.max_length is not None:
        mine.enable_truncation(
            options.max_length,
            stride=options.stride,
            strategy=options.truncation,
            direction=options.truncation_side,
        )
    return mine


def pad(rows: Sequence[Encoding], options: CallOptions, pad_id: int, pad_token: str) -> None:
    """Pad rows in place, to one length or to the longest, rounded up to the multiple asked for."""
    if options.padding == "max_length" and options.max_length is not None:
        length = options.max_length
    else:
        length = max(map(len, rows), default=0)
    length += -length % (options.pad_to_multiple_of or 1)
    side = options.padding_side
    for row in rows:
        row.pad(length, direction=side, pad_id=pad_id, pad_type_id=0, pad_token=pad_token)


class _Pool:
    """Remembers which process woke the thread pool of `tokenizers`: it does not survive a fork."""

    process: int | None = None


def run(
    backend: Tokenizer,
    rows: Sequence[Row],
    *,
    add_special_tokens: bool,
    split: bool = False,
    offsets: bool = True,
) -> list[Encoding]:
    """Encode rows in parallel; one after another in a forked child, where the pool would hang.

    Args:
        backend: what to encode with.
        rows: B texts or pairs.
        add_special_tokens: whether to set [CLS] and [SEP] around them.
        split: the texts are lists of words.
        offsets: whether the places in the text are wanted (a fifth of the time).

    Raises:
        TypeError, ValueError: as `explain`.
    """
    try:
        if len(rows) > 1 and _Pool.process is None:
            _Pool.process = os.getpid()
        if len(rows) > 1 and _Pool.process == os.getpid():
            encode = backend.encode_batch if offsets else backend.encode_batch_fast
            return encode(list(rows), is_pretokenized=split, add_special_tokens=add_special_tokens)
        return list(_one_by_one(backend, rows, add_special_tokens, split))
    except TypeError:
        explain(rows)
        raise


def _one_by_one(
    backend: Tokenizer, rows: Iterable[Row], add_special_tokens: bool, split: bool
) -> Iterable[Encoding]:
    for row in rows:
        first, second = row if isinstance(row, tuple) else (row, None)
        yield backend.encode(first, second, split, add_special_tokens)
