"""From labels of tokens or words to spans: label schemes, words' borders, and users' characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from fastbert.checks import short

_STARTS = frozenset("BUS")  # these letters never continue the span before them
_ENDS = frozenset("LUES")  # nothing continues a span after these
_ZERO_WIDTH_JOINERS = "\u200c\u200d"
_TAGS = ("\U000e0020", "\U000e007f")  # what spells the region behind a flag emoji


@dataclass(frozen=True, slots=True)
class Span:
    """A labelled part of a text.

    Attributes:
        label: without its prefix (PER), with it for the strategy none (B-PER).
        score: probability; the mean of what the span is made of.
        start, end: characters of the text as given, `end` exclusive.
        text: ``given[start:end]``.
        index: for the strategy none, the token's place in its row ([CLS] is 0), as if the model
            took rows of any length.
    """

    label: str
    score: float
    start: int
    end: int
    text: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class WordTag:
    """A word and its label, prefix included; score 0.0 where the tokenizer drops the word."""

    word: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class WordSpan:
    """Words `start` to `end` (exclusive) of a sentence under one label, without its prefix."""

    label: str
    score: float
    start: int
    end: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbours `start` to `end` (exclusive) that make one span; `score` is their mean."""

    tag: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scheme:
    """How labels say where spans begin and end: BIO, BILOU, BIOES, or plain labels without prefix.

    Attributes:
        letters: those that, with a dash behind them, are a prefix and no part of the name.
    """

    letters: frozenset[str]

    @classmethod
    def of(cls, labels: Iterable[str]) -> Scheme:
        """Study a model's labels.

        B and I are always prefixes. L, U, E and S are if a label B-X or I-X with the same X stands
        beside one of theirs: so E-MAIL among B-PER and I-PER is a plain name, beside B-MAIL not.
        """
        known = set(labels)
        inside = {label[2:] for label in known if label.startswith(("B-", "I-"))}
        more = {x[0] for x in known if x.startswith(("L-", "U-", "E-", "S-")) and x[2:] in inside}
        return cls(frozenset("BI") | more)

    def split(self, label: str) -> tuple[str, str]:
        """Return letter and name; a plain label continues its like, as an I does."""
        if label[1:2] == "-" and len(label) > 2 and label[0] in self.letters:
            return label[0], label[2:]
        return "I", label

    def group(
        self, labels: Sequence[str], scores: Sequence[float], ignored: frozenset[str]
    ) -> list[Group]:
        """Group neighbours of one name, and leave out the names in `ignored`.

        An inside without a beginning begins a span, since taggers make that mistake.
        """
        if not labels:
            return []
        bounds: list[tuple[str, int]] = []  # name and start of each group
        ended = True
        for place, label in enumerate(labels):
            letter, tag = self.split(label)
            if ended or letter in _STARTS or bounds[-1][0] != tag:
                bounds.append((tag, place))
            ended = letter in _ENDS
        ends = [start for _, start in bounds[1:]] + [len(labels)]
        return [
            Group(tag, fmean(scores[start:end]), start, end)
            for (tag, start), end in zip(bounds, ends, strict=True)
            if tag not in ignored
        ]


def whole_characters(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Let each token reach to the end of its last character as a reader sees it.

    The tokenizer drops accents, joiners, variation selectors and the like, and its offsets end
    before one that stands last: at the bare e of é. A token is never stretched into the next one.

    Args:
        text: as the user gave it.
        offsets: start and end of each token in it.
    """
    whole = []
    for place, (start, end) in enumerate(offsets):
        limit = offsets[place + 1][0] if place + 1 < len(offsets) else len(text)
        while end < limit and _extends(text[end]):
            end += 1
        whole.append((start, end))
    return whole


def _extends(character: str) -> bool:
    """Whether it only completes the character before it (Unicode's Grapheme_Extend and marks)."""
    if character < "\u0300":
        return False
    return (
        unicodedata.category(character).startswith("M")
        or character in _ZERO_WIDTH_JOINERS
        or _TAGS[0] <= character <= _TAGS[1]
    )


def label_names(labels: Iterable[str]) -> frozenset[str]:
    """Check a list of labels.

    Raises:
        TypeError: if it is one str.
    """
    if isinstance(labels, str):
        raise TypeError(f"ignore_labels is the str {short(labels)}, expected a list of labels")
    return frozenset(labels)
