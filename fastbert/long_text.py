"""Texts longer than the model: windows that overlap, computed alone and combined into one vector.

A text of n tokens becomes windows of as many tokens as fit beside the special ones, each but the
first beginning with the last `stride` tokens of the one before. Each window gets its own [CLS] and
[SEP] and is computed as if it were a text. Of the W vectors v₁ … v_W of a text (each (K,))

    sum   Σ v_w        (how BERT's original recipe treats what is longer than its positions)
    mean  (1/W) Σ v_w
    max   the largest of each number, over w

Every window counts alike, however short the last one is. Vectors are folded in, in float64, as
their batches are done: no more hidden states stand in memory than one batch has, whatever the
length of the text.

Letters: B texts, W windows, K numbers of a vector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fastbert.checks import check_choice, check_int
from fastbert.tokenization.cutting import cuts_at_spaces
from fastbert.tokenization.inputs import explain, read_texts
from fastbert.windows import Bounds, windows

if TYPE_CHECKING:
    from fastbert.packing import Packed
    from fastbert.sentence_encoder import SentenceEncoder
    from fastbert.tokenizer import BertTokenizer

COMBINES = ("sum", "mean", "max")
# Characters that the tokenizer reads at a time. It takes up to some 200 bytes a character while it
# works, which for a text of 1 MB would be more than the model itself needs.
_PIECE, _GROUP = 2**13, 2**16
# Scripts without spaces have full stops: punctuation is always a token of its own.
_STOPS = "。！？"
_BREAK = re.compile(f"[ \n{_STOPS}]")


def encode_long(
    encoder: SentenceEncoder,
    texts: str | Sequence[str],
    *,
    combine: str = "sum",
    stride: int = 0,
    prompt_name: str | None = None,
    prompt: str | None = None,
    normalize_embeddings: bool = False,
    batch_tokens: int = 4096,
    progress: bool | None = None,
) -> NDArray[Any]:
    """Vectors of texts of any length; `SentenceEncoder.encode` where a text fits the model.

    What is combined are the sentence vectors of the windows: each is pooled and goes through all
    of the directory's steps (dense layers, normalisation, fewer dimensions) first. The combined
    vector is left as it comes, so the sum of W normalised vectors is up to W long; it is divided by
    its norm only if `normalize_embeddings` asks for it. A prompt stands before every window.

    Args:
        encoder: its `max_length` is the length of a window, special tokens included.
        texts: B texts, or one. Where a text has neither space nor newline nor full stop
            (。！？), the tokenizer reads it in one go, at some 250 bytes a character.
        combine: sum, mean or max.
        stride: tokens that a window shares with the one before.
        prompt_name, prompt: as for `encode`.
        normalize_embeddings: divide each combined vector by its Euclidean norm.
        batch_tokens: most tokens computed at a time; it sets the memory.
        progress: None shows a bar on a terminal if the work takes more than 2 s.

    Returns:
        (B, dimension) float32, (dimension,) for one text; float64 where the encoder computes in it.

    Raises:
        TypeError: if something among the texts is no str, with its index.
        ValueError: on another `combine`, a stride that leaves no step forward, a prompt that leaves
            no room in a window, or a text that UTF-8 can't hold.
    """
    check_int("batch_tokens", batch_tokens, 1, 2**31 - 1)
    check_choice("combine", combine, COMBINES)
    single = isinstance(texts, str)
    listed = read_texts("text", [texts] if isinstance(texts, str) else texts)
    before = encoder._prompt(prompt_name, prompt)
    rows, skip = _prompted_rows(encoder, listed, before, stride)
    encoder.model.eval()
    folded = Folded(rows.counts, encoder.dimension, combine)
    # The encoder wants no more of its list than a length and items.
    for indices, packed in encoder._batches(rows, batch_tokens, progress):
        folded.add(rows.owners[indices], _vectors(encoder, packed, skip))
    dtype = np.float64 if encoder.model.dtype == torch.float64 else np.float32
    vectors = torch.from_numpy(folded.result().astype(dtype))
    if normalize_embeddings:
        vectors = F.normalize(vectors, dim=1)
    return vectors[0].numpy() if single else vectors.numpy()


class Folded:
    """W vectors of B texts, combined as they come.

    Args:
        counts: (B,) windows of each text, at least 1.
        width: K.
        combine: one of `COMBINES`.
    """

    def __init__(self, counts: NDArray[np.int64], width: int, combine: str) -> None:
        self._combine = check_choice("combine", combine, COMBINES)
        self._counts = counts
        start = -np.inf if combine == "max" else 0.0
        self._vectors = np.full((len(counts), width), start, np.float64)

    def add(self, owners: NDArray[np.int64], vectors: NDArray[np.floating[Any]]) -> None:
        """Fold the vectors (n, K) of n windows into those of the texts `owners` (n,)."""
        fold = np.maximum if self._combine == "max" else np.add
        fold.at(self._vectors, owners, vectors)  # an owner may stand there more than once

    def result(self) -> NDArray[np.float64]:
        """(B, K) float64, once every window is in."""
        if self._combine == "mean":
            return self._vectors / self._counts[:, None]
        return self._vectors


class WindowRows(Sequence[list[int]]):
    """The windows of B texts as W rows of ids, special tokens included; each made when asked for.

    Args:
        tokenizer: sets the special tokens.
        tokens: B arrays of ids, from `read_tokens`.
        length: tokens of a row, special ones included.
        stride: tokens that neighbours share.
        head: leading tokens of every text that stand before each of its windows.

    Attributes:
        owners: (W,) the text that each row comes from.
        counts: (B,) windows of each text.
        bounds: W first tokens and ends in the text, not counting its `head`.

    Raises:
        ValueError: if no token fits beside the special ones and `head`, or on a bad stride.
    """

    def __init__(
        self,
        tokenizer: BertTokenizer,
        tokens: Sequence[NDArray[np.int32]],
        length: int,
        stride: int = 0,
        head: int = 0,
    ) -> None:
        room = length - tokenizer.num_special_tokens_to_add() - head
        windows(0, room, stride)  # a bad stride is one also where there is no text
        cut = [windows(max(0, len(ids) - head), room, stride) for ids in tokens]
        self.counts = np.fromiter(map(len, cut), np.int64, len(cut))
        self.owners = np.repeat(np.arange(len(cut)), self.counts)
        self.bounds: Bounds = [bounds for text in cut for bounds in text]
        self._tokenizer, self._tokens, self._head = tokenizer, tokens, head

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: Any) -> Any:
        """The ids of a row."""
        return self._row(index)[0]

    @property
    def types(self) -> Sequence[list[int]]:
        """The token types of every row, made when asked for."""
        return _Types(self)

    def _row(self, index: int) -> tuple[list[int], list[int]]:
        ids = self._tokens[self.owners[index]]
        start, end = self.bounds[index]
        head = self._head
        part = ids[:head].tolist() + ids[head + start : head + end].tolist()
        row, types, _ = self._tokenizer.build_row(part)
        return row, types


class _Types(Sequence[list[int]]):
    def __init__(self, rows: WindowRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows._row(index)[1]


def read_tokens(
    tokenizer: BertTokenizer,
    texts: Sequence[str],
    prepare: Callable[[str], str] | None = None,
) -> list[NDArray[np.int32]]:
    """Ids of texts of any length, without special tokens; a long text is read piece by piece.

    Pieces end before a space, a newline or a full stop such as 。, where the tokens on both sides
    do not depend on each other (`cuts_at_spaces`; of other tokenizers every text is read whole).

    Args:
        tokenizer: its options for single texts hold.
        texts: B texts.
        prepare: what is done to the characters first, one by one.

    Raises:
        TypeError, ValueError: if something is no text, or UTF-8 can't hold it, with its index.
    """
    listed = read_texts("text", texts)
    explain(listed)  # the tokenizer would count pieces where the caller counts texts
    cut = _can_be_cut(tokenizer)
    before = tokenizer.build_row([])[2][0]
    after = tokenizer.num_special_tokens_to_add() - before
    found: list[list[NDArray[np.int32]]] = [[] for _ in listed]
    for group in _groups(listed, cut):
        pieces = [piece if prepare is None else prepare(piece) for _, piece in group]
        rows = tokenizer.encode_ids(pieces, truncation=False).ids
        for (index, _), row in zip(group, rows, strict=True):
            found[index].append(np.array(row[before : len(row) - after], np.int32))
    return [np.concatenate(parts) for parts in found]


def _can_be_cut(tokenizer: BertTokenizer) -> bool:
    added = tokenizer.added_tokens_decoder.values()
    whole = any(stop in token.content for token in added for stop in _STOPS)
    return not whole and cuts_at_spaces(tokenizer.backend_tokenizer)


def _groups(texts: Sequence[str], cut: bool) -> Iterator[list[tuple[int, str]]]:
    """Pieces with the index of their text, as many at a time as the tokenizer may read."""
    group: list[tuple[int, str]] = []
    size = 0
    for index, text in enumerate(texts):
        for piece in _pieces(text) if cut else [text]:
            group.append((index, piece))
            size += len(piece)
            if size >= _GROUP:
                yield group
                group, size = [], 0
    if group:
        yield group


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE:
        found = _BREAK.search(text, start + _PIECE)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _prompted_rows(
    encoder: SentenceEncoder, texts: Sequence[str], prompt: str, stride: int
) -> tuple[WindowRows, int]:
    """Windows with the prompt before each, and the tokens that pooling leaves out of each."""
    tokenizer, prepare = encoder.tokenizer, encoder._prepared
    tokens = read_tokens(tokenizer, [prompt + text for text in texts], prepare)
    head = len(read_tokens(tokenizer, [prompt], prepare)[0])
    rows = WindowRows(tokenizer, tokens, encoder.max_length, stride, head)
    if not prompt or encoder.settings.pooling.include_prompt:
        return rows, 0
    return rows, head + tokenizer.build_row([])[2][0]


def _vectors(encoder: SentenceEncoder, packed: Packed, skip: int) -> NDArray[np.float64]:
    """(B, dimension) sentence vectors as `encode` makes them, in the precision they come in."""
    vectors = encoder._pool(encoder._hidden(packed), packed, skip)[:, : encoder.dimension]
    return vectors.double().cpu().numpy()
