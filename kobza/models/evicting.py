"""Which stored positions go when a cache may hold only so many: rules, and what keeps to them.

Positions that stay keep their place in the text. `recent` and `sinks` are the same for all heads, the others are
decided for every head of keys by itself.

Source: sinks, Xiao et al. (2023), arXiv:2309.17453; heavy hitters, Zhang et al. (2023), H2O, arXiv:2306.14048; pivotal
tokens over a window, Liu et al. (2023), Scissorhands, arXiv:2305.17118.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.models.bare import BareStepper

Keep = Literal["full", "recent", "sinks", "random", "heavy", "pivotal"]
WATCHED = ("heavy", "pivotal")


def evict(
    rule: Keep,
    stored: int,
    budget: int,
    *,
    sinks: int = 4,
    weight: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the places that a rule keeps, rising: (budget,) or, by heads, (..., budget).

    Args:
        rule: "full" keeps all, "recent" the last, "sinks" the first `sinks` and the last; the others keep the last
            half of the budget and, of those before, "heavy" and "pivotal" the heaviest, "random" any.
        stored: positions there are.
        budget: positions kept [count, 1 ..].
        sinks: first positions kept by "sinks" [count, 0 .. budget - 1].
        weight: of each stored position (..., S), for "heavy" and "pivotal"; its shape also tells how many random
            choices are made.
        generator: for "random".

    >>> evict("sinks", 9, 4, sinks=1).tolist()
    [0, 6, 7, 8]
    """
    if rule == "full" or stored <= budget:
        return torch.arange(stored)
    if rule in ("recent", "sinks"):
        first = min(sinks, budget - 1) if rule == "sinks" else 0
        return torch.cat([torch.arange(first), torch.arange(stored - budget + first, stored)])
    old = stored - budget // 2
    if weight is None:
        weight = torch.zeros(stored)
    if rule == "random":
        weight = torch.rand(weight.shape, generator=generator)
    chosen = weight[..., :old].topk(budget - budget // 2, -1).indices.sort(-1).values
    last = torch.arange(old, stored).expand(*chosen.shape[:-1], -1)
    return torch.cat([chosen, last], -1)


class Evictor:
    """Keeps the cache of a run within a budget.

    Args:
        run: whose cache it is.
        rule: see `evict`.
        budget: positions stored at most [count, 2 ..].
        sinks: for "sinks".
        window: last tokens whose attention counts for "pivotal" [tokens, 1 ..].
        seed: for "random".
    """

    def __init__(
        self, run: BareStepper, rule: Keep, budget: int, *, sinks: int = 4, window: int = 64, seed: int = 0
    ) -> None:
        if budget < 2 or not 0 <= sinks < budget or window < 1:
            raise OutOfRange(
                f"budget {budget}, sinks {sinks}, window {window}: need 2 or more, 0 .. budget - 1, 1 or more."
            )
        self.run, self.rule, self.budget, self.sinks, self.window = run, rule, budget, sinks, window
        self._generator = torch.Generator().manual_seed(seed)
        self._lately: deque[tuple[int, Tensor]] = deque()  # (tokens, counts of above-mean shares (L, B, K, S))
        if rule in WATCHED:
            run.watch()

    def heard(self, tokens: int) -> None:
        """Note that so many tokens were fed; for "pivotal" old attention is forgotten."""
        if self.rule != "pivotal" or self.run.weight is None:
            return
        self._lately.append((tokens, self.run.weight[1]))
        self.run.watch()
        while sum(count for count, _ in self._lately) - self._lately[0][0] >= self.window:
            self._lately.popleft()

    def make_room(self, tokens: int) -> None:
        """Drop what must go so that `tokens` more fit; a single feed of more than the budget is not cut."""
        run, stored = self.run, self.run.length - self.run.dropped
        if self.rule == "full" or stored + tokens <= self.budget or tokens >= self.budget:
            return
        places = evict(
            self.rule, stored, self.budget - tokens, sinks=self.sinks, weight=self._weight(stored),
            generator=self._generator,
        )  # fmt: skip
        run.keep(places)
        self._lately = deque((count, _kept(counts, places)) for count, counts in self._lately)

    def _weight(self, stored: int) -> Tensor | None:
        """Return the weight of each stored position (L, B, K, S)."""
        run = self.run
        if self.rule == "random":
            return torch.zeros(run.model.layers, run.batch, run.keys.shape[2], stored)
        if run.weight is None:
            return None
        if self.rule == "heavy":
            return run.weight[0, ..., :stored]
        total = torch.zeros_like(run.weight[1])
        for _, counts in self._lately:
            total[..., : counts.shape[-1]] += counts
        return total[..., :stored]


def _kept(counts: Tensor, places: Tensor) -> Tensor:
    """Return counts (L, B, K, S) of the places (L, B, K, n) that were kept."""
    whole = torch.nn.functional.pad(counts, (0, max(0, int(places.max()) + 1 - counts.shape[-1])))
    return whole.gather(-1, places.expand(*counts.shape[:-1], places.shape[-1]))
