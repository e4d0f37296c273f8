"""Multiple choice: against transformers, prompts of different numbers of choices, bad input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizer_texts import LETTER_VOCAB

from fastbert import TruncationWarning
from fastbert.safetensors_file import CheckpointError
from fastbert.tasks.multiple_choice import Choice, MultipleChoice
from fastbert.tokenizer import BertTokenizer

CONFIG = transformers.BertConfig(
    vocab_size=len(LETTER_VOCAB),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
)
PROMPTS = ["what is it", "", "a long one of many words"]
CHOICES = [["cat", "a dog"], ["only"], ["x", "", "x", "nine lives", "zzz"]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("choices")
    torch.manual_seed(3)
    peer = transformers.BertForMultipleChoice(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    peer.save_pretrained(directory)
    BertTokenizer(LETTER_VOCAB).save_pretrained(directory)
    return directory, peer


@pytest.fixture(scope="module")
def task(saved: tuple[Path, Any]) -> MultipleChoice:
    return MultipleChoice(saved[0])


def truth(peer: Any, directory: Path, prompt: str, choices: list[str]) -> list[float]:
    """Probabilities by transformers' tokenizer and model, cut as they cut."""
    tokenizer = transformers.BertTokenizerFast.from_pretrained(directory)
    encoded = tokenizer(
        [prompt] * len(choices),
        choices,
        padding=True,
        truncation="longest_first",
        max_length=40,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = peer(**{name: value[None] for name, value in encoded.items()}).logits
    return torch.softmax(logits[0], dim=0).tolist()


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-6), ("float64", 1e-10)])
def test_equals_transformers(saved: tuple[Path, Any], dtype: str, close: float) -> None:
    directory, peer = saved
    peer = peer.to(getattr(torch, dtype))
    task = MultipleChoice(directory, dtype=dtype)
    results = task(PROMPTS, CHOICES)
    for prompt, choices, ranked in zip(PROMPTS, CHOICES, results, strict=True):
        expected = truth(peer, directory, prompt, choices)
        assert sorted(choice.index for choice in ranked) == list(range(len(choices)))
        assert all(choice.text == choices[choice.index] for choice in ranked)
        assert all(abs(c.score - expected[c.index]) <= close for c in ranked)
        scores = [choice.score for choice in ranked]
        assert scores == sorted(scores, reverse=True)
        assert abs(sum(scores) - 1) <= 1e-12
        if len(choices) > 1:
            assert max(expected) - min(expected) > 0.01  # the weights do tell choices apart


def test_one_or_many_in_any_batch(task: MultipleChoice) -> None:
    together = task(PROMPTS, CHOICES)
    for prompt, choices, ranked in zip(PROMPTS, CHOICES, together, strict=True):
        alone = task(prompt, choices, batch_tokens=1)
        assert [c.index for c in alone] == [c.index for c in ranked]
        assert [c.score for c in alone] == pytest.approx([c.score for c in ranked], abs=1e-6)
    assert task("what", ["it"]) == [Choice(0, "it", 1.0)]
    assert task([], []) == []
    assert task(tuple(PROMPTS), tuple(map(tuple, CHOICES))) == together


def test_equal_choices_keep_their_order(task: MultipleChoice) -> None:
    ranked = task("what is it", ["same"] * 3)
    assert [choice.index for choice in ranked] == [0, 1, 2]
    assert [choice.score for choice in ranked] == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_long_pairs_are_cut_with_a_warning(saved: tuple[Path, Any], task: MultipleChoice) -> None:
    directory, peer = saved
    peer = peer.to(torch.float32)
    long = "many words of a prompt that is longer than the model takes"
    choices = ["short", "a choice of many more words than forty tokens can hold", "b"]
    with pytest.warns(TruncationWarning) as caught:
        ranked = task(["what", long], [["it", "them"], choices])[1]
    assert len(caught) == 1
    warning = caught[0].message
    assert isinstance(warning, TruncationWarning)
    assert (warning.count, warning.total, warning.limit) == (3, 5, 40)
    assert caught[0].filename == __file__
    expected = truth(peer, directory, long, choices)
    assert all(abs(c.score - expected[c.index]) <= 1e-6 for c in ranked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task("what", ["a" * 33])  # 40 tokens with [CLS] and twice [SEP]: nothing is cut
    with pytest.warns(TruncationWarning):
        MultipleChoice(directory, max_length=12)("what", ["a" * 6])


def test_a_model_that_returns_tuples(saved: tuple[Path, Any], task: MultipleChoice) -> None:
    tuples = MultipleChoice(saved[0])
    tuples.model.config = tuples.model.config.replace(return_dict=False)
    assert tuples(PROMPTS, CHOICES) == task(PROMPTS, CHOICES)


BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (["a", "b"], [["x"], []], ValueError, "prompt 1 has no choices"),
    ("a", [], ValueError, "prompt 0 has no choices"),
    (["a", "b"], [["x"]], ValueError, "2 prompts, but 1 lists of choices"),
    (["a", "b"], ["x", "y"], TypeError, "prompt 0, choice is a str, expected a list"),
    (["a", "b"], [["x"], ["y", 3]], TypeError, "prompt 1, choice 1 is a int"),
    (["a", None], [["x"], ["y"]], TypeError, "prompt 1 is a NoneType"),
    ("a", "xyz", TypeError, "prompt 0, choice is a str, expected a list"),
    ("a", [["x"]], TypeError, "prompt 0, choice 0 is a list"),
    (["a"], "x", TypeError, "choices is a str"),
    (["a"], {"a": ["x"]}, TypeError, "choices is a dict"),
    (3, [["x"]], TypeError, "prompt is a int"),
    (["a", "\ud800"], [["x"], ["y"]], ValueError, "prompt 1 holds the lone surrogate"),
    (["a", "b"], [["x"], ["y", "\ud800"]], ValueError, "prompt 1, choice 1 holds the lone"),
]


@pytest.mark.parametrize(("prompts", "choices", "error", "message"), BAD)
def test_bad_input_is_named(
    task: MultipleChoice, prompts: Any, choices: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        task(prompts, choices)


def test_logits_that_are_not_finite(saved: tuple[Path, Any]) -> None:
    task = MultipleChoice(saved[0])
    with torch.no_grad():
        task.model.classifier.bias.fill_(torch.inf)
    with pytest.raises(ValueError, match="prompt 0: the model's logits are not finite"):
        task(PROMPTS, CHOICES)


def test_a_checkpoint_without_the_head_is_refused(tmp_path: Path) -> None:
    transformers.BertModel(CONFIG).save_pretrained(tmp_path)
    BertTokenizer(LETTER_VOCAB).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="classifier"):
        MultipleChoice(tmp_path)
