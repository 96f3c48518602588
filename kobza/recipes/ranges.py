"""Ranges in a sweep: one word that stands for several values.

    64|128|256      each of them
    64..576:64      from 64 to 576 in steps of 64
    64..512:*2      from 64 to 512, each twice the one before
    0..4            whole numbers at most 16 steps apart: every one, so 0, 1, 2, 3, 4
    64..512         further apart, or fractions: doubling from the first, ending with the last, so 64, 128, 256, 512
    0..4|10         alternatives may be ranges

Steps are counted in decimal fractions, so that 0.1..0.3:0.1 is 0.1, 0.2, 0.3 and not 0.30000000000000004.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from kobza.core.errors import OutOfRange

MOST = 10_000  # values of one range, and points of one sweep
EVERY = 16  # whole numbers no further apart than this are all taken

_NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\.\.({_NUMBER})(?::(\*?)({_NUMBER}))?\s*")


def expand(value: Any) -> list[Any]:
    """Return the values that a word stands for; anything but a range or alternatives stands for itself.

    >>> expand("64..256:64")
    ['64', '128', '192', '256']

    Raises:
        OutOfRange: the range runs downwards, its step leads nowhere, or it has more than 10,000 values.
    """
    if not isinstance(value, str):
        return [value]
    found: list[Any] = []
    for part in value.split("|"):
        match = _RANGE.fullmatch(part)
        found += _numbers(part.strip(), *match.groups()) if match else [part]
    return list(dict.fromkeys(found))


def is_range(value: Any) -> bool:
    """Say whether a word stands for several values."""
    return isinstance(value, str) and ("|" in value or _RANGE.fullmatch(value) is not None)


def _numbers(spelled: str, first: str, last: str, times: str | None, step: str | None) -> list[str]:
    low, high = Decimal(first), Decimal(last)
    if high < low:
        raise OutOfRange(f"the range {spelled!r} runs downwards.", f"Write the smaller end first: {last}..{first}")
    if step is None:
        whole = low == low.to_integral_value() and high == high.to_integral_value()
        if whole and high - low <= EVERY:
            return _arithmetic(spelled, low, high, Decimal(1))
        values = _geometric(spelled, low, high, Decimal(2))
        return values if values[-1] == _spell(high) else [*values, _spell(high)]
    return (_geometric if times else _arithmetic)(spelled, low, high, Decimal(step))


def _arithmetic(spelled: str, low: Decimal, high: Decimal, step: Decimal) -> list[str]:
    if step <= 0:
        raise OutOfRange(f"the range {spelled!r} has a step of {step}; allowed: more than 0.")
    count = int((high - low) / step) + 1 if (high - low) / step < MOST else MOST + 1
    if count > MOST:
        raise OutOfRange(f"the range {spelled!r} has more than {MOST} values.", "Take a wider step: 64..576:64")
    return [_spell(low + i * step) for i in range(count)]


def _geometric(spelled: str, low: Decimal, high: Decimal, factor: Decimal) -> list[str]:
    if low <= 0:
        raise OutOfRange(f"the range {spelled!r} cannot grow from {low}.", f"Give a step: {low}..{high}:0.1")
    if factor <= 1:
        raise OutOfRange(f"the range {spelled!r} grows by a factor of {factor}; allowed: more than 1.")
    values, value = [], low
    while value <= high:
        values.append(_spell(value))
        if len(values) > MOST:
            raise OutOfRange(f"the range {spelled!r} has more than {MOST} values.", "Take a larger factor: 1..1000:*2")
        value *= factor
    return values


def _spell(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
