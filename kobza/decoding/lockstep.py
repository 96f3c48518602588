"""Several texts drawn from one prompt at once: each step reads the weights once for all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from kobza.decoding.base import Session, Step, spread
from kobza.decoding.shaping import Shape


@dataclass
class Drawn:
    """One text of several: its tokens, and whether it came to its end."""

    steps: list[Step] = field(default_factory=list)
    is_ended: bool = False

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        return [step.id for step in self.steps]

    @property
    def mean(self) -> float:
        """Mean log-probability of its tokens [nats]; that of no token is -infinity."""
        return sum(step.logprob for step in self.steps) / len(self.steps) if self.steps else float("-inf")


class Rule(Protocol):
    """What restricts one text: it sees every token and masks what may follow."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Return logits (V,), -inf where a token may not follow."""

    def take(self, token: int) -> bool:
        """Hear what was said; return whether the text is complete."""


def draw(session: Session, texts: int, shape: Shape, seed: int, rules: Sequence[Rule] = ()) -> list[Drawn]:
    """Draw texts in lockstep from the prompt of a session, those that end leaving the batch.

    Args:
        session: whose prompt is read once.
        texts: how many.
        shape: of the distributions.
        seed: of the draws; one generator serves all.
        rules: one per text, or none.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [Drawn() for _ in range(texts)]
    each: list[Rule | None] = list(rules) or [None] * texts
    open_ones = list(zip(drawn, each, strict=True))
    logits = session.feed(session.ids)[None].expand(texts, -1)
    session.run.select([0] * texts)
    for made in range(1, session.tokens + 1):
        rows = []
        for row, (text, rule) in enumerate(open_ones):
            allowed = rule(logits[row]) if rule else logits[row]
            token = shape.pick(shape(allowed), generator)
            if token in session.ends:
                text.is_ended = True
                continue
            logprobs = logits[row].log_softmax(-1)
            seconds = time.perf_counter() - session.begin
            text.steps.append(Step(token, float(logprobs[token]), seconds, *spread(logprobs)))
            text.is_ended = rule is not None and rule.take(token)
            if not text.is_ended:
                rows.append(row)
        open_ones = [open_ones[row] for row in rows]
        if not rows or made == session.tokens:
            break
        session.run.select(rows)
        session.passes += 1
        logits = session.checked(session.run.feed([[text.steps[-1].id] for text, _ in open_ones]).cpu())
    return drawn
