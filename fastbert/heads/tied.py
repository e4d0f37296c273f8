"""A masked-LM decoder that is tied to the word embeddings, under the names of checkpoints.

There the decoder's weight and the word embeddings, and the decoder's bias and the head's, are one
tensor under two names; a file holds one of them, or both. Ours hold each once.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastbert.config import BertConfig
from fastbert.safetensors_file import StoredTensor

DECODER, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
BIAS = "cls.predictions.bias"
WORDS = "bert.embeddings.word_embeddings.weight"


def agreed(
    config: BertConfig, tensors: dict[str, StoredTensor], source: str, stacklevel: int
) -> BertConfig:
    """The config that a checkpoint's decoder obeys, and its bias under the name that we hold.

    As in transformers 5, what stands under the decoder's own names is in force: a weight that is
    not the word embeddings is loaded untied, whatever the config says.
    """
    if not config.tie_word_embeddings:
        return config
    words, decoder = tensors.get(WORDS), tensors.get(DECODER)
    if words and decoder and not np.array_equal(words.data, decoder.data):
        warnings.warn(
            f"{source}: {DECODER} is not {WORDS}, which contradicts tie_word_embeddings: the"
            " decoder becomes a layer of its own",
            stacklevel=stacklevel,
        )
        return config.replace(tie_word_embeddings=False)
    if DECODER_BIAS in tensors:
        tensors[BIAS] = tensors[DECODER_BIAS]
    return config


def untie(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
) -> None:
    """Reduce a state dict to the names that `module`, a head with a `config`, holds."""
    weight, bias = prefix + DECODER, prefix + BIAS
    config: Any = module.config
    if not config.tie_word_embeddings:
        value = state.pop(bias, None)
        if value is not None:
            state.setdefault(prefix + DECODER_BIAS, value)
        return
    value = state.pop(prefix + DECODER_BIAS, None)
    if value is not None:
        state[bias] = value
    value = state.pop(weight, None)
    if value is None:
        return
    words = state.setdefault(prefix + WORDS, value)
    if words is not value and not value.is_meta and not torch.equal(words, value):
        errors: list[str] = args[-1]  # of `load_state_dict`, which raises them
        errors.append(f"{weight} is not {prefix}{WORDS}, but tie_word_embeddings is true")
