"""A small cross-encoder with random weights, and sentence-transformers' beside it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder as Peer

from fastbert import BertConfig, BertTokenizer
from fastbert.heads import BertForSequenceClassification

TEXT = "how do i un ##do a com ##mit the cat sat on mat late de ##live ##ry é 日 本 . ?"
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LIMIT = 40  # positions


def make(folder: Path, num_labels: int = 1, seed: int = 0, **extra: Any) -> Path:
    """A classifier with random weights, large enough that no two pairs score alike."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=LIMIT,
        num_labels=num_labels,
        extra=extra,
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
        model.classifier.weight /= num_labels
    model.save_pretrained(folder)
    BertTokenizer([*SPECIAL, *WORDS]).save_pretrained(folder)
    return folder


def some_pairs(count: int = 40, seed: int = 1) -> list[tuple[str, str]]:
    """Pairs of 0 to 60 words a side: empty, short, and longer than the model on either side."""
    draw = random.Random(seed)
    words = [word.removeprefix("##") for word in WORDS]
    sides = [
        " ".join(draw.choices(words, k=draw.choice([0, 1, 3, 9, 60]))) for _ in range(2 * count)
    ]
    return list(zip(sides[::2], sides[1::2], strict=True))


def peer(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return Peer(str(folder), device="cpu", model_kwargs={"dtype": dtype}, **options)
