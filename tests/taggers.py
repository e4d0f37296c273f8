"""Token classifiers for tests: one that reads a token's label off its id, and a random one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizer_texts import SPECIAL

from fastbert.config import BertConfig
from fastbert.heads import BertForTokenClassification
from fastbert.tasks.token_classification import TokenClassification
from fastbert.tokenizer import BertTokenizer

BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ARGM-TMP", "I-ARGM-TMP", "MISC")
NAMES = {
    "ann": "B-PER",
    "lee": "I-PER",
    "new": "B-LOC",
    "york": "I-LOC",
    "##ing": "I-LOC",
    "##er": "O",
    "was": "O",
    "in": "O",
}


def make_model(labels: Sequence[str], vocabulary: int, positions: int) -> Any:
    """An untrained model with as few numbers as those labels allow."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=positions,
        id2label=dict(enumerate(labels)),
    )
    return BertForTokenClassification(config).eval()


def random_model(
    labels: Sequence[str] = BIO, vocabulary: int = 30522, positions: int = 512, seed: int = 0
) -> Any:
    """Every parameter random, and labels that depend on the token, its place and its neighbours."""
    model = make_model(labels, vocabulary, positions)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = name.endswith("LayerNorm.weight")
            parameter.normal_(1.0 if norm else 0.0, 1.0 if "word_embeddings" in name else 0.2)
    return model


def table(
    entries: Mapping[str, str], labels: Sequence[str] = BIO, positions: int = 512, **settings: Any
) -> tuple[Any, BertTokenizer]:
    """A model that gives each token the label of `entries`, whatever stands around it; [UNK]'s too.

    Probabilities differ from token to token: a spare number beside the label's takes from it.
    """
    tokens = [*SPECIAL, *(token for token in entries if token not in SPECIAL)]
    tokenizer = BertTokenizer(tokens, **settings)
    model = make_model(labels, len(tokens), positions)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
        words = model.bert.embeddings.word_embeddings.weight  # (V, C)
        for number, token in enumerate(tokens):
            words[number, labels.index(entries.get(token, labels[0]))] = 1.0
            words[number, 31] = number / len(tokens)
        model.classifier.weight[:, : len(labels)] = torch.eye(len(labels))
    return model, tokenizer


def beside_pipeline(path: Path, tokenizer_dir: Path) -> tuple[TokenClassification, Any]:
    """Our task and transformers' pipeline, with the same random weights.

    Args:
        path: an empty directory.
        tokenizer_dir: whose tokenizer both have.
    """
    import transformers

    model = random_model()
    model.save_pretrained(path)
    theirs = transformers.BertForTokenClassification.from_pretrained(path)
    words = transformers.BertTokenizerFast.from_pretrained(tokenizer_dir)
    pipeline = transformers.pipeline("token-classification", theirs, tokenizer=words, device="cpu")
    return TokenClassification(model, BertTokenizer.from_pretrained(tokenizer_dir)), pipeline
