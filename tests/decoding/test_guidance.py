"""Guidance equals transformers' generate with guidance_scale, token for token."""

from typing import Any

import pytest
import torch

from kobza.decoding import greedy, guidance
from kobza.models.tiny import tiny as make_tiny


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("scale", [1.5, 3.0])
@pytest.mark.parametrize("against", ["", "a lute"])
def test_equals_transformers(family: str, scale: float, against: str) -> None:
    model = make_tiny(family)
    found = guidance.generate(model, "The kobza", tokens=20, scale=scale, against=against)
    fed = torch.tensor([found.prompt_ids])
    extra = {}
    if against:
        ids = torch.tensor([model.tokenizer.encode(against, start=True)])
        extra = {"negative_prompt_ids": ids, "negative_prompt_attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        made = model.module.generate(
            fed, attention_mask=torch.ones_like(fed), max_new_tokens=20, do_sample=False, pad_token_id=0,
            guidance_scale=scale, **extra,
        )  # fmt: skip
    expected = [int(token) for token in made[0, fed.shape[1] :] if token != model.tokenizer.end_id]
    assert found.ids == expected


def test_a_scale_of_one_is_greedy(tiny: Any) -> None:
    found = guidance.generate(tiny, "The kobza", tokens=20, scale=1.0)
    assert found.ids == greedy.generate(tiny, "The kobza", tokens=20).ids
