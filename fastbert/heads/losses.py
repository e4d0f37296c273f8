"""Losses of the heads, and the labels they take.

A loss is the mean over what counts: labels other than `IGNORE`. Where nothing counts it is 0 with
zero gradients, so that a batch without labels does not stop a training run (torch and transformers
give NaN). Softmax and sums are made in float32, or in float64 where the logits are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.inputs import check_integers
from fastbert.ops import flags
from fastbert.reference import statistics_dtype

IGNORE = -100
"""The label that counts for nothing, in every loss over classes."""


def row_labels(name: str, labels: Tensor, rows: int, classes: int, device: torch.device) -> Tensor:
    """One class a row as (B,) int64 on `device`; (B, 1) is accepted, as in transformers.

    Args:
        name: for messages.
        labels: integers in 0..classes - 1, or `IGNORE`.
        rows: B.
        classes: how many there are.
        device: of the logits.

    Raises:
        TypeError: if it is no tensor of integers.
        ValueError: if it does not hold one label a row.
        IndexError: if a label is no class (on a CPU; elsewhere `class_labels` says what happens).
    """
    check_integers(name, labels)
    if labels.numel() != rows:
        raise ValueError(f"{name} must be (B,) = ({rows},), not {tuple(labels.shape)}")
    return class_labels(name, labels.to(device, torch.int64).reshape(rows), classes)


def class_labels(name: str, labels: Tensor, classes: int) -> Tensor:
    """The labels, if each is a class or `IGNORE`.

    On a GPU, where looking would stall and a bad label would trip an assert that poisons the whole
    context, bad labels are ignored and counted; `ops.raise_if_flagged` reports them.

    Raises:
        IndexError: if a label on a CPU is neither.
    """
    good = (labels >= 0) & (labels < classes) | (labels == IGNORE)
    if torch.compiler.is_compiling():
        return labels.where(good, IGNORE) if labels.device.type != "cpu" else labels
    if labels.device.type != "cpu":
        flags.count(name, ~good, classes)
        return labels.where(good, IGNORE)
    if not bool(good.all()):
        bad = int(labels[~good][0])
        raise IndexError(
            f"{name} hold {bad}; this head has {classes} classes, 0..{classes - 1}, and"
            f" {IGNORE} is ignored"
        )
    return labels


def shares(name: str, labels: Tensor) -> Tensor:
    """The targets of several labels, if each lies in 0..1; checked as `class_labels` does.

    Raises:
        IndexError: if one on a CPU does not (on a GPU it is counted, and computed with).
    """
    if torch.compiler.is_compiling():
        return labels
    good = (labels >= 0) & (labels <= 1)  # a NaN is neither
    if labels.device.type != "cpu":
        flags.count(name, ~good, 2)
    elif not bool(good.all()):
        bad = labels[~good][0].item()
        raise IndexError(f"{name} hold {bad:g}; of several labels, each target lies in 0..1")
    return labels


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over counted rows of logsumexp(logits[m]) - logits[m, labels[m]].

    Args:
        logits: (M, N).
        labels: (M,) int64, classes or `IGNORE`.
    """
    wide = logits.to(statistics_dtype(logits.dtype))
    total = F.cross_entropy(wide, labels, ignore_index=IGNORE, reduction="sum")
    return mean_of_counted(total, labels)


def mean_of_counted(losses: Tensor, labels: Tensor) -> Tensor:
    """Mean of losses, (M,) or summed (), over labels (M,) that count; those of others must be 0."""
    return losses.sum() / (labels != IGNORE).sum().clamp(min=1)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over rows and labels of the binary cross entropy; `labels` (B, N) in 0..1."""
    wide = logits.to(statistics_dtype(logits.dtype))
    targets = labels.to(wide.device, wide.dtype)
    total = F.binary_cross_entropy_with_logits(wide, targets, reduction="sum")
    return total / max(logits.numel(), 1)


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """Mean of (values - targets)²; `targets` of any number type, shaped like `values`."""
    wide = values.to(statistics_dtype(values.dtype))
    total = F.mse_loss(wide, targets.to(wide.device, wide.dtype), reduction="sum")
    return total / max(values.numel(), 1)
