"""Classification end to end on real text: MiniLM learns whether a film review is fresh."""

from __future__ import annotations

import warnings

import pytest
import torch
from rotten_tomatoes import fine_tune, reviews

from fastbert import BertForSequenceClassification, BertTokenizer
from fastbert.tasks.text_classification import TextClassification

pytestmark = pytest.mark.slow


def accuracy(model, tokenizer, items):
    """Share of the reviews that the task labels rightly, and the share of the commoner label."""
    texts, labels = zip(*items, strict=True)
    results = TextClassification(model, tokenizer, max_length=128)(list(texts))
    right = sum(
        row[0].label == model.config.id2label[label]
        for row, label in zip(results, labels, strict=True)
    )
    return right / len(items), max(sum(labels), len(items) - sum(labels)) / len(items)


def classifier(minilm_dir):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the head is new, and that is meant
        return BertForSequenceClassification.from_pretrained(
            minilm_dir,
            id2label={0: "rotten", 1: "fresh"},
            hidden_dropout_prob=0.0,  # a pass or two: nothing to overfit to, and a fifth less time
            attention_probs_dropout_prob=0.0,
        )


def test_a_minute_of_training_beats_the_majority_clearly(minilm_dir):
    train, held_out = reviews()
    model, tokenizer = classifier(minilm_dir), BertTokenizer.from_pretrained(minilm_dir)
    fine_tune(model, tokenizer, train[:2000], epochs=1, lr=3e-4)
    reached, majority = accuracy(model, tokenizer, held_out[:1000])
    assert majority < 0.62
    assert reached >= 0.72


def test_nine_thousand_reviews_reach_the_bar(minilm_dir, tmp_path):
    train, held_out = reviews()
    assert len(held_out) >= 2000
    model, tokenizer = classifier(minilm_dir), BertTokenizer.from_pretrained(minilm_dir)
    fine_tune(model, tokenizer, train[:9000], epochs=2, lr=2e-4)
    reached, majority = accuracy(model, tokenizer, held_out)
    assert majority < 0.60
    assert reached >= 0.83
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = TextClassification(tmp_path, max_length=128)
    texts = [text for text, _ in held_out[:50]]
    assert again(texts) == TextClassification(model, tokenizer, max_length=128)(texts)
