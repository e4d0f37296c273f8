"""fastbert: a drop-in, padding-free, accelerated BERT for PyTorch.

>>> from fastbert import SentenceEncoder
>>> vectors = SentenceEncoder().encode(["real text in", "real vectors out"])  # (2, 384)

Names load on first use (PEP 562), so that importing the package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastbert.version import __version__

if TYPE_CHECKING:
    from fastbert.checkpoint import CheckpointError
    from fastbert.config import BertConfig
    from fastbert.cross_encoder import CrossEncoder
    from fastbert.engine import Engine
    from fastbert.heads import (
        BertForMaskedLM,
        BertForMultipleChoice,
        BertForNextSentencePrediction,
        BertForPreTraining,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from fastbert.messages import TruncationWarning
    from fastbert.model import BertModel
    from fastbert.ops.determinism import deterministic
    from fastbert.packing import Packed, pack, unpack
    from fastbert.sentence_encoder import SentenceEncoder
    from fastbert.tokenization.batch_encoding import BatchEncoding
    from fastbert.tokenizer import BertTokenizer

_HEADS = (
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
)
_ROOMS = {
    "BatchEncoding": "tokenization.batch_encoding",
    "BertConfig": "config",
    **dict.fromkeys(_HEADS, "heads"),
    "BertModel": "model",
    "BertTokenizer": "tokenizer",
    "CheckpointError": "checkpoint",
    "CrossEncoder": "cross_encoder",
    "Engine": "engine",
    "Packed": "packing",
    "SentenceEncoder": "sentence_encoder",
    "TruncationWarning": "messages",
    "deterministic": "ops.determinism",
    "pack": "packing",
    "unpack": "packing",
}

__all__ = [
    "BatchEncoding",
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertTokenizer",
    "CheckpointError",
    "CrossEncoder",
    "Engine",
    "Packed",
    "SentenceEncoder",
    "TruncationWarning",
    "__version__",
    "deterministic",
    "pack",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'fastbert' has no attribute {name!r}")
    value = getattr(import_module(f"fastbert.{_ROOMS[name]}"), name)
    globals()[name] = value  # the next look finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
