"""`BertModel`: embeddings, encoder and pooler on packed tokens, for padded and packed callers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastbert import ops
from fastbert.config import BertConfig
from fastbert.embeddings import BertEmbeddings
from fastbert.encoder import BertEncoder
from fastbert.inputs import Inputs, from_packed, from_padded
from fastbert.layers import Linear, activate
from fastbert.outputs import BertModelOutput
from fastbert.packing import Packed
from fastbert.pretrained import PreTrainedModel

Runner = Callable[[Packed], Tensor | NDArray[Any]]
"""An inference way, an `Engine` say: packed ids, types, positions in, hidden states (T, C) out."""


class BertPooler(nn.Module):
    """tanh(dense(first real token)), (T, C) → (B, C); zeros for a row without a real token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, packed: Packed) -> Tensor:
        """Pool each sequence."""
        first = ops.pool(hidden, packed.cu_seqlens, "cls")  # (B, C)
        pooled = activate(self.dense, first, "tanh")
        return pooled.masked_fill((packed.lengths == 0)[:, None], 0.0)


class BertModel(PreTrainedModel):
    """The BERT encoder with transformers' signature, computed without padding.

    Args:
        config: sizes and rates.
        add_pooling_layer: whether `pooler_output` is made.

    Attributes:
        runner: None, or an inference way that serves calls in eval mode without gradients.

    Source: Devlin et al. 2019.
    """

    checkpoint_prefix = "bert."

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.runner: Runner | None = None
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | Packed | Inputs | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BertModelOutput | tuple[Any, ...]:
        """Hidden states of every token, and one vector a sequence.

        Args:
            input_ids: (B, S) integers, or a `Packed` (then nothing else describes the tokens). A
                head passes what `inputs` made of them, and gets `last_hidden_state` packed.
            attention_mask: (B, S) of any dtype, non-zero where a token is real: left padding,
                holes and rows masked whole included. None: all are real, whatever the ids.
            token_type_ids: (B, S), zeros if None.
            position_ids: (B, S) or (S,); the column in the padded input if None.
            inputs_embeds: (B, S, C) instead of ids.
            output_attentions, output_hidden_states: also return these, layer by layer; None:
                as the config says.
            return_dict: False gives a plain tuple.

        Returns:
            Padded input: `last_hidden_state` (B, S, C) with zeros where the mask is, as wide as
            the input. Packed input: (T, C). `pooler_output` (B, C) takes the first real token.

        Raises:
            TypeError, ValueError: if an argument is not as said.
            IndexError: if an id, type or position of a real token has no embedding. On a GPU, where
                looking would stall, it comes with the next padded mask, or from
                `ops.raise_if_flagged`.
        """
        inputs = self.inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        config = self.config
        want_states = _either(output_hidden_states, config.output_hidden_states)
        want_weights = _either(output_attentions, config.output_attentions)
        states: list[Tensor] | None = [] if want_states else None
        weights: list[list[Tensor]] | None = [] if want_weights else None

        if self._hands_over(inputs, states, weights):
            hidden = self._run(inputs.packed)  # (T, C)
        else:
            hidden = self.encoder(self._embed(inputs), inputs.packed, states, weights)
        output = BertModelOutput(
            last_hidden_state=hidden if inputs is input_ids else inputs.unpack(hidden),
            pooler_output=None if self.pooler is None else self.pooler(hidden, inputs.packed),
            hidden_states=None if states is None else tuple(map(inputs.unpack, states)),
            attentions=None
            if weights is None
            else tuple(
                inputs.unpack_attention(w, config.num_attention_heads, hidden) for w in weights
            ),
        )
        return output if _either(return_dict, config.return_dict) else output.to_tuple()

    def encode(self, packed: Packed) -> Tensor:
        """Hidden states (T, C) of tensors on the model's device; no pooler, no runner."""
        hidden = self.embeddings(packed.input_ids, packed.token_type_ids, packed.position_ids)
        return self.encoder(hidden, packed)

    def inputs(self, input_ids: Tensor | Packed | Inputs | None, *rest: Tensor | None) -> Inputs:
        """The first five arguments of `forward` as packed tokens on this device, and the way back.

        Raises:
            TypeError, ValueError, IndexError: as `forward`.
        """
        if isinstance(input_ids, Inputs):
            return input_ids
        if not isinstance(input_ids, Packed):
            return from_padded(input_ids, *rest)
        if any(value is not None for value in rest):
            raise ValueError(
                "a Packed holds its own mask, types and positions: pass nothing beside it"
            )
        c = self.config
        limits = (c.vocab_size, c.type_vocab_size, c.max_position_embeddings)
        return from_packed(input_ids, self.device, limits)

    def _embed(self, inputs: Inputs) -> Tensor:
        packed = inputs.packed
        if inputs.embeds is not None:
            C = self.config.hidden_size
            if inputs.embeds.shape[1] != C or inputs.embeds.dtype != self.dtype:
                raise ValueError(
                    f"inputs_embeds must be (B, S, {C}) in {self.dtype}, found width"
                    f" {inputs.embeds.shape[1]} in {inputs.embeds.dtype}"
                )
            return self.embeddings.from_embeds(
                inputs.embeds, packed.token_type_ids, packed.position_ids
            )
        return self.embeddings(packed.input_ids, packed.token_type_ids, packed.position_ids)

    def _hands_over(self, inputs: Inputs, states: object, weights: object) -> bool:
        """Whether the inference way serves this call: no gradient, nothing from the inside."""
        plain = inputs.embeds is None and states is None and weights is None
        return (
            self.runner is not None and plain and not self.training and not torch.is_grad_enabled()
        )

    def _left_out(self, name: str) -> bool:
        return self.pooler is None and name.startswith("bert.pooler.")

    def _run(self, packed: Packed) -> Tensor:
        assert self.runner is not None  # for the type checker: `_hands_over` said so
        return torch.as_tensor(self.runner(packed)).to(self.device, self.dtype)

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embedding table, (V, C)."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding table."""
        self.embeddings.word_embeddings = value
        self.config = self.config.replace(vocab_size=value.num_embeddings)


def _either(asked: bool | None, configured: bool) -> bool:
    return configured if asked is None else asked
