"""Our heads beside transformers', with the same random weights, and the truth on padded batches.

The truth of a padded batch is transformers on its unpadded rows, one by one: nothing is masked
there, so its own results on padding don't matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from bert_pair import SIZES
from torch import Tensor

from fastbert import heads
from fastbert.checkpoint import qkv_parts
from fastbert.config import BertConfig
from fastbert.packing import pack

NAMES = tuple(heads.__all__)
PREDICTING = ("BertForMaskedLM", "BertForPreTraining")
TOKEN_LABELS = ("BertForMaskedLM", "BertForTokenClassification", "BertForPreTraining")
V, S, N = 60, 9, 3
TINY = {**SIZES, "num_hidden_layers": 2, "vocab_size": V}


def head_pair(name: str, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """(ours, transformers' with eager attention) in float64 and eval mode, all weights random."""
    import transformers

    labels = {} if "id2label" in changes else {"num_labels": 2 if "Question" in name else N}
    sizes = {**TINY, **labels, **changes}
    torch.manual_seed(seed)
    config = transformers.BertConfig(**sizes, attn_implementation="eager")
    theirs = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if parameter_name.endswith("LayerNorm.weight") else 0.0, 0.1)
    ours = getattr(heads, name)(BertConfig(**sizes))
    report = ours.load_state_dict(theirs.state_dict())
    assert not report.missing_keys
    assert not report.unexpected_keys
    return ours.double().eval(), theirs.double().eval()


def fresh(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """The pair without gradients, in eval mode."""
    for model in pair:
        model.zero_grad(set_to_none=True)
        model.eval()
    return pair


@dataclass
class Batch:
    """A padded batch of any head: ids, mask and types (B, S), and the labels as keywords.

    For multiple choice these have B·N rows; `inputs` shapes them.
    """

    name: str
    ids: Tensor
    mask: Tensor
    types: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)

    @property
    def choices(self) -> bool:
        return self.name == "BertForMultipleChoice"

    def inputs(self) -> dict[str, Tensor]:
        """Keywords of a padded call, without labels."""
        values = {"input_ids": self.ids, "attention_mask": self.mask, "token_type_ids": self.types}
        if self.choices:
            values = {key: value.view(-1, N, self.ids.shape[1]) for key, value in values.items()}
        return values

    def packed(self) -> dict[str, Any]:
        """Keywords of the same call packed, positions the padded columns, labels packed."""
        real = self.mask != 0
        columns = torch.arange(self.ids.shape[1]).expand_as(self.ids)
        rows = [row[keep].tolist() for row, keep in zip(self.ids, real, strict=True)]
        batch = replace(
            pack(rows),
            token_type_ids=self.types[real].numpy().astype("int32"),
            position_ids=columns[real].numpy().astype("int32"),
        )
        labels = dict(self.labels)
        if self.name in TOKEN_LABELS and "labels" in labels:
            labels["labels"] = labels["labels"][real]
        for key in ("start_positions", "end_positions"):
            if key in labels:
                labels[key] = torch.tensor(self.answer_places(labels[key]))
        more = {"num_choices": N} if self.choices else {}
        return {"input_ids": batch, **labels, **more}

    def answer_places(self, columns: Tensor) -> list[int]:
        """Where the columns lie within their unpadded rows; far beyond it if they don't count."""
        places = []
        for column, real in zip(columns.clamp(min=0).tolist(), self.mask != 0, strict=True):
            there = column < len(real) and bool(real[column])
            places.append(int(real[:column].sum()) if there else 10**6)
        return places


MASKS = {
    "full": [[1] * S] * 3,
    "right": [[1] * 5 + [0] * 4, [1] * S, [1] + [0] * 8],
    "left": [[0] * 4 + [1] * 5, [1] * S, [0] * 8 + [1]],
    "holes": [[1, 0, 1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 0, 1, 0, 1, 0, 0], [1] * 4 + [0] + [1] * 4],
    "whole": [[1] * 6 + [0] * 3, [0] * S, [0, 1, 1, 1, 0, 1, 0, 0, 0]],
    "column": [[1, 1, 0, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0], [1] * 2 + [0] + [1] * 6],
    "nothing": [[0] * S] * 3,
}


def make_batch(name: str, mask: str | Tensor = "full", seed: int = 0) -> Batch:
    """A batch of three rows, or three times `N` choices, with labels, also on padding."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.tensor(MASKS[mask]) if isinstance(mask, str) else mask
    if name == "BertForMultipleChoice":
        rows = rows.repeat_interleave(N, 0)
        if mask != "full":  # the choices of a question differ in length
            rows = rows * (torch.rand(rows.shape, generator=g) < 0.8)
    ids = torch.randint(1, V, rows.shape, generator=g)
    types = torch.randint(0, 2, rows.shape, generator=g)
    B = len(rows) // N if name == "BertForMultipleChoice" else len(rows)
    classes = V if name in ("BertForMaskedLM", "BertForPreTraining") else N
    tokens = torch.randint(0, classes, rows.shape, generator=g)
    tokens[torch.rand(rows.shape, generator=g) < 0.5] = -100
    labels = {
        "BertForNextSentencePrediction": {"labels": torch.randint(0, 2, (B,), generator=g)},
        "BertForPreTraining": {
            "labels": tokens,
            "next_sentence_label": torch.randint(0, 2, (B,), generator=g),
        },
        "BertForQuestionAnswering": {
            "start_positions": torch.randint(0, rows.shape[1], (B,), generator=g),
            "end_positions": torch.randint(0, rows.shape[1], (B,), generator=g),
        },
        "BertForMaskedLM": {"labels": tokens},
        "BertForTokenClassification": {"labels": tokens},
    }.get(name, {"labels": torch.randint(0, N, (B,), generator=g)})
    return Batch(name, ids, rows, types, labels)


def rows_of(theirs: Any, batch: Batch) -> dict[str, list[Tensor]]:
    """transformers' outputs of every row without its padding; {name: a tensor a row}."""
    found: dict[str, list[Tensor]] = {}
    for ids, mask, types in zip(batch.ids, batch.mask, batch.types, strict=True):
        real = mask != 0
        if real.any():
            given = {
                "input_ids": ids[real][None],
                "token_type_ids": types[real][None],
                "position_ids": real.nonzero().T,
            }
            if batch.choices:
                given = {key: value[None] for key, value in given.items()}
            row = {key: value[0] for key, value in theirs(**given).items()}
        else:
            row = _empty_row(theirs, batch.name)
        for key, value in row.items():
            found.setdefault(key, []).append(value)
    return found


def _empty_row(theirs: Any, name: str) -> dict[str, Tensor]:
    """What a row without a token gives: the head of a pooled vector of zeros, no token logits."""
    zeros = torch.zeros(TINY["hidden_size"], dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.float64)
    if name == "BertForQuestionAnswering":
        return {"start_logits": none, "end_logits": none}
    if name == "BertForTokenClassification":
        return {"logits": none.view(0, N)}
    if name == "BertForMaskedLM":
        return {"logits": none.view(0, V)}
    if name == "BertForPreTraining":
        relation = theirs.cls.seq_relationship(zeros)
        return {"prediction_logits": none.view(0, V), "seq_relationship_logits": relation}
    layer = theirs.cls.seq_relationship if "Next" in name else theirs.classifier
    return {"logits": layer(zeros)}


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Plain: mean over labels that are not -100; 0 where there is none."""
    counted = labels != -100
    if not counted.any():
        return logits.sum() * 0
    picked = logits[counted].log_softmax(-1)
    return -picked[torch.arange(len(picked)), labels[counted].long()].mean()


def true_loss(batch: Batch, rows: dict[str, list[Tensor]]) -> Tensor:
    """The loss of the batch's labels, from the outputs of its unpadded rows."""
    labels, real = batch.labels, batch.mask != 0
    if batch.name == "BertForQuestionAnswering":
        halves = []
        for key in ("start", "end"):
            places = batch.answer_places(labels[f"{key}_positions"])
            pairs = zip(rows[f"{key}_logits"], places, strict=True)
            terms = [-row.log_softmax(0)[place] for row, place in pairs if place < 10**6]
            zero = torch.zeros((), dtype=torch.float64)
            halves.append(torch.stack(terms).mean() if terms else zero)
        return (halves[0] + halves[1]) / 2
    if batch.name == "BertForPreTraining":
        words = torch.cat(rows["prediction_logits"])
        relation = torch.stack(rows["seq_relationship_logits"])
        lm = mean_cross_entropy(words, labels["labels"][real])
        return lm + mean_cross_entropy(relation, labels["next_sentence_label"])
    if batch.name in TOKEN_LABELS:
        return mean_cross_entropy(torch.cat(rows["logits"]), labels["labels"][real])
    logits = torch.stack(rows["logits"])
    if batch.choices:
        logits = logits.view(-1, N)
    return mean_cross_entropy(logits, labels["labels"])


def assert_same_gradients(ours: Any, theirs: Any, atol: float = 1e-10) -> None:
    """Every parameter's gradient, fused ones against their parts; none counts as zeros."""
    seen: set[int] = set()
    for name, parameter in ours.named_parameters():
        names = qkv_parts(name) or (name,)
        parts = [theirs.get_parameter(part) for part in names]
        seen.update(map(id, parts))
        expected = torch.cat([_gradient(part) for part in parts])
        actual = _gradient(parameter)
        assert actual.isfinite().all(), name
        torch.testing.assert_close(
            actual, expected, rtol=0.0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
    rest = [n for n, p in theirs.named_parameters() if id(p) not in seen]
    assert all(not _gradient(theirs.get_parameter(name)).any() for name in rest), rest


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def assert_no_gradient(model: Any) -> None:
    """Every gradient is there or None, zero, and finite."""
    for name, parameter in model.named_parameters():
        gradient = _gradient(parameter)
        assert gradient.isfinite().all(), name
        assert not gradient.any(), name


def plain_formula(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """The classifier's three losses, written out."""
    labels = labels.double().reshape(logits.shape) if kind != "single" else labels
    if kind == "regression":
        return ((logits - labels) ** 2).mean()
    if kind == "multi":
        return -(labels * F.logsigmoid(logits) + (1 - labels) * F.logsigmoid(-logits)).mean()
    return mean_cross_entropy(logits, labels.reshape(-1))
