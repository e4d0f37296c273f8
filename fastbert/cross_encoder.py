"""`CrossEncoder`: a query and a document read together, one score a pair."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastbert.checks import check_int
from fastbert.config import BertConfig
from fastbert.cross_encoder_config import CrossEncoderConfig
from fastbert.heads import BertForSequenceClassification
from fastbert.hub import resolve_directory
from fastbert.messages import TruncationWarning
from fastbert.packing import Packed
from fastbert.pretrained import check_device
from fastbert.sentence_encoder import TOKENS_PER_TEXT
from fastbert.tasks.base import Task
from fastbert.tokenization.inputs import read_texts
from fastbert.tokenizer import BertTokenizer

Pair = Sequence[str]
"""A couple of texts, such as a query and a document."""

_MODULES: dict[str, Callable[[], nn.Module]] = {
    "GELU": nn.GELU,
    "Identity": nn.Identity,
    "LogSigmoid": nn.LogSigmoid,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
    "Softmax": lambda: nn.Softmax(dim=1),
    "Softplus": nn.Softplus,
    "Tanh": nn.Tanh,
}


class CrossEncoder(Task[BertForSequenceClassification]):
    """Scores of pairs of texts; a drop-in for sentence-transformers' class, without padding.

    A pair is read as ``[CLS] first [SEP] second [SEP]`` and scored by
    ``activation(classifier(pooler(encoder)))`` (Nogueira and Cho 2019, arXiv 1901.04085). The
    activation, the length and the prompts are the directory's; without any named, one label has a
    Sigmoid and more have the Identity.

    Args:
        path: directory or hub id; or a model in memory with its `tokenizer`.
        tokenizer, dtype, device, threads, allow_pickle: as for the other tasks, see `Task`.
        max_length: longest pair in tokens, special ones included; None: what the directory says,
            and never beyond the model's positions.

    Raises:
        CheckpointError: if the checkpoint has no classifier; the error names its tensors.
        FileNotFoundError, TypeError, ValueError: as `Task`; and for an activation, a module or an
            option in the directory that is not supported, named.
    """

    head = BertForSequenceClassification

    def __init__(
        self,
        path: str | os.PathLike[str] | BertForSequenceClassification,
        tokenizer: BertTokenizer | None = None,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        allow_pickle: bool = False,
    ) -> None:
        if isinstance(path, BertForSequenceClassification):
            model: BertForSequenceClassification | Path = path
        else:
            model = resolve_directory(path, allow_pickle=allow_pickle)
        super().__init__(
            model,
            tokenizer,
            dtype=dtype,
            device=device,
            threads=threads,
            max_length=max_length,
            allow_pickle=allow_pickle,
        )
        if isinstance(model, Path):
            self.settings = CrossEncoderConfig.from_directory(model, self.config)
        else:
            self.settings = CrossEncoderConfig.from_config(self.config)
        if max_length is None and self.settings.max_length is not None:
            self.max_length = min(self.settings.max_length, self.config.max_position_embeddings)

    @property
    def activation_fn(self) -> nn.Module:
        """What the directory wants behind the logits."""
        return _MODULES[self.settings.activation]()

    @property
    def num_labels(self) -> int:
        """Scores of a pair."""
        return self.config.num_labels

    def predict(
        self,
        inputs: Pair | Sequence[Pair] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: torch.device | str | None = None,
        *,
        sentences: Pair | Sequence[Pair] | None = None,
    ) -> Any:
        """Scores of pairs, in their order; the signature is sentence-transformers'.

        Args:
            inputs: B pairs, or one.
            prompt_name: a prompt of the directory, put before the first text of each pair.
            prompt: the prompt itself; wins over `prompt_name`.
            batch_size: sets memory: a batch holds at most ``batch_size * 128`` tokens.
            show_progress_bar: None shows one on a terminal if the work takes more than 2 s.
            activation_fn: of all logits (B, L) in float32 (float64 where the model computes in
                it); None: the directory's.
            apply_softmax: a softmax over L on top, where there are several labels.
            convert_to_numpy: a NumPy array; else a list of tensors.
            convert_to_tensor: one tensor, on the model's device, not narrowed to float32; wins.
            device: moves the model there first.
            sentences: the older name of `inputs`.

        Returns:
            (B,) float32 for one label, (B, L) for more; the first axis is missing for one pair.

        Raises:
            TypeError: if something is no pair of str, with its index.
            ValueError: on an unknown prompt, a `batch_size` below 1, a text UTF-8 can't hold, or
                an activation that gives something else than a row a pair.

        Warns:
            TruncationWarning: how many pairs were longer than `max_length` and were cut, token by
                token from the longer text.
        """
        pairs, single = _pairs(inputs, sentences)
        scores = self._scores(
            [pair[0] for pair in pairs],
            [pair[1] for pair in pairs],
            self.settings.prompt(prompt_name, prompt),
            batch_size,
            show_progress_bar,
            activation_fn,
            device,
        )
        if apply_softmax and scores.ndim > 1:
            scores = scores.softmax(dim=1)
        if convert_to_tensor:
            rows: Any = scores
        elif convert_to_numpy:
            rows = scores.float().cpu().numpy()
        else:
            rows = list(scores)
        return rows[0] if single else rows

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> list[dict[str, Any]]:
        """Documents by their score for a query, best first; of equal scores the first stays first.

        Args:
            query: one text, the first of each pair.
            documents: B texts.
            top_k: how many to return; None for all.
            return_documents: give the texts too.
            prompt_name, prompt, batch_size, show_progress_bar, activation_fn, device: as in
                `predict`.

        Returns:
            Dicts with `corpus_id` (the place in `documents`), `score` (a float), and `text` where
            asked for; none for no documents.

        Raises:
            TypeError, ValueError: as `predict`; for a model with several labels, a `top_k` below
                1, or a score that is not a number.

        Warns:
            TruncationWarning: as `predict`.
        """
        if self.num_labels != 1:
            raise ValueError(
                f"the model gives {self.num_labels} scores a pair, ranking needs one: see predict"
            )
        if top_k is not None:
            check_int("top_k", top_k, 1, 2**63 - 1)
        (query,) = read_texts("query", [query])
        documents = read_texts("document", documents)
        found = self._scores(
            [query] * len(documents),
            documents,
            self.settings.prompt(prompt_name, prompt),
            batch_size,
            show_progress_bar,
            activation_fn,
            device,
        )
        unordered = found.isnan().nonzero()
        if len(unordered):
            raise ValueError(f"document {int(unordered[0, 0])}: the score is not a number")
        scores = found.tolist()
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_k]
        if return_documents:
            return [{"corpus_id": i, "score": scores[i], "text": documents[i]} for i in best]
        return [{"corpus_id": i, "score": scores[i]} for i in best]

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write model, tokenizer and settings as a directory that sentence-transformers loads.

        Raises:
            OSError: a file can't be written; old ones are still there.
        """
        self.model.save_pretrained(directory)
        tokenizer = copy.copy(self.tokenizer)  # its own limit stays
        tokenizer.model_max_length = self.max_length
        tokenizer.save_pretrained(directory)
        self.settings.save(directory, BertConfig.from_pretrained(directory))

    def _scores(
        self,
        firsts: list[str],
        seconds: list[str],
        prompt: str,
        batch_size: int,
        progress: bool | None,
        activation: Callable[[Tensor], Tensor] | None,
        device: torch.device | str | None,
    ) -> Tensor:
        """(B,) or (B, L) scores on the model's device, float32 or float64."""
        check_int("batch_size", batch_size, 1, 2**31 - 1)
        activation = self.activation_fn if activation is None else activation
        if not callable(activation):
            raise TypeError(f"activation_fn is a {type(activation).__name__}, expected a function")
        if prompt:
            firsts = [prompt + text for text in firsts]
        ids, types, cut = self.tokenizer.encode_ids(firsts, seconds, max_length=self.max_length)
        if cut:  # said where `predict` or `rank` is called
            warnings.warn(TruncationWarning(cut, len(ids), self.max_length), stacklevel=3)
        if device is not None:
            self.model.to(check_device(device))
        wide = torch.promote_types(self.model.dtype, torch.float32)
        logits = torch.empty(len(ids), self.num_labels, dtype=wide, device=self.device)  # (B, L)
        budget = min(batch_size * TOKENS_PER_TEXT, 2**31 - 1)
        batches = self._run(ids, types, self._logits, batch_tokens=budget, progress=progress)
        for indices, _, rows in batches:
            logits[torch.from_numpy(indices).to(logits.device)] = rows.to(wide)
        with torch.no_grad():
            scores = activation(logits)
        if not isinstance(scores, Tensor) or scores.shape[:1] != logits.shape[:1]:
            raise ValueError("activation_fn must give a tensor with a row for each pair")
        return scores.squeeze(-1) if self.num_labels == 1 and scores.ndim > 1 else scores

    def _logits(self, packed: Packed) -> Tensor:
        return self.model(packed).logits


def _pairs(inputs: object, sentences: object) -> tuple[list[tuple[str, str]], bool]:
    """The pairs, and whether the caller passed one alone."""
    if (inputs is None) == (sentences is None):
        raise TypeError("pass the pairs as inputs (or sentences, its older name)")
    given = sentences if inputs is None else inputs
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, str | bytes | dict) or not hasattr(given, "__iter__"):
        raise TypeError(f"inputs must be a pair or a list of pairs, not {type(given).__name__}")
    rows = list(given)
    single = bool(rows) and isinstance(rows[0], str)
    return [_pair(index, row) for index, row in enumerate([rows] if single else rows)], single


def _pair(index: int, row: object) -> tuple[str, str]:
    expected = "expected a pair of str"
    if not isinstance(row, list | tuple):
        raise TypeError(f"pair {index} is a {type(row).__name__}, {expected}")
    if len(row) != 2:
        raise TypeError(f"pair {index} holds {len(row)} things, {expected}")
    for place, text in zip(("first", "second"), row, strict=True):
        if not isinstance(text, str):
            raise TypeError(f"pair {index}: its {place} is a {type(text).__name__}, {expected}")
    return row[0], row[1]
