"""Draft heads change the time, not the text; they learn what the model will say."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, MissingFile, WrongVocabulary
from kobza.decoding import greedy, hydra
from kobza.decoding.base import Session
from kobza.decoding.hydra import Guesses, Heads
from kobza.models.stepping import using
from kobza.models.tiny import tiny as make_tiny


@pytest.mark.parametrize("backend", ["bare", "transformers"])
def test_the_text_is_greedy(backend: str) -> None:
    model = make_tiny(layers=3)
    heads = Heads.fit(model, "topics[:2000]", tokens=300, steps=5)
    with using(backend):
        right = greedy.generate(model, "The kobza", tokens=40)
        found = hydra.generate(model, "The kobza", tokens=40, price=0.0)
    assert found.ids == right.ids and found.logprobs == pytest.approx(right.logprobs, abs=1e-4)
    assert len(heads.kept) == 300


def test_a_tree_is_the_likeliest_paths_and_parents_stand_first() -> None:
    model = make_tiny()
    heads = Heads.fit(model, "topics[:2000]", tokens=300, steps=5)
    session = Session(model, [5, 6, 7], 20, "bare")
    tree = Guesses(heads, depth=3, width=4, draft=7, price=0.0).propose(session, torch.randn(32), 19)
    assert len(tree.ids) == 7
    assert all(parent < n for n, parent in enumerate(tree.parents))
    assert len(set(zip(tree.parents, tree.ids, strict=True))) == 7
    state = torch.randn(32)
    first = Guesses(heads, depth=1, width=2, draft=9, price=0.0).propose(session, state, 19)
    moved = heads.moved(state, heads.vectors(torch.tensor(7)))
    assert sorted(first.ids) == sorted(heads.kept[(moved @ heads.out.T).topk(2).indices].tolist())
    assert Guesses(heads, depth=3, width=4, draft=7, price=1.0).propose(session, state, 19).ids == []


def test_a_fit_brings_the_guess_nearer_to_the_model() -> None:
    model = make_tiny()
    ids, states = hydra._read(model, "topics[:3000]", 800)

    def apart(steps: int) -> float:
        heads = Heads.fit(model, "topics[:3000]", tokens=800, steps=steps, ahead=1)
        guessed = heads.moved(states[:, :-1], heads.vectors(ids[:, 1:])) @ heads.out.T
        right = (states[:, 1:] @ heads.out.T).softmax(-1)
        return -float((right * guessed.log_softmax(-1)).sum(-1).mean())

    assert apart(80) < apart(1) - 0.1


def test_a_file_gives_back_what_was_saved(tmp_path: Any) -> None:
    model = make_tiny()
    heads = Heads.fit(model, "topics[:2000]", tokens=300, steps=3)
    path = heads.save(tmp_path / "heads.safetensors")
    again = Heads.load(model, path)
    assert torch.equal(again.kept, heads.kept) and torch.allclose(again.first, heads.first, atol=1e-3)
    right = greedy.generate(model, "The kobza", tokens=20).ids
    assert hydra.generate(model, "The kobza", tokens=20, heads=str(path)).ids == right
    with pytest.raises(WrongVocabulary, match="for states of 32 numbers"):
        Heads.load(make_tiny(width=64), path)
    with pytest.raises(MissingFile, match="draft_heads.py"):
        Heads.load(model, tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"12345678")
    with pytest.raises(BadValue, match="no draft heads"):
        Heads.load(model, tmp_path / "bad")
