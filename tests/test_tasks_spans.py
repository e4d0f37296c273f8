"""Label schemes, grouping, borders of words and windows, and the ends of users' characters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbert.tasks.spans import Group, Scheme, label_names, whole_characters
from fastbert.tasks.token_rows import merge_pieces, owned_words, read_sentences, word_starts
from fastbert.windows import windows

BILOU = [f"{letter}-{tag}" for tag in ("PER", "LOC") for letter in "BILU"]
BIOES = [f"{letter}-{tag}" for tag in ("PER", "LOC") for letter in "BIES"]


def groups(labels: str, known: list[str] | None = None) -> str:
    """The spans of labels, as "PER0:2" for words 0 and 1."""
    names = labels.split()
    found = Scheme.of(known or names).group(names, [1.0] * len(names), frozenset("O"))
    return " ".join(f"{group.tag}{group.start}:{group.end}" for group in found)


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        ("B-PER I-PER O B-PER", "PER0:2 PER3:4"),
        ("B-PER B-PER I-PER", "PER0:1 PER1:3"),
        ("O I-PER I-PER", "PER1:3"),
        ("B-PER I-LOC", "PER0:1 LOC1:2"),
        ("PER PER LOC O LOC", "PER0:2 LOC2:3 LOC4:5"),
        ("B-ARGM-TMP I-ARGM-TMP ARGM-TMP O ARGM-TMP", "ARGM-TMP0:3 ARGM-TMP4:5"),
        ("B-C-ARG1 I-C-ARG1 B-ARG1", "C-ARG10:2 ARG12:3"),
        ("O O O", ""),
        ("", ""),
    ],
)
def test_bio_and_plain_labels_are_grouped(labels: str, spans: str) -> None:
    assert groups(labels) == spans


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        ("B-PER I-PER L-PER U-PER O", "PER0:3 PER3:4"),
        ("U-PER U-PER I-PER", "PER0:1 PER1:2 PER2:3"),
        ("B-PER L-PER I-PER L-PER", "PER0:2 PER2:4"),
        ("L-PER L-PER", "PER0:1 PER1:2"),
        ("B-PER L-LOC U-LOC", "PER0:1 LOC1:2 LOC2:3"),
        ("I-PER U-PER B-PER L-PER", "PER0:1 PER1:2 PER2:4"),
    ],
)
def test_bilou_and_bioes_are_grouped_alike(labels: str, spans: str) -> None:
    assert groups(labels, BILOU) == spans
    other = labels.replace("L-", "E-").replace("U-", "S-")
    assert groups(other, BIOES) == spans


def test_a_letter_is_a_prefix_only_beside_its_like() -> None:
    plain = Scheme.of(["O", "B-PER", "I-PER", "E-MAIL", "S-BAR", "U-TURN"])
    assert plain.letters == set("BI")
    assert plain.split("E-MAIL") == ("I", "E-MAIL")
    mixed = Scheme.of([*BILOU, "U-DATE", "E-MAIL"])
    assert mixed.split("U-DATE") == ("U", "DATE")  # only ever one word long
    assert mixed.split("E-MAIL") == ("I", "E-MAIL")
    assert mixed.split("B-") == ("I", "B-")
    assert mixed.split("") == ("I", "")
    assert mixed.split("B-ARGM-TMP") == ("B", "ARGM-TMP")


def test_a_group_has_the_mean_of_its_scores_and_ignored_names_are_left_out() -> None:
    scheme = Scheme.of(["B-X", "I-X"])
    labels, scores = ["B-X", "I-X", "O", "Y"], [0.5, 0.75, 0.9, 0.25]
    assert scheme.group(labels, scores, frozenset({"O"})) == [
        Group("X", 0.625, 0, 2),
        Group("Y", 0.25, 3, 4),
    ]
    assert [g.tag for g in scheme.group(labels, scores, frozenset({"X", "B-X"}))] == ["O", "Y"]


@given(st.lists(st.sampled_from([*BILOU, "O", "MISC"]), max_size=12))
def test_groups_cover_every_label_once(labels: list[str]) -> None:
    found = Scheme.of(BILOU).group(labels, [1.0] * len(labels), frozenset())
    assert [i for g in found for i in range(g.start, g.end)] == list(range(len(labels)))
    for group in found:
        inside = labels[group.start : group.end]
        assert {label[2:] if label in BILOU else label for label in inside} == {group.tag}
        assert not any(label[0] in "LU" and label in BILOU for label in inside[:-1])
        assert not any(label[0] in "BU" and label in BILOU for label in inside[1:])


lengths = st.lists(st.integers(1, 7), min_size=1, max_size=30)


@given(lengths, st.integers(1, 20), st.data())
def test_windows_own_every_token_once_and_no_word_in_part(
    sizes: list[int], room: int, data: st.DataObject
) -> None:
    words = np.repeat(np.arange(len(sizes)) * 2, sizes)  # dropped words leave gaps in the numbers
    bounds = windows(len(words), room, data.draw(st.integers(0, room - 1)))
    parts = owned_words(bounds, words)
    assert [i for start, end in parts for i in range(start, end)] == list(range(len(words)))
    for (start, end), (first, last) in zip(bounds, parts, strict=True):
        assert start <= first <= last <= end
    borders = set(np.cumsum(sizes).tolist())
    for (_, edge), (_, high), (low, _) in zip(parts[:-1], bounds[:-1], bounds[1:], strict=True):
        within = [place for place in borders if low <= place <= high]
        middle = (low + high) // 2
        assert not within or abs(edge - middle) == min(abs(place - middle) for place in within)


@given(lengths, st.sampled_from(["first", "average", "max"]), st.integers(0, 99))
def test_pieces_merge_as_written_out(sizes: list[int], strategy: str, seed: int) -> None:
    words = np.repeat(np.arange(len(sizes)), sizes)
    # Few values, so that pieces are often equally sure: the first of them counts.
    scores = np.random.default_rng(seed).integers(0, 3, (len(words), 3)) / 4
    merged = merge_pieces(scores, word_starts(words), strategy)
    assert merged.shape == (len(sizes), 3)
    for number, row in enumerate(merged):
        pieces = list(scores[words == number])
        if strategy == "first":
            expected = pieces[0]
        elif strategy == "average":
            expected = sum(pieces) / len(pieces)
        else:
            expected = max(pieces, key=max)
        np.testing.assert_allclose(row, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "given", "whole"),
    [
        ("cafe\u0301 x", [(0, 4), (6, 7)], [(0, 5), (6, 7)]),
        ("e\u0301\u0323", [(0, 1)], [(0, 3)]),
        ("\u0301x", [(1, 2)], [(1, 2)]),  # the mark before belongs to nothing
        ("a\u0301b", [(0, 1), (1, 3)], [(0, 1), (1, 3)]),  # it is the next token's
        ("\ud55c", [(0, 1)] * 3, [(0, 1)] * 3),  # three tokens of one character
        ("\u2764\ufe0f!", [(0, 1), (2, 3)], [(0, 2), (2, 3)]),
        ("\U0001f3f4\U000e0067\U000e007f.", [(0, 1), (3, 4)], [(0, 3), (3, 4)]),
        ("ab\u200d, c", [(0, 2), (3, 4), (5, 6)], [(0, 3), (3, 4), (5, 6)]),
        ("ab\u200b c\x00", [(0, 2), (4, 5)], [(0, 2), (4, 5)]),  # nothing that a reader sees
        ("", [], []),
    ],
)
def test_tokens_reach_to_the_end_of_their_character(
    text: str, given: list[tuple[int, int]], whole: list[tuple[int, int]]
) -> None:
    assert whole_characters(text, given) == whole


def test_sentences_come_alone_or_in_a_list() -> None:
    assert read_sentences("sentence", ["a", "b"]) == ([["a", "b"]], True)
    assert read_sentences("sentence", ("a", "b")) == ([["a", "b"]], True)
    assert read_sentences("sentence", [["a"], ("b", "c"), []]) == ([["a"], ["b", "c"], []], False)
    assert read_sentences("sentence", []) == ([], False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a b", "sentences are a str, expected lists of words"),
        (None, "sentences are a NoneType"),
        ([["a"], "b c"], "sentence 1 is a str, expected a list of words"),
        ([["a"], ["b", 3]], "sentence 1, word 1 is a int, expected str"),
        (["a", ["b"]], "sentence 0, word 1 is a list, expected str"),
        ([["a", b"c"]], "sentence 0, word 1 is a bytes"),
    ],
)
def test_what_is_no_word_is_named(given: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        read_sentences("sentence", given)


def test_labels_to_ignore_are_a_list() -> None:
    assert label_names(iter(["O", "X"])) == {"O", "X"}
    with pytest.raises(TypeError, match="ignore_labels is the str 'O', expected a list"):
        label_names("O")
