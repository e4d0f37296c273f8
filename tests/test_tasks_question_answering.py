"""Question answering: against loops over transformers' logits, offsets, windows and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import LETTER_VOCAB, SPECIAL

from fastbert.safetensors_file import CheckpointError
from fastbert.tasks.question_answering import Answer, QuestionAnswering
from fastbert.tokenizer import BertTokenizer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
CHARACTERS = ["e", "a", "n", "中", "文", "字", "م", "ر", "ح", "👩", "👧", "ᄒ", "ᅡ", "ᆫ"]
LONG = "abc de fghi jk lmn o pqr stu vw xyz bad cab fed " * 4  # 140 tokens


def checkpoint(directory: Path, entries: list[str]) -> Any:
    """Save random weights (σ 0.2, so that scores differ) and a tokenizer; return the peer."""
    torch.manual_seed(5)
    config = transformers.BertConfig(vocab_size=len(entries), **SIZES)
    peer = transformers.BertForQuestionAnswering(config).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    peer.save_pretrained(directory)
    BertTokenizer(entries).save_pretrained(directory)
    return peer


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("letters")
    return directory, checkpoint(directory, LETTER_VOCAB)


@pytest.fixture(scope="module")
def task(letters: tuple[Path, Any]) -> QuestionAnswering:
    return QuestionAnswering(letters[0])


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswering:
    directory = tmp_path_factory.mktemp("scripts")
    checkpoint(directory, [*SPECIAL, *CHARACTERS, *("##" + c for c in CHARACTERS)])
    return QuestionAnswering(directory)


def plain(
    peer: Any, tokenizer: Any, question: str, context: str, longest: int, stride: int
) -> list[Answer]:
    """Every candidate by loops over windows, starts and ends; the one without answer last."""
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    text = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    room = 40 - 3 - len(asked)
    spans: dict[tuple[int, int], float] = {}
    none = math.inf
    begin = 0
    while True:
        piece = text["input_ids"][begin : begin + room]
        row = torch.tensor([[cls, *asked, sep, *piece, sep]])
        types = torch.tensor([[0] * (len(asked) + 2) + [1] * (len(piece) + 1)])
        with torch.no_grad():
            output = peer(input_ids=row, token_type_ids=types)
        starts, ends = output.start_logits[0].tolist(), output.end_logits[0].tolist()
        none = min(none, starts[0] + ends[0])
        first = len(asked) + 2
        for i in range(len(piece)):
            for j in range(i, min(i + longest, len(piece))):
                score = starts[first + i] + ends[first + j]
                place = (begin + i, begin + j)
                spans[place] = max(spans.get(place, -math.inf), score)
        if begin + room >= len(text["input_ids"]):
            break
        begin += room - stride
    total = sum(math.exp(score) for score in [*spans.values(), none])
    found = []
    for (i, j), score in sorted(spans.items(), key=lambda item: (-item[1], item[0])):
        start, end = text["offset_mapping"][i][0], text["offset_mapping"][j][1]
        found.append(Answer(context[start:end], math.exp(score) / total, start, end))
    return [*found, Answer("", math.exp(none) / total, 0, 0)]


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize(
    ("context", "longest", "stride"),
    [("abc de fg", 30, 5), (LONG, 5, 8), (LONG, 30, 0), (LONG, 12, 25), (LONG[:90], 100, 20)],
)
def test_equals_a_plain_implementation(
    letters: tuple[Path, Any], dtype: str, close: float, context: str, longest: int, stride: int
) -> None:
    directory, peer = letters
    task = QuestionAnswering(directory, dtype=dtype)
    peer = peer.to(getattr(torch, dtype))
    for question in ("who", "why is it"):
        *truth, none = plain(peer, task.tokenizer, question, context, longest, stride)
        options: dict[str, Any] = {"max_answer_tokens": longest, "stride": stride}
        ours = task(question, context, top_k=20, **options)
        assert [(a.start, a.end, a.text) for a in ours] == [
            (a.start, a.end, a.text) for a in truth[:20]
        ]
        assert all(abs(a.score - b.score) <= close for a, b in zip(ours, truth, strict=False))
        assert task(question, context, **options) == ours[0]
        everything = task(question, context, top_k=10**6, no_answer=True, **options)
        assert {(a.start, a.end) for a in everything} == {(a.start, a.end) for a in [*truth, none]}
        assert len(everything) == len(truth) + 1
        assert abs(sum(a.score for a in everything) - 1) <= 1e-9
        assert [a.score for a in everything] == sorted((a.score for a in everything), reverse=True)
        empty = [a for a in everything if not a.text]
        assert len(empty) == 1
        assert abs(empty[0].score - none.score) <= close
        assert set(ours) <= set(everything)  # no score depends on what was asked for


def test_no_answer_takes_the_place_its_score_gives_it(letters: tuple[Path, Any]) -> None:
    task = QuestionAnswering(letters[0])
    original = task.model.qa_outputs.forward
    ranked = {}
    for shift in (-4.0, 0.0, 4.0):

        def moved(hidden: torch.Tensor, shift: float = shift) -> torch.Tensor:
            scores = original(hidden).clone()
            scores[0] += shift  # [CLS], the first token of the only row
            return scores

        task.model.qa_outputs.forward = moved
        ranked[shift] = task("who", "abc de fg", top_k=9, no_answer=True)
        assert (
            task("who", "abc de fg", top_k=9)
            == [a for a in task("who", "abc de fg", top_k=10, no_answer=True) if a.text][:9]
        )
    assert ranked[4.0][0] == Answer("", ranked[4.0][0].score, 0, 0)
    assert ranked[4.0][0].score > 0.9
    assert all(answer.text for answer in ranked[-4.0])
    assert [a.text for a in ranked[4.0][1:]] == [a.text for a in ranked[-4.0][:8]]


def test_ties_are_ranked_by_place(letters: tuple[Path, Any]) -> None:
    task = QuestionAnswering(letters[0])
    with torch.no_grad():
        task.model.qa_outputs.weight.zero_()  # all candidates alike
    answers = task("who", "ab c", top_k=9, no_answer=True)
    assert [a.text for a in answers] == ["a", "ab", "ab c", "b", "b c", "c", ""]
    assert [a.score for a in answers] == pytest.approx([1 / 7] * 7)
    spans = task("who", LONG, top_k=99, stride=20, max_answer_tokens=2)
    assert [(a.start, a.end) for a in spans] == sorted({(a.start, a.end) for a in spans})


PIECES = ["e", "e\u0301", "é", "a\u0308\u0323", "n\u0303an", "中文", "字", "مَرح", "حر", "한", "한"]
PIECES += [
    "👩\u200d👧",
    "👩\u200d👩\u200d👧\u200d👧",
    "👍🏽",
    "❤\ufe0f",
    "a\u200be",
    " ",
    " ",
    "\x00",
    ".",
]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.integers(1, 40))
def test_answers_lie_in_the_context_in_every_script(
    scripts: QuestionAnswering, context: str, longest: int
) -> None:
    answers = scripts("enna 中文", context, top_k=50, no_answer=True, max_answer_tokens=longest)
    places = [(answer.start, answer.end) for answer in answers]
    assert len(set(places)) == len(places)
    assert places.count((0, 0)) <= 1
    offsets = scripts.tokenizer(
        context, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    for answer in answers:
        assert context[answer.start : answer.end] == answer.text
        if answer.text:
            assert 0 <= answer.start < answer.end <= len(context)
            assert answer.start in {start for start, _ in offsets}
            ends = {end for _, end in offsets}
            dropped = next(n for n in range(len(answer.text)) if answer.end - n in ends)
            assert all(
                c in "\u0301\u0308\u0323\u0303\u064e\u200d\ufe0f\u200b"
                for c in answer.text[len(answer.text) - dropped :]
            )
        else:
            assert (answer.start, answer.end) == (0, 0)
    assert sum(answer.score for answer in answers) <= 1 + 1e-9


def test_an_answer_keeps_the_accent_at_its_end(scripts: QuestionAnswering) -> None:
    answers = scripts("e", "ane\u0301 a", top_k=99)
    assert "ane\u0301" in {answer.text for answer in answers}
    assert not {"ane", "e"} & {answer.text for answer in answers}


def test_spans_within_one_character_are_one_answer(scripts: QuestionAnswering) -> None:
    """A syllable of Hangul is three tokens, all of the same character."""
    answers = scripts("e", "한한", top_k=9)
    assert sorted((a.start, a.end) for a in answers) == [(0, 1), (0, 2), (1, 2)]
    assert scripts("e", "한한", top_k=2) == answers[:2]


def test_one_or_many(task: QuestionAnswering) -> None:
    one, other = task("who", "abc de"), task("why", LONG)
    many = task(["who", "why", "who"], ["abc de", LONG, LONG], batch_tokens=50)
    assert isinstance(one, Answer)
    assert [a.text for a in many] == [one.text, other.text, task("who", LONG).text]
    assert many[1].score == pytest.approx(other.score, abs=1e-6)
    assert [a.text for a in task("who", ["abc de", LONG])] == [many[0].text, many[2].text]
    assert [a.text for a in task(["why", "who"], LONG)] == [many[1].text, many[2].text]
    assert [len(found) for found in task(("who",), ("abc de",), top_k=3)] == [3]
    assert task([], []) == task("who", []) == task([], "abc") == []
    assert len(task("who", "ab", top_k=10)) == 3  # a, ab, b: there are no more


def test_empty_contexts_have_no_answer(task: QuestionAnswering) -> None:
    nothing = Answer("", 1.0, 0, 0)
    for context in ("", "  \n", "\x00\u200b"):
        assert task("who", context) == nothing
        assert task("who", context, top_k=5) == [nothing]
    texts = ["", "abc", ""]
    assert [bool(answer.text) for answer in task("who", texts)] == [False, True, False]


def test_the_default_stride_fits_a_long_question(letters: tuple[Path, Any]) -> None:
    """A window of 40 leaves less than 128 tokens; the answers are those of half of the room."""
    task = QuestionAnswering(letters[0])
    assert task("who", LONG, top_k=5) == task("who", LONG, top_k=5, stride=17)
    question = "a" * 36
    assert task(question, "abcd", top_k=9, max_answer_tokens=3) == task(
        question, "abcd", top_k=9, stride=0
    )  # one token of room: spans of one token
    short = QuestionAnswering(letters[0], max_length=20)
    assert short("who", LONG, top_k=5) == short("who", LONG, top_k=5, stride=7)


def test_a_model_in_training_and_one_that_returns_tuples(letters: tuple[Path, Any]) -> None:
    task = QuestionAnswering(letters[0])
    truth = task("who", LONG)
    task.model.config = task.model.config.replace(return_dict=False)
    task.model.train()
    again = QuestionAnswering(task.model, task.tokenizer)
    assert again("who", LONG) == truth
    assert task.model.training


BAD: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    (["a", "b" * 37], "abc", {}, ValueError, "question 1 has 37 tokens and its row 3 .* the 40 of"),
    (["a", ""], "abc", {}, ValueError, "question 1 is empty"),
    (["a", " \x00"], "", {}, ValueError, "question 1 is empty"),
    (["a", "abc"], "abc", {"stride": 34}, ValueError, "question 1: stride is 34, expected 0 to 33"),
    ("a", "abc", {"stride": 1.5}, ValueError, "stride is 1.5"),
    ("a", "abc", {"top_k": 0}, ValueError, "top_k is 0"),
    ("a", "abc", {"top_k": True}, ValueError, "top_k is True"),
    ("a", "abc", {"max_answer_tokens": 0}, ValueError, "max_answer_tokens is 0"),
    ("a", "abc", {"batch_tokens": 0}, ValueError, "batch_tokens is 0"),
    (["a", "b"], ["abc"], {}, ValueError, "2 questions, but 1 contexts"),
    (["a", None], "abc", {}, TypeError, "question 1 is a NoneType"),
    ("a", ["abc", b"abc"], {}, TypeError, "context 1 is a bytes"),
    (7, "abc", {}, TypeError, "question is a int"),
    ("a", None, {}, TypeError, "context is a NoneType"),
    (["a", "b\ud800"], "abc", {}, ValueError, r"question 1 holds the lone surrogate U\+D800"),
    ("a", ["abc", "b", "\udfff"], {}, ValueError, r"context 2 holds the lone surrogate U\+DFFF"),
]


@pytest.mark.parametrize(("questions", "contexts", "options", "error", "message"), BAD)
def test_bad_input_is_named(
    task: Any, questions: Any, contexts: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        task(questions, contexts, **options)


def test_logits_that_are_not_finite(letters: tuple[Path, Any]) -> None:
    task = QuestionAnswering(letters[0])
    with torch.no_grad():
        task.model.qa_outputs.bias[1] = torch.nan
    with pytest.raises(ValueError, match="question 0: the model's logits are not finite"):
        task("who", ["abc"])


def test_a_checkpoint_without_the_head_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=len(LETTER_VOCAB), **SIZES)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    BertTokenizer(LETTER_VOCAB).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="qa_outputs"):
        QuestionAnswering(tmp_path)
