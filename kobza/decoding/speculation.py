"""Speculation: something cheap proposes tokens, the model judges all of them in one pass, and nothing changes.

Greedy: the text is that of greedy decoding, token for token (in float32; rounding that depends on how many tokens are
read at once can turn a near-tie, in bfloat16 it does now and then). Drawn: every token has the model's own (shaped)
distribution; a proposal d of probability q(d) is kept with probability min(1, p(d) / q(d)), else the token is drawn
from what p has more than q.

Sources: Leviathan, Kalman & Matias (2022), arXiv:2211.17192; Chen et al. (2023), arXiv:2302.01318.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from kobza.decoding.base import Draft, Event, Session, Strategy
from kobza.decoding.shaping import Shape

PRICE = 0.15  # of one more token in a pass, in passes; 0.1 to 0.26 measured (bench/decoding.py)
FORGET = 0.97  # what a count keeps of itself at each new sighting: about the last 30 count
LONGEST = 8  # matches of more tokens are counted together


class Drafter(Protocol):
    """What proposes."""

    def propose(self, session: Session, most: int) -> tuple[list[int], Tensor | None]:
        """Return at most `most` tokens, and the probabilities (n, V) they were drawn from; None: it was certain."""

    def judged(self, session: Session, fed: list[int]) -> Tensor:
        """Let the model read the last token and the proposal; return its logits (n + 1, V)."""

    def settle(self, session: Session, draft: list[int], accepted: int) -> None:
        """Hear what became of a proposal, after the text has grown by what was said."""


class Plain:
    """The parts of a Drafter that most have in common."""

    def judged(self, session: Session, fed: list[int]) -> Tensor:
        """Read all in one pass."""
        logits = session.feed(fed, keep=len(fed))
        return logits[None] if len(fed) == 1 else logits

    def settle(self, session: Session, draft: list[int], accepted: int) -> None:
        """Learn nothing."""


def speculate(drafter: Drafter, shape: Shape, seed: int) -> Strategy:
    """Return the strategy that lets a drafter propose and the model judge.

    Args:
        drafter: what proposes.
        shape: how the model's distribution is shaped; temperature 0 is greedy.
        seed: of the draws.
    """

    def strategy(session: Session) -> Iterator[Event]:
        generator = torch.Generator().manual_seed(seed)
        start = session.prompt_tokens
        logits = session.feed(session.ids)
        event = session.say(shape.pick(shape(logits, session.ids, start), generator), logits)
        yield event
        while session.left and not isinstance(event, str):
            draft, likely = drafter.propose(session, session.left - 1)
            rows = drafter.judged(session, [session.ids[-1], *draft])
            accepted = 0
            said: list[Event] = []
            for place, row in enumerate(rows):
                shaped = shape(row, session.ids, start)
                proposed = draft[place] if place < len(draft) else None
                token = judge(shaped, proposed, None if likely is None else likely[place : place + 1], shape, generator)
                event = session.say(token, row, is_drafted=token == proposed)
                said.append(event)
                if token != proposed or isinstance(event, str):
                    break
                accepted += 1
            session.run.rollback(len(draft) - accepted)
            drafter.settle(session, draft, accepted)
            if draft:
                yield Draft(tuple(draft), accepted)
            yield from said

    return strategy


def judge(shaped: Tensor, proposed: int | None, likely: Tensor | None, shape: Shape, generator: torch.Generator) -> int:
    """Return the token at one place: the proposal where it is kept, else one drawn in its stead.

    Args:
        shaped: the model's shaped logits (V,).
        proposed: the token proposed here, None behind the last one.
        likely: the distribution (1, V) it was drawn from; None: all of it on the proposal.
        shape: tells whether anything is drawn.
        generator: of the draws.
    """
    if proposed is None or shape.temperature == 0:
        return shape.pick(shaped, generator)
    p = shaped.softmax(-1)
    q = likely[0] if likely is not None and len(likely) else torch.zeros_like(p).index_fill_(0, _at(proposed), 1.0)
    if float(torch.rand((), generator=generator)) * float(q[proposed]) < float(p[proposed]):
        return proposed
    rest = (p - q).clamp(min=0)
    # p = q up to rounding leaves nothing over; then any draw from p is right
    return int(torch.multinomial(rest if float(rest.sum()) > 0 else p, 1, generator=generator))


def _at(token: int) -> Tensor:
    return torch.tensor([token])


@dataclass
class Watch:
    """How often proposals came true, by the length of the match they came from; it also watches when none is made.

    A proposal costs a share of a pass for every token, so it pays only where it tends to come true. Proposals that
    were not made are compared with what was then said: a drafter that stopped notices for nothing that it could
    begin again.

    Attributes:
        hits, seen: counts of tokens that came true, and of all, for matches of 1 .. LONGEST tokens.
    """

    # the start, worth one sighting: a longer match is more often right
    hits: list[float] = field(default_factory=lambda: [n / (n + 4) for n in range(1, LONGEST + 1)])
    seen: list[float] = field(default_factory=lambda: [1.0] * LONGEST)
    waiting: list[tuple[int, int]] = field(default_factory=list)  # (match, token) at the places to come

    def note(self, match: int, is_hit: bool) -> None:
        """Count one token that was proposed from a match of so many tokens."""
        place = min(match, LONGEST) - 1
        self.hits[place] = FORGET * self.hits[place] + is_hit
        self.seen[place] = FORGET * self.seen[place] + 1

    def rate(self, match: int) -> float:
        """Share of proposals that came true, from such matches or shorter ones if that is more."""
        return max(self.hits[n] / self.seen[n] for n in range(min(match, LONGEST)))

    def worth(self, match: int, most: int, price: float = PRICE) -> int:
        """Return how many tokens to propose from a match: where tokens gained per pass paid are most; 0 for none."""
        return self.beside(match, most, price, 1.0, 1.0)[0]

    def beside(self, match: int, most: int, price: float, gained: float, cost: float) -> tuple[int, float, float]:
        """Return how many tokens to propose beside others, and tokens gained and passes paid with them.

        Args:
            match: length of the match they come from.
            most: tokens at most.
            price: of a token in a pass.
            gained, cost: expected without them, 1 and 1 where nothing else is proposed.
        """
        best, chance, tokens = (0, gained, cost), 1.0, gained
        for n in range(1, most + 1):
            chance *= self.rate(match + n - 1)
            tokens += chance
            if tokens / (cost + price * n) > best[1] / best[2]:
                best = n, tokens, cost + price * n
        return best

    def expect(self, match: int, token: int | None) -> None:
        """Remember what would come next by the match, proposed or not; None: nothing matched."""
        self.waiting = [] if token is None else [(match, token)]

    def learn(self, said: Sequence[int], draft: Sequence[int], match: int) -> None:
        """Compare what was said with what was proposed or, where nothing was, with what was expected."""
        if draft:
            for place, token in enumerate(draft[: len(said)]):
                self.note(match + place, token == said[place])
        elif self.waiting and said:
            self.note(self.waiting[0][0], self.waiting[0][1] == said[0])


class Copying(Plain):
    """A drafter that goes on as an earlier place of the text went on; shared by `lookup` and `ngram`.

    Args:
        draft: tokens proposed at most.
        price: of one more token in a pass [passes].
        is_patient: propose at every match, however seldom it came true.
    """

    def __init__(self, draft: int, price: float = PRICE, *, is_patient: bool = False) -> None:
        self.draft, self.price, self.is_patient = draft, price, is_patient
        self.watch = Watch()
        self._before = 0
        self._match = 0

    def continued(self, ids: list[int], most: int) -> tuple[list[int], int]:
        """Return what may follow the text, and the length of the match it is taken from."""
        raise NotImplementedError

    def propose(self, session: Session, most: int) -> tuple[list[int], Tensor | None]:
        """Propose as much of the continuation as pays."""
        found, self._match = self.continued(session.ids, min(most, self.draft))
        self._before = len(session.ids)
        self.watch.expect(self._match, found[0] if found else None)
        length = len(found) if self.is_patient else self.watch.worth(self._match, len(found), self.price)
        return found[:length], None

    def settle(self, session: Session, draft: list[int], accepted: int) -> None:
        """Learn how often matches of this length come true."""
        self.watch.learn(session.ids[self._before :], draft, self._match)
