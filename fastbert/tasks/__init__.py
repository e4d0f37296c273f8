"""What an encoder with a head is used for: one small class a task, texts in, typed results out.

>>> from fastbert.tasks import TextClassification
>>> TextClassification("my-sentiment-model")("what a film")  # [Label(label='positive', score=0.99)]

Names load on first use, so that one task loads no other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastbert.tasks.fill_mask import Fill, FillMask
    from fastbert.tasks.multiple_choice import Choice, MultipleChoice
    from fastbert.tasks.next_sentence import NextSentence, NextSentenceResult
    from fastbert.tasks.question_answering import Answer, QuestionAnswering
    from fastbert.tasks.reranking import Ranked, Reranking
    from fastbert.tasks.search import Hit, SemanticSearch
    from fastbert.tasks.semantic_roles import Frame, SemanticRoles
    from fastbert.tasks.similarity import SentenceSimilarity
    from fastbert.tasks.spans import Span, WordSpan, WordTag
    from fastbert.tasks.text_classification import Label, TextClassification
    from fastbert.tasks.token_classification import TokenClassification

_ROOMS = {
    "Answer": "question_answering",
    "Choice": "multiple_choice",
    "Fill": "fill_mask",
    "FillMask": "fill_mask",
    "Frame": "semantic_roles",
    "Hit": "search",
    "Label": "text_classification",
    "MultipleChoice": "multiple_choice",
    "NextSentence": "next_sentence",
    "NextSentenceResult": "next_sentence",
    "QuestionAnswering": "question_answering",
    "Ranked": "reranking",
    "Reranking": "reranking",
    "SemanticRoles": "semantic_roles",
    "SemanticSearch": "search",
    "SentenceSimilarity": "similarity",
    "Span": "spans",
    "TextClassification": "text_classification",
    "TokenClassification": "token_classification",
    "WordSpan": "spans",
    "WordTag": "spans",
}

__all__ = [
    "Answer",
    "Choice",
    "Fill",
    "FillMask",
    "Frame",
    "Hit",
    "Label",
    "MultipleChoice",
    "NextSentence",
    "NextSentenceResult",
    "QuestionAnswering",
    "Ranked",
    "Reranking",
    "SemanticRoles",
    "SemanticSearch",
    "SentenceSimilarity",
    "Span",
    "TextClassification",
    "TokenClassification",
    "WordSpan",
    "WordTag",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'fastbert.tasks' has no attribute {name!r}")
    value = getattr(import_module(f"fastbert.tasks.{_ROOMS[name]}"), name)
    globals()[name] = value  # the next look finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
