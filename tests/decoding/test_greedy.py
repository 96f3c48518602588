"""Greedy decoding equals transformers' generate, token for token."""

from typing import Any

import pytest
import torch

from kobza.decoding import greedy
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
