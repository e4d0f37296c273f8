"""A small random model of a head, saved as a directory that both libraries load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bert_pair import SIZES

from fastbert import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = """
the a of to in on and was is it he she cat dog mat house river bank film paris london tea sat ran
saw ate good bad big small old new red blue day night , . ! ? ' - ( ) cafe strasse naive 中 文 國
##s ##ed ##ing ##er ##ly un re ##believ ##able b c d e ##b ##c ##d ##e
"""
WORDS = _WORDS.split()


def tokenizer(**settings: Any) -> BertTokenizer:
    return BertTokenizer([*SPECIAL, *WORDS], **settings)


def save_pair(directory: Path, head: str, reader: BertTokenizer | None = None, **sizes: Any) -> Any:
    """Write transformers' model of class `head`, every parameter random; return it in eval mode."""
    import transformers

    reader = tokenizer() if reader is None else reader
    settings = {**SIZES, "vocab_size": len(reader), **sizes}
    torch.manual_seed(7)
    config = transformers.BertConfig(**settings, attn_implementation="eager")
    theirs = getattr(transformers, head)(config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    theirs.save_pretrained(directory)
    reader.save_pretrained(directory)
    return theirs.eval()


def pipeline(task: str, directory: Path, **options: Any) -> Any:
    """The pipeline of transformers over a directory, on the CPU."""
    import transformers

    reader = transformers.AutoTokenizer.from_pretrained(directory)
    return transformers.pipeline(
        task, model=str(directory), tokenizer=reader, device="cpu", **options
    )
