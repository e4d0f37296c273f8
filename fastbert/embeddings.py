"""BERT's input layer: word, position and type embeddings, summed and normalised."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from fastbert import ops
from fastbert.config import BertConfig
from fastbert.layers import ResidualLayerNorm


class BertEmbeddings(nn.Module):
    """From ids (T,) to hidden states (T, C); parameters are named as in BERT's checkpoints.

    Source: Devlin et al. 2019, section 3, figure 2.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, C, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, C)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, C)
        self.LayerNorm = ResidualLayerNorm(C, eps=config.layer_norm_eps)
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, ids: Tensor, types: Tensor, positions: Tensor) -> Tensor:
        """dropout(LayerNorm(word + type + position)), all (T,) → (T, C)."""
        norm, word = self.LayerNorm, self.word_embeddings
        hidden = ops.embed_layer_norm(
            ids,
            types,
            positions,
            word.weight,
            self.position_embeddings.weight,
            self.token_type_embeddings.weight,
            norm.weight,
            norm.bias,
            norm.eps,
            -1 if word.padding_idx is None else word.padding_idx,
        )
        return dropout(hidden, self.dropout_p, self.training)

    def from_embeds(self, embeds: Tensor, types: Tensor, positions: Tensor) -> Tensor:
        """The same where the caller brings word embeddings, (T, C)."""
        norm, type_table = self.LayerNorm, self.token_type_embeddings.weight
        hidden = ops.embed_layer_norm(
            torch.arange(embeds.shape[0], device=embeds.device),  # row t of embeds is token t's
            types,
            positions,
            embeds.to(torch.promote_types(embeds.dtype, type_table.dtype)),
            self.position_embeddings.weight,
            type_table,
            norm.weight,
            norm.bias,
            norm.eps,
        )
        return dropout(hidden, self.dropout_p, self.training)
