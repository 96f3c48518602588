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


@pytest.mark.parametrize(("beams", "length"), [(1, 1.0), (4, 0.0), (5, 2.0)])
def test_all_texts_found_equal_transformers(beams: int, length: float) -> None:
    model = make_tiny()
    ids = model.tokenizer.encode("The kobza", start=True)
    fed = torch.tensor([ids])
    with torch.inference_mode():
        rows = model.module.generate(
            fed, attention_mask=torch.ones_like(fed), max_new_tokens=12, do_sample=False, pad_token_id=0,
            num_beams=beams, num_return_sequences=beams, length_penalty=length,
        )  # fmt: skip
        logprobs = model.module(rows).logits.log_softmax(-1)
    expected = []
    for row, found in zip(rows[:, len(ids) :].tolist(), logprobs[:, len(ids) - 1 : -1], strict=True):
        total = sum(float(found[place, token]) for place, token in enumerate(row))
        expected.append((model.tokenizer.text([t for t in row if t != model.tokenizer.end_id]), total))
    found = beam.many(model, ids, tokens=12, beams=beams, length=length)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [total for _, total in found] == pytest.approx([total for _, total in expected], abs=1e-3)


def test_the_first_of_all_texts_is_the_one_said(tiny: Any) -> None:
    options: dict[str, Any] = {"tokens": 12, "beams": 6, "groups": 3}
    texts = beam.many(tiny, "The kobza", **options)
    assert len(texts) == 6
    assert texts[0][0] == beam.generate(tiny, "The kobza", **options).text


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
    with pytest.raises(OutOfRange, match=f"groups is {groups}; allowed is a divisor of beams \\(4\\)"):
        beam.many(tiny, "a", beams=beams, groups=groups)
