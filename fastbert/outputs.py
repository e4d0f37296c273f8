"""What models return: read by attribute, by key, or unpacked like a tuple."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass(eq=False)  # tensors have no one truth: an output equals itself alone
class ModelOutput:
    """Base of all outputs. A field that is None has no key and no place in the tuple."""

    def keys(self) -> tuple[str, ...]:
        """Names of the fields that hold something, in order."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def values(self) -> tuple[Any, ...]:
        """The fields that hold something, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Pairs of name and value."""
        return tuple((name, getattr(self, name)) for name in self.keys())

    def to_tuple(self) -> tuple[Any, ...]:
        """The values as a plain tuple, what ``return_dict=False`` gives."""
        return self.values()

    def get(self, key: str, default: Any = None) -> Any:
        """The value under `key`, or `default` where it is absent."""
        return getattr(self, key) if key in self.keys() else default

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.values()[key]
        if key not in self.keys():
            raise KeyError(f"{key!r}; this output holds {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass(eq=False)
class BertModelOutput(ModelOutput):
    """What `BertModel` returns.

    Attributes:
        last_hidden_state: (B, S, C), zeros where the mask is; (T, C) for a `Packed`.
        pooler_output: (B, C), None without a pooler.
        hidden_states: L + 1 tensors like `last_hidden_state`, the embeddings first.
        attentions: L tensors (B, H, S, S), the softmax before dropout, zeros where the mask is.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class MaskedLMOutput(ModelOutput):
    """What `BertForMaskedLM` returns.

    Attributes:
        loss: mean over labelled tokens, None without labels.
        logits: (B, S, V), zeros where the mask is; (T, V) for a `Packed`; None where they were not
            made.
        hidden_states, attentions: as in `BertModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class BertForPreTrainingOutput(ModelOutput):
    """What `BertForPreTraining` returns.

    Attributes:
        loss: sum of the objectives whose labels were given.
        prediction_logits: as `MaskedLMOutput.logits`.
        seq_relationship_logits: (B, 2): the second text follows, or does not.
        hidden_states, attentions: as in `BertModelOutput`.
    """

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class NextSentencePredictorOutput(ModelOutput):
    """What `BertForNextSentencePrediction` returns: `logits` (B, 2), follows or does not."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class SequenceClassifierOutput(ModelOutput):
    """What `BertForSequenceClassification` returns: `logits` (B, num_labels)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class TokenClassifierOutput(ModelOutput):
    """What `BertForTokenClassification` returns.

    Attributes:
        loss: mean over labelled tokens, None without labels.
        logits: (B, S, num_labels), zeros where the mask is; (T, num_labels) for a `Packed`.
        hidden_states, attentions: as in `BertModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class MultipleChoiceModelOutput(ModelOutput):
    """What `BertForMultipleChoice` returns: `logits` (B, N), a score a choice."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """What `BertForQuestionAnswering` returns.

    Attributes:
        loss: mean of the two losses, None without both positions.
        start_logits, end_logits: (B, S), the dtype's lowest number where the mask is; (T,) for a
            `Packed`.
        hidden_states, attentions: as in `BertModelOutput`.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
