"""The options of one tokenizer call, and the arithmetic of cutting texts to a length."""

from __future__ import annotations

import operator
import warnings
from dataclasses import dataclass
from enum import Enum
from typing import SupportsIndex

from fastbert.checks import check_choice, short
from fastbert.tokenization.config import LARGEST_LIMIT

_PADDINGS = ("do_not_pad", "longest", "max_length")
_TRUNCATIONS = ("do_not_truncate", "longest_first", "only_first", "only_second")


@dataclass(frozen=True)
class CallOptions:
    """What one call asks for, settled: no None is left to mean "the default".

    Attributes:
        padding: "do_not_pad", "longest" or "max_length".
        truncation: "do_not_truncate", "longest_first", "only_first" or "only_second".
        max_length: tokens with the special ones; None where neither of the two needs it.
        stride: tokens that an overflowing piece repeats of the one before (the overlap).
        pad_to_multiple_of: round padded lengths up to a multiple of this.
        padding_side, truncation_side: "right" or "left".
    """

    add_special_tokens: bool
    padding: str
    truncation: str
    max_length: int | None
    stride: int
    pad_to_multiple_of: int | None
    padding_side: str
    truncation_side: str
    split_special_tokens: bool

    def __post_init__(self) -> None:
        check_choice("padding_side", self.padding_side, ("right", "left"))
        check_choice("truncation_side", self.truncation_side, ("right", "left"))
        multiple, limit = self.pad_to_multiple_of, self.max_length
        both = self.truncates and self.padding != "do_not_pad"
        if both and multiple and limit and limit % multiple:
            raise ValueError(
                f"max_length is {limit}, expected a multiple of pad_to_multiple_of, {multiple}, "
                "where texts are both cut and padded"
            )

    @property
    def truncates(self) -> bool:
        """Whether texts may be cut."""
        return self.truncation != "do_not_truncate"

    def room(self, special: int) -> int:
        """Return how many tokens of text fit beside `special` special ones (or 0 of them).

        Raises:
            ValueError: `max_length` is below that number, or `stride` leaves no step forward.
        """
        if self.max_length is None:
            raise ValueError("cutting texts needs a max_length")
        special = special if self.add_special_tokens else 0
        room = self.max_length - special
        if room < 0:
            raise ValueError(
                f"max_length is {self.max_length}, below the {special} special tokens of a row"
            )
        if self.stride and self.stride >= room:
            raise ValueError(
                f"stride is {self.stride}, expected less than the {room} tokens of text that "
                f"max_length {self.max_length} leaves beside {special} special ones"
            )
        return room


def settle_padding(padding: bool | str) -> str:
    """Return the padding strategy that True, False or a name stands for."""
    if isinstance(padding, bool):
        return "longest" if padding else "do_not_pad"
    return check_choice("padding", _plain(padding), _PADDINGS)


def settle_truncation(truncation: bool | str | None) -> str:
    """Return the truncation strategy that True, False, None or a name stands for."""
    if truncation is None or isinstance(truncation, bool):
        return "longest_first" if truncation else "do_not_truncate"
    return check_choice("truncation", _plain(truncation), _TRUNCATIONS)


def settle_lengths(
    padding: bool | str,
    truncation: bool | str | None,
    max_length: SupportsIndex | None,
    model_max_length: int,
    verbose: bool = True,
) -> tuple[str, str, int | None]:
    """Return the two strategies and their length, as transformers reads these arguments.

    A `max_length` alone cuts; padding or cutting without one goes to the model's own, and does not
    happen where the model states none.
    """
    if max_length is not None:
        max_length = as_count("max_length", max_length)
        if padding is False and truncation is None:
            truncation = "longest_first"
        if verbose and padding is True and settle_truncation(truncation) == "do_not_truncate":
            warnings.warn(
                "max_length is ignored: padding=True pads to the longest text and nothing is cut; "
                "use padding='max_length' or truncation=True",
                stacklevel=3,
            )
    pad, cut = settle_padding(padding), settle_truncation(truncation)
    if max_length is None:
        known = model_max_length <= LARGEST_LIMIT
        if pad == "max_length" and not known:
            pad = "do_not_pad"
        if cut != "do_not_truncate" and not known:
            cut = "do_not_truncate"
        if pad == "max_length" or cut != "do_not_truncate":
            max_length = model_max_length
    return pad, cut, max_length


def as_count(name: str, value: object, least: int = 0) -> int:
    """Return an integer of any integer type, at least `least`.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small, or beyond 2^31 - 1.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is {short(value)}, expected an integer")
    number = operator.index(value)
    if not least <= number < 2**31:
        raise ValueError(f"{name} is {short(number)}, expected {least} to {2**31 - 1}")
    return number


def kept_lengths(first: int, second: int | None, room: int, strategy: str) -> tuple[int, int]:
    """Return how many tokens of each text stay when a row may hold `room` of them.

    "longest_first" shortens the longer text until both are equal and then both alike, an odd token
    going to the text that was longer (on a tie, to the second).

    Args:
        first, second: tokens of the two texts; None for a single text.
        room: tokens that may stay.
        strategy: a truncation strategy.

    Raises:
        ValueError: the text that should give way can't: it is not there, or too short.
    """
    n1, n2 = first, second or 0
    if strategy == "do_not_truncate" or n1 + n2 <= room:
        return n1, n2
    if room == 0:
        return 0, 0
    if strategy == "longest_first":
        return _share(n1, n2, room) if second is not None else (room, 0)
    if strategy == "only_second" and second is None:
        raise ValueError("truncation='only_second', but there is no second text to cut")
    which, other = ("first", n2) if strategy == "only_first" else ("second", n1)
    if other >= room:
        raise ValueError(
            f"cutting the {which} text alone can't reach max_length: the other one already fills "
            f"the {room} tokens of text that fit"
        )
    return (room - n2, n2) if strategy == "only_first" else (n1, room - n1)


def _share(n1: int, n2: int, room: int) -> tuple[int, int]:
    """Return the shares of a pair that is too long, the shorter kept whole if it is under half."""
    half = room // 2
    if min(n1, n2) <= half:
        return (n1, room - n1) if n1 <= n2 else (room - n2, n2)
    return (room - half, half) if n1 > n2 else (half, room - half)


def _plain(value: object) -> object:
    """Return a strategy's name; transformers' enumerations of them carry it as their value."""
    return value.value if isinstance(value, Enum) else value
