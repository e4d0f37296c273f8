"""A small checkpoint of every kind for the commands of the tasks, and a way to run one."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastbert import heads
from fastbert.cli import main
from fastbert.config import BertConfig
from fastbert.tokenizer import BertTokenizer

COMMANDS = ("fill-mask", "next-sentence", "classify", "tag", "answer", "rerank", "similar")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("paris", "is", "the", "capital", "of", "france", ".", "?", "a", "cat", "sleeps", "who")
VOCABULARY = [
    *SPECIAL,
    *WORDS,
    *string.ascii_lowercase,
    *("##" + c for c in string.ascii_lowercase),
]
KINDS = {
    "masked": ("BertForMaskedLM", None),
    "next": ("BertForNextSentencePrediction", None),
    "classifier": ("BertForSequenceClassification", ("neg", "pos", "so so")),
    "tagger": ("BertForTokenClassification", ("O", "B-PER", "I-PER")),
    "reader": ("BertForQuestionAnswering", None),
    "ranker": ("BertForSequenceClassification", ("score",)),
    "chooser": ("BertForMultipleChoice", ("score",)),
}
COMMAND_OF = {
    "fill-mask": "masked",
    "next-sentence": "next",
    "classify": "classifier",
    "tag": "tagger",
    "answer": "reader",
    "rerank": "ranker",
}
LONG = "the capital of france is paris . " * 12  # 84 tokens, the models take 32


def save(directory: Path, kind: str, labels: tuple[str, ...] | None) -> None:
    names = {} if labels is None else {"id2label": dict(enumerate(labels))}
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        **names,
    )
    torch.manual_seed(1)
    model = getattr(heads, kind)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()  # so that labels depend on the text
            else:
                parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.5)
    model.save_pretrained(directory)
    BertTokenizer(VOCABULARY).save_pretrained(directory)


def save_all(root: Path) -> Path:
    """Save one of each of `KINDS` under its name."""
    for name, (kind, labels) in KINDS.items():
        save(root / name, kind, labels)
    return root


Outcome = tuple[int, str, str]


def runner(models: Path, capture: Any) -> Callable[..., Outcome]:
    """What runs a command on its own model (or another) and returns code, stdout, stderr."""

    def run(command: str, *arguments: str, model: str | None = None) -> Outcome:
        name = model or COMMAND_OF.get(command)
        options = [] if name is None else ["--model", str(models / name)]
        code = main([command, *arguments, *options])
        captured = capture.readouterr()
        return code, captured.out.decode(), captured.err.decode()

    return run


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """The objects of a run that went well and had nothing to say on stderr."""
    code, out, err = outcome
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.split("\n")[:-1]]


def places(found: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """File and line of each."""
    return [(row["file"], row["line"]) for row in found]
