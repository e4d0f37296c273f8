"""A linear layer on BERT: a class a text, a class a token, the best of several choices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbert.config import BertConfig
from fastbert.heads import losses
from fastbert.heads.base import BertHead, Ids, classifier_dropout
from fastbert.inputs import Inputs
from fastbert.layers import Linear
from fastbert.outputs import (
    MultipleChoiceModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from fastbert.packing import Packed

_ALIKE = (
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMultipleChoice",
)


class BertForSequenceClassification(BertHead):
    """BERT that classifies or rates a text: logits = classifier(dropout(pooled)), (B, num_labels).

    The loss follows `config.problem_type`: squared error (``regression``), cross entropy
    (``single_label_classification``), binary cross entropy (``multi_label_classification``). Where
    the config names none, the first labels decide, as in transformers: regression if there is one
    label, else single label for integers and multi label for other numbers; the config then says
    so. A loss over classes ignores -100, and is 0 where every label is.

    Source: Devlin et al. 2019, section 4.1.
    """

    alike = _ALIKE

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dropout = classifier_dropout(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self.init_head()

    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Loss and logits.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as
                `BertModel.forward` takes them; (B, 1, S) counts as (B, S).
            labels: single label: (B,) integers. Regression: (B, num_labels), or (B,) for one
                label, of any number type. Multi label: (B, num_labels) numbers in 0..1.
            output_attentions, output_hidden_states, return_dict: as for `BertModel.forward`.

        Returns:
            `logits` (B, num_labels). A row masked whole gets the classifier's bias.

        Raises:
            TypeError, ValueError, IndexError: as `BertModel.forward` does, and for labels of
                another type, shape or class.
        """
        inputs = self._inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        targets = None if labels is None else self._targets(labels, inputs.batch)
        encoded = self._encode(inputs, output_attentions, output_hidden_states)
        logits = self.classifier(self.dropout(encoded.pooler_output))  # (B, num_labels)
        output = SequenceClassifierOutput(
            loss=None if targets is None else self._loss(logits, targets),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)

    def _targets(self, labels: Tensor, B: int) -> tuple[str, Tensor]:
        """The problem's type and its labels, checked."""
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a tensor, not {type(labels).__name__}")
        N, problem = self.num_labels, self.config.problem_type
        if problem is None:
            whole = not labels.is_floating_point() and labels.dtype != torch.bool
            classes = "single_label_classification" if whole else "multi_label_classification"
            problem = "regression" if N == 1 else classes
        targets = self._checked(problem, labels, B)
        if self.config.problem_type is None and not torch.compiler.is_compiling():
            self.config = self.config.replace(problem_type=problem)
        return problem, targets

    def _checked(self, problem: str, labels: Tensor, B: int) -> Tensor:
        """(B,) classes, or (B, num_labels) targets."""
        N = self.num_labels
        if problem == "single_label_classification":
            return losses.row_labels("labels", labels, B, N, self.device)
        one = problem == "regression" and N == 1 and labels.numel() == B
        if labels.shape != (B, N) and not one:
            raise ValueError(
                f"labels must be (B, num_labels) = ({B}, {N}) for {problem.replace('_', ' ')}, not"
                f" {tuple(labels.shape)}"
            )
        targets = labels.reshape(B, N)
        return targets if problem == "regression" else losses.shares("labels", targets)

    def _loss(self, logits: Tensor, targets: tuple[str, Tensor]) -> Tensor:
        problem, labels = targets
        if problem == "regression":
            return losses.squared_error(logits, labels)
        if problem == "multi_label_classification":
            return losses.binary_cross_entropy(logits, labels)
        return losses.cross_entropy(logits, labels)


class BertForTokenClassification(BertHead):
    """BERT that classifies every token: logits = classifier(dropout(hidden)), (T, num_labels).

    The loss is the mean cross entropy over labelled, attended tokens; 0 if there are none.

    Source: Devlin et al. 2019, section 5.3.
    """

    alike = _ALIKE
    pools = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dropout = classifier_dropout(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self.init_head()

    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Loss and logits.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as
                `BertModel.forward` takes them; (B, 1, S) counts as (B, S).
            labels: (B, S), or (T,) beside a `Packed`: the token's class, or -100.
            output_attentions, output_hidden_states, return_dict: as for `BertModel.forward`.

        Returns:
            `logits` (B, S, num_labels), zeros where the mask is, or (T, num_labels).

        Raises:
            TypeError, ValueError, IndexError: as `BertModel.forward` does, and for labels of
                another type, shape or class.
        """
        inputs = self._inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        targets = None
        if labels is not None:
            targets = inputs.gather("labels", labels)
            targets = losses.class_labels("labels", targets, self.num_labels)
        encoded = self._encode(inputs, output_attentions, output_hidden_states)
        logits = self.classifier(self.dropout(encoded.last_hidden_state))  # (T, num_labels)
        output = TokenClassifierOutput(
            loss=None if targets is None else losses.cross_entropy(logits, targets),
            logits=inputs.unpack(logits),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)


class BertForMultipleChoice(BertHead):
    """BERT that picks one of N choices: a score a choice, classifier(dropout(pooled)), (B, N).

    The loss is the cross entropy of the softmax over a question's choices; -100 is ignored.

    Source: Devlin et al. 2019, section 4.4.
    """

    alike = _ALIKE

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.dropout = classifier_dropout(config)
        self.classifier = Linear(config.hidden_size, 1)
        self.init_head()

    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        num_choices: int | None = None,
    ) -> MultipleChoiceModelOutput | tuple[Any, ...]:
        """Loss and logits (B, N).

        Args:
            input_ids: (B, N, S), or a `Packed` of B·N sequences, a question's choices together.
            attention_mask, token_type_ids, position_ids: (B, N, S).
            inputs_embeds: (B, N, S, C) instead of ids.
            labels: (B,) integers, the right choice, or -100.
            output_attentions, output_hidden_states, return_dict: as for `BertModel.forward`;
                states and attentions have B·N rows.
            num_choices: N, for a `Packed`; padded input says it itself.

        Raises:
            TypeError, ValueError, IndexError: as `BertModel.forward` does, for ids that are not
                3-D, for a `Packed` without `num_choices`, and for other labels.
        """
        inputs, N = self._choices(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, num_choices
        )
        B = inputs.batch // N
        targets = None
        if labels is not None:
            targets = losses.row_labels("labels", labels, B, N, self.device)
        encoded = self._encode(inputs, output_attentions, output_hidden_states)
        scores = self.classifier(self.dropout(encoded.pooler_output))  # (B·N, 1)
        logits = scores.view(B, N)
        output = MultipleChoiceModelOutput(
            loss=None if targets is None else losses.cross_entropy(logits, targets),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)

    def _choices(
        self,
        input_ids: Ids,
        mask: Tensor | None,
        types: Tensor | None,
        positions: Tensor | None,
        embeds: Tensor | None,
        num_choices: int | None,
    ) -> tuple[Inputs, int]:
        """The B·N sequences as one batch, and N."""
        if isinstance(input_ids, Packed):
            inputs = self.bert.inputs(input_ids, mask, types, positions, embeds)
            N = num_choices if isinstance(num_choices, int) else 0
            if N < 1 or inputs.batch % N:
                raise ValueError(
                    f"num_choices is {num_choices}, but a Packed of {inputs.batch} sequences needs"
                    " to know how many choices a question has: a divisor of that number"
                )
            return inputs, N
        given, name, dims = (
            (input_ids, "input_ids", 3) if embeds is None else (embeds, "inputs_embeds", 4)
        )
        if isinstance(given, Tensor) and given.dim() != dims:
            shape = "(B, N, S)" if dims == 3 else "(B, N, S, C)"
            raise ValueError(f"{name} must be {shape} for N choices, not {tuple(given.shape)}")
        N = given.shape[1] if isinstance(given, Tensor) else 1
        if num_choices not in (None, N) or N < 1:
            raise ValueError(f"{name} holds {N} choices a question, num_choices is {num_choices}")
        ids = flat("input_ids", input_ids, N)
        rest = (
            flat("attention_mask", mask, N),
            flat("token_type_ids", types, N),
            flat("position_ids", positions, N),
        )
        rows = embeds.flatten(0, 1) if isinstance(embeds, Tensor) else embeds
        return self.bert.inputs(ids, *rest, rows), N


def flat(name: str, values: Tensor | None, N: int) -> Tensor | None:
    """(B, N, S) → (B·N, S); anything but a tensor as it is."""
    if not isinstance(values, Tensor):
        return values
    if values.dim() != 3 or values.shape[1] != N:
        raise ValueError(f"{name} must be (B, N, S) with N = {N}, not {tuple(values.shape)}")
    return values.flatten(0, 1)
