"""BERT that marks the answer to a question within a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbert import ops
from fastbert.config import BertConfig
from fastbert.heads.base import BertHead, Ids
from fastbert.heads.losses import IGNORE, cross_entropy
from fastbert.inputs import Inputs, check_integers
from fastbert.layers import Linear
from fastbert.outputs import QuestionAnsweringModelOutput


class BertForQuestionAnswering(BertHead):
    """BERT that scores every token as an answer's start and end: qa_outputs(hidden), (T, 2).

    The loss is the mean of two cross entropies, over a text's tokens, of start and of end. Masked
    tokens have the lowest logit of the dtype, so padding takes no part in the softmax, here or in
    the caller's code (transformers lets it: its result on unpadded rows is ours on all).

    Source: Devlin et al. 2019, section 4.2.
    """

    pools = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:  # of another task; transformers would make as many outputs
            self.config = config.replace(num_labels=2)
        self.qa_outputs = Linear(config.hidden_size, 2)
        self.init_head()

    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Loss, start and end logits.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as
                `BertModel.forward` takes them; (B, 1, S) counts as (B, S).
            start_positions, end_positions: (B,) integers, columns of the padded input, or places
                within their sequence for a `Packed`. Below 0 counts as 0; beyond the width, and on
                a masked token, it is ignored. The loss needs both.
            output_attentions, output_hidden_states, return_dict: as for `BertModel.forward`.

        Returns:
            `start_logits` and `end_logits`, each (B, S), or (T,) for a `Packed`.

        Raises:
            TypeError, ValueError, IndexError: as `BertModel.forward` does, and for positions of
                another type or shape.
        """
        inputs = self._inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        ends = [
            None if value is None else _places(name, value, inputs)
            for name, value in (
                ("start_positions", start_positions),
                ("end_positions", end_positions),
            )
        ]
        encoded = self._encode(inputs, output_attentions, output_hidden_states)
        scores = self.qa_outputs(encoded.last_hidden_state)  # (T, 2)
        cells = _cells(inputs)  # (T,)
        real = _real(cells, inputs)  # (B, S)
        grids = [_grid(scores[:, place], cells, real) for place in (0, 1)]  # (B, S) each
        start, end = ends
        loss = None
        if start is not None and end is not None:
            loss = (_loss(grids[0], real, start) + _loss(grids[1], real, end)) / 2
        padded = inputs.indices is not None
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=grids[0] if padded else scores[:, 0],
            end_logits=grids[1] if padded else scores[:, 1],
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._returned(output, return_dict)


def _places(name: str, value: Tensor, inputs: Inputs) -> Tensor:
    """(B,) int64 at least 0, out of (B,) or (B, 1) integers."""
    check_integers(name, value)
    if value.numel() != inputs.batch:
        raise ValueError(f"{name} must be (B,) = ({inputs.batch},), not {tuple(value.shape)}")
    return value.to(inputs.packed.cu_seqlens.device, torch.int64).reshape(-1).clamp(min=0)


def _cells(inputs: Inputs) -> Tensor:
    """(T,) each token's place in a grid (B, S), whose rows begin with the sequence if packed."""
    if inputs.indices is not None:
        return inputs.indices
    packed = inputs.packed
    token = torch.arange(packed.input_ids.shape[0], device=packed.cu_seqlens.device)
    row = torch.searchsorted(packed.cu_seqlens[1:].long(), token, right=True)
    return row * inputs.width + token - packed.cu_seqlens[row]


def _real(cells: Tensor, inputs: Inputs) -> Tensor:
    """(B, S) bool: where a grid has a token."""
    flat = torch.zeros(inputs.batch * inputs.width, dtype=torch.bool, device=cells.device)
    return flat.index_fill(0, cells, True).view(inputs.batch, inputs.width)


def _grid(scores: Tensor, cells: Tensor, real: Tensor) -> Tensor:
    """Scores (T,) of tokens as (B, S), the dtype's lowest number where there is none."""
    B, S = real.shape
    grid = ops.unpack(scores[:, None], cells, B, S)[..., 0]
    return grid.masked_fill(~real, torch.finfo(scores.dtype).min)


def _loss(grid: Tensor, real: Tensor, places: Tensor) -> Tensor:
    """Cross entropy of (B, S) over real tokens; places beyond the width or masked are ignored."""
    S = grid.shape[1]
    if S == 0:
        return grid.sum()
    there = real.gather(1, places.clamp(max=S - 1)[:, None])[:, 0]
    return cross_entropy(grid, places.where((places < S) & there, IGNORE))
