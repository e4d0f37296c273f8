"""Checks of single values from files and callers, with messages that say what was expected."""

from __future__ import annotations

import math
import operator
from typing import SupportsIndex


def check_int(name: str, value: object, low: int, high: int) -> int:
    """Return `value` if it is an integer (no bool) from `low` to `high`, else raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ValueError(f"{name} is {short(value)}, expected an integer")
    number = operator.index(value)  # NumPy's integers too
    if not low <= number <= high:
        raise ValueError(f"{name} is {short(number)}, expected {low} to {high}")
    return number


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of the names in `choices`, else raise ValueError."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {short(value)}, supported: {', '.join(choices)}")
    return value


def number(name: str, value: object) -> float:
    """Return `value` as a float if it is a finite number (no bool), else raise ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{name} is {short(value)}, expected a finite number")


def short(value: object) -> str:
    """Return a repr of at most about 40 characters, also of an integer with 5,000 digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
