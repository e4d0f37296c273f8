"""The masked-LM head's modules: transform and decoder, on the rows that are asked for alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastbert import ops
from fastbert.config import BertConfig
from fastbert.heads.losses import IGNORE, mean_of_counted
from fastbert.layers import Linear, ResidualLayerNorm, activate, init_parameter


class BertPredictionHeadTransform(nn.Module):
    """LayerNorm(activation(dense(hidden))), (M, C) → (M, C)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = ResidualLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = config.activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform each row."""
        return self.LayerNorm(activate(self.dense, hidden, self.activation))


class BertLMPredictionHead(nn.Module):
    """Scores of every entry of the vocabulary: transform(hidden) · tableᵀ + bias.

    Where the config ties the word embeddings, the table is theirs and stands in no state dict
    twice; only `bias` (V,) is this module's. Otherwise `decoder` is a layer of its own.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        tied = config.tie_word_embeddings
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if tied else None
        self.decoder = None if tied else Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """(M, C) and the word embeddings (V, C) → logits (M, V)."""
        return self.decode(self.transform(hidden), words)

    def decode(self, transformed: Tensor, words: Tensor) -> Tensor:
        """Logits (M, V) of rows (M, C) that `transform` made."""
        return ops.linear(transformed, *self.weights(words))

    def loss(self, transformed: Tensor, words: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of such rows under labels (M,), their logits never whole."""
        weight, bias = self.weights(words)
        losses = ops.linear_cross_entropy(transformed, weight, bias, labels, IGNORE)
        return mean_of_counted(losses, labels)

    def weights(self, words: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
        """The table (V, C) and the bias (V,) in force."""
        weight: Any = words if self.decoder is None else self.decoder.weight
        bias: Any = self.bias if self.decoder is None else self.decoder.bias
        return weight, bias

    def resize(self, V: int, std: float) -> None:
        """Grow or shrink to V entries; new ones start with bias 0 and weights of N(0, std²)."""
        if self.decoder is None:
            assert self.bias is not None  # for the type checker
            self.bias = _resized(self.bias, torch.zeros(V))
            return
        fresh = nn.Linear(self.decoder.in_features, V)
        for name in ("weight", "bias"):
            init_parameter(fresh, name, std)
        self.decoder.weight = _resized(self.decoder.weight, fresh.weight)
        self.decoder.bias = _resized(self.decoder.bias, fresh.bias)
        self.decoder.out_features = V


class BertOnlyMLMHead(nn.Module):
    """`cls` of a `BertForMaskedLM`."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)


class BertOnlyNSPHead(nn.Module):
    """`cls` of a `BertForNextSentencePrediction`."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.seq_relationship = Linear(config.hidden_size, 2)


class BertPreTrainingHeads(nn.Module):
    """`cls` of a `BertForPreTraining`."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)
        self.seq_relationship = Linear(config.hidden_size, 2)


def labelled_rows(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of (T, C) that carry a label, (M, C), and their labels (M,).

    M is read from the device once, as a padded mask's T is; `ops.pack` does it so that a compiled
    graph holds.
    """
    _, _, rows, _ = ops.pack((labels != IGNORE)[None])
    return hidden[rows], labels[rows]


def _resized(old: Tensor, fresh: Tensor) -> nn.Parameter:
    new = fresh.detach().to(old.device, old.dtype)
    kept = min(len(old), len(new))
    with torch.no_grad():
        new[:kept] = old[:kept]
    return nn.Parameter(new, requires_grad=old.requires_grad)
