"""Speculation with trees: several continuations are proposed at once, and one pass judges all of them.

The tokens of a tree are read together, each seeing the text and those it follows. From the root on, a token is chosen
from the model's own shaped distribution; while it is among the proposals that follow, the walk goes on there. So every
token is the one that greedy decoding takes, or is drawn from the model's own distribution, whatever was proposed: the
proposals are certain, not drawn, and nothing has to be corrected.

Source: Miao et al. (2023), SpecInfer, arXiv:2305.09781, sections 3 and 4; Cai et al. (2024), Medusa, arXiv:2401.10774.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from kobza.decoding.base import Draft, Event, Session, Strategy
from kobza.decoding.shaping import Shape


@dataclass
class Tree:
    """Proposed tokens.

    Attributes:
        ids: the tokens, every one behind the one it follows.
        parents: index of the token each follows, -1 for the last one said.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def add(self, token: int, parent: int) -> int:
        """Let a token follow another, once; return its index."""
        there = self.child(parent, token)
        if there is not None:
            return there
        self.ids.append(token)
        self.parents.append(parent)
        return len(self.ids) - 1

    def child(self, parent: int, token: int) -> int | None:
        """Return the index of a token that follows another, None where it does not.

        >>> tree = Tree()
        >>> tree.add(7, tree.add(5, -1)), tree.child(0, 7), tree.child(-1, 7)
        (1, 1, None)
        """
        found = (n for n, (id, above) in enumerate(zip(self.ids, self.parents, strict=True)) if above == parent)
        return next((n for n in found if self.ids[n] == token), None)


class Brancher(Protocol):
    """What proposes trees."""

    def propose(self, session: Session, state: Tensor, most: int) -> Tree:
        """Return what may follow the last token said, at most `most` tokens deep.

        Args:
            session: the text so far.
            state: behind the final norm (D,), of the token before the last.
            most: depth at most.
        """

    def settle(self, session: Session, tree: Tree, path: Sequence[int]) -> None:
        """Hear which places of a tree came true, after the text has grown."""


def branch(brancher: Brancher, shape: Shape, seed: int) -> Strategy:
    """Return the strategy that lets a brancher propose trees and the model judge them.

    Args:
        brancher: what proposes.
        shape: how the model's distribution is shaped; temperature 0 is greedy.
        seed: of the draws.
    """

    def strategy(session: Session) -> Iterator[Event]:
        generator = torch.Generator().manual_seed(seed)
        start = session.prompt_tokens
        session.passes += 1
        first, states = session.run.feed_states([session.ids])
        logits, state = session.checked(first[0].cpu()), states[0, -1]
        event = session.say(shape.pick(shape(logits, session.ids, start), generator), logits)
        yield event
        while session.left and not isinstance(event, str):
            tree = brancher.propose(session, state, session.left - 1)
            rows, states = _read(session, tree)
            path: list[int] = []
            said: list[Event] = []
            at: int | None = -1
            while at is not None and not isinstance(event, str):
                row = rows[at + 1]
                token = shape.pick(shape(row, session.ids, start), generator)
                at = tree.child(at, token)
                event = session.say(token, row, is_drafted=at is not None)
                said.append(event)
                if at is not None:
                    path.append(at)
            state = states[path[-1] + 1 if path else 0]
            session.run.prune(len(rows), [0, *(n + 1 for n in path)])
            brancher.settle(session, tree, path)
            if tree.ids:
                yield Draft(tuple(tree.ids), len(path))
            yield from said

    return strategy


def _read(session: Session, tree: Tree) -> tuple[Tensor, Tensor]:
    """Read the last token and a tree behind it; return logits (n + 1, V) and states (n + 1, D)."""
    session.passes += 1
    last = session.ids[-1]
    if not tree.ids:
        logits, states = session.run.feed_states([[last]])
        return session.checked(logits.cpu()), states[0]
    logits, states = session.run.feed_tree([last, *tree.ids], [-1, *(parent + 1 for parent in tree.parents)])
    return session.checked(logits.cpu()), states
