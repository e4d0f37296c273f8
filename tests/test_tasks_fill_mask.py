"""Filling masks: equal to transformers' pipeline, and honest about what it can't see."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from task_pairs import SPECIAL, WORDS, pipeline, save_pair, tokenizer
from tokenizer_texts import PIECES
from tokenizers import AddedToken

from fastbert import BertConfig, BertTokenizer, TruncationWarning
from fastbert.heads import BertForMaskedLM
from fastbert.tasks.fill_mask import Fill, FillMask

TEXTS = [
    "The [MASK] sat on the mat.",
    "[MASK]",
    "[MASK] [MASK]s ran to the [MASK]'s house, and he was unbelievable!",
    "Paris is [MASK]than London",
    "中[MASK]國 café [mask] (xyz) [MASK]\n",
    "the cat [PAD] sat [MASK] [SEP] it was old",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fill_mask")
    save_pair(path, "BertForMaskedLM")
    return path


@pytest.fixture(scope="module")
def task(directory: Path) -> FillMask:
    return FillMask(directory)


@pytest.fixture(scope="module")
def peer(directory: Path) -> Any:
    return pipeline("fill-mask", directory)


def compare(ours: list[list[Fill]], theirs: Any) -> None:
    """One text: our lists against the pipeline's, which is flat where there is one mask."""
    lists = theirs if isinstance(theirs[0], list) else [theirs]
    assert len(ours) == len(lists)
    for fills, others in zip(ours, lists, strict=True):
        assert [(f.token, f.token_id, f.text) for f in fills] == [
            (o["token_str"], o["token"], o["sequence"]) for o in others
        ]
        for fill, other in zip(fills, others, strict=True):
            assert abs(fill.score - other["score"]) <= 1e-6


@pytest.mark.parametrize("top_k", [1, 5, len(SPECIAL + WORDS)])
def test_equals_the_pipeline(task: FillMask, peer: Any, top_k: int) -> None:
    answers = task(TEXTS, top_k=top_k)
    assert len(answers) == len(TEXTS)
    for text, ours in zip(TEXTS, answers, strict=True):
        theirs = peer(text, top_k=top_k)
        compare(ours, theirs)
        for fills in ours:
            assert len(fills) == top_k
            assert all(text[f.start : f.end] == "[MASK]" for f in fills)
            assert all(type(f.score) is float for f in fills)
    spans = [fills[0].start for fills in answers[2]]
    assert spans == [TEXTS[2].index("[MASK]"), 7, TEXTS[2].rindex("[MASK]")]


@pytest.mark.parametrize(
    "targets", [["cat", "dog", "river"], "tea", ["##s", "[PAD]", "Café", "cafe", "中", "[UNK]"]]
)
def test_targets_equal_the_pipeline(task: FillMask, peer: Any, targets: Any) -> None:
    for text in TEXTS:
        compare(task(text, targets=targets, top_k=4), peer(text, targets=targets, top_k=4))
    among_all = {f.token: f.score for f in task(TEXTS[0], top_k=task.config.vocab_size)[0]}
    for fill in task(TEXTS[0], targets=targets)[0]:
        assert fill.score == pytest.approx(among_all[fill.token], abs=1e-12)


def test_a_target_given_twice_counts_once(task: FillMask) -> None:
    fills = task("The [MASK].", targets=["cat", "Cat", "CAT", "dog"])[0]
    assert sorted(f.token for f in fills) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["cat", "cats"], "target 'cats' is 2 tokens, expected one"),
        (["the cat"], "target 'the cat' is 2 tokens, expected one"),
        (["zebra"], "target 'zebra' is not in the vocabulary"),
        ([""], "target '' is 0 tokens, expected one"),
        ([" \u200b"], "is 0 tokens"),
        ([], "targets is empty"),
        (["x" * 5000], r"target 'x{36}… is not in the vocabulary"),
    ],
)
def test_targets_that_are_not_one_token(task: FillMask, targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task("The [MASK].", targets=targets)


def test_wrong_types(task: FillMask) -> None:
    with pytest.raises(TypeError, match="target 1 is a int, expected str"):
        task("The [MASK].", targets=["cat", 3])
    with pytest.raises(TypeError, match="text 1 is a NoneType"):
        task(["The [MASK].", None])
    with pytest.raises(TypeError, match="expected a list of str"):
        task({"text": "[MASK]"})
    with pytest.raises(ValueError, match=r"text 1 holds the lone surrogate U\+D800"):
        task(["[MASK]", "[MASK] \ud800"])


def test_target_beyond_the_model(directory: Path, task: FillMask) -> None:
    reader = BertTokenizer.from_pretrained(directory)
    reader.add_tokens(["zebra"])
    grown = FillMask(task.model, reader)
    with pytest.raises(ValueError, match=f"target 'zebra' is token {len(reader) - 1}, the model"):
        grown("The [MASK].", targets="zebra")


@pytest.mark.parametrize("top_k", [0, -1, True, 2.0, 10**6, None])
def test_top_k_out_of_bounds(task: FillMask, top_k: Any) -> None:
    with pytest.raises(ValueError, match="top_k is"):
        task("The [MASK].", top_k=top_k)


@pytest.mark.parametrize("text", ["the cat", "[mask]", "[ MASK ]"])
def test_text_without_a_mask(task: FillMask, text: str) -> None:
    with pytest.raises(ValueError, match=r"text 2 has no \[MASK\] to fill"):
        task(["[MASK]", "a [MASK]", text])


def test_a_mask_that_would_be_cut_is_refused(task: FillMask) -> None:
    limit = task.max_length
    assert limit == 40
    fits = "cat " * (limit - 3) + "[MASK]"
    assert len(task(fits)[0]) == 5
    with pytest.raises(ValueError, match=rf"text 1 has {limit + 1} tokens, and a \[MASK\] beyond"):
        task([fits, "cat " + fits])
    with pytest.raises(ValueError, match=r"text 0 .* beyond the 40"):
        task("The [MASK] sat " + "cat " * 100 + "[MASK]")  # one of the two would stay


def test_a_text_cut_behind_its_masks_says_so(task: FillMask, peer: Any) -> None:
    text = "The [MASK] sat " + "cat " * 60
    with pytest.warns(TruncationWarning, match="1 text is longer than 40 tokens") as record:
        found = task(["[MASK]", text])
    assert record[0].filename == __file__
    cut = {"truncation": True, "max_length": 40}
    for ours, theirs in zip(found[1][0], peer(text, tokenizer_kwargs=cut), strict=True):
        assert ours.token_id == theirs["token"]
        assert abs(ours.score - theirs["score"]) <= 1e-6
        assert ours.text.endswith(" sat" + " cat" * 60)  # all of it
    assert text[found[1][0][0].start : found[1][0][0].end] == "[MASK]"


def test_cut_at_the_left(task: FillMask) -> None:
    left = FillMask(task.model, tokenizer(truncation_side="left"))
    with pytest.warns(TruncationWarning):
        late = left("cat " * 60 + "the [MASK] sat")[0][0]
    assert late.text.endswith(f"the {late.token} sat")
    assert (late.start, late.end) == (244, 250)
    with pytest.raises(ValueError, match=r"text 0 .* beyond"):
        left("the [MASK] sat" + " cat" * 60)


def test_max_length_of_the_task(directory: Path) -> None:
    short = FillMask(directory, max_length=6)
    assert short("the cat sat [MASK]")
    with pytest.raises(ValueError, match=r"beyond the 6 that"):
        short("the cat sat on [MASK]")


def test_cased_tokenizer_takes_the_same_mask(tmp_path: Path) -> None:
    reader = tokenizer(do_lower_case=False)
    save_pair(tmp_path, "BertForMaskedLM", reader)
    peer = pipeline("fill-mask", tmp_path)
    for text in ("the [MASK] sat", "The [MASK]"):
        compare(FillMask(tmp_path)(text), peer(text))


def test_untied_decoder_and_odd_padding_token(tmp_path: Path) -> None:
    save_pair(tmp_path, "BertForMaskedLM", tie_word_embeddings=False, pad_token_id=9)
    peer = pipeline("fill-mask", tmp_path)
    ours = FillMask(tmp_path)
    for text in TEXTS:
        compare(ours(text), peer(text))


def test_a_vocabulary_without_a_mask_token(directory: Path, task: FillMask) -> None:
    none = FillMask(task.model, BertTokenizer.from_pretrained(directory, mask_token=None))
    with pytest.raises(ValueError, match=r"no mask token \(no token\)"):
        none("The [MASK].")
    bare = BertTokenizer([*SPECIAL[:4], *WORDS])  # [MASK] gets the id after the last
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(bare) - 1, intermediate_size=8, **sizes)
    beyond = FillMask(BertForMaskedLM(config), bare)
    with pytest.raises(ValueError, match=rf"no mask token \(token {config.vocab_size}, the model"):
        beyond(["The [MASK]."])


def test_a_mask_token_that_swallows_spaces(directory: Path, task: FillMask) -> None:
    reader = BertTokenizer.from_pretrained(directory)
    reader.add_tokens(AddedToken("[MASK]", lstrip=True, rstrip=True, special=True))
    text = "the \t [MASK]  sat"
    fill = FillMask(task.model, reader)(text)[0][0]
    assert text[fill.start : fill.end] == "[MASK]"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, "[MASK]", " ", "cat"]), max_size=8))
def test_offsets_point_at_the_masks(task: FillMask, pieces: list[str]) -> None:
    text = "".join(["[MASK]", *pieces])
    places = [i for i in range(len(text)) if text.startswith("[MASK]", i)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        try:
            found = task(text, top_k=1)
        except ValueError as error:
            assert "beyond the 40" in str(error)  # noqa: PT017 - whether it is raised may vary
            return
    assert [(fills[0].start, fills[0].end) for fills in found] == [(p, p + 6) for p in places]


def test_only_masks_go_through_the_decoder(task: FillMask, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    predict = task.model.predict

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return predict(hidden)

    monkeypatch.setattr(task.model, "predict", counted)
    task(["the cat " * 15 + "[MASK]", "a [MASK] and [MASK]", "[MASK]"])
    assert rows == [4]
    rows.clear()
    task(["[MASK] " * 38] * 4)  # the logits of 152 masks do not stand together
    assert rows == [64, 64, 24]


def test_batches_order_and_forms(task: FillMask) -> None:
    whole = task(TEXTS)
    for other in (task(TEXTS, batch_tokens=1), task(tuple(TEXTS)), [task(t) for t in TEXTS]):
        flat = [[f for fills in text for f in fills] for text in other]
        for mine, theirs in zip(whole, flat, strict=True):
            for a, b in zip([f for fills in mine for f in fills], theirs, strict=True):
                assert dataclasses.replace(a, score=b.score) == b
                assert abs(a.score - b.score) <= 1e-6
    assert task([]) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole[0][0][0].score = 1.0
    with pytest.raises(ValueError, match="batch_tokens"):
        task(TEXTS, batch_tokens=0)


def test_a_model_in_training_stays_in_training(task: FillMask) -> None:
    before = task(TEXTS[0])
    task.model.train()
    try:
        assert task(TEXTS[0]) == before  # without dropout
        assert task.model.training
    finally:
        task.model.eval()


def test_scores_in_float64_are_the_plain_softmax(directory: Path) -> None:
    import transformers

    task = FillMask(directory, dtype="float64")
    theirs = transformers.BertForMaskedLM.from_pretrained(directory, dtype=torch.float64).eval()
    ids = torch.tensor([task.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        row = theirs(ids).logits[0, ids[0].tolist().index(4)].softmax(0)
    for fill in task(TEXTS[0], top_k=20)[0]:
        assert fill.score == pytest.approx(float(row[fill.token_id]), abs=1e-12)


def test_a_blank_text_has_no_masks(task: FillMask) -> None:
    assert task(["", "the [MASK]", " \n"], top_k=1)[::2] == [[], []]
    assert task("") == []


def test_logits_that_are_not_finite_are_refused(task: FillMask) -> None:
    words = task.model.bert.embeddings.word_embeddings.weight
    kept = words.data.clone()
    words.data[7] = float("nan")
    try:
        with pytest.raises(ValueError, match="text 1: the model's logits are not finite"):
            task(["", "the [MASK]"])
    finally:
        words.data.copy_(kept)
