"""A tree of lookups: all the ways in which the same words went on before, judged in one pass.

Where the last words stood at several earlier places that went on differently, prompt lookup must choose one; a tree
holds them all, as far as each pays.

Source: Miao et al. (2023), SpecInfer, arXiv:2305.09781; Zhao et al. (2023), Lookahead of Ant, arXiv:2312.12728, whose
trie of earlier continuations this is.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kobza.decoding.base import Generation, Session, check_ranges, speak
from kobza.decoding.branching import Tree, branch
from kobza.decoding.shaping import Shape
from kobza.decoding.speculation import LONGEST, Watch
from kobza.models.model import Model
from kobza.models.prompts import Prompt

PLACES = 64  # latest places of the last token that are looked at


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    branches: int = 3,
    draft: int = 15,
    price: float = 0.15,
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt, copying ahead along several earlier continuations at once.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        branches: continuations in a tree, at most; 1 is prompt lookup [count, 1 ..].
        draft: tokens of a tree, at most [tokens, 1 ..].
        price: of one more token in a pass; 0 proposes whatever matches [passes, 0 ..].
        temperature: divides the logits; 0 is greedy [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation with the tokens of greedy decoding, or with the distribution of sampling.

    Raises:
        BadValue: a backend or a family that is not fed trees.
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step per pass; a lookup is a few table reads.
    """
    check_ranges(
        ("branches", branches, branches >= 1, "1 or more"),
        ("draft", draft, draft >= 1, "1 or more"),
        ("price", price, price >= 0, "0 or more"),
    )
    strategy = branch(Copies(branches, draft, price), Shape(temperature).checked(), seed)
    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


class Copies:
    """Goes on as several earlier places went on; each rank of a place is watched by itself."""

    def __init__(self, branches: int, draft: int, price: float) -> None:
        self.branches, self.draft, self.price = branches, draft, price
        self.watches = [Watch() for _ in range(branches)]
        self._places: dict[int, list[int]] = {}
        self._read = self._before = 0
        self._found: list[tuple[int, list[int]]] = []  # (match, continuation) of the last proposal, by rank

    def propose(self, session: Session, state: Tensor, most: int) -> Tree:
        """Join the beginnings of continuations, as far as each pays beside those before it."""
        self._found = self.continued(session.ids, min(most, self.draft))
        self._before = len(session.ids)
        tree = Tree()
        gained, cost = 1.0, 1.0
        for watch, (match, ids) in zip(self.watches, self._found, strict=False):
            room = min(len(ids), self.draft - len(tree.ids))
            length = room
            if self.price:
                length, gained, cost = watch.beside(match, room, self.price, gained, cost)
            at = -1
            for token in ids[:length]:
                at = tree.add(token, at)
        return tree

    def continued(self, ids: list[int], most: int) -> list[tuple[int, list[int]]]:
        """Return (match, continuation) of the longest matches whose first tokens differ."""
        for place in range(self._read, len(ids)):
            self._places.setdefault(ids[place], []).append(place)
        self._read = len(ids)
        found = []
        for place in reversed(self._places[ids[-1]][-PLACES - 1 : -1]):
            same = 1
            while same < LONGEST and same <= place and ids[place - same] == ids[-1 - same]:
                same += 1
            found.append((same, place))
        chosen: dict[int, tuple[int, list[int]]] = {}
        for same, place in sorted(found, key=lambda each: (-each[0], -each[1])) if most else []:
            chosen.setdefault(ids[place + 1], (same, ids[place + 1 : place + 1 + most]))
            if len(chosen) == self.branches:
                break
        return list(chosen.values())

    def settle(self, session: Session, tree: Tree, path: Sequence[int]) -> None:
        """Learn, for each rank, how far its continuation was right; only the first token where it went wrong there."""
        said = session.ids[self._before :]
        for watch, (match, ids) in zip(self.watches, self._found, strict=False):
            for place, (token, right) in enumerate(zip(ids, said, strict=False)):
                watch.note(match + place, token == right)
                if token != right:
                    break
