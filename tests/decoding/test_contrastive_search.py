"""Contrastive search equals its formula, computed the slow way."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from kobza.core.errors import OutOfRange
from kobza.decoding import contrastive_search, greedy
from kobza.models.tiny import tiny as make_tiny


@torch.inference_mode()
def slowly(model: Any, ids: list[int], tokens: int, candidates: int, alpha: float) -> list[int]:
    """Equation 5 of the paper with a whole run for every candidate."""
    text = list(ids)
    for _ in range(tokens):
        probabilities = model.module(torch.tensor([text])).logits[0, -1].softmax(-1)
        worth = {}
        for token in probabilities.topk(candidates).indices.tolist():
            states = model.module(torch.tensor([[*text, token]]), output_hidden_states=True).hidden_states[-1][0]
            likeness = cosine_similarity(states[-1:], states[:-1], dim=-1).max()
            worth[token] = float((1 - alpha) * probabilities[token] - alpha * likeness)
        text.append(max(worth, key=lambda token: worth[token]))
    return text[len(ids) :]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize(("candidates", "alpha"), [(4, 0.6), (7, 0.3)])
def test_equals_the_formula(family: str, candidates: int, alpha: float) -> None:
    model = make_tiny(family)
    found = contrastive_search.generate(model, "The kobza", tokens=12, candidates=candidates, alpha=alpha)
    assert found.ids == slowly(model, found.prompt_ids, 12, candidates, alpha)


def test_without_penalty_it_is_greedy(tiny: Any) -> None:
    found = contrastive_search.generate(tiny, "The kobza", tokens=12, alpha=0.0)
    assert found.ids == greedy.generate(tiny, "The kobza", tokens=12).ids


def test_options_out_of_range_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="alpha is 2"):
        contrastive_search.generate(tiny, "a", alpha=2.0)
