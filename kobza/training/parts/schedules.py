"""How the rate runs over a training, and when the training ends.

Sources: cosine, Loshchilov & Hutter (2017), arXiv:1608.03983; trapezoid (warm up, hold, cool down), Hägele et al.
(2024), arXiv:2405.18392, whose cool-down over the last 20 % is the one here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kobza.core.errors import BadValue, UnknownName

COOL = 0.2  # last share of a trapezoid, Hägele et al., section 4
KINDS = ("cosine", "trapezoid", "constant")
_TERM = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*(steps?|s|sec|seconds|min|m|h|bpb)?\s*", re.IGNORECASE)
_SECONDS = {"s": 1, "sec": 1, "seconds": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """When to stop: whatever comes first. What is None sets no limit.

    Attributes:
        steps: updates.
        seconds: of training, over all resumed parts.
        bits_per_byte: of the held-out text.
    """

    steps: int | None = None
    seconds: float | None = None
    bits_per_byte: float | None = None

    def __str__(self) -> str:
        limits = ((self.steps, "steps"), (self.seconds, "s"), (self.bits_per_byte, "bit/B"))
        return " or ".join(f"{limit:g} {unit}" for limit, unit in limits if limit is not None)

    def part(self, step: int, seconds: float) -> float:
        """Return the share that is used up [0 .. 1]; a target alone gives 0, since nobody knows when it is reached."""
        steps = step / self.steps if self.steps else 0.0
        return min(1.0, max(steps, seconds / self.seconds if self.seconds else 0.0))

    def is_spent(self, step: int, seconds: float, held: float | None) -> bool:
        """Whether to stop before the update number `step` (0 ..)."""
        reached = self.bits_per_byte is not None and held is not None and held <= self.bits_per_byte
        return reached or self.part(step, seconds) >= 1


def budget(words: str | int | Budget) -> Budget:
    """Read a budget: "3000steps", "300s", "1.65bpb", several with commas, or a number of steps.

    >>> budget("300s, 1.65bpb")
    Budget(steps=None, seconds=300.0, bits_per_byte=1.65)

    Raises:
        BadValue: not of this form, or not above 0.
    """
    if isinstance(words, Budget):
        return words
    found: dict[str, float] = {}
    for term in str(words).split(","):
        read = _TERM.fullmatch(term)
        number = float(read[1]) if read else 0.0
        if not read or number <= 0:
            raise BadValue(f"budget {term.strip()!r}: give 3000steps, 300s, 5min or 1.65bpb, above 0.")
        unit = (read[2] or "steps").lower()
        if unit in _SECONDS:
            found["seconds"] = number * _SECONDS[unit]
        else:
            found["bits_per_byte" if unit == "bpb" else "steps"] = number
    steps = found.get("steps")
    if steps is not None and steps != int(steps):
        raise BadValue(f"budget {words!r}: {steps:g} is not a whole number of steps.")
    return Budget(None if steps is None else int(steps), found.get("seconds"), found.get("bits_per_byte"))


def rate_at(part: float, step: int, *, kind: str = "cosine", warmup: int = 0, floor: float = 0.0) -> float:
    """Return the share of the full rate at an update.

    Args:
        part: of the budget that is used up [fraction, 0 .. 1].
        step: number of the update [count, 0 ..].
        kind: "cosine", "trapezoid" or "constant".
        warmup: updates over which the rate rises [count, 0 ..].
        floor: what the rate falls to [fraction of the full rate, 0 .. 1].

    >>> [round(rate_at(p / 4, p, kind="cosine"), 2) for p in range(5)]
    [1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if kind not in KINDS:
        raise UnknownName.of("schedule", kind, KINDS)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    fall = 0.5 * (1 + math.cos(math.pi * part)) if kind == "cosine" else min(1.0, (1 - part) / COOL)
    return floor + (1 - floor) * fall
