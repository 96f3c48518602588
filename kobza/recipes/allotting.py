"""Which matrix is stored in which form: losses add up, so the best byte to save next is always the cheapest one.

Every matrix has a few forms, each with its bytes and the bits per byte it would cost. From the best form of every
matrix on, the step that costs least per byte saved is taken again and again: a path from the largest to the smallest
model. Steps run along the lower convex hull of each matrix, on which the greedy path is optimal at each of its points.

Source: Shoham & Gersho (1988), doi:10.1109/29.90373 (bit allocation along the hull).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Price:
    """A form of a matrix: what it stores [bytes] and what it costs [bit/B, 0 ..]."""

    form: str
    bytes: int
    loss: float


@dataclass(frozen=True)
class Path:
    """The path from the best to the smallest forms.

    Attributes:
        begin: form of every matrix where it begins.
        steps: (matrix, price before, price after) in the order of taking.
        bytes, losses: of the whole after 0, 1, .. steps; bytes fall, losses rise.
    """

    begin: dict[str, str]
    steps: tuple[tuple[str, Price, Price], ...]
    bytes: tuple[int, ...]
    losses: tuple[float, ...]

    def forms(self, steps: int) -> dict[str, str]:
        """The form of every matrix after so many steps."""
        found = dict(self.begin)
        for name, _, after in self.steps[:steps]:
            found[name] = after.form
        return found

    def within_bytes(self, most: int) -> int | None:
        """Steps until the whole takes at most so many bytes; None where it never does."""
        at = bisect_left([-size for size in self.bytes], -most)
        return at if at < len(self.bytes) else None

    def within_loss(self, most: float) -> int | None:
        """The most steps that cost at most so much; None where even the beginning costs more."""
        fits = [at for at, loss in enumerate(self.losses) if loss <= most]
        return fits[-1] if fits else None


def hull(prices: Sequence[Price]) -> list[Price]:
    """The forms worth taking, by falling bytes: each further byte saved costs more than the one before.

    >>> [p.form for p in hull([Price("a", 8, 0.0), Price("b", 6, 5.0), Price("c", 4, 1.0), Price("d", 9, 0.5)])]
    ['a', 'c']
    """
    kept: list[Price] = []
    for price in sorted(prices, key=lambda p: (-p.bytes, p.loss)):
        while kept and (kept[-1].loss >= price.loss or (len(kept) > 1 and _is_above(kept[-2], kept[-1], price))):
            kept.pop()
        if not kept or price.bytes < kept[-1].bytes:
            kept.append(price)
    return kept


def _is_above(before: Price, middle: Price, after: Price) -> bool:
    """Whether `middle` lies on or above the line from `before` to `after`."""
    rise, run = after.loss - before.loss, before.bytes - after.bytes
    return run == 0 or (middle.loss - before.loss) * run >= rise * (before.bytes - middle.bytes)


def path(prices: Mapping[str, Sequence[Price]], fixed: int = 0) -> Path:
    """Return the path of a model whose matrices have these forms.

    Args:
        prices: the forms of every matrix.
        fixed: bytes of everything else.
    """
    hulls = {name: hull(forms) for name, forms in prices.items()}
    steps = [(name, a, b) for name, forms in hulls.items() for a, b in pairwise(forms)]
    steps.sort(key=lambda step: ((step[2].loss - step[1].loss) / (step[1].bytes - step[2].bytes), step[0]))
    sizes, losses = [fixed + sum(h[0].bytes for h in hulls.values())], [sum(h[0].loss for h in hulls.values())]
    for _, before, after in steps:
        sizes.append(sizes[-1] - before.bytes + after.bytes)
        losses.append(losses[-1] + after.loss - before.loss)
    return Path({name: forms[0].form for name, forms in hulls.items()}, tuple(steps), tuple(sizes), tuple(losses))


def patterns(chosen: Sequence[str], every: Sequence[str]) -> str:
    """Names as one short `where`: a pattern where all matrices of a kind are chosen, names where some are.

    >>> patterns(["blocks.0.mlp.up", "blocks.1.mlp.up"], ["blocks.0.mlp.up", "blocks.1.mlp.up", "blocks.0.mlp.down"])
    'blocks.*.mlp.up'
    """
    if set(chosen) == {name for name in every if name.startswith("blocks.")}:
        return "blocks"
    found: list[str] = []
    for kind in dict.fromkeys(map(_kind, chosen)):
        own, all_own = ([name for name in names if _kind(name) == kind] for names in (chosen, every))
        found += [kind] if len(own) == len(all_own) > 1 else own
    return ",".join(found)


def _kind(name: str) -> str:
    parts = name.split(".")
    return ".".join(["blocks", "*", *parts[2:]]) if parts[0] == "blocks" else name
