"""A training step, fastbert's and transformers': batches, equal weights, truth, memory."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.workload import Batch, Workload, make_workload
from fastbert import BertConfig, BertForMaskedLM, BertForSequenceClassification, Packed, pack
from fastbert.cli.padded import pad
from fastbert.hub import resolve_directory

OBJECTIVES = ("mlm", "classification")
BASELINE = "transformers sdpa"
MASK, IGNORE = 103, -100
BOUND = 2e-4
"""Largest relative error of a loss or of the whole gradient, ‖g − g₆₄‖ / ‖g₆₄‖, that counts as
right in float32. Right implementations show up to 5e-6; one label lost of the batch 2e-2."""

SHAPES = {"minilm": ("MiniLM shape", 6, 384, 12), "small": ("BERT-small shape", 4, 512, 8)}
"""Title, layers L, hidden C and heads H; F is 4C."""


@dataclass(frozen=True)
class Example:
    """One batch, ready for both.

    Attributes:
        packed: for fastbert.
        padded: ids, types and mask, for transformers.
        labels: packed (T,) or a text's (B,), and the same as transformers takes them.
        tokens: real ones.
    """

    packed: Packed
    padded: dict[str, Tensor]
    labels: tuple[Tensor, Tensor]
    tokens: int


def config(shape: str) -> BertConfig:
    """Sizes of a model to train, dropout at BERT's own 0.1."""
    _, layers, C, heads = SHAPES[shape]
    return BertConfig(
        num_hidden_layers=layers,
        hidden_size=C,
        num_attention_heads=heads,
        intermediate_size=4 * C,
        num_labels=2,
    )


def workload(texts: int) -> Workload:
    """Real ids of mixed lengths, in batches in the order drawn."""
    return make_workload("mixed", resolve_directory(None), texts)


def examples(objective: str, texts: int) -> list[Example]:
    """The batches of a workload, labelled: 15 % of the tokens, or every text."""
    rng = np.random.default_rng(23)
    return [_example(objective, batch, rng) for batch in workload(texts).batches]


def _example(objective: str, batch: Batch, rng: np.random.Generator) -> Example:
    if objective == "classification":
        labels = torch.from_numpy(rng.integers(0, 2, len(batch)))
        rows, pair = batch, (labels, labels)
    else:
        rows, targets = [], []
        for ids in batch:
            row = np.array(ids)
            count = max(1, round(0.15 * (len(ids) - 2)))
            chosen = rng.choice(np.arange(1, len(ids) - 1), count, replace=False)
            label = np.full(len(ids), IGNORE)
            label[chosen] = row[chosen]
            row[chosen] = MASK
            rows.append(row.tolist())
            targets.append(torch.from_numpy(label))
        padded = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORE)
        pair = (torch.cat(targets), padded)
    ids_, mask = pad(rows, pad_id=0)
    padded_inputs = {"input_ids": ids_, "attention_mask": mask.to(torch.int64)}
    return Example(pack(rows).to("cpu"), padded_inputs, pair, sum(map(len, rows)))


def build(name: str, shape: str, objective: str) -> Any:
    """The model of a candidate, with weights that the shape and the objective decide."""
    ours = name.startswith("fastbert")
    torch.manual_seed(0)
    kind = BertForMaskedLM if objective == "mlm" else BertForSequenceClassification
    model = kind(config(shape))
    if ours:
        return model
    import transformers

    sizes = transformers.BertConfig(**config(shape).to_dict())
    sizes._attn_implementation = name.removeprefix("transformers ")
    theirs = getattr(transformers, kind.__name__)(sizes)
    state = {k: v for k, v in model._saved().items() if k in theirs.state_dict()}
    missing = theirs.load_state_dict(state, strict=False).missing_keys
    if set(missing) - {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}:
        raise RuntimeError(f"weights that did not come along: {missing}")
    theirs.tie_weights()
    return theirs


def loss_of(name: str, model: Any, example: Example) -> Tensor:
    """The loss of one batch, as that candidate takes it."""
    if name == "fastbert packed":
        return model(example.packed, labels=example.labels[0]).loss
    return model(**example.padded, labels=example.labels[1]).loss


def step_through(name: str, model: Any, batches: Sequence[Example]) -> Callable[[], None]:
    """What is timed: a pass of training steps. The rate is 0, so that every pass does the same."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def run() -> None:
        model.train()
        for example in batches:
            optimizer.zero_grad()
            loss_of(name, model, example).backward()
            optimizer.step()

    return run


def truth(shape: str, objective: str, example: Example) -> tuple[float, Tensor]:
    """Loss and gradient in float64 by transformers' eager model, text by text without padding."""
    model = build("transformers eager", shape, objective).double().eval()
    lengths = example.padded["attention_mask"].sum(dim=1).tolist()
    counted = int((example.labels[1] != IGNORE).sum())
    total = 0.0
    for row, length in enumerate(lengths):
        labels = example.labels[1][row, :length] if objective == "mlm" else example.labels[1][row]
        logits = model(input_ids=example.padded["input_ids"][row : row + 1, :length]).logits
        loss = nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum"
        )
        (loss / counted).backward()
        total += loss.item() / counted
    return total, _gradient(model)


def error(name: str, model: Any, example: Example, exact: tuple[float, Tensor]) -> float:
    """The larger of the relative errors of loss and gradient, dropout off."""
    model.eval()
    model.zero_grad()
    loss = loss_of(name, model, example)
    loss.backward()
    gradient = _gradient(model)
    model.zero_grad()
    off = float((gradient.double() - exact[1]).norm() / exact[1].norm())
    return max(off, abs(loss.item() - exact[0]) / abs(exact[0]))


def _gradient(model: Any) -> Tensor:
    """Gradients that both have under one name, in one vector: all but attention's fused ones."""
    named = sorted((n, p) for n, p in model.named_parameters() if p.grad is not None)
    parts = [p.grad.reshape(-1) for n, p in named if ".attention.self." not in n]
    fused = [(n, p.grad) for n, p in named if ".attention.self." in n]
    for kind in ("weight", "bias"):  # query, key, value come in the order of their names here
        parts += [_qkv(n, g, kind) for n, g in fused if n.endswith(kind)]
    return torch.cat(parts)


def _qkv(name: str, grad: Tensor, kind: str) -> Tensor:
    if not name.endswith(f"qkv.{kind}"):
        return grad.reshape(-1)
    query, key, value = grad.chunk(3)
    return torch.cat([key.reshape(-1), query.reshape(-1), value.reshape(-1)])


def peak_bytes(name: str, shape: str, objective: str, texts: int, threads: int) -> int:
    """Most resident memory of a process during training steps, beyond its weights and libraries.

    Gradients, optimizer states, activations and the allocator's slack count. A fresh process
    measures it, since an allocator keeps what others left.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_bytes, (name, shape, objective, texts, threads))


def _peak_bytes(name: str, shape: str, objective: str, texts: int, threads: int) -> int:
    torch.set_num_threads(threads)
    model = build(name, shape, objective).train()
    batches = examples(objective, texts)
    for example in examples(objective, 2):  # loads what the first step loads
        loss_of(name, model, example).backward()
    model.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak starts anew
    step_through(name, model, batches)()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes that the kernel notes for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def padded_tokens(texts: int) -> int:
    """Tokens that remain when each batch is filled up to its longest text."""
    return workload(texts).padded_tokens
