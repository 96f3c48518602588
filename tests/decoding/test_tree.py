"""Trees of proposals change the time, not the text."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.decoding import greedy, lookup, tree
from kobza.decoding.base import Session, speak
from kobza.decoding.branching import Tree, branch
from kobza.decoding.shaping import Shape
from kobza.decoding.speculation import Watch
from kobza.decoding.tree import Copies
from kobza.models.stepping import using
from kobza.models.tiny import tiny as make_tiny

PROMPT = "one two three one two four one two three one two"


@pytest.mark.parametrize(("family", "backend"), [("llama", "bare"), ("qwen3", "bare"), ("llama", "transformers"),
                                                 ("gpt2", "auto")])  # fmt: skip
def test_the_text_is_greedy(family: str, backend: str) -> None:
    model = make_tiny(family, layers=3)
    with using(backend):
        right = greedy.generate(model, PROMPT, tokens=50)
        found = tree.generate(model, PROMPT, tokens=50, price=0.0)
    assert found.ids == right.ids and found.logprobs == pytest.approx(right.logprobs, abs=1e-4)
    assert found.passes <= right.passes


class Guess:
    """Proposes wrong tokens beside the right ones."""

    def __init__(self, right: list[int]) -> None:
        self.right = right

    def propose(self, session: Session, state: Tensor, most: int) -> Tree:
        made, at = Tree(), -1
        for token in self.right[session.made : session.made + min(4, most)]:
            made.add((token + 1) % 300, at)
            at = made.add(token, at)
        return made

    def settle(self, session: Session, tree: Tree, path: Any) -> None:
        assert [tree.ids[n] for n in path] == session.ids[len(session.ids) - 1 - len(path) : -1]


@pytest.mark.parametrize("backend", ["bare", "transformers"])
def test_the_right_branch_is_found_among_wrong_ones(backend: str) -> None:
    model = make_tiny(layers=3)
    with using(backend):
        right = greedy.generate(model, PROMPT, tokens=41)
        found = speak(model, PROMPT, branch(Guess(right.ids), Shape(0.0), 0), tokens=41)
        assert found.ids == right.ids and found.passes == 9


def test_one_branch_proposes_what_lookup_does() -> None:
    model = make_tiny()
    session = Session(model, [0, 9, 5, 6, 7, 5, 6, 8, 5, 6], 30, "bare")
    alone = Copies(1, 15, 0.0).propose(session, torch.zeros(1), 20).ids
    assert alone == lookup.Lookup(15, 0.0, is_patient=True).propose(session, 20)[0] == [8, 5, 6]
    whole = Copies(2, 15, 0.0).propose(session, torch.zeros(1), 20)
    assert whole.ids == [8, 5, 6, 7, 5, 6, 8, 5, 6] and whole.parents == [-1, 0, 1, -1, 3, 4, 5, 6, 7]
    assert len(Copies(2, 5, 0.0).propose(session, torch.zeros(1), 20).ids) == 5


def test_beside_others_a_token_must_pay_more() -> None:
    watch = Watch()
    for _ in range(60):
        watch.note(1, True)
    assert watch.beside(1, 3, 0.3, 1.0, 1.0)[0] == 3
    assert watch.beside(1, 3, 1.1, 4.0, 1.2)[0] == 0


def test_a_backend_that_is_not_fed_trees_is_refused() -> None:
    with pytest.raises(BadValue, match="see a part of the text only"):
        _ = tree.generate(make_tiny("gemma2"), PROMPT, tokens=20, price=0.0).text
