"""Greedy decoding equals transformers' generate, token for token."""

from typing import Any

import pytest
import torch

from kobza.decoding import greedy
from kobza.models.stepping import using
from kobza.models.tiny import tiny as make_tiny


def of_transformers(model: Any, ids: list[int], tokens: int) -> list[int]:
    fed = torch.tensor([ids])
    with torch.inference_mode():
        made = model.module.generate(
            fed, attention_mask=torch.ones_like(fed), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
    return [int(token) for token in made[0, len(ids) :]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "qwen3"])
def test_equals_transformers_token_for_token(family: str) -> None:
    model = make_tiny(family)
    for prompt in ("The kobza", "дума", ""):
        generation = greedy.generate(model, prompt, tokens=40)
        expected = of_transformers(model, generation.prompt_ids, 40)
        ended = [token for token in expected if token == model.tokenizer.end_id]
        assert generation.ids == expected[: len(expected) - len(ended)]
        assert generation.stopped_by == ("end" if ended else "length")


def test_stop_texts_are_honored(tiny: Any) -> None:
    whole = greedy.generate(tiny, "The kobza", tokens=20).text
    cut = greedy.generate(tiny, "The kobza", tokens=20, stop=[whole[8:10]])
    assert whole.startswith(cut.text)
    assert whole[8:10] not in cut.text
    assert cut.stopped_by == "stop"


@pytest.mark.real
def test_smollm2_equals_transformers_token_for_token(smollm2: Any) -> None:
    generation = greedy.generate(smollm2, "The capital of France is", tokens=12)
    assert generation.ids == of_transformers(smollm2, generation.prompt_ids, 12)
    assert "Paris" in generation.text


@pytest.mark.parametrize("backend", ["bare", "transformers"])
def test_a_token_is_decided_where_the_lens_says_it_for_good(backend: str) -> None:
    """Authority: norm and head on the hidden states of one whole pass of the module."""
    model = make_tiny(layers=5)
    with using(backend):
        said = greedy.generate(model, "The kobza", tokens=12, decided=True)
    assert said.ids == greedy.generate(model, "The kobza", tokens=12).ids
    ids = [*said.prompt_ids, *said.ids]
    with torch.inference_mode():
        states = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states
        read = [model.module.lm_head(model.module.model.norm(s)).argmax(-1)[0] for s in states[1:-1]]
    for place, step in enumerate(said.steps, len(said.prompt_ids) - 1):
        right = [int(row[place]) == step.id for row in read] + [True]
        assert step.decided == 1 + max((n for n, is_right in enumerate(right, 1) if not is_right), default=0)
    assert len({step.decided for step in said.steps}) > 1
    assert greedy.generate(model, "a", tokens=2).steps[0].decided == 0
