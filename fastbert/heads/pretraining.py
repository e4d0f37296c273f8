"""BERT's pretraining objectives: masked LM, next sentence, and both (Devlin et al. 2019, 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastbert.config import BertConfig
from fastbert.heads import tied
from fastbert.heads.base import BertHead, Ids
from fastbert.heads.losses import class_labels, cross_entropy, row_labels
from fastbert.heads.masked_lm import (
    BertOnlyMLMHead,
    BertOnlyNSPHead,
    BertPreTrainingHeads,
    labelled_rows,
)
from fastbert.inputs import Inputs
from fastbert.outputs import BertForPreTrainingOutput, MaskedLMOutput, NextSentencePredictorOutput
from fastbert.safetensors_file import StoredTensor


class _Predicts(BertHead):
    """A head with `cls.predictions`, and the names under which checkpoints keep its weights."""

    cls: BertOnlyMLMHead | BertPreTrainingHeads

    def predict(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary for rows of hidden states, (M, C) → (M, V)."""
        words = self.bert.embeddings.word_embeddings.weight
        return self.cls.predictions(hidden, words)

    def get_output_embeddings(self) -> nn.Linear:
        """The decoder as a layer: its parameters are the model's own, the word embeddings' too."""
        words = self.bert.embeddings.word_embeddings.weight
        weight, bias = self.cls.predictions.weights(words)
        with torch.device("meta"):
            decoder = nn.Linear(weight.shape[1], weight.shape[0])
        decoder.weight, decoder.bias = weight, bias
        return decoder

    def resize_token_embeddings(self, new_num_tokens: int | None = None) -> nn.Embedding:
        """As `BertModel.resize_token_embeddings`; decoder and bias follow."""
        words = super().resize_token_embeddings(new_num_tokens)
        predictions = self.cls.predictions
        if predictions.weights(words.weight)[1].shape[0] != words.num_embeddings:
            predictions.resize(words.num_embeddings, self.config.initializer_range)
        return words

    def _token_labels(self, inputs: Inputs, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        return class_labels("labels", inputs.gather("labels", labels), self.config.vocab_size)

    def _lm(
        self, inputs: Inputs, hidden: Tensor, labels: Tensor | None, logits: bool | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(T, C) and labels (T,) → loss and logits, as far as they are wanted.

        Without logits, a token that carries no label never reaches the head.
        """
        if logits is None:
            logits = labels is None or not self.training
        predictions, words = self.cls.predictions, self.bert.embeddings.word_embeddings.weight
        transformed = predictions.transform(hidden) if logits else None
        made = (
            None if transformed is None else inputs.unpack(predictions.decode(transformed, words))
        )
        if labels is None:
            return None, made
        rows, targets = labelled_rows(hidden if transformed is None else transformed, labels)
        rows = rows if logits else predictions.transform(rows)
        return predictions.loss(rows, words, targets), made

    @classmethod
    def _agreed(
        cls, config: BertConfig, tensors: dict[str, StoredTensor], source: str
    ) -> BertConfig:
        return tied.agreed(config, tensors, source, stacklevel=4)

    def _left_out(self, name: str) -> bool:
        """A tied decoder's copies of what the model holds already; see `tied_sources`."""
        both = (tied.DECODER, tied.DECODER_BIAS)
        unused = both if self.config.tie_word_embeddings else (tied.BIAS,)
        return name in unused or super()._left_out(name)

    def _saved(self) -> dict[str, Tensor]:
        tensors = super()._saved()
        if not self.config.tie_word_embeddings:  # transformers expects a copy under this name
            tensors[tied.BIAS] = tensors[tied.DECODER_BIAS].clone()
        return tensors


class BertForMaskedLM(_Predicts):
    """BERT that predicts masked tokens: decoder(LayerNorm(act(dense(hidden)))), (T, C) → (T, V).

    The loss is the mean cross entropy over labelled, attended tokens (0 if there are none). The
    head runs on those tokens only and never holds their logits whole, so in train mode with labels
    the output has no `logits` unless ``return_logits=True``; in eval mode, and without labels, it
    has.

    Source: Devlin et al. 2019, section 3.1.
    """

    pools = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertOnlyMLMHead(config)
        self.register_load_state_dict_pre_hook(tied.untie)
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
        return_logits: bool | None = None,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Loss and logits.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as
                `BertModel.forward` takes them; (B, 1, S) counts as (B, S).
            labels: (B, S), or (T,) beside a `Packed`: the token that belongs there, or -100.
            output_attentions, output_hidden_states, return_dict: as for `BertModel.forward`.
            return_logits: make them, or don't; None: not in train mode with labels.

        Returns:
            `logits` (B, S, V), zeros where the mask is, or (T, V) for a `Packed`.

        Raises:
            TypeError, ValueError, IndexError: as `BertModel.forward` does, and for labels of
                another type, shape or vocabulary.
        """
        inputs = self._inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        targets = self._token_labels(inputs, labels)
        encoded = self._encode(inputs, output_attentions, output_hidden_states)
        loss, logits = self._lm(inputs, encoded.last_hidden_state, targets, return_logits)
        output = MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)


class BertForNextSentencePrediction(BertHead):
    """BERT that tells whether the second text of a pair follows the first (0) or not (1).

    logits = seq_relationship(pooled), (B, C) → (B, 2).

    Source: Devlin et al. 2019, section 3.1.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertOnlyNSPHead(config)
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
    ) -> NextSentencePredictorOutput | tuple[Any, ...]:
        """Loss and logits (B, 2).

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as
                `BertModel.forward` takes them; (B, 1, S) counts as (B, S).
            labels: (B,) integers: 0 the second text follows, 1 it does not, -100 ignored.
            output_attentions, output_hidden_states, return_dict: as for `BertModel.forward`.

        Raises:
            TypeError, ValueError, IndexError: as `BertModel.forward` does, and for other labels.
        """
        inputs = self._inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        targets = None
        if labels is not None:
            targets = row_labels("labels", labels, inputs.batch, 2, self.device)
        encoded = self._encode(inputs, output_attentions, output_hidden_states)
        logits = self.cls.seq_relationship(encoded.pooler_output)  # (B, 2)
        output = NextSentencePredictorOutput(
            loss=None if targets is None else cross_entropy(logits, targets),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)


class BertForPreTraining(_Predicts):
    """BERT with both heads of its pretraining; the loss is the sum of the two.

    With labels of one objective alone, the loss is that one's (transformers then gives none).

    Source: Devlin et al. 2019, section 3.1 and appendix A.2.
    """

    cls: BertPreTrainingHeads

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertPreTrainingHeads(config)
        self.register_load_state_dict_pre_hook(tied.untie)
        self.init_head()

    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        return_logits: bool | None = None,
    ) -> BertForPreTrainingOutput | tuple[Any, ...]:
        """Loss and logits of both objectives.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as
                `BertModel.forward` takes them; (B, 1, S) counts as (B, S).
            labels: of the masked LM, see `BertForMaskedLM`.
            next_sentence_label: (B,), see `BertForNextSentencePrediction`.
            output_attentions, output_hidden_states, return_dict: as for `BertModel.forward`.
            return_logits: of the masked LM, see `BertForMaskedLM`.

        Returns:
            `prediction_logits` (B, S, V) or (T, V), `seq_relationship_logits` (B, 2).

        Raises:
            TypeError, ValueError, IndexError: as the two heads do.
        """
        inputs = self._inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        targets = self._token_labels(inputs, labels)
        follows = None
        if next_sentence_label is not None:
            name = "next_sentence_label"
            follows = row_labels(name, next_sentence_label, inputs.batch, 2, self.device)
        encoded = self._encode(inputs, output_attentions, output_hidden_states)
        lm_loss, logits = self._lm(inputs, encoded.last_hidden_state, targets, return_logits)
        relationship = self.cls.seq_relationship(encoded.pooler_output)  # (B, 2)
        follow_loss = None if follows is None else cross_entropy(relationship, follows)
        given = [loss for loss in (lm_loss, follow_loss) if loss is not None]
        output = BertForPreTrainingOutput(
            loss=torch.stack(given).sum() if given else None,
            prediction_logits=logits,
            seq_relationship_logits=relationship,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)
