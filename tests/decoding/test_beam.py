"""Beam search finds what transformers finds, and in a model small enough, what there is."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.decoding import beam, greedy
from kobza.models.tiny import tiny as make_tiny


def of_transformers(model: Any, ids: list[int], tokens: int, **options: Any) -> list[int]:
    fed = torch.tensor([ids])
    with torch.inference_mode():
        made = model.module.generate(
            fed, attention_mask=torch.ones_like(fed), max_new_tokens=tokens, do_sample=False, pad_token_id=0, **options
        )
    return [int(token) for token in made[0, len(ids) :]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(("beams", "length"), [(2, 1.0), (4, 0.0), (5, 2.0)])
def test_equals_transformers(family: str, beams: int, length: float) -> None:
    model = make_tiny(family)
    for prompt in ("The kobza", "дума"):
        found = beam.generate(model, prompt, tokens=24, beams=beams, length=length)
        expected = of_transformers(model, found.prompt_ids, 24, num_beams=beams, length_penalty=length)
        ended = [token for token in expected if token == model.tokenizer.end_id]
        assert found.ids == expected[: len(expected) - len(ended)]
        assert found.stopped_by == ("end" if ended else "length")


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_equals_transformers_where_texts_end(length: float) -> None:
    model = make_tiny()
    usual = greedy.generate(model, "The kobza", tokens=6).ids[3]
    model.tokenizer = copy.copy(model.tokenizer)
    model.tokenizer.marks = replace(model.tokenizer.marks, end_id=usual)
    model.module.generation_config.eos_token_id = usual
    model.config.eos_token_id = usual
    found = beam.generate(model, "The kobza", tokens=24, beams=4, length=length)
    expected = of_transformers(model, found.prompt_ids, 24, num_beams=4, length_penalty=length, eos_token_id=usual)
    assert found.ids == [token for token in expected if token != usual]


def test_one_beam_is_greedy(tiny: Any) -> None:
    assert beam.generate(tiny, "The kobza", tokens=20, beams=1).ids == greedy.generate(tiny, "The kobza", tokens=20).ids


def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_text() -> None:
    model = make_tiny(vocabulary=258)
    found = beam.generate(model, "ab", tokens=2, beams=258, length=0.0)
    with torch.inference_mode():
        ids = torch.tensor([found.prompt_ids])
        first = model.module(ids).logits[0, -1].log_softmax(-1)
        rows = torch.cat([ids.expand(258, -1), torch.arange(258)[:, None]], dim=1)
        second = model.module(rows).logits[:, -1].log_softmax(-1)
    total = first[:, None] + second
    total[1] = -torch.inf  # the end token ends
    best = divmod(int(total.argmax()), 258)
    assert sum(found.logprobs) == pytest.approx(float(total.max()), abs=1e-4)
    assert tuple(found.ids) == best or model.tokenizer.end_id in best


@torch.inference_mode()
def slowly(model: Any, ids: list[int], tokens: int, groups: int, diversity: float) -> list[int]:
    """Groups of one beam: each in turn takes its likeliest token, less what earlier ones chose at this place."""
    texts = [list(ids) for _ in range(groups)]
    totals = [0.0] * groups
    for _ in range(tokens):
        said: list[int] = []
        for n, text in enumerate(texts):
            scored = model.module(torch.tensor([text])).logits[0, -1].log_softmax(-1)
            for token in said:
                scored[token] -= diversity
            said.append(int(scored.argmax()))
            totals[n] += float(scored.max())
        for text, token in zip(texts, said, strict=True):
            text.append(token)
    return texts[totals.index(max(totals))][len(ids) :]


@pytest.mark.parametrize("diversity", [0.0, 0.5, 3.0])
def test_groups_of_one_beam_equal_the_formula(diversity: float) -> None:
    model = make_tiny()
    found = beam.generate(model, "The kobza", tokens=10, beams=4, groups=4, diversity=diversity)
    assert found.ids == slowly(model, found.prompt_ids, 10, 4, diversity)


def test_groups_without_a_price_are_equal_searches(tiny: Any) -> None:
    one = beam.generate(tiny, "The kobza", tokens=12, beams=4, groups=2, diversity=0.0)
    assert one.ids == beam.generate(tiny, "The kobza", tokens=12, beams=2).ids


@pytest.mark.parametrize(("beams", "groups"), [(4, 3), (4, 0), (4, 5)])
def test_groups_must_divide_the_beams(tiny: Any, beams: int, groups: int) -> None:
    with pytest.raises(OutOfRange, match=f"groups is {groups}; allowed is a divisor of beams \\(4\\)"):
        beam.generate(tiny, "a", beams=beams, groups=groups)
